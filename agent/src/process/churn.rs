//! When to look again at what a process has mapped.
//!
//! The kernel reports what is mapped, and not what is unmapped: a library that was closed would stay
//! known, with its tables. So processes that mapped code while we watched are looked at again, soon
//! after that and then less and less often. Reading `/proc/PID/maps` costs about a microsecond a
//! line, so only so many bytes of it are read in a second, whatever happens on the host.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

/// From something mapped to the first look.
const FIRST_NS: u64 = 1_000_000_000;
/// Between two looks that found nothing new, at most.
const LONGEST_NS: u64 = 16_000_000_000;
/// Bytes of `/proc/PID/maps` a second: some seven hundred lines, not a millisecond.
const BYTES_PER_S: i64 = 64 << 10;

/// Processes to look at, by time.
#[derive(Debug)]
pub(super) struct Churn {
    by_time: BTreeSet<(u64, u32)>,
    turns: FxHashMap<u32, Turn>,
    /// What may be read now; below zero when a large process took more.
    bytes: i64,
    filled_mono_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    at_mono_ns: u64,
    pause_ns: u64,
}

impl Default for Churn {
    fn default() -> Self {
        Self {
            by_time: BTreeSet::new(),
            turns: FxHashMap::default(),
            bytes: BYTES_PER_S,
            filled_mono_ns: 0,
        }
    }
}

impl Churn {
    /// A process has mapped code.
    pub fn mapped(&mut self, pid: u32, now_mono_ns: u64) {
        self.set(pid, now_mono_ns, FIRST_NS);
    }

    /// A process has ended, or replaced its program.
    pub fn forget(&mut self, pid: u32) {
        if let Some(turn) = self.turns.remove(&pid) {
            self.by_time.remove(&(turn.at_mono_ns, pid));
        }
    }

    /// The process whose turn it is.
    pub fn next(&mut self, now_mono_ns: u64) -> Option<u32> {
        let since_ns = now_mono_ns.saturating_sub(self.filled_mono_ns);
        let gained = since_ns.min(1_000_000_000) as i64 * BYTES_PER_S / 1_000_000_000;
        if gained > 0 {
            self.bytes = (self.bytes + gained).min(BYTES_PER_S);
            self.filled_mono_ns = now_mono_ns;
        }
        let &(at_mono_ns, pid) = self.by_time.first()?;
        (at_mono_ns <= now_mono_ns && self.bytes > 0).then_some(pid)
    }

    /// A process was looked at, by reading that many bytes.
    pub fn looked(&mut self, pid: u32, bytes: usize, has_changed: bool, now_mono_ns: u64) {
        self.bytes -= bytes as i64;
        if let Some(turn) = self.turns.get(&pid) {
            let pause_ns = if has_changed {
                FIRST_NS
            } else {
                (turn.pause_ns * 2).min(LONGEST_NS)
            };
            self.set(pid, now_mono_ns, pause_ns);
        }
    }

    fn set(&mut self, pid: u32, now_mono_ns: u64, pause_ns: u64) {
        self.forget(pid);
        let at_mono_ns = now_mono_ns + pause_ns;
        self.by_time.insert((at_mono_ns, pid));
        let turn = Turn {
            at_mono_ns,
            pause_ns,
        };
        self.turns.insert(pid, turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn looks_become_rarer_until_something_changes() {
        let mut churn = Churn::default();
        churn.mapped(7, 0);
        churn.mapped(7, S / 2);
        let mut looks = Vec::new();
        for now in (0..60 * S).step_by(S as usize / 4) {
            while let Some(pid) = churn.next(now) {
                looks.push(now as f64 / S as f64);
                churn.looked(pid, 4000, looks.len() == 5, now);
            }
        }
        assert_eq!(looks, [1.5, 3.5, 7.5, 15.5, 31.5, 32.5, 34.5, 38.5, 46.5]);
        churn.forget(7);
        assert_eq!(churn.next(u64::MAX), None);
        assert!(churn.turns.is_empty() && churn.by_time.is_empty());
    }

    #[test]
    fn bytes_of_a_second_are_bounded_for_all_processes_together() {
        let mut churn = Churn::default();
        (0..10_000).for_each(|pid| churn.mapped(pid, 0));
        let (mut looked, mut bytes) = (std::collections::BTreeSet::new(), 0);
        for now in (0..100 * S).step_by(S as usize / 20) {
            while let Some(pid) = churn.next(now) {
                looked.insert(pid);
                bytes += 8000;
                churn.looked(pid, 8000, false, now);
            }
        }
        assert!(bytes <= 101 * BYTES_PER_S + 8000, "{bytes}");
        // They take turns.
        assert!(
            looked.len() as i64 * 8000 >= bytes * 9 / 10,
            "{}",
            looked.len()
        );
    }
}
