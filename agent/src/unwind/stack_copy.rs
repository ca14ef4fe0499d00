//! Copies of user stacks, as the kernel side sends them.
//!
//! In: registers and pieces of stacks. Out: memory to unwind. What a thread's outer frames lie in is the same from
//! sample to sample, so pieces that are equal to the last one from there are kept once.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering},
};

use hotspan_abi::{
    limits::{SNAPSHOT_PIECE_BYTES as PIECE_BYTES, SNAPSHOT_PIECE_WORDS, WINDOW_WORDS},
    records::SnapshotHeader,
};
use hotspan_ebpf::{
    arch::Native,
    unwind::{ReadMemory, Registers},
};
use rustc_hash::FxHashMap;

/// A user stack as far as it was copied, and the registers that lead into it.
#[derive(Clone, Debug, Default)]
pub struct StackCopy {
    /// The registers of the first frame.
    pub registers: Registers,
    /// That stack, the thread's first frames, and what was copied of the stack that it goes on on.
    parts: Vec<Part>,
}

/// Neighbouring words of a stack.
#[derive(Clone, Debug)]
struct Part {
    /// Address of the first word.
    start: u64,
    /// All but the last are full.
    pieces: Vec<Arc<Piece>>,
    /// Which of them were read, see [`SnapshotHeader::readable`].
    readable: u64,
}

#[derive(Debug)]
struct Piece {
    words: Box<[u64]>,
    /// The words of all pieces that are there.
    alive: Arc<AtomicUsize>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.words.len(), Ordering::Relaxed);
    }
}

/// Pieces of stacks that may come again.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The last one from each address.
    last: FxHashMap<u64, Weak<Piece>>,
    alive: Arc<AtomicUsize>,
}

impl Pieces {
    /// More addresses are not remembered.
    const MAX_ADDRESSES: usize = 1 << 16;

    /// How many words all stacks hold that were copied with these, equal pieces counted once.
    #[must_use]
    pub fn alive_words(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    fn keep(&mut self, addr: u64, words: &[u64]) -> Arc<Piece> {
        let last = self.last.get(&addr).and_then(Weak::upgrade);
        if let Some(last) = last.filter(|last| *last.words == *words) {
            return last;
        }
        if self.last.len() >= Self::MAX_ADDRESSES {
            self.last.clear();
        }
        self.alive.fetch_add(words.len(), Ordering::Relaxed);
        let piece = Arc::new(Piece {
            words: words.into(),
            alive: self.alive.clone(),
        });
        self.last.insert(addr, Arc::downgrade(&piece));
        piece
    }
}

impl StackCopy {
    /// What the kernel side sent.
    #[must_use]
    pub fn new(header: &SnapshotHeader, words: &[u64], pieces: &mut Pieces) -> Self {
        let mut copy = Self {
            registers: Registers {
                ip: header.ip,
                sp: header.sp,
                fp: header.fp,
                link: header.link,
                aligned: header.aligned,
                result: header.result,
                scratch: header.scratch,
            },
            parts: Vec::new(),
        };
        copy.add(header, words, pieces);
        copy
    }

    /// Adds what the kernel side sent of the thread's first frames, or of the stack that this one goes on on.
    pub fn add(&mut self, header: &SnapshotHeader, words: &[u64], pieces: &mut Pieces) {
        let addrs = (0..).map(|piece: u64| header.start.wrapping_add(piece * PIECE_BYTES));
        let words = words.chunks(SNAPSHOT_PIECE_WORDS);
        self.parts.push(Part {
            start: header.start,
            pieces: (addrs.zip(words))
                .map(|(addr, words)| pieces.keep(addr, words))
                .collect(),
            readable: header.readable,
        });
    }

    /// All words of it.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let pieces = self.parts.iter().flat_map(|part| &part.pieces);
        pieces.flat_map(|piece| piece.words.iter().copied())
    }

    fn word(&self, addr: u64) -> Option<u64> {
        self.parts.iter().find_map(|part| part.word(addr))
    }
}

impl ReadMemory for StackCopy {
    type Arch = Native;

    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
        for (word, into) in words.iter_mut().zip((0..).step_by(8)) {
            let Some(there) = self.word(addr.wrapping_add(into)) else {
                return false;
            };
            *word = there;
        }
        true
    }

    fn read_word(&mut self, addr: u64) -> Option<u64> {
        self.word(addr)
    }
}

impl Part {
    /// A word that was read.
    fn word(&self, addr: u64) -> Option<u64> {
        let into = addr.checked_sub(self.start)?;
        let piece = into / PIECE_BYTES;
        let bit = self.readable.checked_shr(u32::try_from(piece).ok()?)?;
        if into % 8 != 0 || bit & 1 == 0 {
            return None;
        }
        let words = &self.pieces.get(usize::try_from(piece).ok()?)?.words;
        words.get((into % PIECE_BYTES / 8) as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: u64 = 0x7fff_0000_0000;
    const PIECE: usize = SNAPSHOT_PIECE_WORDS;

    fn header(start: u64, readable: u64) -> SnapshotHeader {
        SnapshotHeader {
            start,
            readable,
            ..SnapshotHeader::default()
        }
    }

    /// A stack of three pieces, each filled with its number.
    fn words() -> Vec<u64> {
        (0..3 * PIECE as u64).map(|i| i / PIECE as u64).collect()
    }

    #[test]
    fn words_are_those_that_were_read() {
        let mut copy = StackCopy::new(&header(STACK, 0b101), &words(), &mut Pieces::default());
        assert_eq!(copy.word(STACK - 8), None);
        assert_eq!(copy.word(STACK), Some(0));
        assert_eq!(copy.word(STACK + 1), None);
        assert_eq!(copy.word(STACK + PIECE_BYTES), None);
        assert_eq!(copy.word(STACK + 2 * PIECE_BYTES), Some(2));
        assert_eq!(copy.word(STACK + 3 * PIECE_BYTES), None);
        assert_eq!(copy.word(u64::MAX - 7), None);
        let mut window = [9; WINDOW_WORDS];
        assert!(!copy.read_words(STACK + 8, &mut window));
        assert!(copy.read_words(STACK, &mut window));
        assert_eq!(window, [0; WINDOW_WORDS]);
    }

    #[test]
    fn a_window_goes_through_pieces_and_an_address_through_parts() {
        const OTHER: u64 = 0xc0_0000_0000;
        let mut pieces = Pieces::default();
        let mut copy = StackCopy::new(&header(STACK, u64::MAX), &words(), &mut pieces);
        copy.add(&header(OTHER, 1), &[7, 8], &mut pieces);
        let mut window = [9; WINDOW_WORDS];
        assert!(copy.read_words(STACK + PIECE_BYTES - 16, &mut window));
        assert_eq!(window[..3], [0, 0, 1]);
        assert_eq!(copy.read_word(OTHER + 8), Some(8));
        assert_eq!(copy.read_word(OTHER + 16), None);
        assert_eq!(copy.words().count(), 3 * PIECE + 2);
    }

    #[test]
    fn equal_pieces_are_kept_once_and_as_long_as_they_are_used() {
        let mut pieces = Pieces::default();
        let header = header(STACK, u64::MAX);
        let first = StackCopy::new(&header, &words(), &mut pieces);
        assert_eq!(pieces.alive_words(), 3 * PIECE);
        let mut others = words();
        others[0] = 5;
        let second = StackCopy::new(&header, &others, &mut pieces);
        assert_eq!(pieces.alive_words(), 4 * PIECE);
        drop(first);
        assert_eq!(pieces.alive_words(), 3 * PIECE);
        assert_eq!(second.words().collect::<Vec<_>>(), others);
        drop(second);
        assert_eq!(pieces.alive_words(), 0);
    }

    #[test]
    fn a_stack_may_end_where_addresses_do() {
        let start = u64::MAX - (PIECE_BYTES - 1);
        let copy = StackCopy::new(&header(start, 0b11), &words(), &mut Pieces::default());
        assert_eq!(copy.word(u64::MAX - 7), Some(0));
        assert_eq!(copy.word(0), None);
    }
}
