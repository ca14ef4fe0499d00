//! The unwind tables in the kernel's maps: where updates of [`crate::unwind`] go.
#![allow(unsafe_code)] // The segments are mapped into our memory.

use std::{
    io,
    ops::RangeInclusive,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::Result;
use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use hotspan_abi::settings::ChangedBy;
use hotspan_abi::unwind::{MAX_SEGMENTS, ProcessTable, SEGMENT_WORDS, WIDE_RULE_WORDS, WideRule};
use hotspan_ebpf::unwind::Tables;

use super::{bpf_syscall, mapped::MappedArray, take_map};

const BPF_F_MMAPABLE: u32 = 1 << 10;
const SEGMENT_BYTES: usize = SEGMENT_WORDS * 4;

/// How much memory unwind tables can be given.
pub const TABLE_BYTES: RangeInclusive<usize> = SEGMENT_BYTES..=MAX_SEGMENTS * SEGMENT_BYTES;
/// How much they are given, unless the user says otherwise: enough for a host with some hundred
/// different programs.
pub const DEFAULT_TABLE_BYTES: usize = 64 << 20;
const _: () = assert!(DEFAULT_TABLE_BYTES <= MAX_SEGMENTS * SEGMENT_BYTES);

/// The maps of the unwinder.
pub struct TableMaps {
    outer: MapData,
    wide: Array<MapData, [u32; WIDE_RULE_WORDS]>,
    processes: HashMap<MapData, u32, [u32; 2]>,
    generations: Array<MapData, u64>,
    /// How often we have changed what the programs know.
    generation: u64,
    segments: Vec<Segment>,
    /// What is in `wide`.
    wide_rules: Vec<WideRule>,
}

impl TableMaps {
    /// Takes the maps of a loaded object.
    pub fn take(programs: &mut Ebpf) -> Result<Self> {
        let outer = match take_map(programs, "SEGMENTS")? {
            Map::ArrayOfMaps(map) => map,
            _ => anyhow::bail!("the map SEGMENTS is no array of maps"),
        };
        let mut tables = Self {
            outer,
            wide: Array::try_from(take_map(programs, "WIDE_RULES")?)?,
            processes: HashMap::try_from(take_map(programs, "PROCESSES")?)?,
            generations: Array::try_from(take_map(programs, "GENERATIONS")?)?,
            generation: 0,
            segments: Vec::new(),
            wide_rules: Vec::new(),
        };
        // The programs' memory is zero at first, and no process is known by that.
        tables.next_generation();
        Ok(tables)
    }

    /// Makes the programs forget what they remember of processes.
    pub fn next_generation(&mut self) {
        self.generation += 1;
        let by_us = ChangedBy::Agent as u32;
        // An entry of an array is always there.
        if let Err(error) = self.generations.set(by_us, self.generation, 0) {
            tracing::error!(reason = %error, "the kernel side does not learn of changes to unwind tables");
        }
    }

    /// One more segment, and what puts it in its place, where none was. That is for another thread: the kernel then
    /// waits for the programs that have not seen it, which do not need it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new_segment(
        &self,
    ) -> io::Result<(
        Segment,
        impl FnOnce() -> io::Result<()> + Send + 'static + use<>,
    )> {
        let segment = Segment::create()?;
        let outer = self.outer.fd().as_fd().try_clone_to_owned()?;
        let (index, inner) = (self.segments.len() as u32, segment.fd.try_clone()?);
        let put = move || bpf_syscall::set_inner_map(outer.as_fd(), index, inner.as_fd());
        Ok((segment, put))
    }

    /// Whether the next segment is in its place.
    #[must_use]
    pub fn has_next(&self) -> bool {
        bpf_syscall::has_inner_map(self.outer.fd().as_fd(), self.segments.len() as u32)
    }

    /// Makes the space longer by a segment that is in its place.
    pub fn push(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    /// Writes words from index `at` on, across segments when need be.
    pub fn write(&mut self, at: u32, mut words: &[u32]) {
        let mut at = at as usize;
        while !words.is_empty() {
            let (segment, offset) = (at / SEGMENT_WORDS, at % SEGMENT_WORDS);
            let (now, rest) = words.split_at(words.len().min(SEGMENT_WORDS - offset));
            if let Some(segment) = self.segments.get_mut(segment) {
                segment.words_mut()[offset..offset + now.len()].copy_from_slice(now);
            }
            at += now.len();
            words = rest;
        }
    }

    /// Sets a wide rule.
    pub fn set_wide(&mut self, index: u32, rule: &WideRule) -> Result<()> {
        self.wide.set(index, rule.to_words(), 0)?;
        let index = index as usize;
        if index >= self.wide_rules.len() {
            self.wide_rules.resize(index + 1, WideRule::default());
        }
        self.wide_rules[index] = *rule;
        Ok(())
    }

    /// Says where the mappings of a process are.
    pub fn set_process(&mut self, pid: u32, table: ProcessTable) -> Result<()> {
        Ok(self.processes.insert(pid, table.to_words(), 0)?)
    }

    /// Forgets a process. The kernel side may have done so already.
    pub fn forget_process(&mut self, pid: u32) {
        let _ = self.processes.remove(&pid);
    }
}

/// The tables as the kernel side sees them.
impl Tables for TableMaps {
    type Words<'a> = &'a [u32];

    fn segment(&self, index: u32) -> Option<&[u32]> {
        let segment = self.segments.get(index as usize / SEGMENT_WORDS)?;
        Some(segment.words())
    }

    fn wide(&self, index: u32) -> Option<WideRule> {
        self.wide_rules.get(index as usize).copied()
    }
}

/// Whether the kernel and our rights allow tables: makes a segment and drops it.
///
/// # Errors
/// The kernel's.
pub(super) fn try_segment() -> io::Result<()> {
    Segment::create().map(drop)
}

/// One segment: a map of a single large value, mapped into our memory.
pub struct Segment {
    fd: OwnedFd,
    memory: MappedArray,
}

type SegmentWords = [u32; SEGMENT_WORDS];

impl Segment {
    fn create() -> io::Result<Self> {
        let fd = bpf_syscall::create_map(&bpf_syscall::Map {
            kind: BPF_MAP_TYPE_ARRAY as u32,
            key_bytes: 4,
            value_bytes: SEGMENT_BYTES as u32,
            max_entries: 1,
            flags: BPF_F_MMAPABLE,
            btf: None,
        })?;
        let memory = MappedArray::new(fd.as_fd(), SEGMENT_BYTES)?;
        Ok(Self { fd, memory })
    }

    fn words(&self) -> &[u32] {
        // SAFETY: the mapping is this long, and only we write it.
        let words = self
            .memory
            .at::<SegmentWords>(0)
            .map(|words| unsafe { words.as_ref() });
        words.map_or(&[], |words| words)
    }

    fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: the mapping is this long and ours alone on this side; the kernel side reads it a
        // word at a time and copes with any value.
        let words = self
            .memory
            .at::<SegmentWords>(0)
            .map(|mut words| unsafe { words.as_mut() });
        words.map_or(&mut [], |words| words)
    }
}
