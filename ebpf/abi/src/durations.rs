//! How often something happened and how long it took, added up in the kernel.

/// Buckets of durations: a power of two of nanoseconds is four of them.
pub const BUCKETS: usize = 128;
const _: () = assert!(BUCKETS.is_power_of_two());

/// Bits of a duration behind its first that choose a bucket.
pub const BUCKET_BITS: u32 = 2;

/// Shorter durations are all in the first bucket: 2^6 ns.
pub const FIRST_POWER: u32 = 6;

/// The bucket of a duration. The last one has no upper end: it begins at two minutes.
#[inline(always)]
#[must_use]
pub const fn bucket_of(duration_ns: u64) -> u32 {
    if duration_ns < 1 << FIRST_POWER {
        return 0;
    }
    let power = power_of(duration_ns);
    let part = (duration_ns >> (power - BUCKET_BITS)) as u32 & ((1 << BUCKET_BITS) - 1);
    let bucket = ((power - FIRST_POWER) << BUCKET_BITS) + part + 1;
    if bucket < BUCKETS as u32 {
        bucket
    } else {
        BUCKETS as u32 - 1
    }
}

/// The highest power of two in a number that is not 0. BPF has no instruction for it; what is made of
/// `leading_zeros` takes longer than these branches, which a processor foresees.
#[inline(always)]
const fn power_of(number: u64) -> u32 {
    let (mut rest, mut power) = (number, 0);
    if rest >> 32 != 0 {
        (rest, power) = (rest >> 32, 32);
    }
    if rest >> 16 != 0 {
        (rest, power) = (rest >> 16, power + 16);
    }
    if rest >> 8 != 0 {
        (rest, power) = (rest >> 8, power + 8);
    }
    if rest >> 4 != 0 {
        (rest, power) = (rest >> 4, power + 4);
    }
    if rest >> 2 != 0 {
        (rest, power) = (rest >> 2, power + 2);
    }
    power + (rest >> 1) as u32
}

/// The shortest duration of a bucket, in nanoseconds. That of the next one is where it ends.
#[must_use]
pub const fn bucket_start_ns(bucket: u32) -> u64 {
    let Some(bucket) = bucket.checked_sub(1) else {
        return 0;
    };
    let part = (bucket & ((1 << BUCKET_BITS) - 1)) as u64;
    let power = (bucket >> BUCKET_BITS) + FIRST_POWER;
    (1 << power) + (part << (power - BUCKET_BITS))
}

/// What was counted of one kind of event, on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Durations {
    /// How often it happened.
    pub count: u64,
    /// How long that took altogether.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// How often by duration, see [`bucket_of`].
    pub buckets: [u32; BUCKETS],
}
const _: () = assert!(size_of::<Durations>() == 24 + BUCKETS * 4);

impl Durations {
    /// Nothing yet.
    pub const ZERO: Self = Self {
        count: 0,
        total_ns: 0,
        max_ns: 0,
        buckets: [0; BUCKETS],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(63), 0);
        assert_eq!(bucket_of(64), 1);
        for bucket in 1..BUCKETS as u32 {
            let start = bucket_start_ns(bucket);
            assert_eq!(
                (bucket_of(start), bucket_of(start - 1)),
                (bucket, bucket - 1)
            );
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS as u32 - 1);
        assert!(bucket_start_ns(BUCKETS as u32 - 1) > 100_000_000_000);
    }
}
