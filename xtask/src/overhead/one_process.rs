//! Ten seconds of one busy process, in turns with perf.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use super::bench::{self, Bench, Perf, Run};
use super::proc_files;
use super::report::{Bound, Row, Unit, Values};

/// Measures CPU time, memory and the share of samples that were kept.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let duration = bench.seconds(10, 2);
    let load = bench.busy_load()?;
    let pid = load.pid().to_string();
    let (mut ours, mut perf) = (Vec::new(), Vec::new());
    let mut kept = Vec::new();
    for _ in 0..bench.rounds() {
        let (run, percent) = record(bench, load.pid(), duration)?;
        ours.push(run);
        kept.push(percent);
        perf.extend(bench.perf(&["-p", &pid], duration, |_| Ok(())));
    }
    let seconds = |runs: &[Run<u64>]| Values::new(Unit::Seconds, runs.iter().map(Run::cpu_s));
    let perf_cpu = Values::new(Unit::Seconds, perf.iter().map(Perf::cpu_s));
    let perf_rss = Values::new(Unit::Megabytes, perf.iter().map(Perf::rss_mb));
    let length = duration.as_secs();
    Ok(vec![
        Row::no_more_than(
            format!("agent CPU, one process for {length} s"),
            seconds(&ours),
            "perf record + perf script",
            &perf_cpu,
        ),
        Row::promise("– and in itself", seconds(&ours), Bound::AtMost(0.2)),
        Row::fact("– perf record + perf script beside it", perf_cpu),
        Row::promise(
            "peak RSS, one process",
            Values::new(Unit::Megabytes, ours.iter().map(Run::rss_mb)),
            Bound::AtMost(40.0),
        ),
        Row::fact("– perf beside it (the larger of both)", perf_rss),
        Row::promise(
            "BPF maps, one process",
            Values::new(
                Unit::Megabytes,
                ours.iter().map(|run| run.seen as f64 / 1e6),
            ),
            map_bound(bench),
        ),
        Row::promise(
            format!("samples kept of those expected, one process for {length} s"),
            Values::new(Unit::Percent, kept),
            Bound::AtLeast(99.0),
        ),
    ])
}

/// What all maps together may take, by the number of CPUs.
pub fn map_bound(bench: &Bench) -> Bound {
    Bound::AtMost(if bench.cpus.len() <= 2 { 24.0 } else { 64.0 })
}

/// Records process `target`; returns the run, which saw the size of the maps, and how many percent
/// of the expected samples were kept.
fn record(bench: &Bench, target: u32, duration: Duration) -> Result<(Run<u64>, f64)> {
    let svg = bench.file("one-process.svg");
    let args = [
        "--pid",
        &target.to_string(),
        "--duration",
        &format!("{}s", duration.as_secs()),
        "--output",
        bench::arg(&svg)?,
    ];
    let cpu_before = proc_files::cpu_time(target)?;
    let run = bench.record(&args, |pid| {
        sleep(duration / 2);
        Ok(proc_files::map_bytes(pid))
    })?;
    let cpu = proc_files::cpu_time(target)? - cpu_before;
    let counts = run.summary()?.samples;
    check_expected(counts.expected, cpu, run.wall - duration)?;
    let percent = counts.kept / counts.expected * 100.0;
    Ok((run, percent))
}

/// A profiler could flatter itself by expecting little. The target used `cpu` while hotspan was
/// there at all, of which it can have used no more than `outside` before and after the recording.
fn check_expected(expected: f64, cpu: Duration, outside: Duration) -> Result<()> {
    let most = cpu.as_secs_f64() * 99.0;
    let least = cpu.saturating_sub(outside).as_secs_f64() * 99.0;
    // The numbers are rounded.
    if expected < least - 1.0 || expected > most + 1.0 {
        bail!(
            "hotspan expected {expected} samples of a process that used the CPU time of \
             {least:.0} to {most:.0} while it was recorded"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expecting_too_little_is_found_out() {
        let (cpu, outside) = (Duration::from_secs(10), Duration::from_millis(200));
        assert!(check_expected(985.0, cpu, outside).is_ok());
        assert!(check_expected(900.0, cpu, outside).is_err());
        assert!(check_expected(1010.0, cpu, outside).is_err());
    }
}
