//! The command line: parses arguments, runs one command, maps errors to exit codes.
//!
//! In: the process's arguments. Out: an exit code; 2 for a usage error, 1 for a failure.

mod agent;
mod checklist;
mod command;
mod diff;
mod doctor;
mod duration;
mod flamegraph;
mod output;
mod palette;
mod record;
mod show_unwind;
mod size;
mod syscalls;
mod target;

use std::{
    error::Error,
    io::{IsTerminal, Write},
    num::ParseIntError,
    process::ExitCode,
};

use clap::{
    Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Shows which code is hot on this Linux host.
#[derive(Parser)]
#[command(
    name = "hotspan",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct Cli {
    /// Tell more on standard error; twice: what the kernel side logs too
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sample CPUs, and write flame graphs, pprof files or OTLP profiles
    Record(Box<record::Args>),
    /// Draw a saved profile as a flame graph
    Flamegraph(flamegraph::Args),
    /// Draw what differs between two saved profiles
    Diff(diff::Args),
    /// Count system calls: how often, how long, with which errors
    Syscalls(syscalls::Args),
    /// Run until told to end: profiles, resource metrics and system calls, sent over OTLP and scraped
    Agent(Box<agent::Args>),
    /// Check each resource of this host: utilization, saturation, errors, and who causes them
    Use(checklist::Args),
    /// Say what this kernel and these rights allow, and how to get what is lacking
    Doctor(doctor::Args),
    /// Print the rules by which a file's stack frames are unwound
    ShowUnwind(show_unwind::Args),
}

/// Tells the user something on standard error. Where nobody can read it, there is nothing to be done.
fn tell(text: std::fmt::Arguments<'_>) {
    let text = text.to_string().replace(is_command, "?");
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether a terminal would do something else than show it.
fn is_command(c: char) -> bool {
    c.is_control() && c != '\n'
}

/// A mistake in how hotspan was called: one sentence with the fix. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    if !matches!(cli.command, Command::Agent(_)) {
        start_log(cli.verbose);
    }
    let result: anyhow::Result<ExitCode> = match cli.command {
        Command::Record(args) => record::run(&args),
        Command::Flamegraph(args) => flamegraph::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Syscalls(args) => syscalls::run(&args),
        Command::Agent(args) => agent::run(&args, cli.verbose),
        Command::Use(args) => checklist::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::ShowUnwind(args) => show_unwind::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            tell(format_args!("hotspan: {error:#}"));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// Prints help as it is, and of an error the one sentence that matters.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nothing can be done about a closed standard output.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let mut parts = text.split("\n\n").map(|part| {
        let words: Vec<_> = part.split_whitespace().collect();
        words.join(" ")
    });
    let sentence = parts.next().unwrap_or_default();
    let sentence = sentence.trim_start_matches("error: ");
    let sentence = match error.source() {
        Some(source) if source.is::<ParseIntError>() => {
            sentence.replace(&source.to_string(), "this takes a whole number")
        }
        _ => sentence.to_owned(),
    };
    let is_word = |argument: &ContextValue| !argument.to_string().starts_with('-');
    let tip = match error.get(ContextKind::InvalidArg) {
        Some(argument) if error.kind() == ErrorKind::UnknownArgument && is_word(argument) => {
            Some("a command comes behind `--`".to_owned())
        }
        _ => parts.find_map(|part| {
            let first = part.strip_prefix("tip: ")?.split(" tip: ").next()?;
            Some(first.to_owned())
        }),
    };
    let tip = tip.map_or_else(String::new, |tip| format!(" ({tip})"));
    tell(format_args!(
        "hotspan: {sentence}{tip}; `hotspan --help` and `hotspan COMMAND --help` tell more"
    ));
    ExitCode::from(2)
}

/// Logs to standard error: warnings only, unless more is asked for.
fn start_log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}
