//! What system calls came to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::durations::{Durations, add_counts, counts_since};

/// Calls of one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyscallStats {
    /// Calls that returned, and the time from entry to return.
    pub returned: Durations,
    /// Those that failed, by the error's number.
    pub errors: BTreeMap<u32, u64>,
    /// Calls that have not returned.
    pub in_flight: u64,
}

impl SyscallStats {
    /// Takes in other calls.
    pub fn add(&mut self, other: &Self) {
        self.returned.add(&other.returned);
        self.in_flight += other.in_flight;
        add_counts(&mut self.errors, &other.errors);
    }

    /// The calls since an earlier state of the same; the longest is the longest of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            returned: self.returned.since(&before.returned),
            in_flight: self.in_flight,
            errors: counts_since(&self.errors, &before.errors),
        }
    }

    /// Calls that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// A system call that was among the slowest of its kind.
#[derive(Clone, Debug, Serialize)]
pub struct SlowCall {
    /// Name of the system call.
    pub syscall: String,
    /// From entry to return.
    pub duration_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Name of the process.
    pub process: String,
    /// Name of the thread.
    pub thread: String,
    /// Functions, from the thread's first one to the one that made the call.
    pub stack: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(durations: &[(u64, u64)], max_ns: u64) -> SyscallStats {
        let returned = Durations {
            count: durations.iter().map(|&(_, count)| count).sum(),
            buckets: durations.iter().copied().collect(),
            max_ns,
            ..Durations::default()
        };
        SyscallStats {
            returned,
            ..SyscallStats::default()
        }
    }

    #[test]
    fn what_was_before_is_taken_off() {
        let mut now = stats(&[(64, 5), (128, 2)], 200);
        now.errors = [(2, 3), (11, 1)].into();
        let mut before = stats(&[(64, 5)], 100);
        before.errors = [(2, 1)].into();
        let since = now.since(&before);
        assert_eq!((since.returned.count, since.failed()), (2, 3));
        assert_eq!(since.returned.buckets, [(128, 2)].into());
        before.add(&since);
        assert_eq!(before, now);
    }
}
