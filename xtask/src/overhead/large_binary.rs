//! The largest program that Debian has, Chromium: what its unwind tables cost, and that recording
//! goes on while they are made.
//!
//! A process maps Chromium's executable, as Chromium does, and hotspan sees it for the first time:
//! what hotspan uses from then on until it is calm again is what the tables cost, all in all. Two
//! other processes are recorded meanwhile: one that it knows, and one that starts just then.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::bench::{self, Bench, Frames};
use super::proc_files::{SamplingPrograms, cpu_time};
use super::profile;
use super::report::{Bound, Row, Unit, Values};
use super::stacks::{Completeness, Stack};
use super::targets::{TARGETS, Target};

const PROGRAM: &str = "/usr/lib/chromium/chromium";

const RATE_HZ: f64 = 99.0;

/// Measures time and size, and the other processes.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let runs = (0..bench.rounds())
        .map(|_| record(bench))
        .collect::<Result<Vec<_>>>()?;
    let megabytes = fs::metadata(PROGRAM)?.len() / 1_000_000;
    let percent = |value: fn(&Seen) -> f64| Values::new(Unit::Percent, runs.iter().map(value));
    Ok(vec![
        Row::promise(
            format!("tables for Chromium ({megabytes} MB): CPU time until they are in place"),
            Values::new(Unit::Seconds, runs.iter().map(|seen| seen.tables_s)),
            Bound::AtMost(2.0),
        ),
        Row::promise(
            "– bytes of tables for each row",
            Values::new(Unit::Bytes, [bytes_per_row(bench)?]),
            Bound::AtMost(8.0),
        ),
        Row::promise(
            "– meanwhile, samples kept of a process that was known",
            percent(|seen| seen.known_kept),
            Bound::AtLeast(99.0),
        ),
        Row::promise(
            "– rooted",
            percent(|seen| seen.known_rooted),
            Bound::AtLeast(99.0),
        ),
        Row::promise(
            "– meanwhile, samples kept of a process that starts",
            percent(|seen| seen.new_kept),
            Bound::AtLeast(99.0),
        ),
        Row::promise(
            "– rooted",
            percent(|seen| seen.new_rooted),
            Bound::AtLeast(99.0),
        ),
    ])
}

/// What one recording showed; shares in hundredths.
struct Seen {
    tables_s: f64,
    known_kept: f64,
    known_rooted: f64,
    new_kept: f64,
    new_rooted: f64,
}

/// What was seen while it recorded.
struct Meanwhile {
    tables: Duration,
    /// When we looked first and last, in nanoseconds since 1970, and what the known process used
    /// between.
    window_ns: [u64; 2],
    known_cpu: Duration,
    new_cpu: Duration,
}

fn record(bench: &Bench) -> Result<Seen> {
    let (known, new) = (&TARGETS[0], &TARGETS[4]);
    let load = known.start(bench)?;
    let name = fs::read_to_string(format!("/proc/{}/comm", load.pid()))?;
    let name = name.trim_end();
    let otlp = bench.file("large-binary.otlp.json");
    let filter = "^known_";
    let args = [
        "--all",
        "--comm",
        filter,
        "--duration",
        "14s",
        "--output",
        bench::arg(&otlp)?,
    ];
    let (run, stacks) = bench.record_stacks(&args, |pid| map_it(bench, pid, load.pid(), new))?;
    let (of_known, of_new): (Vec<_>, Vec<_>) =
        stacks.into_iter().partition(|stack| stack.process == name);
    let count = |stacks: &[Stack]| stacks.iter().map(|stack| stack.count).sum::<u64>();
    let rooted = |stacks: &[Stack], target: &Target| {
        Completeness::of(stacks, target.roots, None).rooted_percent()
    };
    // Those of the new process are in the same file; all of them are between our looks.
    let times = profile::sample_times(&fs::read_to_string(&otlp)?)?;
    let [first, last] = run.seen.window_ns;
    let between = times
        .iter()
        .filter(|&&time| first < time && time <= last)
        .count() as u64;
    let kept = |samples: u64, cpu: Duration| samples as f64 / (cpu.as_secs_f64() * RATE_HZ) * 100.0;
    let new_samples = count(&of_new);
    Ok(Seen {
        tables_s: run.seen.tables.as_secs_f64(),
        known_kept: kept(between.saturating_sub(new_samples), run.seen.known_cpu),
        known_rooted: rooted(&of_known, known),
        new_kept: kept(new_samples, run.seen.new_cpu),
        new_rooted: rooted(&of_new, new),
    })
}

/// Has a process map the program while `hotspan` records, starts another one, and waits until
/// `hotspan` is calm again.
fn map_it(bench: &Bench, hotspan: u32, known: u32, new: &Target) -> Result<Meanwhile> {
    SamplingPrograms::wait_for(hotspan)?;
    sleep(Duration::from_secs(2));
    let (start_ns, known_before) = (now_ns()?, cpu_time(known)?);
    let before = cpu_time(hotspan)?;
    let args = ["map", &bench.cpu().to_string(), PROGRAM];
    let _mapper = bench.start(&mut bench.load_command(Frames::NoPointers, &args))?;
    let new = new.start(bench)?;
    let tables = wait_until_calm(hotspan)? - before;
    let (new_cpu, known_cpu) = (cpu_time(new.pid())?, cpu_time(known)? - known_before);
    let window_ns = [start_ns, now_ns()?];
    Ok(Meanwhile {
        tables,
        window_ns,
        known_cpu,
        new_cpu,
    })
}

/// Waits until a process hardly uses its CPU any more; returns what it has used.
fn wait_until_calm(pid: u32) -> Result<Duration> {
    const LOOK: Duration = Duration::from_millis(500);
    const CALM: Duration = Duration::from_millis(15);
    const PATIENCE: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let mut used = cpu_time(pid)?;
    loop {
        sleep(LOOK);
        let now = cpu_time(pid)?;
        if now - used < CALM {
            return Ok(now);
        }
        if start.elapsed() > PATIENCE {
            bail!("hotspan is busy with Chromium's tables for more than {PATIENCE:?}");
        }
        used = now;
    }
}

fn now_ns() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64)
}

/// What `show-unwind` says of the tables' size in its last lines.
fn bytes_per_row(bench: &Bench) -> Result<f64> {
    const TAIL: i64 = 4096;
    let output = bench.file("show-unwind.txt");
    let mut command = Command::new(&bench.hotspan);
    bench.run_well(command.args(["show-unwind", PROGRAM]), &output, |_| Ok(()))?;
    let mut file = File::open(&output)?;
    file.seek(SeekFrom::End(-TAIL.min(file.metadata()?.len() as i64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    fs::remove_file(&output)?; // Rows of this program are hundreds of megabytes.
    parse_size(&String::from_utf8_lossy(&tail)).context("show-unwind tells no size of the tables")
}

/// `N rows, … B bytes of tables, …` → B / N.
fn parse_size(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|line| line.contains(" bytes of tables"))?;
    let before = |unit: &str| {
        let number = line.split(unit).next()?.rsplit(' ').next()?;
        number.parse::<f64>().ok()
    };
    Some(before(" bytes of tables")? / before(" rows")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_the_tables_is_read_from_the_summary() {
        let text =
            "0040 rsp+8\n\n200 rows, 3 wide rules, 1300 bytes of tables, 6.5 bytes per row\n";
        assert_eq!(parse_size(text), Some(6.5));
        assert_eq!(parse_size("200 rows\n"), None);
    }
}
