//! What /proc tells about a running process: its BPF programs and maps, and its CPU time.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// `BPF_PROG_TYPE_PERF_EVENT`: in a profiler those are the samplers alone.
const PERF_EVENT_PROGRAM: u64 = 7;

/// How long a profiler may take to load its programs before we give it up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The sampling programs of a process, found by the descriptors the process has on them: another
/// profiler may run programs of the same names at the same time. One that goes on by a tail call
/// takes the time of the next one upon itself.
pub struct SamplingPrograms(u32);

impl SamplingPrograms {
    /// Waits for process `pid` to load one.
    pub fn wait_for(pid: u32) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let programs = Self(pid);
        while programs.run_time().is_none() {
            if Instant::now() > deadline {
                bail!("process {pid} loaded no sampling program; its own message may tell why");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(programs)
    }

    /// Run time in nanoseconds and number of runs so far; `None` when there are no programs, or
    /// the process is gone.
    pub fn run_time(&self) -> Option<(u64, u64)> {
        descriptors(self.0)
            .filter_map(|text| Some((field(&text, "prog_id")?, run_time(&text)?)))
            // Two descriptors may stand for one program.
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .reduce(|(time, runs), (more_time, more_runs)| (time + more_time, runs + more_runs))
    }
}

/// Run time in nanoseconds and number of runs of a sampling program, from the text of a descriptor.
fn run_time(text: &str) -> Option<(u64, u64)> {
    (field(text, "prog_type")? == PERF_EVENT_PROGRAM)
        .then(|| Some((field(text, "run_time_ns")?, field(text, "run_cnt")?)))?
}

/// Time during which the hypervisor ran something else although one of these CPUs had work.
pub fn stolen_time(cpus: &[u32]) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    parse_stolen_time(&text, cpus).context("/proc/stat tells no stolen time")
}

/// Hundredths of a second are what the kernel shows to programs on every architecture we know
/// (`USER_HZ`); stolen time is the eighth number.
fn parse_stolen_time(text: &str, cpus: &[u32]) -> Option<Duration> {
    let mut ticks = 0;
    for cpu in cpus {
        let name = format!("cpu{cpu} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name))?;
        ticks += line.split_whitespace().nth(7)?.parse::<u64>().ok()?;
    }
    Some(Duration::from_millis(ticks * 10))
}

/// Bytes that the kernel keeps for the BPF maps of process `pid`.
pub fn map_bytes(pid: u32) -> u64 {
    descriptors(pid)
        .filter(|text| field(text, "map_type").is_some())
        .filter_map(|text| Some((field(&text, "map_id")?, field(&text, "memlock")?)))
        // Two descriptors may stand for one map.
        .collect::<BTreeMap<_, _>>()
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

fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
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
    fn only_samplers_have_a_run_time() {
        assert_eq!(
            run_time("prog_type:\t7\nrun_time_ns:\t1200\nrun_cnt:\t3\n"),
            Some((1200, 3))
        );
        assert_eq!(
            run_time("prog_type:\t5\nrun_time_ns:\t1200\nrun_cnt:\t3\n"),
            None
        );
        assert_eq!(run_time("map_type:\t7\n"), None);
    }

    #[test]
    fn stolen_time_is_that_of_the_cpus_asked_for() {
        let text =
            "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 1 1 1 1 1 1 5 0 0\ncpu1 1 1 1 1 1 1 1 7 0 0\n";
        assert_eq!(
            parse_stolen_time(text, &[1]),
            Some(Duration::from_millis(70))
        );
        assert_eq!(
            parse_stolen_time(text, &[0, 1]),
            Some(Duration::from_millis(120))
        );
        assert_eq!(parse_stolen_time(text, &[2]), None);
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
