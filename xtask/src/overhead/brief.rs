//! Processes of 0.1 s, one after the other, while the whole host is recorded.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bench::{Bench, Frames, LOAD_NAME};
use super::lightswitch;
use super::perf::CallGraph;
use super::proc_files::SamplingPrograms;
use super::report::{Bound, Row, Unit, Values};
use super::stacks::{Stack, with_root};
use super::targets::{LIBC_CALLEES, LIBC_ROOTS};
use crate::command;

/// How long a profiler has been running before they start, and how long it goes on afterwards.
const MARGIN: Duration = Duration::from_secs(1);

/// The rate of hotspan and of perf.
const RATE_HZ: u32 = 99;

/// Shares in hundredths, one value of each a run.
#[derive(Default)]
struct Shares {
    kept: Vec<f64>,
    rooted: Vec<f64>,
    named: Vec<f64>,
}

impl Shares {
    /// Adds a run, in which they used `cpu`.
    fn add(&mut self, stacks: &[Stack], cpu: Duration, rate_hz: u32) {
        let count = |passes: &dyn Fn(&Stack) -> bool| {
            let stacks = stacks
                .iter()
                .filter(|stack| is_theirs(stack) && passes(stack));
            stacks.map(|stack| stack.count).sum::<u64>() as f64
        };
        let kept = count(&|_| true);
        self.kept
            .push(kept / (cpu.as_secs_f64() * f64::from(rate_hz)) * 100.0);
        self.rooted
            .push(count(&|stack| stack.is_rooted(LIBC_ROOTS)) / kept * 100.0);
        self.named.push(count(&Stack::is_named) / kept * 100.0);
    }

    fn values(&self) -> [Values; 3] {
        [&self.kept, &self.rooted, &self.named]
            .map(|shares| Values::new(Unit::Percent, shares.iter().copied()))
    }
}

/// Whether it is of one of the processes, by its name, or by its functions where the profiler does
/// not tell the name.
fn is_theirs(stack: &Stack) -> bool {
    if stack.process.is_empty() {
        stack.user.iter().any(|name| name == "brief_work")
    } else {
        stack.process == LOAD_NAME
    }
}

/// Measures which of their samples are kept, and how many of those are complete and named.
///
/// They start after the profiler and end before it, so what they tell to have used is what there
/// was to be sampled.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let work = bench.seconds(10, 3);
    let whole = work + 2 * MARGIN;
    let (mut ours, mut perf, mut lightswitch) =
        (Shares::default(), Shares::default(), Shares::default());
    for _ in 0..bench.rounds() {
        let start = |_| run_brief_processes(bench, work);
        let start_when_loaded = |pid| {
            SamplingPrograms::wait_for(pid)?;
            run_brief_processes(bench, work)
        };
        let seconds = format!("{}s", whole.as_secs());
        let (run, stacks) =
            bench.record_stacks(&["--all", "--duration", &seconds], start_when_loaded)?;
        ours.add(&stacks, run.seen, RATE_HZ);
        if let Some(run) = bench.perf(&["-a"], CallGraph::Dwarf, RATE_HZ, whole, start) {
            perf.add(&run.stacks()?, run.record.seen, RATE_HZ);
        }
        let rate_hz = lightswitch::RATE_HZ;
        if let Some((run, stacks)) = bench.lightswitch(None, rate_hz, whole, start_when_loaded) {
            let stacks = with_root(stacks, LIBC_ROOTS[0], LIBC_CALLEES);
            lightswitch.add(&stacks, run.seen, rate_hz);
        }
    }
    let shares = ["kept", "rooted", "named"].into_iter().zip(ours.values());
    let peers = perf.values().into_iter().zip(lightswitch.values());
    Ok(shares
        .zip(peers)
        .map(|((what, ours), (perf, lightswitch))| {
            let what = format!("processes of 0.1 s: samples {what}");
            Row::promise(what, ours, Bound::AtLeast(99.0))
                .beside_perf(perf)
                .beside_lightswitch(lightswitch)
        })
        .collect())
}

/// Returns their CPU time.
fn run_brief_processes(bench: &Bench, duration: Duration) -> Result<Duration> {
    sleep(MARGIN);
    let (cpu, seconds) = (bench.cpu().to_string(), duration.as_secs().to_string());
    let args = ["brief", &cpu, &seconds];
    let used_ns = command::text(&mut bench.load_command(Frames::NoPointers, &args))?;
    let used_ns = used_ns
        .parse()
        .context("the workload prints its CPU time")?;
    Ok(Duration::from_nanos(used_ns))
}
