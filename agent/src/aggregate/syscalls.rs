//! System calls by name and by process, over the whole time.
//!
//! In: rows of the kernel side, and calls in flight. Out: [`SyscallStats`] by name. Processes that ended
//! keep their numbers here, up to a bound; those of more are kept together.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::model::SyscallStats;

/// Processes that are told apart. Those that end when there are as many are kept together.
const MAX_PROCESSES: usize = 4096;

/// The calls of a process, or of some.
pub type Calls = BTreeMap<Cow<'static, str>, SyscallStats>;

/// Everything that was counted.
#[derive(Clone, Debug, Default)]
pub struct SyscallTotals {
    /// Processes that ended.
    ended: BTreeMap<u32, Calls>,
    /// Those that ended when there was no room for one more.
    others: Calls,
    /// Processes that run, as they were last read.
    running: BTreeMap<u32, Calls>,
}

impl SyscallTotals {
    /// Takes in what a process that ended made.
    pub fn add_ended(&mut self, pid: u32, name: Cow<'static, str>, stats: &SyscallStats) {
        let is_full = self.ended.len() >= MAX_PROCESSES && !self.ended.contains_key(&pid);
        let calls = if is_full {
            &mut self.others
        } else {
            self.ended.entry(pid).or_default()
        };
        calls.entry(name).or_default().add(stats);
    }

    /// Forgets what was read of running processes, to read it anew.
    pub fn clear_running(&mut self) {
        self.running.clear();
    }

    /// Takes in what a running process made so far.
    pub fn add_running(&mut self, pid: u32, name: Cow<'static, str>, stats: &SyscallStats) {
        let calls = self.running.entry(pid).or_default();
        calls.entry(name).or_default().add(stats);
    }

    /// All processes together.
    #[must_use]
    pub fn all(&self) -> Calls {
        let mut all = self.others.clone();
        for calls in self.ended.values().chain(self.running.values()) {
            add(&mut all, calls);
        }
        all
    }

    /// The calls of each process; of those that are not told apart under `None`.
    #[must_use]
    pub fn by_process(&self) -> BTreeMap<Option<u32>, Calls> {
        let pids: BTreeSet<_> = self.ended.keys().chain(self.running.keys()).collect();
        let of = |pid| {
            let mut calls = self.ended.get(pid).cloned().unwrap_or_default();
            if let Some(running) = self.running.get(pid) {
                add(&mut calls, running);
            }
            calls
        };
        let mut all: BTreeMap<_, _> = pids.into_iter().map(|pid| (Some(*pid), of(pid))).collect();
        if !self.others.is_empty() {
            all.insert(None, self.others.clone());
        }
        all
    }
}

fn add(to: &mut Calls, more: &Calls) {
    for (name, stats) in more {
        to.entry(name.clone()).or_default().add(stats);
    }
}

/// The calls since an earlier state; those that were made, or are in flight.
#[must_use]
pub fn since(now: &Calls, before: &Calls) -> Calls {
    let nothing = SyscallStats::default();
    let since = now.iter().map(|(name, stats)| {
        (
            name.clone(),
            stats.since(before.get(name).unwrap_or(&nothing)),
        )
    });
    since
        .filter(|(_, stats)| stats.returned.count + stats.in_flight > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Durations;

    fn stats(calls: u64) -> SyscallStats {
        SyscallStats {
            returned: Durations {
                count: calls,
                ..Durations::default()
            },
            ..SyscallStats::default()
        }
    }

    #[test]
    fn processes_that_ended_keep_their_numbers() {
        let mut totals = SyscallTotals::default();
        totals.add_ended(7, "read".into(), &stats(2));
        totals.add_running(7, "read".into(), &stats(3));
        totals.add_running(8, "write".into(), &stats(4));
        let before = totals.all();
        assert_eq!(
            (
                before["read"].returned.count,
                before["write"].returned.count
            ),
            (5, 4)
        );
        assert_eq!(totals.by_process()[&Some(7)]["read"].returned.count, 5);
        totals.clear_running();
        totals.add_running(8, "write".into(), &stats(9));
        assert_eq!(
            since(&totals.all(), &before),
            [("write".into(), stats(5))].into()
        );
    }

    #[test]
    fn processes_are_bounded_and_no_call_is_lost() {
        let mut totals = SyscallTotals::default();
        let many = MAX_PROCESSES as u32 + 100;
        for pid in 0..many {
            totals.add_ended(pid, "read".into(), &stats(1));
        }
        let by_process = totals.by_process();
        assert_eq!(by_process.len(), MAX_PROCESSES + 1);
        assert_eq!(by_process[&None]["read"].returned.count, 100);
        assert_eq!(totals.all()["read"].returned.count, u64::from(many));
    }
}
