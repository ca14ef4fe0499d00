//! Rows for Go code, from the table of stack depths that the runtime itself unwinds with
//! ([`crate::process::pclntab`]). It is there in stripped binaries too, and exact at every address:
//! the caller of a function without a frame is not lost, as it is when frame pointers are followed.
//!
//! What this does not do: code of other languages in the same binary. It has `.eh_frame`;
//! [`merge`] puts the two together.

mod amd64;

use std::ops::Range;

use object::{
    LittleEndian, ReadRef,
    elf::{EM_X86_64, FileHeader64},
    read::elf::FileHeader,
};
use rustc_hash::FxHashMap;

use super::{Rows, TableRule};
use crate::process::pclntab;
use hotspan_abi::unwind::{Rule, WideRule};

/// Rows end here, and the rest of the binary has none: far more than the largest binaries need.
const MAX_ROWS: usize = 8 << 20;
/// Functions are aligned, and what lies between them is never executed. Rules go on over gaps up to
/// this, which saves a row a function.
const MAX_PADDING_BYTES: u64 = 64;

/// The rows of the Go code in an ELF file, by ELF address; `None` when it holds none, or is for
/// another processor.
///
/// On arm64 a frame looks otherwise (the return address lies at its lower end, and the frame
/// pointer below the stack pointer), so that takes rules of its own beside those of `amd64`.
#[must_use]
pub fn rows<'a, R: ReadRef<'a> + 'a>(file: R) -> Option<Rows> {
    let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
    if header.e_machine(LittleEndian) != EM_X86_64 {
        return None;
    }
    let table = pclntab::find(file)?;
    let mut rows = Builder::default();
    for function in table.functions() {
        if rows.rows.len() > MAX_ROWS {
            break;
        }
        amd64::add(&table, &function, &mut rows);
    }
    Some(rows.finish())
}

/// One table of two: Go's rules, and where Go has none, the others.
#[must_use]
pub fn merge(go: &Rows, other: &Rows) -> Rows {
    let mut builder = Builder::default();
    let (mut go_rules, mut other_rules) = (Cursor::new(go), Cursor::new(other));
    while let Some(addr) = go_rules.next_addr(&other_rules) {
        go_rules.advance_to(addr);
        other_rules.advance_to(addr);
        let rule = match go_rules.rule() {
            AnyRule::Short(Rule::NONE) => other_rules.rule(),
            rule => rule,
        };
        builder.push(addr, rule);
    }
    builder.into_rows()
}

/// Goes through rows by address.
struct Cursor<'a> {
    rows: &'a Rows,
    next: usize,
}

impl<'a> Cursor<'a> {
    fn new(rows: &'a Rows) -> Self {
        Self { rows, next: 0 }
    }

    /// Where either has its next row.
    fn next_addr(&self, other: &Self) -> Option<u64> {
        let addr = |cursor: &Self| cursor.rows.rows.get(cursor.next).map(|(addr, _)| *addr);
        addr(self).into_iter().chain(addr(other)).min()
    }

    fn advance_to(&mut self, addr: u64) {
        while self
            .rows
            .rows
            .get(self.next)
            .is_some_and(|(at, _)| *at <= addr)
        {
            self.next += 1;
        }
    }

    /// The rule of the last row that was passed.
    fn rule(&self) -> AnyRule {
        let last = self
            .next
            .checked_sub(1)
            .and_then(|last| self.rows.rows.get(last));
        match last {
            Some((_, TableRule::Short(rule))) => AnyRule::Short(*rule),
            Some((_, TableRule::Wide(at))) => self
                .rows
                .wide
                .get(*at as usize)
                .map_or(AnyRule::Short(Rule::NONE), |wide| AnyRule::Wide(*wide)),
            None => AnyRule::Short(Rule::NONE),
        }
    }
}

/// A rule that is in no table yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnyRule {
    Short(Rule),
    Wide(WideRule),
}

impl From<Rule> for AnyRule {
    fn from(rule: Rule) -> Self {
        Self::Short(rule)
    }
}

/// Collects rows by ascending address.
#[derive(Default)]
struct Builder {
    rows: Vec<(u64, TableRule)>,
    wide: Vec<WideRule>,
    wide_at: FxHashMap<WideRule, u32>,
    /// Where the last rule ends.
    end: u64,
}

impl Builder {
    /// A rule for addresses behind all that were added, up to their last byte.
    fn add(&mut self, range: Range<u64>, rule: AnyRule) {
        if range.start >= range.end {
            return;
        }
        if !self.rows.is_empty() && range.start.saturating_sub(self.end) > MAX_PADDING_BYTES {
            self.push(self.end, Rule::NONE.into());
        }
        self.push(range.start, rule);
        self.end = range.end;
    }

    /// A rule from an address on. One that begins where the last one does takes its place.
    fn push(&mut self, addr: u64, rule: AnyRule) {
        let rule = match rule {
            AnyRule::Short(rule) => TableRule::Short(rule),
            AnyRule::Wide(rule) => self.wide(rule),
        };
        while self.rows.last().is_some_and(|(last, _)| *last >= addr) {
            self.rows.pop();
        }
        if self.rows.last().is_none_or(|(_, last)| *last != rule) {
            self.rows.push((addr, rule));
        }
    }

    fn wide(&mut self, rule: WideRule) -> TableRule {
        let wide = &mut self.wide;
        TableRule::Wide(*self.wide_at.entry(rule).or_insert_with(|| {
            wide.push(rule);
            wide.len() as u32 - 1
        }))
    }

    /// The rows, and none behind the last that was added.
    fn finish(mut self) -> Rows {
        if !self.rows.is_empty() {
            self.push(self.end, Rule::NONE.into());
        }
        self.into_rows()
    }

    fn into_rows(self) -> Rows {
        Rows {
            rows: self.rows,
            wide: self.wide,
        }
    }
}
