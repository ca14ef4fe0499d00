//! Rows of durations as maps hold them.

use hotspan_abi::durations::{BUCKETS, Durations as Row, bucket_start_ns};

use crate::model::Durations;

/// [`Row`] in words.
pub type DurationWords = [u64; size_of::<Row>() / 8];

/// Nothing yet.
pub const NO_DURATIONS: DurationWords = [0; size_of::<Row>() / 8];

/// What a row holds for one CPU.
pub fn durations_of(&[count, total_ns, max_ns, ref buckets @ ..]: &DurationWords) -> Durations {
    let counts = buckets
        .iter()
        .flat_map(|&two| [two as u32, (two >> 32) as u32]);
    let buckets = (0..BUCKETS as u32)
        .zip(counts)
        .filter(|&(_, count)| count > 0)
        .map(|(bucket, count)| (bucket_start_ns(bucket), count.into()))
        .collect();
    Durations {
        count,
        total_ns,
        max_ns,
        buckets,
    }
}
