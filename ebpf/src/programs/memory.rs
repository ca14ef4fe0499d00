//! Memory that is short: who has to find some, how long that takes, and who is killed for it.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::{counters::Counter, resources::Event};

use super::event_rows::{add_to_current, add_to_task};
use crate::{
    kernel_calls::{count, current_pid_tid, now_mono_ns},
    maps::RECLAIMING,
};

/// `mark_victim(task, uid)`, before Linux 6.9 `(pid)`; then it is counted for who asked for memory.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn memory_oom_kill(ctx: RawTracePointContext) -> i32 {
    let victim = ctx.arg::<u64>(0);
    if victim >> 63 == 1 {
        add_to_task(victim, Event::OomKill, 0);
    } else {
        add_to_current(Event::OomKill, 0);
    }
    0
}

/// `mm_vmscan_direct_reclaim_begin(…)`
#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_begin")]
pub fn memory_reclaim_begin(_ctx: RawTracePointContext) -> i32 {
    begin();
    0
}

/// `mm_vmscan_direct_reclaim_end(…)`
#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_end")]
pub fn memory_reclaim_end(_ctx: RawTracePointContext) -> i32 {
    end(Event::DirectReclaim);
    0
}

/// `mm_vmscan_memcg_reclaim_begin(…)`: the cgroup is at its limit.
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
pub fn memory_limit_begin(_ctx: RawTracePointContext) -> i32 {
    begin();
    0
}

/// `mm_vmscan_memcg_reclaim_end(…)`
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_end")]
pub fn memory_limit_end(_ctx: RawTracePointContext) -> i32 {
    end(Event::LimitReclaim);
    0
}

#[inline(always)]
fn begin() {
    let (_, tid) = current_pid_tid();
    if RECLAIMING.insert(tid, now_mono_ns(), 0).is_err() {
        count(Counter::ReclaimingFull);
    }
}

#[inline(always)]
fn end(event: Event) {
    let (_, tid) = current_pid_tid();
    // SAFETY: the entry is the running thread's.
    if let Some(start_ns) = unsafe { RECLAIMING.get(tid) } {
        let took_ns = now_mono_ns() - *start_ns;
        let _ = RECLAIMING.remove(tid);
        add_to_current(event, took_ns);
    }
}
