//! Threads that come to their CPU and leave it: how long they waited in the run queue, how long they were
//! away, and why.
//!
//! How long a thread waits to run the kernel counts itself (`sched_info`), over all the queues that it is moved
//! through; the difference since it ran last is one wait. So nothing runs when threads are woken.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::{
    counters::Counter,
    resources::{Event, EventKey, REMEMBERED_EVENTS, Switched, WAITING_SYSCALLS},
};
use hotspan_ebpf::verifier::opaque;

use super::{
    event_rows::{add_to_row, cgroup_of, find_row},
    registers::syscall_of_current,
};
use crate::{
    kernel_calls::{count, current_pid_tid, kernel_word, now_mono_ns, read_kernel},
    maps::{RUN_QUEUE, SWITCHED, WAITS_OF_SYSCALLS, offset_of, resource_offset},
};

/// `TASK_UNINTERRUPTIBLE`
const UNINTERRUPTIBLE: u32 = 2;
/// `__TASK_STOPPED` and `__TASK_TRACED`
const STOPPED: u32 = 4 | 8;
/// `TASK_DEAD`
const DEAD: u32 = 0x80;
/// `PF_KTHREAD`
const KERNEL_THREAD: u32 = 0x0020_0000;

/// `sched_switch(preempt, prev, next, …)`
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn resource_switch(ctx: RawTracePointContext) -> i32 {
    let now_ns = now_mono_ns();
    leave(ctx.arg::<u64>(1), now_ns);
    enter(ctx.arg::<u64>(2), now_ns);
    0
}

/// The running thread leaves its CPU.
#[inline(always)]
fn leave(task: u64, now_ns: u64) {
    let (_, tid) = current_pid_tid();
    if tid == 0 {
        return;
    }
    let state = read_kernel::<u32>(task + resource_offset!(task_state)).unwrap_or(0);
    if state & DEAD != 0 {
        let _ = SWITCHED.remove(tid);
        return;
    }
    let known = SWITCHED.get_ptr_mut(tid).or_else(|| {
        meet(
            tid,
            Switched {
                run_delay_ns: kernel_word(task + resource_offset!(task_run_delay)),
                ..Switched::default()
            },
        )
    });
    if let Some(thread) = known {
        // SAFETY: the entry is the running thread's, and only the CPU that it is on writes there.
        let thread = unsafe { &mut *thread };
        thread.out_mono_ns = now_ns;
        thread.reason = reason(task, state);
    }
}

/// Why a thread leaves its CPU, an [`Event`]; 0 when that is its own affair.
#[inline(always)]
fn reason(task: u64, state: u32) -> u32 {
    if state == 0 {
        return Event::OffPreempted as u32;
    }
    if state & STOPPED != 0 {
        return Event::OffSignal as u32;
    }
    let in_iowait = read_kernel::<u8>(task + resource_offset!(task_in_iowait)).unwrap_or(0);
    if u64::from(in_iowait) & resource_offset!(task_in_iowait_mask) != 0 {
        return Event::OffDisk as u32;
    }
    let flags = read_kernel::<u32>(task + resource_offset!(task_flags)).unwrap_or(0);
    if flags & KERNEL_THREAD != 0 {
        // It waits for work.
        return 0;
    }
    let Some(number) = syscall_of_current() else {
        return Event::OffPageFault as u32;
    };
    // A number that no table has leads to the last entry, which stays 0.
    let wait = WAITS_OF_SYSCALLS.get(number.min(WAITING_SYSCALLS as u32 - 1));
    match wait.copied().unwrap_or(0) {
        0 if state & UNINTERRUPTIBLE != 0 => Event::OffUninterruptible as u32,
        0 => Event::OffOther as u32,
        wait => wait,
    }
}

/// A thread gets the CPU.
#[inline(always)]
fn enter(task: u64, now_ns: u64) {
    let tid = read_kernel::<u32>(task + offset_of!(task_pid)).unwrap_or(0);
    if tid == 0 {
        return;
    }
    let known = SWITCHED.get_ptr_mut(tid);
    let run_delay_ns = kernel_word(task + resource_offset!(task_run_delay));
    let Some(thread) = known.or_else(|| meet_entering(task, tid, run_delay_ns)) else {
        return;
    };
    // SAFETY: no other CPU runs the thread.
    let thread = unsafe { &mut *thread };
    let css_set = kernel_word(task + offset_of!(task_cgroups));
    if css_set != thread.css_set {
        thread.css_set = css_set;
        thread.cgroup = cgroup_of(css_set);
        thread.rows = [0; REMEMBERED_EVENTS];
    }
    let queued_at = kernel_word(task + resource_offset!(task_last_queued));
    if queued_at != 0 {
        let waited_ns = run_queue_clock(task).wrapping_sub(queued_at);
        // The clocks of two CPUs may differ a little, and the kernel lets that go below zero, too.
        let waited_ns = if waited_ns >> 63 == 1 { 0 } else { waited_ns };
        let total_ns = run_delay_ns + waited_ns;
        let since_ns = total_ns.wrapping_sub(thread.run_delay_ns);
        thread.run_delay_ns = total_ns;
        add_to_thread(thread, Event::RunQueue as u32, since_ns);
    }
    if thread.out_mono_ns != 0 && thread.reason != 0 {
        let away_ns = now_ns - thread.out_mono_ns;
        add_to_thread(thread, thread.reason, away_ns);
    }
    thread.out_mono_ns = 0;
}

/// The clock that the kernel measures queues by, as the scheduler of this CPU last read it.
#[inline(always)]
fn run_queue_clock(task: u64) -> u64 {
    let Some(known) = RUN_QUEUE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the entry of this CPU.
    let known = unsafe { &mut *known };
    if *known == 0 {
        let queue = kernel_word(task + resource_offset!(task_cfs_rq));
        *known = kernel_word(queue + resource_offset!(cfs_rq_rq));
    }
    kernel_word(*known + resource_offset!(rq_clock))
}

/// A thread that runs for the first time since we look. What it has waited before is no wait of now, if
/// it has run before.
#[inline(always)]
fn meet_entering(task: u64, tid: u32, run_delay_ns: u64) -> Option<*mut Switched> {
    let has_run = kernel_word(task + resource_offset!(task_run_count)) != 0;
    let thread = Switched {
        run_delay_ns: if has_run { run_delay_ns } else { 0 },
        ..Switched::default()
    };
    meet(tid, thread)
}

#[inline(always)]
fn meet(tid: u32, thread: Switched) -> Option<*mut Switched> {
    if SWITCHED.insert(tid, thread, 0).is_err() {
        count(Counter::SwitchedFull);
        return None;
    }
    SWITCHED.get_ptr_mut(tid)
}

/// Adds an event to the row that a thread remembers.
#[inline(always)]
fn add_to_thread(thread: &mut Switched, event: u32, duration_ns: u64) {
    let place = opaque(event.into()) as usize & (REMEMBERED_EVENTS - 1);
    let remembered = u32::from(thread.rows[place]);
    let row = match remembered.checked_sub(1) {
        Some(row) => row,
        None => {
            let key = EventKey {
                cgroup: thread.cgroup,
                disk: 0,
                event,
            };
            let row = find_row(key);
            // Not the row of nobody: there may be one of its own later.
            if row != event {
                thread.rows[place] = row as u16 + 1;
            }
            row
        }
    };
    add_to_row(row, duration_ns);
}
