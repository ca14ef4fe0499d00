//! Ten thousand processes that come and go leave nothing behind in the kernel's maps.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hotspan_tests::bpf_maps::entries;
use hotspan_tests::place;
use hotspan_tests::process::{self, wait_for};
use hotspan_tests::program::Recipe;
use hotspan_tests::recorder::Hotspan;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;

/// Ten times as many.
const CYCLES: &str = "1000";
const PATIENCE: Duration = Duration::from_secs(90);

fn c(name: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler: "gcc",
        flags: &[&["-O2"], flags].concat(),
        source: &format!("c/{name}.c"),
        ..Recipe::default()
    }
    .make()
}

#[test]
fn ended_processes_leave_no_entries() -> Result<()> {
    let mut command = Command::new(c("cycles", &[])?);
    command
        .arg("120")
        .arg(c("nothing", &["-static"])?)
        .arg(CYCLES);
    let workload = Workload::start_command(&mut command)?;
    let folder = place::folder()?;
    let mut recording = Hotspan::record()?
        .args(&format!("--pid {} --children", workload.pid()))
        .output(folder.path().join("out.folded"))
        .start()?;
    recording.wait_for_capture()?;
    let hotspan = recording.pid();
    let sizes = || -> Result<[usize; 2]> {
        Ok([entries(hotspan, "PROCESSES")?, entries(hotspan, "TARGETS")?])
    };
    // The workload itself, once its tables are there.
    let before = wait_for("the tables of the workload", PATIENCE, || {
        Ok(Some(sizes()?).filter(|sizes| *sizes == [1, 1]))
    })?;
    for _ in 0..10 {
        process::send(workload.pid(), Signal::USR1)?;
        workload.wait_for_line("done")?;
    }
    let after = wait_for("the end of the processes", PATIENCE, || {
        Ok(Some(sizes()?).filter(|sizes| *sizes == before))
    })?;
    ensure!(after == before);
    recording.signal(Signal::INT)?;
    let run = recording.finish()?.succeeded()?;
    ensure!(!run.stderr.contains("targets_full"), "{}", run.stderr);
    workload.stop()?;
    Ok(())
}
