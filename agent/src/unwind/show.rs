//! Rules as people read them.

use std::fmt;

use hotspan_abi::unwind::{FP_AT_CFA, FP_AT_FP, RA_IN_LINK, Rule, WideRule};

use super::{Arch, TableRule};

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
        let [sp, fp, _, link] = facts.names;
        let (cfa, saved_fp, ra) = match self.rule {
            TableRule::Wide(index) => {
                let wide = self.wide.get(index as usize).ok_or(fmt::Error)?;
                let ra = match wide.ra_rule {
                    RA_IN_LINK => link.to_owned(),
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
        _ => "none",
    }
}

fn wide_cfa(arch: Arch, rule: &WideRule) -> String {
    let names = arch.facts().names;
    let base = names.get(rule.cfa_base as usize).unwrap_or(&"?");
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
