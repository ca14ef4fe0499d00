//! One workload, recorded by hotspan and perf at the same time, held against its own clock.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::perf::Perf;
use crate::place;
use crate::recorder::{Hotspan, Summary, Threads, read_folded};
use crate::stacks::Stacks;
use crate::workload::{Report, Workload};

/// How far shares of the same thing may be apart.
const TOLERANCE: f64 = 0.05;
/// How long a workload is recorded, in its own CPU time: some forty of its phases.
pub const WORK: Duration = Duration::from_secs(4);

/// What hotspan saw of a process.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The summary.
    pub summary: Summary,
    /// The folded stacks.
    pub stacks: Stacks,
}

impl Recorded {
    /// Records a workload until it has used that much CPU time, so that there are as many samples
    /// on a busy machine as on an idle one.
    ///
    /// # Errors
    /// When hotspan fails, or the workload does.
    pub fn of(workload: &Workload, options: &str, work: Duration) -> Result<Self> {
        let folder = place::folder()?;
        let file = folder.path().join("out.folded");
        let mut running = Hotspan::record()?
            .args(&format!("-p {} --json {options}", workload.pid()))
            .output(&file)
            .start()?;
        running.wait_for_capture()?;
        workload.wait_for_work(work)?;
        running.signal(Signal::INT)?;
        let run = running.finish()?.succeeded()?;
        Ok(Self {
            summary: run.summary()?,
            stacks: read_folded(&file)?,
        })
    }

    /// Checks that the part of the samples with `function` in their stack is `other`.
    ///
    /// A workload that has a CPU to itself is sampled evenly, and its shares are exact to about a
    /// percent. One that has to share its CPU is sampled when it happens to run: then three
    /// standard deviations are allowed on top.
    ///
    /// # Errors
    /// Tells both.
    pub fn check_share(
        &self,
        function: &str,
        other: f64,
        source: &str,
        threads: Threads,
    ) -> Result<()> {
        let own = self.stacks.share(function)?;
        let chance = 1.0 - self.summary.running_part(threads.count());
        let variance = own * (1.0 - own) * chance / self.stacks.total() as f64;
        let tolerance = TOLERANCE + 3.0 * variance.sqrt();
        ensure!(
            (own - other).abs() <= tolerance,
            "{function}: {:.1} % for hotspan, {:.1} % for {source}; hotspan saw{}",
            100.0 * own,
            100.0 * other,
            self.stacks.commonest()
        );
        Ok(())
    }
}

/// A function that a workload spends a known part of its time in.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    /// What the workload's report calls it.
    pub clock: &'a str,
    /// Its callers, outermost first, and the function itself, as hotspan names them.
    pub chain: &'a [&'a str],
    /// What perf's name of it contains: perf writes some names in another way. Alternatives stand
    /// between bars, for callees whose caller perf cannot see.
    pub perf: &'a str,
}

/// What hotspan and perf saw of one workload.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What hotspan saw.
    pub recorded: Recorded,
    /// perf's stacks.
    pub perf: Stacks,
    /// What the workload measured itself.
    pub report: Report,
}

impl Seen {
    /// Records a workload with both, and ends it.
    ///
    /// # Errors
    /// When any of the three fails.
    pub fn of(workload: Workload) -> Result<Self> {
        let folder = place::folder()?;
        let perf = Perf::start(workload.pid(), folder.path())?;
        let recorded = Recorded::of(&workload, "", WORK)?;
        let report = workload.stop()?;
        // It ends with the workload.
        let perf = perf.finish()?;
        Ok(Self {
            recorded,
            perf,
            report,
        })
    }

    /// Checks that hotspan kept every sample, that stacks are whole, and that its shares are those
    /// of the workload's clock and of perf.
    ///
    /// # Errors
    /// Names the first thing that is not so.
    pub fn check(&self, process: &str, threads: Threads, functions: &[Function]) -> Result<()> {
        let Recorded { summary, stacks } = &self.recorded;
        summary.check_complete(threads)?;
        summary.check_rooted_and_named()?;
        let (total, kept) = (stacks.total(), summary.samples.kept);
        ensure!(
            total == kept,
            "{total} samples in the file, {kept} in the summary"
        );
        let of_others = total - stacks.of_process(process).total();
        ensure!(of_others == 0, "{of_others} samples are not of {process}");
        for function in functions {
            self.check_function(function, threads)?;
        }
        Ok(())
    }

    fn check_function(&self, function: &Function, threads: Threads) -> Result<()> {
        let stacks = &self.recorded.stacks;
        let name = function.chain.last().context("an empty chain")?;
        let found = stacks.with(name);
        let in_chain = stacks.with_chain(function.chain);
        // A sample can hit the few instructions in which a function sets up its frame.
        ensure!(
            found > 0 && in_chain as f64 >= 0.98 * found as f64,
            "of {found} samples with {name} {in_chain} have {:?}; hotspan saw{}",
            function.chain,
            stacks.commonest()
        );
        let clock = self.report.share(function.clock)?;
        self.recorded
            .check_share(name, clock, "its clock", threads)?;
        let all = self.perf.total();
        ensure!(all > 0, "perf has no samples");
        let is_name = |frame: &String| function.perf.split('|').any(|name| frame.contains(name));
        let has_name = |stack: &[String]| stack.iter().any(is_name);
        let perf = self.perf.filter(has_name).total() as f64 / all as f64;
        self.recorded.check_share(name, perf, "perf", threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(stacks: &str, perf: &str, clock: (u64, u64)) -> Seen {
        let stacks = Stacks::parse_folded(stacks).unwrap();
        let kept = stacks.total();
        let summary = format!(
            r#"{{"duration_s": 1.0, "rate_hz": 100, "top": [], "files": [], "samples": {{"expected": 100,
            "kept": {kept}, "rooted": {kept}, "named": {kept}, "lost": {{}}}}}}"#
        );
        let report = format!(
            r#"{{"cpu_ns": {{"heavy": {}, "light": {}}}}}"#,
            clock.0, clock.1
        );
        Seen {
            recorded: Recorded {
                summary: serde_json::from_str(&summary).unwrap(),
                stacks,
            },
            perf: Stacks::parse_folded(perf).unwrap(),
            report: serde_json::from_str(&report).unwrap(),
        }
    }

    fn check(stacks: &str, perf: &str, clock: (u64, u64)) -> Result<()> {
        let function = Function {
            clock: "heavy",
            chain: &["main", "heavy"],
            perf: "heavy",
        };
        seen(stacks, perf, clock).check("a", Threads::OnOneCpu, &[function])
    }

    const STACKS: &str = "a;main;heavy 70\na;main;light 30\n";

    #[test]
    fn agreement_passes() {
        check(STACKS, STACKS, (70, 30)).unwrap();
        check(STACKS, STACKS, (67, 33)).unwrap();
    }

    #[test]
    fn every_kind_of_disagreement_fails() {
        for (stacks, perf, clock, why) in [
            (STACKS, STACKS, (50, 50), "its clock"),
            (STACKS, "a;main;heavy 6\na;main;light 4\n", (70, 30), "perf"),
            (STACKS, "", (70, 30), "perf has no samples"),
            (
                "a;main;x 70\na;main;light 30\n",
                STACKS,
                (70, 30),
                "of 0 samples with heavy",
            ),
            (
                "a;main;y;heavy 70\na;main;light 30\n",
                STACKS,
                (70, 30),
                "of 70 samples",
            ),
            (
                "a;main;heavy 60\nb;main;light 40\n",
                STACKS,
                (60, 40),
                "not of a",
            ),
            (
                "a;main;heavy 35\na;main;light 15\n",
                STACKS,
                (70, 30),
                "too few",
            ),
            (
                "a;main;heavy 140\na;main;light 60\n",
                STACKS,
                (70, 30),
                "too many",
            ),
        ] {
            let error = format!("{:#}", check(stacks, perf, clock).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
