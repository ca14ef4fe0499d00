//! `hotspan syscalls`: the same counts as strace, durations that a program knows, calls in flight, and
//! nothing lost when all CPUs call at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place;
use hotspan_tests::process::{self, Guard};
use hotspan_tests::program::{self, Build, Recipe};
use hotspan_tests::recorder::{Finished, Hotspan};
use rustix::process::Signal;
use serde_json::Value;

fn c(name: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler: "gcc",
        flags: &[&["-g", "-O1", "-pthread"], flags].concat(),
        source: &format!("c/{name}.c"),
        ..Recipe::default()
    }
    .make()
}

/// The object of the contract, with the shape of each entry checked.
fn report(run: &Finished) -> Result<Value> {
    let report: Value = serde_json::from_str(&run.stdout).with_context(|| run.stdout.clone())?;
    ensure!(report["lost"].is_object(), "{report}");
    for entry in report["syscalls"].as_array().context("no syscalls")? {
        let keys: Vec<_> = entry.as_object().context("no object")?.keys().collect();
        let expected = [
            "calls",
            "errors",
            "in_flight",
            "max_ns",
            "name",
            "p50_ns",
            "p99_ns",
            "total_ns",
        ];
        ensure!(keys == expected, "{entry}");
        let number = |key: &str| {
            entry[key]
                .as_u64()
                .with_context(|| format!("{key}: {entry}"))
        };
        let [p50, p99, max] = [number("p50_ns")?, number("p99_ns")?, number("max_ns")?];
        ensure!(
            p50 <= p99 && p99 <= max && max <= number("total_ns")?,
            "{entry}"
        );
        ensure!(number("calls")? + number("in_flight")? > 0, "{entry}");
    }
    Ok(report)
}

fn entry<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let entries = report["syscalls"].as_array().context("no syscalls")?;
    let found = entries.iter().find(|entry| entry["name"] == name);
    found.with_context(|| format!("no {name} in {report}"))
}

/// Calls and errors by name.
type Counts = BTreeMap<String, (u64, u64)>;

fn counts(report: &Value) -> Counts {
    let entries = report["syscalls"].as_array().into_iter().flatten();
    let errors = |entry: &Value| -> u64 {
        let errors = entry["errors"].as_object().into_iter().flatten();
        errors.filter_map(|(_, count)| count.as_u64()).sum()
    };
    entries
        .filter(|entry| entry["calls"] != 0)
        .map(|entry| {
            let name = entry["name"].as_str().unwrap_or_default().to_owned();
            (name, (entry["calls"].as_u64().unwrap_or(0), errors(entry)))
        })
        .collect()
}

/// What `strace -c -f` counts.
fn traced(program: &[&str]) -> Result<Counts> {
    let folder = place::folder()?;
    let file = folder.path().join("strace");
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(&file).args(program);
    // Programs ask what their output is: as with hotspan, it is a pipe.
    command
        .output()
        .context("cannot start strace: install the package strace")?;
    let mut counts = Counts::new();
    for line in fs::read_to_string(&file)?.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_row = words.len() >= 5 && words[0].parse::<f64>().is_ok();
        if !is_row || words.last() == Some(&"total") {
            continue;
        }
        let errors = if words.len() > 5 {
            words[4].parse()?
        } else {
            0
        };
        let counted = counts.entry(words[words.len() - 1].to_owned()).or_default();
        counted.0 += words[3].parse::<u64>()?;
        counted.1 += errors;
    }
    ensure!(counts.len() > 5, "strace counted nothing");
    Ok(counts)
}

fn count(program: &[&str]) -> Result<Finished> {
    let hotspan = Hotspan::verb("syscalls")?.args("--json --");
    program
        .iter()
        .fold(hotspan, |hotspan, word| hotspan.arg(word))
        .run()
}

/// Who waits for a lock that is free already does not call, and signals that come together are one.
const DEPEND_ON_TIME: [&str; 2] = ["futex", "rt_sigreturn"];

/// Compares with strace, but for what depends on which thread is faster, and for calls that strace has
/// no name for.
fn check_like_strace(program: &[&str], code: i32) -> Result<()> {
    let is_settled = |(name, _): &(&String, &mut (u64, u64))| {
        !DEPEND_ON_TIME.contains(&name.as_str()) && !name.starts_with("syscall_")
    };
    let mut expected = traced(program)?;
    let run = count(program)?;
    ensure!(run.code == Some(code), "{:?}: {}", run.code, run.stderr);
    let mut found = counts(&report(&run)?);
    let settled = |counts: &mut Counts| -> Counts {
        let settled = counts.iter_mut().filter(is_settled);
        settled
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    };
    let (expected, found) = (settled(&mut expected), settled(&mut found));
    ensure!(
        expected == found,
        "strace: {expected:?}\nhotspan: {found:?}"
    );
    Ok(())
}

#[test]
fn counts_are_those_of_strace() -> Result<()> {
    let dynamic = c("known_calls", &[])?;
    check_like_strace(&[&dynamic.display().to_string()], 3)?;
    let fixed = c("known_calls", &["-static"])?;
    check_like_strace(&[&fixed.display().to_string()], 3)?;
    check_like_strace(&["/usr/bin/python3", "-c", "import json, subprocess"], 0)?;
    check_like_strace(
        &["sh", "-c", "ls /etc | wc -l; cat /does/not/exist; exit 7"],
        7,
    )
}

/// What the program says of itself, which strace cannot change.
#[test]
fn counts_are_what_the_program_makes() -> Result<()> {
    let run = count(&[&c("known_calls", &[])?.display().to_string()])?;
    let report = report(&run)?;
    ensure!(report["lost"] == serde_json::json!({}), "{report}");
    for (name, calls, errors) in [
        ("getppid", 4000, serde_json::json!({})),
        ("getuid", 21, serde_json::json!({})),
        ("getpgid", 5, serde_json::json!({})),
        ("syscall_0x186a0", 20, serde_json::json!({"ENOSYS": 20})),
        ("execve", 4, serde_json::json!({"ENOENT": 1})),
    ] {
        let entry = entry(&report, name)?;
        ensure!(
            entry["calls"] == calls && entry["errors"] == errors,
            "{entry}"
        );
    }
    // The dynamic linker may look for libraries in vain, too.
    let absent = entry(&report, "openat")?["errors"]["ENOENT"].as_u64();
    ensure!(absent >= Some(100), "{report}");
    ensure!(
        entry(&report, "close")?["errors"]["EBADF"] == 50,
        "{report}"
    );
    Ok(())
}

#[test]
fn durations_are_those_of_the_clock() -> Result<()> {
    let run = count(&["sh", "-c", "sleep 0.2; sleep 0.2"])?.succeeded()?;
    let report = report(&run)?;
    let sleep = entry(&report, "clock_nanosleep")?;
    ensure!(sleep["calls"] == 2, "{sleep}");
    for (key, least_ms) in [("total_ns", 400), ("p50_ns", 170), ("max_ns", 200)] {
        let ms = sleep[key].as_u64().unwrap_or(0) / 1_000_000;
        ensure!((least_ms..least_ms + 150).contains(&ms), "{key}: {sleep}");
    }
    Ok(())
}

/// Every CPU calls as fast as it can; the program knows how often.
#[test]
fn nothing_is_lost_in_a_storm() -> Result<()> {
    let storm = c("storm", &[])?;
    let run = count(&[&storm.display().to_string(), "400000"])?.succeeded()?;
    let report = report(&run)?;
    ensure!(report["lost"] == serde_json::json!({}), "{report}");
    let made: u64 = run
        .stderr
        .lines()
        .find_map(|line| line.parse().ok())
        .context("no count")?;
    ensure!(
        entry(&report, "getppid")?["calls"] == made,
        "{made}: {report}"
    );
    let failed = &entry(&report, "close")?["errors"]["EBADF"];
    ensure!(failed.as_u64() == Some(made / 10), "{made}: {report}");
    Ok(())
}

#[test]
fn calls_that_have_not_returned_are_in_flight() -> Result<()> {
    // The first call began before, the second begins while it is counted.
    let mut sleeper = Command::new("sh");
    sleeper
        .args(["-c", "sleep 4; exec /bin/sleep 100"])
        .stdout(Stdio::null());
    let sleeper = Guard::start(&mut sleeper)?;
    thread::sleep(Duration::from_millis(300));
    let pid = sleeper.pid();
    let look = |time: &str| -> Result<Value> {
        let run = Hotspan::verb("syscalls")?
            .args(&format!("--json --pid {pid} --duration {time}"))
            .run()?
            .succeeded()?;
        report(&run)
    };
    let report = look("200ms")?;
    let waiting = entry(&report, "wait4")?;
    ensure!(
        waiting["in_flight"] == 1 && waiting["calls"] == 0,
        "{report}"
    );
    let report = look("5s")?;
    ensure!(
        entry(&report, "clock_nanosleep")?["in_flight"] == 1,
        "{report}"
    );
    ensure!(entry(&report, "execve")?["calls"] == 1, "{report}");
    Ok(())
}

#[test]
fn whole_host_and_processes_are_told_apart() -> Result<()> {
    let storm = c("storm", &[])?;
    let running = Hotspan::verb("syscalls")?
        .args("--all --by-process --json --duration 60s")
        .start()?;
    let hotspan = running.pid();
    // The programs are attached one after the other, in some milliseconds.
    process::wait_for("the counting", Duration::from_secs(20), || {
        Ok(process::has_open(hotspan, "anon_inode:bpf_link").then_some(()))
    })?;
    thread::sleep(Duration::from_millis(500));
    let mut storm = Guard::start(Command::new(storm).arg("20000").stdout(Stdio::null()))?;
    let parent = storm.pid();
    storm.wait(Duration::from_secs(20))?;
    thread::sleep(Duration::from_millis(500));
    running.signal(Signal::INT)?;
    let run = running.finish()?.succeeded()?;
    let report = report(&run)?;
    let processes = report["processes"].as_array().context("no processes")?;
    let calls_of = |process: &Value, name: &str| -> u64 {
        let entries = process["syscalls"].as_array().into_iter().flatten();
        let mut found = entries.filter(|entry| entry["name"] == name);
        found
            .next()
            .and_then(|entry| entry["calls"].as_u64())
            .unwrap_or(0)
    };
    let forks = processes.iter().filter(|process| process["pid"] == parent);
    ensure!(
        forks.map(|process| calls_of(process, "wait4")).sum::<u64>() > 1,
        "{report}"
    );
    let children = processes
        .iter()
        .filter(|process| calls_of(process, "getppid") >= 20000);
    ensure!(children.count() >= 2, "{report}");
    ensure!(
        !processes.iter().any(|process| process["pid"] == hotspan),
        "hotspan counted itself: {report}"
    );
    Ok(())
}

#[test]
fn table_is_for_people_and_the_exit_code_the_commands() -> Result<()> {
    let run = Hotspan::verb("syscalls")?
        .args("-- sh -c")
        .arg("echo out; exit 9")
        .run()?;
    ensure!(run.code == Some(9), "{:?}", run.code);
    ensure!(run.stdout == "out\n", "{}", run.stdout);
    let head = run.stderr.lines().next().unwrap_or_default();
    ensure!(
        head.contains("% time") && head.ends_with("syscall"),
        "{}",
        run.stderr
    );
    ensure!(run.stderr.contains(" write\n"), "{}", run.stderr);
    let run = Hotspan::verb("syscalls")?
        .args("--top --interval 200ms --duration 700ms")
        .run()?
        .succeeded()?;
    ensure!(run.stdout.matches("% time").count() >= 2, "{}", run.stdout);
    Ok(())
}

#[test]
fn mistakes_are_one_sentence() -> Result<()> {
    for (arguments, code, sentence) in [
        ("--pid 4194304", 1, "there is no process 4194304"),
        ("--pid 1 -- true", 2, "exclude each other"),
        ("--duration 0", 2, "the duration 0 is not positive"),
        ("--json --top", 2, "cannot be used with"),
        ("--children", 2, "--children goes with --pid"),
        ("--cgroup /does/not/exist", 1, "there is no cgroup"),
        ("-- /does/not/exist", 1, "there is no program"),
    ] {
        let run = Hotspan::verb("syscalls")?.args(arguments).run()?;
        ensure!(
            run.code == Some(code),
            "{arguments}: {:?} {}",
            run.code,
            run.stderr
        );
        ensure!(run.stderr.contains(sentence), "{arguments}: {}", run.stderr);
        ensure!(
            run.stderr.lines().count() == 1,
            "{arguments}: {}",
            run.stderr
        );
    }
    Ok(())
}

/// A program that waits a hundred times for two milliseconds, in several ways.
#[test]
fn the_slowest_calls_have_their_stacks() -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let program = program::c("waits", Build::NoFramePointers)?;
    let file = folder.path().join("file");
    let arguments = format!(
        "--slowest 3 --json -- {} {} straight",
        program.display(),
        file.display()
    );
    let run = Hotspan::verb("syscalls")?
        .args(&arguments)
        .run()?
        .succeeded()?;
    let report = report(&run)?;
    ensure!(
        report["lost"] == serde_json::json!({}),
        "{}",
        report["lost"]
    );
    let calls = report["slowest"].as_array().context("no slowest calls")?;
    let durations: Vec<_> = calls
        .iter()
        .map(|call| call["duration_ns"].as_u64())
        .collect();
    ensure!(durations.is_sorted_by(|a, b| a >= b), "{durations:?}");
    for (syscall, function) in [("clock_nanosleep", "sleeps"), ("poll", "polls")] {
        let of = |call: &&Value| call["syscall"] == syscall;
        let found: Vec<_> = calls.iter().filter(of).collect();
        ensure!(found.len() == 3, "{syscall}: {found:?}");
        for call in &found {
            let ns = call["duration_ns"].as_u64().unwrap_or(0);
            ensure!(ns >= 2_000_000 && call["process"] == "waits", "{call}");
        }
        // The slowest of all is among them, but for calls of the same bucket; others sleep in it, too.
        let max_ns = entry(&report, syscall)?["max_ns"].as_u64().unwrap_or(0);
        let slowest_ns = found[0]["duration_ns"].as_u64().unwrap_or(0);
        ensure!(
            slowest_ns as f64 > 0.75 * max_ns as f64,
            "{slowest_ns} of {max_ns}"
        );
        let is_from = |call: &&&Value| {
            let stack = call["stack"].as_array().into_iter().flatten();
            let names: Vec<_> = stack.filter_map(Value::as_str).collect();
            let chain = ["main", "repeat", function];
            names.first() == Some(&"_start") && names.windows(3).any(|three| three == chain)
        };
        let complete = found.iter().filter(is_from).count();
        ensure!(complete > 0 || syscall != "poll", "{syscall}: {found:?}");
        let has_stack = |call: &&Value| call["stack"].as_array().is_some_and(|s| s.len() > 2);
        ensure!(found.iter().all(has_stack), "{syscall}: {found:?}");
    }
    Ok(())
}
