//! Rules as people read them.

use std::fmt;

use hotspan_abi::unwind::{BASE_SP, FP_AT_CFA, FP_AT_FP, Rule, WideRule};

use super::TableRule;

/// A rule in three columns: CFA, frame pointer, return address, as `readelf
/// --debug-dump=frames-interp` writes them (`c` is the CFA, `u` is unchanged). Rules of one word
/// have a name in the first column. The wide rules that it may refer to are beside it.
pub struct Shown<'a>(pub TableRule, pub &'a [WideRule]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            TableRule::Wide(index) => {
                let wide = self.1.get(index as usize).ok_or(fmt::Error)?;
                return write!(out, "{:18} {:10} c-8", wide_cfa(wide), wide_fp(wide));
            }
            TableRule::Short(Rule::NONE) => "none",
            TableRule::Short(Rule::ROOT) => "root",
            TableRule::Short(Rule::PLT) => "plt",
            TableRule::Short(Rule::SIGNAL) => "signal",
            TableRule::Short(Rule::FRAME_POINTER) => "frame-pointer",
            TableRule::Short(rule) => {
                let base = match rule.kind() {
                    Rule::FROM_SP => "rsp",
                    _ => "rbp",
                };
                let cfa = format!("{base}+{}", rule.cfa_bytes());
                let fp = match rule.fp_bytes() {
                    0 => "u".to_owned(),
                    bytes => format!("c-{bytes}"),
                };
                return write!(out, "{cfa:18} {fp:10} c-8");
            }
        };
        write!(out, "{name}")
    }
}

fn wide_cfa(rule: &WideRule) -> String {
    let base = if rule.cfa_base == BASE_SP {
        "rsp"
    } else {
        "rbp"
    };
    let place = format!("{base}{:+}", rule.cfa_offset);
    match (rule.cfa_is_read, rule.cfa_addend) {
        (0, _) => place,
        (_, 0) => format!("*({place})"),
        (_, addend) => format!("*({place}){addend:+}"),
    }
}

fn wide_fp(rule: &WideRule) -> String {
    match rule.fp_rule {
        FP_AT_CFA => format!("c{:+}", rule.fp_offset),
        FP_AT_FP => format!("*(rbp{:+})", rule.fp_offset),
        _ => "u".to_owned(),
    }
}
