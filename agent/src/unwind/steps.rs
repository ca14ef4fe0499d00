//! Rules by address while a table is made: a step function that can have gaps, and the wide rules.

use std::ops::Range;

use hotspan_abi::unwind::{MAX_WIDE_RULES, WideRule};
use rustc_hash::FxHashMap;

use super::TableRule;

/// Rules by ascending address. Each holds up to the next step; `None` where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps(Vec<(u64, Option<TableRule>)>);

impl Steps {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// From `addr` on, which is not below the last step, this holds. Of two steps at one address
    /// the later one stays, and a step to what holds already is none.
    pub fn push(&mut self, addr: u64, rule: Option<TableRule>) {
        if self.0.last().is_some_and(|last| last.0 >= addr) {
            self.0.pop();
        }
        let before = self.0.last().and_then(|last| last.1);
        if before != rule {
            self.0.push((addr, rule));
        }
    }

    /// Address and rule of each step.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Option<TableRule>)> {
        self.0.iter().copied()
    }

    /// The parts of `text`, which ascends, of which nothing is said and that are longer than
    /// `padding`, or all of it.
    pub fn gaps(&self, text: &[Range<u64>], padding: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut steps = self.iter().peekable();
        let mut is_known = false;
        for text in text {
            let mut start = text.start;
            while start < text.end {
                let step = steps.next_if(|step| step.0 < text.end);
                let end = step.map_or(text.end, |step| step.0.max(start));
                let is_all = start == text.start && end == text.end;
                if !is_known && (is_all || end - start > padding) {
                    gaps.push(start..end);
                }
                let Some(step) = step else {
                    break;
                };
                is_known = step.1.is_some();
                start = end;
            }
        }
        gaps
    }

    /// The same, with the gaps filled from `others`.
    pub fn or(self, others: Self) -> Self {
        if others.0.is_empty() {
            return self;
        }
        let mut merged = Self::default();
        let (mut ours, mut theirs) = (self.0.iter().peekable(), others.0.iter().peekable());
        let (mut our_rule, mut their_rule) = (None, None);
        loop {
            let next = [ours.peek(), theirs.peek()];
            let next = next.into_iter().flatten().map(|step| step.0).min();
            let Some(addr) = next else {
                return merged;
            };
            if let Some(step) = ours.next_if(|step| step.0 == addr) {
                our_rule = step.1;
            }
            if let Some(step) = theirs.next_if(|step| step.0 == addr) {
                their_rule = step.1;
            }
            merged.push(addr, our_rule.or(their_rule));
        }
    }
}

/// Wide rules, none twice.
#[derive(Debug, Default)]
pub(super) struct WideRules {
    pub list: Vec<WideRule>,
    index: FxHashMap<WideRule, u32>,
}

impl WideRules {
    /// The rule that stands for a wide one; `None` when there are too many.
    pub fn rule(&mut self, wide: WideRule) -> Option<TableRule> {
        if let Some(&index) = self.index.get(&wide) {
            return Some(TableRule::Wide(index));
        }
        if self.list.len() == MAX_WIDE_RULES {
            return None;
        }
        let index = self.list.len() as u32;
        self.list.push(wide);
        self.index.insert(wide, index);
        Some(TableRule::Wide(index))
    }
}
