//! Hosts with very many processes and cgroups: nothing hangs, nothing is wrong, and what is too much is told.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place::{self, Cgroup, cgroup_hierarchy};
use hotspan_tests::process::wait_for;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::Hotspan;
use hotspan_tests::scrape;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;
use serde_json::Value;

const PROCESSES: usize = 10_000;
const CGROUPS: usize = 5_000;
const BUDGET: usize = 2_000;

/// Cgroups below one, removed before it.
struct Crowd(Vec<PathBuf>);

impl Crowd {
    fn in_cgroup(parent: &Cgroup) -> Result<Self> {
        let mut crowd = Self(Vec::new());
        for number in 0..CGROUPS {
            let path = parent.path().join(number.to_string());
            fs::create_dir(&path).with_context(|| path.display().to_string())?;
            crowd.0.push(path);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_dir(path);
        }
    }
}

#[test]
fn ten_thousand_processes_and_five_thousand_cgroups() -> Result<()> {
    let hierarchy =
        cgroup_hierarchy("cgroup", &["cpuacct"]).or_else(|_| cgroup_hierarchy("cgroup2", &[]));
    let parent = Cgroup::new(&hierarchy?)?;
    let crowd = Crowd::in_cgroup(&parent)?;
    let program = program::c("crowd", Build::NoFramePointers)?;
    let workload = Workload::start_command(Command::new(program).arg(PROCESSES.to_string()))?;

    let run = Hotspan::verb("use")?.args("--json").run()?.succeeded()?;
    let report: Value = serde_json::from_str(&run.stdout)?;
    let checks = report["resources"].as_array().context("no resources")?;
    let cgroups = checks.iter().filter(|check| check["name"] == "cgroup-cpu");
    ensure!(cgroups.count() >= CGROUPS, "{} checks", checks.len());

    let port = place::free_port()?;
    let agent = Hotspan::verb("agent")?
        .args(&format!("--prometheus 127.0.0.1:{port}"))
        .start()?;
    let page = wait_for("a page", Duration::from_secs(30), || {
        Ok(scrape::get(port, "/metrics", "").ok())
    })?;
    let samples = scrape::samples(&page)?;
    let of_cgroups = || {
        let is_of = |series: &&String| series.starts_with("hotspan_cgroup_cpu_time_seconds_total{");
        samples.keys().filter(is_of)
    };
    ensure!(
        of_cgroups().count() == BUDGET,
        "{} series",
        of_cgroups().count()
    );
    ensure!(of_cgroups().any(|series| series.contains("otel_metric_overflow=\"true\"")));
    for (series, value) in &samples {
        let is_unread = series.starts_with("hotspan_resource_unread");
        ensure!(
            !is_unread || *value == 0.0 || series.contains("denied"),
            "{series} {value}"
        );
    }
    agent.signal(Signal::TERM)?;
    agent.finish()?.succeeded()?;
    drop((workload, crowd));
    Ok(())
}
