//! What the kernel side sends, through the ring buffer or the rings of samples ([`crate::rings`]).
//!
//! Every record starts with a [`RecordHeader`], which knows the record's kind and its whole
//! length. A [`SampleHeader`] is followed by `kernel_frames + user_frames` addresses of 8 bytes.

use crate::limits::{COMM_BYTES, FRAME_SLOTS, SNAPSHOT_WORDS};

/// Set in a user address that is not a return address but the very instruction that was
/// interrupted, by a signal: it must not be moved back into a call. No user address has this bit.
pub const EXACT_ADDRESS: u64 = 1 << 63;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordKind {
    /// A CPU sample: [`SampleHeader`] and frames.
    Sample = 1,
    /// A process replaced its program: [`ProcessEvent`].
    Exec = 2,
    /// A thread ended, perhaps the last of its process: [`ProcessEvent`].
    Exit = 3,
    /// The kernel lets go of a thread that ended: its CPU time is final. [`ProcessEvent`].
    Free = 4,
    /// The stack of a sample whose tables were still being made, and perhaps one more of these with the stack that it
    /// goes on on; the sample itself follows, with the same CPU and time: [`SnapshotHeader`] and words.
    Snapshot = 5,
    /// A system call that took long; its sample follows, with the same CPU and time: [`SlowCall`].
    SlowCall = 6,
}

impl TryFrom<u32> for RecordKind {
    type Error = u32;
    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            1 => Ok(Self::Sample),
            2 => Ok(Self::Exec),
            3 => Ok(Self::Exit),
            4 => Ok(Self::Free),
            5 => Ok(Self::Snapshot),
            6 => Ok(Self::SlowCall),
            other => Err(other),
        }
    }
}

/// First part of every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RecordHeader {
    /// A [`RecordKind`].
    pub kind: u32,
    /// Length of the whole record, this header included.
    pub total_bytes: u32,
    /// `CLOCK_MONOTONIC` when it happened.
    pub time_mono_ns: u64,
}
const _: () = assert!(size_of::<RecordHeader>() == 16);

impl RecordHeader {
    /// That of a record.
    #[must_use]
    pub fn of(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first_chunk()?;
        let (total_bytes, rest) = rest.split_first_chunk()?;
        Some(Self {
            kind: u32::from_ne_bytes(*kind),
            total_bytes: u32::from_ne_bytes(*total_bytes),
            time_mono_ns: u64::from_ne_bytes(*rest.first_chunk()?),
        })
    }
}

/// Why the user part of a stack ends where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum StopReason {
    /// A table says that this is the thread's first function: the stack is complete.
    Root = 0,
    /// There is no user stack: a kernel thread, or a process that is being made or torn down.
    NoUserStack = 1,
    /// No rule leads further: the frame pointer is not one.
    NoUnwindTable = 2,
    /// The stack could not be read.
    StackReadFailed = 3,
    /// Deeper than a sample can hold.
    Truncated = 4,
    /// The saved user registers could not be read.
    NoRegisters = 5,
    /// The chain of frame pointers ends with zero. So it should at the thread's first function, but
    /// code that keeps no frame pointer may hold any value in its register.
    FramePointerEnd = 6,
}

impl TryFrom<u32> for StopReason {
    type Error = u32;
    fn try_from(value: u32) -> Result<Self, u32> {
        Ok(match value {
            0 => Self::Root,
            1 => Self::NoUserStack,
            2 => Self::NoUnwindTable,
            3 => Self::StackReadFailed,
            4 => Self::Truncated,
            5 => Self::NoRegisters,
            6 => Self::FramePointerEnd,
            other => return Err(other),
        })
    }
}

/// A CPU sample. Its frames follow, leaf first: the kernel's, then the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SampleHeader {
    /// Kind, length and time.
    pub header: RecordHeader,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// CPU number.
    pub cpu: u32,
    /// A [`StopReason`] for the user part.
    pub stop: u32,
    /// Number of kernel frames.
    pub kernel_frames: u32,
    /// Number of user frames.
    pub user_frames: u32,
    /// Thread name, zero-terminated.
    pub comm: [u8; COMM_BYTES],
}
const _: () = assert!(size_of::<SampleHeader>() == 56);

/// A sample at its largest, as it is built before it is sent.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SampleRecord {
    /// The fixed part.
    pub sample: SampleHeader,
    /// The frames; only the used ones are sent.
    pub frames: [u64; FRAME_SLOTS],
}
const _: () = assert!(size_of::<SampleRecord>() == 56 + FRAME_SLOTS * 8);

/// The top of a user stack and the registers that lead into it, to unwind it later. The words of the
/// stack follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SnapshotHeader {
    /// Kind, length and time.
    pub header: RecordHeader,
    /// CPU number.
    pub cpu: u32,
    /// How many words follow.
    pub words: u32,
    /// Address of the first word.
    pub start: u64,
    /// Which pieces could be read, the first in the lowest bit. The words of others say nothing.
    pub readable: u64,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
    /// Link register.
    pub link: u64,
    /// Register of an aligned frame.
    pub aligned: u64,
    /// Register of results.
    pub result: u64,
    /// Registers of frames that are being made.
    pub scratch: [u64; 2],
}
const _: () = assert!(size_of::<SnapshotHeader>() == 104);

/// A snapshot at its largest, as it is built before it is sent.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SnapshotRecord {
    /// The fixed part.
    pub snapshot: SnapshotHeader,
    /// The words; only the used ones are sent.
    pub words: [u64; SNAPSHOT_WORDS],
}
const _: () = assert!(size_of::<SnapshotRecord>() == 104 + SNAPSHOT_WORDS * 8);

/// Something happened to a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessEvent {
    /// Kind, length and time.
    pub header: RecordHeader,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// CPU time this thread has used, as the scheduler accounts for it.
    pub thread_cpu_ns: u64,
    /// For an exit: 1 when this was the process's last thread.
    pub is_last_thread: u32,
    /// Unused.
    pub _pad: u32,
    /// Name of the thread, zero-terminated; empty for one that is let go of.
    pub comm: [u8; COMM_BYTES],
}
const _: () = assert!(size_of::<ProcessEvent>() == 56);

/// A system call that was among the slowest of its kind when it returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlowCall {
    /// Kind, length and time, which is that of its return.
    pub header: RecordHeader,
    /// From entry to return.
    pub duration_ns: u64,
    /// Number of the system call, as in [`crate::syscalls::RowKey`].
    pub number: u32,
    /// CPU number.
    pub cpu: u32,
}
const _: () = assert!(size_of::<SlowCall>() == 32);
