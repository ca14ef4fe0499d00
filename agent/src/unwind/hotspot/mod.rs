//! Code that a HotSpot JVM compiled or generated. It has no unwind information in any file, and mostly
//! keeps no frame pointer, but the JVM can walk it, and what it goes by lies in its memory: which block of
//! its code heaps an address is in, what code that is, and how long its frames are (OpenJDK,
//! `src/hotspot/share/code/{codeCache,heap,codeBlob,nmethod}.hpp`). The instructions tell the rest, before
//! the frame is made and when it is gone.
//!
//! In: a process's memory, and addresses that its stacks lead to. Out: a [`Table`] for each stretch of
//! code that they lie in. Code comes and goes, so what is known is compared with what is there now and
//! then. The process controls all of it: every read is bounded, and so is how much is kept.
//!
//! What this does not do: names, and frames of virtual threads beyond their carrier.

mod layout;
mod vm_structs;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use hotspan_abi::unwind::{BASE_FP, FP_AT_FP, MAX_TABLE_WORDS, RA_AT_FP, Rule, WideRule};
use rustc_hash::FxHashMap;

use super::{
    Arch, Rows, TableRule,
    bare_code::flow::Sweep,
    steps::WideRules,
    table::{self, Table},
};
use crate::process::memory::ReadBytes;
use layout::{Blob, Heap, Layout};
pub use vm_structs::Exports;
#[cfg(test)]
mod tests;

/// Bytes of code that share a table.
pub const CHUNK_BYTES: u64 = 128 << 10;

/// Blocks that are kept of one process: large servers have some ten thousand.
const MAX_BLOCKS: usize = 64 << 10;
/// Code of a block that is gone through; no method is half as long.
const MAX_CODE_BYTES: u64 = 4 << 20;
/// Code that is gone through at a time.
const MAX_BYTES_AT_ONCE: u64 = 16 << 20;
/// Rules that are kept of one process.
const MAX_ROWS: usize = 4 << 20;
/// Segments of a block are counted in bytes, so a long one takes several hops: one of 4 GiB this many.
const MAX_HOPS: usize = 1 << 18;

/// The frames of interpreted methods: the frame pointer is at the caller's, the return address above it,
/// and the caller's stack pointer in the word below, because the caller's frame may have been made longer
/// (`frame::interpreter_frame_sender_sp_offset`).
const INTERPRETED: WideRule = WideRule {
    cfa_base: BASE_FP,
    cfa_offset: -8,
    cfa_is_read: 1,
    cfa_addend: 0,
    fp_rule: FP_AT_FP,
    fp_offset: 0,
    ra_rule: RA_AT_FP,
    ra_offset: 8,
};

/// What kind of code a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A method, compiled, or a native one's wrapper.
    Method,
    /// The interpreter.
    Interpreter,
    /// Between interpreted and compiled callers.
    Adapter,
    /// Any other.
    Stub,
}

impl Kind {
    /// By the name of a block, which is the same from JDK 8 to 25.
    fn of_name(name: &[u8]) -> Self {
        match name {
            b"nmethod" | b"native nmethod" => Self::Method,
            b"Interpreter" => Self::Interpreter,
            b"I2C/C2I adapters" => Self::Adapter,
            _ => Self::Stub,
        }
    }
}

/// A block of a code heap that was looked at.
struct Block {
    /// One past its last address.
    end: u64,
    /// What it holds; nothing when it was free.
    blob: Option<Blob>,
    /// Rules up to the end of its code.
    rows: Rows,
}

/// The code of one JVM, as far as stacks have led to it.
pub struct CodeCache<M> {
    memory: M,
    layout: Layout,
    heaps: Vec<Heap>,
    /// By first address.
    blocks: BTreeMap<u64, Block>,
    row_count: usize,
    kinds: FxHashMap<u64, Kind>,
    /// Stretches whose tables are not what they should be.
    changed: BTreeSet<u64>,
    /// What found no room.
    pub left_out: u64,
}

impl<M: ReadBytes> CodeCache<M> {
    /// Finds out how this JVM is made; `None` when it does not say.
    pub fn open(exports: &Exports, bias: u64, memory: M) -> Option<Self> {
        let layout = Layout::read(exports, bias, &memory)?;
        let heaps = layout.heaps(&memory);
        Some(Self {
            memory,
            layout,
            heaps,
            blocks: BTreeMap::new(),
            row_count: 0,
            kinds: FxHashMap::default(),
            changed: BTreeSet::new(),
            left_out: 0,
        })
    }

    /// The heaps: none before the JVM has made them.
    pub fn heaps(&self) -> impl Iterator<Item = Range<u64>> {
        self.heaps.iter().map(|heap| heap.start..heap.end)
    }

    /// Looks at the code at these addresses, as far as it is not known; `has_table` tells of which
    /// stretches there are tables.
    pub fn learn(&mut self, addrs: &[u64], has_table: impl Fn(u64) -> bool) {
        let is_outside = |&addr: &u64| self.heap_of(addr).is_none();
        if addrs.iter().any(is_outside) {
            self.heaps = self.layout.heaps(&self.memory);
        }
        let mut left = MAX_BYTES_AT_ONCE;
        for &addr in addrs {
            let Some(heap) = self.heap_of(addr).copied() else {
                continue;
            };
            if self.block_at(addr).is_none() {
                self.look_at(&heap, addr, &mut left);
            }
            let chunk = chunk_of(addr);
            if !has_table(chunk) && self.block_at(addr).is_some() {
                self.changed.insert(chunk);
            }
        }
    }

    /// Compares what is known with what is there, and forgets what has changed.
    pub fn compare(&mut self) {
        self.heaps = self.layout.heaps(&self.memory);
        let is_stale = |(&start, block): (&u64, &Block)| {
            let now = self
                .heap_of(start)
                .and_then(|heap| self.read_block(heap, start));
            let is_same = now.is_some_and(|(end, blob)| {
                // Nothing is told of the end of what was free.
                blob == block.blob && (blob.is_none() || end == block.end)
            });
            (!is_same).then_some(start)
        };
        let stale: Vec<_> = self.blocks.iter().filter_map(is_stale).collect();
        for start in stale {
            self.forget(start);
        }
    }

    /// The tables that changed since the last call, by the start of their stretch; `None` for a stretch
    /// of which nothing is known any more.
    pub fn take_tables(&mut self) -> Vec<(u64, Option<Table>)> {
        let changed = std::mem::take(&mut self.changed);
        let made = changed.into_iter().map(|chunk| (chunk, self.table(chunk)));
        let made: Vec<_> = made.collect();
        let is_lost = |(chunk, table): &&(u64, Option<Table>)| {
            table.is_none() && self.blocks_in(*chunk).next().is_some()
        };
        self.left_out += made.iter().filter(is_lost).count() as u64;
        made
    }

    fn heap_of(&self, addr: u64) -> Option<&Heap> {
        let holds = |heap: &&Heap| heap.start <= addr && addr < heap.end;
        self.heaps.iter().find(holds)
    }

    fn block_at(&self, addr: u64) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=addr).next_back()?;
        (addr < block.end).then_some(block)
    }

    fn blocks_in(&self, chunk: u64) -> impl Iterator<Item = (u64, &Block)> {
        let before = self.blocks.range(..chunk).next_back();
        let inside = self.blocks.range(chunk..chunk.saturating_add(CHUNK_BYTES));
        let all = before.into_iter().chain(inside);
        all.map(|(&start, block)| (start, block))
            .filter(move |(_, block)| chunk < block.end)
    }

    /// The end of a block that begins at an address, and what it holds.
    fn read_block(&self, heap: &Heap, start: u64) -> Option<(u64, Option<Blob>)> {
        let (len, blob) = self.layout.block(heap, start, &self.memory)?;
        Some((start + len, blob))
    }

    /// Where the block begins that an address is in, by the bytes of its segments: each says how far it is
    /// to the first one, or a part of the way there (`CodeHeap::find_block_for`).
    fn find_start(&self, heap: &Heap, addr: u64) -> Option<u64> {
        const FREE: u8 = 0xff;
        let mut segment = (addr - heap.start) >> heap.log2;
        for _ in 0..MAX_HOPS {
            let [hops] = self.memory.read_array(heap.segmap.checked_add(segment)?)?;
            match hops {
                FREE => return None,
                0 => return Some(heap.start + (segment << heap.log2)),
                hops => segment = segment.checked_sub(hops.into())?,
            }
        }
        None
    }

    /// Takes in the block that an address is in.
    fn look_at(&mut self, heap: &Heap, addr: u64, left: &mut u64) {
        if self.blocks.len() >= MAX_BLOCKS || self.row_count >= MAX_ROWS {
            self.left_out += 1;
            return;
        }
        let start = self.find_start(heap, addr);
        let read = start.and_then(|start| self.read_block(heap, start));
        let (start, block) = match start.zip(read) {
            Some((start, (end, Some(blob)))) if addr < end => {
                let len = blob.code.end - blob.code.start;
                if len > *left {
                    self.left_out += 1;
                    return; // A later stack brings it again.
                }
                *left -= len;
                let kind = self.kind(blob.name);
                let rows = self.rows(kind, &blob);
                let blob = Some(blob);
                (start, Block { end, blob, rows })
            }
            // It is free, or about to be used: known as that for a while.
            _ => {
                let segment = 1 << heap.log2;
                let start = heap.start + (addr - heap.start) / segment * segment;
                let block = Block {
                    end: start + segment,
                    blob: None,
                    rows: Rows {
                        rows: vec![(start, TableRule::Short(Rule::FRAME_POINTER))],
                        wide: Vec::new(),
                    },
                };
                (start, block)
            }
        };
        let covered = self.blocks.range(start..block.end);
        let covered: Vec<_> = covered.map(|(&start, _)| start).collect();
        let around = self.blocks.range(..start).next_back();
        let around = around.filter(|(_, before)| start < before.end);
        let around = around.map(|(&start, _)| start);
        covered
            .into_iter()
            .chain(around)
            .for_each(|old| self.forget(old));
        self.row_count += block.rows.rows.len();
        self.note_changed(start, block.end);
        self.blocks.insert(start, block);
    }

    fn kind(&mut self, name: u64) -> Kind {
        let memory = &self.memory;
        let read = || vm_structs::read_name(memory, name).unwrap_or_default();
        *self
            .kinds
            .entry(name)
            .or_insert_with(|| Kind::of_name(&read()))
    }

    fn forget(&mut self, start: u64) {
        if let Some(block) = self.blocks.remove(&start) {
            self.row_count -= block.rows.rows.len();
            self.note_changed(start, block.end);
        }
    }

    fn note_changed(&mut self, start: u64, end: u64) {
        let chunks = chunk_of(start)..end;
        self.changed.extend(chunks.step_by(CHUNK_BYTES as usize));
    }

    /// The rules for the code of a blob.
    fn rows(&self, kind: Kind, blob: &Blob) -> Rows {
        let Blob { code, .. } = blob;
        let mut wide = WideRules::default();
        let interpreted = wide.rule(INTERPRETED).unwrap_or(TableRule::NONE);
        let mut rows = vec![(code.start, TableRule::Short(Rule::FRAME_POINTER))];
        let len = (code.end - code.start).min(MAX_CODE_BYTES);
        if kind == Kind::Interpreter {
            rows = vec![(code.start, interpreted)];
        } else if let Some(bytes) = self.read_code(code.start, len) {
            let arch = Arch::NATIVE;
            let sweep = match i64::try_from(blob.frame_words) {
                Ok(words @ 1..=MAX_FRAME_WORDS) => {
                    let entries = [code.start, blob.osr_entry];
                    Sweep::of_function(arch, &bytes, code.start, &entries, words * 8)
                }
                _ => Sweep::of_stubs(arch, &bytes, code.start),
            };
            // Where the stack pointer is lost, the caller's frame is.
            let otherwise = match kind {
                Kind::Adapter => interpreted,
                _ => TableRule::Short(Rule::FRAME_POINTER),
            };
            rows.clear();
            sweep.run(&mut wide, |addr, rule| {
                let rule = if rule == TableRule::NONE {
                    otherwise
                } else {
                    rule
                };
                if rows.last().is_none_or(|last| last.1 != rule) {
                    rows.push((addr, rule));
                }
            });
        }
        rows.push((code.end, TableRule::NONE));
        Rows {
            rows,
            wide: wide.list,
        }
    }

    fn read_code(&self, start: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        (self.memory.read_bytes(start, &mut bytes) == bytes.len()).then_some(bytes)
    }

    /// The table for a stretch; `None` when nothing is known there, or it is too long.
    fn table(&self, chunk: u64) -> Option<Table> {
        let mut wide = WideRules::default();
        let mut rows: Vec<(u64, TableRule)> = Vec::new();
        let unseen = TableRule::Short(Rule::UNSEEN);
        let end = chunk.checked_add(CHUNK_BYTES)?;
        let mut push = |addr: u64, rule| {
            let addr = addr.max(chunk);
            if addr < end {
                rows.truncate(rows.partition_point(|row: &(u64, TableRule)| row.0 < addr));
                rows.push((addr, rule));
            }
        };
        push(chunk, unseen);
        let mut is_known = false;
        for (start, block) in self.blocks_in(chunk) {
            is_known = true;
            push(start, TableRule::NONE);
            for &(addr, rule) in &block.rows.rows {
                let rule = match rule {
                    TableRule::Wide(at) => wide.rule(block.rows.wide[at as usize])?,
                    rule => rule,
                };
                push(addr, rule);
            }
            push(block.end, unseen);
        }
        if !is_known {
            return None;
        }
        let rows = Rows {
            rows,
            wide: wide.list,
        };
        let table = table::build(&rows, chunk..end)?;
        (table.words.len() <= MAX_TABLE_WORDS).then_some(table)
    }
}

/// Words of a frame that is believed: 1 MiB.
const MAX_FRAME_WORDS: i64 = 128 << 10;

/// The start of the stretch that an address lies in.
#[must_use]
pub fn chunk_of(addr: u64) -> u64 {
    addr & !(CHUNK_BYTES - 1)
}
