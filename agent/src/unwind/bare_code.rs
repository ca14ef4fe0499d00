//! Code without unwind information: what can be told from its bytes.
//!
//! In: stretches of text that no section describes. Out: steps for them. It does not follow the
//! code: it knows the process's start, a few functions that C libraries write in assembly, and
//! whether a stretch was compiled with frame pointers.

use std::ops::Range;

use hotspan_abi::unwind::Rule;
use object::ReadRef;

use super::{TableRule, arch, image::Image, steps::Steps};

/// How much of a stretch is looked at to find out whether it keeps frame pointers.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Longer stretches are not searched for known functions: the C library is not there.
const MAX_SEARCHED_BYTES: u64 = 1 << 20;
/// How much of a file is searched for known functions.
const MAX_SEARCHED_FILE_BYTES: u64 = 16 << 20;

/// Steps for stretches of text, which ascend.
pub(super) fn steps<'a, R: ReadRef<'a>>(image: &Image<'a, R>, gaps: &[Range<u64>]) -> Steps {
    let mut steps = Steps::default();
    let mut searched = 0;
    for gap in gaps {
        let len = gap.end - gap.start;
        let is_searched = len <= MAX_SEARCHED_BYTES && searched + len <= MAX_SEARCHED_FILE_BYTES;
        let wanted = if is_searched { len } else { SAMPLE_BYTES };
        let code = image.bytes_at(gap.start, wanted).unwrap_or_default();
        let sample = &code[..code.len().min(SAMPLE_BYTES as usize)];
        let usual = if arch::keeps_frame_pointer(sample) {
            Rule::FRAME_POINTER
        } else {
            Rule::NONE
        };
        let mut marks = vec![(gap.start, usual)];
        if is_searched {
            searched += len;
            find_landmarks(code, gap, usual, &mut marks);
        }
        if gap.contains(&image.entry()) {
            marks.push((image.entry(), Rule::ROOT));
            marks.push((image.entry() + arch::START_BYTES, usual));
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

fn find_landmarks(code: &[u8], gap: &Range<u64>, usual: Rule, marks: &mut Vec<(u64, Rule)>) {
    for landmark in arch::LANDMARKS {
        let found = code
            .windows(landmark.code.len())
            .position(|bytes| bytes == landmark.code);
        let Some(position) = found else {
            continue;
        };
        let start = gap.start + position as u64;
        for &(offset, rule) in landmark.rules {
            marks.push((start.saturating_add_signed(offset).max(gap.start), rule));
        }
        marks.push((start + landmark.code.len() as u64, usual));
    }
}
