//! System calls: how often, how long, with which errors; added up here, and read by the agent.
//!
//! Every call of every process on the host runs through the first two programs, so they do little: a
//! look-up of the thread, the clock, and, when it returns, an addition to a row that the thread
//! remembers.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::{
    counters::Counter,
    settings::{TARGET_AT_EXEC, TARGET_SAMPLE, TargetMode},
    syscalls::{COMPAT, ErrorKey, REMEMBERED_ROWS, RowKey, Thread},
};
use hotspan_ebpf::verifier::opaque;

use super::{
    registers::{EXECVE, is_compat},
    target::{is_in_cgroup, target_flags},
};
use crate::{
    kernel_calls::{
        NO_EXIST, add_duration, add_to, count, current_pid_tid, current_task, kernel_word,
        now_mono_ns,
    },
    maps::{
        FREE_ROWS, FREE_THREAD_SLOTS, LAST_THREAD_SLOT, OWN_PID, SYSCALL_ERRORS, SYSCALL_ROW_OF,
        SYSCALL_ROWS, TARGET_CGROUP, TARGET_MODE, THREAD_SLOT_OF, THREAD_SLOTS, offset_of,
    },
};

/// `sys_enter(regs, number)`.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn syscall_enter(ctx: RawTracePointContext) -> i32 {
    let number = ctx.arg::<u64>(1) as u32;
    let (pid, tid) = current_pid_tid();
    let Some(thread) = find(tid).or_else(|| meet(pid, tid, number)) else {
        return 0;
    };
    // SAFETY: the entry is the running thread's, and only it writes there.
    let thread = unsafe { &mut *thread };
    let [known, row] = thread.rows[place_of(number)];
    // Which table a call goes through is looked at once: threads do not use both.
    thread.number = if row != 0 && known & !COMPAT == number {
        known
    } else if is_compat(ctx.arg::<u64>(0)) {
        number | COMPAT
    } else {
        number
    };
    thread.start_mono_ns = now_mono_ns();
    0
}

/// Where a thread remembers the row of a system call.
#[inline(always)]
fn place_of(number: u32) -> usize {
    opaque(number.into()) as usize & (REMEMBERED_ROWS - 1)
}

/// `sys_exit(regs, result)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn syscall_exit(ctx: RawTracePointContext) -> i32 {
    let (pid, tid) = current_pid_tid();
    let Some(thread) = find(tid) else {
        return 0;
    };
    // SAFETY: the entry is the running thread's, and only it writes there.
    let thread = unsafe { &mut *thread };
    // A new thread returns from a call that its parent made, and one that was there before us from
    // one that we have not seen.
    if thread.start_mono_ns == 0 {
        return 0;
    }
    let duration_ns = now_mono_ns().wrapping_sub(thread.start_mono_ns);
    thread.start_mono_ns = 0;
    let result = ctx.arg::<u64>(1) as i64;
    if CUT_OFF.contains(&result) && is_being_killed() {
        // The program never hears of it.
        return 0;
    }
    let place = place_of(thread.number);
    let [number, row] = thread.rows[place];
    let row = if row != 0 && number == thread.number {
        row - 1
    } else {
        let Some(row) = find_row(pid, tid, thread.number) else {
            return 0;
        };
        thread.rows[place] = [thread.number, row + 1];
        row
    };
    // A signal handler of a 32-bit program returns to a result of 32 bits.
    let is_compat = thread.number & COMPAT != 0;
    let result = if is_compat {
        i64::from(result as i32)
    } else {
        result
    };
    add(row, duration_ns, result);
    0
}

/// What calls return with that a signal cuts off: `EINTR`, and the kernel's own from `ERESTARTSYS` to
/// `ERESTART_RESTARTBLOCK`.
const CUT_OFF: [i64; 6] = [-4, -512, -513, -514, -515, -516];

/// Whether the running thread is about to be ended by another one, as when its process exits.
#[inline(always)]
fn is_being_killed() -> bool {
    const SIGKILL: u64 = 1 << (9 - 1);
    kernel_word(current_task() + offset_of!(task_pending_signals)) & SIGKILL != 0
}

/// A thread that is not known yet; `None` when it is not to be followed.
#[inline(always)]
fn meet(pid: u32, tid: u32, number: u32) -> Option<*mut Thread> {
    if pid == OWN_PID.load() {
        return None;
    }
    let mode = TARGET_MODE.load();
    if mode == TargetMode::Pids as u32 {
        let flags = target_flags(pid);
        // A command counts from the call on that starts it.
        let starts = flags & TARGET_AT_EXEC != 0 && EXECVE.contains(&u64::from(number));
        if flags & TARGET_SAMPLE == 0 && !starts {
            return None;
        }
    } else if mode == TargetMode::Cgroup as u32 && !is_in_cgroup(TARGET_CGROUP.load()) {
        return None;
    }
    let slot = FREE_THREAD_SLOTS.pop().ok().flatten();
    let Some(thread) = slot.and_then(|slot| THREAD_SLOTS.get_ptr_mut(slot)) else {
        count(Counter::SyscallThreadsFull);
        return None;
    };
    // SAFETY: nobody else has the slot.
    unsafe {
        *thread = Thread {
            pid,
            tid,
            ..Thread::default()
        };
    }
    // There are as many entries as slots.
    let _ = THREAD_SLOT_OF.insert(tid, slot.unwrap_or(0), 0);
    Some(thread)
}

/// What is known of a thread.
#[inline(always)]
fn find(tid: u32) -> Option<*mut Thread> {
    let last = LAST_THREAD_SLOT.get_ptr_mut(0)?;
    // SAFETY: the entry of this CPU.
    let last = unsafe { &mut *last };
    let thread = THREAD_SLOTS.get_ptr_mut(*last)?;
    // SAFETY: the slot is there; whose it is does not change while its thread runs.
    if unsafe { (*thread).tid } == tid {
        return Some(thread);
    }
    // SAFETY: an entry is the running thread's.
    let slot = *unsafe { THREAD_SLOT_OF.get(tid) }?;
    *last = slot;
    THREAD_SLOTS.get_ptr_mut(slot)
}

/// Forgets a thread.
#[inline(always)]
fn forget(tid: u32) {
    // SAFETY: an entry is the running thread's.
    let Some(&slot) = (unsafe { THREAD_SLOT_OF.get(tid) }) else {
        return;
    };
    let _ = THREAD_SLOT_OF.remove(tid);
    if let Some(thread) = THREAD_SLOTS.get_ptr_mut(slot) {
        // SAFETY: the slot is the running thread's, until it is given back.
        unsafe { (*thread).tid = 0 };
    }
    let _ = FREE_THREAD_SLOTS.push(slot, 0);
}

/// The row of a system call of a process.
#[inline(always)]
fn find_row(pid: u32, tid: u32, number: u32) -> Option<u32> {
    if TARGET_MODE.load() == TargetMode::Pids as u32 && target_flags(pid) & TARGET_SAMPLE == 0 {
        // It failed to become the command.
        forget(tid);
        return None;
    }
    let key = RowKey { pid, number };
    // SAFETY: rows stay with their process.
    if let Some(row) = unsafe { SYSCALL_ROW_OF.get(key) } {
        return Some(*row);
    }
    let Ok(Some(row)) = FREE_ROWS.pop() else {
        count(Counter::SyscallRowsFull);
        return None;
    };
    if SYSCALL_ROW_OF.insert(key, row, NO_EXIST).is_ok() {
        count(Counter::SyscallRowsTaken);
        return Some(row);
    }
    // Another thread of the process was first, or there are too many.
    let _ = FREE_ROWS.push(row, 0);
    // SAFETY: as above.
    let row = unsafe { SYSCALL_ROW_OF.get(key) }.copied();
    if row.is_none() {
        count(Counter::SyscallRowsFull);
    }
    row
}

/// Adds a call to its row.
#[inline(always)]
fn add(row: u32, duration_ns: u64, result: i64) {
    const MAX_ERRNO: i64 = 4095;
    if let Some(to) = SYSCALL_ROWS.get_ptr_mut(row) {
        // SAFETY: the row of this CPU, where no other program adds meanwhile.
        unsafe { add_duration(to, duration_ns) };
    }
    if (-MAX_ERRNO..0).contains(&result) {
        let errno = result.unsigned_abs() as u32;
        add_error(ErrorKey { row, errno });
    }
}

#[inline(always)]
fn add_error(key: ErrorKey) {
    let known = SYSCALL_ERRORS.get_ptr_mut(key).or_else(|| {
        let _ = SYSCALL_ERRORS.insert(key, 0, NO_EXIST);
        SYSCALL_ERRORS.get_ptr_mut(key)
    });
    match known {
        // SAFETY: the entry is there.
        Some(errors) => unsafe { add_to(errors, 1) },
        None => count(Counter::SyscallErrorsFull),
    }
}

/// `sched_process_exec(task, old_tid, bprm)`: the new program may be of the other kind, 32 or 64 bits. A
/// thread that is not the main one takes that one's place, and its id.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn syscalls_exec(ctx: RawTracePointContext) -> i32 {
    let old_tid = ctx.arg::<u64>(1) as u32;
    let (_, tid) = current_pid_tid();
    // SAFETY: the entry is the running thread's.
    let Some(&slot) = (unsafe { THREAD_SLOT_OF.get(old_tid) }) else {
        return 0;
    };
    if old_tid != tid {
        let _ = THREAD_SLOT_OF.remove(old_tid);
        let _ = THREAD_SLOT_OF.insert(tid, slot, 0);
    }
    if let Some(thread) = THREAD_SLOTS.get_ptr_mut(slot) {
        // SAFETY: the slot is the running thread's.
        let thread = unsafe { &mut *thread };
        thread.tid = tid;
        thread.rows = Thread::default().rows;
    }
    0
}

/// `sched_process_exit(task, …)`, once for each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn syscalls_exit(_ctx: RawTracePointContext) -> i32 {
    let (_, tid) = current_pid_tid();
    forget(tid);
    0
}
