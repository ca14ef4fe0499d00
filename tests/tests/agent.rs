//! `hotspan agent`: profiles and metrics at a real collector, a real Prometheus that scrapes, the end by a
//! signal, and collectors that are not there.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::collector::Collector;
use hotspan_tests::node_exporter::NodeExporter;
use hotspan_tests::place;
use hotspan_tests::process::{self, wait_for};
use hotspan_tests::program::{self, Build};
use hotspan_tests::prometheus::{Prometheus, check_page};
use hotspan_tests::recorder::{Hotspan, Running};
use hotspan_tests::scrape;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// Starts an agent that is scraped at a port, and waits until it answers.
fn start_scraped(options: &str) -> Result<(Running, u16)> {
    let port = place::free_port()?;
    let agent = Hotspan::verb("agent")?
        .args(&format!("--prometheus 127.0.0.1:{port} {options}"))
        .start()?;
    wait_for("the agent", PATIENCE, || {
        Ok(scrape::get(port, "/healthz", "").ok())
    })?;
    Ok((agent, port))
}

/// Ends an agent as service managers do, and checks that it ends well.
fn end(agent: Running) -> Result<String> {
    agent.signal(Signal::TERM)?;
    let run = agent.finish()?.succeeded()?;
    for line in run.stderr.lines() {
        let entry: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        for key in ["timestamp", "level", "service", "instance", "message"] {
            ensure!(entry[key].is_string(), "no {key}: {line}");
        }
        let time = entry["timestamp"].as_str().unwrap_or_default();
        ensure!(time.len() == 24 && time.ends_with('Z'), "{line}");
    }
    Ok(run.stderr)
}

fn metric_names(requests: &[Value]) -> BTreeSet<String> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let resources = requests
        .iter()
        .flat_map(|request| list(request, "resourceMetrics"));
    let scopes = resources.flat_map(|resource| list(&resource, "scopeMetrics"));
    let metrics = scopes.flat_map(|scope| list(&scope, "metrics"));
    metrics
        .filter_map(|metric| metric["name"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn profiles_and_metrics_arrive_at_a_collector() -> Result<()> {
    let folder = place::folder()?;
    let collector = Collector::start(folder.path())?;
    let workload = Workload::start(&program::c("shares", Build::NoFramePointers)?)?;
    let config = folder.path().join("agent.yaml");
    for (url, count) in [
        (format!("grpc://127.0.0.1:{}", collector.grpc_port), 2),
        (format!("http://127.0.0.1:{}", collector.http_port), 4),
    ] {
        // The command line stands above the file.
        fs::write(
            &config,
            format!("otlp: {url}\nrate: 199\nwindow: 1h\nmetrics_interval: 1s\n"),
        )?;
        let agent = Hotspan::verb("agent")?
            .args(&format!("--config {} --window 1s", config.display()))
            .start()?;
        let profiles = collector.wait_for_requests(count)?;
        let metrics = collector.wait_for_metrics(count)?;
        let strings: BTreeSet<_> = profiles
            .iter()
            .filter_map(|request| request.dictionary.as_ref())
            .flat_map(|dictionary| dictionary.string_table.iter().map(String::as_str))
            .collect();
        for function in ["heavy", "light", "main", "_start"] {
            ensure!(
                strings.contains(function),
                "{url}: no {function} in {strings:?}"
            );
        }
        let names = metric_names(&metrics);
        for name in [
            "system.cpu.time",
            "system.memory.usage",
            "system.disk.io",
            "system.network.io",
            "system.filesystem.usage",
            "hotspan.pressure.waiting",
            "hotspan.syscall.duration",
            "hotspan.agent.cpu.time",
        ] {
            ensure!(names.contains(name), "{url}: no {name} in {names:?}");
        }
        end(agent)?;
    }
    workload.stop()?;
    Ok(())
}

/// Windows of an hour: whatever arrives is what the end has sent.
#[test]
fn the_end_sends_what_is_in_hand() -> Result<()> {
    let folder = place::folder()?;
    let collector = Collector::start(folder.path())?;
    let workload = Workload::start(&program::c("shares", Build::NoFramePointers)?)?;
    let url = format!("grpc://127.0.0.1:{}", collector.grpc_port);
    let mut agent = Hotspan::verb("agent")?
        .args(&format!("--otlp {url} --window 1h --metrics-interval 1h"))
        .start()?;
    agent.wait_for_capture()?;
    workload.wait_for_work(Duration::from_secs(2))?;
    end(agent)?;
    ensure!(collector.wait_for_requests(1)?.len() == 1);
    ensure!(collector.wait_for_metrics(1)?.len() == 1);
    workload.stop()?;
    Ok(())
}

#[test]
fn a_prometheus_scrapes_and_answers() -> Result<()> {
    let folder = place::folder()?;
    let (agent, port) = start_scraped("")?;
    check_page(&scrape::get(port, "/metrics", "")?)?;
    let open = scrape::get(
        port,
        "/metrics",
        "Accept: application/openmetrics-text; version=1.0.0\r\n",
    )?;
    ensure!(
        open.ends_with("# EOF\n"),
        "no end: {:?}",
        open.lines().last()
    );
    let prometheus = Prometheus::start(folder.path(), port)?;
    let idle = "sum(rate(system_cpu_time_seconds_total[10s]))";
    let cpus = fs::read_to_string("/proc/stat")?.matches("\ncpu").count() as f64;
    let busy = wait_for("a rate", PATIENCE, || {
        let values = prometheus.query(idle)?;
        Ok(values.first().copied().filter(|value| *value > 0.5 * cpus))
    })?;
    ensure!(
        busy < 1.5 * cpus,
        "{busy} CPU seconds a second on {cpus} CPUs"
    );
    // A process that ends at once is seen, too: the shell makes this call.
    process::output(Command::new("sh").args(["-c", "umask 077"]))?;
    let short = "sum(hotspan_syscall_duration_seconds_count{hotspan_syscall_name=\"umask\"})";
    ensure!(prometheus.query(short)?[0] >= 1.0);
    let calls = "sum by (hotspan_syscall_name) (hotspan_syscall_duration_seconds_count)";
    ensure!(prometheus.query(calls)?.len() > 5);
    let quantile = "histogram_quantile(0.99, sum by (le) (rate(hotspan_syscall_duration_seconds_bucket[10s])))";
    let p99 = wait_for("a quantile", PATIENCE, || {
        let values = prometheus.query(quantile)?;
        Ok(values.first().copied().filter(|value| value.is_finite()))
    })?;
    ensure!((1e-8..1000.0).contains(&p99), "{p99}");
    ensure!(prometheus.query("target_info{service_name=\"hotspan\"}")? == [1.0]);
    ensure!(prometheus.query("up{job=\"hotspan\"}")? == [1.0]);
    end(agent)?;
    Ok(())
}

/// The same kernel files, read at nearly the same time.
#[test]
fn numbers_are_those_of_the_node_exporter() -> Result<()> {
    let exporter = NodeExporter::start()?;
    let (agent, port) = start_scraped("--syscalls false")?;
    let before = exporter.scrape()?;
    let ours = scrape::samples(&scrape::get(port, "/metrics", "")?)?;
    let after = exporter.scrape()?;
    let sum = |name: &str, label: &str| -> f64 {
        let start = format!("{name}{{");
        // Debian's exporter leaves the loopback interface out.
        let is_wanted =
            |key: &str| key.starts_with(&start) && key.contains(label) && !key.contains("\"lo\"");
        let found = ours.iter().filter(|(key, _)| is_wanted(key));
        found.map(|(_, value)| value).sum()
    };
    let theirs =
        |page: &std::collections::BTreeMap<String, f64>, start: &str, label: &str| -> f64 {
            let found = page
                .iter()
                .filter(|(key, _)| key.starts_with(start) && key.contains(label));
            found.map(|(_, value)| value).sum()
        };
    for (name, label, their_name, their_label) in [
        (
            "system_cpu_time_seconds_total",
            "cpu_mode=\"user\"",
            "node_cpu_seconds_total",
            "mode=\"user\"",
        ),
        (
            "system_cpu_time_seconds_total",
            "cpu_mode=\"system\"",
            "node_cpu_seconds_total",
            "mode=\"system\"",
        ),
        (
            "system_memory_limit_bytes",
            "",
            "node_memory_MemTotal_bytes",
            "",
        ),
        (
            "system_network_io_bytes_total",
            "",
            "node_network_receive_bytes_total",
            "",
        ),
        (
            "hotspan_context_switches_total",
            "",
            "node_context_switches_total",
            "",
        ),
        ("system_process_created_total", "", "node_forks_total", ""),
    ] {
        let (low, high) = (
            theirs(&before, their_name, their_label),
            theirs(&after, their_name, their_label),
        );
        let (low, high) = match name {
            "system_network_io_bytes_total" => {
                let sent = "node_network_transmit_bytes_total";
                (
                    low + theirs(&before, sent, ""),
                    high + theirs(&after, sent, ""),
                )
            }
            _ => (low, high),
        };
        let own = sum(name, label);
        // Sums of hundredths are not exact.
        ensure!(
            (low - 0.05..=high + 0.05).contains(&own),
            "{name} {label}: {own}, not {low} to {high}"
        );
    }
    end(agent)?;
    Ok(())
}

#[test]
fn a_collector_that_is_away_costs_only_what_is_lost() -> Result<()> {
    let away = place::free_port()?;
    let (agent, port) = start_scraped(&format!(
        "--otlp grpc://127.0.0.1:{away} --window 1s --metrics-interval 1s"
    ))?;
    let queued = wait_for("requests that wait", PATIENCE, || {
        let page = scrape::samples(&scrape::get(port, "/metrics", "")?)?;
        let queued = page
            .iter()
            .filter(|(key, _)| key.starts_with("hotspan_agent_export_queued"));
        Ok(Some(queued.map(|(_, value)| value).sum::<f64>()).filter(|queued| *queued > 2.0))
    })?;
    ensure!(queued > 2.0);
    let log = end(agent)?;
    ensure!(
        log.contains("requests were not delivered before the end"),
        "{log}"
    );
    Ok(())
}

#[test]
fn mistakes_are_one_sentence() -> Result<()> {
    let folder = place::folder()?;
    let config = folder.path().join("agent.yaml");
    fs::write(&config, "otlp: http://127.0.0.1:1\nwindw: 10s\n")?;
    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let port = taken.local_addr()?.port();
    let missing = folder.path().join("missing.yaml");
    for (arguments, code, sentence) in [
        (String::new(), 2, "there is nowhere to send to"),
        (
            format!("--config {}", config.display()),
            2,
            "unknown field `windw`",
        ),
        (format!("--config {}", missing.display()), 1, "cannot read"),
        (
            format!("--prometheus 127.0.0.1:{port}"),
            1,
            "cannot serve metrics",
        ),
        ("--otlp ftp://x".to_owned(), 2, "http"),
        (
            "--prometheus 127.0.0.1:0 --window 10ms".to_owned(),
            2,
            "too short for a window",
        ),
        (
            "--prometheus 127.0.0.1:0 --series-budget 0".to_owned(),
            2,
            "1 or more",
        ),
        (
            "--prometheus 127.0.0.1:0 --rate 0".to_owned(),
            2,
            "the rate 0",
        ),
    ] {
        let run = Hotspan::verb("agent")?.args(&arguments).run()?;
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
