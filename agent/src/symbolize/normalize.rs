//! The early step: addresses of one sample to files and offsets.

use hotspan_abi::records::{EXACT_ADDRESS, StopReason};

use crate::{
    decode::record::Sample,
    model::{ProcessId, RawFrame, RuntimeAddr},
    process::{Binaries, Found, ProcessTable},
};

/// Turns the addresses of `sample` into frames, leaf first, in `frames`.
///
/// A frame pointer that was none can lead anywhere. An address in no executable mapping is such a
/// place: the stack is cut before it, unless it is where the thread really was.
pub fn normalize(
    sample: &Sample<'_>,
    process: ProcessId,
    table: &mut ProcessTable,
    binaries: &mut Binaries,
    frames: &mut Vec<RawFrame>,
) {
    frames.clear();
    let is_in_kernel = sample.kernel_frames().len() > 0;
    for (depth, addr) in sample.kernel_frames().enumerate() {
        let addr = RuntimeAddr(addr);
        frames.push(RawFrame::Kernel(
            if depth == 0 { addr } else { addr.lookup_addr() }.0,
        ));
    }
    let pid = sample.header.pid;
    let now_mono_ns = sample.header.header.time_mono_ns;
    let mut stop = sample.stop;
    for (depth, addr) in sample.user_frames().enumerate() {
        // The leaf is where the thread was, and so is a frame that a signal interrupted.
        let is_exact = depth == 0 || addr & EXACT_ADDRESS != 0;
        let addr = RuntimeAddr(addr & !EXACT_ADDRESS);
        let addr = if is_exact { addr } else { addr.lookup_addr() }.0;
        match table.find(pid, addr, now_mono_ns, binaries) {
            Found::File(binary, offset) => frames.push(RawFrame::File(binary, offset)),
            Found::Anonymous => frames.push(RawFrame::Anonymous(process, addr)),
            Found::Nowhere if depth == 0 => frames.push(RawFrame::Nowhere(addr)),
            Found::Nowhere => {
                stop = StopReason::NoUnwindTable;
                break;
            }
        }
    }
    // A thread of the kernel has no user stack to miss, unless its kernel stack is missing too.
    if stop != StopReason::NoUserStack || !is_in_kernel {
        frames.push(RawFrame::Cut(stop));
    }
}
