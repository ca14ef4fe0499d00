//! Keeps the kernel's unwind tables in step with what runs.
//!
//! In: which processes have which files mapped, and which files samples met. Out: changes of the
//! kernel's maps. Tables are made in threads of their own, and recording does not wait for them:
//! until they are there, code is unwound by the frame pointer. Nothing here ends a recording: what
//! finds no room is counted, and stacks say `[no unwind table]`.

mod jvms;
mod users;
mod workers;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, thread};

use anyhow::Result;
use hotspan_abi::unwind::{MAPPING_WORDS, Mapping as AbiMapping, PAGE_BYTES};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use crate::{
    capture::TableMaps,
    model::BinaryId,
    process::{Binaries, Changes, Code, ElfFacts, Mapping, Mappings, ProcessTable},
    unwind::{
        Cache, Fault, Likeness, Made, Owner, Placed, Proof, Store, Subject, Update,
        hotspot::chunk_of, table::Table,
    },
};
use jvms::{Jvms, Part};
use users::Users;
use workers::{Job, Outcome, Workers};

/// Tables that found no room are made anew after this long at the earliest.
const TRY_AGAIN_NS: u64 = 10_000_000_000;

/// Mappings that found no room are tried again after this long.
const RELIST_NS: u64 = 500_000_000;

/// Tables that wait for their place take this much of our own memory at most: 16 MiB.
const MAX_HELD_WORDS: usize = 4 << 20;

/// So many tables of files that look alike are compared with a file.
const MAX_CANDIDATES: usize = 4;

/// There is a line about a damaged file at most this often.
const COMPLAINTS_APART_NS: u64 = 1_000_000_000;

/// Where tables go: the kernel's maps.
pub trait Maps {
    /// Makes the space longer by a segment.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn grow(&mut self) -> Result<()>;

    /// Makes a change.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn apply(&mut self, update: Update) -> Result<()>;

    /// The changes so far are to be seen.
    fn publish(&mut self);
}

impl Maps for TableMaps {
    /// The kernel takes some 10 ms, in which there would be stacks to receive.
    fn grow(&mut self) -> Result<()> {
        let (segment, put) = self.new_segment()?;
        let name = "hotspan-segment".to_owned();
        let waiting = thread::Builder::new().name(name).spawn(put)?;
        while !self.has_next() {
            if waiting.is_finished() {
                waiting.join().expect("a system call does not panic")?;
                break;
            }
            thread::yield_now();
        }
        self.push(segment);
        Ok(())
    }

    fn apply(&mut self, update: Update) -> Result<()> {
        match update {
            Update::Words(at, words) => self.write(at, &words),
            Update::Wide(index, rule) => self.set_wide(index, &rule)?,
            Update::Process(pid, table) => self.set_process(pid, table)?,
            Update::Forget(pid) => self.forget_process(pid),
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.next_generation();
    }
}

/// What becomes of a binary's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They are wanted, being made, or wait for their place.
    Pending,
    /// They are those of this binary, which may be another one with the same content.
    Placed(BinaryId),
    /// They found no room: they take so many words, and are made again at this time.
    NoRoom(usize, u64),
    /// They made room for others. A sample in the binary brings them back.
    Evicted,
    /// Its file cannot be read.
    Unreadable,
}

/// Files that look alike.
#[derive(Default)]
struct Alike {
    /// The one whose tables are being made.
    first: Option<BinaryId>,
    /// Those that wait for it: their tables may be the same.
    others: Vec<BinaryId>,
    /// Those whose tables are in their place, and what these were made of.
    placed: Vec<(BinaryId, Arc<Proof>)>,
}

/// Tables that wait for their place.
struct Waiting {
    binary: BinaryId,
    /// Words of each.
    sizes: Vec<usize>,
    made: Made,
}

/// Whether there is room.
enum Room {
    Now,
    /// Once nobody reads what is there now.
    Soon,
    None,
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Tables, mappings and rules that found no room.
    pub full: u64,
    /// Files that have no tables because they are damaged.
    pub damaged: u64,
}

/// Tables, from files to the kernel.
pub struct TableLoader {
    store: Store,
    workers: Workers,
    jvms: Jvms,
    users: Users,
    states: FxHashMap<BinaryId, State>,
    /// Binaries that the threads have still to be told of.
    wanted: FxHashSet<BinaryId>,
    alike: FxHashMap<Arc<Likeness>, Alike>,
    /// Binaries whose tables are those of this one.
    sharers: FxHashMap<BinaryId, Vec<BinaryId>>,
    waiting: Vec<Waiting>,
    /// Binaries whose tables found no room.
    homeless: FxHashSet<BinaryId>,
    /// Processes whose mappings found no room.
    unlisted: FxHashSet<u32>,
    /// When their mappings are tried again.
    relist_mono_ns: u64,
    losses: Losses,
    complained_mono_ns: Option<u64>,
}

impl TableLoader {
    /// Starts the threads. Tables take `max_bytes` at most, and are kept in `cache`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(max_bytes: usize, cache: Option<Cache>) -> Result<Self> {
        let workers = Workers::start(cache)?;
        Ok(Self {
            store: Store::new(max_bytes),
            jvms: Jvms::new(workers.news()),
            workers,
            users: Users::default(),
            states: FxHashMap::default(),
            wanted: FxHashSet::default(),
            alike: FxHashMap::default(),
            sharers: FxHashMap::default(),
            waiting: Vec::new(),
            homeless: FxHashSet::default(),
            unlisted: FxHashSet::default(),
            relist_mono_ns: 0,
            losses: Losses::default(),
            complained_mono_ns: None,
        })
    }

    /// Signalled when tables have been made: [`Self::update`] puts them in their place.
    #[must_use]
    pub fn news(&self) -> Arc<Notify> {
        self.workers.news()
    }

    /// Whether every table that was asked for is in its place, or has none.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.states.values().all(|state| *state != State::Pending)
    }

    /// What was left out so far.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses {
            full: self.losses.full + self.store.left_out + self.jvms.left_out(),
            ..self.losses
        }
    }

    /// Notes that a sample met a binary.
    pub fn note_sampled(&mut self, binary: BinaryId, now_mono_ns: u64) {
        match self.states.get_mut(&binary) {
            Some(State::Placed(owner)) => self.store.touch(Owner::Binary(*owner), now_mono_ns),
            Some(state @ State::Evicted) => {
                *state = State::Pending;
                self.wanted.insert(binary);
            }
            _ => {}
        }
    }

    /// Notes that a sample met code that a process made at run time.
    pub fn note_code_sampled(&mut self, pid: u32, addr: u64, now_mono_ns: u64) {
        self.store
            .touch(Owner::Code(pid, chunk_of(addr)), now_mono_ns);
    }

    /// Wants the code looked at that a process made at run time and that lies at some of these addresses.
    /// What it returns is for [`Self::has_learned`].
    pub fn want_code(
        &mut self,
        pid: u32,
        addrs: impl Iterator<Item = u64>,
        mappings: &Mappings,
    ) -> u64 {
        self.jvms.want(pid, addrs, mappings)
    }

    /// Whether that is done.
    #[must_use]
    pub fn has_learned(&self, pid: u32, request: u64) -> bool {
        self.jvms.has_answered(pid, request)
    }

    /// Takes in what was made, and brings the kernel's tables up to date with the processes.
    pub fn update(
        &mut self,
        processes: &mut ProcessTable,
        binaries: &Binaries,
        maps: &mut impl Maps,
        now_mono_ns: u64,
    ) {
        let mut stale = self.take_unlisted(now_mono_ns);
        let Changes {
            pids,
            binaries: met,
        } = processes.take_changes();
        for &pid in &pids {
            let mappings = processes.mappings(pid).unwrap_or_default();
            self.take_mappings(pid, mappings);
            if self.jvms.set_mappings(pid, mappings, binaries) {
                self.store.remove_code(pid, now_mono_ns);
            }
        }
        // Processes that ended since the last time leave no mappings, but are likely to come again.
        met.into_iter().for_each(|binary| self.want(binary));
        stale.extend(pids);
        while let Some((binary, outcome)) = self.workers.take() {
            self.take_outcome(binary, outcome, binaries, &mut stale, now_mono_ns);
        }
        while let Some(outcome) = self.jvms.take() {
            let pid = outcome.pid;
            if outcome.is_news {
                stale.insert(pid);
            }
            for (chunk, table) in outcome.tables {
                let code = (pid, chunk);
                self.place_code(code, table, binaries, maps, &mut stale, now_mono_ns);
            }
        }
        self.place_waiting(binaries, maps, &mut stale, now_mono_ns);
        self.try_again(now_mono_ns);
        self.ask(binaries);
        let Self { jvms, store, .. } = self;
        jvms.ask(binaries, |pid, chunk| {
            store.tables_of(Owner::Code(pid, chunk)).is_some()
        });
        stale.extend(jvms.give_up());
        // Making room for mappings can make others stale.
        while let Some(&pid) = stale.iter().next() {
            stale.remove(&pid);
            if self.list(pid, processes, binaries, maps, &mut stale, now_mono_ns) {
                self.unlisted.remove(&pid);
            } else {
                // However often it is tried again, it is one loss.
                self.losses.full += u64::from(self.unlisted.insert(pid));
            }
        }
        let updates = self.store.take_updates();
        if updates.is_empty() {
            return;
        }
        for update in updates {
            if let Err(error) = maps.apply(update) {
                self.losses.full += 1;
                tracing::debug!(reason = %error, "the kernel refused a part of the unwind tables");
            }
        }
        maps.publish();
    }

    /// Processes whose mappings found no room, when it is time to try again.
    fn take_unlisted(&mut self, now_mono_ns: u64) -> FxHashSet<u32> {
        if self.unlisted.is_empty() || now_mono_ns < self.relist_mono_ns {
            return FxHashSet::default();
        }
        self.relist_mono_ns = now_mono_ns + RELIST_NS;
        self.unlisted.clone()
    }

    /// Takes in which files a process has mapped now.
    fn take_mappings(&mut self, pid: u32, mappings: &[Mapping]) {
        let files = mappings.iter().filter_map(|mapping| match mapping.code {
            Code::File(binary) => Some(binary),
            Code::Anonymous => None,
        });
        for binary in self.users.set(pid, files.collect()) {
            self.want(binary);
        }
    }

    /// A process has mapped a binary: its tables are wanted, if they are not there already.
    fn want(&mut self, binary: BinaryId) {
        if matches!(self.states.get(&binary), None | Some(State::Evicted)) {
            self.states.insert(binary, State::Pending);
            self.wanted.insert(binary);
        }
    }

    fn take_outcome(
        &mut self,
        binary: BinaryId,
        outcome: Outcome,
        binaries: &Binaries,
        stale: &mut FxHashSet<u32>,
        now_mono_ns: u64,
    ) {
        match outcome {
            Outcome::Made(made) => {
                if let Some(fault) = &made.fault {
                    self.complain(binary, *fault, binaries, now_mono_ns);
                }
                self.waiting.push(Waiting {
                    binary,
                    sizes: made.tables.iter().map(|table| table.words.len()).collect(),
                    made,
                });
            }
            Outcome::SameAs(owner) => {
                match self.sharers.get_mut(&owner) {
                    Some(sharers) => {
                        sharers.push(binary);
                        self.states.insert(binary, State::Placed(owner));
                        self.store.touch(Owner::Binary(owner), now_mono_ns);
                        stale.extend(self.users.of(binary));
                    }
                    // It has been evicted meanwhile.
                    None => _ = self.wanted.insert(binary),
                }
                self.finish(binary, binaries, State::Pending);
            }
        }
    }

    /// One line about a damaged file.
    fn complain(&mut self, binary: BinaryId, fault: Fault, binaries: &Binaries, now_mono_ns: u64) {
        self.losses.damaged += 1;
        let is_soon = |since| now_mono_ns.saturating_sub(since) < COMPLAINTS_APART_NS;
        if self.complained_mono_ns.is_some_and(is_soon) {
            return;
        }
        self.complained_mono_ns = Some(now_mono_ns);
        let known = binaries.get(binary);
        let build_id: String = known
            .facts
            .build_id
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        tracing::warn!(path = %known.path, build_id, reason = %fault, "a damaged file has no unwind tables");
    }

    /// The tables of `binary` have been made: those that look alike go on, in this state.
    fn finish(&mut self, binary: BinaryId, binaries: &Binaries, state: State) {
        let Some(subject) = Subject::new(binaries.get(binary), 0) else {
            return;
        };
        let Some(alike) = self.alike.get_mut(&subject.likeness) else {
            return;
        };
        alike.first = None;
        for other in std::mem::take(&mut alike.others) {
            self.states.insert(other, state);
            let followed_by = match state {
                State::Pending => &mut self.wanted,
                _ => &mut self.homeless,
            };
            followed_by.insert(other);
        }
    }

    /// Puts tables where there is room for them, the smallest first.
    fn place_waiting(
        &mut self,
        binaries: &Binaries,
        maps: &mut impl Maps,
        stale: &mut FxHashSet<u32>,
        now_mono_ns: u64,
    ) {
        let mut waiting = std::mem::take(&mut self.waiting);
        let words_of = |waiting: &Waiting| waiting.sizes.iter().sum::<usize>();
        waiting.sort_by_key(words_of);
        let mut held = 0;
        for tables in waiting {
            let (binary, words) = (tables.binary, words_of(&tables));
            match self.make_room(&tables.sizes, true, binaries, maps, stale, now_mono_ns) {
                Room::Now => {
                    self.place(tables, binaries, now_mono_ns);
                    stale.extend(self.users.of(binary));
                }
                Room::Soon if held + words <= MAX_HELD_WORDS => {
                    held += words;
                    self.waiting.push(tables);
                }
                Room::Soon | Room::None => {
                    self.losses.full += 1;
                    let state = State::NoRoom(words, now_mono_ns + TRY_AGAIN_NS);
                    self.states.insert(binary, state);
                    self.homeless.insert(binary);
                    self.finish(binary, binaries, state);
                }
            }
        }
    }

    fn place(&mut self, tables: Waiting, binaries: &Binaries, now_mono_ns: u64) {
        let Waiting { binary, made, .. } = tables;
        self.store
            .place(Owner::Binary(binary), made.tables, now_mono_ns);
        self.states.insert(binary, State::Placed(binary));
        self.sharers.insert(binary, vec![binary]);
        let subject = Subject::new(binaries.get(binary), 0);
        if let (Some(subject), Some(proof)) = (subject, made.proof) {
            let alike = self.alike.entry(subject.likeness).or_default();
            alike.placed.push((binary, proof));
        }
        self.finish(binary, binaries, State::Pending);
    }

    /// Puts the table of a stretch of code that a process made at run time in its place.
    fn place_code(
        &mut self,
        (pid, chunk): (u32, u64),
        table: Option<Table>,
        binaries: &Binaries,
        maps: &mut impl Maps,
        stale: &mut FxHashSet<u32>,
        now_mono_ns: u64,
    ) {
        let owner = Owner::Code(pid, chunk);
        let is_there = table.is_some_and(|table| {
            let sizes = [table.words.len()];
            let room = self.make_room(&sizes, true, binaries, maps, stale, now_mono_ns);
            let is_placed =
                matches!(room, Room::Now) && self.store.place(owner, vec![table], now_mono_ns);
            self.losses.full += u64::from(!is_placed);
            is_placed
        });
        if !is_there {
            self.store.remove(owner, now_mono_ns);
        }
    }

    /// Finds room, by more segments or by taking what is of least use out of use.
    fn make_room(
        &mut self,
        sizes: &[usize],
        is_table: bool,
        binaries: &Binaries,
        maps: &mut impl Maps,
        stale: &mut FxHashSet<u32>,
        now_mono_ns: u64,
    ) -> Room {
        let is_allowed = !is_table || self.store.may_hold_tables(sizes.iter().sum());
        while is_allowed && !self.store.has_room(sizes, now_mono_ns) && self.store.may_grow() {
            match maps.grow() {
                Ok(()) => self.store.grow(),
                Err(error) => {
                    tracing::warn!(reason = %error, "the kernel gives no more memory for unwind tables");
                    self.store.stop_growing();
                }
            }
        }
        if is_allowed && self.store.has_room(sizes, now_mono_ns) {
            return Room::Now;
        }
        if is_allowed && self.store.will_have_room(sizes) {
            return Room::Soon;
        }
        let Self {
            store,
            users,
            sharers,
            ..
        } = self;
        let is_mapped = |owner| is_mapped(users, sharers, owner);
        let evicted = store.evict(sizes, is_mapped, now_mono_ns);
        if evicted.is_empty() {
            return Room::None;
        }
        for owner in evicted {
            match owner {
                Owner::Binary(owner) => self.forget_tables(owner, binaries, stale),
                Owner::Code(pid, _) => _ = stale.insert(pid),
            }
        }
        Room::Soon
    }

    /// Tables have been taken out of use.
    fn forget_tables(&mut self, owner: BinaryId, binaries: &Binaries, stale: &mut FxHashSet<u32>) {
        for binary in self.sharers.remove(&owner).unwrap_or_default() {
            if self.users.count(binary) > 0 {
                self.states.insert(binary, State::Evicted);
                stale.extend(self.users.of(binary));
            } else {
                self.states.remove(&binary);
            }
        }
        if let Some(subject) = Subject::new(binaries.get(owner), 0)
            && let Some(alike) = self.alike.get_mut(&subject.likeness)
        {
            alike.placed.retain(|&(placed, _)| placed != owner);
            if alike.placed.is_empty() && alike.first.is_none() {
                self.alike.remove(&subject.likeness);
            }
        }
    }

    /// Makes tables anew that found no room, when there could be some by now.
    fn try_again(&mut self, now_mono_ns: u64) {
        let Self {
            store,
            users,
            sharers,
            states,
            wanted,
            homeless,
            ..
        } = self;
        homeless.retain(|&binary| {
            let Some(State::NoRoom(words, at_mono_ns)) = states.get_mut(&binary) else {
                return false;
            };
            if *at_mono_ns > now_mono_ns {
                return true;
            }
            if users.count(binary) == 0 {
                states.remove(&binary);
                return false;
            }
            *at_mono_ns = now_mono_ns + TRY_AGAIN_NS;
            let is_mapped = |owner| is_mapped(users, sharers, owner);
            if !store.could_hold(*words, is_mapped, now_mono_ns) {
                return true;
            }
            states.insert(binary, State::Pending);
            wanted.insert(binary);
            false
        });
    }

    /// Tells the threads of binaries whose tables are wanted.
    fn ask(&mut self, binaries: &Binaries) {
        let mut later = FxHashSet::default();
        for binary in std::mem::take(&mut self.wanted) {
            let pid = self.users.of(binary).next().unwrap_or(0);
            let Some(subject) = Subject::new(binaries.get(binary), pid) else {
                self.states.insert(binary, State::Unreadable);
                continue;
            };
            let alike = self.alike.entry(subject.likeness.clone()).or_default();
            if alike.first.is_some() {
                alike.others.push(binary);
                continue;
            }
            let job = Job {
                binary,
                subject,
                users: self.users.count(binary),
                candidates: alike.placed.iter().take(MAX_CANDIDATES).cloned().collect(),
            };
            if self.workers.push(job) {
                alike.first = Some(binary);
            } else {
                later.insert(binary);
            }
        }
        self.wanted = later;
    }

    /// Tells the kernel side of a process's mappings; false when there is no room for them.
    fn list(
        &mut self,
        pid: u32,
        processes: &ProcessTable,
        binaries: &Binaries,
        maps: &mut impl Maps,
        stale: &mut FxHashSet<u32>,
        now_mono_ns: u64,
    ) -> bool {
        let mappings = processes.mappings(pid).unwrap_or_default();
        let mappings = self.parts(pid, mappings, binaries).parts;
        let is_changing = self.jvms.has(pid);
        let words = mappings.len() * MAPPING_WORDS as usize;
        match self.make_room(&[words], false, binaries, maps, stale, now_mono_ns) {
            Room::Now => self
                .store
                .set_process(pid, &mappings, is_changing, now_mono_ns),
            Room::Soon | Room::None => {
                // What was there may be wrong by now, and without it frame pointers are followed.
                self.store.forget_process(pid, now_mono_ns);
                false
            }
        }
    }

    /// The mappings of a process as the kernel side wants them. Those whose tables are not made yet are
    /// left out, and the tables asked for.
    pub fn parts(&mut self, pid: u32, mappings: &[Mapping], binaries: &Binaries) -> KnownParts {
        let mut known = KnownParts {
            parts: Vec::new(),
            is_complete: true,
        };
        for mapping in mappings {
            let Code::File(binary) = mapping.code else {
                self.add_code(&mut known, pid, mapping);
                continue;
            };
            match self.states.get(&binary) {
                Some(State::Placed(owner)) => {
                    let tables = self.store.tables_of(Owner::Binary(*owner));
                    let tables = tables.unwrap_or_default();
                    known.add(mapping, &binaries.get(binary).facts, tables);
                }
                Some(State::Pending) => known.is_complete = false,
                None => {
                    self.want(binary);
                    known.is_complete = false;
                }
                Some(State::NoRoom(..) | State::Evicted | State::Unreadable) => {
                    known.add_bare(mapping.start, mapping.end);
                }
            }
        }
        known
    }

    /// Adds code that a process made at run time. What nobody has looked at yet is left out.
    fn add_code(&self, known: &mut KnownParts, pid: u32, mapping: &Mapping) {
        for (Range { start, end }, part) in self.jvms.parts(pid, mapping) {
            let table = self.store.tables_of(Owner::Code(pid, chunk_of(start)));
            match (part, table) {
                (Part::Bare, _) => known.add_bare(start, end),
                (Part::Code, Some(&[table])) => known.parts.push(AbiMapping {
                    start,
                    end,
                    pages_start: table.start,
                    pages: table.pages,
                    page_count: table.page_count,
                }),
                _ => {}
            }
        }
    }
}

/// Whether a process has it mapped. Code made at run time is gone with its process.
fn is_mapped(users: &Users, sharers: &FxHashMap<BinaryId, Vec<BinaryId>>, owner: Owner) -> bool {
    let Owner::Binary(owner) = owner else {
        return true;
    };
    let sharers = sharers.get(&owner).map_or(&[][..], Vec::as_slice);
    sharers.iter().any(|&binary| users.count(binary) > 0)
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
