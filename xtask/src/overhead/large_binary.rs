//! The largest files that programs have mapped: what their unwind tables cost, and that recording
//! goes on while they are made.
//!
//! A process maps such a file, as programs do, and hotspan sees it for the first time: what hotspan
//! uses from then on until it is calm again is what the tables cost, all in all. Two other processes
//! are recorded meanwhile: one that it knows, and one that starts just then.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::bench::{self, Bench, Frames};
use super::proc_files::{SamplingPrograms, cpu_time};
use super::profile;
use super::report::{Bound, Row, Unit, Values};
use super::targets::{self, LIBC_ROOTS};
use crate::command;

const RATE_HZ: f64 = 99.0;

/// Seconds of CPU time that tables may take.
const CPU_BOUND: Bound = Bound::AtMost(2.0);

/// Measures time and size, and the other processes; also after a file that cannot be measured.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, path) in [
        // Most of its code has no unwind information, but keeps the frame pointer.
        ("Chromium", PathBuf::from("/usr/lib/chromium/chromium")),
        // Larger tables than any program's in Debian, and wherever we run.
        ("the Rust compiler", compiler()?),
    ] {
        match measure_file(bench, name, &path) {
            Ok(measured) => rows.extend(measured),
            Err(error) => {
                eprintln!("cannot measure the tables for {name}: {error:#}");
                let nothing = Values::new(Unit::Seconds, []);
                rows.push(Row::promise(
                    format!("tables for {name}"),
                    nothing,
                    CPU_BOUND,
                ));
            }
        }
    }
    Ok(rows)
}

/// The library that is most of the Rust compiler.
fn compiler() -> Result<PathBuf> {
    let folder = command::text(Command::new("rustc").args(["--print", "sysroot"]))?;
    let files = fs::read_dir(Path::new(&folder).join("lib"))?;
    files
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("librustc_driver-"))
        .with_context(|| format!("{folder} has no compiler"))
}

fn measure_file(bench: &Bench, name: &str, path: &Path) -> Result<[Row; 5]> {
    let runs = (0..bench.rounds())
        .map(|_| record(bench, path))
        .collect::<Result<Vec<_>>>()?;
    let megabytes = fs::metadata(path)?.len() / 1_000_000;
    let (row_count, bytes) = size(bench, path)?;
    let percent = |value: fn(&Seen) -> f64| Values::new(Unit::Percent, runs.iter().map(value));
    Ok([
        Row::promise(
            format!("tables for {name} ({megabytes} MB, {row_count} rows): CPU time"),
            Values::new(Unit::Seconds, runs.iter().map(|seen| seen.tables_s)),
            CPU_BOUND,
        ),
        Row::promise(
            "– bytes of them for each row",
            Values::new(Unit::Bytes, [bytes / row_count]),
            Bound::AtMost(8.0),
        ),
        Row::promise(
            "– meanwhile, samples kept of another process",
            percent(|seen| seen.kept),
            Bound::AtLeast(99.0),
        ),
        Row::promise(
            "– meanwhile, rooted stacks of another process",
            percent(|seen| seen.rooted),
            Bound::AtLeast(99.0),
        ),
        Row::promise(
            "– the same of one that starts just then",
            percent(|seen| seen.new_rooted),
            Bound::AtLeast(99.0),
        ),
    ])
}

/// What one recording showed; shares in hundredths.
struct Seen {
    tables_s: f64,
    kept: f64,
    rooted: f64,
    new_rooted: f64,
}

/// What was seen while it recorded.
struct Meanwhile {
    tables: Duration,
    /// When we looked first and last, in nanoseconds since 1970, and what the other process used
    /// between.
    window_ns: [u64; 2],
    cpu: Duration,
    new_pid: u32,
}

fn record(bench: &Bench, path: &Path) -> Result<Seen> {
    let new = targets::RUST.build(bench)?;
    if is_mapped(path)? {
        bail!("a process has {} mapped already", path.display());
    }
    let load = bench.load(Frames::NoPointers, "stack", bench.cpu(), 8)?;
    let otlp = bench.file("large-binary.otlp.json");
    let args = ["--all", "--duration", "12s", "--output", bench::arg(&otlp)?];
    let run = bench.record(&args, |pid| map_it(bench, path, pid, load.pid(), &new))?;
    let samples = profile::samples(&fs::read_to_string(&otlp)?)?;
    let [first, last] = run.seen.window_ns;
    let of = |pid| {
        let samples = samples.iter().filter(move |sample| sample.pid == pid);
        let between = samples.filter(|sample| first < sample.time_ns && sample.time_ns <= last);
        let between: Vec<_> = between.collect();
        let rooted = between
            .iter()
            .filter(|sample| LIBC_ROOTS.contains(&&*sample.root));
        let rooted = rooted.count() as f64;
        let count = between.len() as f64;
        (count, rooted / count * 100.0)
    };
    let (known, rooted) = of(load.pid());
    Ok(Seen {
        tables_s: run.seen.tables.as_secs_f64(),
        kept: known / (run.seen.cpu.as_secs_f64() * RATE_HZ) * 100.0,
        rooted,
        new_rooted: of(run.seen.new_pid).1,
    })
}

/// Whether some process has the file mapped, which hotspan would know from its start.
fn is_mapped(path: &Path) -> Result<bool> {
    let path = path.canonicalize()?;
    let path = path.to_string_lossy();
    let processes = fs::read_dir("/proc")?.flatten();
    Ok(processes
        .filter_map(|process| fs::read_to_string(process.path().join("maps")).ok())
        .any(|maps| maps.lines().any(|line| line.ends_with(&*path))))
}

/// Has a process map the file while `hotspan` records, starts a new program, and waits until
/// `hotspan` is calm again.
fn map_it(
    bench: &Bench,
    path: &Path,
    hotspan: u32,
    known: u32,
    new: &Command,
) -> Result<Meanwhile> {
    SamplingPrograms::wait_for(hotspan)?;
    sleep(Duration::from_secs(2));
    // The known process has the bench's CPU for itself.
    let cpu = bench.cpus[0];
    let (start_ns, known_before) = (now_ns()?, cpu_time(known)?);
    let before = cpu_time(hotspan)?;
    let args = ["map", &cpu.to_string(), bench::arg(path)?];
    let _mapper = bench.start(&mut bench.load_command(Frames::NoPointers, &args))?;
    let new = bench.start(&mut bench.on_cpu(cpu, new))?;
    let tables = wait_until_calm(hotspan)?.saturating_sub(before);
    Ok(Meanwhile {
        tables,
        cpu: cpu_time(known)? - known_before,
        window_ns: [start_ns, now_ns()?],
        new_pid: new.pid(),
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
            bail!("hotspan is busy with the tables for more than {PATIENCE:?}");
        }
        used = now;
    }
}

fn now_ns() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64)
}

/// How many rows `show-unwind` finds, and how many bytes of tables.
fn size(bench: &Bench, path: &Path) -> Result<(f64, f64)> {
    const TAIL: i64 = 4096;
    let output = bench.file("show-unwind.txt");
    let mut command = Command::new(&bench.hotspan);
    bench.run_well(command.arg("show-unwind").arg(path), &output, |_| Ok(()))?;
    let mut file = File::open(&output)?;
    file.seek(SeekFrom::End(-TAIL.min(file.metadata()?.len() as i64)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    fs::remove_file(&output)?; // It is large.
    parse_size(&String::from_utf8_lossy(&tail)).context("show-unwind tells no size of the tables")
}

/// `N rows, … B bytes of tables, …` → (N, B).
fn parse_size(text: &str) -> Option<(f64, f64)> {
    let line = text
        .lines()
        .find(|line| line.contains(" bytes of tables"))?;
    let before = |unit: &str| {
        let number = line.split(unit).next()?.rsplit(' ').next()?;
        number.parse::<f64>().ok()
    };
    Some((before(" rows")?, before(" bytes of tables")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_the_tables_is_read_from_the_summary() {
        let text =
            "0040 rsp+8\n\n200 rows, 3 wide rules, 1300 bytes of tables, 6.5 bytes per row\n";
        assert_eq!(parse_size(text), Some((200.0, 1300.0)));
        assert_eq!(parse_size("200 rows\n"), None);
    }
}
