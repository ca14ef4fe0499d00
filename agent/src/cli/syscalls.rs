//! `hotspan syscalls`: how often system calls are made, how long they take, and with which errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::process::Command;

use super::{command, duration, target::TargetArgs, tell};
use crate::aggregate::syscalls::Calls;
use crate::capture::{Settings, features};
use crate::decode::syscalls::errno_name;
use crate::model::{SlowCall, SyscallStats};
use crate::pipeline::EndSignals;
use crate::pipeline::syscalls::{Counting, Plan};
use crate::process;

/// Moves to the upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Arguments of `hotspan syscalls`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// How long to count, like 10s or 1m30s; without it until Ctrl-C or the command ends
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true)]
    duration: Option<String>,
    /// Show what was called in each interval, while it goes on
    #[arg(long, conflicts_with = "json")]
    top: bool,
    /// With --top: the interval
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: String,
    /// Tell processes apart
    #[arg(long)]
    by_process: bool,
    /// Tell the N slowest calls of each system call, with their thread and stack
    #[arg(long, value_name = "N", conflicts_with = "top", value_parser = clap::value_parser!(u32).range(1..=1000))]
    slowest: Option<u32>,
    /// Write one JSON object at the end; the command's own output goes to standard error
    #[arg(long)]
    json: bool,
    /// A command to run and count, with its children, from its own execve on
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What `--json` writes: other programs read it, so fields are only ever added.
#[derive(Debug, Serialize)]
struct Report {
    /// How long was counted, in seconds.
    duration_s: f64,
    /// All processes together, the most time first.
    syscalls: Vec<Entry>,
    /// Each process, with --by-process.
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Vec<ProcessEntry>>,
    /// The slowest calls, with --slowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    slowest: Option<Vec<SlowCall>>,
    /// What was not counted, by reason.
    lost: BTreeMap<&'static str, u64>,
}

/// A system call.
#[derive(Debug, Serialize)]
struct Entry {
    name: Cow<'static, str>,
    /// Calls that returned.
    calls: u64,
    /// Those that failed, by the error's name.
    errors: BTreeMap<Cow<'static, str>, u64>,
    total_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
    /// Calls that have not returned.
    in_flight: u64,
}

/// A process, or all those that were too many to be told apart.
#[derive(Debug, Serialize)]
struct ProcessEntry {
    pid: Option<u32>,
    name: String,
    syscalls: Vec<Entry>,
}

/// Counts system calls, and writes what there were.
///
/// # Errors
/// One sentence that says what is wrong and how to mend it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let limit = args.duration.as_deref().map(duration::parse).transpose()?;
    let refresh = args
        .top
        .then(|| duration::parse(&args.interval))
        .transpose()?;
    let plan = Plan {
        settings: Settings {
            target: args.target.target(&args.command)?,
            rate_hz: 1,
            kernel_stacks: false,
            slowest: None,
        },
        pids: args.target.pids.clone(),
        follow_children: args.target.children,
        slowest: args.slowest,
    };
    features::why_not_record()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = EndSignals::listen()?;
        let mut counting = Counting::start(&plan)?;
        let keep_stdout = args.json || args.top;
        let launch = |command: &mut Command| counting.launch(command);
        let mut child = command::start(&args.command, keep_stdout, &signals, launch)?;
        let status = counting
            .run(limit, refresh, &mut signals, child.as_mut(), show)
            .await?;
        process::write_before_signals(false);
        write(args, &report(&mut counting, args.by_process)?)?;
        let status = match (status, child) {
            (None, Some(mut child)) => {
                tell(format_args!(
                    "hotspan: counted; waiting for the command to end"
                ));
                process::restore_signals();
                Some(child.wait().await.context("lost the command")?)
            }
            (status, _) => status,
        };
        Ok(status.map_or(ExitCode::SUCCESS, command::exit_code))
    })
}

/// Shows what was called in an interval; false when nobody looks any more.
fn show(calls: &Calls, time: Duration) -> bool {
    let mut text = table(&entries(calls), time.as_secs_f64());
    if io::stdout().is_terminal() {
        text.insert_str(0, CLEAR);
    } else {
        text.push('\n');
    }
    io::stdout().write_all(text.as_bytes()).is_ok()
}

fn report(counting: &mut Counting, by_process: bool) -> Result<Report> {
    let (totals, duration) = counting.finish()?;
    let (all, processes) = (totals.all(), by_process.then(|| totals.by_process()));
    let mut lost = counting.losses()?;
    let slowest = counting.take_slow_calls()?.map(|slowest| {
        lost.extend(slowest.lost);
        slowest.calls
    });
    let name = |pid: Option<u32>| match pid {
        Some(pid) => counting.name_of(pid).unwrap_or_default().to_owned(),
        None => "others".to_owned(),
    };
    let entry = |(pid, calls): (Option<u32>, Calls)| ProcessEntry {
        pid,
        name: name(pid),
        syscalls: entries(&calls),
    };
    Ok(Report {
        duration_s: (duration.as_secs_f64() * 1e3).round() / 1e3,
        syscalls: entries(&all),
        processes: processes.map(|processes| processes.into_iter().map(entry).collect()),
        slowest,
        lost,
    })
}

/// System calls, the most time first, then the most calls.
fn entries(calls: &Calls) -> Vec<Entry> {
    let mut entries: Vec<_> = calls
        .iter()
        .filter(|(_, stats)| stats.returned.count + stats.in_flight > 0)
        .map(|(name, stats)| entry(name.clone(), stats))
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.total_ns, entry.calls)));
    entries
}

fn entry(name: Cow<'static, str>, stats: &SyscallStats) -> Entry {
    let errors = stats.errors.iter();
    Entry {
        name,
        calls: stats.returned.count,
        errors: errors
            .map(|(&errno, &count)| (errno_name(errno), count))
            .collect(),
        total_ns: stats.returned.total_ns,
        p50_ns: stats.returned.quantile_ns(0.5),
        p99_ns: stats.returned.quantile_ns(0.99),
        max_ns: stats.returned.max_ns,
        in_flight: stats.in_flight,
    }
}

fn write(args: &Args, report: &Report) -> Result<()> {
    let text = if args.json {
        serde_json::to_string(report)? + "\n"
    } else if args.top {
        String::new()
    } else {
        render(report)
    };
    // With a command, standard output is the command's.
    if args.command.is_empty() || args.json {
        match io::stdout().write_all(text.as_bytes()) {
            // `hotspan syscalls | head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.context("cannot write standard output")?,
        }
    } else {
        tell(format_args!("{}", text.trim_end()));
    }
    let lost = report.lost.iter();
    let lost: Vec<_> = lost
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    if !lost.is_empty() {
        let lost = lost.join(", ");
        tell(format_args!("hotspan: not everything was counted: {lost}"));
    }
    Ok(())
}

/// One table, or one for each process.
fn render(report: &Report) -> String {
    let slowest = report.slowest.as_deref().map(slowest).unwrap_or_default();
    let Some(processes) = &report.processes else {
        return table(&report.syscalls, report.duration_s) + &slowest;
    };
    let mut text = String::new();
    for process in processes {
        let pid = process
            .pid
            .map(|pid| format!("[{pid}]"))
            .unwrap_or_default();
        let table = table(&process.syscalls, report.duration_s);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}{pid}\n{table}", printable(&process.name));
    }
    text + &slowest
}

/// Frames of a stack that a person is shown.
const MAX_SHOWN: usize = 16;
/// Slow calls that a person is shown.
const MAX_CALLS: usize = 20;

/// The slowest calls, each with its stack, the function that made it first.
fn slowest(calls: &[SlowCall]) -> String {
    let mut text = "\nslowest calls\n".to_owned();
    for call in calls.iter().take(MAX_CALLS) {
        let SlowCall {
            syscall,
            thread,
            tid,
            ..
        } = call;
        let ms = call.duration_ns as f64 / 1e6;
        let thread = printable(thread);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{ms:>12.3} ms  {syscall}  {thread}[{tid}]");
        for function in call.stack.iter().rev().take(MAX_SHOWN) {
            let _ = writeln!(text, "{:18}{}", "", printable(function));
        }
        if call.stack.len() > MAX_SHOWN {
            let _ = writeln!(text, "{:18}… {} more", "", call.stack.len() - MAX_SHOWN);
        }
    }
    if calls.len() > MAX_CALLS {
        let _ = writeln!(
            text,
            "and {} more; --json has them",
            calls.len() - MAX_CALLS
        );
    }
    text
}

/// A name that cannot move the cursor.
fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

/// The table for a person: shares of all time in system calls, and durations in microseconds.
fn table(entries: &[Entry], seconds: f64) -> String {
    let total_ns: u64 = entries.iter().map(|entry| entry.total_ns).sum();
    let calls: u64 = entries.iter().map(|entry| entry.calls).sum();
    let mut text = format!(
        "{:>6} {:>12} {:>10} {:>10} {:>12} {:>10} {:>9} {:>8} {:>9}  syscall\n",
        "% time",
        "total ms",
        "p50 us",
        "p99 us",
        "max us",
        "calls",
        "calls/s",
        "errors",
        "in flight"
    );
    for entry in entries {
        let share = 100.0 * entry.total_ns as f64 / total_ns.max(1) as f64;
        let [total, p50, p99, max] =
            [entry.total_ns, entry.p50_ns, entry.p99_ns, entry.max_ns].map(|ns| ns as f64 / 1e3);
        let rate = entry.calls as f64 / seconds.max(1e-3);
        let errors: u64 = entry.errors.values().sum();
        let reasons: Vec<_> = entry
            .errors
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let reasons = if reasons.is_empty() {
            String::new()
        } else {
            format!(" ({})", reasons.join(", "))
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{share:>6.2} {:>12.3} {p50:>10.1} {p99:>10.1} {max:>12.1} {:>10} {rate:>9.0} {:>8} {:>9}  {}{reasons}",
            total / 1e3,
            entry.calls,
            blank_zero(errors),
            blank_zero(entry.in_flight),
            entry.name,
        );
    }
    let _ = writeln!(
        text,
        "{calls} calls in {seconds:.1} s, {:.3} ms inside of them",
        total_ns as f64 / 1e6
    );
    text
}

fn blank_zero(count: u64) -> String {
    if count == 0 {
        String::new()
    } else {
        count.to_string()
    }
}
