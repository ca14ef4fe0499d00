//! The life of processes: who is followed, and how much CPU time the ones that end have used.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use aya_log_ebpf::debug;
use hotspan_abi::{
    counters::Counter,
    limits::COMM_BYTES,
    records::{ProcessEvent, RecordHeader, RecordKind},
    settings::{
        TARGET_AT_EXEC, TARGET_FOLLOW_CHILDREN, TARGET_LAUNCHER, TARGET_SAMPLE, TargetMode,
    },
};

use super::target::{flags_in_mode, is_target, target_flags};
use crate::{
    kernel_calls::{
        count, current_comm, current_pid_tid, next_generation, now_mono_ns, read_kernel, send,
    },
    maps::{PROCESSES, TARGET_MODE, TARGETS, offset_of},
};

/// `sched_process_fork(parent, child)`: children of followed processes are followed too.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    let child: u64 = ctx.arg::<u64>(1);
    let (parent_pid, _) = current_pid_tid();
    let Some(child_pid) = read_kernel::<u32>(child + offset_of!(task_tgid)) else {
        return 0;
    };
    if child_pid == parent_pid {
        return 0; // A thread.
    }
    // A child has its parent's mappings until it replaces its program.
    // SAFETY: a value that is changed meanwhile is read before or after the change.
    if let Some(process) = unsafe { PROCESSES.get(parent_pid) } {
        let process = *process;
        let _ = PROCESSES.insert(child_pid, process, 0);
        next_generation();
    }
    let flags = target_flags(parent_pid);
    let inherited = if flags & TARGET_LAUNCHER != 0 {
        TARGET_AT_EXEC
    } else if flags & TARGET_FOLLOW_CHILDREN != 0 {
        flags
    } else {
        if TARGET_MODE.load() == TargetMode::Pids as u32 {
            // The pid may have been a target's before.
            let _ = TARGETS.remove(child_pid);
            next_generation();
        }
        return 0;
    };
    if TARGETS.insert(child_pid, inherited, 0).is_err() {
        count(Counter::TargetsFull);
    } else {
        debug!(
            &ctx,
            "process {} follows its parent {}", child_pid, parent_pid
        );
    }
    next_generation();
    0
}

/// `sched_process_exec(task, old_pid, bprm)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg::<u64>(0);
    let (pid, tid) = current_pid_tid();
    let flags = target_flags(pid);
    if flags & TARGET_AT_EXEC != 0 {
        let followed = TARGET_SAMPLE | TARGET_FOLLOW_CHILDREN;
        if TARGETS.insert(pid, followed, 0).is_err() {
            count(Counter::TargetsFull);
        }
        debug!(&ctx, "command started as process {}", pid);
    }
    let _ = PROCESSES.remove(pid);
    next_generation();
    report(RecordKind::Exec, task, pid, tid, false);
    0
}

/// `sched_process_exit(task, …)`, once for each thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg::<u64>(0);
    let (pid, tid) = current_pid_tid();
    let is_followed = TARGET_MODE.load() != TargetMode::All as u32 && is_target(flags_in_mode(pid));
    // The count of live threads is taken down before this tracepoint: zero means the last one.
    let is_last = read_kernel::<u64>(task + offset_of!(task_signal))
        .and_then(|signal| read_kernel::<i32>(signal + offset_of!(signal_live)))
        == Some(0);
    if is_followed || (is_last && TARGET_MODE.load() == TargetMode::All as u32) {
        report(RecordKind::Exit, task, pid, tid, is_last);
    }
    if is_last {
        // It stays a target: taking its memory down is its work too. The agent removes it later.
        let _ = PROCESSES.remove(pid);
        next_generation();
    }
    0
}

/// `sched_process_free(task)`: some time after the end of a thread, when its CPU time is final. The
/// running task is another one.
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn process_free(ctx: RawTracePointContext) -> i32 {
    let task: u64 = ctx.arg::<u64>(0);
    let pid = read_kernel::<u32>(task + offset_of!(task_tgid));
    let tid = read_kernel::<u32>(task + offset_of!(task_pid));
    if let (Some(pid), Some(tid)) = (pid, tid)
        && target_flags(pid) & TARGET_SAMPLE != 0
    {
        report(RecordKind::Free, task, pid, tid, false);
    }
    0
}

#[inline(always)]
fn report(kind: RecordKind, task: u64, pid: u32, tid: u32, is_last_thread: bool) {
    let mut event = ProcessEvent {
        header: RecordHeader {
            kind: kind as u32,
            total_bytes: size_of::<ProcessEvent>() as u32,
            time_mono_ns: now_mono_ns(),
        },
        pid,
        tid,
        thread_cpu_ns: read_kernel::<u64>(task + offset_of!(task_sum_exec_runtime)).unwrap_or(0),
        is_last_thread: u32::from(is_last_thread),
        _pad: 0,
        comm: [0; COMM_BYTES],
    };
    if kind as u32 != RecordKind::Free as u32 {
        // SAFETY: the name is in the event, on this program's stack.
        unsafe { current_comm(&raw mut event.comm) };
    }
    // SAFETY: the event is on this program's stack.
    if !unsafe { send((&raw const event).cast(), size_of::<ProcessEvent>() as u64) } {
        count(Counter::RingFullProcess);
    }
}
