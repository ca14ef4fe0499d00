//! Base-2 exponential histograms: their resolution falls as the range of values grows, so that
//! the number of buckets is bounded. OpenTelemetry metrics data model, "ExponentialHistogram".

use crate::model::ExponentialHistogram;

/// Most buckets of a histogram: the specification's default.
pub const MAX_BUCKETS: usize = 160;

/// The finest resolution: where the specification starts.
const MAX_SCALE: i32 = 20;

/// The coarsest: every positive float falls into one of few buckets.
const MIN_SCALE: i32 = -10;

/// The bits of a float's fraction.
const FRACTION_BITS: u32 = 52;

impl Default for ExponentialHistogram {
    fn default() -> Self {
        Self {
            scale: MAX_SCALE,
            zero_count: 0,
            offset: 0,
            counts: Vec::new(),
            sum: 0.0,
            extremes: None,
        }
    }
}

impl ExponentialHistogram {
    /// Counts `count` values like `value`; false, and nothing happens, when it is negative or no
    /// number.
    ///
    /// A histogram of the kernel, whose buckets have other limits, comes in by a value of each
    /// bucket; whoever does that knows a better `sum`.
    pub fn record(&mut self, value: f64, count: u64) -> bool {
        if !value.is_finite() || value < 0.0 {
            return false;
        }
        if count == 0 {
            return true;
        }
        self.sum += value * count as f64;
        let (least, most) = self.extremes.unwrap_or((value, value));
        self.extremes = Some((least.min(value), most.max(value)));
        if value == 0.0 {
            self.zero_count = self.zero_count.saturating_add(count);
            return true;
        }
        let (finest, scale) = (index_of(value, self.scale), self.scale);
        self.make_room(finest, finest);
        self.add(finest >> (scale - self.scale), count);
        true
    }

    /// Adds all that `other` counted; limits of buckets stay exact.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.zero_count = self.zero_count.saturating_add(other.zero_count);
        self.extremes = match (self.extremes, other.extremes) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (extremes, None) | (None, extremes) => extremes,
        };
        let mut other = other.clone();
        other.lower_scale(self.scale);
        self.lower_scale(other.scale);
        let Some(last) = last_index(&other) else {
            return;
        };
        self.make_room(other.offset, last);
        other.lower_scale(self.scale);
        for (at, &count) in (other.offset..).zip(&other.counts) {
            if count > 0 {
                self.add(at, count);
            }
        }
    }

    /// What was counted since `before`, an earlier state of this histogram; `None` when it is
    /// none. Extremes of a part are not known.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        let mut before = before.clone();
        before.lower_scale(self.scale);
        let mut part = self.clone();
        part.sum -= before.sum;
        part.zero_count = part.zero_count.checked_sub(before.zero_count)?;
        for (at, &count) in (before.offset..).zip(&before.counts) {
            if count == 0 {
                continue;
            }
            let slot = usize::try_from(at.checked_sub(part.offset)?).ok()?;
            let place = part.counts.get_mut(slot)?;
            *place = place.checked_sub(count)?;
        }
        if part.count() != self.count() {
            part.extremes = None;
        }
        (part.scale <= before.scale).then_some(part)
    }

    /// Lowers the scale until the buckets from `first` to `last`, indexes of the present scale, fit
    /// in beside those there are.
    fn make_room(&mut self, first: i32, last: i32) {
        let (low, high) = match last_index(self) {
            Some(own) => (first.min(self.offset), last.max(own)),
            None => (first, last),
        };
        let mut by = 0;
        while (i64::from(high >> by) - i64::from(low >> by)) >= MAX_BUCKETS as i64
            && self.scale - by > MIN_SCALE
        {
            by += 1;
        }
        self.lower_scale(self.scale - by);
    }

    /// Merges neighbours, without loss but that of resolution, until the scale is at most `scale`.
    fn lower_scale(&mut self, scale: i32) {
        let by = self.scale - scale;
        if by <= 0 {
            return;
        }
        self.scale = scale;
        let offset = self.offset >> by;
        let mut counts: Vec<u64> = Vec::new();
        for (at, &count) in (self.offset..).zip(&self.counts) {
            let slot = ((at >> by) - offset) as usize;
            if counts.len() <= slot {
                counts.resize(slot + 1, 0);
            }
            counts[slot] = counts[slot].saturating_add(count);
        }
        (self.offset, self.counts) = (offset, counts);
    }

    /// Counts in one bucket, for which there is room.
    fn add(&mut self, index: i32, count: u64) {
        if self.counts.is_empty() {
            self.offset = index;
        }
        if index < self.offset {
            let more = (self.offset - index) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.offset = index;
        }
        let slot = (index - self.offset) as usize;
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, 0);
        }
        self.counts[slot] = self.counts[slot].saturating_add(count);
    }
}

fn last_index(histogram: &ExponentialHistogram) -> Option<i32> {
    let length = i32::try_from(histogram.counts.len()).ok()?;
    (length > 0).then(|| histogram.offset + length - 1)
}

/// The bucket that a positive value falls into.
fn index_of(value: f64, scale: i32) -> i32 {
    let bits = value.to_bits();
    let fraction = bits & ((1 << FRACTION_BITS) - 1);
    // Numbers below the normal ones are counted as the smallest of those.
    let exponent = ((bits >> FRACTION_BITS) as i32).max(1) - 1023;
    // A power of two is the upper limit of its bucket.
    let is_power = fraction == 0;
    let below = exponent - i32::from(is_power);
    if scale <= 0 {
        return below >> -scale;
    }
    if is_power {
        return (exponent << scale) - 1;
    }
    // The logarithm is off by its last bit: an octave's values stay in its buckets.
    let position = (value.log2() * f64::from(scale).exp2()).ceil() as i64 - 1;
    let first = i64::from(exponent) << scale;
    let last = (i64::from(exponent + 1) << scale) - 1;
    position.clamp(first, last) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> ExponentialHistogram {
        let mut histogram = ExponentialHistogram::default();
        for &value in values {
            assert!(histogram.record(value, 1));
        }
        histogram
    }

    /// The upper limit of the bucket that holds the value at `rank`.
    fn bound_at(histogram: &ExponentialHistogram, rank: u64) -> f64 {
        let mut seen = histogram.zero_count;
        if rank < seen {
            return 0.0;
        }
        for (at, count) in (histogram.offset..).zip(&histogram.counts) {
            seen += count;
            if rank < seen {
                return histogram.upper_bound(at);
            }
        }
        panic!("there is no rank {rank}")
    }

    fn random_values(seed: u64, count: usize) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(seed);
        let spread = random.f64() * 30.0;
        (0..count)
            .map(|_| ((random.f64() - 0.5) * spread).exp2())
            .collect()
    }

    #[test]
    fn quantiles_are_as_exact_as_the_scale_says() {
        for seed in 0..20 {
            let mut values = random_values(seed, 2_000);
            let histogram = of(&values);
            assert!(histogram.counts.len() <= MAX_BUCKETS);
            assert_eq!(histogram.count(), 2_000);
            values.sort_by(f64::total_cmp);
            let base = f64::from(-histogram.scale).exp2().exp2();
            for rank in [0, 500, 1_000, 1_900, 1_999] {
                let (exact, bound) = (values[rank], bound_at(&histogram, rank as u64));
                let is_within =
                    bound >= exact * (1.0 - 1e-9) && bound <= exact * base * (1.0 + 1e-9);
                assert!(is_within, "{exact} {bound} {base}");
            }
        }
    }

    #[test]
    fn a_power_of_two_is_the_upper_limit_of_its_bucket() {
        for scale in -3..=20 {
            for exponent in [-20, -1, 0, 1, 7] {
                let value = f64::from(exponent).exp2();
                let at = index_of(value, scale);
                let histogram = ExponentialHistogram {
                    scale,
                    ..Default::default()
                };
                assert!(histogram.upper_bound(at) >= value, "{scale} {exponent}");
                assert!(histogram.upper_bound(at - 1) < value, "{scale} {exponent}");
                assert!(index_of(value * 1.000_001, scale) > at || scale < 0);
            }
        }
    }

    #[test]
    fn any_float_finds_a_bucket() {
        let mut histogram = ExponentialHistogram::default();
        for value in [
            f64::MIN_POSITIVE / 4.0,
            f64::MIN_POSITIVE,
            1.0,
            0.0,
            f64::MAX,
        ] {
            assert!(histogram.record(value, 1));
        }
        assert!(histogram.counts.len() <= MAX_BUCKETS);
        assert_eq!((histogram.count(), histogram.zero_count), (5, 1));
        for value in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(!histogram.record(value, 1));
        }
        assert_eq!(histogram.count(), 5);
    }

    #[test]
    fn merging_is_the_same_as_recording_all() {
        for seed in 0..20 {
            let (a, b) = (random_values(seed, 300), random_values(seed + 100, 50));
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let whole = of(&[a, b].concat());
            assert_eq!(merged.scale, whole.scale);
            assert_eq!(
                (merged.offset, &merged.counts),
                (whole.offset, &whole.counts)
            );
            assert_eq!(merged.extremes, whole.extremes);
        }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let (a, b) = (random_values(1, 100), random_values(2, 100));
        let before = of(&a);
        let now = of(&[a, b].concat());
        let mut sum = before.clone();
        sum.merge(&now.since(&before).unwrap());
        assert_eq!(
            (sum.scale, sum.offset, &sum.counts),
            (now.scale, now.offset, &now.counts)
        );
        assert_eq!(before.since(&now), None);
    }
}
