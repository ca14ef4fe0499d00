//! What system calls came to.

use std::collections::BTreeMap;

/// Calls of one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyscallStats {
    /// Calls that returned.
    pub calls: u64,
    /// Those that failed, by the error's number.
    pub errors: BTreeMap<u32, u64>,
    /// Time from entry to return.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Calls by duration: those of at least so many nanoseconds, and less than the next bucket's.
    pub durations: BTreeMap<u64, u64>,
    /// Calls that have not returned.
    pub in_flight: u64,
}

impl SyscallStats {
    /// Takes in other calls.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.total_ns += other.total_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
        self.in_flight += other.in_flight;
        add_counts(&mut self.errors, &other.errors);
        add_counts(&mut self.durations, &other.durations);
    }

    /// The calls since an earlier state of the same; the longest is the longest of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            calls: self.calls.saturating_sub(before.calls),
            total_ns: self.total_ns.saturating_sub(before.total_ns),
            max_ns: self.max_ns,
            in_flight: self.in_flight,
            errors: counts_since(&self.errors, &before.errors),
            durations: counts_since(&self.durations, &before.durations),
        }
    }

    /// Calls that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The duration in nanoseconds that this part of the calls does not exceed, 0 when there are none.
    /// `end_of` tells where a bucket ends that starts there; inside it calls are taken for evenly
    /// spread, and none for longer than the longest.
    #[must_use]
    pub fn quantile_ns(&self, part: f64, end_of: impl Fn(u64) -> u64) -> u64 {
        let wanted = part * self.calls as f64;
        let mut below = 0.0;
        for (&start, &count) in &self.durations {
            let count = count as f64;
            if below + count >= wanted {
                let end = end_of(start).min(self.max_ns.max(start));
                let into = (wanted - below).max(0.0) / count;
                return start + (into * (end - start) as f64) as u64;
            }
            below += count;
        }
        self.max_ns
    }
}

fn add_counts<K: Copy + Ord>(to: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (&key, &count) in more {
        *to.entry(key).or_default() += count;
    }
}

fn counts_since<K: Copy + Ord>(
    now: &BTreeMap<K, u64>,
    before: &BTreeMap<K, u64>,
) -> BTreeMap<K, u64> {
    let since = now.iter().map(|(key, &count)| {
        let before = before.get(key).copied().unwrap_or(0);
        (*key, count.saturating_sub(before))
    });
    since.filter(|&(_, count)| count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(durations: &[(u64, u64)], max_ns: u64) -> SyscallStats {
        SyscallStats {
            calls: durations.iter().map(|&(_, count)| count).sum(),
            durations: durations.iter().copied().collect(),
            max_ns,
            ..SyscallStats::default()
        }
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let stats = stats(&[(64, 50), (1024, 49), (1 << 20, 1)], (1 << 20) + 10);
        let quantile = |part| stats.quantile_ns(part, |start| start * 2);
        assert_eq!(quantile(0.25), 96);
        assert_eq!(quantile(0.5), 128);
        assert_eq!(quantile(0.99), 2048);
        assert_eq!(quantile(1.0), (1 << 20) + 10);
        assert_eq!(SyscallStats::default().quantile_ns(0.5, |start| start), 0);
    }

    #[test]
    fn what_was_before_is_taken_off() {
        let mut now = stats(&[(64, 5), (128, 2)], 200);
        now.errors = [(2, 3), (11, 1)].into();
        let mut before = stats(&[(64, 5)], 100);
        before.errors = [(2, 1)].into();
        let since = now.since(&before);
        assert_eq!((since.calls, since.failed()), (2, 3));
        assert_eq!(since.durations, [(128, 2)].into());
        before.add(&since);
        assert_eq!(before, now);
    }
}
