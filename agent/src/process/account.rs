//! How much CPU time the targets used while they were sampled.
//!
//! A live process has a clock of its own, which counts its ended threads too. A process that ended
//! has left the CPU time of each of its threads in the exit events. A cgroup whose controller keeps
//! no account is the sum of its processes.

use rustc_hash::FxHashMap;

use super::cpu_time;
use crate::capture::{Cgroup, Target};

/// The account of one capture.
pub enum CpuAccount {
    /// The whole host.
    Host {
        /// Busy time at the start.
        start_ns: u64,
    },
    /// A cgroup and all below it.
    Cgroup {
        /// The cgroup.
        cgroup: Cgroup,
        /// Its CPU time at the start.
        start_ns: u64,
    },
    /// Single processes.
    Processes(FxHashMap<u32, ProcessAccount>),
}

/// The account of one process.
#[derive(Default)]
pub struct ProcessAccount {
    /// CPU time of the whole process at the start.
    start_ns: u64,
    /// Of it, the time of each thread that was alive then: its exit will tell it again.
    start_threads_ns: FxHashMap<u32, u64>,
    /// CPU time since then of the threads whose exit was seen.
    exited_ns: u64,
    /// Of them, those whose time is not final yet: what their exit said, by thread.
    unsettled: FxHashMap<u32, u64>,
    has_ended: bool,
}

impl CpuAccount {
    /// Opens the account: reads what the target has used so far.
    #[must_use]
    pub fn open(target: &Target) -> Self {
        match target {
            Target::All => Self::Host {
                start_ns: cpu_time::of_host().unwrap_or(0),
            },
            Target::Cgroup(cgroup) => match cpu_time::of_cgroup(cgroup) {
                Some(start_ns) => Self::Cgroup {
                    cgroup: cgroup.clone(),
                    start_ns,
                },
                None => Self::Processes(FxHashMap::default()),
            },
            Target::Pids => Self::Processes(FxHashMap::default()),
        }
    }

    /// Adds a process that runs already.
    pub fn add_running(&mut self, pid: u32) {
        if let Self::Processes(accounts) = self {
            let account = ProcessAccount {
                start_ns: cpu_time::of_process(pid).unwrap_or(0),
                start_threads_ns: cpu_time::of_live_threads(pid),
                ..ProcessAccount::default()
            };
            accounts.insert(pid, account);
        }
    }

    /// Adds a process that is sampled from here on, and has used `used_ns` before.
    pub fn add_started(&mut self, pid: u32, used_ns: u64) {
        if let Self::Processes(accounts) = self {
            accounts.entry(pid).or_insert(ProcessAccount {
                start_ns: used_ns,
                start_threads_ns: FxHashMap::from_iter([(pid, used_ns)]),
                ..ProcessAccount::default()
            });
        }
    }

    /// Takes in the end of a thread since the account was opened. Its time up to then is not final: the scheduler has not added
    /// the last moments, and taking the process down is still to come.
    pub fn thread_exit(&mut self, pid: u32, tid: u32, thread_cpu_ns: u64, is_last_thread: bool) {
        if let Self::Processes(accounts) = self {
            let account = accounts.entry(pid).or_default();
            let start_ns = account.start_threads_ns.remove(&tid).unwrap_or(0);
            account.exited_ns += thread_cpu_ns.saturating_sub(start_ns);
            account.unsettled.insert(tid, thread_cpu_ns);
            account.has_ended |= is_last_thread;
        }
    }

    /// Takes in the final time of a thread that ended.
    pub fn thread_free(&mut self, pid: u32, tid: u32, thread_cpu_ns: u64) {
        if let Self::Processes(accounts) = self
            && let Some(account) = accounts.get_mut(&pid)
            && let Some(before_ns) = account.before_free(tid)
        {
            account.exited_ns += thread_cpu_ns.saturating_sub(before_ns);
        }
    }

    /// Whether the final time of every thread that ended is known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Host { .. } | Self::Cgroup { .. } => true,
            Self::Processes(accounts) => accounts
                .values()
                .all(|account| account.unsettled.is_empty()),
        }
    }

    /// CPU time used since the account was opened, in nanoseconds.
    #[must_use]
    pub fn close(&self) -> u64 {
        match self {
            Self::Host { start_ns } => cpu_time::of_host().unwrap_or(0).saturating_sub(*start_ns),
            Self::Cgroup { cgroup, start_ns } => cpu_time::of_cgroup(cgroup)
                .unwrap_or(0)
                .saturating_sub(*start_ns),
            Self::Processes(accounts) => accounts
                .iter()
                .map(|(&pid, account)| account.used_ns(pid))
                .sum(),
        }
    }
}

impl ProcessAccount {
    /// What is known of the time of a thread that is freed now: its exit may have been before the start.
    fn before_free(&mut self, tid: u32) -> Option<u64> {
        let at_start = self.start_threads_ns.remove(&tid);
        self.unsettled.remove(&tid).or(at_start)
    }

    fn used_ns(&self, pid: u32) -> u64 {
        match cpu_time::of_process(pid) {
            Some(now_ns) if !self.has_ended => now_ns.saturating_sub(self.start_ns),
            _ => self.exited_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No process has this id: the kernel's are lower.
    const NO_PID: u32 = 1 << 22;

    #[test]
    fn ended_process_is_charged_what_its_threads_left() {
        let mut account = CpuAccount::Processes(FxHashMap::default());
        account.add_started(NO_PID, 100);
        account.thread_exit(NO_PID, NO_PID, 1_000, false);
        account.thread_exit(NO_PID, 2, 2_000, true);
        assert_eq!((account.close(), account.is_settled()), (2_900, false));
        account.thread_free(NO_PID, NO_PID, 1_500);
        account.thread_free(NO_PID, 2, 2_000);
        assert_eq!((account.close(), account.is_settled()), (3_400, true));
    }

    #[test]
    fn time_from_before_does_not_count() {
        let running = ProcessAccount {
            start_threads_ns: FxHashMap::from_iter([(1, 500), (2, 5_000)]),
            ..ProcessAccount::default()
        };
        let mut account = CpuAccount::Processes(FxHashMap::from_iter([(NO_PID, running)]));
        account.thread_exit(NO_PID, 1, 700, false);
        assert_eq!(account.close(), 200);
        // Another thread with the same id starts at zero.
        account.thread_exit(NO_PID, 1, 30, false);
        assert_eq!(account.close(), 230);
        account.thread_free(NO_PID, 2, 5_004);
        assert_eq!(account.close(), 234);
    }

    #[test]
    fn process_that_was_never_announced_counts_from_zero() {
        let mut account = CpuAccount::Processes(FxHashMap::default());
        account.thread_exit(NO_PID, NO_PID, 7, true);
        assert_eq!(account.close(), 7);
    }
}
