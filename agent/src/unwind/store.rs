//! Which tables and mappings are where in the space that the kernel side searches.
//!
//! In: tables of binaries, mappings of processes. Out: [`Update`]s for the kernel's maps; this
//! writes none itself. What is taken out of use stays where it is for a while, because a program
//! may be reading it.

use std::collections::VecDeque;

use hotspan_abi::unwind::{
    MAPPING_WORDS, MAX_MAPPINGS, MAX_PROCESSES, MAX_SEGMENTS, Mapping, ProcessTable, SEGMENT_WORDS,
    WideRule,
};
use rustc_hash::FxHashMap;

use super::{
    space::{FreeSpace, Range},
    table::Table,
    wide_rules::WideRules,
};
use crate::model::BinaryId;

/// A change of the kernel's maps, to be made in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// These words lie from this index on.
    Words(u32, Vec<u32>),
    /// This wide rule has this index.
    Wide(u32, WideRule),
    /// The mappings of this process are there.
    Process(u32, ProcessTable),
    /// This process is not known any more.
    Forget(u32),
}

/// Whose tables they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A binary.
    Binary(BinaryId),
    /// Code that this process made at run time, from this address on.
    Code(u32, u64),
}

/// A table in its place.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Address of the first page: an ELF address, in a binary.
    pub start: u64,
    /// Index of the first word of the page index.
    pub pages: u32,
    /// How many pages there are.
    pub page_count: u32,
}

/// All tables of an owner.
struct Tables {
    tables: Vec<Placed>,
    /// Where each of them lies.
    ranges: Vec<Range>,
    /// Wide rules that they refer to.
    wide: Vec<u32>,
    used_mono_ns: u64,
}

impl Tables {
    fn words(&self) -> usize {
        words_of(&self.ranges)
    }
}

fn words_of(ranges: &[Range]) -> usize {
    ranges.iter().map(|range| range.len as usize).sum()
}

/// What nothing refers to any more.
struct Retired {
    since_mono_ns: u64,
    ranges: Vec<Range>,
    wide: Vec<u32>,
}

/// Nothing reads a range longer than this after it was taken out of use: a sample takes
/// microseconds, and a child that the kernel side copied from its parent is known by then.
const RETIRED_NS: u64 = 2_000_000_000;

/// Tables that processes have mapped make room for others when no sample met them for this long.
/// Evicting what is in use would only have it made again at once.
const IDLE_NS: u64 = 10_000_000_000;

/// One part in so many is for the mappings of processes alone: without them, no table is found.
const MAPPINGS_SHARE: usize = 16;

/// The whole space.
pub struct Store {
    free: FreeSpace,
    segments: usize,
    max_segments: usize,
    owners: FxHashMap<Owner, Tables>,
    /// Words of all tables.
    table_words: usize,
    processes: FxHashMap<u32, Range>,
    wide: WideRules,
    retired: VecDeque<Retired>,
    updates: Vec<Update>,
    /// Mappings and rules that were left out because there are too many.
    pub left_out: u64,
}

impl Store {
    /// An empty space of at most this many bytes.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            free: FreeSpace::default(),
            segments: 0,
            max_segments: (max_bytes / (SEGMENT_WORDS * 4)).clamp(1, MAX_SEGMENTS),
            owners: FxHashMap::default(),
            table_words: 0,
            processes: FxHashMap::default(),
            wide: WideRules::default(),
            retired: VecDeque::new(),
            updates: Vec::new(),
            left_out: 0,
        }
    }

    /// The changes since the last call.
    pub fn take_updates(&mut self) -> Vec<Update> {
        std::mem::take(&mut self.updates)
    }

    /// How many segments there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Whether there may be one more segment.
    #[must_use]
    pub fn may_grow(&self) -> bool {
        self.segments < self.max_segments
    }

    /// There is one more segment.
    pub fn grow(&mut self) {
        let start = (self.segments * SEGMENT_WORDS) as u32;
        self.segments += 1;
        self.free.give(Range {
            start,
            len: SEGMENT_WORDS as u32,
        });
    }

    /// There can be no more segments than there are: the kernel refused one.
    pub fn stop_growing(&mut self) {
        self.max_segments = self.segments;
    }

    /// Whether parts of these lengths fit as they are.
    #[must_use]
    pub fn has_room(&mut self, sizes: &[usize], now_mono_ns: u64) -> bool {
        self.release_retired(now_mono_ns);
        self.free.holds(sizes)
    }

    /// Whether parts of these lengths will fit when what is out of use has been so for long enough.
    #[must_use]
    pub fn will_have_room(&self, sizes: &[usize]) -> bool {
        if self.retired.is_empty() {
            return self.free.holds(sizes);
        }
        let mut free = self.free.clone();
        let retired = self.retired.iter().flat_map(|retired| &retired.ranges);
        retired.for_each(|&range| free.give(range));
        free.holds(sizes)
    }

    /// Whether tables of that many words may be there besides those that are: some room is left for
    /// mappings.
    #[must_use]
    pub fn may_hold_tables(&self, words: usize) -> bool {
        let max_words = self.max_segments * SEGMENT_WORDS;
        self.table_words + words <= max_words - max_words / MAPPINGS_SHARE
    }

    /// The tables of an owner: none when it has no rules, `None` when they are not there.
    #[must_use]
    pub fn tables_of(&self, owner: Owner) -> Option<&[Placed]> {
        self.owners.get(&owner).map(|known| known.tables.as_slice())
    }

    /// Notes that the tables of an owner were of use.
    pub fn touch(&mut self, owner: Owner, now_mono_ns: u64) {
        if let Some(known) = self.owners.get_mut(&owner) {
            known.used_mono_ns = now_mono_ns;
        }
    }

    /// Places the tables of an owner, instead of those that it has; false when they find no room.
    pub fn place(&mut self, owner: Owner, tables: Vec<Table>, now_mono_ns: u64) -> bool {
        let sizes: Vec<_> = tables.iter().map(|table| table.words.len()).collect();
        self.release_retired(now_mono_ns);
        let Some(ranges) = self.free.take_all(&sizes) else {
            return false;
        };
        let mut placed = Tables {
            tables: Vec::with_capacity(tables.len()),
            ranges: Vec::new(),
            wide: Vec::new(),
            used_mono_ns: now_mono_ns,
        };
        for (table, Range { start, .. }) in tables.into_iter().zip(&ranges) {
            let start = *start;
            placed.tables.push(Placed {
                start: table.pages_start,
                pages: start,
                page_count: table.page_count,
            });
            let wide: Vec<_> = table
                .wide
                .iter()
                .map(|rule| self.wide.add(rule, &mut self.updates))
                .collect();
            self.left_out += wide.iter().filter(|place| place.is_none()).count() as u64;
            let words = table.place(start, |at| WideRules::rule(*wide.get(at as usize)?));
            placed.wide.extend(wide.into_iter().flatten());
            self.updates.push(Update::Words(start, words));
        }
        placed.ranges = ranges;
        self.table_words += placed.words();
        if let Some(old) = self.owners.insert(owner, placed) {
            self.retire(old, now_mono_ns);
        }
        true
    }

    /// Takes the tables of an owner out of use.
    pub fn remove(&mut self, owner: Owner, now_mono_ns: u64) {
        if let Some(old) = self.owners.remove(&owner) {
            self.retire(old, now_mono_ns);
        }
    }

    /// Takes the tables of all code that a process made at run time out of use.
    pub fn remove_code(&mut self, pid: u32, now_mono_ns: u64) {
        let is_its = |owner: &&Owner| matches!(owner, Owner::Code(of, _) if *of == pid);
        let owners: Vec<_> = self.owners.keys().filter(is_its).copied().collect();
        for owner in owners {
            self.remove(owner, now_mono_ns);
        }
    }

    /// Sets the mappings of a process, by ascending address; false when they find no room. Some may be for
    /// code that changes.
    pub fn set_process(
        &mut self,
        pid: u32,
        mappings: &[Mapping],
        is_changing: bool,
        now_mono_ns: u64,
    ) -> bool {
        let is_new = !self.processes.contains_key(&pid);
        let kept = &mappings[..mappings.len().min(MAX_MAPPINGS)];
        self.left_out += (mappings.len() - kept.len()) as u64;
        if kept.is_empty() {
            self.forget_process(pid, now_mono_ns);
            return true;
        }
        self.release_retired(now_mono_ns);
        let is_full = is_new && self.processes.len() >= MAX_PROCESSES;
        let range = self.free.take(kept.len() * MAPPING_WORDS as usize);
        let Some(range) = range.filter(|_| !is_full) else {
            self.forget_process(pid, now_mono_ns);
            return false;
        };
        let words = kept.iter().flat_map(|mapping| mapping.to_words()).collect();
        self.updates.push(Update::Words(range.start, words));
        let table = ProcessTable {
            mappings: range.start,
            count: kept.len() as u16,
            is_changing: is_changing.into(),
        };
        self.updates.push(Update::Process(pid, table));
        if let Some(old) = self.processes.insert(pid, range) {
            self.retire_range(old, now_mono_ns);
        }
        true
    }

    /// Forgets the mappings of a process.
    pub fn forget_process(&mut self, pid: u32, now_mono_ns: u64) {
        if let Some(range) = self.processes.remove(&pid) {
            self.updates.push(Update::Forget(pid));
            self.retire_range(range, now_mono_ns);
        }
    }

    /// Takes tables out of use until parts of these lengths fit, [`Self::will_have_room`] and
    /// [`Self::may_hold_tables`] both: first those that no process has mapped, then those that no
    /// sample met for ten seconds, of each the least recently used first. Returns which; none when
    /// all that may go is not enough.
    pub fn evict(
        &mut self,
        sizes: &[usize],
        is_mapped: impl Fn(Owner) -> bool,
        now_mono_ns: u64,
    ) -> Vec<Owner> {
        let words = sizes.iter().sum();
        let fits = |store: &Self| store.may_hold_tables(words) && store.will_have_room(sizes);
        let mut evicted = Vec::new();
        if !self.could_hold(words, &is_mapped, now_mono_ns) {
            return evicted;
        }
        let mut order: Vec<_> = self
            .evictable(&is_mapped, now_mono_ns)
            .map(|(id, tables)| (is_mapped(id), tables.used_mono_ns, id))
            .collect();
        order.sort_unstable();
        for (_, _, id) in order {
            if fits(self) {
                break;
            }
            if let Some(tables) = self.owners.remove(&id) {
                self.retire(tables, now_mono_ns);
                evicted.push(id);
            }
        }
        evicted
    }

    /// Whether evicting could make room for that many words of tables.
    #[must_use]
    pub fn could_hold(
        &self,
        words: usize,
        is_mapped: impl Fn(Owner) -> bool,
        now_mono_ns: u64,
    ) -> bool {
        let evictable: usize = self
            .evictable(&is_mapped, now_mono_ns)
            .map(|(_, tables)| tables.words())
            .sum();
        let retired = self.retired.iter().map(|retired| words_of(&retired.ranges));
        let free = self.free.words() + retired.sum::<usize>() + evictable;
        free >= words && self.may_hold_tables(words.saturating_sub(evictable))
    }

    fn evictable(
        &self,
        is_mapped: impl Fn(Owner) -> bool,
        now_mono_ns: u64,
    ) -> impl Iterator<Item = (Owner, &Tables)> {
        self.owners
            .iter()
            .map(|(&id, tables)| (id, tables))
            .filter(move |&(id, tables)| {
                let idle_ns = now_mono_ns.saturating_sub(tables.used_mono_ns);
                tables.words() > 0 && (idle_ns >= IDLE_NS || !is_mapped(id))
            })
    }

    fn retire(&mut self, tables: Tables, now_mono_ns: u64) {
        self.table_words -= tables.words();
        self.retired.push_back(Retired {
            since_mono_ns: now_mono_ns,
            ranges: tables.ranges,
            wide: tables.wide,
        });
    }

    fn retire_range(&mut self, range: Range, now_mono_ns: u64) {
        self.retired.push_back(Retired {
            since_mono_ns: now_mono_ns,
            ranges: vec![range],
            wide: Vec::new(),
        });
    }

    fn release_retired(&mut self, now_mono_ns: u64) {
        while let Some(retired) = self.retired.front()
            && now_mono_ns.saturating_sub(retired.since_mono_ns) > RETIRED_NS
            && let Some(Retired { ranges, wide, .. }) = self.retired.pop_front()
        {
            ranges.into_iter().for_each(|range| self.free.give(range));
            wide.into_iter().for_each(|index| self.wide.drop_use(index));
        }
    }
}

#[cfg(test)]
mod tests;
