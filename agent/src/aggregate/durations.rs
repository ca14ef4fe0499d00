//! Distributions that the kernel side counted, for metrics.
//!
//! In: [`Durations`]. Out: histograms.

use crate::model::{Durations, ExponentialHistogram};

/// A histogram in seconds: each duration by the middle of its bucket, which is wrong by an eighth at most;
/// the sum is exact.
#[must_use]
pub fn histogram_s(durations: &Durations) -> ExponentialHistogram {
    histogram(durations, 1e9)
}

/// A histogram in units of so many nanoseconds.
#[must_use]
pub fn histogram(durations: &Durations, unit_ns: f64) -> ExponentialHistogram {
    let mut histogram = ExponentialHistogram::default();
    for (&start_ns, &count) in &durations.buckets {
        let end_ns = durations.bucket_end_ns(start_ns);
        histogram.record(start_ns.midpoint(end_ns) as f64 / unit_ns, count);
    }
    histogram.sum = durations.total_ns as f64 / unit_ns;
    histogram
}

#[cfg(test)]
mod tests {
    use hotspan_abi::durations::bucket_start_ns;

    use super::*;

    #[test]
    fn a_histogram_has_the_count_and_the_sum() {
        let durations = Durations {
            count: 3,
            total_ns: 3_000_000_000,
            max_ns: 2_000_000_000,
            buckets: [(bucket_start_ns(96), 2), (bucket_start_ns(100), 1)].into(),
        };
        let histogram = histogram_s(&durations);
        assert_eq!((histogram.count(), histogram.sum), (3, 3.0));
        assert!(histogram.counts.len() > 1);
    }
}
