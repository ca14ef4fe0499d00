//! The command line: parses arguments, runs one command, maps errors to exit codes.
//!
//! In: the process's arguments. Out: an exit code; 2 for a usage error, 1 for a failure.

mod diff;
mod flamegraph;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows which code is hot on this Linux host.
#[derive(Parser)]
#[command(
    name = "hotspan",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Flamegraph(flamegraph::Args),
    Diff(diff::Args),
}

/// A mistake in how hotspan was called: one sentence with the fix. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: anyhow::Result<ExitCode> = match cli.command {
        Command::Flamegraph(args) => flamegraph::run(&args),
        Command::Diff(args) => diff::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hotspan: {error:#}");
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}
