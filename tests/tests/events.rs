//! What the kernel side counts of resources, against what the kernel says itself: waits in run queues to the
//! nanosecond, softirqs and requests to disks to the last one, and who was it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place::{self, Cgroup, LoopDisk, cgroup_hierarchy};
use hotspan_tests::process::{self, Guard, wait_for};
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Hotspan, Running};
use hotspan_tests::scrape;
use hotspan_tests::workload::{Workload, on_one_cpu};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);

/// An agent that counts events, and nothing that adds to them.
struct Agent {
    running: Running,
    port: u16,
}

/// Series of a page, by name and those labels that are not the scope's.
type Page = BTreeMap<String, f64>;

impl Agent {
    fn start() -> Result<Self> {
        let port = place::free_port()?;
        let running = Hotspan::verb("agent")?
            .args(&format!(
                "--prometheus 127.0.0.1:{port} --profiles false --syscalls false"
            ))
            .start()?;
        wait_for("the agent", PATIENCE, || {
            Ok(scrape::get(port, "/healthz", "").ok())
        })?;
        Ok(Self { running, port })
    }

    fn page(&self) -> Result<Page> {
        let samples = scrape::samples(&scrape::get(self.port, "/metrics", "")?)?;
        let without_scope = samples.into_iter().map(|(series, value)| {
            let (name, labels) = series.split_once('{').unwrap_or((&series, ""));
            let labels = labels.trim_end_matches('}').split(',');
            let own: Vec<_> = labels
                .filter(|label| !label.starts_with("otel_scope"))
                .collect();
            (format!("{name}{{{}}}", own.join(",")), value)
        });
        Ok(without_scope.collect())
    }

    fn end(self) -> Result<()> {
        let page = self.page()?;
        // A kernel may hide interrupts that come over threads which it protects, ends of requests among them.
        let lost: Vec<_> = page
            .iter()
            .filter(|(series, _)| series.starts_with("hotspan_event_lost"))
            .filter(|(series, _)| !series.contains("disk_ends_missed"))
            .collect();
        ensure!(lost.is_empty(), "events were lost: {lost:?}");
        self.running.signal(Signal::TERM)?;
        self.running.finish()?.succeeded()?;
        Ok(())
    }
}

/// By how much a series grew.
fn growth(before: &Page, now: &Page, series: &str) -> f64 {
    let of = |page: &Page| page.get(series).copied().unwrap_or(0.0);
    of(now) - of(before)
}

/// Nanoseconds that all threads of a process waited in run queues, and how often they got a CPU.
fn waits_of(pid: u32) -> Result<(u64, u64)> {
    let mut all = (0_u64, 0_u64);
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let mut numbers = text.split_whitespace().map(str::parse::<u64>);
        all.0 += numbers.nth(1).context("no wait")??;
        all.1 += numbers.next().context("no count")??;
    }
    Ok(all)
}

/// Whether all threads of a process are stopped.
fn is_stopped(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (_, rest) = stat.rsplit_once(") ").context("no state")?;
        if !rest.starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

fn wait_until_stopped(pid: u32) -> Result<()> {
    wait_for("a process to stop", PATIENCE, || {
        Ok(is_stopped(pid)?.then_some(()))
    })
}

fn cgroup_in(kind: &str, controller: &[&str]) -> Result<Cgroup> {
    Cgroup::new(&cgroup_hierarchy(kind, controller)?)
}

/// Where CPU time is accounted for.
fn cpu_cgroup() -> Result<Cgroup> {
    cgroup_in("cgroup", &["cpu"]).or_else(|_| cgroup_in("cgroup2", &[]))
}

fn path_of(cgroup: &Cgroup) -> String {
    let name = cgroup.path().file_name().unwrap_or_default();
    format!("/{}", name.to_string_lossy())
}

/// Threads that share one CPU, others that move between all; the kernel's own account is the judge.
#[test]
fn waits_in_run_queues_are_the_kernels_to_the_nanosecond() -> Result<()> {
    let cgroup = cpu_cgroup()?;
    let program = program::c("threads", Build::NoFramePointers)?;
    let anywhere = || Workload::start_command(&mut Command::new(&program));
    let workloads = [Workload::start(&program)?, anywhere()?, anywhere()?];
    let pids = workloads.each_ref().map(Workload::pid);
    for pid in pids {
        cgroup.take_in(pid)?;
    }
    let agent = Agent::start()?;
    let freeze = || -> Result<(u64, u64)> {
        for pid in pids {
            process::send(pid, Signal::STOP)?;
        }
        let mut all = (0, 0);
        for pid in pids {
            wait_until_stopped(pid)?;
        }
        // One may still be on its way off its CPU.
        thread::sleep(Duration::from_millis(100));
        for pid in pids {
            let (ns, count) = waits_of(pid)?;
            all = (all.0 + ns, all.1 + count);
        }
        Ok(all)
    };
    let (ns_before, count_before) = freeze()?;
    let before = agent.page()?;
    for pid in pids {
        process::send(pid, Signal::CONT)?;
    }
    thread::sleep(Duration::from_secs(2));
    let (ns, count) = freeze()?;
    let now = agent.page()?;
    let of = |part: &str| {
        let path = path_of(&cgroup);
        format!("hotspan_cpu_run_queue_duration_seconds_{part}{{hotspan_cgroup_path=\"{path}\"}}")
    };
    let found = growth(&before, &now, &of("sum"));
    let expected = (ns - ns_before) as f64 / 1e9;
    ensure!(expected > 1.0, "nobody waited: {expected} s");
    ensure!(
        (found - expected).abs() < 1e-6,
        "waited {found} s, and {expected} s by the kernel"
    );
    let found = growth(&before, &now, &of("count"));
    let expected = (count - count_before) as f64;
    // When the machine is busy, the kernel counts a few that its tracepoint does not tell either.
    ensure!(
        found <= expected && found >= 0.97 * expected,
        "{found} waits, and {expected} by the kernel"
    );
    for pid in pids {
        process::send(pid, Signal::CONT)?;
    }
    drop(workloads);
    agent.end()
}

/// A program that waits a hundred times for each reason.
#[test]
fn time_off_cpu_has_its_reason() -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let cgroup = cpu_cgroup()?;
    let program = program::c("waits", Build::NoFramePointers)?;
    let workload =
        Workload::start_command(on_one_cpu().arg(&program).arg(folder.path().join("file")))?;
    let pid = workload.pid();
    wait_until_stopped(pid)?;
    cgroup.take_in(pid)?;
    let agent = Agent::start()?;
    let before = agent.page()?;
    process::send(pid, Signal::CONT)?;
    let said = workload.lines_until("done")?;
    wait_until_stopped(pid)?;
    let now = agent.page()?;
    let path = path_of(&cgroup);
    for line in said.iter().filter(|line| *line != "done") {
        let (reason, times) = line.split_once(' ').context("no count")?;
        let times: f64 = times.parse()?;
        let of = |part: &str| {
            let series = format!(
                "hotspan_cpu_off_duration_seconds_{part}{{hotspan_cgroup_path=\"{path}\",\
                 hotspan_cpu_off_reason=\"{reason}\"}}"
            );
            growth(&before, &now, &series)
        };
        let (count, sum) = (of("count"), of("sum"));
        // The writer of the pipe and the children sleep, too; a disk that answers at once is not waited for.
        let most = if reason == "sleep" { 3.2 } else { 1.2 };
        let least = if reason == "disk" { 0.5 } else { 0.95 };
        ensure!(
            count >= least * times && count <= most * times + 5.0,
            "{reason}: {count} of {times}"
        );
        ensure!(
            reason == "disk" || sum >= 0.0015 * times,
            "{reason}: {count} times, {sum} s"
        );
    }
    drop(workload);
    agent.end()
}

/// Reads, writes and flushes of a disk since the start, by the kernel.
fn disk_operations(name: &str) -> Result<[f64; 3]> {
    let text = fs::read_to_string("/proc/diskstats")?;
    let line = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&name))
        .with_context(|| format!("no disk {name}"))?;
    let number = |at: usize| -> Result<f64> { Ok(line.get(at).unwrap_or(&"0").parse()?) };
    Ok([number(3)?, number(7)?, number(18)?])
}

#[test]
fn requests_to_disks_are_those_of_diskstats() -> Result<()> {
    // One of its own: nobody else uses it, and no interrupt of hardware ends its requests.
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let disk = LoopDisk::new(&folder.path().join("image"), 4 << 20)?;
    let agent = Agent::start()?;
    let (before, first) = (agent.page()?, disk_operations(disk.name())?);
    let path = disk.path().display();
    for arguments in [
        format!("if=/dev/zero of={path} oflag=direct"),
        format!("if={path} of=/dev/null iflag=direct"),
    ] {
        let arguments = arguments.split(' ').chain(["bs=4k", "count=300"]);
        process::output(Command::new("dd").args(arguments))?;
    }
    File::open(disk.path())?.sync_all()?;
    let (now, last) = (agent.page()?, disk_operations(disk.name())?);
    let [reads, writes, flushes] = [0, 1, 2].map(|at| last[at] - first[at]);
    // A flush comes as an empty write, which the kernel counts, too, and no disk sees.
    let by_kernel = [
        ("read", reads),
        ("write", writes - flushes),
        ("flush", flushes),
    ];
    for (operation, expected) in by_kernel {
        let counted: f64 = now
            .keys()
            .filter(|series| {
                series.starts_with("hotspan_disk_operation_duration_seconds_count")
                    && series.contains(&format!("operation=\"{operation}\""))
                    && series.contains(&format!("system_device=\"{}\"", disk.name()))
            })
            .map(|series| growth(&before, &now, series))
            .sum();
        ensure!(
            counted == expected,
            "{operation}: {expected} by the kernel, and {counted} by us"
        );
        let least = if operation == "flush" { 1.0 } else { 300.0 };
        ensure!(counted >= least, "{operation}: {counted}");
    }
    agent.end()
}

/// A disk that is too full to take what it is given: a loop device over a file of a tiny file system.
#[test]
fn requests_that_fail_are_errors_of_their_disk() -> Result<()> {
    let tiny = place::TinyDisk::new()?;
    let disk = LoopDisk::new(&tiny.path().join("image"), 1 << 20)?;
    let agent = Agent::start()?;
    let wrote = Command::new("dd")
        .args([
            "if=/dev/urandom",
            &format!("of={}", disk.path().display()),
            "bs=64k",
            "count=4",
        ])
        .args(["oflag=direct", "status=none"])
        .output()?;
    ensure!(!wrote.status.success(), "the disk was not full");
    let run = Hotspan::verb("use")?.args("--json --interval 200ms").run();
    run?.succeeded()?;
    let name = disk.name();
    let page = agent.page()?;
    let failures: f64 = page
        .iter()
        .filter(|(series, _)| {
            series.starts_with("hotspan_disk_operation_failures_total")
                && series.contains(&format!("system_device=\"{name}\""))
        })
        .map(|(_, count)| count)
        .sum();
    ensure!(failures >= 1.0, "no failure of {name} among {page:?}");
    agent.end()
}

/// Work of interrupts by kind, of all CPUs.
fn softirqs() -> Result<BTreeMap<String, f64>> {
    let text = fs::read_to_string("/proc/softirqs")?;
    text.lines()
        .skip(1)
        .map(|line| {
            let (name, counts) = line.trim().split_once(':').context("no name")?;
            let counts = counts.split_whitespace().map(str::parse::<u64>);
            Ok((name.to_owned(), counts.sum::<Result<u64, _>>()? as f64))
        })
        .collect()
}

/// Whether what we count of softirqs meanwhile is what the kernel counts.
fn check_softirqs(agent: &Agent) -> Result<()> {
    let (outer, first, inner) = (agent.page()?, softirqs()?, agent.page()?);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    for _ in 0..200 {
        let _stream = TcpStream::connect(listener.local_addr()?)?;
        listener.accept()?;
    }
    let (inner_end, last, outer_end) = (agent.page()?, softirqs()?, agent.page()?);
    for (name, count) in &last {
        let series =
            format!("hotspan_softirq_duration_seconds_count{{hotspan_softirq_name=\"{name}\"}}");
        let expected = count - first.get(name).copied().unwrap_or(0.0);
        let least = growth(&inner, &inner_end, &series);
        let most = growth(&outer, &outer_end, &series);
        ensure!(
            least <= expected && expected <= most,
            "{name}: {expected} by the kernel, and from {least} to {most} by us"
        );
        ensure!(name != "NET_RX" || least >= 200.0, "{name}: {least}");
    }
    Ok(())
}

#[test]
fn softirqs_are_those_of_proc() -> Result<()> {
    let agent = Agent::start()?;
    // Again, since a kernel may hide interrupts that come over threads which it protects.
    if check_softirqs(&agent).is_err() {
        check_softirqs(&agent)?;
    }
    agent.end()
}

/// A port where nobody listens, and one where nobody accepts.
#[test]
fn tcp_troubles_are_counted_by_cgroup() -> Result<()> {
    let cgroup = cgroup_in("cgroup2", &[])?;
    let agent = Agent::start()?;
    let before = agent.page()?;
    let closed = place::free_port()?;
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec python3 -c '\n\
         import socket, time\n\
         listener = socket.create_server((\"127.0.0.1\", 0), backlog=0)\n\
         for i in range(5):\n\
         \x20   try: socket.create_connection((\"127.0.0.1\", {closed}))\n\
         \x20   except ConnectionRefusedError: pass\n\
         for i in range(4):\n\
         \x20   s = socket.socket(); s.setblocking(False); globals()[f\"s{{i}}\"] = s\n\
         \x20   try: s.connect(listener.getsockname())\n\
         \x20   except BlockingIOError: pass\n\
         time.sleep(2.5)'",
        cgroup.path().display()
    );
    process::output(Command::new("sh").args(["-c", &script]))?;
    let now = agent.page()?;
    let path = path_of(&cgroup);
    let received = growth(
        &before,
        &now,
        &format!(
            "hotspan_cgroup_tcp_resets_total{{hotspan_cgroup_path=\"{path}\",network_io_direction=\"receive\"}}"
        ),
    );
    // Those that wait for the listener are cut when it ends.
    ensure!(
        (5.0..=9.0).contains(&received),
        "{received} resets received"
    );
    let sent: f64 = now
        .keys()
        .filter(|series| series.contains("tcp_resets_total") && series.contains("transmit"))
        .map(|series| growth(&before, &now, series))
        .sum();
    ensure!(sent >= 5.0, "{sent} resets sent");
    let retransmits = growth(
        &before,
        &now,
        &format!(
            "hotspan_cgroup_tcp_retransmits_total{{hotspan_cgroup_path=\"{path}\",hotspan_tcp_segment=\"data\"}}"
        ),
    );
    ensure!(retransmits >= 1.0, "{retransmits} segments sent again");
    agent.end()
}

/// A cgroup at its limit: its memory is reclaimed, and then its process is killed.
#[test]
fn memory_at_its_limit_is_reclaimed_and_kills() -> Result<()> {
    let of_cpu = cpu_cgroup()?;
    let of_memory = cgroup_in("cgroup", &["memory"]);
    let (cgroup, limit) = match &of_memory {
        Ok(cgroup) => (cgroup, "memory.limit_in_bytes"),
        Err(_) => (&of_cpu, "memory.max"),
    };
    fs::write(cgroup.path().join(limit), "33554432")?;
    let program = program::c("hog", Build::NoFramePointers)?;
    let mut hog = Guard::start(Command::new(&program).stdout(std::process::Stdio::null()))?;
    wait_until_stopped(hog.pid())?;
    of_cpu.take_in(hog.pid())?;
    cgroup.take_in(hog.pid())?;
    let agent = Agent::start()?;
    let before = agent.page()?;
    process::send(hog.pid(), Signal::CONT)?;
    hog.wait(PATIENCE)?;
    let now = agent.page()?;
    let path = path_of(&of_cpu);
    let series = format!("hotspan_memory_oom_victims_total{{hotspan_cgroup_path=\"{path}\"}}");
    let kills = growth(&before, &now, &series);
    ensure!(kills == 1.0, "{kills} kills");
    let series = format!(
        "hotspan_memory_reclaim_duration_seconds_count{{hotspan_cgroup_path=\"{path}\",hotspan_memory_full=\"cgroup\"}}"
    );
    let reclaims = growth(&before, &now, &series);
    ensure!(reclaims >= 1.0, "{reclaims} reclaims");
    agent.end()
}

/// The checklist tells who waits for the CPU.
#[test]
fn the_checklist_names_the_cgroup_that_waits() -> Result<()> {
    let cgroup = cpu_cgroup()?;
    let program = program::c("shares", Build::NoFramePointers)?;
    let workloads = [Workload::start(&program)?, Workload::start(&program)?];
    for workload in &workloads {
        cgroup.take_in(workload.pid())?;
    }
    let run = Hotspan::verb("use")?.args("--json").run()?.succeeded()?;
    let report: serde_json::Value = serde_json::from_str(&run.stdout)?;
    let checks = report["resources"].as_array().context("no resources")?;
    let check = checks
        .iter()
        .find(|check| check["name"] == "run-queue")
        .context("no run queue")?;
    let who = format!("cgroup {}", path_of(&cgroup));
    let top = check["top"].as_array().context("no top")?;
    let share = top.iter().find(|one| one["who"] == *who);
    let share = share.and_then(|one| one["share"].as_f64()).unwrap_or(0.0);
    ensure!(share > 0.1, "{check}");
    // Two threads on one CPU take turns of some milliseconds.
    let p99 = check["latency"]["p99"].as_f64().unwrap_or(0.0);
    ensure!(p99 > 0.0005, "{check}");
    Ok(())
}
