//! `cargo xtask check`: everything that needs neither root nor a particular kernel.
//!
//! In: the working tree. Out: one line per step, and the full output of each that fails.

mod audit;
mod layers;
mod license;

use std::process::Command;

use anyhow::{Result, bail};

use crate::steps::Steps;
use crate::{build_ebpf, command, workspace};

/// Runs the verb.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    add_steps(&mut steps);
    steps.finish()
}

/// Runs all steps, the quick ones first.
pub fn add_steps(steps: &mut Steps) {
    steps.run("format", format);
    steps.run("layers", layers::check);
    steps.run("dependencies", audit::check);
    steps.run("prebuilt", build_ebpf::check_prebuilt);
    steps.run("lints", lints);
    steps.run("unit tests", unit_tests);
    steps.run("docs", docs);
}

fn format() -> Result<String> {
    need("fmt", "rustfmt")?;
    quiet(workspace::cargo().args(["fmt", "--all", "--check"]))
}

fn lints() -> Result<String> {
    need("clippy", "clippy")?;
    quiet(
        workspace::cargo()
            .args(["clippy", "--workspace", "--all-targets", "--locked"])
            .args(["--quiet", "--", "--deny=warnings"]),
    )
}

fn docs() -> Result<String> {
    quiet(
        workspace::cargo()
            .args(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )
}

/// Every package but the live tests, which need root and a kernel with BTF.
fn unit_tests() -> Result<String> {
    let output = command::text(
        workspace::cargo()
            .args(["test", "--workspace", "--exclude=hotspan-tests"])
            .args(["--locked", "--quiet"]),
    )?;
    Ok(format!("{} passed", count_passed(&output)))
}

/// Fails when cargo lacks a subcommand, which rustup's smallest profile leaves out.
fn need(subcommand: &str, component: &str) -> Result<()> {
    if command::output(workspace::cargo().args([subcommand, "--version"])).is_err() {
        bail!("{component} is not installed: run `rustup component add {component}`");
    }
    Ok(())
}

fn quiet(command: &mut Command) -> Result<String> {
    command::output(command).map(|_| String::new())
}

/// Adds up libtest's lines `test result: ok. 7 passed; …`.
fn count_passed(output: &str) -> usize {
    output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .filter_map(|line| line.split(' ').next()?.parse::<usize>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_tests_of_all_binaries_are_added_up() {
        let output = "\nrunning 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\n\
                      test result: ok. 40 passed; 0 failed; 0 ignored\n";
        assert_eq!(count_passed(output), 42);
    }
}
