//! A workload that runs: see `workloads/README.md` for what each of them does.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::process::{self, Guard, wait_for};

/// Workloads measure their speed before they are ready, which takes some while on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// On a machine with much else to do, a workload gets a small part of a CPU.
const BUSY_PATIENCE: Duration = Duration::from_secs(90);

/// The start of a command that runs on one CPU only.
///
/// Each CPU has a sampling clock of its own. A thread that is moved from one to another gains or
/// loses a part of a tick each time, and how often it is moved depends on what else runs. One that
/// stays has as many samples as it used CPU time, to the tick.
#[must_use]
pub fn on_one_cpu() -> Command {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("taskset");
    command.args(["-c", &(cpus - 1).to_string()]);
    command
}

/// What a workload says about itself when it ends.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Report {
    /// CPU time in each function and what it calls, in nanoseconds.
    pub cpu_ns: BTreeMap<String, u64>,
}

impl Report {
    /// The part of all CPU time that went to `function`.
    ///
    /// # Errors
    /// When the report does not know the function, or there is nothing in it.
    pub fn share(&self, function: &str) -> Result<f64> {
        let own = self.cpu_ns.get(function);
        let own = own.with_context(|| format!("no clock of {function} in {self:?}"))?;
        let all: u64 = self.cpu_ns.values().sum();
        ensure!(all > 0, "the workload did nothing");
        Ok(*own as f64 / all as f64)
    }

    fn find(lines: impl Iterator<Item = String>) -> Result<Self> {
        let line = lines.into_iter().find(|line| line.starts_with('{'));
        let line = line.context("the workload ended without a report")?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    /// The report among the lines of `text`.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(text: &str) -> Result<Self> {
        Self::find(text.lines().map(str::to_owned))
    }
}

/// A running workload. It is killed when it goes out of scope.
#[derive(Debug)]
pub struct Workload {
    guard: Guard,
    lines: Receiver<String>,
    introduction: Vec<String>,
    pid: u32,
}

impl Workload {
    /// Starts a program on one CPU that it does not leave, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or is not ready in time.
    pub fn start(program: &Path) -> Result<Self> {
        Self::start_command(on_one_cpu().arg(program))
    }

    /// Starts a program with arguments or surroundings, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or is not ready in time.
    pub fn start_command(command: &mut Command) -> Result<Self> {
        let mut guard = Guard::start(command.stdout(Stdio::piped()))?;
        let lines = guard.stdout_lines();
        let mut workload = Self {
            pid: guard.pid(),
            guard,
            lines,
            introduction: Vec::new(),
        };
        workload.introduction = workload.lines_until("ready")?;
        Ok(workload)
    }

    /// Starts a program in a pid and a mount namespace of its own, where it is the only file of a
    /// file system that nobody outside sees.
    ///
    /// # Errors
    /// When the namespaces cannot be made or the program is not ready in time.
    pub fn start_in_namespaces(program: &Path, mount_point: &Path) -> Result<Self> {
        const SCRIPT: &str = "mount -t tmpfs hotspan-test \"$1\" && cp \"$0\" \"$1/hidden\" && \
                              exec \"$1/hidden\"";
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                SCRIPT,
            ])
            .args([program, mount_point]);
        let mut workload = Self::start_command(&mut command)?;
        let inside = process::children(workload.pid)?;
        ensure!(inside.len() == 1, "unshare has the children {inside:?}");
        workload.pid = inside[0];
        Ok(workload)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it said before it was ready.
    #[must_use]
    pub fn introduction(&self) -> &[String] {
        &self.introduction
    }

    /// Waits until the workload says `line`.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_line(&self, line: &str) -> Result<()> {
        self.lines_until(line).map(drop)
    }

    /// What the workload says before it says `last`.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn lines_until(&self, last: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let said = self.lines.recv_timeout(PATIENCE);
            let line = said.with_context(|| format!("the workload did not say {last}"))?;
            if line == last {
                return Ok(lines);
            }
            lines.push(line);
        }
    }

    /// Waits until it has used that much CPU time from now on.
    ///
    /// # Errors
    /// When it ends before, or does nothing.
    pub fn wait_for_work(&self, work: Duration) -> Result<()> {
        let goal = process::cpu_time(self.pid)? + work;
        wait_for("the workload's work", BUSY_PATIENCE, || {
            Ok((process::cpu_time(self.pid)? >= goal).then_some(()))
        })
    }

    /// Ends it and returns its report.
    ///
    /// # Errors
    /// When it does not end in time, fails, or reports nothing.
    pub fn stop(mut self) -> Result<Report> {
        process::send(self.pid, Signal::TERM)?;
        let status = self.guard.wait(PATIENCE)?;
        ensure!(status.success(), "the workload failed: {status}");
        Report::find(self.lines.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_found_among_other_lines() {
        let report = Report::parse("ready\n{\"cpu_ns\": {\"a\": 3, \"b\": 1}}\n").unwrap();
        assert_eq!(report.share("a").unwrap(), 0.75);
        assert!(report.share("c").is_err());
        assert!(Report::parse("ready\n").is_err());
        assert!(
            Report::parse("{\"cpu_ns\": {\"a\": 0}}")
                .unwrap()
                .share("a")
                .is_err()
        );
    }

    #[test]
    fn workload_that_is_never_ready_is_an_error() {
        assert!(Workload::start(Path::new("true")).is_err());
        assert!(Workload::start(Path::new("/no/such/program")).is_err());
    }
}
