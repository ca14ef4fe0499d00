//! Histograms with limits that are given.

use std::sync::Arc;

use crate::model::ExplicitHistogram;

impl ExplicitHistogram {
    /// An empty one with these upper limits, which ascend.
    #[must_use]
    pub fn new(bounds: Arc<[f64]>) -> Self {
        Self {
            counts: vec![0; bounds.len() + 1],
            bounds,
            sum: 0.0,
            extremes: None,
        }
    }

    /// Counts a value; false, and nothing happens, when it is no number.
    pub fn record(&mut self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] = self.counts[at].saturating_add(1);
        self.sum += value;
        let (least, most) = self.extremes.unwrap_or((value, value));
        self.extremes = Some((least.min(value), most.max(value)));
        true
    }

    /// Adds all that `other` counted; false, and nothing happens, when its limits are others.
    pub fn merge(&mut self, other: &Self) -> bool {
        if self.bounds != other.bounds || self.counts.len() != other.counts.len() {
            return false;
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum += other.sum;
        self.extremes = match (self.extremes, other.extremes) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (extremes, None) | (None, extremes) => extremes,
        };
        true
    }

    /// What was counted since `before`, an earlier state of this histogram; `None` when it is
    /// none.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        if self.bounds != before.bounds {
            return None;
        }
        let pairs = self.counts.iter().zip(&before.counts);
        let counts = pairs.map(|(now, before)| now.checked_sub(*before));
        Some(Self {
            bounds: self.bounds.clone(),
            counts: counts.collect::<Option<_>>()?,
            sum: self.sum - before.sum,
            extremes: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_equal_to_a_limit_is_below_it() {
        let mut histogram = ExplicitHistogram::new([0.1, 1.0].into());
        for value in [0.1, 0.11, 1.0, 1.5] {
            assert!(histogram.record(value));
        }
        assert!(!histogram.record(f64::NAN));
        assert_eq!(histogram.counts, [1, 2, 1]);
        assert_eq!(histogram.extremes, Some((0.1, 1.5)));
        let mut twice = histogram.clone();
        assert!(twice.merge(&histogram));
        assert_eq!(twice.counts, [2, 4, 2]);
        assert_eq!(twice.since(&histogram).unwrap().counts, [1, 2, 1]);
        assert_eq!(histogram.since(&twice), None);
        assert!(!twice.merge(&ExplicitHistogram::new([0.1].into())));
    }
}
