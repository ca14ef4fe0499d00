//! How soon there is something to see.

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::bench::{self, Bench};
use super::profile;
use super::report::{Bound, Row, Unit, Values};

/// Start-up is short, so it is measured more often than the rest.
fn runs(bench: &Bench) -> u32 {
    if bench.quick { 1 } else { 7 }
}

/// Measures the time from the start of hotspan to its first sample, by the time that the sample
/// itself carries.
pub fn measure_first_sample(bench: &Bench) -> Result<Vec<Row>> {
    let load = bench.ordinary_load()?;
    let otlp = bench.file("first-sample.otlp.json");
    let pid = load.pid().to_string();
    let args = [
        "--pid",
        &pid,
        "--duration",
        "1s",
        "--output",
        bench::arg(&otlp)?,
    ];
    let mut seconds = Vec::new();
    for _ in 0..runs(bench) {
        let run = bench.record(&args, |_| Ok(()))?;
        let samples = profile::samples(&fs::read_to_string(&otlp)?)?;
        let first = samples.first().context("the profile has no sample")?;
        let since =
            Duration::from_nanos(first.time_ns).checked_sub(run.start.duration_since(UNIX_EPOCH)?);
        let since = since.context("the first sample is older than its profiler")?;
        seconds.push(since.as_secs_f64());
    }
    Ok(vec![Row::promise(
        "start to first sample",
        Values::new(Unit::Seconds, seconds),
        Bound::AtMost(0.2),
    )])
}

/// Measures how long a recording of one second takes until its flame graph is complete.
pub fn measure_one_second(bench: &Bench) -> Result<Vec<Row>> {
    let load = bench.ordinary_load()?;
    let svg = bench.file("one-second.svg");
    let pid = load.pid().to_string();
    let args = [
        "--pid",
        &pid,
        "--duration",
        "1s",
        "--output",
        bench::arg(&svg)?,
    ];
    let mut seconds = Vec::new();
    for _ in 0..runs(bench) {
        let run = bench.record(&args, |_| Ok(()))?;
        let text = fs::read_to_string(&svg)?;
        anyhow::ensure!(
            text.trim_end().ends_with("</svg>"),
            "the SVG is not complete"
        );
        seconds.push(run.wall.as_secs_f64());
    }
    Ok(vec![Row::promise(
        "recording of 1 s to complete SVG",
        Values::new(Unit::Seconds, seconds),
        Bound::AtMost(2.0),
    )])
}
