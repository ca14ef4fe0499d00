//! What a recording leaves behind: every format from one capture, whose it is, and what happens
//! when it does not fit.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use hotspan_proto::otlp::{
    common::any_value::Value, profiles_service::ExportProfilesServiceRequest,
};
use hotspan_tests::formats::{
    of_otlp, of_pprof, of_speedscope, read_otlp, read_pprof, rectangles, text_attribute,
};
use hotspan_tests::place::{self, TinyDisk};
use hotspan_tests::process;
use hotspan_tests::profcheck;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Hotspan, read_folded};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::Workload;

const NAMES: [&str; 6] = [
    "out.folded",
    "out.svg",
    "out.pb.gz",
    "out.otlp",
    "out.otlp.json",
    "out.speedscope.json",
];

fn shares() -> Result<Workload> {
    Workload::start(&program::c("shares", Build::FramePointers)?)
}

/// The GNU build id of a file, as readelf tells it.
fn build_id(path: &Path) -> Result<String> {
    let text = process::output(Command::new("readelf").arg("-n").arg(path))?;
    let id = text.split_once("Build ID: ").context("no build id")?.1;
    Ok(id.split_whitespace().next().unwrap_or_default().to_owned())
}

fn unix_ns() -> Result<u64> {
    Ok(u64::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}

#[test]
fn every_format_tells_the_same_of_one_capture() -> Result<()> {
    let folder = place::folder()?;
    let at = |name: &str| folder.path().join(name);
    let workload = shares()?;
    let pid = workload.pid();
    let start_ns = unix_ns()?;
    let mut hotspan = Hotspan::record()?.args(&format!("-p {pid} -d 2s --json"));
    for name in NAMES {
        hotspan = hotspan.output(at(name));
    }
    let run = hotspan.run()?.succeeded()?;
    let end_ns = unix_ns()?;
    let summary = run.summary()?;
    let files: Vec<_> = NAMES
        .iter()
        .map(|name| at(name).display().to_string())
        .collect();
    ensure!(summary.files == files, "{:?}", summary.files);

    let folded = read_folded(&at("out.folded"))?;
    let plain = folded.without_marks();
    ensure!(folded.total() == summary.samples.kept, "{summary:?}");
    let pprof = read_pprof(&at("out.pb.gz"))?;
    let otlp = read_otlp(&at("out.otlp"))?;
    let period_ns = u64::try_from(pprof.period)?;
    for (name, stacks) in [
        ("pprof", of_pprof(&pprof)?),
        ("OTLP", of_otlp(&otlp)?),
        (
            "speedscope",
            of_speedscope(&at("out.speedscope.json"), period_ns)?,
        ),
    ] {
        ensure!(
            stacks == plain,
            "{name}:{}\nfolded:{}",
            stacks.commonest(),
            plain.commonest()
        );
    }
    ensure!(
        read_otlp(&at("out.otlp.json"))? == otlp,
        "OTLP's JSON is another profile"
    );
    let rectangles = rectangles(&at("out.svg"))?;
    ensure!(rectangles["all"] == folded.total(), "{rectangles:?}");
    for function in ["heavy", "light", "run"] {
        let expected = folded.with(function);
        ensure!(
            rectangles[function] == expected,
            "{function}: {expected}; {rectangles:?}"
        );
        let top = summary.top.iter().find(|hot| hot.function == function);
        let top = top.with_context(|| format!("{function} is not at the top: {summary:?}"))?;
        ensure!(top.total == expected && top.module == "shares", "{top:?}");
    }
    check_pprof(&pprof, pid)?;
    check_otlp(&otlp, pid, start_ns..end_ns)
}

fn check_pprof(profile: &hotspan_proto::pprof::Profile, pid: u32) -> Result<()> {
    let text = |index: i64| profile.string_table[index as usize].as_str();
    let types = profile
        .sample_type
        .iter()
        .map(|t| (text(t.ty), text(t.unit)));
    let types: Vec<_> = types.collect();
    ensure!(
        types == [("samples", "count"), ("cpu", "nanoseconds")],
        "{types:?}"
    );
    for sample in &profile.sample {
        ensure!(
            sample.value[1] == sample.value[0] * profile.period,
            "{sample:?}"
        );
        let numbers: Vec<_> = sample
            .label
            .iter()
            .map(|label| (text(label.key), label.num))
            .collect();
        for name in ["pid", "tid"] {
            ensure!(numbers.contains(&(name, i64::from(pid))), "{numbers:?}");
        }
    }
    let program = program::c("shares", Build::FramePointers)?;
    let name = program.display().to_string();
    let mapping = profile
        .mapping
        .iter()
        .find(|mapping| text(mapping.filename) == name);
    let mapping = mapping.with_context(|| format!("no mapping of {name}"))?;
    ensure!(
        text(mapping.build_id) == build_id(&program)?,
        "{}",
        text(mapping.build_id)
    );
    Ok(())
}

fn check_otlp(
    request: &ExportProfilesServiceRequest,
    pid: u32,
    window_ns: std::ops::Range<u64>,
) -> Result<()> {
    let broken = profcheck::check(request);
    ensure!(broken.is_empty(), "{broken:#?}");
    let [resource] = &request.resource_profiles[..] else {
        anyhow::bail!(
            "{} resources for one process",
            request.resource_profiles.len()
        );
    };
    let attributes = &resource
        .resource
        .as_ref()
        .context("no resource")?
        .attributes;
    let found = attributes
        .iter()
        .find(|attribute| attribute.key == "process.pid");
    let found = found.and_then(|attribute| attribute.value.clone()?.value);
    ensure!(found == Some(Value::IntValue(i64::from(pid))), "{found:?}");
    let program = program::c("shares", Build::FramePointers)?;
    let path = text_attribute(attributes, "process.executable.path");
    ensure!(path == Some(program.display().to_string()), "{path:?}");
    let profiles = resource
        .scope_profiles
        .iter()
        .flat_map(|scope| &scope.profiles);
    for time in profiles
        .flat_map(|p| &p.samples)
        .flat_map(|s| &s.timestamps_unix_nano)
    {
        ensure!(
            window_ns.contains(time),
            "a sample at {time} in {window_ns:?}"
        );
    }
    let id = Value::StringValue(build_id(&program)?);
    let dictionary = request.dictionary.as_ref().context("no dictionary")?;
    let values = dictionary
        .attribute_table
        .iter()
        .filter_map(|a| a.value.clone()?.value);
    ensure!(
        values.into_iter().any(|value| value == id),
        "no build id {id:?}"
    );
    Ok(())
}

#[test]
fn a_flame_graph_is_the_default() -> Result<()> {
    let folder = place::folder()?;
    let workload = shares()?;
    Hotspan::record()?
        .args(&format!("-p {} -d 500ms", workload.pid()))
        .current_dir(folder.path())
        .run()?
        .succeeded()?;
    let rectangles = rectangles(&folder.path().join("hotspan.svg"))?;
    ensure!(rectangles.contains_key("heavy"), "{rectangles:?}");
    Ok(())
}

#[test]
fn standard_output_takes_folded_text_alone() -> Result<()> {
    let folder = place::folder()?;
    let workload = shares()?;
    let run = Hotspan::record()?
        .args(&format!("-p {} -d 1s -o -", workload.pid()))
        .current_dir(folder.path())
        .run()?
        .succeeded()?;
    let stacks = Stacks::parse_folded(&run.stdout)?;
    ensure!(
        stacks.with_chain(&["main", "run", "heavy_caller", "heavy"]) > 0,
        "{}",
        run.stdout
    );
    // What a person reads goes elsewhere: the hottest functions, and one line of quality.
    for word in ["heavy", "expected", "rooted", "named", "lost"] {
        ensure!(run.stderr.contains(word), "no {word}: {}", run.stderr);
    }
    let left = fs::read_dir(folder.path())?.count();
    ensure!(left == 0, "{left} files that nobody asked for");
    Ok(())
}

#[test]
fn a_format_can_be_named() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.dat");
    let workload = shares()?;
    Hotspan::record()?
        .args(&format!("-p {} -d 500ms --format pprof", workload.pid()))
        .output(&file)
        .run()?
        .succeeded()?;
    ensure!(of_pprof(&read_pprof(&file)?)?.with("heavy") > 0, "no heavy");
    Ok(())
}

#[test]
fn files_belong_to_who_called_sudo() -> Result<()> {
    let folder = place::folder()?;
    let workload = shares()?;
    let mut hotspan = Hotspan::record()?
        .args(&format!("-p {} -d 500ms", workload.pid()))
        .env("SUDO_UID", "12345")
        .env("SUDO_GID", "23456");
    for name in NAMES {
        hotspan = hotspan.output(folder.path().join(name));
    }
    hotspan.run()?.succeeded()?;
    for name in NAMES {
        let file = fs::metadata(folder.path().join(name))?;
        ensure!(
            (file.uid(), file.gid()) == (12345, 23456),
            "{name}: {}:{}",
            file.uid(),
            file.gid()
        );
        ensure!(file.mode() & 0o777 == 0o644, "{name}: {:o}", file.mode());
    }
    Ok(())
}

#[test]
fn a_full_disk_does_not_keep_the_other_files_from_being_written() -> Result<()> {
    let folder = place::folder()?;
    let disk = TinyDisk::new()?;
    let full = disk.path().join("out.svg");
    fs::write(&full, "what was there before")?;
    let [first, last] = ["first.folded", "last.pb.gz"].map(|name| folder.path().join(name));
    let workload = shares()?;
    let run = Hotspan::record()?
        .args(&format!("-p {} -d 1s", workload.pid()))
        .output(&first)
        .output(&full)
        .output(&last)
        .run()?;
    ensure!(
        run.code == Some(1),
        "exit code {:?}: {}",
        run.code,
        run.stderr
    );
    let said = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("hotspan: "));
    let said: Vec<_> = said.collect();
    ensure!(said.len() == 1 && said[0].contains("out.svg"), "{said:?}");
    ensure!(said[0].contains("No space left"), "{said:?}");
    ensure!(
        read_folded(&first)?.total() > 0,
        "nothing in the first file"
    );
    ensure!(
        of_pprof(&read_pprof(&last)?)?.total() > 0,
        "nothing in the last file"
    );
    // Nothing half made is left.
    let left: Vec<_> = fs::read_dir(disk.path())?
        .flatten()
        .map(|file| file.file_name())
        .collect();
    ensure!(left == ["out.svg"], "{left:?}");
    ensure!(
        fs::read_to_string(&full)? == "what was there before",
        "the old file is spoiled"
    );
    Ok(())
}

#[test]
fn hidden_kernel_symbols_cost_no_more_than_their_names() -> Result<()> {
    let workload = Workload::start(&program::c("syscalls", Build::FramePointers)?)?;
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let hide = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount --bind /dev/null /proc/kallsyms && exec \"$0\" \"$@\"",
    ];
    let run = Hotspan::under(&hide.map(AsRef::as_ref), "record")?
        .args(&format!("-p {} -d 2s --json", workload.pid()))
        .output(&file)
        .run()?
        .succeeded()?;
    let stacks = read_folded(&file)?;
    ensure!(
        stacks.total() == run.summary()?.samples.kept,
        "{}",
        run.stderr
    );
    ensure!(stacks.share("compute")? > 0.03, "{}", stacks.commonest());
    let unnamed = stacks.filter(|stack| {
        stack
            .iter()
            .any(|f| f.contains("+0x") && f.ends_with("_[k]"))
    });
    ensure!(
        unnamed.with_chain(&["main", "read_zeros"]) as f64 > 0.7 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn a_saved_profile_becomes_a_picture_and_a_difference() -> Result<()> {
    let folder = place::folder()?;
    let at = |name: &str| folder.path().join(name);
    let workload = shares()?;
    Hotspan::record()?
        .args(&format!("-p {} -d 1s", workload.pid()))
        .output(at("a.pb.gz"))
        .output(at("a.folded"))
        .run()?
        .succeeded()?;
    drop(workload);
    let total = read_folded(&at("a.folded"))?.total();
    for input in ["a.pb.gz", "a.folded"] {
        for options in [
            "",
            "--reverse",
            "--icicle",
            "--filter heavy",
            "--title Title",
        ] {
            let run = Hotspan::verb("flamegraph")?
                .arg(at(input))
                .output(at("b.svg"))
                .args(options)
                .patience(Duration::from_secs(10))
                .run()?;
            run.succeeded()
                .with_context(|| format!("{input} {options}"))?;
            let rectangles = rectangles(&at("b.svg"))?;
            let has_light = rectangles.contains_key("light");
            let is_filtered = options.starts_with("--filter");
            ensure!(
                rectangles.contains_key("heavy") && has_light != is_filtered,
                "{rectangles:?}"
            );
            ensure!(
                is_filtered || rectangles["all"] == total,
                "{total}: {rectangles:?}"
            );
        }
    }
    fs::write(
        at("b.folded"),
        "shares;main;run;heavy 1\nshares;main;run;new 1\n",
    )?;
    Hotspan::verb("diff")?
        .arg(at("a.pb.gz"))
        .arg(at("b.folded"))
        .output(at("diff.svg"))
        .run()?
        .succeeded()?;
    ensure!(
        fs::read_to_string(at("diff.svg"))?.contains("new ("),
        "the new function is not shown"
    );
    Ok(())
}
