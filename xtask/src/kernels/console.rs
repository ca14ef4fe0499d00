//! What a machine wrote on its serial console, held against what is expected.
//!
//! The lines are those of `tests/src/bin/kernel_smoke/report.rs`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    /// As it should.
    Ok,
    /// The kernel lacks it.
    Skip,
    /// It did not.
    Fail,
}

/// What was found on the console.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Console {
    /// Each check with its outcome and what was said about it.
    pub checks: BTreeMap<String, (Outcome, String)>,
    /// Each program with the instructions that its verification took, if the kernel tells.
    pub programs: BTreeMap<String, Option<u32>>,
    /// Whether the last line is there, and no line before it is missing.
    pub is_complete: bool,
}

impl Console {
    /// Picks our lines out of everything that was written.
    pub fn parse(text: &str) -> Self {
        let mut console = Self::default();
        let mut lines = 0;
        for line in text.lines() {
            let mut fields = line.trim_end().splitn(4, '|');
            let mut field = || fields.next().unwrap_or_default();
            match (field(), field(), field(), field()) {
                ("R", name, outcome, detail) => {
                    let Some(outcome) = Outcome::parse(outcome) else {
                        continue;
                    };
                    console
                        .checks
                        .insert(name.to_owned(), (outcome, detail.to_owned()));
                }
                ("P", name, verified, _) => {
                    console
                        .programs
                        .insert(name.to_owned(), verified.parse().ok());
                }
                ("END", count, ..) => {
                    console.is_complete = count.parse() == Ok(lines);
                    continue;
                }
                _ => continue,
            }
            lines += 1;
        }
        console
    }

    /// The programs with what their verification took, in one line.
    pub fn programs(&self) -> String {
        let shown = self.programs.iter().map(|(name, verified)| match verified {
            Some(verified) => format!("{name} {verified}"),
            None => format!("{name} ?"),
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    /// Everything that is not as expected.
    pub fn complaints(&self, expected: &Expected<'_>) -> Vec<String> {
        let Expected {
            checks,
            lacks,
            budget,
        } = expected;
        let mut complaints = Vec::new();
        if !self.is_complete {
            complaints.push("the last line is missing, or lines before it".to_owned());
        }
        let named = checks
            .iter()
            .map(String::as_str)
            .chain(lacks.keys().copied());
        for name in named.filter(|name| !self.checks.contains_key(*name)) {
            complaints.push(format!("{name}: no result"));
        }
        for (name, (outcome, detail)) in &self.checks {
            let wanted = lacks
                .get(name.as_str())
                .map_or(Outcome::Ok, |lack| lack.result);
            if *outcome != wanted {
                complaints.push(format!(
                    "{name}: {outcome:?}, expected {wanted:?}: {detail}"
                ));
            }
        }
        for (name, verified) in &self.programs {
            if let Some(verified) = verified.filter(|verified| verified > budget) {
                complaints.push(format!(
                    "program {name}: the verifier looked at {verified} instructions, more than {budget}"
                ));
            }
        }
        complaints
    }
}

/// A check that does not go well.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lack {
    /// How it goes.
    pub result: Outcome,
    /// Why.
    pub why: String,
}

/// What a console should show.
pub struct Expected<'a> {
    /// Checks that must be there.
    pub checks: &'a [String],
    /// Checks that do not go well.
    pub lacks: BTreeMap<&'a str, &'a Lack>,
    /// Instructions that the verifier may look at, for each program.
    pub budget: u32,
}

impl Outcome {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "OK" => Some(Self::Ok),
            "SKIP" => Some(Self::Skip),
            "FAIL" => Some(Self::Fail),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[    0.1] a warning\r\nR|process|OK|a|b\r\nR|doctor.loop|SKIP|no helper\r\n\
                        P|sample|4000\r\nP|exit|-\r\nEND|4\r\n[    9.9] reboot: Power down\r\n";

    fn complaints(text: &str, checks: &[&str], lacks: &[(&str, Outcome)]) -> Vec<String> {
        let checks: Vec<String> = checks.iter().map(|name| (*name).to_owned()).collect();
        let lacks: Vec<(&str, Lack)> = lacks
            .iter()
            .map(|&(name, result)| {
                (
                    name,
                    Lack {
                        result,
                        why: String::new(),
                    },
                )
            })
            .collect();
        Console::parse(text).complaints(&Expected {
            checks: &checks,
            lacks: lacks.iter().map(|(name, lack)| (*name, lack)).collect(),
            budget: 5000,
        })
    }

    #[test]
    fn lines_are_found_among_those_of_the_kernel() {
        let console = Console::parse(GOOD);
        assert!(console.is_complete);
        assert_eq!(console.checks["process"], (Outcome::Ok, "a|b".to_owned()));
        assert_eq!(console.checks["doctor.loop"].0, Outcome::Skip);
        assert_eq!(console.programs["sample"], Some(4000));
        assert_eq!(console.programs["exit"], None);
    }

    #[test]
    fn only_what_differs_is_complained_about() {
        let lacks = [("doctor.loop", Outcome::Skip)];
        assert!(complaints(GOOD, &["process"], &lacks).is_empty());
        let check = |text: &str, checks: &[&str], lacks: &[(&str, Outcome)], words: &str| {
            let complaints = complaints(text, checks, lacks);
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert!(complaints[0].contains(words), "{complaints:?}");
        };
        check(GOOD, &["process"], &[], "doctor.loop: Skip, expected Ok");
        check(GOOD, &["deep"], &lacks, "deep: no result");
        let more = [lacks[0], ("cgroup", Outcome::Skip)];
        check(GOOD, &[], &more, "cgroup: no result");
        let mended = [lacks[0], ("process", Outcome::Fail)];
        check(GOOD, &[], &mended, "process: Ok, expected Fail");
        check(&GOOD.replace("4000", "6000"), &[], &lacks, "program sample");
        check(&GOOD.replace("END|4", ""), &[], &lacks, "last line");
        check(
            &GOOD.replace("P|exit|-", ""),
            &[],
            &lacks,
            "lines before it",
        );
    }
}
