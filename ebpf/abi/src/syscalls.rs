//! Numbers of system calls, added up in the kernel.
//!
//! Every process has a row for each system call that it made, an index into a per-CPU array. Which one
//! is in a hash table by [`RowKey`]; each thread remembers the rows that it used last.

/// Rows that there can be: processes times the system calls that each makes.
pub const MAX_ROWS: usize = 8192;

/// Threads that can be followed at once.
pub const MAX_THREADS: usize = 32768;

/// Errors that are told apart: rows times their errors.
pub const MAX_ERRORS: usize = 16384;

/// Buckets of the durations of one row: a power of two of nanoseconds is four of them.
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
    let duration_ns = duration_ns | 1;
    let power = 63 - duration_ns.leading_zeros();
    if power < FIRST_POWER {
        return 0;
    }
    let part = (duration_ns >> (power - BUCKET_BITS)) as u32 & ((1 << BUCKET_BITS) - 1);
    let bucket = ((power - FIRST_POWER) << BUCKET_BITS) + part + 1;
    if bucket < BUCKETS as u32 {
        bucket
    } else {
        BUCKETS as u32 - 1
    }
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

/// Which process and which system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RowKey {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Number of the system call; [`COMPAT`] is set for a call of a 32-bit program.
    pub number: u32,
}
const _: () = assert!(size_of::<RowKey>() == 8);

/// Set in the number of a system call by the 32-bit table, which has other numbers.
pub const COMPAT: u32 = 1 << 31;

/// What the calls of a row came to, on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// Calls that returned.
    pub calls: u64,
    /// Time from entry to return.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Calls by duration, see [`bucket_of`].
    pub buckets: [u32; BUCKETS],
}
const _: () = assert!(size_of::<Row>() == 24 + BUCKETS * 4);

impl Row {
    /// No call yet.
    pub const ZERO: Self = Self {
        calls: 0,
        total_ns: 0,
        max_ns: 0,
        buckets: [0; BUCKETS],
    };
}

/// Which row and which error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ErrorKey {
    /// The row.
    pub row: u32,
    /// The error's number, without its sign.
    pub errno: u32,
}
const _: () = assert!(size_of::<ErrorKey>() == 8);

/// Rows that a thread remembers. A power of two: the number of the system call chooses the place.
pub const REMEMBERED_ROWS: usize = 8;
const _: () = assert!(REMEMBERED_ROWS.is_power_of_two());

/// What is known of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// `CLOCK_MONOTONIC` when the present call began; 0 outside of calls.
    pub start_mono_ns: u64,
    /// Number of the present call, as in [`RowKey`].
    pub number: u32,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Rows used last: the number of the system call and one more than the row, 0 for none.
    pub rows: [[u32; 2]; REMEMBERED_ROWS],
}
const _: () = assert!(size_of::<Thread>() == 16 + REMEMBERED_ROWS * 8);

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
