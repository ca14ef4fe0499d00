//! What two readings of counters say about the time between them.

use std::time::Duration;

/// By how much a share of time may exceed the whole: the clocks of counters and ours are read one
/// after the other, and the kernel accounts in ticks. More is a counter that is wrong.
const TOLERANCE: f64 = 1.1;

/// The time between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    seconds: f64,
}

/// How much a counter grew; `None` when one reading lacks it, or it went back: it wrapped, or its
/// device was replaced, or its CPU was away.
#[must_use]
pub fn growth(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

/// The part that `part` is of `whole`; `None` when that is no part of anything.
#[must_use]
pub fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0 && part <= whole).then(|| part as f64 / whole as f64)
}

impl Interval {
    /// `None` for no time at all.
    #[must_use]
    pub fn new(elapsed: Duration) -> Option<Self> {
        let seconds = elapsed.as_secs_f64();
        (seconds > 0.0).then_some(Self { seconds })
    }

    /// Growth of a counter per second.
    #[must_use]
    pub fn per_s(self, before: Option<u64>, now: Option<u64>) -> Option<f64> {
        growth(before, now).map(|growth| growth as f64 / self.seconds)
    }

    /// How many times the interval fits into a counter of time that makes `per_second` steps each
    /// second: an average number of those who spent that time.
    #[must_use]
    pub fn average(self, before: Option<u64>, now: Option<u64>, per_second: f64) -> Option<f64> {
        self.per_s(before, now).map(|rate| rate / per_second)
    }

    /// The share of the interval that a counter of time grew by, at most 1; `None` for what is
    /// impossible.
    #[must_use]
    pub fn share(self, before: Option<u64>, now: Option<u64>, per_second: f64) -> Option<f64> {
        let share = self.average(before, now, per_second)?;
        part_of_whole(share)
    }
}

/// A share that may exceed the whole by what clocks differ.
#[must_use]
pub fn part_of_whole(share: f64) -> Option<f64> {
    (0.0..=TOLERANCE).contains(&share).then(|| share.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_back_or_cannot_be_gives_no_number() {
        let interval = Interval::new(Duration::from_secs(2)).unwrap();
        assert_eq!(interval.per_s(Some(10), Some(30)), Some(10.0));
        assert_eq!(interval.per_s(Some(30), Some(10)), None);
        assert_eq!(interval.per_s(None, Some(10)), None);
        assert_eq!(interval.share(Some(0), Some(1000), 1000.0), Some(0.5));
        assert_eq!(interval.share(Some(0), Some(2010), 1000.0), Some(1.0));
        assert_eq!(interval.share(Some(0), Some(u64::MAX), 1000.0), None);
        assert!(Interval::new(Duration::ZERO).is_none());
        assert_eq!(ratio(1, 0), None);
        assert_eq!(ratio(2, 1), None);
        assert_eq!(ratio(1, 2), Some(0.5));
    }
}
