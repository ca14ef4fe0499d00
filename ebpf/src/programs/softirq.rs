//! Work that interrupts leave for later.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::resources::{Event, SOFTIRQS};

use super::event_rows::add_to_row;
use crate::{kernel_calls::now_mono_ns, maps::SOFTIRQ_START};

/// `softirq_entry(kind)`
#[raw_tracepoint(tracepoint = "softirq_entry")]
pub fn softirq_entry(ctx: RawTracePointContext) -> i32 {
    if let Some(start_ns) = SOFTIRQ_START.get_ptr_mut(ctx.arg::<u64>(0) as u32) {
        // SAFETY: the entry of this CPU, which does one such work at a time.
        unsafe { *start_ns = now_mono_ns() };
    }
    0
}

/// `softirq_exit(kind)`
#[raw_tracepoint(tracepoint = "softirq_exit")]
pub fn softirq_exit(ctx: RawTracePointContext) -> i32 {
    let kind = ctx.arg::<u64>(0) as u32;
    let Some(start_ns) = SOFTIRQ_START.get_ptr_mut(kind) else {
        return 0;
    };
    // SAFETY: as above.
    let start_ns = unsafe { core::mem::take(&mut *start_ns) };
    if start_ns != 0 && kind < SOFTIRQS {
        // The row of nobody: interrupts happen to everybody.
        add_to_row(Event::SoftirqHi as u32 + kind, now_mono_ns() - start_ns);
    }
    0
}
