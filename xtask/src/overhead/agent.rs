//! What the agent costs as long as it runs: CPU time on a host where little happens, and what its counting of
//! waits adds to each switch between threads.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::bench::{Bench, arg};
use super::collection::{free_port, get, start};
use super::crowd::Crowd;
use super::proc_files::cpu_time;
use super::report::{Bound, Row, Unit, Values};
use crate::command;

const SOURCE: &str = include_str!("programs/switches.c");
const PROCESSES: usize = 500;

/// Measures both.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = steady(bench)?;
    rows.extend(switches(bench)?);
    Ok(rows)
}

/// Everything on, sent to a collector that is not there, and scraped every ten seconds.
fn steady(bench: &Bench) -> Result<Vec<Row>> {
    let _crowd = Crowd::gather(PROCESSES)?;
    let (port, nobody) = (free_port()?, free_port()?);
    let address = format!("127.0.0.1:{port}");
    let collector = format!("http://127.0.0.1:{nobody}");
    let mut agent = Command::new(&bench.hotspan);
    agent.args(["agent", "--prometheus", &address, "--otlp", &collector]);
    let agent = start(bench, &mut agent, port)?;
    // The first windows make tables and names.
    sleep(Duration::from_secs(if bench.quick { 12 } else { 35 }));
    let mut shares = Vec::new();
    for _ in 0..if bench.quick { 1 } else { 6 } {
        let (before, since) = (cpu_time(agent.pid())?, Instant::now());
        sleep(Duration::from_secs(10));
        get(port)?;
        let used = cpu_time(agent.pid())? - before;
        shares.push(100.0 * used.as_secs_f64() / since.elapsed().as_secs_f64());
    }
    Ok(vec![Row::promise(
        format!("CPU of the agent, everything on, {PROCESSES} processes that wait"),
        Values::new(Unit::Percent, shares),
        Bound::AtMost(0.5),
    )])
}

fn switches(bench: &Bench) -> Result<Vec<Row>> {
    let (source, program) = (bench.file("switches.c"), bench.file("switches"));
    std::fs::write(&source, SOURCE)?;
    command::output(Command::new("gcc").args([
        "-O2",
        "-pthread",
        arg(&source)?,
        "-o",
        arg(&program)?,
    ]))?;
    let count = if bench.quick { "100000" } else { "500000" };
    let ns = || -> Result<f64> {
        let mut command = Command::new("taskset");
        command.args(["-c", &bench.cpu().to_string(), arg(&program)?, count]);
        let output = command::text(&mut command)?;
        let number = output.trim().parse().ok();
        number.with_context(|| format!("no time: {output}"))
    };
    let (mut nothing, mut counted) = (Vec::new(), Vec::new());
    for _ in 0..if bench.quick { 1 } else { 7 } {
        nothing.push(ns()?);
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let mut agent = Command::new(&bench.hotspan);
        agent.args(["agent", "--prometheus", &address]);
        agent.args(["--profiles", "false", "--syscalls", "false"]);
        let _agent = start(bench, &mut agent, port)?;
        counted.push(ns()?);
    }
    let base = Values::new(Unit::Nanoseconds, nothing).median();
    let added = counted.into_iter().map(|ns| ns - base);
    Ok(vec![
        Row::fact(
            "a switch between threads (pipes)",
            Values::new(Unit::Nanoseconds, [base]),
        ),
        Row::fact(
            "– added by the agent's events",
            Values::new(Unit::Nanoseconds, added),
        ),
    ])
}
