//! What counting system calls adds: to `getppid`, which does next to nothing, so that the rest shows; to `dd` that
//! copies single bytes; and to a Redis that answers as fast as it can.
//!
//! Time is told by the program that calls. The kernel's account of BPF run times is off meanwhile: it
//! would double what is measured. All take turns in one run.

use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::bench::{Bench, arg};
use super::collection::{free_port, start};
use super::kernel::{self, Pair, READ_CLOCK, RETURN};
use super::report::{Bound, Row, Unit, Values};
use crate::command;

const SOURCE: &str = include_str!("programs/calls.c");

/// Measures all in turns.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = getppid(bench)?;
    rows.extend(dd(bench)?);
    rows.extend(redis(bench)?);
    Ok(rows)
}

fn getppid(bench: &Bench) -> Result<Vec<Row>> {
    let (source, program) = (bench.file("calls.c"), bench.file("calls"));
    std::fs::write(&source, SOURCE)?;
    command::output(Command::new("gcc").args(["-O2", arg(&source)?, "-o", arg(&program)?]))?;
    let program = arg(&program)?;
    let [
        mut nothing,
        mut empty,
        mut clock,
        mut off,
        mut ours,
        mut perf,
        mut strace,
    ] = [const { Vec::new() }; 7];
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
        {
            let port = free_port()?;
            let address = format!("127.0.0.1:{port}");
            let mut agent = Command::new(&bench.hotspan);
            agent.args(["agent", "--prometheus", &address, "--syscalls", "false"]);
            let _agent = start(bench, &mut agent, port)?;
            off.push(ns(bench, &[program, millions])?);
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
    let [empty, clock, off, ours, perf, strace] =
        [empty, clock, off, ours, perf, strace].map(added);
    let ratio = |of: &Values| Values::new(Unit::Percent, [100.0 * ours.median() / of.median()]);
    let (of_empty, of_perf, of_strace) = (ratio(&empty), ratio(&perf), ratio(&strace));
    let base = Values::new(Unit::Nanoseconds, [base]);
    Ok(vec![
        Row::fact("a system call (getppid) that nobody counts", base),
        Row::fact("– added by hotspan syscalls", ours).beside_perf(perf),
        Row::fact("– added by an empty pair of programs", empty),
        Row::fact("– added by a pair that reads the clock", clock),
        Row::fact("– added by strace -c -f", strace),
        Row::fact("– added by an agent that does not count them", off),
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

/// Microseconds that `dd` takes for a byte: two system calls.
fn dd(bench: &Bench) -> Result<Vec<Row>> {
    let bytes: u32 = if bench.quick { 50_000 } else { 300_000 };
    let few = bytes / 10;
    let us = |before: &[&str], bytes: u32| -> Result<f64> {
        let count = format!("count={bytes}");
        let dd = [
            "dd",
            "if=/dev/zero",
            "of=/dev/null",
            "bs=1",
            "status=none",
            &count,
        ];
        let mut command = Command::new("taskset");
        command.args(["-c", &bench.cpu().to_string()]);
        command.args(before).args(dd);
        let since = Instant::now();
        command::output(kernel::run_first(&mut command))?;
        Ok(since.elapsed().as_secs_f64() * 1e6 / f64::from(bytes))
    };
    let hotspan = arg(&bench.hotspan)?;
    let [mut nothing, mut ours, mut perf, mut strace] = [const { Vec::new() }; 4];
    for _ in 0..if bench.quick { 1 } else { 5 } {
        nothing.push(us(&[], bytes)?);
        ours.push(us(&[hotspan, "syscalls", "--"], bytes)?);
        perf.push(us(&["perf", "trace", "-s", "-o", "/dev/null"], few)?);
        strace.push(us(&["strace", "-c", "-f", "-o", "/dev/null"], few)?);
    }
    let [nothing, ours, perf, strace] =
        [nothing, ours, perf, strace].map(|us| Values::new(Unit::Microseconds, us));
    Ok(vec![
        Row::fact("a byte copied by dd bs=1", nothing),
        Row::fact("– with hotspan syscalls", ours).beside_perf(perf),
        Row::fact("– with strace -c -f", strace),
    ])
}

/// Microseconds of a request to Redis, whose server is looked at.
fn redis(bench: &Bench) -> Result<Vec<Row>> {
    let port = free_port()?;
    let mut server = Command::new("redis-server");
    server.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
    ]);
    server.args(["--appendonly", "no", "--dir", arg(&bench.file(""))?]);
    let server = bench.serve(&mut server)?;
    let pid = server.pid().to_string();
    let us = |count: &str| -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command.args([
            "-p",
            &port.to_string(),
            "-t",
            "get",
            "-c",
            "10",
            "-n",
            count,
            "--csv",
        ]);
        let output = command::text(&mut command)?;
        // `"GET","51282.05","0.105",…`
        let rate = output
            .lines()
            .last()
            .and_then(|line| line.split('"').nth(3));
        let rate: f64 = rate.with_context(|| output.clone())?.parse()?;
        Ok(1e6 / rate)
    };
    let (many, few) = if bench.quick {
        ("5000", "2000")
    } else {
        ("100000", "20000")
    };
    // Its benchmark would wait for ever for a server that is not there yet.
    wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    let watched = |words: &[&str], count: &str| -> Result<f64> {
        let mut observer = Command::new(words[0]);
        let _observer = bench.serve(observer.args(&words[1..]))?;
        // It takes perf a while to look through /proc.
        sleep(Duration::from_secs(1));
        us(count)
    };
    let go_on = || command::output(Command::new("kill").args(["-CONT", &pid]));
    let hotspan = arg(&bench.hotspan)?;
    let [mut nothing, mut ours, mut perf, mut strace] = [const { Vec::new() }; 4];
    for _ in 0..if bench.quick { 1 } else { 5 } {
        nothing.push(us(many)?);
        ours.push(watched(&[hotspan, "syscalls", "-p", &pid], many)?);
        perf.push(watched(
            &["perf", "trace", "-s", "-o", "/dev/null", "-p", &pid],
            few,
        )?);
        strace.push(watched(
            &["strace", "-c", "-f", "-o", "/dev/null", "-p", &pid],
            few,
        )?);
        go_on()?;
    }
    let [nothing, ours, perf, strace] =
        [nothing, ours, perf, strace].map(|us| Values::new(Unit::Microseconds, us));
    Ok(vec![
        Row::fact("a request to Redis, of ten clients", nothing),
        Row::fact("– with hotspan syscalls", ours).beside_perf(perf),
        Row::fact("– with strace -c -f", strace),
    ])
}

fn wait_until(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let since = Instant::now();
    while !is_so() {
        ensure!(
            since.elapsed() < Duration::from_secs(20),
            "redis-server does not answer"
        );
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
