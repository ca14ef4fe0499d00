//! Time of the sampling program per sample, and how complete its stacks are.
//!
//! The kernel adds up the run time and the number of runs of each program while its statistics are
//! on. Three things stand between that and the time of a sample:
//! - The program also runs at each tick of a task that is no target, and returns at once. Such a
//!   run is measured by itself, on a target that sleeps, and their time is taken off.
//! - An interrupt or the hypervisor may stop the machine inside a run. So the time is taken in
//!   slices of half a second, and the median of the slices counts.
//! - How many of the runs made samples: the profile says when each of its samples was taken.
//!
//! Everything is at 99 Hz, where caches are cold when the program runs: a higher rate would
//! flatter it. The variants take turns, so that noise hits all alike.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use super::bench::{self, Bench, Frames};
use super::kernel::BpfStats;
use super::proc_files::SamplingProgram;
use super::profile::{self, Depths};
use super::report::{Bound, Row, Unit, Values};

/// A workload and how it is recorded.
struct Variant {
    mode: &'static str,
    frames: Frames,
    /// Functions from `main` to the leaf.
    depth: u32,
    args: &'static [&'static str],
}

impl Variant {
    const fn stack(frames: Frames, depth: u32) -> Self {
        Self {
            mode: "stack",
            frames,
            depth,
            args: &[],
        }
    }

    const fn read(args: &'static [&'static str]) -> Self {
        Self {
            mode: "read",
            frames: Frames::Pointers,
            depth: 2,
            args,
        }
    }
}

/// `main` has at least one caller, which makes 8 and 68 frames.
const SHORT: u32 = 7;
const LONG: u32 = 67;

const VARIANTS: [Variant; 6] = [
    Variant::stack(Frames::Pointers, SHORT),
    Variant::stack(Frames::Pointers, LONG),
    Variant::read(&[]),
    Variant::read(&["--no-kernel"]),
    Variant::stack(Frames::NoPointers, SHORT),
    Variant::stack(Frames::NoPointers, LONG),
];

/// What the kernel accounted for in a part of a run.
struct Slice {
    run_ns: f64,
    runs: f64,
    samples: f64,
}

/// All runs of a variant.
#[derive(Default)]
struct Measured {
    slices: Vec<Slice>,
    depths: Depths,
    rooted: Vec<f64>,
}

/// Measures all variants.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let _stats = BpfStats::enable()?;
    let duration = bench.seconds(6, 2);
    let mut other_tasks = Vec::new();
    let mut measured: [Measured; VARIANTS.len()] = Default::default();
    for _ in 0..bench.rounds() {
        other_tasks.extend(measure_other_tasks(bench, duration)?);
        for (variant, measured) in VARIANTS.iter().zip(&mut measured) {
            measure_once(bench, variant, duration, measured)?;
        }
    }
    Ok(rows(&other_tasks, &measured))
}

/// Nanoseconds of each run that found no target.
fn measure_other_tasks(bench: &Bench, duration: Duration) -> Result<Vec<f64>> {
    let sleeper = bench.load(Frames::Pointers, "idle", bench.cpu(), 0)?;
    let _busy = bench.busy_load()?;
    let folded = bench.file("bpf-time.folded");
    let args = [
        "--pid",
        &sleeper.pid().to_string(),
        "--duration",
        &format!("{}s", duration.as_secs()),
        "--output",
        bench::arg(&folded)?,
    ];
    let readings = bench.record_nothing(&args, |pid| read_slices(pid, duration))?;
    Ok(slices(&readings, &[])
        .iter()
        .map(|slice| slice.run_ns / slice.runs)
        .collect())
}

fn measure_once(
    bench: &Bench,
    variant: &Variant,
    duration: Duration,
    measured: &mut Measured,
) -> Result<()> {
    let load = bench.load(variant.frames, variant.mode, bench.cpu(), variant.depth)?;
    let (folded, otlp) = (
        bench.file("bpf-time.folded"),
        bench.file("bpf-time.otlp.json"),
    );
    let (pid, seconds) = (load.pid().to_string(), format!("{}s", duration.as_secs()));
    let mut args = vec!["--pid", &pid, "--duration", &seconds];
    args.extend(["--output", bench::arg(&folded)?]);
    args.extend(["--output", bench::arg(&otlp)?]);
    args.extend(variant.args);
    let run = bench.record(&args, |pid| read_slices(pid, duration))?;
    let times = profile::sample_times(&fs::read_to_string(&otlp)?)?;
    measured.slices.extend(slices(&run.seen, &times));
    measured.depths.add(&fs::read_to_string(&folded)?)?;
    let counts = run.summary()?.samples;
    measured.rooted.push(counts.rooted / counts.kept * 100.0);
    Ok(())
}

/// What the kernel had accounted for at some moment.
struct Reading {
    wall_ns: u64,
    run_ns: u64,
    runs: u64,
}

/// Reads the account of hotspan's sampling program every half second.
fn read_slices(hotspan: u32, duration: Duration) -> Result<Vec<Reading>> {
    const SLICE: Duration = Duration::from_millis(500);
    let program = SamplingProgram::wait_for(hotspan)?;
    let end = Instant::now() + duration;
    let mut readings = Vec::new();
    while Instant::now() < end {
        sleep(SLICE);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let Some((run_ns, runs)) = program.run_time() else {
            break;
        };
        readings.push(Reading {
            wall_ns: wall.as_nanos() as u64,
            run_ns,
            runs,
        });
    }
    Ok(readings)
}

/// What happened between the readings; `times` are those of the samples, in order.
fn slices(readings: &[Reading], times: &[u64]) -> Vec<Slice> {
    let before = |wall_ns: u64| times.partition_point(|&time| time <= wall_ns);
    readings
        .windows(2)
        .filter_map(|pair| {
            let runs = pair[1].runs - pair[0].runs;
            let samples = before(pair[1].wall_ns) - before(pair[0].wall_ns);
            (runs > 0).then(|| Slice {
                run_ns: (pair[1].run_ns - pair[0].run_ns) as f64,
                runs: runs as f64,
                samples: samples as f64,
            })
        })
        .collect()
}

impl Measured {
    /// Microseconds of each sample, when a run without one takes `other_task_ns`.
    fn sample_us(&self, other_task_ns: f64) -> Values {
        /// Fewer would be a slice in which the target hardly ran, or the end of the recording.
        const FEWEST: f64 = 15.0;
        let per_sample = |slice: &Slice| {
            let others = (slice.runs - slice.samples).max(0.0);
            (slice.run_ns - others * other_task_ns) / slice.samples / 1e3
        };
        let usable = self.slices.iter().filter(|slice| slice.samples >= FEWEST);
        Values::new(Unit::Microseconds, usable.map(per_sample))
    }

    fn user_frames(&self) -> f64 {
        self.depths.user_frames as f64 / self.depths.samples as f64
    }

    fn kernel_frames(&self) -> f64 {
        self.depths.kernel_frames as f64 / self.depths.kernel_samples.max(1) as f64
    }

    fn kernel_percent(&self) -> f64 {
        self.depths.kernel_samples as f64 / self.depths.samples as f64 * 100.0
    }

    fn rooted(&self) -> Values {
        Values::new(Unit::Percent, self.rooted.iter().copied())
    }
}

fn rows(other_tasks: &[f64], measured: &[Measured; VARIANTS.len()]) -> Vec<Row> {
    let [short, long, read, read_user, bare_short, bare_long] = measured;
    let other_task = Values::new(Unit::Nanoseconds, other_tasks.iter().copied());
    let other_ns = other_task.median();
    let (whole, user) = (read.sample_us(other_ns), read_user.sample_us(other_ns));
    let kernel_ns = (whole.median() - user.median()) * 1e3;
    let per_kernel_frame = Values::new(Unit::Nanoseconds, [kernel_ns / read.kernel_frames()]);
    let mut rows = vec![
        stack_row("with frame pointers", short, SHORT, 2.0, other_ns),
        stack_row("with frame pointers", long, LONG, 5.0, other_ns),
        stack_row("without", bare_short, SHORT, 2.0, other_ns),
        stack_row("without", bare_long, LONG, 5.0, other_ns),
        Row::fact(
            format!(
                "BPF time per sample, syscall-heavy ({:.0} % kernel-mode, {:.1} kernel frames)",
                read.kernel_percent(),
                read.kernel_frames()
            ),
            whole,
        ),
        Row::fact("– the same with --no-kernel", user),
        Row::fact("– the difference, per kernel frame", per_kernel_frame),
        Row::fact("BPF time at a tick of another task", other_task),
    ];
    for (name, measured) in [
        ("8 frames", short),
        ("68 frames", long),
        ("syscall-heavy", read),
        ("8 frames without frame pointers", bare_short),
        ("68 frames without frame pointers", bare_long),
    ] {
        let what = format!("stacks that reach the root, {name}");
        rows.push(Row::aim(what, measured.rooted(), Bound::AtLeast(99.9)));
    }
    rows
}

fn stack_row(build: &str, measured: &Measured, depth: u32, limit_us: f64, other_ns: f64) -> Row {
    let what = format!(
        "BPF time per user-mode sample, {} frames {build} ({:.1} found)",
        depth + 1,
        measured.user_frames()
    );
    let mut row = Row::promise(what, measured.sample_us(other_ns), Bound::AtMost(limit_us));
    if measured.user_frames() < f64::from(depth) * 0.99 {
        row.unfit = Some("the stacks are cut");
    }
    row
}
