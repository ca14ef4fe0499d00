//! Processes of 0.1 s, one after the other, while the whole host is recorded.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bench::{self, Bench, Frames, LOAD_NAME};
use super::proc_files::SamplingProgram;
use super::report::{Bound, Row, Unit, Values};
use crate::command;

/// Measures which of their samples are kept, and how many of those are complete and named.
///
/// They start after hotspan and end before it, so what they tell to have used is what there was to
/// be sampled.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let duration = bench.seconds(10, 3);
    let (mut kept, mut rooted, mut named) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let folded = bench.file("brief.folded");
        let seconds = format!("{}s", (duration + Duration::from_secs(2)).as_secs());
        let filter = format!("^{LOAD_NAME}$");
        let args = [
            "--all",
            "--comm",
            &filter,
            "--duration",
            &seconds,
            "--output",
            bench::arg(&folded)?,
        ];
        let run = bench.record(&args, |pid| run_brief_processes(bench, pid, duration))?;
        let counts = run.summary()?.samples;
        kept.push(counts.kept / (run.seen.as_secs_f64() * 99.0) * 100.0);
        rooted.push(counts.rooted / counts.kept * 100.0);
        named.push(counts.named / counts.kept * 100.0);
    }
    let shares = [("kept", kept), ("rooted", rooted), ("named", named)];
    Ok(shares
        .into_iter()
        .map(|(what, values)| {
            Row::aim(
                format!("processes of 0.1 s: samples {what}"),
                Values::new(Unit::Percent, values),
                Bound::AtLeast(99.0),
            )
        })
        .collect())
}

/// Returns their CPU time.
fn run_brief_processes(bench: &Bench, hotspan: u32, duration: Duration) -> Result<Duration> {
    SamplingProgram::wait_for(hotspan)?;
    sleep(Duration::from_millis(300)); // The clocks start right after the program is loaded.
    let (cpu, seconds) = (bench.cpu().to_string(), duration.as_secs().to_string());
    let args = ["brief", &cpu, &seconds];
    let used_ns = command::text(&mut bench.load_command(Frames::Pointers, &args))?;
    let used_ns = used_ns
        .parse()
        .context("the workload prints its CPU time")?;
    Ok(Duration::from_nanos(used_ns))
}
