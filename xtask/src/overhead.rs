//! `cargo xtask overhead`: what hotspan costs and how fast it is, against what it promises.
//!
//! In: a release build, root, gcc, perf. Out: a table in Markdown, and JSON when asked; the verb
//! fails when a promise is broken.
//!
//! Machines differ and are noisy. So hotspan, perf and lightswitch take turns in one run and are
//! compared with each other; what hotspan does is measured at least three times; medians are judged
//! and spreads shown.
//! CPU time and peak memory are what the kernel tells of the ended process (`wait4`). The files in
//! `overhead/` say how the rest is measured, one for each subject.
//!
//! To add a measurement: write a function from a [`Bench`] to [`Row`]s, and give it a line in
//! [`MEASUREMENTS`].

mod agent;
mod bench;
mod bpf_time;
mod brief;
mod collection;
mod complete;
mod crowd;
mod kernel;
mod large_binary;
mod lightswitch;
mod one_process;
mod perf;
pub mod proc_files;
mod profile;
mod report;
mod stacks;
mod start;
mod syscall_cost;
mod targets;
mod whole_host;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Package};
use crate::{command, test};
use bench::Bench;
use report::{Report, Row};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Shorter and fewer runs, which are not judged: shows that everything works
    #[arg(long)]
    quick: bool,
    /// Measure only this (repeatable)
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(NAMES))]
    only: Vec<String>,
    /// Also write the numbers here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Succeed even when a promise is broken
    #[arg(long)]
    no_judge: bool,
    /// Measure this hotspan instead of building one
    #[arg(long, value_name = "FILE")]
    hotspan: Option<PathBuf>,
}

type Measure = fn(&Bench) -> Result<Vec<Row>>;

const MEASUREMENTS: [(&str, Measure); 12] = [
    ("complete-stacks", complete::measure),
    ("first-sample", start::measure_first_sample),
    ("one-second", start::measure_one_second),
    ("one-process", one_process::measure),
    ("whole-host", whole_host::measure),
    ("many-processes", whole_host::measure_many_processes),
    ("brief-processes", brief::measure),
    ("bpf-time", bpf_time::measure),
    ("syscall-cost", syscall_cost::measure),
    ("collection", collection::measure),
    ("agent", agent::measure),
    ("large-binary", large_binary::measure),
];

const NAMES: [&str; MEASUREMENTS.len()] = {
    let mut names = [""; MEASUREMENTS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = MEASUREMENTS[i].0;
        i += 1;
    }
    names
};

#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    Package { name: "chromium",             provides: "/usr/lib/chromium/chromium" },
    Package { name: "default-jdk-headless", provides: "javac" },
    Package { name: "g++",                  provides: "g++" },
    Package { name: "gcc",                  provides: "gcc" },
    Package { name: "golang",               provides: "go" },
    // Names the first functions of threads, by which stacks are judged.
    Package { name: "libc6-dbg",            provides: "/usr/share/doc/libc6-dbg" },
    Package { name: "libc6-dev",            provides: "/usr/include/stdio.h" },
    Package { name: "linux-perf",           provides: "perf" },
    Package { name: "nodejs",               provides: "node" },
    Package { name: "perl",                 provides: "perl" },
    Package { name: "prometheus-node-exporter", provides: "prometheus-node-exporter" },
    Package { name: "python3",              provides: "/usr/bin/python3" },
    Package { name: "redis-server",         provides: "redis-server" },
    Package { name: "redis-tools",          provides: "redis-benchmark" },
    Package { name: "strace",               provides: "strace" },
];

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if !debian::is_root() {
        bail!("measuring needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask overhead`");
    }
    debian::install(&debian::missing(PACKAGES))?;
    let hotspan = match &args.hotspan {
        Some(path) => path.clone(),
        None => {
            eprintln!("building");
            test::release_build()?;
            test::binary()
        }
    };
    let bench = Bench::prepare(hotspan, args.quick)?;
    let start = Start {
        clock: Instant::now(),
        load: load()?,
        stolen: proc_files::stolen_time(&bench.cpus)?,
    };
    let (rows, failures) = measure(&bench, &args.only);
    let report = Report {
        rows,
        enough_runs: !args.quick,
        setting: setting(&bench, &start)?,
    };
    print!("{}", report.to_markdown());
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", report.to_json()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let broken = report.broken();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    if !broken.is_empty() && !args.no_judge {
        bail!("broken promises: {}", broken.join("; "));
    }
    Ok(())
}

/// Measures everything, or what is named in `only`, also after a failure. Returns the numbers and
/// the failures.
fn measure(bench: &Bench, only: &[String]) -> (Vec<Row>, Vec<String>) {
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (name, measure) in MEASUREMENTS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        // Standard output has the table alone.
        eprintln!("measuring {name}");
        match measure(bench) {
            Ok(measured) => rows.extend(measured),
            Err(error) => failures.push(format!("cannot measure {name}: {error:#}")),
        }
    }
    (rows, failures)
}

/// How the machine was before anything was measured.
struct Start {
    clock: Instant,
    load: String,
    stolen: Duration,
}

/// What the numbers depend on.
fn setting(bench: &Bench, start: &Start) -> Result<Vec<(&'static str, String)>> {
    let cpu_info = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown model", |(_, model)| model);
    let stolen = proc_files::stolen_time(&bench.cpus)?.saturating_sub(start.stolen);
    let whole = start.clock.elapsed() * bench.cpus.len() as u32;
    let lightswitch = match &bench.lightswitch {
        Ok(_) => lightswitch::VERSION.to_owned(),
        Err(reason) => format!("could not be built: {reason}"),
    };
    Ok(vec![
        ("CPUs", format!("{} of {model}", bench.cpus.len())),
        (
            "Kernel",
            fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
        ),
        (
            "perf",
            command::text(Command::new("perf").arg("--version"))?.replace("perf version ", ""),
        ),
        ("lightswitch", lightswitch),
        ("Load at the start", start.load.clone()),
        ("Load at the end", load()?),
        (
            "Stolen by the hypervisor",
            format!(
                "{:.2} %",
                stolen.as_secs_f64() / whole.as_secs_f64() * 100.0
            ),
        ),
    ])
}

/// The average load of the last minutes.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}
