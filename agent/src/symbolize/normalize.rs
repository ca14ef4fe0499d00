//! The early step: addresses of one sample to files and offsets.

use hotspan_abi::records::{EXACT_ADDRESS, StopReason};

use crate::{
    model::{ProcessId, RawFrame, RuntimeAddr},
    process::Found,
};

/// The addresses of one sample, leaf first.
pub struct Addresses<K, U> {
    /// Kernel addresses.
    pub kernel: K,
    /// User addresses.
    pub user: U,
    /// Why the user part ends.
    pub stop: StopReason,
}

/// Turns the addresses of a sample of `process` into frames, leaf first, in `frames`; `find` tells
/// where a user address lies.
///
/// A frame pointer that was none can lead anywhere. An address in no executable mapping is such a
/// place: the stack is cut before it, unless it is where the thread really was.
pub fn normalize(
    addresses: Addresses<impl ExactSizeIterator<Item = u64>, impl Iterator<Item = u64>>,
    process: ProcessId,
    mut find: impl FnMut(u64) -> Found,
    frames: &mut Vec<RawFrame>,
) {
    let Addresses {
        kernel,
        user,
        mut stop,
    } = addresses;
    frames.clear();
    let is_in_kernel = kernel.len() > 0;
    for (depth, addr) in kernel.enumerate() {
        let addr = RuntimeAddr(addr);
        frames.push(RawFrame::Kernel(
            if depth == 0 { addr } else { addr.lookup_addr() }.0,
        ));
    }
    for (depth, addr) in user.enumerate() {
        // The leaf is where the thread was, and so is a frame that a signal interrupted.
        let is_exact = depth == 0 || addr & EXACT_ADDRESS != 0;
        let addr = RuntimeAddr(addr & !EXACT_ADDRESS);
        let addr = if is_exact { addr } else { addr.lookup_addr() }.0;
        match find(addr) {
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
