//! Wide rules of all tables: each once, with an index that stays while a table refers to it.

use hotspan_abi::unwind::{MAX_WIDE_RULES, Rule, WideRule};
use rustc_hash::FxHashMap;

use super::store::Update;

/// The rules and who uses them.
#[derive(Default)]
pub(super) struct WideRules {
    index: FxHashMap<WideRule, u32>,
    /// The rule at each index and how many tables refer to it.
    list: Vec<(WideRule, u32)>,
    /// Indexes that nothing refers to.
    free: Vec<u32>,
}

impl WideRules {
    /// The index of a rule, for one table more; `None` when there are too many.
    pub fn add(&mut self, rule: &WideRule, updates: &mut Vec<Update>) -> Option<u32> {
        if let Some(&index) = self.index.get(rule) {
            self.list[index as usize].1 += 1;
            return Some(index);
        }
        let index = match self.free.pop() {
            Some(index) => {
                self.list[index as usize] = (*rule, 1);
                index
            }
            None if self.list.len() < MAX_WIDE_RULES => {
                self.list.push((*rule, 1));
                self.list.len() as u32 - 1
            }
            None => return None,
        };
        self.index.insert(*rule, index);
        updates.push(Update::Wide(index, *rule));
        Some(index)
    }

    /// One table less refers to the rule at an index.
    pub fn drop_use(&mut self, index: u32) {
        let (rule, uses) = &mut self.list[index as usize];
        *uses -= 1;
        if *uses == 0 {
            self.index.remove(rule);
            self.free.push(index);
        }
    }

    /// What a row says that refers to a place.
    pub fn rule(place: Option<u32>) -> Option<Rule> {
        Rule::wide(place?)
    }
}
