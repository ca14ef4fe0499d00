//! Keeps the kernel's unwind tables in step with what runs.
//!
//! Tables are made in a thread of their own, because those of a large binary take seconds, and
//! recording does not wait for them. Until they are there, code is unwound by the frame pointer.

use std::{
    fs::File,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, Result};
use hotspan_abi::unwind::{Mapping as AbiMapping, PAGE_BYTES};
use rustc_hash::FxHashSet;

use crate::{
    capture::TableMaps,
    model::{BinaryId, Segment},
    process::{Binaries, Code, ElfFacts, KnownBinary, Mapping, ProcessTable},
    unwind::{Placed, Store, Update, table::Table, tables_of_file},
};

/// A file whose tables are wanted.
struct Wanted {
    binary: BinaryId,
    file: File,
    segments: Vec<Segment>,
    is_go: bool,
}

/// Files that wait for the thread at most; more ask again at the next change.
const QUEUE: usize = 4096;

/// Tables, from files to the kernel.
pub struct TableLoader {
    store: Store,
    wanted: SyncSender<Wanted>,
    made: Receiver<(BinaryId, Vec<Table>)>,
    /// Binaries that were asked for and are not made yet.
    pending: FxHashSet<BinaryId>,
}

impl TableLoader {
    /// Starts the thread. Tables take `max_bytes` at most.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(max_bytes: usize) -> Result<Self> {
        let (wanted, requests) = sync_channel::<Wanted>(QUEUE);
        let (results, made) = sync_channel(QUEUE);
        let work = move || {
            for wanted in requests {
                let tables = tables_of_file(wanted.file, &wanted.segments, wanted.is_go);
                if results.send((wanted.binary, tables)).is_err() {
                    return; // Nobody waits any more.
                }
            }
        };
        thread::Builder::new()
            .name("hotspan-tables".into())
            .spawn(work)
            .context("cannot start a thread for unwind tables")?;
        let store = Store::new(max_bytes);
        Ok(Self {
            store,
            wanted,
            made,
            pending: FxHashSet::default(),
        })
    }

    /// Whether every table that was asked for is in its place.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many tables and mapping lists found no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.store.refused
    }

    /// Takes in what was made, and brings the kernel's tables up to date with the processes.
    ///
    /// # Errors
    /// When the kernel refuses a change.
    pub fn update(
        &mut self,
        processes: &mut ProcessTable,
        binaries: &Binaries,
        maps: &mut TableMaps,
        now_mono_ns: u64,
    ) -> Result<()> {
        let mut changed = processes.take_changed();
        while let Ok((binary, tables)) = self.made.try_recv() {
            self.pending.remove(&binary);
            self.place(binary, tables, processes, now_mono_ns);
            changed.extend(processes.users_of(binary));
        }
        for pid in changed {
            match processes.mappings(pid) {
                Some(mappings) => {
                    let known = self.parts(mappings, binaries, now_mono_ns);
                    self.store.set_process(pid, &known.parts, now_mono_ns);
                }
                None => self.store.forget_process(pid, now_mono_ns),
            }
        }
        self.store
            .take_updates()
            .into_iter()
            .try_for_each(|update| apply(update, maps))
    }

    fn place(
        &mut self,
        binary: BinaryId,
        tables: Vec<Table>,
        processes: &ProcessTable,
        now_mono_ns: u64,
    ) {
        let words = tables.iter().map(|table| table.words.len()).sum();
        if !self.store.has_room(words) {
            let in_use = |id| processes.users_of(id).next().is_some();
            self.store.evict(words, in_use, now_mono_ns);
        }
        self.store.place(binary, tables, now_mono_ns);
    }

    /// The mappings of a process as the kernel side wants them. Those whose tables are not made yet are
    /// left out, and the tables asked for.
    pub fn parts(
        &mut self,
        mappings: &[Mapping],
        binaries: &Binaries,
        now_mono_ns: u64,
    ) -> KnownParts {
        let mut known = KnownParts {
            parts: Vec::new(),
            is_complete: true,
        };
        for mapping in mappings {
            let Code::File(id) = mapping.code else {
                known.add_bare(mapping.start, mapping.end);
                continue;
            };
            let binary = binaries.get(id);
            if let Some(tables) = self.store.tables_of(id, now_mono_ns) {
                known.add(mapping, &binary.facts, tables);
            } else if self.ask_for(id, binary) {
                known.is_complete = false;
            } else {
                known.add_bare(mapping.start, mapping.end);
            }
        }
        known
    }

    /// Asks for the tables of a binary; false when there is no hope for any.
    fn ask_for(&mut self, binary: BinaryId, known: &KnownBinary) -> bool {
        if self.pending.contains(&binary) {
            return true;
        }
        let Some(file) = known.file().and_then(|file| file.try_clone().ok()) else {
            return false;
        };
        let facts = &known.facts;
        let wanted = Wanted {
            binary,
            file,
            segments: facts.segments.clone(),
            is_go: !facts.go_build_id.is_empty(),
        };
        // A full queue is asked again at the next change.
        if self.wanted.try_send(wanted).is_ok() {
            self.pending.insert(binary);
        }
        true
    }
}

/// The mappings of a process, as far as their tables are made.
pub struct KnownParts {
    /// Parts with a table and parts that have none, by ascending address.
    pub parts: Vec<AbiMapping>,
    /// Whether no table is still being made.
    pub is_complete: bool,
}

impl KnownParts {
    /// Adds a mapping of a file with these tables, moved to where the process has it.
    fn add(&mut self, mapping: &Mapping, facts: &ElfFacts, tables: &[Placed]) {
        let Mapping {
            start,
            end,
            file_offset,
            ..
        } = *mapping;
        let mut bare = start;
        if let Some(addr) = facts.addr_of_mapping(file_offset, end - start) {
            let bias = start.wrapping_sub(addr);
            for table in tables {
                let pages_start = table.start.wrapping_add(bias);
                let pages_end = pages_start.wrapping_add(u64::from(table.page_count) * PAGE_BYTES);
                let part = AbiMapping {
                    start: bare.max(pages_start),
                    end: end.min(pages_end),
                    pages_start,
                    pages: table.pages,
                    page_count: table.page_count,
                };
                if part.start < part.end {
                    self.add_bare(bare, part.start);
                    bare = part.end;
                    self.parts.push(part);
                }
            }
        }
        self.add_bare(bare, end);
    }

    /// Adds code without a table.
    fn add_bare(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(last) = self.parts.last_mut()
            && last.end == start
            && last.page_count == 0
        {
            last.end = end;
            return;
        }
        self.parts.push(AbiMapping {
            start,
            end,
            ..AbiMapping::default()
        });
    }
}

fn apply(update: Update, maps: &mut TableMaps) -> Result<()> {
    match update {
        Update::Grow(segments) => maps.grow(segments),
        Update::Words(at, words) => {
            maps.write(at, &words);
            Ok(())
        }
        Update::Wide(index, rule) => maps.set_wide(index, &rule),
        Update::Process(pid, table) => maps.set_process(pid, table),
        Update::Forget(pid) => {
            maps.forget_process(pid);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_without_a_table_fill_the_gaps() {
        let segment = Segment {
            start: 0x1000,
            end: 0x9000,
            file_offset: 0x1000,
        };
        let facts = ElfFacts {
            segments: vec![segment],
            ..ElfFacts::default()
        };
        let mapping = Mapping {
            start: 0x7f00_0000_1000,
            end: 0x7f00_0000_9000,
            file_offset: 0x1000,
            code: Code::File(BinaryId(0)),
        };
        let placed = |start| Placed {
            start,
            pages: 7,
            page_count: 16,
        };
        let mut known = KnownParts {
            parts: Vec::new(),
            is_complete: true,
        };
        known.add_bare(0x7f00_0000_0000, 0x7f00_0000_1000);
        known.add(&mapping, &facts, &[placed(0x2000), placed(0x5000)]);
        let parts: Vec<_> = known
            .parts
            .iter()
            .map(|part| (part.start as u16, part.end as u16, part.page_count))
            .collect();
        let expected = [
            (0, 0x2000, 0),
            (0x2000, 0x3000, 16),
            (0x3000, 0x5000, 0),
            (0x5000, 0x6000, 16),
            (0x6000, 0x9000, 0),
        ];
        assert_eq!(parts, expected);
    }
}
