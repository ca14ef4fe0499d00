//! Folded stacks as text: ours, `stackcollapse-perf.pl`'s and those of other profilers.

use super::{Error, Module, Saved, Stacks};
use crate::export::folded::ElementKind;

/// Reads lines of `root;…;leaf COUNT`. Most lines must be such lines for the text to be a
/// profile; the others, such as headings, are passed over with a warning.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Saved>, Error> {
    if bytes.contains(&0) {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(bytes);
    let lines = || {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with("# "))
    };
    let folded = lines().filter(|line| split_count(line).is_some()).count();
    let others = lines().count() - folded;
    if folded <= others {
        return Ok(None);
    }
    if others > 0 {
        tracing::warn!(
            lines = others,
            "passed over what is no stack with a count: the profile may lack something"
        );
    }
    let mut stacks = Stacks::default();
    for (stack, count) in lines().filter_map(split_count) {
        add(&mut stacks, stack, count)?;
    }
    Ok(Some(Saved {
        folded: stacks.folded,
        ..Saved::default()
    }))
}

/// A line's stack and its count, rounded when it is a fraction.
fn split_count(line: &str) -> Option<(&str, u64)> {
    let (stack, count) = line.rsplit_once([' ', '\t'])?;
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    if !count.starts_with(|c: char| c.is_ascii_digit()) || !count.chars().all(is_number) {
        return None;
    }
    let count: f64 = count.parse().ok()?;
    Some((stack.trim_end(), count.round() as u64))
}

fn add(stacks: &mut Stacks, stack: &str, count: u64) -> Result<(), Error> {
    let mut elements = Vec::new();
    let has_root = stack.contains(';');
    for (at, element) in stack.split(';').enumerate() {
        let (name, mark) = ElementKind::split_mark(element);
        elements.push(match mark {
            Some(kind) => stacks.frame(Module::Known(kind), &[name])?,
            // perf's and our first element is the process; elsewhere it is taken for one.
            None if at == 0 && has_root => stacks.folded.process(name),
            None => stacks.frame(Module::Named(""), &[name])?,
        });
    }
    stacks.add(elements.iter().map(String::as_str), count)
}
