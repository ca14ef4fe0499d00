//! What /proc tells about a running process: its BPF programs and maps, and its CPU time.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// `BPF_PROG_TYPE_PERF_EVENT`: in hotspan that is the sampler alone.
const PERF_EVENT_PROGRAM: u64 = 7;

/// How long a profiler may take to load its programs before we give it up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sampling program of a process, found by the descriptor the process has on it: another
/// profiler may run a program of the same name at the same time.
pub struct SamplingProgram(PathBuf);

impl SamplingProgram {
    /// Waits for process `pid` to load it.
    pub fn wait_for(pid: u32) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (path, text) in descriptors(pid) {
                if field(&text, "prog_type") == Some(PERF_EVENT_PROGRAM) {
                    return Ok(Self(path));
                }
            }
            if Instant::now() > deadline {
                bail!("process {pid} loaded no sampling program; its own message may tell why");
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Run time in nanoseconds and number of runs so far; `None` when the process is gone.
    pub fn run_time(&self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(&self.0).ok()?;
        Some((field(&text, "run_time_ns")?, field(&text, "run_cnt")?))
    }
}

/// Bytes that the kernel keeps for the BPF maps of process `pid`.
pub fn map_bytes(pid: u32) -> u64 {
    descriptors(pid)
        .filter(|(_, text)| field(text, "map_type").is_some())
        .filter_map(|(_, text)| Some((field(&text, "map_id")?, field(&text, "memlock")?)))
        // Two descriptors may stand for one map.
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_values()
        .sum()
}

/// CPU time of the live threads of process `pid`.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends meanwhile takes its time with it.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            let first = text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
            total_ns += first.context("schedstat is no number")?;
        }
    }
    Ok(Duration::from_nanos(total_ns))
}

/// The CPUs we may run on.
pub fn allowed_cpus() -> Result<Vec<u32>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("/proc/self/status has no Cpus_allowed_list")?;
    parse_cpu_list(list.trim()).with_context(|| format!("{list} is no list of CPUs"))
}

/// `0-2,5` is 0, 1, 2, 5.
fn parse_cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse().ok()?..=last.parse::<u32>().ok()?);
    }
    Some(cpus)
}

fn descriptors(pid: u32) -> impl Iterator<Item = (PathBuf, String)> {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.path(), fs::read_to_string(entry.path()).ok()?)))
}

/// The number in the line `name: NUMBER` of a descriptor's text.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_found_by_its_whole_name() {
        let text = "prog_type:\t7\nrun_time_ns:\t1200\nrun_cnt:\t3\n";
        assert_eq!(field(text, "prog_type"), Some(7));
        assert_eq!(field(text, "run_time_ns"), Some(1200));
        assert_eq!(field(text, "run"), None);
    }

    #[test]
    fn ranges_of_cpus_are_spelled_out() {
        assert_eq!(parse_cpu_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_cpu_list("3"), Some(vec![3]));
        assert_eq!(parse_cpu_list(""), None);
    }

    #[test]
    fn own_cpu_time_can_be_read() {
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
    }
}
