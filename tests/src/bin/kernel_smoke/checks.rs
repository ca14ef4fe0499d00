//! The checks: each looks at values, not only at whether something loads.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hotspan_tests::place::{self, Cgroup, cgroup_hierarchy};
use hotspan_tests::recorder::{Finished, Hotspan, read_folded};
use hotspan_tests::stacks::{Stacks, is_like};
use hotspan_tests::workload::Workload;
use rustix::process::setpriority_process;
use serde::Deserialize;
use serde_json::Value;

use crate::report::Report;

/// Everything takes ten times as long in a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(100);

/// Fewer samples say nothing.
const LEAST_SAMPLES: u64 = 30;

/// How long is recorded, again and again, until all is as it should be: a busy host gives a machine
/// little time, and the first samples may come before there are tables for them.
const SECONDS: [u32; 5] = [1, 2, 4, 8, 16];

/// What is lost because a machine is emulated: its clock stands still while the host does something
/// else, and tables are so long in the making that there is no room for the stacks that wait for them.
const SLOWNESS: [&str; 2] = ["ticks_missed", "stack_snapshot_skipped"];

/// The niceness that yields most.
const LOWEST_PRIORITY: i32 = 19;

/// Part of the samples that must be as they should be. The rest is for what a program does before it
/// is ready, and for what comes before its tables.
const NEARLY_ALL: f64 = 0.95;

/// The same for a program that nobody has seen before: its tables are made while it runs.
const MOST: f64 = 0.5;

/// Each program of hotspan's with the instructions that the verifier looked at, the most of all
/// recordings: what is recorded shapes the programs. `None` where the kernel does not tell.
type Costs = BTreeMap<String, Option<u32>>;

type Check = fn(&mut Costs) -> Result<String>;

const CHECKS: &[(&str, Check)] = &[
    ("process", process),
    ("deep_recursion", deep_recursion),
    ("go", go),
    ("syscalls", syscalls),
    ("command", command),
    ("children", children),
    ("whole_host", whole_host),
    ("cgroup_v2", cgroup_v2),
    ("cgroup_v1", cgroup_v1),
    ("counted_syscalls", counted_syscalls),
    ("events", events),
];

/// Runs all of them.
pub fn run(report: &mut Report) {
    let verdict = doctor(report);
    report.check("doctor", &verdict);
    let mut costs = Costs::new();
    for (name, check) in CHECKS {
        report.check(name, &check(&mut costs));
    }
    programs(&costs, report);
}

/// A line for each program, and whether the kernel told what they cost.
fn programs(costs: &Costs, report: &mut Report) {
    for (name, verified_instructions) in costs {
        report.program(name, *verified_instructions);
    }
    let told = costs.values().flatten().count();
    if costs.is_empty() || (1..costs.len()).contains(&told) {
        let error = anyhow!("of {} programs {told} are told", costs.len());
        report.check("programs", &Err(error));
    } else if told == 0 {
        report.skip("programs", "the kernel does not tell what they cost");
    } else {
        report.check("programs", &Ok(format!("{told} programs")));
    }
}

/// What `hotspan doctor --json` says, as far as it is read here.
#[derive(Deserialize)]
struct Doctor {
    can_record: bool,
    checks: Vec<DoctorCheck>,
}

#[derive(Deserialize)]
struct DoctorCheck {
    id: String,
    status: String,
    value: String,
}

/// The doctor's verdict, and a line for each of its checks. A warning is about something that the
/// kernel lacks.
fn doctor(report: &mut Report) -> Result<String> {
    let hotspan = Hotspan::verb("doctor")?.args("--json");
    let run = hotspan.patience(PATIENCE).run()?;
    let doctor: Doctor = serde_json::from_str(&run.stdout)
        .with_context(|| format!("{:?}; {}", run.stdout, run.stderr))?;
    for DoctorCheck { id, status, value } in doctor.checks {
        let name = format!("doctor.{id}");
        match status.as_str() {
            "ok" => report.check(&name, &Ok(value)),
            "warn" => report.skip(&name, &value),
            _ => report.check(&name, &Err(anyhow!(value))),
        }
    }
    ensure!(doctor.can_record, "it says that recording does not work");
    Ok("it says that recording works".to_owned())
}

fn workload(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("HOTSPAN_WORKLOADS").context("HOTSPAN_WORKLOADS is not set")?;
    Ok(PathBuf::from(folder).join(name))
}

/// Starts a workload. It works all the time, but leaves the only CPU to whoever else wants it:
/// hotspan would take twice as long to start.
fn start(name: &str) -> Result<Workload> {
    // So that all its threads have it.
    setpriority_process(None, LOWEST_PRIORITY)?;
    let workload = Workload::start_command(&mut Command::new(workload(name)?));
    setpriority_process(None, 0)?;
    workload
}

/// Records once and returns the run and its stacks, none if nobody had time to run. What follows ` -- ` in `arguments` is a command.
fn record(arguments: &str, costs: &mut Costs) -> Result<(Finished, Stacks)> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let run = Hotspan::record()?
        .args("-vv -F 199 --json")
        .output(&file)
        .args(arguments)
        .patience(PATIENCE)
        .run()?;
    if run.stderr.contains("no sample was taken") {
        return Ok((run, Stacks::default()));
    }
    let run = run.succeeded()?;
    note_costs(&run.stderr, costs)?;
    let mut lost = run.summary()?.samples.lost;
    lost.retain(|reason, _| !SLOWNESS.contains(&reason.as_str()));
    ensure!(lost.is_empty(), "samples were lost: {lost:?}");
    Ok((run, read_folded(&file)?))
}

/// Reads hotspan's log: `… program="sample" verified_instructions=41210`.
fn note_costs(log: &str, costs: &mut Costs) -> Result<()> {
    for (_, fact) in log.lines().filter_map(|line| line.split_once("program=\"")) {
        let name = fact.split('"').next().unwrap_or_default();
        let count = fact.split_once("verified_instructions=");
        let count = count.and_then(|(_, rest)| rest.trim().parse().ok());
        let most = costs.entry(name.to_owned()).or_default();
        *most = count.max(*most);
    }
    ensure!(!costs.is_empty(), "hotspan tells of no program: {log}");
    Ok(())
}

/// Records longer and longer, until a check of the stacks passes; and at last what it says.
fn record_until(
    arguments: impl Fn(u32) -> String,
    costs: &mut Costs,
    check: impl Fn(&Stacks) -> Result<String>,
) -> Result<String> {
    let mut verdict = Ok(String::new());
    for seconds in SECONDS {
        let (_, stacks) = record(&arguments(seconds), costs)?;
        verdict = check(&stacks);
        if verdict.is_ok() {
            break;
        }
    }
    verdict
}

/// Arguments to record a workload.
fn of_pid(workload: &Workload, more: &str) -> impl Fn(u32) -> String {
    move |seconds| format!("-d {seconds}s -p {} {more}", workload.pid())
}

/// Checks that there are enough of these, and that this part of them starts with the program's first
/// function and has one of these chains. Returns how many.
fn check_chains(stacks: &Stacks, part: f64, chains: &[&[&str]]) -> Result<String> {
    let rooted = stacks.filter(|stack| stack.get(1).is_some_and(|root| is_like(root, "_start")));
    let complete: u64 = chains.iter().map(|chain| rooted.with_chain(chain)).sum();
    let all = stacks.total();
    ensure!(
        all >= LEAST_SAMPLES && complete as f64 >= part * all as f64,
        "of {all} samples {complete} are complete, {} rooted: {}",
        rooted.total(),
        stacks.commonest()
    );
    Ok(format!("{complete} of {all} samples complete"))
}

const SHARES: [&[&str]; 2] = [
    &["main", "run", "heavy_caller", "heavy"],
    &["main", "run", "light_caller", "light"],
];

fn is_shares(stack: &[String]) -> bool {
    stack[0] == "shares"
}

fn has(stack: &[String], function: &str) -> bool {
    stack.iter().any(|element| is_like(element, function))
}

fn check_only(stacks: &Stacks, passes: impl Fn(&[String]) -> bool) -> Result<()> {
    let others = stacks.filter(|stack| !passes(stack));
    ensure!(
        others.total() == 0,
        "others were recorded: {}",
        others.commonest()
    );
    Ok(())
}

/// A program without frame pointers: whole stacks, and nobody else's.
fn process(costs: &mut Costs) -> Result<String> {
    let workload = start("shares")?;
    record_until(of_pid(&workload, ""), costs, |stacks| {
        check_only(stacks, is_shares)?;
        check_chains(stacks, NEARLY_ALL, &SHARES)
    })
}

/// 400 frames of the same function.
fn deep_recursion(costs: &mut Costs) -> Result<String> {
    let mut chain = vec!["main"];
    chain.extend(["descend"; 400]);
    chain.push("at_the_bottom");
    let workload = start("recursion")?;
    record_until(of_pid(&workload, ""), costs, |stacks| {
        check_chains(stacks, NEARLY_ALL, &[&chain])
    })
}

/// Goroutines, of which one's stack grows again and again: by a function that is on the stack of its thread.
fn go(costs: &mut Costs) -> Result<String> {
    const ROOTS: [&str; 4] = [
        "runtime.goexit…",
        "runtime.mstart…",
        "runtime.clone…",
        "_rt0_…",
    ];
    let workload = start("goroutines")?;
    record_until(of_pid(&workload, ""), costs, |stacks| {
        let all = stacks.total();
        let rooted = stacks.filter(|stack| ROOTS.iter().any(|root| is_like(&stack[1], root)));
        ensure!(
            all >= LEAST_SAMPLES && rooted.total() as f64 >= NEARLY_ALL * all as f64,
            "of {all} samples {} are rooted: {}",
            rooted.total(),
            stacks.commonest()
        );
        for chain in [
            ["main.computing", "main.compute", "main.leaf"],
            ["main.growing.func…", "main.grow", "main.grow"],
            ["runtime.mstart…", "runtime.morestack…", "runtime.newstack…"],
        ] {
            ensure!(
                rooted.with_chain(&chain) > 0,
                "never seen: {chain:?}: {}",
                rooted.commonest()
            );
        }
        Ok(format!("{} of {all} samples rooted", rooted.total()))
    })
}

/// Samples that hit the kernel: its frames, and below them those of the program, which begin at the
/// registers that the kernel saved.
fn syscalls(costs: &mut Costs) -> Result<String> {
    let is_kernel = |element: &String| element.ends_with("_[k]");
    let workload = start("syscalls")?;
    record_until(of_pid(&workload, ""), costs, |stacks| {
        let reads = stacks.filter(|stack| has(stack, "read_zeros") && stack.iter().any(is_kernel));
        let count = |stack: &Vec<String>| stack.iter().filter(|element| is_kernel(element)).count();
        let deepest = reads.0.keys().map(count).max();
        ensure!(
            deepest > Some(2),
            "kernel stacks are short: {}",
            stacks.commonest()
        );
        check_chains(&reads, NEARLY_ALL, &[&["main", "read_zeros"]])
    })
}

/// A command that hotspan starts.
fn command(costs: &mut Costs) -> Result<String> {
    let program = workload("shares")?;
    let arguments = |seconds| format!("-- {} {seconds}", program.display());
    record_until(arguments, costs, |stacks| {
        check_only(stacks, is_shares)?;
        // Before that it is loaded, and measures its speed.
        let work = stacks.filter(|stack| has(stack, "run"));
        check_chains(&work, MOST, &SHARES)
    })
}

/// Processes that start and end while they are recorded.
fn children(costs: &mut Costs) -> Result<String> {
    let workload = start("short_lived")?;
    record_until(of_pid(&workload, "--children"), costs, |stacks| {
        let work = stacks.filter(|stack| has(stack, "brief_work"));
        check_chains(&work, NEARLY_ALL, &[&["main", "brief", "brief_work"]])
    })
}

/// Everything, but not the idle time.
fn whole_host(costs: &mut Costs) -> Result<String> {
    let _other = start("syscalls")?;
    let _workload = start("shares")?;
    record_until(
        |seconds| format!("-d {seconds}s -a"),
        costs,
        |stacks| {
            ensure!(
                stacks.of_process("syscalls").total() > 0,
                "nobody else ran: {}",
                stacks.commonest()
            );
            check_only(stacks, |stack| !stack[0].starts_with("swapper"))?;
            check_chains(&stacks.filter(is_shares), NEARLY_ALL, &SHARES)
        },
    )
}

fn cgroup_v2(costs: &mut Costs) -> Result<String> {
    cgroup(&cgroup_hierarchy("cgroup2", &[])?, costs)
}

fn cgroup_v1(costs: &mut Costs) -> Result<String> {
    cgroup(&cgroup_hierarchy("cgroup", &["cpu", "cpuacct"])?, costs)
}

/// One process in a cgroup below the recorded one, and another outside.
fn cgroup(hierarchy: &Path, costs: &mut Costs) -> Result<String> {
    let outer = Cgroup::new(hierarchy)?;
    let inner = Cgroup::new(outer.path())?;
    let _outside = start("syscalls")?;
    let inside = start("shares")?;
    inner.take_in(inside.pid())?;
    let arguments = |seconds| format!("-d {seconds}s --cgroup {}", outer.path().display());
    record_until(arguments, costs, |stacks| {
        check_only(stacks, is_shares)?;
        check_chains(stacks, NEARLY_ALL, &SHARES)
    })
}

/// What a command calls, counted in the kernel. How often it reads depends on the machine, how often it is
/// started does not.
fn counted_syscalls(costs: &mut Costs) -> Result<String> {
    let program = workload("syscalls")?;
    let run = Hotspan::verb("syscalls")?
        .args(&format!("-v --slowest 1 --json -- {} 1", program.display()))
        .patience(PATIENCE)
        .run()?
        .succeeded()?;
    note_costs(&run.stderr, costs)?;
    let report: Value = serde_json::from_str(&run.stdout)?;
    let syscalls = report["syscalls"].as_array().context("no system calls")?;
    let calls = |name: &str| {
        let found = syscalls.iter().find(|one| one["name"] == name);
        found.map_or(0, |one| one["calls"].as_u64().unwrap_or(0))
    };
    let slowest = report["slowest"].as_array().context("no slowest calls")?;
    let is_read = |call: &&Value| call["syscall"] == "read";
    let read = slowest.iter().find(is_read).context("no slow read")?;
    let stack = read["stack"].as_array().into_iter().flatten();
    let from_main = stack
        .filter_map(Value::as_str)
        .any(|name| is_like(name, "main"));
    ensure!(from_main, "{read}");
    let all: u64 = syscalls
        .iter()
        .filter_map(|one| one["calls"].as_u64())
        .sum();
    ensure!(
        calls("execve") == 1 && calls("read") > 5 && report["lost"]["syscall_rows_full"].is_null(),
        "{report}"
    );
    Ok(format!("{all} calls"))
}

/// What happens to resources: two programs share the only CPU, one of them in a cgroup, and a third reads a file.
fn events(costs: &mut Costs) -> Result<String> {
    let _workloads = [start("shares")?, start("shares")?];
    let run = Hotspan::verb("use")?
        .args("-v --json --interval 3s")
        .patience(PATIENCE)
        .run()?
        .succeeded()?;
    note_costs(&run.stderr, costs)?;
    ensure!(
        !run.stderr.contains("not counted"),
        "something is missing: {}",
        run.stderr
    );
    let report: Value = serde_json::from_str(&run.stdout)?;
    let checks = report["resources"].as_array().context("no resources")?;
    let find = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.with_context(|| format!("no {name}"))
    };
    // Both have the lowest priority, and take turns of some milliseconds.
    let p99 = find("run-queue")?["latency"]["p99"].as_f64().unwrap_or(0.0);
    ensure!(p99 > 1e-4, "{}", find("run-queue")?);
    let softirq = find("softirq")?;
    let used = softirq["utilization"]["value"].as_f64().unwrap_or(0.0);
    ensure!(used > 0.0, "{softirq}");
    Ok(format!("waits of {:.1} ms", p99 * 1e3))
}
