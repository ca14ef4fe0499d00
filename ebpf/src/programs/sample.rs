//! The sampler: one stack, kernel and user, at each tick of a CPU's clock.

use aya_ebpf::{EbpfContext, macros::perf_event, programs::PerfEventContext};
use hotspan_abi::{
    counters::Counter,
    limits::MAX_KERNEL_FRAMES,
    records::{SampleRecord, StopReason},
};
use hotspan_ebpf::unwind::Registers;

use super::{
    record,
    registers::{interrupted, is_kernel, saved},
    target::is_target,
    user_stack::{self, Slot},
};
use crate::{
    kernel_calls::{count, current_pid_tid, current_task, kernel_stack, now_mono_ns, read_kernel},
    maps::{KERNEL_STACKS, offset_of},
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
    // SAFETY: the slot is ours, and the reference ends with the call.
    let record = unsafe { record::begin(slot, &*scratch, (pid, tid), now_mono_ns()) };
    let Some(record) = record else {
        return 0;
    };
    // SAFETY: nobody else refers to it before the walk.
    let stop = match user_registers(&ctx, unsafe { &mut *record }) {
        Ok(registers) => user_stack::walk(slot, registers),
        Err(stop) => stop,
    };
    // SAFETY: the slot is ours, and the references end with the call.
    unsafe { record::submit(&mut *scratch, record, stop) };
    0
}

/// Fills in the kernel's part of the stack; returns the registers of the first user frame, or why there
/// is none.
#[inline(always)]
fn user_registers(
    ctx: &PerfEventContext,
    record: &mut SampleRecord,
) -> Result<Registers, StopReason> {
    let registers = interrupted(ctx);
    if !is_kernel(registers.ip) {
        return Ok(registers);
    }
    if KERNEL_STACKS.load() != 0 {
        walk_kernel(ctx, record);
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
fn walk_kernel(ctx: &PerfEventContext, record: &mut SampleRecord) {
    const BYTES: usize = MAX_KERNEL_FRAMES * 8;
    // SAFETY: the frames are the first of FRAME_SLOTS, more than MAX_KERNEL_FRAMES.
    let bytes =
        unsafe { kernel_stack(ctx.as_ptr(), (&raw mut record.frames).cast(), BYTES as u32) };
    if bytes <= 0 {
        count(Counter::KernelStackFailed);
    } else {
        record.sample.kernel_frames = (bytes as u32 >> 3).min(MAX_KERNEL_FRAMES as u32);
    }
}
