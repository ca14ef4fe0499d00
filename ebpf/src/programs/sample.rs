//! The sampler: one stack, kernel and user, at each tick of a CPU's clock.

use aya_ebpf::{EbpfContext, macros::perf_event, programs::PerfEventContext};
use hotspan_abi::{
    counters::Counter,
    limits::{FRAME_SLOTS, FRAMES_PER_CALL, MAX_KERNEL_FRAMES, MAX_USER_FRAMES, UNWIND_CALLS},
    records::{EXACT_ADDRESS, RecordHeader, RecordKind, SampleHeader, StopReason},
    unwind::Rule,
};
use hotspan_ebpf::unwind::Step;

use super::{
    registers::{interrupted, is_kernel, saved},
    target::is_target,
};
use crate::{
    kernel_calls::{
        MapTables, UserMemory, count, cpu, current_comm, current_pid_tid, current_task,
        kernel_stack, now_mono_ns, read_kernel, send,
    },
    maps::{KERNEL_STACKS, PROCESSES, SCRATCH, Scratch, offset_of},
};

#[perf_event]
pub fn sample(ctx: PerfEventContext) -> u32 {
    let (pid, tid) = current_pid_tid();
    if pid == 0 || !is_target(pid) {
        return 0;
    }
    count(Counter::SamplesTaken);
    let cpu = cpu();
    let Some(scratch) = SCRATCH.get_ptr_mut(cpu) else {
        count(Counter::NoScratch);
        return 0;
    };
    let sample = SampleHeader {
        header: RecordHeader {
            kind: RecordKind::Sample as u32,
            total_bytes: 0,
            time_mono_ns: now_mono_ns(),
        },
        pid,
        tid,
        cpu,
        ..SampleHeader::default()
    };
    // SAFETY: the slot is this CPU's, and no other sample can interrupt this one.
    unsafe { (*scratch).record.sample = sample };
    // SAFETY: the field is 16 bytes of this CPU's slot.
    unsafe { current_comm(&raw mut (*scratch).record.sample.comm) };
    // SAFETY: the slot is this CPU's, and the reference ends with the call.
    let stop = match unsafe { start(&ctx, &mut *scratch, pid) } {
        None => walk_user(cpu),
        Some(stop) => stop,
    };
    // SAFETY: the slot is this CPU's, and the reference ends with the call.
    unsafe { submit(&mut *scratch, stop) };
    0
}

/// Fills in the kernel's part of the stack, and puts the unwinder at the first user frame; or tells
/// why there is none.
#[inline(always)]
fn start(ctx: &PerfEventContext, scratch: &mut Scratch, pid: u32) -> Option<StopReason> {
    let mut registers = interrupted(ctx);
    if is_kernel(registers.ip) {
        if KERNEL_STACKS.load() != 0 {
            walk_kernel(ctx, scratch);
        }
        // A kernel thread has no memory of its own, nor has a process on its way out.
        match read_kernel::<u64>(current_task() + offset_of!(task_mm)) {
            None | Some(0) => return Some(StopReason::NoUserStack),
            Some(_) => {}
        }
        match saved() {
            None => return Some(StopReason::NoRegisters),
            Some(saved) if saved.ip == 0 || is_kernel(saved.ip) => {
                return Some(StopReason::NoUserStack);
            }
            Some(saved) => registers = saved,
        }
    }
    // SAFETY: a value that is changed meanwhile is read before or after the change.
    let process = unsafe { PROCESSES.get(pid) }.copied().unwrap_or_default();
    scratch.unwinder.start(registers, process);
    None
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

#[inline(always)]
fn walk_user(cpu: u32) -> StopReason {
    for _ in 0..UNWIND_CALLS {
        match unwind_frames(cpu) {
            CONTINUE => {}
            reason => return StopReason::try_from(reason).unwrap_or(StopReason::NoUnwindTable),
        }
    }
    StopReason::Truncated
}

/// Not a [`StopReason`]: there may be more frames.
const CONTINUE: u32 = u32::MAX;

/// Unwinds up to [`FRAMES_PER_CALL`] frames. A BPF global function, which the verifier checks once
/// and on its own: only numbers cross it, so it finds the state by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unwind_frames(cpu: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(cpu) else {
        return StopReason::NoRegisters as u32;
    };
    for _ in 0..FRAMES_PER_CALL {
        // SAFETY: the slot is this CPU's, and the reference ends with the call.
        if !unsafe { push_frame(&mut *scratch) } {
            return StopReason::Truncated as u32;
        }
        let rule = Rule(find_rule(cpu));
        // SAFETY: the slot is this CPU's, and the reference ends with the call.
        let step = unsafe { (*scratch).unwinder.step(rule, &mut UserMemory, &MapTables) };
        if let Step::Stop(reason) = step {
            return reason as u32;
        }
    }
    CONTINUE
}

/// Adds the frame that the unwinder is at to the sample; false when it is full.
#[inline(always)]
fn push_frame(scratch: &mut Scratch) -> bool {
    let sample = &mut scratch.record.sample;
    if sample.user_frames >= MAX_USER_FRAMES as u32 {
        return false;
    }
    let slot = (sample.kernel_frames + sample.user_frames) as usize & (FRAME_SLOTS - 1);
    // The leaf is exact anyway; of the others, those where a signal hit.
    let is_exact = sample.user_frames != 0 && scratch.unwinder.is_exact != 0;
    let mark = if is_exact { EXACT_ADDRESS } else { 0 };
    scratch.record.frames[slot] = scratch.unwinder.registers.ip | mark;
    sample.user_frames += 1;
    true
}

/// The rule for the frame that the unwinder is at, in a global function of its own: the search
/// inside the loop above would be more than the verifier bears.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_rule(cpu: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(cpu) else {
        return Rule::NONE.0;
    };
    // SAFETY: the slot is this CPU's, and the reference ends with the call.
    let is_in_mapping = unsafe { (*scratch).unwinder.is_in_mapping() };
    // Code in no mapping that is known may still keep the frame pointer.
    if !is_in_mapping && find_mapping(cpu) == 0 {
        return Rule::FRAME_POINTER.0;
    }
    // SAFETY: the slot is this CPU's, and the reference ends with the call.
    unsafe { (*scratch).unwinder.find_rule(&MapTables) }.0
}

/// Finds the mapping of the frame that the unwinder is at; 0 when it is in none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_mapping(cpu: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(cpu) else {
        return 0;
    };
    // SAFETY: the slot is this CPU's, and the reference ends with the call.
    u32::from(unsafe { (*scratch).unwinder.find_mapping(&MapTables) })
}

#[inline(always)]
fn submit(scratch: &mut Scratch, stop: StopReason) {
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
