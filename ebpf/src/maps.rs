//! The maps and settings that the programs share with the agent.
// Names that the loader looks for are exported unmangled, which counts as unsafe.
#![allow(unsafe_code)]

use aya_ebpf::{
    Global,
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, Queue, RingBuf},
    macros::btf_map,
};
use hotspan_abi::{
    counters::COUNTERS,
    durations::Durations,
    limits::{MAX_TARGETS, RING_BYTES},
    records::{SlowCall, SnapshotRecord},
    resources::{
        DiskRequest, EventKey, MAX_DISKS, MAX_EVENT_ROWS, MAX_RECLAIMING, MAX_REQUESTS,
        MAX_SWITCHED, SOFTIRQS, Switched, WAITING_SYSCALLS,
    },
    rings::{CHUNK_WORDS, Ring},
    settings::{Offsets, ResourceOffsets, TargetMode},
    syscalls::{
        Begun, ErrorKey, MAX_ERRORS, MAX_ROWS, MAX_THREADS, RowKey, SLOW_NUMBERS, SlowFloor, Thread,
    },
    unwind::{MAX_PROCESSES, MAX_SEGMENTS, MAX_WIDE_RULES, ProcessTable, SEGMENT_WORDS, WideRule},
};
use hotspan_ebpf::unwind::Unwinder;

/// Where process events and copies of stacks go.
#[btf_map]
pub static EVENTS: RingBuf<u8, { RING_BYTES as usize }> = RingBuf::new();

/// What was lost, by [`hotspan_abi::counters::Counter`].
#[btf_map]
pub static COUNTS: PerCpuArray<u64, { COUNTERS.len() }> = PerCpuArray::new();

/// Followed processes: tgid to `TARGET_*` flags.
#[btf_map]
pub static TARGETS: HashMap<u32, u32, { MAX_TARGETS as usize }> = HashMap::new();

/// When to forget what was known of a process, by [`ChangedBy`]. Every sample looks at it, so the agent does not
/// map it: the kernel keeps small arrays in memory that is near at hand, and those that are mapped in pages
/// of their own, which takes 0.2 µs more where caches are cold.
#[btf_map]
pub static GENERATIONS: Array<u64, 2> = Array::new();

/// What was known of a process when this CPU sampled it last.
#[repr(C)]
pub struct Seen {
    /// The generations of that; 0 of the agent for nothing known, which none is.
    pub generation: Generation,
    /// Which process.
    pub pid: u32,
    /// Its `TARGET_*` flags.
    pub flags: u32,
}

/// A number for each [`ChangedBy`](hotspan_abi::settings::ChangedBy).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Generation {
    /// Of what the agent changed.
    pub of_agent: u64,
    /// Of what we changed.
    pub of_programs: u64,
}

/// Working memory of a program that walks stacks: far too large for the 512 bytes of its own.
#[repr(C)]
pub struct Scratch {
    /// Of this CPU's ring; at the start, where the agent looks for it.
    pub ring: Ring,
    /// The process that the unwinder has entered.
    pub seen: Seen,
    /// The user stack as it is unwound.
    pub unwinder: Unwinder,
    /// The slow system call that the sample is of.
    pub call: SlowCall,
    /// The stack as it is copied.
    pub snapshot: SnapshotRecord,
}

/// Indexed by CPU and kind of program, see [`crate::programs::user_stack`]: an array lookup is inlined,
/// and nothing else of that kind can run on this CPU meanwhile. The agent sets the number of entries
/// from the number of possible CPUs.
#[btf_map]
pub static SCRATCH: Array<Scratch, 1, MMAPABLE> = Array::new();

/// The chunks of the rings of samples, see [`hotspan_abi::rings`], those of a CPU in a row. The agent sets the
/// number of entries.
#[btf_map]
pub static SAMPLES: Array<[u64; CHUNK_WORDS], 1, MMAPABLE> = Array::new();

/// `BPF_F_MMAPABLE`: the agent reads and writes it without a system call.
const MMAPABLE: usize = 1 << 10;

/// A segment of the space of unwind tables, see [`hotspan_abi::unwind`].
pub type Segment = Array<[u32; SEGMENT_WORDS], 1, MMAPABLE>;

/// The space of unwind tables; the agent adds segments as it needs them. Their size is fixed, so
/// that the kernel can inline the look-up.
#[btf_map]
pub static SEGMENTS: ArrayOfMaps<Segment, MAX_SEGMENTS> = ArrayOfMaps::new();

/// Rules that do not fit in a row.
#[btf_map]
pub static WIDE_RULES: Array<WideRule, MAX_WIDE_RULES> = Array::new();

/// Processes whose mappings are known: tgid to where they are.
#[btf_map]
pub static PROCESSES: HashMap<u32, ProcessTable, MAX_PROCESSES> = HashMap::new();

/// Threads whose system calls are counted: tid to slot. The maps of system calls have one entry when these
/// are not counted.
#[btf_map]
pub static THREAD_SLOT_OF: HashMap<u32, u32, MAX_THREADS> = HashMap::new();

/// What is known of each thread, by slot.
#[btf_map]
pub static THREAD_SLOTS: Array<Thread, MAX_THREADS> = Array::new();

/// Slots that nobody has; the agent fills it.
#[btf_map]
pub static FREE_THREAD_SLOTS: Queue<u32, MAX_THREADS> = Queue::new();

/// The slot of the thread that called last on this CPU.
#[btf_map]
pub static LAST_THREAD_SLOT: PerCpuArray<u32, 1> = PerCpuArray::new();

/// The row of each system call of each process.
#[btf_map]
pub static SYSCALL_ROW_OF: HashMap<RowKey, u32, MAX_ROWS> = HashMap::new();

/// What the calls came to.
#[btf_map]
pub static SYSCALL_ROWS: PerCpuArray<Durations, MAX_ROWS> = PerCpuArray::new();

/// Rows that belong to nobody; the agent fills it, and gives back those of processes that ended.
#[btf_map]
pub static FREE_ROWS: Queue<u32, MAX_ROWS> = Queue::new();

/// Calls that failed.
#[btf_map]
pub static SYSCALL_ERRORS: HashMap<ErrorKey, u64, MAX_ERRORS> = HashMap::new();

/// Calls that have not returned, by tid, where the slowest are looked for; else it has one entry.
#[btf_map]
pub static BEGUN: HashMap<u32, Begun, MAX_THREADS> = HashMap::new();

/// What counts as slow, by the system call's number.
#[btf_map]
pub static SLOW_FLOORS: PerCpuArray<SlowFloor, SLOW_NUMBERS> = PerCpuArray::new();

/// The row of each kind of event that happened to somebody. The maps of events have one entry when these are
/// not counted.
#[btf_map]
pub static EVENT_ROW_OF: HashMap<EventKey, u32, MAX_EVENT_ROWS> = HashMap::new();

/// What events came to.
#[btf_map]
pub static EVENT_ROWS: PerCpuArray<Durations, MAX_EVENT_ROWS> = PerCpuArray::new();

/// Rows that belong to nobody; the agent fills it, and gives back those of cgroups that are gone.
#[btf_map]
pub static FREE_EVENT_ROWS: Queue<u32, MAX_EVENT_ROWS> = Queue::new();

/// Threads that CPUs are switched to and from, by tid.
#[btf_map]
pub static SWITCHED: HashMap<u32, Switched, MAX_SWITCHED> = HashMap::new();

/// Why a thread waits in a system call: an event by the call's number, 0 for no special reason.
#[btf_map]
pub static WAITS_OF_SYSCALLS: Array<u32, WAITING_SYSCALLS> = Array::new();

/// The run queue of each CPU, as far as it was looked up.
#[btf_map]
pub static RUN_QUEUE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Requests that disks work on, by the address of the kernel's.
#[btf_map]
pub static DISK_REQUESTS: HashMap<u64, DiskRequest, MAX_REQUESTS> = HashMap::new();

/// How many requests each disk works on.
#[btf_map]
pub static DISK_DEPTH: HashMap<u32, u64, MAX_DISKS> = HashMap::new();

/// When threads began to reclaim memory, by tid.
#[btf_map]
pub static RECLAIMING: HashMap<u32, u64, MAX_RECLAIMING> = HashMap::new();

/// When this CPU began with work that interrupts left, by its kind.
#[btf_map]
pub static SOFTIRQ_START: PerCpuArray<u64, { SOFTIRQS as usize }> = PerCpuArray::new();

/// A process whose system calls are not counted: the agent.
#[unsafe(no_mangle)]
pub static OWN_PID: Global<u32> = Global::new(u32::MAX);

/// A [`TargetMode`].
#[unsafe(no_mangle)]
pub static TARGET_MODE: Global<u32> = Global::new(TargetMode::All as u32);

/// How many of the slowest calls of each system call are wanted.
#[unsafe(no_mangle)]
pub static SLOWEST: Global<u32> = Global::new(0);

/// Whether kernel frames are wanted.
#[unsafe(no_mangle)]
pub static KERNEL_STACKS: Global<u32> = Global::new(1);

/// Whether the kernel has `bpf_task_pt_regs` (5.15); else the registers are found below the end of
/// the kernel stack.
#[unsafe(no_mangle)]
pub static HAS_TASK_PT_REGS: Global<u32> = Global::new(1);

/// Id of the target cgroup.
#[unsafe(no_mangle)]
pub static TARGET_CGROUP: Global<u64> = Global::new(0);

/// Members' offsets in this kernel.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<Offsets> = Global::new(Offsets::ZERO);

/// Members' offsets that only programs of resources need.
#[unsafe(no_mangle)]
pub static RESOURCE_OFFSETS: Global<ResourceOffsets> = Global::new(ResourceOffsets::ZERO);

/// The offset of one member. Only this word is read, so that the verifier sees a constant.
macro_rules! offset_of {
    ($member:ident) => {{
        let offsets = (&raw const $crate::maps::OFFSETS).cast::<hotspan_abi::settings::Offsets>();
        // SAFETY: `Global` is transparent over the value, which is initialized and never written
        // while programs run.
        unsafe { core::ptr::read_volatile(&raw const (*offsets).$member) as u64 }
    }};
}
pub(crate) use offset_of;

/// The same for members that only programs of resources need.
macro_rules! resource_offset {
    ($member:ident) => {{
        let offsets = (&raw const $crate::maps::RESOURCE_OFFSETS)
            .cast::<hotspan_abi::settings::ResourceOffsets>();
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*offsets).$member) as u64 }
    }};
}
pub(crate) use resource_offset;

/// The helpers that trace are for GPL programs only; the kernel reads this section.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
