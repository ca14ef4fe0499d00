//! Time of the sampling program per sample.
//!
//! The kernel adds up the run time and the number of runs of each program while its statistics are
//! on. Four things stand between that and the time of a sample:
//! - The program also runs at each tick of a task that is no target, and returns at once. So every
//!   CPU has a target of its own that keeps it busy: nearly every run is a sample.
//! - An interrupt or the hypervisor may stop the machine inside a run. So the time is taken in
//!   slices of half a second, slices in which anything else ran are left out, and the median of the
//!   rest counts. The lowest is shown too.
//! - Being measured takes time. An empty program, run in the same way, says how much: it is taken
//!   off.
//! - Noise comes and goes. So profilers and workloads take turns of some seconds.
//!
//! What is judged is at 99 Hz (97 for lightswitch), where caches are cold when the program runs: a
//! higher rate would flatter it. A high one is shown beside it: there everything is hot, noise hardly
//! shows, and what is left is the work itself.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::bench::{Bench, Frames, Load};
use super::kernel::{BpfStats, EmptyProgram};
use super::lightswitch;
use super::proc_files::{SamplingPrograms, cpu_time, stolen_time};
use super::report::{Bound, Row, Unit, Values};
use super::stacks::Stack;

const RATE_HZ: u32 = 99;

/// Hot, and prime, as lightswitch wants it.
const HOT_RATE_HZ: u32 = 7919;

/// Frames from `main` to the leaf; three of the C library are above it, which makes 8 and 68.
const SHORT: u32 = 5;
const LONG: u32 = 65;
const ABOVE_MAIN: u32 = 3;

/// What a profiler does until its tables are made is not measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Fewer good slices are not judged.
const ENOUGH_SLICES: usize = 8;

/// Measures all profilers and workloads in turns.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let _stats = BpfStats::enable()?;
    let mut turns = Turns::default();
    for _ in 0..if bench.quick { 1 } else { 5 } {
        let length = bench.seconds(4, 2);
        turns.empty.extend(measure_empty(bench, length)?);
        turns.other_task.extend(measure_other_task(bench, length)?);
        let rates = [RATE_HZ, lightswitch::RATE_HZ];
        turns.short.measure(bench, SHORT, rates, length)?;
        turns.long.measure(bench, LONG, rates, length)?;
        let rates = [HOT_RATE_HZ; 2];
        turns.short_hot.measure(bench, SHORT, rates, length / 2)?;
        turns.long_hot.measure(bench, LONG, rates, length / 2)?;
        let with_kernel = measure_read(bench, length, &[])?;
        turns.read_frames.extend(with_kernel.stacks);
        turns.read.extend(with_kernel.slices);
        turns
            .read_user
            .extend(measure_read(bench, length, &["--no-kernel"])?.slices);
    }
    Ok(turns.rows())
}

/// What the kernel accounted for in half a second.
#[derive(Clone, Copy)]
struct Slice {
    /// Nanoseconds of a run.
    run_ns: f64,
    /// Nothing but the targets ran, and nothing was stolen.
    is_good: bool,
}

/// What one turn of a profiler came to.
struct Turn {
    slices: Vec<Slice>,
    stacks: Vec<Stack>,
}

/// A workload without frame pointers, seen by both profilers.
#[derive(Default)]
struct Pair {
    ours: Vec<Slice>,
    lightswitch: Vec<Slice>,
    stacks: Vec<Stack>,
}

#[derive(Default)]
struct Turns {
    empty: Vec<Slice>,
    other_task: Vec<Slice>,
    short: Pair,
    long: Pair,
    short_hot: Pair,
    long_hot: Pair,
    read: Vec<Slice>,
    read_user: Vec<Slice>,
    read_frames: Vec<Stack>,
}

impl Pair {
    /// `rates` are hotspan's and lightswitch's.
    fn measure(
        &mut self,
        bench: &Bench,
        depth: u32,
        rates: [u32; 2],
        length: Duration,
    ) -> Result<()> {
        let loads = loads(bench, "busy", depth)?;
        let turn = record(bench, &loads, length, &["--rate", &rates[0].to_string()])?;
        self.ours.extend(turn.slices);
        self.stacks.extend(turn.stacks);
        let whole = WARM_UP * 2 + length;
        let watch = |pid| read_slices(bench, pid, &loads, length);
        // All processes: it can be told one only, and there is nothing else to sample.
        let recorded = bench.lightswitch(None, rates[1], whole, watch);
        if let Some((run, _)) = recorded {
            self.lightswitch.extend(run.seen);
        }
        Ok(())
    }
}

/// A target on every CPU.
fn loads(bench: &Bench, mode: &str, depth: u32) -> Result<Vec<Load>> {
    let cpus = bench.cpus.iter();
    cpus.map(|&cpu| bench.load(Frames::NoPointers, mode, cpu, depth))
        .collect()
}

fn measure_read(bench: &Bench, length: Duration, args: &[&str]) -> Result<Turn> {
    record(bench, &loads(bench, "read", 0)?, length, args)
}

/// Runs of a program that does nothing.
fn measure_empty(bench: &Bench, length: Duration) -> Result<Vec<Slice>> {
    let loads = loads(bench, "busy", SHORT)?;
    let _program = EmptyProgram::start(&bench.cpus, RATE_HZ)?;
    read_slices(bench, std::process::id(), &loads, length)
}

/// Runs that find no target.
fn measure_other_task(bench: &Bench, length: Duration) -> Result<Vec<Slice>> {
    let loads = loads(bench, "busy", SHORT)?;
    let sleeper = bench.load(Frames::NoPointers, "idle", bench.cpu(), 0)?;
    let seconds = format!("{}s", (WARM_UP * 2 + length).as_secs());
    let args = ["--pid", &sleeper.pid().to_string(), "--duration", &seconds];
    bench.record_nothing(&args, |pid| read_slices(bench, pid, &loads, length))
}

/// A turn of hotspan.
fn record(bench: &Bench, loads: &[Load], length: Duration, args: &[&str]) -> Result<Turn> {
    let seconds = format!("{}s", (WARM_UP * 2 + length).as_secs());
    let pids: Vec<_> = loads.iter().map(|load| load.pid().to_string()).collect();
    let pids = pids.iter().flat_map(|pid| ["--pid", pid]);
    let args: Vec<_> = pids
        .chain(["--duration", &seconds])
        .chain(args.iter().copied())
        .collect();
    let watch = |pid| read_slices(bench, pid, loads, length);
    let (run, stacks) = bench.record_stacks(&args, watch)?;
    Ok(Turn {
        slices: run.seen,
        stacks,
    })
}

/// Reads the account of a profiler's sampling programs every half second, while `loads` keep the
/// CPUs busy.
fn read_slices(
    bench: &Bench,
    profiler: u32,
    loads: &[Load],
    length: Duration,
) -> Result<Vec<Slice>> {
    const SLICE: Duration = Duration::from_millis(500);
    let programs = SamplingPrograms::wait_for(profiler)?;
    sleep(WARM_UP);
    let end = Instant::now() + length;
    let mut slices = Vec::new();
    let mut before = Reading::take(bench, &programs, loads)?;
    while Instant::now() < end {
        sleep(SLICE);
        let after = Reading::take(bench, &programs, loads)?;
        slices.extend(
            before
                .zip(after.as_ref())
                .and_then(|(before, after)| before.slice_to(after)),
        );
        before = after;
    }
    Ok(slices)
}

/// What the kernel had accounted for at some moment.
struct Reading {
    clock: Instant,
    run_ns: u64,
    runs: u64,
    loads: Duration,
    stolen: Duration,
    cpus: u32,
}

impl Reading {
    /// `None` when the profiler is gone.
    fn take(bench: &Bench, programs: &SamplingPrograms, loads: &[Load]) -> Result<Option<Self>> {
        let Some((run_ns, runs)) = programs.run_time() else {
            return Ok(None);
        };
        let used = loads.iter().map(|load| cpu_time(load.pid()));
        Ok(Some(Self {
            clock: Instant::now(),
            run_ns,
            runs,
            loads: used.sum::<Result<_>>()?,
            stolen: stolen_time(&bench.cpus)?,
            cpus: bench.cpus.len() as u32,
        }))
    }

    fn slice_to(&self, after: &Self) -> Option<Slice> {
        const MOSTLY: f64 = 0.97;
        let runs = after.runs - self.runs;
        let whole = (after.clock - self.clock) * self.cpus;
        let loads = (after.loads - self.loads).as_secs_f64();
        (runs > 0).then(|| Slice {
            run_ns: (after.run_ns - self.run_ns) as f64 / runs as f64,
            is_good: after.stolen == self.stolen && loads >= MOSTLY * whole.as_secs_f64(),
        })
    }
}

/// Nanoseconds of a run in the good slices, or in all when there are too few; and whether there
/// were enough.
fn run_ns(slices: &[Slice]) -> (Vec<f64>, bool) {
    let good: Vec<_> = slices.iter().filter(|slice| slice.is_good).collect();
    if good.len() >= ENOUGH_SLICES {
        return (good.iter().map(|slice| slice.run_ns).collect(), true);
    }
    (slices.iter().map(|slice| slice.run_ns).collect(), false)
}

/// Microseconds of a sample, when measuring takes `empty_ns`.
fn sample_us(slices: &[Slice], empty_ns: f64) -> Values {
    let (run_ns, _) = run_ns(slices);
    Values::new(
        Unit::Microseconds,
        run_ns.iter().map(|ns| (ns - empty_ns) / 1e3),
    )
}

impl Turns {
    fn rows(&self) -> Vec<Row> {
        let empty = Values::new(Unit::Nanoseconds, run_ns(&self.empty).0);
        let empty_ns = empty.median();
        let other_task = run_ns(&self.other_task)
            .0
            .into_iter()
            .map(|ns| ns - empty_ns);
        let mut rows = Vec::from(self.short.rows(SHORT, 2.0, empty_ns));
        rows.extend(self.long.rows(LONG, 5.0, empty_ns));
        rows.push(self.short_hot.hot_row(SHORT));
        rows.push(self.long_hot.hot_row(LONG));
        rows.extend([
            Row::fact(
                "– taken off above: an empty program, measured likewise",
                empty,
            ),
            Row::fact(
                "BPF time at a tick of a task that is no target",
                Values::new(Unit::Nanoseconds, other_task),
            ),
        ]);
        rows.extend(self.kernel_rows(empty_ns));
        rows
    }

    /// What the kernel's part of a stack takes.
    fn kernel_rows(&self, empty_ns: f64) -> [Row; 3] {
        let (mut samples, mut kernel_samples, mut frames) = (0, 0, 0);
        for stack in &self.read_frames {
            samples += stack.count;
            kernel_samples += if stack.kernel.is_empty() {
                0
            } else {
                stack.count
            };
            frames += stack.kernel.len() as u64 * stack.count;
        }
        let (whole, user) = (
            sample_us(&self.read, empty_ns),
            sample_us(&self.read_user, empty_ns),
        );
        let frames = frames as f64 / samples as f64;
        let of_frame = (whole.median() - user.median()) * 1e3 / frames;
        let what = format!(
            "BPF time per sample, syscall-heavy ({:.0} % in the kernel, {frames:.1} kernel frames)",
            kernel_samples as f64 / samples as f64 * 100.0
        );
        [
            Row::fact(what, whole),
            Row::fact("– without the kernel's part (--no-kernel)", user),
            Row::fact(
                "– the difference, for each kernel frame",
                Values::new(Unit::Nanoseconds, [of_frame]),
            ),
        ]
    }
}

impl Pair {
    /// The time at a high rate. The empty program's is cold: none is taken off.
    fn hot_row(&self, depth: u32) -> Row {
        let what = format!(
            "– {} frames at {HOT_RATE_HZ} Hz, everything hot, nothing taken off",
            depth + ABOVE_MAIN
        );
        Row::fact(what, sample_us(&self.ours, 0.0))
            .beside_lightswitch(sample_us(&self.lightswitch, 0.0))
    }

    fn rows(&self, depth: u32, limit_us: f64, empty_ns: f64) -> [Row; 3] {
        let depth = depth + ABOVE_MAIN;
        let samples: u64 = self.stacks.iter().map(|stack| stack.count).sum();
        let frames = self
            .stacks
            .iter()
            .map(|stack| stack.user.len() as u64 * stack.count);
        let frames = frames.sum::<u64>() as f64 / samples as f64;
        let (ours, lightswitch) = (
            sample_us(&self.ours, empty_ns),
            sample_us(&self.lightswitch, empty_ns),
        );
        let what = format!(
            "BPF time per user-mode sample, {depth} frames without frame pointers ({frames:.1} found)"
        );
        let (lowest, lowest_theirs) = (ours.lowest(), lightswitch.lowest());
        let share = ours.median() / lightswitch.median() * 100.0;
        let share = Values::new(Unit::Percent, (!share.is_nan()).then_some(share));
        let unfit = if frames < f64::from(depth) * 0.99 {
            Some("the stacks are cut")
        } else if !run_ns(&self.ours).1 {
            Some("the machine has other work")
        } else {
            None
        };
        let mut rows = [
            Row::promise(what, ours, Bound::AtMost(limit_us)).beside_lightswitch(lightswitch),
            Row::fact("– the lowest half second", lowest).beside_lightswitch(lowest_theirs),
            Row::promise("– as a part of lightswitch's", share, Bound::AtMost(25.0)),
        ];
        rows.iter_mut().for_each(|row| row.unfit = unfit);
        if self.lightswitch.is_empty() {
            rows[2].unfit = Some("the other program failed");
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_in_which_something_else_ran_are_left_out() {
        let slice = |run_ns, is_good| Slice { run_ns, is_good };
        let mut slices = vec![slice(9000.0, false); 20];
        slices.extend([slice(1000.0, true); ENOUGH_SLICES]);
        assert_eq!(run_ns(&slices), (vec![1000.0; ENOUGH_SLICES], true));
        let (all, enough) = run_ns(&slices[..21]);
        assert_eq!((all.len(), enough), (21, false));
    }

    #[test]
    fn price_of_measuring_is_taken_off() {
        let slices = [Slice {
            run_ns: 1500.0,
            is_good: true,
        }; ENOUGH_SLICES];
        assert_eq!(sample_us(&slices, 500.0).median(), 1.0);
    }
}
