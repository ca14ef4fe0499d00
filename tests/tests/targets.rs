//! What is recorded: processes, their children, cgroups, commands, the whole host; and what is not.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place::{self, Cgroup, cgroup_hierarchy};
use hotspan_tests::process;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Finished, Hotspan, Threads, read_folded};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::{Report, Workload};
use rustix::process::Signal;

/// Records with `arguments` and returns the run and its folded stacks.
fn record(arguments: &str) -> Result<(Finished, Stacks)> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let run = Hotspan::record()?
        .args("--json")
        .output(&file)
        .args(arguments)
        .run()?
        .succeeded()?;
    Ok((run, read_folded(&file)?))
}

fn shares() -> Result<PathBuf> {
    program::c("shares", Build::FramePointers)
}

fn threads() -> Result<PathBuf> {
    program::c("threads", Build::FramePointers)
}

/// What a script runs in the background ignores Ctrl-C, and so do programs that it starts.
#[test]
fn a_command_ignores_what_its_caller_ignores() -> Result<()> {
    for (trap, code) in [("trap '' INT TERM", 7), (":", 128 + 15)] {
        let script = format!("{trap}; exec \"$@\"");
        let [env, signals] = UNSHIELDED;
        let prefix = [env, signals, "sh", "-c", &script, "sh"].map(OsStr::new);
        let folder = place::folder()?;
        let command = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done; kill -TERM $$; kill -INT $$; exit 7";
        let run = Hotspan::under(&prefix, "record")?
            .output(folder.path().join("out.folded"))
            .args("-- sh -c")
            .arg(command)
            .run()?;
        ensure!(
            run.code == Some(code),
            "{trap}: {:?}: {}",
            run.code,
            run.stderr
        );
    }
    Ok(())
}

#[test]
fn several_processes_and_no_other() -> Result<()> {
    let [one, two, other] = [shares()?, program::rust("names")?, program::cpp("names")?]
        .map(|program| Workload::start_command(&mut Command::new(program)));
    let (one, two, other) = (one?, two?, other?);
    let (run, stacks) = record(&format!("-p {} --pid {} -d 3s", one.pid(), two.pid()))?;
    run.summary()?.check_complete(Threads::Anywhere(2))?;
    let of = |name| stacks.of_process(name).total();
    ensure!(
        of("shares") > 0 && of("names_rust") > 0,
        "{}",
        stacks.commonest()
    );
    ensure!(
        of("shares") + of("names_rust") == stacks.total(),
        "{}",
        stacks.commonest()
    );
    other.stop().map(drop)
}

#[test]
fn the_whole_host_without_its_idle_time() -> Result<()> {
    let workload = Workload::start(&shares()?)?;
    let before = process::cpu_time(workload.pid())?;
    let (run, stacks) = record("-a --per-thread -d 3s")?;
    let used = process::cpu_time(workload.pid())? - before;
    let summary = run.summary()?;
    let tower = format!("shares/{}", workload.pid());
    let own = stacks.filter(|stack| stack[1] == tower);
    ensure!(
        own.total() < summary.samples.kept,
        "nobody else ran: {}",
        stacks.commonest()
    );
    // The clock is read before and after hotspan has started and written.
    let most = used.as_secs_f64() * 99.0;
    let least = 0.5 * most;
    let found = own.total() as f64;
    let slack = 5.0 + 99.0 * summary.stolen.as_secs_f64();
    ensure!(
        found >= least && found <= 1.1 * most + slack,
        "{found} samples in {used:?}"
    );
    let chained = own.with_chain(&["main", "run", "heavy_caller", "heavy"]) as f64;
    ensure!(chained > 0.5 * found, "{}", own.commonest());
    let idle = stacks.filter(|stack| stack[0].starts_with("swapper"));
    ensure!(
        idle.total() == 0,
        "idle time was sampled: {}",
        idle.commonest()
    );
    Ok(())
}

#[test]
fn children_only_when_asked_for() -> Result<()> {
    let program = program::c("short_lived", Build::FramePointers)?;
    let workload = Workload::start_command(&mut Command::new(program))?;
    let (run, stacks) = record(&format!("-p {} --children -d 4s", workload.pid()))?;
    let summary = run.summary()?;
    summary.check_complete(Threads::Anywhere(1))?;
    summary.check_rooted_and_named()?;
    // The parent only waits, and a child is in brief_work for nearly all its life.
    let whole = stacks.with_chain(&["main", "brief", "brief_work"]) as f64;
    ensure!(
        whole > 0.9 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );

    let run = Hotspan::record()?
        .args(&format!("-p {} -d 1s -o -", workload.pid()))
        .run()?;
    let stacks = Stacks::parse_folded(&run.stdout)?;
    ensure!(
        stacks.with("brief_work") == 0,
        "children were recorded: {}",
        stacks.commonest()
    );
    workload.stop().map(drop)
}

fn check_cgroup(hierarchy: &Path) -> Result<()> {
    let outer = Cgroup::new(hierarchy)?;
    let inner = Cgroup::new(outer.path())?;
    // In this order, so that the workloads are gone before their cgroups.
    let [inside, below, outside] = [shares()?, program::rust("names")?, program::cpp("names")?]
        .map(|program| Workload::start_command(&mut Command::new(program)));
    let (inside, below, _outside) = (inside?, below?, outside?);
    outer.take_in(inside.pid())?;
    inner.take_in(below.pid())?;
    let (run, stacks) = record(&format!("--cgroup {} -d 3s", outer.path().display()))?;
    run.summary()?.check_complete(Threads::Anywhere(2))?;
    let of = |name| stacks.of_process(name).total();
    ensure!(
        of("shares") > 0 && of("names_rust") > 0,
        "{}",
        stacks.commonest()
    );
    ensure!(
        of("shares") + of("names_rust") == stacks.total(),
        "{}",
        stacks.commonest()
    );
    let whole = stacks.with_chain(&["main", "run", "heavy_caller", "heavy"]);
    ensure!(whole > 0, "{}", stacks.commonest());

    // A path inside the hierarchy means the same.
    let name = inner.path().strip_prefix(hierarchy)?.display().to_string();
    let (_, stacks) = record(&format!("--cgroup /{name} -d 1s"))?;
    ensure!(
        stacks.total() > 0 && stacks.total() == stacks.of_process("names_rust").total(),
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn cgroup_of_version_one() -> Result<()> {
    check_cgroup(&cgroup_hierarchy("cgroup", &["cpuacct", "cpu"])?)
}

#[test]
fn cgroup_of_version_two() -> Result<()> {
    check_cgroup(&cgroup_hierarchy("cgroup2", &[])?)
}

#[test]
fn each_thread_has_a_tower_of_its_own() -> Result<()> {
    let workload = Workload::start_command(&mut Command::new(threads()?))?;
    let (_, stacks) = record(&format!("-p {} --per-thread -d 3s", workload.pid()))?;
    let mut found = 0;
    for task in fs::read_dir(format!("/proc/{}/task", workload.pid()))? {
        let task = task?.path();
        let name = fs::read_to_string(task.join("comm"))?;
        let tid = task.file_name().and_then(OsStr::to_str).context("no tid")?;
        let tower = format!("{}/{tid}", name.trim());
        let own = stacks.filter(|stack| stack[1] == tower);
        let expected = match name.trim() {
            "alpha" => "spin_alpha",
            "beta" => "spin_beta",
            _ => continue,
        };
        ensure!(
            own.total() > 0,
            "{tower} has no samples: {}",
            stacks.commonest()
        );
        ensure!(
            own.share(expected)? > 0.95,
            "{tower} has {}",
            own.commonest()
        );
        found += 1;
    }
    ensure!(found == 2, "the workload has other threads");
    ensure!(
        stacks.total() == stacks.of_process("threads").total(),
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn a_name_selects_processes_and_threads() -> Result<()> {
    let workload = Workload::start_command(&mut Command::new(threads()?))?;
    let other = Workload::start_command(&mut Command::new(shares()?))?;
    let (_, stacks) = record(&format!("-p {} --comm ^alpha$ -d 2s", workload.pid()))?;
    ensure!(stacks.share("spin_alpha")? > 0.95, "{}", stacks.commonest());
    ensure!(stacks.with("spin_beta") == 0, "{}", stacks.commonest());
    let (_, stacks) = record("-a --comm shares -d 2s")?;
    ensure!(
        stacks.total() > 0 && stacks.total() == stacks.of_process("shares").total(),
        "{}",
        stacks.commonest()
    );
    other.stop().map(drop)
}

#[test]
fn kernel_frames_can_be_left_out() -> Result<()> {
    let workload = Workload::start(&program::c("syscalls", Build::FramePointers)?)?;
    let (run, stacks) = record(&format!("-p {} --no-kernel -d 2s", workload.pid()))?;
    run.summary()?.check_complete(Threads::OnOneCpu)?;
    let kernel = stacks.filter(|stack| stack.iter().any(|element| element.ends_with("_[k]")));
    ensure!(kernel.total() == 0, "{}", kernel.commonest());
    // The time stays where it was, with the function that called the kernel.
    let own = stacks.filter(|stack| stack.last().is_some_and(|leaf| leaf == "read_zeros"));
    ensure!(
        own.total() as f64 > 0.75 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

/// Records a command in a folder of its own; returns the run and the stacks.
fn record_command(arguments: &str, command: &[&OsStr]) -> Result<(Finished, Stacks)> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let mut hotspan = Hotspan::record()?.args(arguments).output(&file).arg("--");
    for word in command {
        hotspan = hotspan.arg(word);
    }
    let run = hotspan.run()?;
    let stacks = read_folded(&file).with_context(|| run.stderr.clone())?;
    Ok((run, stacks))
}

#[test]
fn a_command_is_recorded_from_its_first_instruction() -> Result<()> {
    let program = program::c("short_lived", Build::FramePointers)?;
    let command = [program.as_os_str(), "child".as_ref()];
    let (run, stacks) = record_command("-F 999 --json", &command)?;
    let summary = run.succeeded()?.summary()?;
    summary.check_complete(Threads::Anywhere(1))?;
    // It works for 100 ms and ends. The loader's part comes on top.
    let work = stacks.with_chain(&["main", "brief", "brief_work"]) as f64;
    let most = 105.0 + 999.0 * summary.stolen.as_secs_f64();
    ensure!(
        work >= 95.0 && work <= most,
        "{work} samples of 100 to {most}: {}",
        stacks.commonest()
    );
    ensure!(
        stacks.total() == stacks.of_process("short_lived").total(),
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn a_command_keeps_its_output_and_its_exit_code() -> Result<()> {
    let program = shares()?;
    let script = "echo to-stderr >&2; \"$0\" 0.7; exit 7";
    let command = ["sh", "-c", script].map(OsStr::new);
    let command = [&command[..], &[program.as_os_str()]].concat();
    let (run, stacks) = record_command("-F 999", &command)?;
    ensure!(
        run.code == Some(7),
        "exit code {:?}: {}",
        run.code,
        run.stderr
    );
    Report::parse(&run.stdout)?;
    ensure!(run.stdout.starts_with("ready\n"), "{:?}", run.stdout);
    ensure!(run.stderr.contains("to-stderr\n"), "{:?}", run.stderr);
    // The shell forks, so what works is a child of the command.
    let own = stacks.of_process("shares");
    let whole = own.with_chain(&["main", "run", "heavy_caller", "heavy"]);
    ensure!(whole > 0, "{}", stacks.commonest());

    let (run, _) = record_command("--json", &command)?;
    ensure!(
        run.code == Some(7),
        "exit code {:?}: {}",
        run.code,
        run.stderr
    );
    ensure!(run.summary()?.samples.kept > 0, "{}", run.stdout);
    ensure!(
        run.stderr.contains("ready\n") && run.stderr.contains("cpu_ns"),
        "{}",
        run.stderr
    );
    Ok(())
}

#[test]
fn a_command_that_a_signal_ends_has_a_shells_exit_code() -> Result<()> {
    let program = shares()?;
    let script = "\"$0\" 0.5 >/dev/null; kill -KILL $$";
    let command = ["sh", "-c", script].map(OsStr::new);
    let (run, _) = record_command("", &[&command[..], &[program.as_os_str()]].concat())?;
    ensure!(
        run.code == Some(137),
        "exit code {:?}: {}",
        run.code,
        run.stderr
    );
    Ok(())
}

#[test]
fn a_command_outlives_the_duration() -> Result<()> {
    let program = shares()?;
    let command = [program.as_os_str(), "2".as_ref()];
    let (run, _) = record_command("-d 500ms --json", &command)?;
    let run = run.succeeded()?;
    let duration = run.summary()?.duration_s;
    ensure!((0.4..1.5).contains(&duration), "recorded for {duration} s");
    ensure!(
        run.took > Duration::from_millis(1900),
        "it was over after {:?}",
        run.took
    );
    ensure!(
        run.stderr.contains("cpu_ns"),
        "the command was cut off: {}",
        run.stderr
    );
    Ok(())
}

/// Ends by signals, whoever started the tests: a script has what it runs in the background ignore Ctrl-C.
const UNSHIELDED: [&str; 2] = ["env", "--default-signal=INT,TERM"];

/// Starts a recording without end, signals it, and returns the run and the stacks.
fn interrupt(
    arguments: &[&OsStr],
    pid: Option<u32>,
    send: impl Fn(&hotspan_tests::recorder::Running) -> Result<()>,
) -> Result<(Finished, Stacks)> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let mut hotspan = Hotspan::under(&UNSHIELDED.map(OsStr::new), "record")?.output(&file);
    for argument in arguments {
        hotspan = hotspan.arg(argument);
    }
    let mut running = hotspan.start()?;
    running.wait_for_capture()?;
    let pid = match pid {
        Some(pid) => pid,
        None => process::wait_for("the command", Duration::from_secs(10), || {
            Ok(process::children(running.pid())?.first().copied())
        })?,
    };
    let goal = process::cpu_time(pid)? + Duration::from_millis(500);
    process::wait_for("work", Duration::from_secs(20), || {
        Ok((process::cpu_time(pid)? > goal).then_some(()))
    })?;
    send(&running)?;
    let run = running.finish()?;
    let stacks = read_folded(&file).with_context(|| run.stderr.clone())?;
    Ok((run, stacks))
}

#[test]
fn ctrl_c_and_sigterm_write_what_was_captured() -> Result<()> {
    let workload = Workload::start(&shares()?)?;
    let pid = workload.pid();
    for signal in [Signal::INT, Signal::TERM] {
        let text = pid.to_string();
        let arguments = ["-p", &text].map(OsStr::new);
        let (run, stacks) = interrupt(&arguments, Some(pid), |running| running.signal(signal))?;
        run.succeeded().with_context(|| format!("{signal:?}"))?;
        ensure!(
            stacks.total() >= 20,
            "{signal:?}: {} samples",
            stacks.total()
        );
    }
    Ok(())
}

/// A terminal and a wrapper that passes signals on may send one each.
#[test]
fn ctrl_c_that_comes_twice_at_once_writes_what_was_captured() -> Result<()> {
    let workload = Workload::start(&shares()?)?;
    let pid = workload.pid();
    let text = pid.to_string();
    let arguments = ["-F", "999", "-p", &text].map(OsStr::new);
    let (run, stacks) = interrupt(&arguments, Some(pid), |running| {
        running.signal(Signal::INT)?;
        thread::sleep(Duration::from_millis(10));
        running.signal(Signal::INT)
    })?;
    run.succeeded()?;
    let kept = stacks.with("main");
    ensure!(kept > 100, "{kept} samples");
    Ok(())
}

#[test]
fn ctrl_c_ends_a_command_and_keeps_its_profile() -> Result<()> {
    let program = shares()?;
    let command = ["--".as_ref(), program.as_os_str()];
    let (run, stacks) = interrupt(&command, None, |running| running.signal_group(Signal::INT))?;
    ensure!(
        run.code == Some(130),
        "exit code {:?}: {}",
        run.code,
        run.stderr
    );
    ensure!(stacks.total() >= 20, "{} samples", stacks.total());
    Ok(())
}

#[test]
fn the_end_of_all_targets_ends_the_recording() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let mut command = Command::new(shares()?);
    let workload = Workload::start_command(command.arg("2"))?;
    let run = Hotspan::record()?
        .args(&format!("-p {} -d 50s", workload.pid()))
        .output(&file)
        .patience(Duration::from_secs(20))
        .run()?
        .succeeded()?;
    ensure!(run.took < Duration::from_secs(15), "it took {:?}", run.took);
    let stacks = read_folded(&file)?;
    ensure!(
        stacks.with_chain(&["run", "heavy_caller", "heavy"]) > 0,
        "{}",
        stacks.commonest()
    );
    Ok(())
}
