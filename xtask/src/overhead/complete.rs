//! How complete stacks are: programs in many languages, none with frame pointers that it would not
//! have anyway, each recorded by hotspan, by `perf record --call-graph dwarf` and by lightswitch.
//!
//! A rooted stack begins with its thread's true first function. An exact one has every function of
//! the program from there to the leaf, by what the program itself knows; only samples that hit its
//! own functions are judged. The whole recording counts, from its first sample on.

use anyhow::Result;

use super::bench::Bench;
use super::perf::CallGraph;
use super::report::{Bound, Row, Unit, Values};
use super::stacks::{Completeness, with_root};
use super::targets::{TARGETS, Target};

/// Enough that a tenth of a percent of ten seconds is some samples; prime, as lightswitch wants it.
const RATE_HZ: u32 = 499;

const GOAL: Bound = Bound::AtLeast(99.9);

/// Measures all programs, also after one that cannot be measured.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for target in &TARGETS {
        let mut found = Found::default();
        if let Err(error) = record(bench, target, &mut found) {
            eprintln!("cannot measure the stacks of {}: {error:#}", target.name);
        }
        rows.push(found.row("rooted", target, Completeness::rooted_percent));
        if target.chain.is_some() {
            rows.push(found.row("exact", target, Completeness::exact_percent));
        }
    }
    Ok(rows)
}

/// What each profiler saw of one program.
#[derive(Default)]
struct Found {
    ours: Vec<Completeness>,
    perf: Vec<Completeness>,
    lightswitch: Vec<Completeness>,
}

/// Records a program in turns. The others do not get better by being asked again.
fn record(bench: &Bench, target: &Target, found: &mut Found) -> Result<()> {
    let duration = bench.seconds(10, 3);
    let judge = |stacks: &[_]| Completeness::of(stacks, target.roots, target.chain);
    for round in 0..bench.rounds() {
        let load = target.start(bench)?;
        let pid = load.pid().to_string();
        let (rate, seconds) = (RATE_HZ.to_string(), format!("{}s", duration.as_secs()));
        let args = ["--pid", &pid, "--rate", &rate, "--duration", &seconds];
        let (_, stacks) = bench.record_stacks(&args, |_| Ok(()))?;
        let ours = judge(&stacks);
        for (stack, count) in ours.commonest_wrong() {
            eprintln!("{}: {count} times {stack}", target.name);
        }
        found.ours.push(ours);
        if round > 0 {
            continue;
        }
        let args = ["--pid", &pid];
        if let Some(perf) = bench.perf(&args, CallGraph::Dwarf, RATE_HZ, duration, |_| Ok(())) {
            found.perf.push(judge(&perf.stacks()?));
        }
        let recorded = bench.lightswitch(Some(load.pid()), RATE_HZ, duration, |_| Ok(()));
        if let Some((_, stacks)) = recorded {
            let stacks = with_root(stacks, target.roots[0], target.callees);
            found.lightswitch.push(judge(&stacks));
        }
    }
    Ok(())
}

impl Found {
    fn row(&self, what: &str, target: &Target, share: fn(&Completeness) -> f64) -> Row {
        let values = |found: &[Completeness]| Values::new(Unit::Percent, found.iter().map(share));
        Row::promise(format!("{what}: {}", target.name), values(&self.ours), GOAL)
            .beside_perf(values(&self.perf))
            .beside_lightswitch(values(&self.lightswitch))
    }
}
