//! Code without unwind information: what can be told from its bytes.
//!
//! In: stretches of text that no section describes. Out: steps for them. It does not follow the
//! code: it knows the process's start, a few functions that C libraries write in assembly, and
//! whether a stretch was compiled with frame pointers.

use std::ops::Range;

use hotspan_abi::unwind::Rule;
use object::ReadRef;

use super::{TableRule, arch, image::Image, steps::Steps};

/// How much of a long stretch is looked at: enough to find out whether it keeps frame pointers.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Longer stretches are not searched for known functions: the C library is not there.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;
/// How much of a file's code is read.
const MAX_READ_BYTES: u64 = 32 << 20;

/// Steps for stretches of text, which ascend.
pub(super) fn steps<'a, R: ReadRef<'a>>(image: &Image<'a, R>, gaps: &[Range<u64>]) -> Steps {
    let mut steps = Steps::default();
    let mut left = MAX_READ_BYTES;
    for gap in gaps {
        let len = gap.end - gap.start;
        let wanted = if len <= MAX_SEARCHED_BYTES {
            len
        } else {
            SAMPLE_BYTES
        };
        let mut code = &[][..];
        if wanted <= left {
            left -= wanted;
            code = image.bytes_at(gap.start, wanted).unwrap_or_default();
        }
        let sample = &code[..code.len().min(SAMPLE_BYTES as usize)];
        let usual = if arch::keeps_frame_pointer(sample) {
            Rule::FRAME_POINTER
        } else {
            Rule::NONE
        };
        let mut marks = vec![(gap.start, usual)];
        mark_landmarks(code, gap.start, usual, &mut marks);
        mark_linkage_table(code, gap.start, usual, &mut marks);
        if gap.contains(&image.entry()) {
            marks.push((image.entry(), Rule::ROOT));
            marks.push((image.entry().saturating_add(arch::START_BYTES), usual));
        }
        marks.sort_by_key(|mark| mark.0);
        for (addr, rule) in marks {
            if addr < gap.end {
                steps.push(addr, Some(TableRule::Short(rule)));
            }
        }
        steps.push(gap.end, None);
    }
    steps
}

/// Marks the functions that are known by their bytes; `start` is the code's address.
fn mark_landmarks(code: &[u8], start: u64, usual: Rule, marks: &mut Vec<(u64, Rule)>) {
    for landmark in arch::LANDMARKS {
        let found = code
            .windows(landmark.code.len())
            .position(|bytes| bytes == landmark.code);
        let Some(position) = found else {
            continue;
        };
        let addr = start + position as u64;
        for &(offset, rule) in landmark.rules {
            marks.push((addr.saturating_add_signed(offset).max(start), rule));
        }
        marks.push((addr + landmark.code.len() as u64, usual));
    }
}

/// Marks a procedure linkage table: some linkers say nothing of it.
fn mark_linkage_table(code: &[u8], start: u64, usual: Rule, marks: &mut Vec<(u64, Rule)>) {
    let entry_bytes = arch::PLT_ENTRY_BYTES as usize;
    let aligned = start.next_multiple_of(arch::PLT_ENTRY_BYTES) - start;
    let entries = code.get(aligned as usize..).unwrap_or_default();
    let mut entries = entries
        .chunks_exact(entry_bytes)
        .map(arch::is_plt_entry)
        .skip(1);
    let Some(before) = entries.position(|is_entry| is_entry) else {
        return;
    };
    let count = 1 + entries.take_while(|is_entry| *is_entry).count();
    // The first entry is another: it pushes first, above what the others pushed.
    let table = start + aligned + (before * entry_bytes) as u64;
    for &(offset, rule) in arch::PLT_HEAD {
        marks.push((table + offset, rule));
    }
    marks.push((table + arch::PLT_ENTRY_BYTES, Rule::PLT));
    marks.push((table + ((1 + count) * entry_bytes) as u64, usual));
}
