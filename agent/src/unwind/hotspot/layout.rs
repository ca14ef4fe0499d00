//! Where the JVM has what unwinding needs of it: the places of a dozen fields, which differ from one JDK
//! to the next.

use std::ops::Range;

use super::vm_structs::{Exports, Field, Structures};
use crate::process::memory::ReadBytes;

/// Code heaps: since JDK 9 there are one to three.
const MAX_HEAPS: u64 = 8;
/// Bytes of the header of a block and of what lies in it: there are some three hundred.
const MAX_HEADER_BYTES: usize = 1024;

/// Bytes of the frame that a virtual thread's stack stands on, from JDK 19 to 25: most of them do not say.
const CONTINUATION_BYTES: i64 = 80;
/// The same, if one says.
const MAX_CONTINUATION_BYTES: i64 = 4096;

/// `nmethod::not_installed`, which is -1 in a byte.
const NOT_INSTALLED: u64 = 0xff;

/// The types that hold those fields.
const TYPES: [&str; 11] = [
    "CodeCache",
    "CodeHeap",
    "VirtualSpace",
    "GrowableArrayBase",
    "GenericGrowableArray",
    "GrowableArray<int>",
    "HeapBlock",
    "HeapBlock::Header",
    "CodeBlob",
    "nmethod",
    "ContinuationEntry",
];

/// Those places.
#[derive(Clone, Debug)]
pub struct Layout {
    heaps: Heaps,
    /// Of a heap.
    heap_memory: u64,
    heap_segmap: u64,
    heap_log2: u64,
    /// Of a part of memory that is reserved, of which more and more is used.
    space_low: u64,
    space_end: u64,
    block: BlockLayout,
    /// Bytes of the frame that a virtual thread's stack stands on.
    pub continuation_bytes: i64,
}

/// Where the heaps are told.
#[derive(Clone, Debug)]
enum Heaps {
    /// The address of the pointer to an array; where that has its length and its elements.
    Several { at: u64, len: u64, data: u64 },
    /// The address of the pointer to the only one.
    One(u64),
}

/// An address in a blob.
#[derive(Clone, Copy, Debug)]
enum Place {
    Pointer(Field),
    /// So far from the start of the blob, or for an entry of its code.
    Offset(Field),
}

/// Of a block and the blob in it.
#[derive(Clone, Debug)]
struct BlockLayout {
    header_bytes: usize,
    length: Field,
    used: Field,
    name: Field,
    frame_size: Field,
    code_start: Place,
    code_end: Place,
    entry: Place,
    osr_entry: Field,
    compile_id: Field,
    state: Field,
}

/// A heap of code: segments of a power of two of bytes, and a byte for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heap {
    /// First address.
    pub start: u64,
    /// One past the last address that it may grow to.
    pub end: u64,
    /// Where the bytes of the segments begin.
    pub segmap: u64,
    /// Bytes of a segment, as a power of two.
    pub log2: u32,
}

/// What a block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Address of its name, which tells what kind of code it is.
    pub name: u64,
    /// Its instructions.
    pub code: Range<u64>,
    /// Words of a frame of this code, with return address; 0 when there is no such size.
    pub frame_words: u64,
    /// Where a compiled method is called.
    pub entry: u64,
    /// Where code is entered that replaces an interpreted loop.
    pub osr_entry: u64,
    /// A number that no two compiled methods share.
    pub compile_id: u64,
    /// Whether a compiled method is complete.
    pub is_installed: bool,
}

impl Layout {
    /// What a JVM with these variables says; `None` when it lacks anything.
    pub fn read(exports: &Exports, bias: u64, memory: &impl ReadBytes) -> Option<Self> {
        let all = Structures::read(exports, bias, &TYPES, memory)?;
        let offset = |owner, name| Some(all.field(owner, name)?.offset as u64);
        let heaps = match all.static_field("CodeCache", "_heaps") {
            Some(at) => Heaps::Several {
                at,
                len: offset("GrowableArrayBase", "_len")
                    .or_else(|| offset("GenericGrowableArray", "_len"))?,
                data: offset("GrowableArray<int>", "_data")?,
            },
            None => Heaps::One(all.static_field("CodeCache", "_heap")?),
        };
        let header = offset("HeapBlock", "_header")? as usize;
        let in_header = |name| {
            let field = all.field("HeapBlock::Header", name)?;
            Some(Field {
                offset: header.checked_add(field.offset)?,
                ..field
            })
        };
        let blob = |name| all.field("CodeBlob", name);
        let place = |owner, pointer, offset| {
            let pointer = all.field(owner, pointer).map(Place::Pointer);
            pointer.or_else(|| all.field(owner, offset).map(Place::Offset))
        };
        let block = BlockLayout {
            header_bytes: all.size("HeapBlock")?.try_into().ok()?,
            length: in_header("_length")?,
            used: in_header("_used")?,
            name: blob("_name")?,
            frame_size: blob("_frame_size")?,
            code_start: place("CodeBlob", "_code_begin", "_code_offset")?,
            code_end: place("CodeBlob", "_code_end", "_data_offset")?,
            entry: place("nmethod", "_verified_entry_point", "_verified_entry_offset")?,
            osr_entry: all.field("nmethod", "_osr_entry_point")?,
            compile_id: all.field("nmethod", "_compile_id")?,
            state: all.field("nmethod", "_state")?,
        };
        (block.len()? <= MAX_HEADER_BYTES).then_some(())?;
        Some(Self {
            heaps,
            heap_memory: offset("CodeHeap", "_memory")?,
            heap_segmap: offset("CodeHeap", "_segmap")?,
            heap_log2: offset("CodeHeap", "_log2_segment_size")?,
            space_low: offset("VirtualSpace", "_low")?,
            space_end: offset("VirtualSpace", "_high_boundary")?,
            block,
            continuation_bytes: all
                .size("ContinuationEntry")
                .and_then(frame_of_continuation)
                .unwrap_or(CONTINUATION_BYTES),
        })
    }

    /// The heaps there are now: none before the JVM has made them.
    pub fn heaps(&self, memory: &impl ReadBytes) -> Vec<Heap> {
        let pointers = match self.heaps {
            Heaps::One(at) => memory.read_word(at).into_iter().collect(),
            Heaps::Several { at, len, data } => several(at, len, data, memory).unwrap_or_default(),
        };
        let heaps = pointers.into_iter().filter_map(|at| self.heap(at, memory));
        heaps.collect()
    }

    fn heap(&self, at: u64, memory: &impl ReadBytes) -> Option<Heap> {
        let word =
            |offset: [u64; 2]| memory.read_word(at.checked_add(offset[0])?.checked_add(offset[1])?);
        let log2 = memory.read_array(at.checked_add(self.heap_log2)?)?;
        let heap = Heap {
            start: word([self.heap_memory, self.space_low])?,
            end: word([self.heap_memory, self.space_end])?,
            segmap: word([self.heap_segmap, self.space_low])?,
            log2: u32::from_le_bytes(log2),
        };
        (heap.start < heap.end && (4..=20).contains(&heap.log2)).then_some(heap)
    }

    /// The end of the block at an address, and what it holds; `None` when it is not in use.
    pub fn block(&self, heap: &Heap, at: u64, memory: &impl ReadBytes) -> Option<(u64, Blob)> {
        let layout = &self.block;
        let mut bytes = [0; MAX_HEADER_BYTES];
        let wanted = (layout.len()? as u64).min(heap.end.checked_sub(at)?) as usize;
        let read = memory.read_bytes(at, bytes.get_mut(..wanted)?);
        let bytes = &bytes[..read];
        let segments = layout.length.read(bytes)?;
        let len = segments.checked_mul(1 << heap.log2)?;
        if len == 0 || len > heap.end - at || layout.used.read(bytes)? == 0 {
            return None;
        }
        let blob_at = at + layout.header_bytes as u64;
        let blob = layout.blob(bytes.get(layout.header_bytes..)?, blob_at)?;
        let is_inside = blob_at <= blob.code.start && blob.code.end <= at + len;
        is_inside.then_some((at + len, blob))
    }
}

/// Below the frame record there is no more than this structure, which the JVM keeps there (OpenJDK,
/// `src/hotspot/share/runtime/continuationEntry.hpp`).
fn frame_of_continuation(entry_bytes: u64) -> Option<i64> {
    let bytes = entry_bytes.checked_next_multiple_of(16)?.checked_add(16)?;
    i64::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= MAX_CONTINUATION_BYTES)
}

fn several(at: u64, len: u64, data: u64, memory: &impl ReadBytes) -> Option<Vec<u64>> {
    let array = memory.read_word(at)?;
    let count = u32::from_le_bytes(memory.read_array(array.checked_add(len)?)?);
    let data = memory.read_word(array.checked_add(data)?)?;
    let element = |index: u64| memory.read_word(data.checked_add(index * 8)?);
    (0..u64::from(count).min(MAX_HEAPS)).map(element).collect()
}

impl BlockLayout {
    /// Bytes up to the end of the last field.
    fn len(&self) -> Option<usize> {
        let in_place = |place: Place| match place {
            Place::Pointer(field) | Place::Offset(field) => field.end(),
        };
        let ends = [
            self.name.end(),
            self.frame_size.end(),
            in_place(self.code_start),
            in_place(self.code_end),
            in_place(self.entry),
            self.osr_entry.end(),
            self.compile_id.end(),
            self.state.end(),
        ];
        let in_header = self.length.end().max(self.used.end());
        let in_blob = ends.into_iter().max()?.checked_add(self.header_bytes)?;
        Some(in_header.max(in_blob))
    }

    fn blob(&self, bytes: &[u8], at: u64) -> Option<Blob> {
        let place = |place, base: u64| match place {
            Place::Pointer(field) => field.read(bytes),
            Place::Offset(field) => base.checked_add(field.read(bytes)?),
        };
        let start = place(self.code_start, at)?;
        let end = place(self.code_end, at)?;
        Some(Blob {
            name: self.name.read(bytes)?,
            code: start..end.max(start),
            frame_words: self.frame_size.read(bytes)?,
            // Short blobs of other kinds end before these.
            entry: place(self.entry, start).unwrap_or(0),
            osr_entry: self.osr_entry.read(bytes).unwrap_or(0),
            compile_id: self.compile_id.read(bytes).unwrap_or(0),
            is_installed: self
                .state
                .read(bytes)
                .is_some_and(|state| state != NOT_INSTALLED),
        })
    }
}
