//! One step of user-stack unwinding, over any memory.
//!
//! The stack is read through a [`Window`]: one read of 1 KiB costs about as much as one of eight
//! bytes, and serves many frames. A step takes the registers of one frame and makes them those of
//! its caller.

use hotspan_abi::{limits::WINDOW_WORDS, records::StopReason};

use crate::verifier::opaque;

/// Reads the memory of the process that is being unwound.
pub trait ReadMemory {
    /// Fills `words` from `addr` on; false when any of it cannot be read.
    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool;
    /// Reads two neighbouring words; the way out when a whole window crosses the stack's end.
    fn read_pair(&mut self, addr: u64, pair: &mut [u64; 2]) -> bool;
}

/// The registers that unwinding needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// Instruction pointer: of the sample at first, then return addresses.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
}

/// The part of the stack that was read last.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Window {
    /// Address of the first word; 0 when nothing was read yet.
    pub start: u64,
    /// The words.
    pub words: [u64; WINDOW_WORDS],
}

impl Window {
    /// A window with nothing in it.
    pub const EMPTY: Self = Self {
        start: 0,
        words: [0; WINDOW_WORDS],
    };

    /// The two words at `addr`, which must be a multiple of eight.
    #[inline(always)]
    pub fn pair<M: ReadMemory>(&mut self, addr: u64, memory: &mut M) -> Option<(u64, u64)> {
        let mut index = addr.wrapping_sub(self.start) >> 3;
        if self.start == 0 || index >= (WINDOW_WORDS - 1) as u64 {
            if !memory.read_words(addr, &mut self.words) {
                self.start = 0;
                let mut pair = [0; 2];
                return memory
                    .read_pair(addr, &mut pair)
                    .then_some((pair[0], pair[1]));
            }
            self.start = addr;
            index = 0;
        }
        let index = opaque(index) as usize;
        Some((
            self.words[index & (WINDOW_WORDS - 1)],
            self.words[(index + 1) & (WINDOW_WORDS - 1)],
        ))
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The registers are now the caller's.
    Caller,
    /// There is no caller, or no way to it.
    Stop(StopReason),
}

/// First address that cannot be a user's on x86-64 or arm64 with 48-bit addresses.
const USER_END: u64 = 1 << 48;

/// Goes to the caller by the frame pointer: it points at the saved frame pointer of the caller,
/// and the return address lies above it (System V ABI for x86-64, §3.2.2; AAPCS64, §6.4.6).
#[inline(always)]
pub fn step_frame_pointer<M: ReadMemory>(
    registers: &mut Registers,
    window: &mut Window,
    memory: &mut M,
) -> Step {
    let frame = registers.fp;
    if frame == 0 {
        return Step::Stop(StopReason::Root);
    }
    // The stack grows down: a frame below the stack pointer, or not aligned, is some other value
    // that the compiler keeps in this register.
    if frame < registers.sp || frame & 7 != 0 || frame >= USER_END {
        return Step::Stop(StopReason::NoUnwindTable);
    }
    let Some((caller_fp, return_address)) = window.pair(frame, memory) else {
        return Step::Stop(StopReason::StackReadFailed);
    };
    if return_address == 0 {
        return Step::Stop(StopReason::Root);
    }
    if return_address >= USER_END {
        return Step::Stop(StopReason::NoUnwindTable);
    }
    registers.ip = return_address;
    registers.sp = frame + 16;
    registers.fp = caller_fp;
    Step::Caller
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Words from `base` on; everything else cannot be read.
    struct Memory {
        base: u64,
        words: Vec<u64>,
        reads: usize,
    }

    impl Memory {
        fn copy(&mut self, addr: u64, out: &mut [u64]) -> bool {
            self.reads += 1;
            let Some(first) = addr
                .checked_sub(self.base)
                .map(|bytes| (bytes / 8) as usize)
            else {
                return false;
            };
            let Some(words) = self.words.get(first..first.saturating_add(out.len())) else {
                return false;
            };
            out.copy_from_slice(words);
            true
        }
    }

    impl ReadMemory for Memory {
        fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
            self.copy(addr, words)
        }
        fn read_pair(&mut self, addr: u64, pair: &mut [u64; 2]) -> bool {
            self.copy(addr, pair)
        }
    }

    const BASE: u64 = 0x7fff_0000_0000;

    /// A chain of `depth` frames of `frame_words` words, the last with a zero frame pointer.
    fn chain(depth: usize, frame_words: usize) -> Memory {
        let mut words = std::vec![0; depth * frame_words + 2];
        for i in 0..depth {
            let at = i * frame_words;
            words[at] = if i + 1 == depth {
                0
            } else {
                BASE + ((at + frame_words) * 8) as u64
            };
            words[at + 1] = 0x40_0000 + i as u64;
        }
        Memory {
            base: BASE,
            words,
            reads: 0,
        }
    }

    fn walk(mut registers: Registers, memory: &mut Memory) -> (Vec<u64>, StopReason) {
        let mut window = Window::EMPTY;
        let mut ips = Vec::new();
        for _ in 0..10_000 {
            match step_frame_pointer(&mut registers, &mut window, memory) {
                Step::Caller => ips.push(registers.ip),
                Step::Stop(reason) => return (ips, reason),
            }
        }
        panic!("a chain of frames never ended");
    }

    fn start() -> Registers {
        Registers {
            ip: 0x40_1234,
            sp: BASE,
            fp: BASE,
        }
    }

    #[test]
    fn chain_is_walked_to_its_zero_frame_pointer() {
        let (ips, reason) = walk(start(), &mut chain(400, 4));
        assert_eq!(ips, (0..400).map(|i| 0x40_0000 + i).collect::<Vec<_>>());
        assert_eq!(reason, StopReason::Root);
    }

    #[test]
    fn one_read_serves_many_frames() {
        let mut memory = chain(31, 4);
        memory.words.resize(1024, 0);
        walk(start(), &mut memory);
        assert_eq!(memory.reads, 1);
    }

    #[test]
    fn end_of_the_stack_is_read_in_small_pieces() {
        // The chain is shorter than a window, so that no whole window can be read.
        let (ips, reason) = walk(start(), &mut chain(3, 4));
        assert_eq!((ips.len(), reason), (3, StopReason::Root));
    }

    #[test]
    fn unreadable_frame_stops_with_its_reason() {
        let registers = Registers {
            fp: BASE + (1 << 20),
            ..start()
        };
        assert_eq!(
            walk(registers, &mut chain(3, 4)),
            (Vec::new(), StopReason::StackReadFailed)
        );
    }

    #[test]
    fn frame_pointer_that_goes_down_or_is_odd_is_none() {
        for fp in [BASE - 8, BASE + 4, 1, u64::MAX - 7] {
            let registers = Registers { fp, ..start() };
            assert_eq!(
                walk(registers, &mut chain(3, 4)),
                (Vec::new(), StopReason::NoUnwindTable)
            );
        }
    }

    #[test]
    fn frame_that_points_at_itself_ends() {
        let mut memory = chain(3, 4);
        memory.words[0] = BASE;
        assert_eq!(walk(start(), &mut memory).1, StopReason::NoUnwindTable);
    }

    #[test]
    fn zero_return_address_is_the_root() {
        let mut memory = chain(3, 4);
        memory.words[5] = 0;
        assert_eq!(
            walk(start(), &mut memory),
            (std::vec![0x40_0000], StopReason::Root)
        );
    }

    #[test]
    fn any_words_end_within_the_memory() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2000 {
            let words = (0..300)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    if seed & 3 == 0 {
                        seed
                    } else {
                        BASE + (seed >> 40) % 2400
                    }
                })
                .collect();
            let (ips, _) = walk(
                start(),
                &mut Memory {
                    base: BASE,
                    words,
                    reads: 0,
                },
            );
            assert!(ips.len() <= 300);
        }
    }
}
