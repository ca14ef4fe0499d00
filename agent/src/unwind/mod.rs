//! The user half of unwinding: what a file says about its stack frames becomes tables that the
//! kernel side can search.
//!
//! In: ELF files, which target processes control. Out: [`Rows`], one a file, and from them a
//! [`table::Table`] for each executable segment, and a place for it in the [`Store`]. It writes no map:
//! `capture` does.
//!
//! To add a source of tables: one file with a function from a file to [`Rows`], and its place in
//! [`Subject::make`].

mod arch;
mod bare_code;
mod cache;
mod cfi;
#[cfg(test)]
mod chains;
pub mod debug_file;
pub mod eh_frame;
mod evidence;
pub mod go;
pub mod hotspot;
mod image;
mod make;
pub mod readelf;
pub mod replay;
pub mod show;
mod space;
pub mod stack_copy;
mod steps;
mod store;
pub mod table;
mod wide_rules;

use std::ops::Range;

pub use arch::Arch;
use hotspan_abi::unwind::{Rule, WideRule};

pub use cache::Cache;
pub use make::{Likeness, Made, Proof, Subject};
pub use store::{Owner, Placed, Store, Update};

/// The rules of one binary, by ELF address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows by ascending address, no two neighbours with the same rule. Each holds from its address
    /// up to the next one's; the last is [`TableRule::NONE`].
    pub rows: Vec<(u64, TableRule)>,
    /// Wide rules that rows refer to, none twice.
    pub wide: Vec<WideRule>,
}

impl Rows {
    /// The rule for an address.
    #[must_use]
    pub fn lookup(&self, addr: u64) -> TableRule {
        let index = self.rows.partition_point(|row| row.0 <= addr);
        let row = index.checked_sub(1).map(|index| self.rows[index]);
        row.map_or(TableRule::NONE, |row| row.1)
    }
}

/// A rule in [`Rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableRule {
    /// A rule of 24 bits, of any kind but wide.
    Short(Rule),
    /// Position in [`Rows::wide`].
    Wide(u32),
}

impl TableRule {
    /// No rule is known here.
    pub const NONE: Self = Self::Short(Rule::NONE);
}

/// What a file gave.
#[derive(Clone, Debug)]
pub struct Found {
    /// The processor that the file is for.
    pub arch: Arch,
    /// The rows; none when the file has no text.
    pub rows: Rows,
    /// How complete they are.
    pub report: Report,
}

/// Why a file gives no rows at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no 64-bit ELF file, or its headers are cut off.
    #[error("it is no 64-bit ELF file, or its headers are damaged")]
    NoElf,
    /// It is for a machine that is not known, or no executable or library.
    #[error("it is no executable or library for x86-64 or arm64")]
    Machine,
}

/// Why a file without rows is taken for damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its headers are.
    #[error("{0}")]
    Headers(Refused),
    /// Its unwind information is: this happened most often.
    #[error("its unwind information is damaged: {0}")]
    Content(&'static str),
}

/// Why something in a file has no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The CFA is relative to a register that is not followed.
    CfaRegister,
    /// The CFA is an expression that no rule stands for.
    CfaExpression,
    /// The frame pointer is where no rule reaches.
    FramePointer,
    /// The return address is where no rule reaches.
    ReturnAddress,
    /// A function's entry, or what it is built on, cannot be read.
    BadEntry,
    /// A function's program has an error; its rows before that stay.
    BadProgram,
    /// A function is not in an executable segment: linkers leave some of removed functions.
    OutsideText,
    /// A function overlaps the one behind it, which wins.
    Overlap,
    /// More than the bounds allow.
    TooMany,
}

impl Reason {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 9] = [
        (Self::CfaRegister, "CFA by another register"),
        (Self::CfaExpression, "CFA by another expression"),
        (Self::FramePointer, "frame pointer somewhere else"),
        (Self::ReturnAddress, "return address somewhere else"),
        (Self::BadEntry, "unreadable entry"),
        (Self::BadProgram, "erroneous program"),
        (Self::OutsideText, "function outside of the text"),
        (Self::Overlap, "functions that overlap"),
        (Self::TooMany, "more than the bounds allow"),
    ];
}

/// How complete a file's rows are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// ELF addresses of executable segments, ascending.
    pub text: Vec<Range<u64>>,
    /// Bytes of code in them.
    pub code_bytes: u64,
    /// Bytes of code that no section describes, padding apart.
    pub bare_bytes: u64,
    refused: [u64; Reason::ALL.len()],
}

impl Report {
    /// How often something was refused for a reason: rows for the first four, else functions.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason as usize]
    }

    fn refuse(&mut self, reason: Reason) {
        self.refused[reason as usize] += 1;
    }

    /// What is wrong with a file that has unwind information for none of its code, though there is
    /// some.
    fn fault(&self) -> Option<Fault> {
        const FAULTS: [Reason; 4] = [
            Reason::BadEntry,
            Reason::BadProgram,
            Reason::OutsideText,
            Reason::TooMany,
        ];
        let is_fault = |reason: Reason| FAULTS.contains(&reason) && self.refused(reason) > 0;
        let (_, name) = Reason::ALL
            .into_iter()
            .filter(|&(reason, _)| is_fault(reason))
            .max_by_key(|&(reason, _)| self.refused(reason))?;
        (self.bare_bytes >= self.code_bytes).then_some(Fault::Content(name))
    }
}
