//! Which tables and mappings are where in the space that the kernel side searches.
//!
//! In: tables of binaries, mappings of processes. Out: [`Update`]s for the kernel's maps; this
//! writes none itself. What is taken out of use stays where it is for a while, because a program
//! may be reading it.

use std::collections::{BTreeMap, VecDeque};

use hotspan_abi::unwind::{
    MAPPING_WORDS, MAX_MAPPINGS, MAX_PROCESSES, MAX_WIDE_RULES, Mapping, ProcessTable, Rule,
    SEGMENT_WORDS, WideRule,
};
use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::table::Table;
use crate::model::BinaryId;

/// A change of the kernel's maps, to be made in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// There must be this many segments.
    Grow(usize),
    /// These words lie from this index on.
    Words(u32, Vec<u32>),
    /// This wide rule has this index.
    Wide(u32, WideRule),
    /// The mappings of this process are there.
    Process(u32, ProcessTable),
    /// This process is not known any more.
    Forget(u32),
}

/// A part of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    len: u32,
}

/// A table in its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// ELF address of the first page.
    pub start: u64,
    /// Index of the first word of the page index.
    pub pages: u32,
    /// How many pages there are.
    pub page_count: u32,
}

struct Binary {
    tables: Vec<Placed>,
    ranges: Vec<Range>,
    used_mono_ns: u64,
}

/// Nothing reads a range longer than this after it was taken out of use: a sample takes
/// microseconds, and a child that the kernel side copied from its parent is known by then.
const RETIRED_NS: u64 = 2_000_000_000;

/// The whole space.
pub struct Store {
    /// Free ranges by start; none touches another.
    free: BTreeMap<u32, u32>,
    segments: usize,
    max_segments: usize,
    binaries: FxHashMap<BinaryId, Binary>,
    processes: FxHashMap<u32, Range>,
    wide: IndexSet<WideRule, FxBuildHasher>,
    retired: VecDeque<(u64, Range)>,
    updates: Vec<Update>,
    /// Tables and mapping lists that found no room.
    pub refused: u64,
}

impl Store {
    /// An empty space of at most this many bytes.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        let max_segments =
            (max_bytes / (SEGMENT_WORDS * 4)).clamp(1, hotspan_abi::unwind::MAX_SEGMENTS);
        Self {
            free: BTreeMap::new(),
            segments: 0,
            max_segments,
            binaries: FxHashMap::default(),
            processes: FxHashMap::default(),
            wide: IndexSet::default(),
            retired: VecDeque::new(),
            updates: Vec::new(),
            refused: 0,
        }
    }

    /// The changes since the last call.
    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }

    /// The tables of a binary: none when it has no rules, `None` when it is not known.
    pub fn tables_of(&mut self, binary: BinaryId, now_mono_ns: u64) -> Option<&[Placed]> {
        let known = self.binaries.get_mut(&binary)?;
        known.used_mono_ns = now_mono_ns;
        Some(&known.tables)
    }

    /// Places the tables of a binary, one for each executable segment. Those that find no room are
    /// left out and counted.
    pub fn place(&mut self, binary: BinaryId, tables: Vec<Table>, now_mono_ns: u64) {
        let mut placed = Binary {
            tables: Vec::new(),
            ranges: Vec::new(),
            used_mono_ns: now_mono_ns,
        };
        for table in tables {
            let Some(range) = self.find_room(table.words.len(), now_mono_ns) else {
                self.refused += 1;
                continue;
            };
            placed.tables.push(Placed {
                start: table.pages_start,
                pages: range.start,
                page_count: table.page_count,
            });
            let rules: Vec<_> = table.wide.iter().map(|rule| self.wide_rule(rule)).collect();
            let words = table.place(range.start, |wide| rules.get(wide as usize).copied());
            self.updates.push(Update::Words(range.start, words));
            placed.ranges.push(range);
        }
        self.binaries.insert(binary, placed);
    }

    fn wide_rule(&mut self, rule: &WideRule) -> Rule {
        let known = self.wide.get_index_of(rule);
        let index = match known {
            Some(index) => index,
            None if self.wide.len() < MAX_WIDE_RULES => {
                let (index, _) = self.wide.insert_full(*rule);
                self.updates.push(Update::Wide(index as u32, *rule));
                index
            }
            None => {
                self.refused += 1;
                return Rule::NONE;
            }
        };
        Rule::wide(index as u32).unwrap_or(Rule::NONE)
    }

    /// Sets the mappings of a process, by ascending address.
    pub fn set_process(&mut self, pid: u32, mappings: &[Mapping], now_mono_ns: u64) {
        let mappings = &mappings[..mappings.len().min(MAX_MAPPINGS)];
        let is_new = !self.processes.contains_key(&pid);
        if mappings.is_empty() || (is_new && self.processes.len() >= MAX_PROCESSES) {
            return self.forget_process(pid, now_mono_ns);
        }
        let len = mappings.len() * MAPPING_WORDS as usize;
        let Some(range) = self.find_room(len, now_mono_ns) else {
            self.refused += 1;
            return self.forget_process(pid, now_mono_ns);
        };
        let words = mappings
            .iter()
            .flat_map(|mapping| mapping.to_words())
            .collect();
        self.updates.push(Update::Words(range.start, words));
        let count = mappings.len() as u32;
        self.updates.push(Update::Process(
            pid,
            ProcessTable {
                mappings: range.start,
                count,
            },
        ));
        if let Some(old) = self.processes.insert(pid, range) {
            self.retired.push_back((now_mono_ns, old));
        }
    }

    /// Forgets the mappings of a process.
    pub fn forget_process(&mut self, pid: u32, now_mono_ns: u64) {
        if let Some(range) = self.processes.remove(&pid) {
            self.updates.push(Update::Forget(pid));
            self.retired.push_back((now_mono_ns, range));
        }
    }

    /// Forgets the tables that were used least recently and are in no use now, until `words` fit.
    /// `in_use` are the binaries that processes have mapped.
    pub fn evict(&mut self, words: usize, in_use: impl Fn(BinaryId) -> bool, now_mono_ns: u64) {
        let mut unused: Vec<_> = self
            .binaries
            .iter()
            .filter(|&(&id, binary)| !in_use(id) && !binary.ranges.is_empty())
            .map(|(&id, binary)| (binary.used_mono_ns, id))
            .collect();
        unused.sort_unstable();
        let mut freed = 0;
        for (_, id) in unused {
            if freed >= words {
                break;
            }
            if let Some(binary) = self.binaries.remove(&id) {
                freed += binary
                    .ranges
                    .iter()
                    .map(|range| range.len as usize)
                    .sum::<usize>();
                self.retired
                    .extend(binary.ranges.into_iter().map(|range| (now_mono_ns, range)));
            }
        }
    }

    /// Whether `words` fit without forgetting anything.
    #[must_use]
    pub fn has_room(&self, words: usize) -> bool {
        let can_grow = (self.max_segments - self.segments) * SEGMENT_WORDS;
        words <= can_grow || self.free.values().any(|&len| len as usize >= words)
    }

    fn find_room(&mut self, words: usize, now_mono_ns: u64) -> Option<Range> {
        self.release_retired(now_mono_ns);
        let words = u32::try_from(words).ok()?;
        loop {
            let found = self
                .free
                .iter()
                .find(|&(_, &len)| len >= words)
                .map(|(&s, &len)| (s, len));
            if let Some((start, len)) = found {
                self.free.remove(&start);
                if len > words {
                    self.free.insert(start + words, len - words);
                }
                return Some(Range { start, len: words });
            }
            if self.segments >= self.max_segments {
                return None;
            }
            let start = (self.segments * SEGMENT_WORDS) as u32;
            self.segments += 1;
            self.updates.push(Update::Grow(self.segments));
            self.give_back(Range {
                start,
                len: SEGMENT_WORDS as u32,
            });
        }
    }

    fn release_retired(&mut self, now_mono_ns: u64) {
        while let Some(&(since, range)) = self.retired.front()
            && now_mono_ns.saturating_sub(since) > RETIRED_NS
        {
            self.retired.pop_front();
            self.give_back(range);
        }
    }

    fn give_back(&mut self, range: Range) {
        let Range { mut start, mut len } = range;
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.free.remove(&before);
            start = before;
            len += before_len;
        }
        if let Some(after_len) = self.free.remove(&(start + len)) {
            len += after_len;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::{Rows, TableRule, table::build};

    const NOW: u64 = 1;
    const LATER: u64 = NOW + RETIRED_NS + 1;

    fn mapping(start: u64) -> Mapping {
        Mapping {
            start,
            end: start + 0x1000,
            ..Mapping::default()
        }
    }

    /// A table of about so many words.
    fn table(words: usize, wide: Vec<WideRule>) -> Table {
        let is_wide = !wide.is_empty();
        let rows = (0..words as u64)
            .map(|i| match (i % 2, is_wide) {
                (0, true) => (i * 2, TableRule::Wide(0)),
                (0, false) => (i * 2, TableRule::Short(Rule::PLT)),
                _ => (i * 2, TableRule::NONE),
            })
            .collect();
        build(&Rows { rows, wide }, 0..words as u64 * 2).unwrap()
    }

    #[test]
    fn page_index_counts_from_the_start_of_the_space() {
        let mut store = Store::new(1 << 20);
        store.set_process(7, &[mapping(0)], NOW);
        store.take_updates();
        store.place(BinaryId(0), vec![table(10, Vec::new())], NOW);
        let updates = store.take_updates();
        let Update::Words(at, words) = &updates[0] else {
            panic!()
        };
        assert_eq!((*at, &words[..2]), (8, &[10, 20][..]));
    }

    #[test]
    fn wide_rules_of_all_tables_are_shared() {
        let mut store = Store::new(1 << 20);
        let rule = WideRule {
            cfa_offset: 3,
            ..WideRule::default()
        };
        for id in 0..2 {
            store.place(BinaryId(id), vec![table(4, vec![rule])], NOW);
        }
        let wide = store.take_updates();
        let wide: Vec<_> = wide
            .iter()
            .filter(|u| matches!(u, Update::Wide(..)))
            .collect();
        assert_eq!(wide, [&Update::Wide(0, rule)]);
    }

    #[test]
    fn space_of_ended_processes_is_used_again_after_a_while() {
        let mut store = Store::new(1 << 20);
        for round in 0..20_000_u64 {
            let now = round * RETIRED_NS / 100;
            let pid = round as u32;
            store.set_process(pid, &[mapping(0), mapping(0x4000)], now);
            store.forget_process(pid, now);
        }
        assert_eq!(store.segments, 1);
        store.release_retired(u64::MAX);
        assert_eq!(store.free, BTreeMap::from([(0, SEGMENT_WORDS as u32)]));
        assert_eq!(store.refused, 0);
    }

    #[test]
    fn full_space_refuses_until_unused_tables_are_evicted() {
        let mut store = Store::new(1);
        let half = table(SEGMENT_WORDS / 2, Vec::new());
        store.place(BinaryId(0), vec![half.clone()], NOW);
        store.place(BinaryId(1), vec![half.clone()], NOW);
        assert_eq!(
            (store.refused, store.has_room(half.words.len())),
            (1, false)
        );
        store.evict(half.words.len(), |_| false, NOW);
        assert!(store.tables_of(BinaryId(0), NOW).is_none());
        store.place(BinaryId(2), vec![half.clone()], LATER);
        assert_eq!(
            (
                store.refused,
                store.tables_of(BinaryId(2), LATER).unwrap().len()
            ),
            (1, 1)
        );
    }
}
