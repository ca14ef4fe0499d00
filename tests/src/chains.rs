//! Which functions of a program can call which: what every stack of it must obey, from the thread's
//! first function to the leaf.

use anyhow::{Context, Result, ensure};

use crate::stacks::{Stacks, is_like, unmarked};

/// What calls what, written as paths, outermost first:
///
/// ```text
/// _start > main > run > heavy_caller > heavy
/// run > light_caller > light
/// heavy | light > <handler> > handler_work
/// heavy > library > *
/// ```
///
/// The first function of the first line is the only one that a stack may start with. Alternatives
/// stand between bars, an ellipsis is any end of a name ([`is_like`]), and a star is anything, with
/// anything below it. A stack may end in any function, and go on into the kernel from any.
#[derive(Clone, Debug)]
pub struct Chains {
    roots: Vec<String>,
    calls: Vec<(String, String)>,
}

/// Stands for any function, and all that it calls.
const ANYTHING: &str = "*";

impl Chains {
    /// Parses paths, one a line.
    ///
    /// # Errors
    /// When there are none.
    pub fn parse(text: &str) -> Result<Self> {
        let mut chains = Self {
            roots: Vec::new(),
            calls: Vec::new(),
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let steps: Vec<Vec<&str>> = line
                .split(" > ")
                .map(|step| step.split(" | ").map(str::trim).collect())
                .collect();
            if chains.roots.is_empty() {
                chains.roots = steps[0].iter().map(|&name| name.to_owned()).collect();
            }
            for pair in steps.windows(2) {
                for caller in &pair[0] {
                    for callee in &pair[1] {
                        chains
                            .calls
                            .push(((*caller).to_owned(), (*callee).to_owned()));
                    }
                }
            }
        }
        ensure!(!chains.roots.is_empty(), "there are no paths in {text:?}");
        Ok(chains)
    }

    /// Whether a stack, without the process in front, is one that the program can have.
    fn explains(&self, stack: &[String]) -> bool {
        let is_kernel = |element: &String| element.ends_with("_[k]");
        let user = stack.split(is_kernel).next().unwrap_or_default();
        let has_user_after_kernel = !stack[user.len()..].iter().all(is_kernel);
        let Some(root) = user.first() else {
            return false;
        };
        if has_user_after_kernel || !self.roots.iter().any(|name| is_like(root, name)) {
            return false;
        }
        for pair in user.windows(2) {
            let (caller, callee) = (&pair[0], &pair[1]);
            let mut callees = self
                .calls
                .iter()
                .filter(|(name, _)| is_like(caller, name))
                .map(|(_, callee)| callee.as_str());
            if callees.clone().any(|name| name == ANYTHING) {
                return true;
            }
            if !callees.any(|name| is_like(callee, name)) {
                return false;
            }
        }
        true
    }

    /// The stacks that the program cannot have.
    #[must_use]
    pub fn wrong(&self, stacks: &Stacks) -> Stacks {
        stacks.filter(|stack| !self.explains(&stack[1..]))
    }

    /// Checks that the stacks of a recording are the program's: no more than one in a thousand, and
    /// `allowed` besides, may be another. At least half of them must be below each of `leaves`
    /// together, so that the program was at its work.
    ///
    /// # Errors
    /// Shows the stacks that are wrong.
    pub fn check(&self, stacks: &Stacks, allowed: u64, leaves: &[&str]) -> Result<()> {
        let total = stacks.total();
        ensure!(total >= LEAST, "{total} samples are too few to judge");
        let wrong = self.wrong(stacks);
        ensure!(
            wrong.total() <= total / 1000 + allowed,
            "{} of {total} samples have a stack that the program cannot have:{}",
            wrong.total(),
            wrong.commonest()
        );
        let is_leaf = |element: &String| leaves.iter().any(|leaf| is_like(element, leaf));
        let working = stacks.filter(|stack| stack.iter().any(is_leaf));
        ensure!(
            2 * working.total() > total,
            "only {} of {total} samples are in {leaves:?}:{}",
            working.total(),
            stacks.commonest()
        );
        Ok(())
    }
}

/// Fewer samples do not show that one in a thousand is wrong.
const LEAST: u64 = 1000;

/// The chains that a program prints about itself: lines `chain: a > b > c`, below `start`.
///
/// # Errors
/// When it prints none.
pub fn printed<'a>(start: &str, lines: impl Iterator<Item = &'a str>) -> Result<Vec<Vec<String>>> {
    let chains: Vec<Vec<String>> = lines
        .filter_map(|line| line.strip_prefix("chain: "))
        .map(|chain| {
            let start = start.split(" > ").chain(chain.split(" > "));
            start.map(str::to_owned).collect()
        })
        .collect();
    let first = chains.first().context("the program printed no chain")?;
    ensure!(first.len() > 3, "a short chain: {first:?}");
    Ok(chains)
}

/// Checks that each stack is one of these chains from its start to its end, or, while a function
/// is being called or returns, some part of it from the start, or that `between` explains it: what
/// the program does between its chains. One in a thousand may be another.
///
/// # Errors
/// Shows the stacks that are wrong.
pub fn check_printed(chains: &[Vec<String>], between: &Chains, stacks: &Stacks) -> Result<()> {
    let total = stacks.total();
    ensure!(total >= LEAST, "{total} samples are too few to judge");
    let user = |stack: &[String]| -> Vec<String> {
        let user = stack.iter().skip(1).filter(|name| !name.ends_with("_[k]"));
        user.map(|name| unmarked(name).to_owned()).collect()
    };
    let starts = |chain: &[String], stack: &[String]| {
        stack.len() <= chain.len()
            && stack
                .iter()
                .zip(chain)
                .all(|(name, expected)| is_like(name, expected))
    };
    let wrong = between.wrong(stacks).filter(|stack| {
        let stack = user(stack);
        stack.is_empty() || !chains.iter().any(|chain| starts(chain, &stack))
    });
    ensure!(
        wrong.total() <= total / 1000,
        "{} of {total} samples have a stack that the program cannot have:{}",
        wrong.total(),
        wrong.commonest()
    );
    for chain in chains {
        let whole = stacks.filter(|stack| {
            let stack = user(stack);
            stack.len() == chain.len() && starts(chain, &stack)
        });
        ensure!(whole.total() > 0, "never seen: {chain:?}");
    }
    let whole = stacks.filter(|stack| {
        let stack = user(stack);
        chains
            .iter()
            .any(|chain| stack.len() == chain.len() && starts(chain, &stack))
    });
    ensure!(
        whole.total() as f64 > 0.95 * total as f64,
        "only {} of {total} samples are at the end of a chain:{}",
        whole.total(),
        stacks.commonest()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: &str = "
        _start > main > run > heavy_caller > heavy
        run > light_caller > light
        heavy | light > <handler> > handler_work
        light > lib.so+… > *
    ";

    fn is_explained(stack: &str) -> bool {
        let stack: Vec<_> = stack.split(';').map(str::to_owned).collect();
        Chains::parse(PATHS).unwrap().explains(&stack)
    }

    #[test]
    fn whole_and_ending_stacks_are_explained() {
        for stack in [
            "_start",
            "_start;main;run;heavy_caller;heavy",
            "_start;main;run;light_caller",
            "_start;main;run;light_caller;light;<handler>;handler_work",
            "_start;main;run;light_caller;light;lib.so+0x10;x;y",
            "_start;main;read_[k];vfs_read_[k]",
        ] {
            assert!(is_explained(stack), "{stack}");
        }
    }

    #[test]
    fn missing_additional_and_foreign_functions_are_found() {
        for stack in [
            "main;run",
            "main;_start",
            "read_[k]",
            "libc.so+0x1;_start;main",
            "_start;run;heavy_caller;heavy",
            "_start;main;run;heavy",
            "_start;main;run;light_caller;heavy",
            "_start;main;run;run;heavy_caller",
            "_start;main;run;other",
            "[no unwind table];heavy",
            "_start;main;read_[k];run",
            "_start;main;run;light_caller;lib.so+0x10",
        ] {
            assert!(!is_explained(stack), "{stack}");
        }
    }

    #[test]
    fn one_wrong_stack_in_a_thousand_is_borne() {
        let check = |good: u64, bad: u64| {
            let text = format!("a;_start;main;run;heavy_caller;heavy {good}\na;heavy {bad}\n");
            let stacks = Stacks::parse_folded(&text).unwrap();
            Chains::parse(PATHS).unwrap().check(&stacks, 0, &["heavy"])
        };
        assert!(check(1999, 1).is_ok());
        assert!(check(1998, 2).is_ok());
        assert!(check(1997, 3).is_err());
        assert!(check(900, 1).is_err());
    }

    #[test]
    fn a_program_that_does_not_work_is_found() {
        let text = "a;_start;main 1500\na;_start;main;run;heavy_caller;heavy 600\n";
        let stacks = Stacks::parse_folded(text).unwrap();
        let chains = Chains::parse(PATHS).unwrap();
        assert!(chains.check(&stacks, 0, &["heavy"]).is_err());
        assert!(chains.check(&stacks, 0, &["run", "main"]).is_ok());
    }

    #[test]
    fn printed_chains_are_held_to_the_letter() {
        let lines = ["chain: a > b > c", "ready", "chain: a > d > c"];
        let chains = printed("_start > main", lines.into_iter()).unwrap();
        assert_eq!(chains[1], ["_start", "main", "a", "d", "c"]);
        let check = |more: &str| {
            let text = format!("p;_start;main;a;b;c 2000\np;_start;main;a;d;c 100\n{more}");
            let between = Chains::parse("_start > main > clock").unwrap();
            check_printed(&chains, &between, &Stacks::parse_folded(&text).unwrap())
        };
        assert!(check("").is_ok());
        assert!(check("p;_start;main;clock 9\n").is_ok());
        assert!(check("p;_start;main;other 9\n").is_err());
        assert!(check("p;_start;main;a 3\n").is_ok());
        assert!(check("p;_start;main;b;c 3\n").is_err());
        assert!(check("p;_start;main;a;b;c;d 3\n").is_err());
        assert!(check("p;_start;main;a 300\n").is_err());
        assert!(printed("_start", ["ready"].into_iter()).is_err());
    }
}
