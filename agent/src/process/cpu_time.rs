//! CPU time as the kernel accounts for it: the yardstick for how many samples there should be.
#![allow(unsafe_code)] // The clocks of other processes.

use std::fs;

use rustc_hash::FxHashMap;

use crate::capture::Cgroup;

/// CPU time of a process, its ended threads included; `None` when it is gone.
#[must_use]
pub fn of_process(pid: u32) -> Option<u64> {
    let mut clock = 0;
    // SAFETY: the clock id is written to a live variable.
    if unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid).ok()?, &raw mut clock) } != 0 {
        return None;
    }
    clock_ns(clock)
}

/// What a clock shows, by a system call alone; `None` when it is gone.
pub(super) fn clock_ns(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is written to a live variable.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// CPU time of each thread of a process that is alive.
#[must_use]
pub fn of_live_threads(pid: u32) -> FxHashMap<u32, u64> {
    let used_ns = |tid| {
        let path = format!("/proc/{pid}/task/{tid}/schedstat");
        let text = fs::read_to_string(path).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    let threads = super::threads(pid).unwrap_or_default();
    let known = threads
        .into_iter()
        .filter_map(|tid| Some((tid, used_ns(tid)?)));
    known.collect()
}

/// CPU time of a cgroup and all below it; `None` when its controller keeps no account.
#[must_use]
pub fn of_cgroup(cgroup: &Cgroup) -> Option<u64> {
    if let Ok(text) = fs::read_to_string(cgroup.path.join("cpuacct.usage")) {
        return text.trim().parse().ok();
    }
    let text = fs::read_to_string(cgroup.path.join("cpu.stat")).ok()?;
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usage.trim().parse::<u64>().ok()? * 1000)
}

/// Time that all CPUs together spent neither idle nor taken away by the hypervisor.
#[must_use]
pub fn of_host() -> Option<u64> {
    parse_busy_ticks(&fs::read_to_string("/proc/stat").ok()?).map(|ticks| ticks * 10_000_000)
}

/// `cpu user nice system idle iowait irq softirq steal guest guest_nice`, in 1/100 s; guest time
/// is part of user time.
fn parse_busy_ticks(stat: &str) -> Option<u64> {
    let fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        assert_eq!(
            parse_busy_ticks("cpu  1 2 4 1000 2000 8 16 4000 1 0\ncpu0 "),
            Some(31)
        );
        assert_eq!(parse_busy_ticks("cpu  1 2"), None);
        assert_eq!(parse_busy_ticks(""), None);
    }

    #[test]
    fn own_cpu_time_grows_with_work() {
        let pid = std::process::id();
        let before = of_process(pid).unwrap();
        let mut x = 1_u64;
        while of_process(pid).unwrap() < before + 1_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(of_live_threads(pid).values().sum::<u64>() >= 1_000_000);
        assert_eq!(of_process(u32::MAX), None);
    }
}
