//! The user half of unwinding: what a file says about its stack frames becomes tables that the
//! kernel side can search.
//!
//! In: ELF files, which target processes control. Out: [`Rows`], one table a file. It writes no map:
//! `capture` does.
//!
//! To add a source of tables: one file with a function from a file to [`Rows`], and a line in
//! `sources`.

pub mod go;

use hotspan_abi::unwind::{Rule, WideRule};

/// The rules of one binary, by ELF address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Rows by ascending address, no two neighbours with the same rule. Each holds from its address
    /// up to the next one's; the last is [`TableRule::NONE`].
    pub rows: Vec<(u64, TableRule)>,
    /// Wide rules that rows refer to, none twice.
    pub wide: Vec<WideRule>,
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
