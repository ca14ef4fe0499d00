//! Rules as people read them.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
};

use hotspan_abi::unwind::{
    BASE_BY_CALLER, BASE_FP, BASE_OTHER_STACK, FP_AT_CFA, FP_AT_FP, RA_AT_FP, RA_IN_LINK, Rule,
    WideRule,
};

use super::{
    Arch, Found, TableRule,
    readelf::{self, Agreement},
};

/// A rule in three columns: CFA, frame pointer, return address, as `readelf
/// --debug-dump=frames-interp` writes them (`c` is the CFA, `u` is unchanged). Rules of one word
/// have a name in the first column.
pub struct Shown<'a> {
    /// The processor, for the names of its registers.
    pub arch: Arch,
    /// The rule.
    pub rule: TableRule,
    /// The wide rules that it may refer to.
    pub wide: &'a [WideRule],
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.arch.facts();
        let ([sp, fp, ..], link) = (facts.names, facts.link_name);
        let (cfa, saved_fp, ra) = match self.rule {
            TableRule::Wide(index) => {
                let wide = self.wide.get(index as usize).ok_or(fmt::Error)?;
                let ra = match wide.ra_rule {
                    RA_IN_LINK => link.to_owned(),
                    RA_AT_FP => format!("{fp}{:+}", wide.ra_offset),
                    _ => format!("c{:+}", wide.ra_offset),
                };
                (wide_cfa(self.arch, wide), wide_fp(fp, wide), ra)
            }
            TableRule::Short(rule) if rule.is_link() => {
                let cfa = format!("{sp}+{}", rule.cfa_bytes());
                (cfa, "u".to_owned(), link.to_owned())
            }
            TableRule::Short(rule) if rule.kind() == Rule::SPECIAL => {
                return out.write_str(name(rule));
            }
            TableRule::Short(rule) => {
                let base = if rule.kind() == Rule::FROM_SP { sp } else { fp };
                let (cfa, below) = (rule.cfa_bytes() as i64, rule.fp_bytes() as i64);
                let saved_fp = match below {
                    0 => "u".to_owned(),
                    below => format!("c-{below}"),
                };
                let ra = (facts.return_address_offset)(cfa, below);
                (format!("{base}+{cfa}"), saved_fp, format!("c{ra:+}"))
            }
        };
        write!(out, "{cfa:18} {saved_fp:10} {ra}")
    }
}

fn name(rule: Rule) -> &'static str {
    match rule {
        Rule::ROOT => "root",
        Rule::PLT => "plt",
        Rule::SIGNAL => "signal",
        Rule::FRAME_POINTER => "frame-pointer",
        Rule::SWITCH => "stack-switch",
        Rule::UNSEEN => "unseen",
        Rule::NEW_THREAD => "new-thread",
        _ => "none",
    }
}

fn wide_cfa(arch: Arch, rule: &WideRule) -> String {
    let names = arch.facts().names;
    if rule.cfa_base == BASE_BY_CALLER {
        let [sp, ..] = names;
        let other = i64::from(rule.cfa_offset) + i64::from(rule.cfa_addend);
        return format!("{sp}+{} or {sp}+{other}", rule.cfa_offset);
    }
    let base = match rule.cfa_base {
        BASE_OTHER_STACK => BASE_FP,
        base => base,
    };
    let base = names.get(base as usize).unwrap_or(&"?");
    let place = format!("{base}{:+}", rule.cfa_offset);
    match (rule.cfa_is_read, rule.cfa_addend) {
        (0, _) => place,
        (_, 0) => format!("*({place})"),
        (_, addend) => format!("*({place}){addend:+}"),
    }
}

fn wide_fp(fp: &str, rule: &WideRule) -> String {
    match rule.fp_rule {
        FP_AT_CFA => format!("c{:+}", rule.fp_offset),
        FP_AT_FP => format!("*({fp}{:+})", rule.fp_offset),
        _ => "u".to_owned(),
    }
}

/// Writes our rows beside readelf's, or those for an address, and counts how they agree.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_rows(
    found: &Found,
    readelf: Option<&[readelf::Row]>,
    addr: Option<u64>,
    out: &mut dyn Write,
) -> io::Result<BTreeMap<Agreement, u64>> {
    let mut agreements = BTreeMap::new();
    let theirs = if readelf.is_some() {
        "| readelf: CFA      fp       ra"
    } else {
        ""
    };
    writeln!(
        out,
        "{:16} {:18} {:10} {:9}{theirs}",
        "LOC", "CFA", "fp", "ra"
    )?;
    let readelf = readelf.unwrap_or_default();
    let mut starts: Vec<u64> = match addr {
        Some(addr) => vec![addr],
        None => found.rows.rows.iter().map(|row| row.0).collect(),
    };
    if addr.is_none() {
        starts.extend(readelf.iter().flat_map(|row| [row.start, row.end]));
        starts.sort_unstable();
        starts.dedup();
    }
    for start in starts {
        let (arch, wide) = (found.arch, &found.rows.wide[..]);
        let rule = found.rows.lookup(start);
        let ours = Shown { arch, rule, wide };
        let behind = readelf.partition_point(|row| row.start <= start);
        let row = behind.checked_sub(1).map(|index| &readelf[index]);
        let Some(row) = row.filter(|row| start < row.end) else {
            let line = format!("{start:016x} {:38}", ours.to_string());
            writeln!(
                out,
                "{}",
                if readelf.is_empty() {
                    line.trim_end()
                } else {
                    &line
                }
            )?;
            continue;
        };
        let agreement = readelf::compare(row, &ours);
        *agreements.entry(agreement).or_default() += 1;
        let readelf::Row { cfa, fp, ra, .. } = row;
        let mark = agreement.mark();
        let line = format!(
            "{start:016x} {:38} | {cfa:17} {fp:8} {ra:8} {mark}",
            ours.to_string()
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(agreements)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::{Report, Rows};

    /// Rows of `0`, then none from 32 on, beside a row of readelf's.
    fn printed(readelf: Option<&[readelf::Row]>, addr: Option<u64>) -> String {
        let rule = Rule::from_register(Rule::FROM_SP, 8, 0).unwrap();
        let found = Found {
            arch: Arch::X86_64,
            rows: Rows {
                rows: vec![(16, TableRule::Short(rule)), (32, TableRule::NONE)],
                wide: Vec::new(),
            },
            report: Report::default(),
        };
        let mut out = Vec::new();
        write_rows(&found, readelf, addr, &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let lines = lines
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn row(start: u64, end: u64, cfa: &str) -> readelf::Row {
        readelf::Row {
            start,
            end,
            cfa: cfa.to_owned(),
            fp: "u".to_owned(),
            ra: "c-8".to_owned(),
        }
    }

    #[test]
    fn rows_stand_beside_those_of_readelf() {
        let rows = [row(16, 24, "rsp+8"), row(24, 40, "rsp+16")];
        let expected = "0000000000000010 rsp+8 u c-8 | rsp+8 u c-8\n\
                        0000000000000018 rsp+8 u c-8 | rsp+16 u c-8 ! they differ\n\
                        0000000000000020 none | rsp+16 u c-8 ! they differ\n\
                        0000000000000028 none";
        assert_eq!(printed(Some(&rows), None), expected);
    }

    #[test]
    fn rows_stand_alone_without_readelf() {
        let expected = "0000000000000010 rsp+8 u c-8\n0000000000000020 none";
        assert_eq!(printed(None, None), expected);
    }

    #[test]
    fn an_address_is_shown_by_the_rows_that_cover_it() {
        let rows = [row(16, 40, "rsp+8")];
        let line = "000000000000001f rsp+8 u c-8 | rsp+8 u c-8";
        assert_eq!(printed(Some(&rows), Some(31)), line);
        assert_eq!(printed(Some(&rows), Some(15)), "000000000000000f none");
    }
}
