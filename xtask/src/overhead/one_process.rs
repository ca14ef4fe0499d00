//! Ten seconds of one busy process, in turns with the others.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bench::{self, Bench, Run};
use super::lightswitch;
use super::perf::{CallGraph, Perf};
use super::proc_files;
use super::report::{Bound, Row, Unit, Values};

const RATE_HZ: u32 = 99;

/// Measures CPU time, memory and the share of samples that were kept.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let duration = bench.seconds(10, 2);
    let load = bench.busy_load()?;
    let pid = load.pid().to_string();
    let (mut ours, mut kept, mut lightswitch) = (Vec::new(), Vec::new(), Vec::new());
    let (mut frame_pointers, mut dwarf) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds() {
        let (run, percent) = record(bench, load.pid(), duration)?;
        ours.push(run);
        kept.push(percent);
        for (call_graph, runs) in [
            (CallGraph::FramePointers, &mut frame_pointers),
            (CallGraph::Dwarf, &mut dwarf),
        ] {
            runs.extend(bench.perf(&["-p", &pid], call_graph, RATE_HZ, duration, |_| Ok(())));
        }
        let recorded = bench.lightswitch(Some(load.pid()), lightswitch::RATE_HZ, duration, |pid| {
            map_bytes(pid, duration)
        });
        lightswitch.extend(recorded.map(|(run, _)| run));
    }
    let cpu = |runs: &[Run<u64>]| Values::new(Unit::Seconds, runs.iter().map(Run::cpu_s));
    let rss = |runs: &[Run<u64>]| Values::new(Unit::Megabytes, runs.iter().map(Run::rss_mb));
    let maps = |runs: &[Run<u64>]| {
        let bytes = runs.iter().map(|run| run.seen as f64 / 1e6);
        Values::new(Unit::Megabytes, bytes)
    };
    let perf_cpu = |perf: &[Perf<()>]| Values::new(Unit::Seconds, perf.iter().map(Perf::cpu_s));
    let length = duration.as_secs();
    Ok(vec![
        Row::no_more_than(
            format!("agent CPU, one process for {length} s"),
            cpu(&ours),
            "perf record -g + perf script",
            &perf_cpu(&frame_pointers),
        )
        .beside_perf(perf_cpu(&dwarf))
        .beside_lightswitch(cpu(&lightswitch)),
        Row::promise("– and in itself", cpu(&ours), Bound::AtMost(0.2)),
        Row::promise("peak RSS, one process", rss(&ours), Bound::AtMost(40.0))
            .beside_perf(Values::new(Unit::Megabytes, dwarf.iter().map(Perf::rss_mb)))
            .beside_lightswitch(rss(&lightswitch)),
        Row::promise("BPF maps, one process", maps(&ours), map_bound(bench))
            .beside_lightswitch(maps(&lightswitch)),
        Row::promise(
            format!("samples kept of those expected, one process for {length} s"),
            Values::new(Unit::Percent, kept),
            Bound::AtLeast(99.0),
        ),
    ])
}

/// The size of a profiler's maps in the middle of its recording.
fn map_bytes(profiler: u32, duration: Duration) -> Result<u64> {
    sleep(duration / 2);
    Ok(proc_files::map_bytes(profiler))
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
    let (clock, cpu_before) = (Instant::now(), proc_files::cpu_time(target)?);
    let run = bench.record(&args, |pid| map_bytes(pid, duration))?;
    let cpu = proc_files::cpu_time(target)? - cpu_before;
    let counts = run.summary()?.samples;
    check_expected(counts.expected, cpu, clock.elapsed() - duration)?;
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
