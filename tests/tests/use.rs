//! `hotspan use`: its contract, a busy core, and the same numbers as Prometheus' node exporter.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan::resource::cpu::TICKS_PER_S;
use hotspan::resource::disk::SECTOR_BYTES;
use hotspan::resource::{Reading, Root};
use hotspan_tests::node_exporter::NodeExporter;
use hotspan_tests::place;
use hotspan_tests::process::Guard;
use hotspan_tests::recorder::{self, Finished, Hotspan};
use rustix::process::Signal;
use serde_json::Value;

const VERDICTS: [&str; 5] = ["unknown", "ok", "busy", "saturated", "errors"];

/// Every check of every report, in the shape of the contract.
fn reports(run: &Finished) -> Result<Vec<Vec<Value>>> {
    let reports = run.stdout.lines().map(|line| {
        let report: Value = serde_json::from_str(line)?;
        let checks = report["resources"].as_array().context("no resources")?;
        checks.iter().try_for_each(check_shape)?;
        Ok(checks.clone())
    });
    reports.collect()
}

fn check_shape(check: &Value) -> Result<()> {
    let keys = check.as_object().context("no object")?.keys();
    // Only some have it, and only where the kernel side counts.
    let keys: Vec<_> = keys.filter(|key| *key != "latency").collect();
    let expected = [
        "errors",
        "instance",
        "name",
        "saturation",
        "top",
        "utilization",
        "verdict",
    ];
    ensure!(keys == expected, "{check}");
    ensure!(check["name"].is_string() && check["instance"].is_string());
    for key in ["utilization", "saturation", "errors"] {
        let measure = &check[key];
        let is_sane = || {
            let value = measure["value"].as_f64()?;
            let is_ratio = measure["unit"].as_str()? == "1";
            Some(value >= 0.0 && (!is_ratio || value <= 1.0))
        };
        ensure!(measure.is_null() || is_sane() == Some(true), "{check}");
    }
    let latency = &check["latency"];
    if !latency.is_null() {
        let part = |key: &str| latency[key].as_f64().unwrap_or(-1.0);
        ensure!(latency["unit"] == "s" && part("p50") >= 0.0, "{check}");
        ensure!(part("p99") >= part("p50"), "{check}");
    }
    let verdict = check["verdict"].as_str().context("no verdict")?;
    ensure!(VERDICTS.contains(&verdict), "{check}");
    for one in check["top"].as_array().context("no top")? {
        let share = one["share"].as_f64().context("no share")?;
        ensure!(
            one["who"].is_string() && (0.0..=1.0).contains(&share),
            "{check}"
        );
    }
    Ok(())
}

fn find<'a>(checks: &'a [Value], name: &str, instance: &str) -> Result<&'a Value> {
    checks
        .iter()
        .find(|check| check["name"] == name && check["instance"] == instance)
        .with_context(|| format!("no {name} {instance}"))
}

#[test]
fn json_says_what_the_contract_has_of_every_resource() -> Result<()> {
    let run = Hotspan::verb("use")?
        .args("--json --count 2 --interval 200ms")
        .run()?
        .succeeded()?;
    let reports = reports(&run)?;
    ensure!(reports.len() == 2, "{} reports", reports.len());
    for checks in &reports {
        for name in [
            "cpu",
            "memory",
            "swap",
            "tcp",
            "file-descriptors",
            "processes",
        ] {
            find(checks, name, "host")?;
        }
        for (name, instance) in [("cpu", "cpu0"), ("filesystem", "/"), ("network", "lo")] {
            find(checks, name, instance)?;
        }
        for name in ["memory", "file-descriptors", "processes"] {
            let used = &find(checks, name, "host")?["utilization"]["value"];
            ensure!(
                used.as_f64().is_some_and(|used| used > 0.0),
                "{name}: {used}"
            );
        }
        ensure!(
            !find(checks, "memory", "host")?["top"]
                .as_array()
                .context("a list")?
                .is_empty()
        );
    }
    Ok(())
}

#[test]
fn a_busy_core_is_used_up_and_its_process_is_named() -> Result<()> {
    let busy = Guard::start(
        Command::new("nice")
            .args(["-n", "-20", "taskset", "--cpu-list", "0"])
            .args(["sh", "-c", "while :; do :; done"])
            .stdin(Stdio::null()),
    )?;
    thread::sleep(Duration::from_millis(200));
    let run = Hotspan::verb("use")?.args("--json").run()?.succeeded()?;
    let checks = reports(&run)?.remove(0);
    let who = format!("sh[{}]", busy.pid());
    let core = find(&checks, "cpu", "cpu0")?;
    let used = core["utilization"]["value"].as_f64().context("a number")?;
    ensure!(used >= 0.9, "cpu0 is used {used}");
    for instance in ["cpu0", "host"] {
        let top = &find(&checks, "cpu", instance)?["top"];
        let is_named = top
            .as_array()
            .context("a list")?
            .iter()
            .any(|one| one["who"] == *who && one["share"].as_f64() > Some(0.1));
        ensure!(is_named, "no {who} at {instance}: {top}");
    }
    Ok(())
}

#[test]
fn ctrl_c_ends_a_watch_well() -> Result<()> {
    let run = Hotspan::verb("use")?
        .args("--watch --interval 100ms")
        .start()?;
    thread::sleep(Duration::from_secs(2));
    run.signal_group(Signal::INT)?;
    let run = run.finish()?.succeeded()?;
    let heads = run.stdout.matches("verdict ").count();
    ensure!(heads >= 2, "{heads} reports: {}", run.stderr);
    ensure!(!run.stdout.contains('\x1b'), "colours in a pipe");
    Ok(())
}

#[test]
fn an_ordinary_user_is_told_what_that_hides() -> Result<()> {
    // The folder of the build may be closed to others.
    let folder = place::folder()?;
    let copy = folder.path().join("hotspan");
    fs::copy(recorder::binary()?, &copy)?;
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let words = nobody.iter().map(OsString::from);
    let words: Vec<_> = words.chain([copy.into(), "use".into()]).collect();
    let run = Hotspan::of_words(&words)
        .args("--json --interval 200ms")
        .current_dir("/".as_ref())
        .run()?
        .succeeded()?;
    let checks = reports(&run)?.remove(0);
    for (name, instance) in [("cpu", "host"), ("memory", "host"), ("filesystem", "/")] {
        ensure!(
            !find(&checks, name, instance)?["utilization"].is_null(),
            "{name}"
        );
    }
    ensure!(
        run.stderr.lines().count() == 1 && run.stderr.contains("root"),
        "{}",
        run.stderr
    );
    Ok(())
}

#[test]
fn wrong_intervals_are_usage_errors() -> Result<()> {
    for (arguments, mentions) in [
        ("--interval 10ms", ["10ms", "100ms"]),
        ("--interval soon", ["soon", "10s"]),
        ("--count 0", ["count", "0"]),
    ] {
        Hotspan::verb("use")?
            .args(arguments)
            .run()?
            .check_failure(2, &mentions)?;
    }
    Ok(())
}

/// Numbers that a reading and node exporter both have: name there, value here.
fn shared(reading: &Reading) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    let mut add = |name: String, value: f64| found.push((name, value));
    let stat = reading.cpu.stat.as_ref().context("/proc/stat")?;
    for (core, times) in &stat.cores {
        for (mode, ticks) in [
            ("user", times.user),
            ("nice", times.nice),
            ("system", times.system),
            ("softirq", times.softirq),
            ("steal", times.steal),
        ] {
            let name = format!("node_cpu_seconds_total{{cpu=\"{core}\",mode=\"{mode}\"}}");
            add(name, ticks as f64 / TICKS_PER_S as f64);
        }
    }
    add(
        "node_context_switches_total".into(),
        stat.context_switches.context("ctxt")? as f64,
    );
    add(
        "node_forks_total".into(),
        stat.forks.context("forks")? as f64,
    );
    let events = reading.memory.events.context("/proc/vmstat")?;
    add(
        "node_vmstat_pgfault".into(),
        events.faults.context("faults")? as f64,
    );
    add(
        "node_vmstat_oom_kill".into(),
        events.oom_kills.context("kills")? as f64,
    );
    for (name, disk) in &reading.disk.disks {
        for (what, value) in [
            ("reads_completed_total", disk.reads as f64),
            (
                "written_bytes_total",
                (disk.sectors_written * SECTOR_BYTES) as f64,
            ),
            ("io_time_seconds_total", disk.busy_ms as f64 / 1e3),
        ] {
            add(format!("node_disk_{what}{{device=\"{name}\"}}"), value);
        }
    }
    // Debian's leaves out the loopback, and what is mounted for a while.
    let interfaces = reading.network.interfaces.iter();
    for (name, interface) in interfaces.filter(|(name, _)| *name != "lo") {
        let bytes = interface.receive.bytes as f64;
        add(
            format!("node_network_receive_bytes_total{{device=\"{name}\"}}"),
            bytes,
        );
        let packets = interface.transmit.packets as f64;
        add(
            format!("node_network_transmit_packets_total{{device=\"{name}\"}}"),
            packets,
        );
    }
    let segments = reading.tcp.segments.context("/proc/net/snmp")?;
    add("node_netstat_Tcp_OutSegs".into(), segments.sent as f64);
    add(
        "node_netstat_Tcp_RetransSegs".into(),
        segments.retransmitted as f64,
    );
    if let Some(pressure) = reading.cpu.pressure {
        let seconds = pressure.some_us as f64 / 1e6;
        add("node_pressure_cpu_waiting_seconds_total".into(), seconds);
    }
    // These do not grow with time; they stay what they are.
    let usage = reading.memory.usage.context("/proc/meminfo")?;
    add("node_memory_MemTotal_bytes".into(), usage.total as f64);
    add(
        "node_memory_SwapTotal_bytes".into(),
        usage.swap_total.context("swap")? as f64,
    );
    let is_for_a_while = |point: &str| {
        ["/run/", "/mnt/", "/media/"]
            .iter()
            .any(|folder| point.starts_with(folder))
    };
    let filesystems = reading.filesystem.iter();
    for (point, filesystem) in
        filesystems.filter(|(point, _)| !is_for_a_while(&format!("{point}/")))
    {
        let labels = format!(
            "{{device=\"{}\",fstype=\"{}\",mountpoint=\"{point}\"}}",
            filesystem.source, filesystem.kind
        );
        add(
            format!("node_filesystem_size_bytes{labels}"),
            filesystem.bytes as f64,
        );
        add(
            format!("node_filesystem_files{labels}"),
            filesystem.inodes as f64,
        );
    }
    Ok(found)
}

/// Counters only grow, so what node exporter reads between two readings of ours lies between them.
#[test]
fn node_exporter_reads_the_same_numbers() -> Result<()> {
    let exporter = NodeExporter::start()?;
    let root = Root::host();
    let before = shared(&Reading::read(&root))?;
    let page = exporter.scrape()?;
    let after = shared(&Reading::read(&root))?;
    ensure!(before.len() == after.len() && before.len() > 20);
    for ((name, low), (_, high)) in before.iter().zip(&after) {
        let value = page
            .get(name)
            .with_context(|| format!("node exporter has no {name}"))?;
        // Both divide integers, each in its own way: the last digit of a float may differ.
        let least = 1e-9 * high.abs();
        ensure!(
            (low - least..=high + least).contains(value),
            "{name}: {value} is not between {low} and {high}"
        );
    }
    Ok(())
}

/// What the kernel names, the node exporter names alike: all that it tells of memory, protocols and sockets is there.
#[test]
fn every_field_that_the_node_exporter_tells_is_there() -> Result<()> {
    let exporter = NodeExporter::start()?;
    let root = Root::host();
    let before = Reading::read(&root).fields;
    let page = exporter.scrape()?;
    let after = Reading::read(&root).fields;
    let mut compared = 0;
    for (name, value) in &page {
        let groups = [
            ("node_vmstat_", &before.vmstat, &after.vmstat),
            ("node_netstat_", &before.netstat, &after.netstat),
            ("node_sockstat_", &before.sockets, &after.sockets),
            ("node_memory_", &before.memory, &after.memory),
        ];
        let found = groups
            .into_iter()
            .find_map(|(prefix, low, high)| Some((name.strip_prefix(prefix)?, low, high)));
        let Some((field, low, high)) = found else {
            continue;
        };
        let field = field.strip_suffix("_bytes").unwrap_or(field);
        // The exporter multiplies pages by their size and names that another field.
        if field == "TCP_mem" || field == "UDP_mem" || field == "FRAG_memory" {
            continue;
        }
        let known = low.get(field).zip(high.get(field));
        let Some((low, high)) = known else {
            ensure!(
                name.contains("sockstat") && name.ends_with("_bytes"),
                "no {name}"
            );
            continue;
        };
        let grows = name.starts_with("node_vmstat_") || field.starts_with("TcpExt_");
        let is_between = (*low as f64..=*high as f64).contains(value);
        ensure!(
            !grows || is_between,
            "{name}: {value} is not between {low} and {high}"
        );
        compared += 1;
    }
    ensure!(compared > 80, "only {compared} fields");
    Ok(())
}
