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
                    let mappings: Vec<_> = mappings
                        .iter()
                        .flat_map(|mapping| self.mappings(mapping, binaries, now_mono_ns))
                        .collect();
                    self.store.set_process(pid, &mappings, now_mono_ns);
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

    /// A mapping as the kernel side wants it: the parts of it that have a table. Where there is
    /// none, or it is not made yet, code is unwound by the frame pointer.
    fn mappings(
        &mut self,
        mapping: &Mapping,
        binaries: &Binaries,
        now_mono_ns: u64,
    ) -> Vec<AbiMapping> {
        let Code::File(binary) = mapping.code else {
            return Vec::new();
        };
        let known = binaries.get(binary);
        match self.store.tables_of(binary, now_mono_ns) {
            Some(tables) => in_process(mapping, &known.facts, tables),
            None => {
                self.ask_for(binary, known);
                Vec::new()
            }
        }
    }

    fn ask_for(&mut self, binary: BinaryId, known: &KnownBinary) {
        if self.pending.contains(&binary) {
            return;
        }
        let Some(file) = known.file().and_then(|file| file.try_clone().ok()) else {
            return;
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
    }
}

/// Moves the tables of a mapping's file to where the process has it.
fn in_process(mapping: &Mapping, facts: &ElfFacts, tables: &[Placed]) -> Vec<AbiMapping> {
    let Mapping {
        start,
        end,
        file_offset,
        ..
    } = *mapping;
    let Some(addr) = facts.addr_of_mapping(file_offset, end - start) else {
        return Vec::new();
    };
    let bias = start.wrapping_sub(addr);
    let here = |table: &Placed| {
        let pages_start = table.start.wrapping_add(bias);
        let pages_end = pages_start.wrapping_add(u64::from(table.page_count) * PAGE_BYTES);
        let part = AbiMapping {
            start: start.max(pages_start),
            end: end.min(pages_end),
            pages_start,
            pages: table.pages,
            page_count: table.page_count,
        };
        (part.start < part.end).then_some(part)
    };
    tables.iter().filter_map(here).collect()
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
