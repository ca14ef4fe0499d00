//! How often something happened, and how long it took.

use std::collections::BTreeMap;

use hotspan_abi::durations::{bucket_of, bucket_start_ns};

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How often it happened.
    pub count: u64,
    /// How long that took altogether.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// How often by duration, by the start of buckets, which are those of [`hotspan_abi::durations`].
    pub buckets: BTreeMap<u64, u64>,
}

impl Durations {
    /// Takes in others.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.total_ns += other.total_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
        add_counts(&mut self.buckets, &other.buckets);
    }

    /// Those since an earlier state of the same; the longest is the longest of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            total_ns: self.total_ns.saturating_sub(before.total_ns),
            max_ns: self.max_ns,
            buckets: buckets_since(&self.buckets, &before.buckets),
        }
    }

    /// The duration in nanoseconds that this part does not exceed, 0 when there are none. Inside a bucket
    /// durations are taken for evenly spread, and none for longer than the longest.
    #[must_use]
    pub fn quantile_ns(&self, part: f64) -> u64 {
        let wanted = part * self.count as f64;
        let mut below = 0.0;
        for (&start, &count) in &self.buckets {
            let count = count as f64;
            if below + count >= wanted {
                let end = self.bucket_end_ns(start);
                let into = (wanted - below).max(0.0) / count;
                return start + (into * (end - start) as f64) as u64;
            }
            below += count;
        }
        self.max_ns
    }

    /// Where the bucket ends that starts there, in nanoseconds: nothing took longer than the longest.
    #[must_use]
    pub fn bucket_end_ns(&self, start_ns: u64) -> u64 {
        bucket_start_ns(bucket_of(start_ns) + 1).min(self.max_ns.max(start_ns))
    }
}

pub(super) fn add_counts<K: Copy + Ord>(to: &mut BTreeMap<K, u64>, more: &BTreeMap<K, u64>) {
    for (&key, &count) in more {
        *to.entry(key).or_default() += count;
    }
}

pub(super) fn counts_since<K: Copy + Ord>(
    now: &BTreeMap<K, u64>,
    before: &BTreeMap<K, u64>,
) -> BTreeMap<K, u64> {
    let since = now.iter().map(|(key, &count)| {
        let before = before.get(key).copied().unwrap_or(0);
        (*key, count.saturating_sub(before))
    });
    since.filter(|&(_, count)| count > 0).collect()
}

/// The same for buckets, which the kernel side counts in 32 bits: one that went back went once around.
fn buckets_since(now: &BTreeMap<u64, u64>, before: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let since = now.iter().map(|(start, &count)| {
        let before = before.get(start).copied().unwrap_or(0);
        let around = if count < before { 1 << 32 } else { 0 };
        (*start, (count + around).saturating_sub(before))
    });
    since.filter(|&(_, count)| count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let durations = Durations {
            count: 100,
            max_ns: (1 << 20) + 10,
            buckets: [(64, 50), (1024, 49), (1 << 20, 1)].into(),
            ..Durations::default()
        };
        assert_eq!(durations.quantile_ns(0.25), 72);
        assert_eq!(durations.quantile_ns(0.5), 80);
        assert_eq!(durations.quantile_ns(0.99), 1280);
        assert_eq!(durations.quantile_ns(1.0), (1 << 20) + 10);
        assert_eq!(Durations::default().quantile_ns(0.5), 0);
    }

    #[test]
    fn a_bucket_that_went_around_has_counted_on() {
        let of = |count: u64, bucket| Durations {
            count,
            buckets: [(64, bucket)].into(),
            ..Durations::default()
        };
        let since = of((1 << 32) + 5, 5).since(&of((1 << 32) - 10, (1 << 32) - 10));
        assert_eq!((since.count, &since.buckets), (15, &[(64, 15)].into()));
    }
}
