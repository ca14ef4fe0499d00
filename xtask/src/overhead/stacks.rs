//! Stacks, whichever profiler saw them, and whether they are complete.
//!
//! Judged from outside, by names alone: what a profiler says of its own stacks does not count.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Equal samples.
#[derive(Debug, PartialEq, Eq)]
pub struct Stack {
    /// Name of the process; empty where the profiler does not tell.
    pub process: String,
    /// Functions in user space, the thread's first one at the front.
    pub user: Vec<String>,
    /// Functions in the kernel, its entry at the front.
    pub kernel: Vec<String>,
    /// How many samples.
    pub count: u64,
}

/// Reads folded stacks: `process;root;…;leaf COUNT`, kernel functions marked with `_[k]`.
pub fn parse_folded(text: &str) -> Result<Vec<Stack>> {
    text.lines()
        .map(|line| {
            let (stack, count) = line.rsplit_once(' ').context("a folded line has a count")?;
            let mut elements = stack.split(';');
            let process = elements.next().unwrap_or_default().to_owned();
            let (kernel, user): (Vec<_>, Vec<_>) = elements
                .map(|element| element.strip_suffix("_[j]").unwrap_or(element))
                .partition(|element| element.ends_with("_[k]"));
            let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
            Ok(Stack {
                process,
                user: owned(user),
                kernel: owned(kernel),
                count: count.parse().context("a folded line ends in a number")?,
            })
        })
        .collect()
}

/// Reads what `perf script -F comm,pid,ip,sym` prints: for each sample a line `comm pid`, then one
/// with address and name for each frame, leaf first, then an empty one.
pub fn parse_perf_script(text: &str) -> Result<Vec<Stack>> {
    text.split("\n\n")
        .map(|sample| sample.trim_matches('\n'))
        .filter(|sample| !sample.is_empty())
        .map(|sample| {
            let mut lines = sample.lines();
            let head = lines.next().unwrap_or_default().trim();
            let (process, _pid) = head
                .rsplit_once(char::is_whitespace)
                .with_context(|| format!("perf names no process in {head:?}"))?;
            let mut stack = Stack {
                process: process.trim().to_owned(),
                user: Vec::new(),
                kernel: Vec::new(),
                count: 1,
            };
            for line in lines {
                let line = line.trim();
                let (address, name) = line.split_once(' ').unwrap_or((line, ""));
                let address = u64::from_str_radix(address, 16)
                    .with_context(|| format!("perf shows no address in {line:?}"))?;
                let is_kernel = address >> 63 == 1;
                let side = if is_kernel {
                    &mut stack.kernel
                } else {
                    &mut stack.user
                };
                side.push(name.to_owned());
            }
            stack.user.reverse();
            stack.kernel.reverse();
            Ok(stack)
        })
        .collect()
}

impl Stack {
    /// Whether every frame has a name.
    pub fn is_named(&self) -> bool {
        let is_name = |name: &String| {
            let is_offset = name.contains("+0x");
            let is_address = name.starts_with("0x");
            !(name.is_empty() || name == "[unknown]" || is_offset || is_address)
        };
        self.user.iter().chain(&self.kernel).all(is_name)
    }

    /// Whether it begins with one of these first functions.
    pub fn is_rooted(&self, roots: &[&str]) -> bool {
        match self.user.first() {
            Some(first) => roots.contains(&first.as_str()),
            None => self.has_no_user_part(),
        }
    }

    /// Inside the kernel, when there is no user stack: while it replaces a program's memory or
    /// takes it down, and before a new task runs for the first time.
    fn has_no_user_part(&self) -> bool {
        const WITHOUT: [&str; 4] = ["do_exit", "exec", "ret_from_fork", "do_group_exit"];
        self.kernel
            .iter()
            .any(|name| WITHOUT.iter().any(|part| name.contains(part)))
    }
}

/// The same stacks as if their profiler had kept the threads' first functions, which lightswitch
/// leaves out by design: a stack that begins with one of `callees` gets `root` above it.
pub fn with_root(mut stacks: Vec<Stack>, root: &str, callees: &[&str]) -> Vec<Stack> {
    for stack in &mut stacks {
        let first = stack.user.first();
        if first.is_some_and(|first| callees.contains(&first.as_str())) {
            stack.user.insert(0, root.to_owned());
        }
    }
    stacks
}

/// What a program knows of its own stacks.
#[derive(Clone, Copy)]
pub struct Chain {
    /// How many functions of its runtime stand between the thread's first function and the first
    /// of `functions`; `None`: as many as in most of its samples, but always the same.
    pub above: Option<usize>,
    /// Its own functions, each called by the one before it. Alternatives are separated by `|`.
    pub functions: &'static [&'static str],
}

/// Samples counted.
#[derive(Default)]
pub struct Completeness {
    /// All.
    pub samples: u64,
    /// With the thread's first function at the root.
    pub rooted: u64,
    /// In one of the functions that the program knows the whole stack of.
    pub known: u64,
    /// Of these, with exactly that stack.
    pub exact: u64,
    /// The user parts of those that are not rooted or not exact, as folded text.
    wrong: BTreeMap<String, u64>,
}

impl Completeness {
    /// Judges the stacks of a program whose threads begin with one of `roots`.
    pub fn of(stacks: &[Stack], roots: &[&str], chain: Option<Chain>) -> Self {
        let mut found = Self::default();
        let above = chain.map(|chain| chain.above.unwrap_or_else(|| usual_above(stacks, chain)));
        for stack in stacks {
            let is_rooted = stack.is_rooted(roots);
            found.samples += stack.count;
            found.rooted += if is_rooted { stack.count } else { 0 };
            if !is_rooted {
                *found.wrong.entry(stack.user.join(";")).or_default() += stack.count;
            }
            let (Some(chain), Some(above), Some(leaf)) = (chain, above, stack.user.last()) else {
                continue;
            };
            if !chain
                .functions
                .iter()
                .any(|function| is_like(leaf, function))
            {
                continue;
            }
            found.known += stack.count;
            // The root, then what is above, then the chain as far as it went.
            let own = stack.user.get(above + 1..).unwrap_or_default();
            let is_prefix = !own.is_empty()
                && own.len() <= chain.functions.len()
                && own
                    .iter()
                    .zip(chain.functions)
                    .all(|(name, function)| is_like(name, function));
            found.exact += if is_rooted && is_prefix {
                stack.count
            } else {
                0
            };
        }
        found
    }

    /// The commonest of the wrong stacks, with their counts.
    pub fn commonest_wrong(&self) -> impl Iterator<Item = (&str, u64)> {
        let mut wrong: Vec<_> = self
            .wrong
            .iter()
            .map(|(stack, count)| (&**stack, *count))
            .collect();
        wrong.sort_by_key(|(_, count)| Reverse(*count));
        wrong.into_iter().take(3)
    }

    /// Hundredths that are rooted.
    pub fn rooted_percent(&self) -> f64 {
        self.rooted as f64 / self.samples as f64 * 100.0
    }

    /// Hundredths of the known ones that are exact.
    pub fn exact_percent(&self) -> f64 {
        self.exact as f64 / self.known as f64 * 100.0
    }
}

/// How many functions mostly stand between the root and the chain.
fn usual_above(stacks: &[Stack], chain: Chain) -> usize {
    let mut counts = BTreeMap::<usize, u64>::new();
    for stack in stacks {
        let first = chain.functions[0];
        if let Some(place) = stack.user.iter().position(|name| is_like(name, first)) {
            *counts.entry(place.saturating_sub(1)).or_default() += stack.count;
        }
    }
    let most = counts.iter().max_by_key(|(_, count)| **count);
    most.map_or(0, |(place, _)| *place)
}

/// Whether a name, demangled by whomever, is that of a function: `main.(*ledger).second`,
/// `known::Grid<float, 4>::second(unsigned long)` and `<known::Order as known::Price>::second` all
/// are `second`.
fn is_like(name: &str, function: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| function.split('|').any(|alternative| word == alternative))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: Chain = Chain {
        above: Some(1),
        functions: &["first", "second|__second", "leaf"],
    };

    fn judge(folded: &str, chain: Chain) -> (u64, u64, u64, u64) {
        let found = Completeness::of(&parse_folded(folded).unwrap(), &["_start"], Some(chain));
        (found.samples, found.rooted, found.known, found.exact)
    }

    #[test]
    fn chain_is_exact_as_far_as_it_went_and_not_with_a_hole() {
        for (stack, expected) in [
            ("_start;main;first;second;leaf", (1, 1, 1, 1)),
            ("_start;main;first;__second", (1, 1, 1, 1)),
            (
                "_start;main;a::first(int);<b as c>::second;leaf;irq_[k]",
                (1, 1, 1, 1),
            ),
            ("_start;main;first;leaf", (1, 1, 1, 0)),
            ("_start;first;second;leaf", (1, 1, 1, 0)),
            ("_start;main;first;second;second;leaf", (1, 1, 1, 0)),
            ("main;first;second;leaf", (1, 0, 1, 0)),
            ("[unknown];_start;main;first;second;leaf", (1, 0, 1, 0)),
            ("_start;main;first;second;leaf;leaf", (1, 1, 1, 0)),
            ("_start;main", (1, 1, 0, 0)),
            ("leaf", (1, 0, 1, 0)),
            ("read_[k]", (1, 0, 0, 0)),
            ("do_syscall_64_[k];do_exit_[k]", (1, 1, 0, 0)),
        ] {
            assert_eq!(judge(&format!("p;{stack} 1\n"), CHAIN), expected, "{stack}");
        }
    }

    #[test]
    fn runtime_above_the_chain_is_always_the_same() {
        let chain = Chain {
            above: None,
            ..CHAIN
        };
        let text = "p;_start;a;b;first;second 3\np;_start;a;first;second 2\n";
        assert_eq!(judge(text, chain), (5, 5, 5, 3));
    }

    #[test]
    fn script_of_perf_is_read_root_first() {
        let text =
            "my prog   12 \n\tffffffff81000000 irq\n\t          401000 leaf\n\t 400f00 _start\n\n";
        let expected = Stack {
            process: "my prog".into(),
            user: vec!["_start".into(), "leaf".into()],
            kernel: vec!["irq".into()],
            count: 1,
        };
        assert_eq!(parse_perf_script(text).unwrap(), [expected]);
        assert!(parse_perf_script("a 1\n\tno address\n").is_err());
    }

    #[test]
    fn addresses_and_offsets_are_no_names() {
        for (name, is_named) in [
            ("main", true),
            ("operator+", true),
            ("libc.so.6+0x12", false),
            ("[unknown]", false),
            ("0x7f00", false),
        ] {
            let stacks = parse_folded(&format!("p;{name} 1")).unwrap();
            assert_eq!(stacks[0].is_named(), is_named, "{name}");
        }
    }
}
