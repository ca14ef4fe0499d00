//! The slowest system calls, each with the stack that it was made from.
//!
//! A call is told when fewer than the wanted number of its kind, on its CPU, are known to have taken longer. So
//! nothing that belongs to the slowest is missed, but for calls that take as long as one another within a
//! quarter, and no more than that number is told for each bucket of durations.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::{
    counters::Counter,
    durations::bucket_of,
    records::{RecordHeader, RecordKind, SlowCall, StopReason},
    syscalls::{Begun, COMPAT, SLOW_NUMBERS},
};
use hotspan_ebpf::verifier::opaque;

use super::{
    record,
    registers::{is_compat, saved},
    target::is_target,
    user_stack::{self, Slot},
};
use crate::{
    kernel_calls::{count, cpu, current_pid_tid, now_mono_ns, send},
    maps::{BEGUN, OWN_PID, SLOW_FLOORS, SLOWEST},
};

/// `sys_enter(regs, number)`
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn slow_call_enter(ctx: RawTracePointContext) -> i32 {
    let (pid, tid) = current_pid_tid();
    if pid == OWN_PID.load() {
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
    let number = ctx.arg::<u64>(1) as u32;
    let begun = Begun {
        start_mono_ns: now_mono_ns(),
        number: if is_compat(ctx.arg::<u64>(0)) {
            number | COMPAT
        } else {
            number
        },
        _pad: 0,
    };
    if BEGUN.insert(tid, begun, 0).is_err() {
        count(Counter::SyscallThreadsFull);
    }
    0
}

/// `sys_exit(regs, result)`
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn slow_call_exit(_ctx: RawTracePointContext) -> i32 {
    let (pid, tid) = current_pid_tid();
    // SAFETY: the entry is the running thread's.
    let Some(begun) = (unsafe { BEGUN.get(tid) }) else {
        return 0;
    };
    let (start_ns, number) = (begun.start_mono_ns, begun.number);
    let _ = BEGUN.remove(tid);
    let now_ns = now_mono_ns();
    let duration_ns = now_ns.wrapping_sub(start_ns);
    if !is_slow(number, duration_ns) {
        return 0;
    }
    let slot = Slot::own();
    let Some(scratch) = slot.scratch() else {
        count(Counter::NoScratch);
        return 0;
    };
    // SAFETY: the slot is ours, and the reference ends with the call.
    unsafe { user_stack::enter(&mut *scratch, pid) };
    let call = SlowCall {
        header: RecordHeader {
            kind: RecordKind::SlowCall as u32,
            total_bytes: size_of::<SlowCall>() as u32,
            time_mono_ns: now_ns,
        },
        duration_ns,
        number,
        cpu: cpu(),
    };
    // Not on the stack, which the saved registers need.
    // SAFETY: the slot is ours.
    unsafe { (*scratch).call = call };
    // SAFETY: the record is in our slot.
    if !unsafe {
        send(
            (&raw const (*scratch).call).cast(),
            size_of::<SlowCall>() as u64,
        )
    } {
        count(Counter::RingFull);
        return 0;
    }
    // SAFETY: the slot is ours, and the reference ends with the call.
    let record = unsafe { record::begin(slot, &*scratch, (pid, tid), now_ns) };
    let Some(record) = record else {
        return 0;
    };
    let stop = match saved() {
        Some(registers) => user_stack::walk(slot, registers),
        None => StopReason::NoRegisters,
    };
    // SAFETY: the slot is ours, and the references end with the call.
    unsafe { record::submit(&mut *scratch, record, stop) };
    0
}

/// Whether a call may be among the slowest of its kind.
#[inline(always)]
fn is_slow(number: u32, duration_ns: u64) -> bool {
    let place = number.min(SLOW_NUMBERS as u32 - 1);
    let Some(floor) = SLOW_FLOORS.get_ptr_mut(opaque(place.into()) as u32) else {
        return false;
    };
    // SAFETY: the entry of this CPU.
    let floor = unsafe { &mut *floor };
    if bucket_of(duration_ns) < floor.bucket {
        return false;
    }
    floor.told += 1;
    if floor.told >= SLOWEST.load() {
        floor.bucket += 1;
        floor.told = 0;
    }
    true
}

/// `sched_process_exit(task, …)`, once for each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn slow_call_thread_exit(_ctx: RawTracePointContext) -> i32 {
    let (_, tid) = current_pid_tid();
    let _ = BEGUN.remove(tid);
    0
}
