//! Whole stacks: what the kernel side makes of our tables, beside what is true.

use hotspan_abi::{
    limits::WINDOW_WORDS,
    records::StopReason,
    unwind::{Mapping, PAGE_BYTES, ProcessTable, Rule, WideRule},
};
use hotspan_ebpf::{
    arch::Arch,
    unwind::{ReadMemory, Registers, Step, Tables, Unwinder},
};

use super::{Rows, TableRule, replay, table};

/// Memory that a function reads, of a process on a processor `A`.
pub(super) struct Memory<A, F>(F, std::marker::PhantomData<A>);

impl<A, F: FnMut(u64) -> Option<u64>> Memory<A, F> {
    pub fn new(read: F) -> Self {
        Self(read, std::marker::PhantomData)
    }
}

impl<A: Arch, F: FnMut(u64) -> Option<u64>> ReadMemory for Memory<A, F> {
    type Arch = A;

    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
        let addrs = (0..).map(|index| addr.wrapping_add(8 * index));
        let mut places = words.iter_mut().zip(addrs);
        places.all(|(word, addr)| (self.0)(addr).map(|read| *word = read).is_some())
    }

    fn read_word(&mut self, addr: u64) -> Option<u64> {
        (self.0)(addr)
    }
}

/// The tables of one process, as the kernel side has them.
#[derive(Default)]
pub(super) struct Space {
    words: Vec<u32>,
    wide: Vec<WideRule>,
    mappings: Vec<Mapping>,
}

impl Space {
    /// Adds the tables for an executable range of a file's addresses, mapped that much higher.
    pub fn add(&mut self, rows: &Rows, text: std::ops::Range<u64>, bias: u64) {
        for piece in table::pieces(rows, text) {
            let table = table::build(rows, piece).unwrap();
            let start = table.pages_start.wrapping_add(bias);
            self.mappings.push(Mapping {
                start,
                end: start + u64::from(table.page_count) * PAGE_BYTES,
                pages_start: start,
                pages: self.words.len() as u32,
                page_count: table.page_count,
            });
            let first = self.wide.len() as u32;
            self.wide.extend(&table.wide);
            let base = self.words.len() as u32;
            let words = table.place(base, |wide| Rule::wide(first + wide));
            self.words.extend(words);
        }
    }

    /// The frames of a stack, leaf first and marked as in a sample, and why they end.
    pub fn walk<A: Arch>(
        &self,
        registers: Registers,
        read: impl FnMut(u64) -> Option<u64>,
    ) -> (Vec<u64>, StopReason) {
        let mut mappings = self.mappings.clone();
        mappings.sort_by_key(|mapping| mapping.start);
        let view = View {
            words: &self.words,
            wide: &self.wide,
        };
        replay::walk(registers, &mut Memory::<A, _>::new(read), &mappings, &view)
    }
}

struct View<'a> {
    words: &'a [u32],
    wide: &'a [WideRule],
}

impl Tables for View<'_> {
    fn word(&self, index: u32) -> u32 {
        self.words.get(index as usize).copied().unwrap_or(0)
    }

    fn wide(&self, index: u32) -> Option<WideRule> {
        self.wide.get(index as usize).copied()
    }
}

/// Goes to the caller by one rule; `None` where there is none.
pub(super) fn step<A: Arch>(
    rule: TableRule,
    wide: &[WideRule],
    registers: Registers,
    read: impl FnMut(u64) -> Option<u64>,
) -> Option<Registers> {
    let rule = match rule {
        TableRule::Short(rule) => rule,
        TableRule::Wide(index) => Rule::wide(index).unwrap(),
    };
    let mut unwinder = Unwinder::EMPTY;
    unwinder.start(registers, ProcessTable::default());
    let tables = View { words: &[], wide };
    match unwinder.step(rule, &mut Memory::<A, _>::new(read), &tables) {
        Step::Caller => Some(unwinder.registers),
        Step::Stop(_) => None,
    }
}
