//! What counting system calls adds to one: to `getppid`, which does next to nothing, so that the rest shows.
//!
//! Time is told by the program that calls. The kernel's account of BPF run times is off meanwhile: it
//! would double what is measured. All take turns in one run.

use std::process::Command;

use anyhow::{Context, Result};

use super::bench::{Bench, arg};
use super::kernel::{self, Pair, READ_CLOCK, RETURN};
use super::report::{Bound, Row, Unit, Values};
use crate::command;

const SOURCE: &str = include_str!("programs/calls.c");

/// Measures all in turns.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let (source, program) = (bench.file("calls.c"), bench.file("calls"));
    std::fs::write(&source, SOURCE)?;
    command::output(Command::new("gcc").args(["-O2", arg(&source)?, "-o", arg(&program)?]))?;
    let program = arg(&program)?;
    let [
        mut nothing,
        mut empty,
        mut clock,
        mut ours,
        mut perf,
        mut strace,
    ] = [const { Vec::new() }; 6];
    let millions = if bench.quick { "300000" } else { "3000000" };
    for _ in 0..if bench.quick { 1 } else { 5 } {
        nothing.push(ns(bench, &[program, millions])?);
        {
            let _pair = Pair::attach(RETURN)?;
            empty.push(ns(bench, &[program, millions])?);
        }
        {
            let _pair = Pair::attach(READ_CLOCK)?;
            clock.push(ns(bench, &[program, millions])?);
        }
        let hotspan = arg(&bench.hotspan)?;
        ours.push(ns(bench, &[hotspan, "syscalls", "--", program, millions])?);
        let perf_trace = ["perf", "trace", "-s", "-o", "/dev/null", program, "100000"];
        perf.push(ns(bench, &perf_trace)?);
        let strace_c = ["strace", "-c", "-f", "-o", "/dev/null", program, "100000"];
        strace.push(ns(bench, &strace_c)?);
    }
    let base = Values::new(Unit::Nanoseconds, nothing).median();
    let added =
        |values: Vec<f64>| Values::new(Unit::Nanoseconds, values.into_iter().map(|ns| ns - base));
    let [empty, clock, ours, perf, strace] = [empty, clock, ours, perf, strace].map(added);
    let ratio = |of: &Values| Values::new(Unit::Percent, [100.0 * ours.median() / of.median()]);
    let (of_empty, of_perf, of_strace) = (ratio(&empty), ratio(&perf), ratio(&strace));
    let base = Values::new(Unit::Nanoseconds, [base]);
    Ok(vec![
        Row::fact("a system call (getppid) that nobody counts", base),
        Row::fact("– added by hotspan syscalls", ours).beside_perf(perf),
        Row::fact("– added by an empty pair of programs", empty),
        Row::fact("– added by a pair that reads the clock", clock),
        Row::fact("– added by strace -c -f", strace),
        Row::promise(
            "– hotspan's part of the empty pair's",
            of_empty,
            Bound::AtMost(200.0),
        ),
        Row::promise("– of perf trace -s's", of_perf, Bound::AtMost(25.0)),
        Row::promise("– of strace's", of_strace, Bound::AtMost(2.0)),
    ])
}

/// What the program printed, run in this way on one CPU.
fn ns(bench: &Bench, words: &[&str]) -> Result<f64> {
    let mut command = Command::new("taskset");
    command.args(["-c", &bench.cpu().to_string()]).args(words);
    let output = command::text(kernel::run_first(&mut command))?;
    let number = output.lines().find_map(|line| line.trim().parse().ok());
    number.with_context(|| format!("{} printed no time: {output}", words.join(" ")))
}
