//! Code without unwind information: what can be told from its bytes.
//!
//! In: stretches of text that no section describes. Out: steps for them. Code that was compiled with
//! frame pointers follows them. Of other code, as that of musl's C library, the instructions tell
//! where its frames are ([`flow`]); the process's start, linkage tables and a few functions that C
//! libraries write in assembly are known by their bytes.

pub(super) mod flow;

use std::ops::Range;

use hotspan_abi::unwind::Rule;
use object::ReadRef;

use super::{
    TableRule,
    arch::Facts,
    image::Image,
    steps::{Steps, WideRules},
};
use flow::Sweep;

/// How much of a long stretch is looked at: enough to find out whether it keeps frame pointers.
const SAMPLE_BYTES: u64 = 64 << 10;
/// Longer stretches are not gone through: the C library is not there.
const MAX_SWEPT_BYTES: u64 = 1 << 20;
/// How much of a file's code is read.
const MAX_READ_BYTES: u64 = 32 << 20;

/// Bytes of a table of jumps.
const MAX_TABLE_BYTES: u64 = 8 << 10;

/// Steps for stretches of text, which ascend.
pub(super) fn steps<'a, R: ReadRef<'a>>(
    image: &Image<'a, R>,
    gaps: &[Range<u64>],
    wide: &mut WideRules,
) -> Steps {
    let functions = if gaps.is_empty() {
        Vec::new()
    } else {
        image.functions()
    };
    let (mut usual, mut known) = (Steps::default(), Steps::default());
    let mut left = MAX_READ_BYTES;
    for gap in gaps {
        let len = gap.end - gap.start;
        let is_swept = len <= MAX_SWEPT_BYTES;
        let wanted = if is_swept { len } else { SAMPLE_BYTES };
        let mut code = &[][..];
        if wanted <= left {
            left -= wanted;
            code = image.bytes_at(gap.start, wanted).unwrap_or_default();
        }
        let facts = image.arch().facts();
        let sample = &code[..code.len().min(SAMPLE_BYTES as usize)];
        let data = |addr| image.bytes_at(addr, MAX_TABLE_BYTES).unwrap_or_default();
        let sweep = Sweep::new(image.arch(), code, gap.start, &functions, data);
        if (facts.keeps_frame_pointer)(sample) {
            let follow = TableRule::Short(Rule::FRAME_POINTER);
            usual.push(gap.start, Some(follow));
        } else if is_swept && sweep.is_code {
            sweep.run(wide, |addr, rule| usual.push(addr, Some(rule)));
        } else {
            usual.push(gap.start, Some(TableRule::NONE));
        }
        usual.push(gap.end, None);
        for (range, rule) in known_code(facts, code, gap, image.entry(), &sweep) {
            known.push(range.start, Some(TableRule::Short(rule)));
            known.push(range.end, None);
        }
    }
    known.or(usual)
}

/// What is known by its bytes in a stretch, or by its place: parts of it and their rules, ascending
/// and disjoint.
fn known_code(
    facts: &Facts,
    code: &[u8],
    gap: &Range<u64>,
    entry: u64,
    sweep: &Sweep<'_>,
) -> Vec<(Range<u64>, Rule)> {
    let mut parts = landmarks(facts, code, gap.start);
    parts.extend((facts.linkage_table)(code, gap.start));
    if gap.contains(&entry) {
        parts.push((entry..sweep.end_of_start(entry), Rule::ROOT));
    }
    parts.sort_by_key(|(range, _)| range.start);
    let mut floor = gap.start;
    parts.retain_mut(|(range, _)| {
        range.start = range.start.max(floor);
        range.end = range.end.min(gap.end);
        floor = range.end.max(floor);
        !range.is_empty()
    });
    parts
}

/// The functions that are known by their bytes; `start` is the code's address.
fn landmarks(facts: &Facts, code: &[u8], start: u64) -> Vec<(Range<u64>, Rule)> {
    let mut parts = Vec::new();
    for landmark in facts.landmarks {
        let mut windows = code.windows(landmark.code.len());
        let Some(position) = windows.position(|bytes| bytes == landmark.code) else {
            continue;
        };
        let addr = |offset: i64| (start + position as u64).saturating_add_signed(offset);
        let ends = landmark.rules.iter().skip(1).map(|rule| rule.0);
        let ends = ends.chain([landmark.code.len() as i64]);
        let rules = landmark.rules.iter().zip(ends);
        parts.extend(rules.map(|(&(from, rule), to)| (addr(from)..addr(to), rule)));
    }
    parts
}

#[cfg(test)]
mod tests;
