//! The whole host for twenty seconds with two busy cores, in turns with perf; and with many
//! processes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::bench::{self, Bench, Frames, Load, Perf, Run};
use super::one_process::map_bound;
use super::proc_files;
use super::report::{Bound, Row, Unit, Values};

/// What was seen of a profiler while it ran.
struct Seen {
    /// Hundredths of one core that it used once it was warm.
    steady_percent: f64,
    map_bytes: u64,
}

/// Measures CPU time and memory with two busy cores.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let duration = bench.seconds(20, 3);
    let _busy = busy_cores(bench)?;
    let (mut ours, mut perf) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        ours.push(record(bench, duration)?);
        perf.extend(bench.perf(&["-a"], duration, |pid| watch(pid, duration)));
    }
    let steady = |runs: &mut dyn Iterator<Item = &Run<Seen>>| {
        Values::new(Unit::Percent, runs.map(|run| run.seen.steady_percent))
    };
    let perf_cpu = Values::new(Unit::Seconds, perf.iter().map(Perf::cpu_s));
    let perf_rss = Values::new(Unit::Megabytes, perf.iter().map(Perf::rss_mb));
    let perf_steady = steady(&mut perf.iter().map(|perf| &perf.record));
    let maps = ours.iter().map(|run| run.seen.map_bytes as f64 / 1e6);
    Ok(vec![
        Row::no_more_than(
            format!(
                "agent CPU, whole host for {} s, two busy cores",
                duration.as_secs()
            ),
            Values::new(Unit::Seconds, ours.iter().map(Run::cpu_s)),
            "perf record + perf script",
            &perf_cpu,
        ),
        Row::fact("– perf record + perf script beside it", perf_cpu),
        Row::promise(
            "– after warm-up, of one core",
            steady(&mut ours.iter()),
            Bound::AtMost(0.5),
        ),
        Row::fact("– perf record beside it", perf_steady),
        Row::promise(
            "peak RSS, whole host",
            Values::new(Unit::Megabytes, ours.iter().map(Run::rss_mb)),
            Bound::AtMost(80.0),
        ),
        Row::fact("– perf beside it (the larger of both)", perf_rss),
        Row::promise(
            "BPF maps, whole host",
            Values::new(Unit::Megabytes, maps),
            map_bound(bench),
        ),
    ])
}

/// Measures memory on a host with many processes.
pub fn measure_many_processes(bench: &Bench) -> Result<Vec<Row>> {
    const PROCESSES: usize = 200;
    let duration = bench.seconds(5, 2);
    let _busy = busy_cores(bench)?;
    let _idle = (0..PROCESSES)
        .map(|_| bench.load(Frames::Pointers, "idle", bench.cpu(), 0))
        .collect::<Result<Vec<_>>>()?;
    let runs = (0..bench.rounds())
        .map(|_| record(bench, duration))
        .collect::<Result<Vec<_>>>()?;
    Ok(vec![
        Row::promise(
            format!("peak RSS, whole host with {PROCESSES} more processes"),
            Values::new(Unit::Megabytes, runs.iter().map(Run::rss_mb)),
            Bound::AtMost(80.0),
        ),
        Row::fact(
            format!("agent CPU, the same for {} s", duration.as_secs()),
            Values::new(Unit::Seconds, runs.iter().map(Run::cpu_s)),
        ),
    ])
}

/// One process on each of two CPUs, or on the only one.
fn busy_cores(bench: &Bench) -> Result<Vec<Load>> {
    bench
        .cpus
        .iter()
        .rev()
        .take(2)
        .map(|&cpu| bench.load(Frames::Pointers, "busy", cpu, 0))
        .collect()
}

fn record(bench: &Bench, duration: Duration) -> Result<Run<Seen>> {
    let svg = bench.file("whole-host.svg");
    let seconds = format!("{}s", duration.as_secs());
    let args = [
        "--all",
        "--duration",
        &seconds,
        "--output",
        bench::arg(&svg)?,
    ];
    bench.record(&args, |pid| watch(pid, duration))
}

/// Looks at a profiler from the first third of its recording until shortly before the end.
fn watch(profiler: u32, duration: Duration) -> Result<Seen> {
    sleep(duration / 3);
    let (before, clock) = (proc_files::cpu_time(profiler)?, Instant::now());
    sleep(duration * 5 / 9);
    let used = proc_files::cpu_time(profiler)? - before;
    Ok(Seen {
        steady_percent: used.as_secs_f64() / clock.elapsed().as_secs_f64() * 100.0,
        map_bytes: proc_files::map_bytes(profiler),
    })
}
