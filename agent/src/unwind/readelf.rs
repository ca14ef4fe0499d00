//! What binutils' readelf says of the same file, and how our rules agree with it.
//!
//! In: the text of `readelf --wide --debug-dump=frames-interp`. Out: its rows. It does not run it.

use std::collections::HashMap;

use hotspan_abi::unwind::Rule;

use super::{TableRule, show::Shown};

/// Arguments that make readelf print this, before the file.
pub const ARGUMENTS: [&str; 2] = ["--wide", "--debug-dump=frames-interp,no-follow-links"];

/// A row as readelf prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// The CFA; `exp` for any expression.
    pub cfa: String,
    /// Where the frame pointer is; `u` where it is unchanged, or nothing is said of it.
    pub fp: String,
    /// Where the return address is; `u` where it is not known, or still in its register.
    pub ra: String,
}

/// How a rule agrees with readelf's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agreement {
    /// In all columns.
    Same,
    /// As far as readelf says: it prints no expressions.
    Expression,
    /// We have no rule: the CFA or the return address is in a register that is not followed.
    OtherRegister,
    /// But for the frame pointer, which was popped. Compilers do not say so.
    Popped,
    /// Not at all.
    Different,
}

impl Agreement {
    /// What to write beside the two.
    #[must_use]
    pub fn mark(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Expression => "= as far as readelf says",
            Self::OtherRegister => "- no rule for this register",
            Self::Popped => "= the frame pointer is popped",
            Self::Different => "! they differ",
        }
    }
}

/// Digits of an address; offsets of sections have half as many.
const ADDRESS_DIGITS: usize = 16;

/// CFA, frame pointer and return address.
type Columns = [String; 3];

/// The rows of every function, in the order of the text. `fp` is the name of the frame pointer.
#[must_use]
pub fn parse(text: &str, fp: &str) -> Vec<Row> {
    let mut parser = Parser::default();
    for line in text.lines() {
        parser.line(line, fp);
    }
    parser.rows
}

#[derive(Default)]
struct Parser<'a> {
    rows: Vec<Row>,
    /// What functions without rows of their own have, by the offset of their CIE.
    cies: HashMap<&'a str, Columns>,
    /// The CIE whose rows come, or none while those of a function do.
    cie: Option<&'a str>,
    names: Vec<&'a str>,
    /// Where the function ends whose rows come.
    end: u64,
}

impl<'a> Parser<'a> {
    fn line(&mut self, line: &'a str, fp: &str) {
        // A register in a column is `r9 (r9)`.
        let words = line
            .split_whitespace()
            .filter(|word| !word.starts_with('('));
        let words: Vec<_> = words.collect();
        if words.contains(&"CIE") {
            self.cie = words.first().copied();
        } else if let Some((_, range)) = line.split_once(" pc=") {
            self.function(line, range);
        } else if words.first() == Some(&"LOC") {
            self.names = words[1..].to_vec();
        } else if words.len() == self.names.len() + 1
            && words[0].len() == ADDRESS_DIGITS
            && let Ok(start) = u64::from_str_radix(words[0], 16)
        {
            let column = |name: &str| {
                let index = self.names.iter().position(|column| *column == name);
                index.map_or("u".to_owned(), |index| words[1 + index].to_owned())
            };
            self.row(start, ["CFA", fp, "ra"].map(column));
        }
    }

    fn function(&mut self, line: &str, range: &str) {
        let addr = |text: &str| u64::from_str_radix(text.trim(), 16).unwrap_or(0);
        let (start, end) = range.split_once("..").unwrap_or((range, range));
        self.end = addr(end);
        self.cie = None;
        let cie = line
            .split("cie=")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let columns = cie.and_then(|cie| self.cies.get(cie)).cloned();
        self.push(addr(start), columns.unwrap_or_default());
    }

    fn row(&mut self, start: u64, columns: Columns) {
        if let Some(cie) = self.cie {
            self.cies.insert(cie, columns);
            return;
        }
        match self.rows.last_mut() {
            Some(last) if last.start == start => {
                [last.cfa, last.fp, last.ra] = columns;
            }
            Some(last) if start < self.end => {
                last.end = start;
                self.push(start, columns);
            }
            _ => {}
        }
    }

    fn push(&mut self, start: u64, [cfa, fp, ra]: Columns) {
        self.rows.push(Row {
            start,
            end: self.end,
            cfa,
            fp,
            ra,
        });
    }
}

/// How a rule agrees with a row.
#[must_use]
pub fn compare(row: &Row, ours: &Shown<'_>) -> Agreement {
    let facts = ours.arch.facts();
    let [sp, ..] = facts.names;
    let shown = ours.to_string();
    let words: Vec<_> = shown.split_whitespace().collect();
    let is_link = |ra: &str| {
        // It writes a number, and nothing for a return address that never leaves its register.
        let number = format!("r{}", facts.link.0);
        ra == number || (facts.link == facts.return_address && ra == "u")
    };
    let same = match (row.ra.as_str(), words.as_slice()) {
        ("u", ["root"]) => true,
        (ra, [cfa, fp, our_ra]) => {
            let is_same_ra = *our_ra == ra || (*our_ra == facts.link_name && is_link(ra));
            *cfa == row.cfa && *fp == row.fp && is_same_ra
        }
        _ => false,
    };
    if same {
        return Agreement::Same;
    }
    if row.cfa == "exp" || row.fp == "exp" {
        return Agreement::Expression;
    }
    let is_none = ours.rule == TableRule::Short(Rule::NONE);
    let base = row.cfa.split(['+', '-']).next().unwrap_or_default();
    let is_followed = facts.names.contains(&base) && row.ra.starts_with(['c', 'u']);
    if is_none && !is_followed {
        return Agreement::OtherRegister;
    }
    let distance = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let cfa = distance(row.cfa.strip_prefix(&format!("{sp}+")));
    let is_below = cfa.is_some() && distance(row.fp.strip_prefix("c-")) > cfa;
    if is_below && words == [&row.cfa, "u", &row.ra] {
        return Agreement::Popped;
    }
    Agreement::Different
}
