//! Keeps the kernel's unwind tables in step with what runs.
//!
//! Tables are made in a thread of their own, because those of a large binary take seconds, and
//! recording does not wait for them. Until they are there, code is unwound by the frame pointer.

use std::{
    fs::File,
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
};

use anyhow::{Context, Result};
use hotspan_abi::unwind::Mapping as AbiMapping;
use rustc_hash::FxHashSet;

use crate::{
    capture::TableMaps,
    model::{BinaryId, Segment},
    process::{Binaries, Code, ElfFacts, Mapping, ProcessTable},
    unwind::{Placed, Store, Update, table::Table, tables_of_file},
};

/// A file whose tables are wanted.
struct Wanted {
    binary: BinaryId,
    file: File,
    segments: Vec<Segment>,
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
            for Wanted {
                binary,
                file,
                segments,
            } in requests
            {
                if results
                    .send((binary, tables_of_file(&file, &segments)))
                    .is_err()
                {
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
        loop {
            match self.made.try_recv() {
                Ok((binary, tables)) => {
                    self.pending.remove(&binary);
                    self.place(binary, &tables, processes, now_mono_ns);
                    changed.extend(processes.users_of(binary));
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        for pid in changed {
            match processes.mappings(pid) {
                Some(mappings) => {
                    let mappings: Vec<_> = mappings
                        .iter()
                        .filter_map(|mapping| self.mapping(mapping, binaries, now_mono_ns))
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
        tables: &[Table],
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

    /// A mapping as the kernel side wants it. One whose table is not made yet is left out: its code
    /// is unwound by the frame pointer until then.
    fn mapping(
        &mut self,
        mapping: &Mapping,
        binaries: &Binaries,
        now_mono_ns: u64,
    ) -> Option<AbiMapping> {
        let Code::File(binary) = mapping.code else {
            return None;
        };
        let known = binaries.get(binary);
        let Some(tables) = self.store.tables_of(binary, now_mono_ns) else {
            if let Some(file) = known.file().and_then(|file| file.try_clone().ok())
                && !self.pending.contains(&binary)
            {
                let segments = known.facts.segments.clone();
                if self
                    .wanted
                    .try_send(Wanted {
                        binary,
                        file,
                        segments,
                    })
                    .is_ok()
                {
                    self.pending.insert(binary);
                }
            }
            return None;
        };
        Some(in_process(mapping, &known.facts, tables))
    }
}

/// Moves the table of a mapping's segment to where the process has it.
fn in_process(mapping: &Mapping, facts: &ElfFacts, tables: &[Placed]) -> AbiMapping {
    let Mapping {
        start,
        end,
        file_offset,
        ..
    } = *mapping;
    let without = AbiMapping {
        start,
        end,
        pages: AbiMapping::NO_TABLE,
        ..AbiMapping::default()
    };
    let Some(addr) = facts.addr_of_mapping(file_offset, end - start) else {
        return without;
    };
    let bias = start.wrapping_sub(addr);
    let covers = |table: &&Placed| {
        let table_end = table.start + u64::from(table.page_count) * hotspan_abi::unwind::PAGE_BYTES;
        table.start < addr.wrapping_add(end - start) && addr < table_end
    };
    match tables.iter().find(covers) {
        Some(table) => AbiMapping {
            pages_start: table.start.wrapping_add(bias),
            pages: table.pages,
            page_count: table.page_count,
            ..without
        },
        None => without,
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
