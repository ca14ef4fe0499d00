//! The kernel's helpers, each wrapped once.
#![allow(unsafe_code)]

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated as raw;
use hotspan_abi::{
    counters::Counter,
    durations::{BUCKETS, Durations, bucket_of},
    limits::WINDOW_WORDS,
    settings::ChangedBy,
    unwind::{SEGMENT_WORDS, WideRule},
};
use hotspan_ebpf::{
    arch::Native,
    unwind::{ReadMemory, Tables},
    verifier::opaque,
};

use crate::maps::{COUNTS, EVENTS, GENERATIONS, Generation, SEGMENTS, WIDE_RULES};

/// `BPF_RB_NO_WAKEUP`: the agent polls, since a wakeup costs more than the sample.
const RB_NO_WAKEUP: u64 = 1;
/// `BPF_RB_FORCE_WAKEUP`: the agent reads soon.
const RB_FORCE_WAKEUP: u64 = 2;

/// `BPF_NOEXIST`: an entry is made, and one that is there is left as it is.
pub const NO_EXIST: u64 = 1;

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot belongs to this CPU, and an addition that an interrupt tears loses one
        // count at most.
        unsafe { *value += 1 };
    }
}

/// Process and thread id of the running task, in the initial pid namespace.
#[inline(always)]
pub fn current_pid_tid() -> (u32, u32) {
    let both = aya_ebpf::helpers::bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// The running `task_struct`.
#[inline(always)]
pub fn current_task() -> u64 {
    // SAFETY: the helper takes nothing and returns the pointer as a number.
    unsafe { raw::bpf_get_current_task() }
}

/// The CPU this runs on.
#[inline(always)]
pub fn cpu() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { raw::bpf_get_smp_processor_id() }
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now_mono_ns() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { raw::bpf_ktime_get_ns() }
}

/// Fills `comm` with the name of the running thread; leaves it alone when the kernel refuses.
///
/// # Safety
/// `comm` points at 16 writable bytes.
#[inline(always)]
pub unsafe fn current_comm(comm: *mut [u8; 16]) {
    // SAFETY: the caller vouches for the pointer, and the size is its type's.
    unsafe { raw::bpf_get_current_comm(comm.cast::<c_void>(), 16) };
}

/// Reads a plain value of the kernel's; `None` when the address is bad.
#[inline(always)]
pub fn read_kernel<T: Copy>(addr: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes exactly the given size, or fails and clears it.
    let failed = unsafe {
        raw::bpf_probe_read_kernel(
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            addr as *const c_void,
        )
    };
    if failed != 0 {
        return None;
    }
    // SAFETY: the helper succeeded, so every byte was written, and callers read plain integers.
    Some(unsafe { value.assume_init() })
}

/// Reads a word of the kernel's; 0 when the address is bad, as the one that a word 0 leads to is.
///
/// For chains of pointers in a loop: looking at every failure would double the verifier's paths each
/// time, and Linux 6.1 gives up on 16 rounds of that.
#[inline(always)]
pub fn kernel_word(addr: u64) -> u64 {
    let mut word = 0_u64;
    // SAFETY: the helper writes exactly a word, and clears it when it fails.
    unsafe {
        raw::bpf_probe_read_kernel(
            (&raw mut word).cast::<c_void>(),
            size_of::<u64>() as u32,
            addr as *const c_void,
        )
    };
    word
}

/// Address of the saved user registers of the running task (kernel 5.15 and later).
#[inline(always)]
pub fn current_task_pt_regs() -> u64 {
    // SAFETY: the helper takes nothing; the pointer is only handed on.
    let task = unsafe { raw::bpf_get_current_task_btf() };
    // SAFETY: the task is the running one, straight from the helper above.
    unsafe { raw::bpf_task_pt_regs(task) as u64 }
}

/// Walks the kernel's stack into `frames`; the number of bytes written, or an error.
///
/// # Safety
/// `frames` has room for `bytes` bytes, and `ctx` is the context of the running program.
#[inline(always)]
pub unsafe fn kernel_stack(ctx: *mut c_void, frames: *mut u64, bytes: u32) -> i64 {
    // SAFETY: the caller vouches for both.
    unsafe { raw::bpf_get_stack(ctx, frames.cast::<c_void>(), bytes, 0) }
}

/// Sets a number in memory of a map that the agent reads, after all that was written before.
#[inline(always)]
pub fn publish(place: &mut u64, number: u64) {
    // The processor keeps writes in their order.
    #[cfg(bpf_target_arch = "x86_64")]
    // SAFETY: a plain number.
    unsafe {
        core::ptr::write_volatile(place, number);
    }
    // An exchange is a barrier, which a plain write is not.
    #[cfg(bpf_target_arch = "aarch64")]
    // SAFETY: a plain number, in a map.
    unsafe {
        asm!("{1} = xchg_64({0} + 0, {1})", in(reg) place, inout(reg) number => _, options(nostack))
    };
}

/// Sends a record that is read at the next tick; false when the ring is full.
///
/// # Safety
/// `record` points at `bytes` readable bytes.
#[inline(always)]
pub unsafe fn send(record: *const c_void, bytes: u64) -> bool {
    // SAFETY: the caller vouches for the record.
    unsafe { output(record, bytes, RB_NO_WAKEUP) }
}

/// Sends a record and has it read soon; false when the ring is full.
///
/// # Safety
/// `record` points at `bytes` readable bytes.
#[inline(always)]
pub unsafe fn send_now(record: *const c_void, bytes: u64) -> bool {
    // SAFETY: the caller vouches for the record.
    unsafe { output(record, bytes, RB_FORCE_WAKEUP) }
}

#[inline(always)]
unsafe fn output(record: *const c_void, bytes: u64, flags: u64) -> bool {
    // SAFETY: the caller vouches for the record; the map is ours.
    unsafe {
        raw::bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast::<c_void>(),
            record.cast_mut(),
            bytes,
            flags,
        ) == 0
    }
}

/// Whether more than half of the ring is free.
#[inline(always)]
pub fn has_room() -> bool {
    const AVAILABLE_DATA: u64 = 0;
    const RING_SIZE: u64 = 1;
    let query = |what| {
        // SAFETY: the map is ours, and the helper only reads it.
        unsafe { raw::bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast::<c_void>(), what) }
    };
    query(AVAILABLE_DATA) * 2 < query(RING_SIZE)
}

/// The memory of the running process.
pub struct UserMemory;

impl UserMemory {
    /// Fills `value` from `addr` on; false when any of it cannot be read.
    #[inline(always)]
    pub fn read<T>(addr: u64, value: &mut T) -> bool {
        // SAFETY: the destination is exactly this large; a bad source makes the helper fail.
        unsafe {
            raw::bpf_probe_read_user(
                (&raw mut *value).cast::<c_void>(),
                size_of::<T>() as u32,
                addr as *const c_void,
            ) == 0
        }
    }
}

impl ReadMemory for UserMemory {
    type Arch = Native;

    #[inline(always)]
    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
        Self::read(addr, words)
    }
    #[inline(always)]
    fn read_word(&mut self, addr: u64) -> Option<u64> {
        let mut word = 0;
        Self::read(addr, &mut word).then_some(word)
    }
}

/// The unwind tables in the maps.
pub struct MapTables;

impl Tables for MapTables {
    type Words<'a> = &'a [u32; SEGMENT_WORDS];

    #[inline(always)]
    fn segment(&self, index: u32) -> Option<Self::Words<'_>> {
        // Not a constant: LLVM would let it share the memory of a setting whose default is zero, too,
        // and the agent overwrites that.
        let only = opaque(0) as u32;
        SEGMENTS.get_value(index / SEGMENT_WORDS as u32, &only)
    }

    #[inline(always)]
    fn wide(&self, index: u32) -> Option<WideRule> {
        WIDE_RULES.get(index).copied()
    }
}

/// Numbers that grow whenever the agent or we change what is known of a process.
#[inline(always)]
pub fn generation() -> Generation {
    let of = |by: ChangedBy| match GENERATIONS.get_ptr(by as u32) {
        // SAFETY: the entry is there, and one that is changed meanwhile is read before or after.
        Some(number) => unsafe { number.read_volatile() },
        None => 0,
    };
    Generation {
        of_agent: of(ChangedBy::Agent),
        of_programs: of(ChangedBy::Programs),
    }
}

/// Notes that we have changed what is known of a process.
#[inline(always)]
pub fn next_generation() {
    if let Some(number) = GENERATIONS.get_ptr_mut(ChangedBy::Programs as u32) {
        // SAFETY: the entry is there.
        unsafe { add_to(number, 1) };
    }
}

/// Adds to a number in memory that all CPUs share.
///
/// # Safety
/// The number is in a map.
#[inline(always)]
pub unsafe fn add_to(number: *mut u64, more: u64) {
    // Rust has no atomic addition for processors without compare and swap, as BPF once was.
    // SAFETY: the caller vouches for the number.
    unsafe {
        asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) more, options(nostack))
    };
}

/// Adds a duration to a row of this CPU.
///
/// # Safety
/// The row is in a map.
#[inline(always)]
pub unsafe fn add_duration(to: *mut Durations, duration_ns: u64) {
    // SAFETY: the caller vouches for the row.
    let to = unsafe { &mut *to };
    to.count += 1;
    to.total_ns += duration_ns;
    if to.max_ns < duration_ns {
        to.max_ns = duration_ns;
    }
    let bucket = opaque(bucket_of(duration_ns).into()) as usize & (BUCKETS - 1);
    to.buckets[bucket] += 1;
}
