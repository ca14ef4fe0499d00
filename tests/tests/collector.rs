//! A real collector receives what was captured, over gRPC and over HTTP.

use anyhow::{Context, Result, ensure};
use hotspan_proto::otlp::profiles_service::ExportProfilesServiceRequest;
use hotspan_tests::collector::Collector;
use hotspan_tests::formats::{of_otlp, read_otlp};
use hotspan_tests::otlp_json;
use hotspan_tests::place;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::Hotspan;
use hotspan_tests::workload::Workload;

/// Records to a file and to `url`, and returns what is in the file.
fn send(workload: &Workload, url: &str) -> Result<ExportProfilesServiceRequest> {
    let folder = place::folder()?;
    let file = folder.path().join("out.otlp");
    Hotspan::record()?
        .args(&format!("-p {} -d 1s --otlp {url}", workload.pid()))
        .output(&file)
        .run()?
        .succeeded()?;
    read_otlp(&file)
}

fn strings(request: &ExportProfilesServiceRequest) -> usize {
    let dictionary = request.dictionary.as_ref();
    dictionary.map_or(0, |dictionary| dictionary.string_table.len())
}

#[test]
fn what_arrives_is_what_was_captured() -> Result<()> {
    let folder = place::folder()?;
    let collector = Collector::start(folder.path())?;
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    let urls = [
        format!("grpc://127.0.0.1:{}", collector.grpc_port),
        format!("http://127.0.0.1:{}", collector.http_port),
    ];
    for (index, url) in urls.iter().enumerate() {
        let sent = send(&workload, url).with_context(|| url.clone())?;
        let mut arrived = collector.wait_for_requests(index + 1)?;
        ensure!(
            arrived.len() == index + 1,
            "{url}: {} requests arrived",
            arrived.len()
        );
        let mut arrived = arrived.pop().context("nothing arrived")?;
        otlp_json::undo_collector(&mut arrived, strings(&sent));
        let stacks = of_otlp(&arrived)?;
        ensure!(
            stacks.with_chain(&["main", "run", "heavy_caller", "heavy"]) > 0,
            "{}",
            stacks.commonest()
        );
        ensure!(
            stacks == of_otlp(&sent)?,
            "{url}: other stacks arrived:{}",
            stacks.commonest()
        );
        // And with them build ids, timestamps, threads, addresses.
        ensure!(
            arrived == sent,
            "{url}: sent {sent:#?}\narrived {arrived:#?}"
        );
    }
    Ok(())
}

#[test]
fn the_whole_host_fits_through() -> Result<()> {
    let folder = place::folder()?;
    let collector = Collector::start(folder.path())?;
    let _workload = Workload::start(&program::cpp("names")?)?;
    let file = folder.path().join("out.otlp");
    Hotspan::record()?
        .args(&format!(
            "-a -d 1s --otlp grpc://127.0.0.1:{}",
            collector.grpc_port
        ))
        .output(&file)
        .run()?
        .succeeded()?;
    let sent = read_otlp(&file)?;
    let mut arrived = collector
        .wait_for_requests(1)?
        .pop()
        .context("nothing arrived")?;
    otlp_json::undo_collector(&mut arrived, strings(&sent));
    ensure!(
        of_otlp(&arrived)? == of_otlp(&sent)?,
        "other stacks arrived"
    );
    Ok(())
}
