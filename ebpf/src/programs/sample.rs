//! The sampler: one stack, kernel and user, at each tick of a CPU's clock.

use aya_ebpf::{EbpfContext, macros::perf_event, programs::PerfEventContext};
use hotspan_abi::{
    counters::Counter,
    limits::{FRAME_SLOTS, MAX_KERNEL_FRAMES},
    records::{RecordHeader, RecordKind, SampleHeader, StopReason},
};
use hotspan_ebpf::unwind::Registers;

use super::{
    registers::{interrupted, is_kernel, saved},
    target::is_target,
    user_stack::{self, Slot},
};
use crate::{
    kernel_calls::{
        count, cpu, current_comm, current_pid_tid, current_task, kernel_stack, now_mono_ns,
        read_kernel, send,
    },
    maps::{KERNEL_STACKS, Scratch, offset_of},
};

#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    let (pid, tid) = current_pid_tid();
    if pid == 0 {
        return 0;
    }
    let slot = Slot::own();
    let Some(scratch) = slot.scratch() else {
        count(Counter::NoScratch);
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    if !is_target(unsafe { user_stack::enter(&mut *scratch, pid) }) {
        return 0;
    }
    count(Counter::SamplesTaken);
    let sample = SampleHeader {
        header: RecordHeader {
            kind: RecordKind::Sample as u32,
            total_bytes: 0,
            time_mono_ns: now_mono_ns(),
        },
        pid,
        tid,
        cpu: cpu(),
        ..SampleHeader::default()
    };
    // SAFETY: the slot is ours.
    unsafe { (*scratch).record.sample = sample };
    // SAFETY: the field is 16 bytes of our slot.
    unsafe { current_comm(&raw mut (*scratch).record.sample.comm) };
    // SAFETY: the slot is ours, and the reference ends with the call.
    let stop = match unsafe { user_registers(&ctx, &mut *scratch) } {
        Ok(registers) => user_stack::walk(slot, registers),
        Err(stop) => stop,
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    unsafe { submit(&mut *scratch, stop) };
    0
}

/// Fills in the kernel's part of the stack; returns the registers of the first user frame, or why there
/// is none.
#[inline(always)]
fn user_registers(ctx: &PerfEventContext, scratch: &mut Scratch) -> Result<Registers, StopReason> {
    let registers = interrupted(ctx);
    if !is_kernel(registers.ip) {
        return Ok(registers);
    }
    if KERNEL_STACKS.load() != 0 {
        walk_kernel(ctx, scratch);
    }
    // A kernel thread has no memory of its own, nor has a process on its way out.
    match read_kernel::<u64>(current_task() + offset_of!(task_mm)) {
        None | Some(0) => return Err(StopReason::NoUserStack),
        Some(_) => {}
    }
    match saved() {
        None => Err(StopReason::NoRegisters),
        Some(saved) if saved.ip == 0 || is_kernel(saved.ip) => Err(StopReason::NoUserStack),
        Some(saved) => Ok(saved),
    }
}

#[inline(always)]
fn walk_kernel(ctx: &PerfEventContext, scratch: &mut Scratch) {
    const BYTES: usize = MAX_KERNEL_FRAMES * 8;
    // SAFETY: the frames are the first of FRAME_SLOTS, more than MAX_KERNEL_FRAMES.
    let bytes = unsafe {
        kernel_stack(
            ctx.as_ptr(),
            (&raw mut scratch.record.frames).cast(),
            BYTES as u32,
        )
    };
    if bytes <= 0 {
        count(Counter::KernelStackFailed);
    } else {
        scratch.record.sample.kernel_frames = (bytes as u32 >> 3).min(MAX_KERNEL_FRAMES as u32);
    }
}

/// Sends the sample.
#[inline(always)]
pub fn submit(scratch: &mut Scratch, stop: StopReason) {
    scratch.record.sample.stop = stop as u32;
    let frames = scratch.record.sample.kernel_frames + scratch.record.sample.user_frames;
    // The mask is for the verifier: the number of frames never reaches FRAME_SLOTS * 2.
    let bytes = size_of::<SampleHeader>() as u32
        + (frames & (FRAME_SLOTS as u32 * 2 - 1)).min(FRAME_SLOTS as u32) * 8;
    scratch.record.sample.header.total_bytes = bytes;
    // SAFETY: the record is larger than `bytes`.
    if !unsafe { send((&raw const scratch.record).cast(), u64::from(bytes)) } {
        count(Counter::RingFull);
    }
}
