//! Unwinds a stack that was copied while the tables for it were still being made.
//!
//! In: registers and the top of a stack, the tables, and where the process had its mappings. Out: the same
//! frames that the kernel side would have found, because it is the same code.

use hotspan_abi::{
    limits::MAX_USER_FRAMES,
    records::{EXACT_ADDRESS, StopReason},
    unwind::{MAX_MAPPINGS, MAX_SEGMENTS, Mapping, ProcessTable, SEGMENT_WORDS, WideRule},
};
use hotspan_ebpf::unwind::{ReadMemory, Registers, Step, Tables, Unwinder, Words};

use super::stack_copy::StackCopy;

/// The frames of `stack`, leaf first and marked as in a sample, and why they end. `mappings` are those of
/// the process, by ascending address.
pub fn unwind(
    mut stack: StackCopy,
    mappings: &[Mapping],
    tables: &impl Tables,
) -> (Vec<u64>, StopReason) {
    walk(stack.registers, &mut stack, mappings, tables)
}

/// The same over any memory.
pub(super) fn walk(
    registers: Registers,
    memory: &mut impl ReadMemory,
    mappings: &[Mapping],
    tables: &impl Tables,
) -> (Vec<u64>, StopReason) {
    // Those that the kernel side would have, too.
    let mappings = &mappings[..mappings.len().min(MAX_MAPPINGS)];
    let tables = WithMappings {
        tables,
        words: mappings.iter().flat_map(|m| m.to_words()).collect(),
    };
    let mut unwinder = Unwinder::EMPTY;
    let process = ProcessTable {
        mappings: MAPPINGS_AT,
        count: mappings.len() as u16,
        is_changing: 0,
    };
    unwinder.enter(process);
    unwinder.start(registers);
    let mut frames = Vec::new();
    while frames.len() < MAX_USER_FRAMES {
        let is_marked = !frames.is_empty() && unwinder.is_exact != 0;
        let mark = if is_marked { EXACT_ADDRESS } else { 0 };
        frames.push(unwinder.registers.ip | mark);
        let rule = unwinder.rule(&tables);
        if let Step::Stop(reason) = unwinder.step(rule, memory, &tables) {
            return (frames, reason);
        }
    }
    (frames, StopReason::Truncated)
}

/// The tables, and behind them the mappings of one process.
struct WithMappings<'a, T> {
    tables: &'a T,
    words: Vec<u32>,
}

/// First index behind the space of tables.
const MAPPINGS_AT: u32 = (MAX_SEGMENTS * SEGMENT_WORDS) as u32;

impl<T: Tables> Tables for WithMappings<'_, T> {
    type Words<'a>
        = EitherWords<'a, T::Words<'a>>
    where
        Self: 'a;

    fn segment(&self, index: u32) -> Option<Self::Words<'_>> {
        if index >= MAPPINGS_AT {
            return Some(EitherWords::Mappings(&self.words));
        }
        self.tables.segment(index).map(EitherWords::Tables)
    }

    fn wide(&self, index: u32) -> Option<WideRule> {
        self.tables.wide(index)
    }
}

enum EitherWords<'a, W> {
    Tables(W),
    Mappings(&'a [u32]),
}

impl<W: Words> Words for EitherWords<'_, W> {
    fn word(&self, index: u32) -> u32 {
        match self {
            Self::Tables(words) => words.word(index),
            Self::Mappings(words) => words.word(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use hotspan_abi::{
        limits::SNAPSHOT_PIECE_WORDS,
        records::SnapshotHeader,
        unwind::{Rule, row},
    };

    use super::*;
    use crate::unwind::stack_copy::Pieces;

    /// The words of a space of tables.
    struct Space(Vec<u32>);

    impl Tables for Space {
        type Words<'a> = &'a [u32];

        fn segment(&self, _: u32) -> Option<&[u32]> {
            Some(&self.0)
        }
        fn wide(&self, _: u32) -> Option<WideRule> {
            None
        }
    }

    const TEXT: u64 = 0x40_0000;
    const STACK: u64 = 0x7fff_0000_0000;

    /// One page of code: a function with a frame of 16 bytes, and from 0x80 on the thread's first.
    fn space() -> (Space, Mapping) {
        let inner = Rule::from_register(Rule::FROM_SP, 16, 0).unwrap();
        let words = vec![2, 4, row(0, inner), row(0x80, Rule::ROOT)];
        let mapping = Mapping {
            start: TEXT,
            end: TEXT + 0x100,
            pages_start: TEXT,
            pages: 0,
            page_count: 1,
        };
        (Space(words), mapping)
    }

    /// Of its pieces the first was read.
    fn stack(words: &[u64]) -> StackCopy {
        let header = SnapshotHeader {
            start: STACK,
            readable: 1,
            ip: TEXT + 4,
            sp: STACK + 8,
            ..SnapshotHeader::default()
        };
        StackCopy::new(&header, words, &mut Pieces::default())
    }

    #[test]
    fn copied_stack_is_unwound_to_its_root() {
        let (space, mapping) = space();
        let stack = stack(&[0, 0, TEXT + 0x10, 0, TEXT + 0x90]);
        let (frames, stop) = unwind(stack, &[mapping], &space);
        assert_eq!(frames, [TEXT + 4, TEXT + 0x10, TEXT + 0x90]);
        assert_eq!(stop, StopReason::Root);
    }

    #[test]
    fn a_stack_may_go_on_on_another() {
        const OTHER: u64 = 0xc0_0000_0000;
        let (_, mapping) = space();
        let switch = vec![2, 4, row(0, Rule::SWITCH), row(0x80, Rule::ROOT)];
        let mut stack = stack(&[0, 0, 0]);
        stack.registers.fp = OTHER + 8;
        let (frames, stop) = unwind(stack.clone(), &[mapping], &Space(switch.clone()));
        assert_eq!((frames.len(), stop), (1, StopReason::StackReadFailed));
        let header = SnapshotHeader {
            start: OTHER,
            readable: 1,
            ..SnapshotHeader::default()
        };
        stack.add(&header, &[0, 0, TEXT + 0x90], &mut Pieces::default());
        let (frames, stop) = unwind(stack, &[mapping], &Space(switch));
        assert_eq!(frames, [TEXT + 4, TEXT + 0x90]);
        assert_eq!(stop, StopReason::Root);
    }

    #[test]
    fn end_of_the_copy_ends_the_stack() {
        let (space, mapping) = space();
        let (frames, stop) = unwind(stack(&[0, 0, TEXT + 0x10]), &[mapping], &space);
        assert_eq!(frames, [TEXT + 4, TEXT + 0x10]);
        assert_eq!(stop, StopReason::StackReadFailed);
    }

    #[test]
    fn what_was_not_read_is_no_stack() {
        let (space, mapping) = space();
        let mut words = vec![0; 2 * SNAPSHOT_PIECE_WORDS];
        words[2] = TEXT + 0x10;
        let mut hole = stack(&words);
        // The next return address lies in the second piece.
        hole.registers.sp = STACK + 8 * SNAPSHOT_PIECE_WORDS as u64 - 8;
        let (frames, stop) = unwind(hole.clone(), &[mapping], &space);
        assert_eq!((frames.len(), stop), (1, StopReason::StackReadFailed));
        hole.registers.sp = STACK + 8;
        let (frames, stop) = unwind(hole, &[mapping], &space);
        assert_eq!((frames.len(), stop), (2, StopReason::Root));
    }

    #[test]
    fn without_tables_the_frame_pointer_is_followed() {
        let mut stack = stack(&[0, STACK + 24, 0x50_0000, 0, 0x60_0000]);
        stack.registers.fp = STACK + 8;
        let (frames, stop) = unwind(stack, &[], &space().0);
        assert_eq!(frames, [TEXT + 4, 0x50_0000, 0x60_0000]);
        assert_eq!(stop, StopReason::FramePointerEnd);
    }
}
