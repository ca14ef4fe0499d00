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
    hash::Hasher,
    ops::Range,
};

use hotspan_abi::unwind::{BASE_FP, FP_AT_FP, MAX_TABLE_WORDS, RA_AT_FP, Rule, WideRule};
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use super::{
    Arch, Rows, TableRule,
    bare_code::flow::{self, Sweep},
    steps::{Steps, WideRules},
    table::{self, Table},
};
use crate::process::memory::ReadBytes;
use layout::{Blob, Heap, Layout};
pub use vm_structs::Exports;

/// Bytes of code that share a table.
pub const CHUNK_BYTES: u64 = 128 << 10;

/// Blocks that are kept of one process: large servers have some ten thousand.
const MAX_BLOCKS: usize = 64 << 10;
/// Code of a block that is gone through; no method is half as long.
const MAX_CODE_BYTES: u64 = 4 << 20;
/// Code that is gone through at a time.
const MAX_BYTES_AT_ONCE: u64 = 16 << 20;
/// Words of a frame that is believed: 1 MiB.
const MAX_FRAME_WORDS: i64 = 128 << 10;
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
    /// What compiled code jumps to with an exception.
    Handler,
    /// Jumps from calls whose target changes, with data between them.
    Transitions,
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
            b"ExceptionBlob" => Self::Handler,
            b"InlineCacheBuffer" => Self::Transitions,
            _ => Self::Stub,
        }
    }
}

/// A block of a code heap that was looked at.
struct Block {
    /// One past its last address.
    end: u64,
    /// What it holds.
    blob: Blob,
    /// Hash of its code, if its rules depend on that and it does not stay as it is: stubs are added one by one.
    content: Option<u64>,
    /// Those of its code.
    rules: Rules,
}

/// The rules of a piece of code.
struct Rules {
    steps: Steps,
    wide: Vec<WideRule>,
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

    /// Looks at the code at these addresses, whether it is new or what it was; `has_table` tells of which
    /// stretches there are tables.
    pub fn learn(&mut self, addrs: &[u64], has_table: impl Fn(u64) -> bool) {
        let is_outside = |&addr: &u64| self.heap_of(addr).is_none();
        if addrs.iter().any(is_outside) {
            self.heaps = self.layout.heaps(&self.memory);
        }
        let mut left = MAX_BYTES_AT_ONCE;
        let mut looked_at = FxHashSet::default();
        for &addr in addrs {
            let Some(heap) = self.heap_of(addr).copied() else {
                continue;
            };
            if let Some((start, block)) = self.block_at(addr)
                && looked_at.insert(start)
                && self.is_stale(start, block)
            {
                self.forget(start);
            }
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
        let blocks = self.blocks.iter();
        let stale = blocks.filter(|(start, block)| self.is_stale(**start, block));
        let stale: Vec<_> = stale.map(|(&start, _)| start).collect();
        for start in stale {
            self.forget(start);
        }
    }

    /// Whether there are such tables as [`Self::take_tables`] returns.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The tables that changed since the last call, by the start of their stretch; `None` for a stretch
    /// of which nothing is known any more.
    pub fn take_tables(&mut self) -> Vec<(u64, Option<Table>)> {
        let changed = std::mem::take(&mut self.changed);
        let made = changed.into_iter().map(|chunk| (chunk, self.table(chunk)));
        let made: Vec<_> = made.collect();
        let is_lost = |(chunk, table): &&(u64, Option<Table>)| {
            table.is_none() && self.blocks_in(stretch(*chunk)).next().is_some()
        };
        self.left_out += made.iter().filter(is_lost).count() as u64;
        made
    }

    fn heap_of(&self, addr: u64) -> Option<&Heap> {
        let holds = |heap: &&Heap| heap.start <= addr && addr < heap.end;
        self.heaps.iter().find(holds)
    }

    fn block_at(&self, addr: u64) -> Option<(u64, &Block)> {
        let (&start, block) = self.blocks.range(..=addr).next_back()?;
        (addr < block.end).then_some((start, block))
    }

    /// Whether a block is another one than it was, or has other code that its rules depend on.
    fn is_stale(&self, start: u64, block: &Block) -> bool {
        let heap = self.heap_of(start);
        let now = heap.and_then(|heap| self.layout.block(heap, start, &self.memory));
        let is_same = now.is_some_and(|(end, blob)| end == block.end && blob == block.blob);
        let content = || self.read_code(&block.blob.code).as_deref().map(hash);
        !is_same
            || block
                .content
                .is_some_and(|before| content() != Some(before))
    }

    /// The blocks that lie in a range, at least in part.
    fn blocks_in(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Block)> {
        let before = self.blocks.range(..range.start).next_back();
        let all = before.into_iter().chain(self.blocks.range(range.clone()));
        all.map(|(&start, block)| (start, block))
            .filter(move |(_, block)| range.start < block.end)
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

    /// Takes in the block that an address is in, if it is in use.
    fn look_at(&mut self, heap: &Heap, addr: u64, left: &mut u64) {
        let block = |start| self.layout.block(heap, start, &self.memory);
        let start = self.find_start(heap, addr);
        let Some((start, (end, blob))) = start.and_then(|start| Some((start, block(start)?)))
        else {
            return;
        };
        let len = blob.code.end - blob.code.start;
        let is_full = self.blocks.len() >= MAX_BLOCKS || self.row_count >= MAX_ROWS;
        if is_full || len > *left {
            self.left_out += 1;
            return;
        }
        *left -= len;
        let kind = self.kind(blob.name);
        if kind == Kind::Method && !blob.is_installed {
            return; // Its instructions are still being written.
        }
        let code = self.read_code(&blob.code);
        let content = match kind {
            Kind::Method | Kind::Interpreter | Kind::Transitions => None,
            Kind::Adapter | Kind::Handler | Kind::Stub => code.as_deref().map(hash),
        };
        let covered: Vec<_> = self.blocks_in(start..end).map(|(old, _)| old).collect();
        covered.into_iter().for_each(|old| self.forget(old));
        let rules = self.rules(kind, &blob, code);
        self.row_count += rules.steps.len();
        self.note_changed(start, end);
        self.blocks.insert(
            start,
            Block {
                end,
                blob,
                content,
                rules,
            },
        );
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
            self.row_count -= block.rules.steps.len();
            self.note_changed(start, block.end);
        }
    }

    fn note_changed(&mut self, start: u64, end: u64) {
        let chunks = chunk_of(start)..end;
        self.changed.extend(chunks.step_by(CHUNK_BYTES as usize));
    }

    /// Instructions, as many as are gone through.
    fn read_code(&self, code: &Range<u64>) -> Option<Vec<u8>> {
        let len = (code.end - code.start).min(MAX_CODE_BYTES);
        let mut bytes = vec![0; len as usize];
        (self.memory.read_bytes(code.start, &mut bytes) == bytes.len()).then_some(bytes)
    }

    /// The rules for the code of a blob, up to its end; nothing is known of code that cannot be read but what its
    /// kind says.
    fn rules(&self, kind: Kind, blob: &Blob, code: Option<Vec<u8>>) -> Rules {
        let Range { start, end } = blob.code;
        let follow = TableRule::Short(Rule::FRAME_POINTER);
        let mut wide = WideRules::default();
        let mut steps = Steps::default();
        let interpreted = wide.rule(INTERPRETED).unwrap_or(TableRule::NONE);
        match code {
            _ if kind == Kind::Interpreter => steps.push(start, Some(interpreted)),
            _ if kind == Kind::Transitions => {
                steps.push(start, Some(flow::entry_rule(Arch::NATIVE, &mut wide)));
            }
            None => steps.push(start, Some(follow)),
            Some(mut code) => {
                // Where the stack pointer is lost, the caller's frame is.
                let otherwise = match kind {
                    Kind::Adapter => interpreted,
                    _ => follow,
                };
                self.sweep(kind, blob, &mut code)
                    .run(&mut wide, |addr, rule| {
                        let is_lost = rule == TableRule::NONE;
                        steps.push(addr, Some(if is_lost { otherwise } else { rule }));
                    });
            }
        }
        steps.push(end, None);
        Rules {
            steps,
            wide: wide.list,
        }
    }

    /// Goes through the code of a blob.
    fn sweep<'a>(&self, kind: Kind, blob: &Blob, code: &'a mut [u8]) -> Sweep<'a> {
        let (arch, start) = (Arch::NATIVE, blob.code.start);
        if kind == Kind::Method
            && let Some(into) = blob.entry.checked_sub(start)
            && let Some(entry) = code.get_mut(into as usize..)
        {
            let frame_bytes = blob.frame_words.wrapping_mul(8) as i64;
            (arch.facts().restore_entry)(entry, frame_bytes);
        }
        let sweep = match i64::try_from(blob.frame_words) {
            Ok(words @ 1..=MAX_FRAME_WORDS) => {
                let entries = [start, blob.osr_entry];
                let entries = &entries[..1 + usize::from(kind == Kind::Method)];
                Sweep::of_function(arch, code, start, entries, words * 8)
            }
            _ => Sweep::of_stubs(arch, code, start),
        };
        let sweep = sweep.with_base(self.layout.continuation_bytes);
        match kind {
            Kind::Handler => sweep.entered_by_jumps(),
            _ => sweep,
        }
    }

    /// The table for a stretch; `None` when nothing is known there, or it is too long.
    fn table(&self, chunk: u64) -> Option<Table> {
        let mut wide = WideRules::default();
        let mut steps = Steps::default();
        let unseen = Some(TableRule::Short(Rule::UNSEEN));
        let end = stretch(chunk).end;
        let mut push = |addr: u64, rule| {
            if addr < end {
                steps.push(addr.max(chunk), rule);
            }
        };
        push(chunk, unseen);
        let mut is_known = false;
        for (start, block) in self.blocks_in(chunk..end) {
            is_known = true;
            push(start, None);
            for (addr, rule) in block.rules.steps.iter() {
                let rule = match rule {
                    Some(TableRule::Wide(at)) => Some(wide.rule(block.rules.wide[at as usize])?),
                    rule => rule,
                };
                push(addr, rule);
            }
            push(block.end, unseen);
        }
        if !is_known {
            return None;
        }
        let rows = steps
            .iter()
            .map(|(addr, rule)| (addr, rule.unwrap_or(TableRule::NONE)));
        let rows = Rows {
            rows: rows.collect(),
            wide: wide.list,
        };
        let table = table::build(&rows, chunk..end)?;
        (table.words.len() <= MAX_TABLE_WORDS).then_some(table)
    }
}

fn hash(code: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(code);
    hasher.finish()
}

/// A stretch of code that shares a table.
fn stretch(chunk: u64) -> Range<u64> {
    chunk..chunk.saturating_add(CHUNK_BYTES)
}

/// The start of the stretch that an address lies in.
#[must_use]
pub fn chunk_of(addr: u64) -> u64 {
    addr & !(CHUNK_BYTES - 1)
}

#[cfg(test)]
mod tests;
