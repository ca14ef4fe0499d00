//! Stacks and how often they were seen, whoever says so.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Stacks with their counts. A stack starts with the name of the process, then comes the root, and
/// the leaf is last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stacks(pub BTreeMap<Vec<String>, u64>);

/// Marks at the end of an element of folded text: kernel, inlined, JIT.
const MARKS: [&str; 3] = ["_[k]", "_[i]", "_[j]"];

/// An element without its mark.
#[must_use]
pub fn unmarked(element: &str) -> &str {
    MARKS
        .iter()
        .find_map(|mark| element.strip_suffix(mark))
        .unwrap_or(element)
}

/// Whether an element is what a test expects: the same text, or, when `expected` ends in `…`, a
/// longer one, as when a name is followed by its place in the source.
#[must_use]
pub fn is_like(element: &str, expected: &str) -> bool {
    let element = unmarked(element);
    match expected.strip_suffix('…') {
        Some(start) => element.starts_with(start),
        None => element == expected,
    }
}

impl Stacks {
    /// Parses folded text, and holds it to its contract: one line per stack, in no line an empty
    /// element, no count of zero.
    ///
    /// # Errors
    /// Names the line that breaks the contract.
    pub fn parse_folded(text: &str) -> Result<Self> {
        let mut stacks = Self::default();
        for line in text.lines() {
            let (stack, count) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
            let count: u64 = count.parse().with_context(|| format!("{line:?}"))?;
            let stack: Vec<_> = stack.split(';').map(str::to_owned).collect();
            ensure!(count > 0, "a count of zero: {line:?}");
            ensure!(
                !stack.iter().any(String::is_empty),
                "a nameless element: {line:?}"
            );
            let before = stacks.0.insert(stack, count);
            ensure!(before.is_none(), "a stack is there twice: {line:?}");
        }
        Ok(stacks)
    }

    /// Counts a stack.
    pub fn add(&mut self, stack: Vec<String>, count: u64) {
        *self.0.entry(stack).or_default() += count;
    }

    /// The same without marks, which only folded text has.
    #[must_use]
    pub fn without_marks(&self) -> Self {
        let mut plain = Self::default();
        for (stack, count) in &self.0 {
            let stack = stack.iter().map(|element| unmarked(element).to_owned());
            plain.add(stack.collect(), *count);
        }
        plain
    }

    /// Those of processes with this name.
    #[must_use]
    pub fn of_process(&self, name: &str) -> Self {
        self.filter(|stack| stack[0] == name)
    }

    /// Those that pass a test.
    #[must_use]
    pub fn filter(&self, passes: impl Fn(&[String]) -> bool) -> Self {
        let stacks = self.0.iter().filter(|(stack, _)| passes(stack));
        Self(
            stacks
                .map(|(stack, count)| (stack.clone(), *count))
                .collect(),
        )
    }

    /// The same with nothing between the process and the leaf.
    #[must_use]
    pub fn leaves(&self) -> Self {
        let mut leaves = Self::default();
        for (stack, count) in &self.0 {
            let ends = stack.iter().take(1).chain(stack.iter().skip(1).last());
            leaves.add(ends.cloned().collect(), *count);
        }
        leaves
    }

    /// Number of samples.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Number of samples with this function in their stack.
    #[must_use]
    pub fn with(&self, function: &str) -> u64 {
        self.filter(|stack| stack.iter().any(|element| is_like(element, function)))
            .total()
    }

    /// Number of samples with these functions in their stack, one right after the other.
    #[must_use]
    pub fn with_chain(&self, chain: &[&str]) -> u64 {
        let is_there = |stack: &[String]| {
            stack.windows(chain.len()).any(|run| {
                let mut pairs = run.iter().zip(chain);
                pairs.all(|(element, expected)| is_like(element, expected))
            })
        };
        self.filter(is_there).total()
    }

    /// Part of the samples that have this function in their stack.
    ///
    /// # Errors
    /// When there are no samples.
    pub fn share(&self, function: &str) -> Result<f64> {
        ensure!(self.total() > 0, "there are no samples");
        Ok(self.with(function) as f64 / self.total() as f64)
    }

    /// The commonest stacks, as text for a failed test.
    #[must_use]
    pub fn commonest(&self) -> String {
        let mut stacks: Vec<_> = self.0.iter().collect();
        stacks.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let lines = stacks.iter().take(8);
        lines
            .map(|(stack, count)| format!("\n  {} {count}", stack.join(";")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "a;main;run;heavy 70\na;main;run;light;tick_[k] 30\nb;JS:*heavy x.js:1_[j] 5\n";

    #[test]
    fn shares_and_chains_are_counted() {
        let all = Stacks::parse_folded(TEXT).unwrap();
        let a = all.of_process("a");
        assert_eq!((all.total(), a.total()), (105, 100));
        assert_eq!(a.share("heavy").unwrap(), 0.7);
        assert_eq!(a.share("tick").unwrap(), 0.3);
        assert_eq!(a.with_chain(&["main", "run", "heavy"]), 70);
        assert_eq!(a.with_chain(&["main", "heavy"]), 0);
        assert_eq!(a.with_chain(&["run", "light", "tick"]), 30);
        assert_eq!(all.with("JS:*heavy …"), 5);
        assert_eq!(all.with("JS:*heavy"), 0);
        assert!(all.of_process("c").share("heavy").is_err());
    }

    #[test]
    fn leaves_are_what_is_left_of_a_stack() {
        let stacks = Stacks::parse_folded("a;b;d 1\na;c;d 2\na 3\n").unwrap();
        let leaves = Stacks::parse_folded("a;d 3\na 3\n").unwrap();
        assert_eq!(stacks.leaves(), leaves);
    }

    #[test]
    fn breaches_of_the_contract_are_found() {
        for text in [
            "a;b\n",
            "a;b x\n",
            "a;b 0\n",
            "a;;b 1\n",
            "a;b 1\na;b 1\n",
            " 1\n",
        ] {
            assert!(Stacks::parse_folded(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn stacks_that_differ_in_marks_alone_become_one() {
        let stacks = Stacks::parse_folded("a;f_[k] 1\na;f 2\n").unwrap();
        assert_eq!(
            stacks.without_marks(),
            Stacks::parse_folded("a;f 3\n").unwrap()
        );
    }
}
