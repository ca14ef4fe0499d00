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
    for (depth, addr) in lookup_addrs(user).enumerate() {
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
    // No thread begins in code made at run time: its stack has a zero where no return address is.
    if stop == StopReason::Root && !matches!(frames.last(), Some(RawFrame::File(..))) {
        stop = StopReason::FramePointerEnd;
    }
    // A thread of the kernel has no user stack to miss, unless its kernel stack is missing too.
    if stop != StopReason::NoUserStack || !is_in_kernel {
        frames.push(RawFrame::Cut(stop));
    }
}

/// Where to look the user frames of a sample up, leaf first: return addresses one byte back, and
/// exactly where the thread was, and where it was when a signal came. The frame that the signal's
/// handler returns to was called by nobody: it is the first instruction of a trampoline.
fn lookup_addrs(frames: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
    let is_marked = |addr: u64| addr & EXACT_ADDRESS != 0;
    let mut frames = frames.peekable();
    let mut is_leaf = true;
    std::iter::from_fn(move || {
        let frame = frames.next()?;
        let is_trampoline = frames.peek().is_some_and(|&caller| is_marked(caller));
        let is_exact = std::mem::take(&mut is_leaf) || is_marked(frame) || is_trampoline;
        let addr = RuntimeAddr(frame & !EXACT_ADDRESS);
        Some(if is_exact { addr } else { addr.lookup_addr() }.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BinaryId;

    fn check(frames: &[u64], expected: &[u64]) {
        let found: Vec<_> = lookup_addrs(frames.iter().copied()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn stack_ends_in_a_file() {
        let ends = |found: Found| {
            let addresses = Addresses {
                kernel: [].into_iter(),
                user: [0x10].into_iter(),
                stop: StopReason::Root,
            };
            let mut frames = Vec::new();
            normalize(addresses, ProcessId(0), |_| found, &mut frames);
            frames.pop()
        };
        let cut = Some(RawFrame::Cut(StopReason::FramePointerEnd));
        assert_eq!(ends(Found::Anonymous), cut);
        assert_eq!(ends(Found::Nowhere), cut);
        let whole = Some(RawFrame::Cut(StopReason::Root));
        assert_eq!(ends(Found::File(BinaryId(0), 0)), whole);
    }

    #[test]
    fn return_addresses_are_looked_up_in_the_call_before_them() {
        check(&[], &[]);
        check(&[0x10, 0x20, 0x30], &[0x10, 0x1f, 0x2f]);
    }

    #[test]
    fn a_signal_interrupts_exactly_and_returns_to_the_start_of_a_trampoline() {
        let interrupted = 0x40 | EXACT_ADDRESS;
        check(
            &[0x10, 0x20, 0x30, interrupted, 0x50],
            &[0x10, 0x1f, 0x30, 0x40, 0x4f],
        );
        // In the trampoline itself, and one signal inside of another.
        check(&[0x30, interrupted], &[0x30, 0x40]);
        check(
            &[0x10, 0x30, interrupted, 0x30, interrupted],
            &[0x10, 0x30, 0x40, 0x30, 0x40],
        );
    }
}
