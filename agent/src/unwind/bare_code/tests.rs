//! What code tells by itself, beside what its own unwind information says.

use std::fs;

use hotspan_abi::unwind::WideRule;

use super::*;
use crate::unwind::{Rows, eh_frame};

/// Goes through a file's text as if nothing described it. The part of its instructions, in percent,
/// that get the stack pointer's distance from the CFA that the file's unwind information has.
fn agreement(path: &str) -> f64 {
    let bytes = fs::read(path).unwrap();
    let image = Image::parse(&bytes[..]).unwrap();
    let Rows { rows, wide } = eh_frame::rows(&bytes[..], None).unwrap().rows;
    let (mut same, mut other) = (0, 0);
    for text in image.text() {
        let code = image.bytes_at(text.start, text.end - text.start).unwrap();
        let data = |addr| image.bytes_at(addr, MAX_TABLE_BYTES).unwrap_or_default();
        let sweep = Sweep::new(image.arch(), code, text.start, &image.functions(), data);
        let mut found_wide = WideRules::default();
        let mut found = Vec::new();
        sweep.run(&mut found_wide, |addr, rule| found.push((addr, rule)));
        let mut row = 0;
        for (addr, rule) in found {
            while rows.get(row + 1).is_some_and(|next| next.0 <= addr) {
                row += 1;
            }
            let expected = rows.get(row).filter(|(start, _)| *start <= addr);
            let expected = expected.and_then(|(_, expected)| cfa(*expected, &wide));
            match (cfa(rule, &found_wide.list), expected) {
                (found, Some(expected)) if found == Some(expected) => same += 1,
                // The same frame, by the other register.
                (Some((kind, _)), Some((other, _))) if kind != other => {}
                (_, Some(_)) => other += 1,
                _ => {}
            }
        }
    }
    100.0 * f64::from(same) / f64::from(same + other)
}

/// The register that the CFA is above, and how far; `None` for rules of other kinds.
fn cfa(rule: TableRule, wide: &[WideRule]) -> Option<(u32, i64)> {
    match rule {
        TableRule::Wide(index) => {
            let wide = &wide[index as usize];
            (wide.cfa_is_read == 0).then_some((wide.cfa_base, wide.cfa_offset.into()))
        }
        TableRule::Short(rule) if rule.is_link() => Some((Rule::FROM_SP, rule.cfa_bytes() as i64)),
        TableRule::Short(rule) if rule.kind() == Rule::SPECIAL => None,
        TableRule::Short(rule) => Some((rule.kind(), rule.cfa_bytes() as i64)),
    }
}

#[test]
fn code_tells_what_its_unwind_information_says() {
    // Tables of jumps in a form of their own, and assembly, are what the C library adds.
    for (path, least) in [
        ("/bin/bash", 99.5),
        ("/lib/x86_64-linux-gnu/libc.so.6", 95.0),
    ] {
        let percent = agreement(path);
        assert!(percent >= least, "{path}: {percent:.2} %");
    }
}
