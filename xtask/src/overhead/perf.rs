//! Running perf, the profiler that every kernel has.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::bench::{self, Bench, NOWHERE, Run};
use super::stacks::{self, Stack};

/// How perf gets user stacks.
#[derive(Clone, Copy)]
pub enum CallGraph {
    /// By frame pointers: cheap, and cut where there are none.
    FramePointers,
    /// By tables: it copies 16 KiB of the stack with each sample, and unwinds afterwards.
    Dwarf,
}

/// A run of perf.
pub struct Perf<T> {
    /// `perf record`.
    pub record: Run<T>,
    /// `perf script`, which makes text of what the other wrote.
    script: Run<()>,
}

impl<T> Perf<T> {
    /// CPU time of both in seconds.
    pub fn cpu_s(&self) -> f64 {
        self.record.cpu_s() + self.script.cpu_s()
    }

    /// Peak memory of the larger in MB.
    pub fn rss_mb(&self) -> f64 {
        self.record.rss_mb().max(self.script.rss_mb())
    }

    /// What it saw.
    pub fn stacks(&self) -> Result<Vec<Stack>> {
        let text = fs::read(&self.script.output)?;
        stacks::parse_perf_script(&String::from_utf8_lossy(&text))
    }
}

impl Bench {
    /// Runs `perf record` for a while, then `perf script`; `watch` gets the pid of the first.
    /// `None`, and a line on standard error, when perf fails twice, which is no reason to learn
    /// nothing about hotspan: it crashes when a profiler that has the kernel report build ids
    /// (`perf_event_attr.build_id`) starts beside it, because the kernel then marks perf's own
    /// records of mappings as if they had one too (seen with perf 6.1 on 6.18).
    pub fn perf<T>(
        &self,
        args: &[&str],
        call_graph: CallGraph,
        rate_hz: u32,
        duration: Duration,
        watch: impl Fn(u32) -> Result<T>,
    ) -> Option<Perf<T>> {
        for _ in 0..2 {
            match self.try_perf(args, call_graph, rate_hz, duration, &watch) {
                Ok(perf) => return Some(perf),
                Err(error) => eprintln!("{error:#}"),
            }
        }
        eprintln!("a round goes without perf");
        None
    }

    fn try_perf<T>(
        &self,
        args: &[&str],
        call_graph: CallGraph,
        rate_hz: u32,
        duration: Duration,
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<Perf<T>> {
        let data = self.file("perf.data");
        let call_graph = match call_graph {
            CallGraph::FramePointers => "fp",
            CallGraph::Dwarf => "dwarf,16384",
        };
        let mut record = Command::new("perf");
        record
            .args([
                "record",
                "-q",
                "-e",
                "cpu-clock",
                "--call-graph",
                call_graph,
            ])
            .args(["-F", &rate_hz.to_string(), "-o", bench::arg(&data)?])
            .args(args)
            .args(["--", "sleep", &duration.as_secs_f64().to_string()]);
        let mut script = Command::new("perf");
        script
            .args(["script", "--no-inline", "-F", "comm,pid,ip,sym", "-i"])
            .arg(&data);
        Ok(Perf {
            record: self.run_well(&mut record, Path::new(NOWHERE), watch)?,
            script: self.run_well(&mut script, &self.file("perf.script"), |_| Ok(()))?,
        })
    }
}
