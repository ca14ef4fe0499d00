//! What happens to resources, added up in the kernel: waiting for CPUs and disks, retransmits, kills.
//!
//! Every kind of event has a row of its own for each cgroup (and disk) that it happens to: an index into a
//! per-CPU array. Which one is in a hash table by [`EventKey`]; threads remember those that they use.
//! When there are no more rows, an event goes to the first row of its kind, which belongs to nobody: it
//! is counted, and only who it happened to is not known.

/// Rows that there can be, of all kinds together, on hosts with few CPUs.
pub const MAX_EVENT_ROWS: usize = 2048;

/// Threads whose switches are followed.
pub const MAX_SWITCHED: usize = 32768;

/// Requests that disks work on.
pub const MAX_REQUESTS: usize = 8192;

/// Disks that requests are counted for.
pub const MAX_DISKS: usize = 512;

/// Threads that reclaim memory at a time.
pub const MAX_RECLAIMING: usize = 4096;

/// System calls that have a reason to wait of their own, by their number.
pub const WAITING_SYSCALLS: usize = 512;
const _: () = assert!(WAITING_SYSCALLS.is_power_of_two());

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident,)*) => {
        /// A kind of event, which is also the index of its first row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Event { $($(#[$doc])* $variant,)* }

        /// All kinds, in the order of their numbers.
        pub const EVENTS: &[Event] = &[$(Event::$variant,)*];
    };
}

events! {
    /// A thread got a CPU; the time it had waited for one.
    RunQueue,
    /// A thread was away from its CPU though it could have run: another took its place, or it yielded.
    OffPreempted,
    /// It waited for a disk.
    OffDisk,
    /// For a page, or for another thread to be done with its memory.
    OffPageFault,
    /// For a lock of its program (`futex`).
    OffLock,
    /// For time to pass.
    OffSleep,
    /// For any of several things (`poll`, `select`, `epoll_wait`).
    OffPoll,
    /// For the other end of a connection.
    OffNetwork,
    /// In `read`, `write` and their like: for the other end of a pipe, a socket, a terminal.
    OffReadWrite,
    /// For a child.
    OffChild,
    /// For a signal, or it was stopped by one or by a debugger.
    OffSignal,
    /// In the kernel, where no signal wakes it, and not for a disk.
    OffUninterruptible,
    /// In another system call.
    OffOther,
    /// A disk was done with a request; the time since it got it.
    DiskRead,
    /// The same of a write.
    DiskWrite,
    /// Of a flush.
    DiskFlush,
    /// Of a discard.
    DiskDiscard,
    /// Of anything else.
    DiskOther,
    /// A disk got a request to read; the time that had waited.
    DiskQueueRead,
    /// The same of a write.
    DiskQueueWrite,
    /// Of a flush.
    DiskQueueFlush,
    /// Of a discard.
    DiskQueueDiscard,
    /// Of anything else.
    DiskQueueOther,
    /// A disk got a request; how many it had then, with this one, times [`Event::DEPTH_SCALE`].
    DiskDepth,
    /// A request failed.
    DiskError,
    /// A segment was sent again.
    TcpRetransmit,
    /// An answer to who wants to connect was sent again.
    TcpSynackRetransmit,
    /// A connection was refused or cut by this host.
    TcpResetSent,
    /// By the other end.
    TcpResetReceived,
    /// A process was chosen to be killed since there was no memory.
    OomKill,
    /// A thread had to find memory itself; how long that took.
    DirectReclaim,
    /// The same, since its cgroup was at its limit.
    LimitReclaim,
    /// Work that interrupts leave for later: `HI`, tasklets that cannot wait.
    SoftirqHi,
    /// Timers.
    SoftirqTimer,
    /// Packets that were sent.
    SoftirqNetTx,
    /// Packets that came in.
    SoftirqNetRx,
    /// Requests that disks are done with.
    SoftirqBlock,
    /// Polling of disks.
    SoftirqIrqPoll,
    /// Tasklets.
    SoftirqTasklet,
    /// Balancing of CPUs.
    SoftirqSched,
    /// High resolution timers.
    SoftirqHrtimer,
    /// What waited for all readers.
    SoftirqRcu,
}

/// Kinds of [`Event::RunQueue`] and why threads leave their CPU: what a thread remembers rows of.
pub const REMEMBERED_EVENTS: usize = 16;
const _: () = assert!((Event::OffOther as usize) < REMEMBERED_EVENTS);

/// The kinds of work that interrupts leave for later, in the kernel's order.
pub const SOFTIRQS: u32 = 10;
const _: () = assert!(Event::SoftirqHi as u32 + SOFTIRQS == EVENTS.len() as u32);

/// Kinds of requests to disks, in the order of their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)] // The names say it.
pub enum Operation {
    Read = 0,
    Write = 1,
    Flush = 2,
    Discard = 3,
    Other = 4,
}

/// To whom an event happened. What does not apply is 0, as is what is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct EventKey {
    /// Id of the cgroup, in the hierarchy that [`Event::hierarchy`] tells.
    pub cgroup: u64,
    /// Number of the disk as the kernel has it: 12 bits of major, 20 of minor.
    pub disk: u32,
    /// An [`Event`].
    pub event: u32,
}
const _: () = assert!(size_of::<EventKey>() == 16);

/// In which hierarchy a cgroup's id is one. With cgroup v2 there is only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hierarchy {
    /// Of the v1 controller `cpu`.
    Cpu,
    /// Of the v1 controller `blkio`.
    Io,
    /// Of version 2.
    Unified,
}

impl Event {
    /// What [`Event::DiskDepth`] is multiplied by, so that small numbers have buckets of their own.
    pub const DEPTH_SCALE: u64 = 64;

    /// Where the ids of its cgroups come from.
    #[must_use]
    pub const fn hierarchy(self) -> Hierarchy {
        match self as u32 {
            n if n >= Self::DiskRead as u32 && n <= Self::DiskError as u32 => Hierarchy::Io,
            n if n >= Self::TcpRetransmit as u32 && n <= Self::TcpResetReceived as u32 => {
                Hierarchy::Unified
            }
            _ => Hierarchy::Cpu,
        }
    }
}

impl TryFrom<u32> for Event {
    type Error = u32;

    fn try_from(number: u32) -> Result<Self, u32> {
        EVENTS.get(number as usize).copied().ok_or(number)
    }
}

/// What is known of a thread that CPUs are switched to and from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Switched {
    /// `CLOCK_MONOTONIC` when it left its CPU; 0 when that was not seen.
    pub out_mono_ns: u64,
    /// What the kernel had counted of its waiting when it got its CPU.
    pub run_delay_ns: u64,
    /// Its `css_set`: another one, and it is in another cgroup.
    pub css_set: u64,
    /// Id of its cgroup.
    pub cgroup: u64,
    /// Why it left: an [`Event`].
    pub reason: u32,
    #[allow(missing_docs)]
    pub _pad: u32,
    /// One more than the row of each event, 0 where that is not known.
    pub rows: [u16; REMEMBERED_EVENTS],
}
const _: () = assert!(size_of::<Switched>() == 40 + REMEMBERED_EVENTS * 2);
const _: () = assert!(MAX_EVENT_ROWS < u16::MAX as usize);

/// A request that a disk works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DiskRequest {
    /// `CLOCK_MONOTONIC` when it was made: what tells it from the next one in the same memory.
    pub start_mono_ns: u64,
    /// When the disk got it.
    pub issued_mono_ns: u64,
    /// How long it had waited for that.
    pub waited_ns: u64,
    /// Id of the cgroup that pays for it.
    pub cgroup: u64,
    /// The disk, as in [`EventKey`].
    pub disk: u32,
    /// An [`Operation`].
    pub operation: u32,
}
const _: () = assert!(size_of::<DiskRequest>() == 40);
