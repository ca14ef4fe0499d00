//! Numbers of system calls, added up in the kernel.
//!
//! Every process has a row for each system call that it made, an index into a per-CPU array. Which one
//! is in a hash table by [`RowKey`]; each thread remembers the rows that it used last. What is known of a
//! thread lies in a slot, an index into an array, which a hash table has by tid; each CPU remembers the slot
//! that it used last, since a thread that calls often is the one that called last.

/// Rows that there can be: processes times the system calls that each makes.
pub const MAX_ROWS: usize = 8192;

/// Threads that can be followed at once.
pub const MAX_THREADS: usize = 32768;

/// Errors that are told apart: rows times their errors.
pub const MAX_ERRORS: usize = 16384;

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
    /// Thread id in the initial pid namespace; 0 for a slot that nobody has.
    pub tid: u32,
    #[allow(missing_docs)]
    pub _pad: u32,
    /// Rows used last: the number of the system call and one more than the row, 0 for none.
    pub rows: [[u32; 2]; REMEMBERED_ROWS],
}
const _: () = assert!(size_of::<Thread>() == 24 + REMEMBERED_ROWS * 8);

/// System calls, by number, that the slowest are looked for of each; higher numbers share the last place.
pub const SLOW_NUMBERS: usize = 512;

/// A call that has not returned, where the slowest are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Begun {
    /// `CLOCK_MONOTONIC` when it began.
    pub start_mono_ns: u64,
    /// Its number, as in [`RowKey`].
    pub number: u32,
    #[allow(missing_docs)]
    pub _pad: u32,
}
const _: () = assert!(size_of::<Begun>() == 16);

/// What counts as slow, for one system call on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlowFloor {
    /// Bucket of durations from which on calls are told.
    pub bucket: u32,
    /// How many have been told since it was raised last.
    pub told: u32,
}
const _: () = assert!(size_of::<SlowFloor>() == 8);
