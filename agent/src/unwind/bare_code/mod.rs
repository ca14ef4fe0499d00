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
use rustc_hash::FxHashMap;

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

/// Pages of data that are read for tables of jumps, each with what a table may be longer than that.
const MAX_DATA_PAGES: usize = 1024;
/// Bytes of such a page.
const DATA_PAGE_BYTES: u64 = 4 << 10;
/// Bytes of a table of jumps at most.
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
    let mut data = Data::default();
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
        let first = functions.partition_point(|addr| *addr < gap.start);
        let behind = functions.partition_point(|addr| *addr < gap.end);
        let functions = &functions[first..behind.max(first)];
        let sweep = Sweep::new(image.arch(), code, gap.start, functions, |addr| {
            data.at(image, addr)
        });
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

/// The data that code refers to. Most of it is no table of jumps, and much is referred to often: so each
/// page is read once, and only so many.
#[derive(Default)]
struct Data<'a>(FxHashMap<u64, &'a [u8]>);

impl<'a> Data<'a> {
    /// What lies at an address, as far as a table may reach.
    fn at<R: ReadRef<'a>>(&mut self, image: &Image<'a, R>, addr: u64) -> &'a [u8] {
        let page = addr / DATA_PAGE_BYTES;
        let into = (addr % DATA_PAGE_BYTES) as usize;
        if !self.0.contains_key(&page) && self.0.len() >= MAX_DATA_PAGES {
            return &[];
        }
        let bytes = self.0.entry(page).or_insert_with(|| {
            let max = DATA_PAGE_BYTES + MAX_TABLE_BYTES;
            image
                .bytes_at(page * DATA_PAGE_BYTES, max)
                .unwrap_or_default()
        });
        bytes.get(into..).unwrap_or_default()
    }
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
