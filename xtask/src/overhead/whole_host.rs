//! The whole host with two busy cores, in turns with the others; and with many processes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::bench::{self, Bench, Frames, Load, Run};
use super::crowd::Crowd;
use super::lightswitch;
use super::one_process::map_bound;
use super::perf::{CallGraph, Perf};
use super::proc_files;
use super::report::{Bound, Row, Unit, Values};

const RATE_HZ: u32 = 99;

/// A profiler is warm after this.
const WARM_UP: Duration = Duration::from_secs(5);

/// What a profiler takes beyond that until it is over, at least.
const END: Duration = Duration::from_secs(1);

/// What was seen of a profiler while it ran.
struct Seen {
    /// Hundredths of one core that it used once it was warm.
    steady_percent: f64,
    map_bytes: u64,
}

/// Measures CPU time and memory with two busy cores.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let steady = bench.seconds(20, 3);
    let duration = WARM_UP + steady + END;
    let _busy = busy_cores(bench)?;
    let (mut ours, mut lightswitch) = (Vec::new(), Vec::new());
    let (mut frame_pointers, mut dwarf) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let watch = |pid| watch(pid, steady);
        ours.push(record(bench, duration, watch)?);
        for (call_graph, runs) in [
            (CallGraph::FramePointers, &mut frame_pointers),
            (CallGraph::Dwarf, &mut dwarf),
        ] {
            runs.extend(bench.perf(&["-a"], call_graph, RATE_HZ, duration, watch));
        }
        let recorded = bench.lightswitch(None, lightswitch::RATE_HZ, duration, watch);
        lightswitch.extend(recorded.map(|(run, _)| run));
    }
    let perf_cpu = |perf: &[Perf<_>]| Values::new(Unit::Seconds, perf.iter().map(Perf::cpu_s));
    let cpu = |runs: &[Run<_>]| Values::new(Unit::Seconds, runs.iter().map(Run::cpu_s));
    let rss = |runs: &[Run<_>]| Values::new(Unit::Megabytes, runs.iter().map(Run::rss_mb));
    let perf_runs: Vec<_> = dwarf.iter().map(|perf| &perf.record).collect();
    let seconds = duration.as_secs();
    Ok(vec![
        Row::no_more_than(
            format!("agent CPU, whole host for {seconds} s, two busy cores"),
            cpu(&ours),
            "perf record -g + perf script",
            &perf_cpu(&frame_pointers),
        )
        .beside_perf(perf_cpu(&dwarf))
        .beside_lightswitch(cpu(&lightswitch)),
        Row::promise(
            "– after warm-up, of one core",
            steady_cpu(&ours),
            Bound::AtMost(0.5),
        )
        .beside_perf(steady_cpu(perf_runs.iter().copied()))
        .beside_lightswitch(steady_cpu(&lightswitch)),
        Row::promise("peak RSS, whole host", rss(&ours), Bound::AtMost(80.0))
            .beside_perf(Values::new(Unit::Megabytes, dwarf.iter().map(Perf::rss_mb)))
            .beside_lightswitch(rss(&lightswitch)),
        Row::promise("BPF maps, whole host", maps(&ours), map_bound(bench))
            .beside_lightswitch(maps(&lightswitch)),
    ])
}

/// Measures memory on a host with many processes.
pub fn measure_many_processes(bench: &Bench) -> Result<Vec<Row>> {
    const PROCESSES: usize = 200;
    let steady = bench.seconds(10, 2);
    let duration = WARM_UP + steady + END;
    let crowd = Crowd::gather(PROCESSES)?;
    let _busy = busy_cores(bench)?;
    let (mut ours, mut lightswitch) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        ours.push(record(bench, duration, |pid| watch(pid, steady))?);
        let recorded = bench.lightswitch(None, lightswitch::RATE_HZ, duration, |pid| {
            watch(pid, steady)
        });
        lightswitch.extend(recorded.map(|(run, _)| run));
    }
    let host = format!(
        "with {} more processes of {} programs",
        crowd.processes(),
        crowd.programs()
    );
    let rss = |runs: &[Run<_>]| Values::new(Unit::Megabytes, runs.iter().map(Run::rss_mb));
    let cpu = |runs: &[Run<_>]| Values::new(Unit::Seconds, runs.iter().map(Run::cpu_s));
    Ok(vec![
        Row::promise(
            format!("peak RSS, whole host {host}"),
            rss(&ours),
            Bound::AtMost(80.0),
        )
        .beside_lightswitch(rss(&lightswitch)),
        Row::promise("– BPF maps", maps(&ours), map_bound(bench))
            .beside_lightswitch(maps(&lightswitch)),
        Row::fact(
            format!("– agent CPU for {} s", duration.as_secs()),
            cpu(&ours),
        )
        .beside_lightswitch(cpu(&lightswitch)),
        Row::fact("– after warm-up, of one core", steady_cpu(&ours))
            .beside_lightswitch(steady_cpu(&lightswitch)),
    ])
}

/// One process on each of two CPUs, or on the only one.
fn busy_cores(bench: &Bench) -> Result<Vec<Load>> {
    bench
        .cpus
        .iter()
        .rev()
        .take(2)
        .map(|&cpu| bench.load(Frames::NoPointers, "busy", cpu, 8))
        .collect()
}

fn record(
    bench: &Bench,
    duration: Duration,
    watch: impl FnOnce(u32) -> Result<Seen>,
) -> Result<Run<Seen>> {
    let svg = bench.file("whole-host.svg");
    let seconds = format!("{}s", duration.as_secs());
    let args = [
        "--all",
        "--duration",
        &seconds,
        "--output",
        bench::arg(&svg)?,
    ];
    bench.record(&args, watch)
}

/// Looks at a profiler for a while, once it is warm.
fn watch(profiler: u32, steady: Duration) -> Result<Seen> {
    sleep(WARM_UP);
    let map_bytes = proc_files::map_bytes(profiler);
    let (before, clock) = (proc_files::cpu_time(profiler)?, Instant::now());
    sleep(steady);
    let used = proc_files::cpu_time(profiler)?.checked_sub(before);
    let used = used.context("a thread of the profiler ended meanwhile")?;
    Ok(Seen {
        steady_percent: used.as_secs_f64() / clock.elapsed().as_secs_f64() * 100.0,
        map_bytes: map_bytes.max(proc_files::map_bytes(profiler)),
    })
}

fn steady_cpu<'a>(runs: impl IntoIterator<Item = &'a Run<Seen>>) -> Values {
    Values::new(
        Unit::Percent,
        runs.into_iter().map(|run| run.seen.steady_percent),
    )
}

fn maps(runs: &[Run<Seen>]) -> Values {
    let bytes = runs.iter().map(|run| run.seen.map_bytes as f64 / 1e6);
    Values::new(Unit::Megabytes, bytes)
}
