//! One workload, recorded by hotspan and perf at the same time, held against its own clock.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::perf::Perf;
use crate::place;
use crate::recorder::{Hotspan, Summary, Threads, read_folded};
use crate::stacks::Stacks;
use crate::workload::{Report, Workload};

/// How far shares of the same thing may be apart.
const TOLERANCE: f64 = 0.05;
/// How long a workload is recorded: some forty of its phases.
const SECONDS: u32 = 4;

/// A function that a workload spends a known part of its time in.
#[derive(Clone, Copy, Debug)]
pub struct Function<'a> {
    /// What the workload's report calls it.
    pub clock: &'a str,
    /// Its callers, outermost first, and the function itself, as hotspan names them.
    pub chain: &'a [&'a str],
    /// What perf's name of it contains: perf writes some names in another way.
    pub perf: &'a str,
}

/// What hotspan and perf saw of one workload.
#[derive(Clone, Debug)]
pub struct Seen {
    /// hotspan's summary.
    pub summary: Summary,
    /// hotspan's stacks.
    pub stacks: Stacks,
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
        let file = folder.path().join("out.folded");
        let perf = Perf::start(workload.pid(), SECONDS, folder.path())?;
        let run = Hotspan::record()?
            .args(&format!("-p {} -d {SECONDS}s --json", workload.pid()))
            .output(&file)
            .run()?
            .succeeded()?;
        let summary = run.summary()?;
        let perf = perf.finish()?;
        let report = workload.stop()?;
        let stacks = read_folded(&file)?;
        Ok(Self {
            summary,
            stacks,
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
        self.summary.check_complete(threads)?;
        self.summary.check_rooted_and_named()?;
        ensure!(
            self.stacks.total() == self.summary.samples.kept,
            "{} samples in the file, {} in the summary",
            self.stacks.total(),
            self.summary.samples.kept
        );
        let of_others = self.stacks.total() - self.stacks.of_process(process).total();
        ensure!(of_others == 0, "{of_others} samples are not of {process}");
        for function in functions {
            self.check_function(function).with_context(|| {
                format!("{}; hotspan saw{}", function.clock, self.stacks.commonest())
            })?;
        }
        Ok(())
    }

    fn check_function(&self, function: &Function) -> Result<()> {
        let name = function.chain.last().context("an empty chain")?;
        let found = self.stacks.with(name);
        let in_chain = self.stacks.with_chain(function.chain);
        // A sample can hit the few instructions in which a function sets up its frame.
        ensure!(
            found > 0 && in_chain as f64 >= 0.98 * found as f64,
            "of {found} samples with {name} {in_chain} have {:?}",
            function.chain
        );
        let own = self.stacks.share(name)?;
        let perf = self
            .perf
            .filter(|stack| stack.iter().any(|f| f.contains(function.perf)));
        ensure!(self.perf.total() > 0, "perf has no samples");
        let perf = perf.total() as f64 / self.perf.total() as f64;
        let clock = self.report.share(function.clock)?;
        let others = BTreeMap::from([("its clock", clock), ("perf", perf)]);
        for (source, other) in others {
            ensure!(
                (own - other).abs() <= TOLERANCE,
                "{:.1} % for hotspan, {:.1} % for {source}",
                100.0 * own,
                100.0 * other
            );
        }
        Ok(())
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
            summary: serde_json::from_str(&summary).unwrap(),
            stacks,
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
