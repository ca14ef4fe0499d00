//! The project's own commands: `cargo xtask VERB`.
//!
//! One file per verb, each with a `run` that does it. What the verbs share is about this
//! workspace ([`workspace`]), other programs ([`command`]), the steps of a long run ([`steps`])
//! and Debian's packages ([`debian`]).
//!
//! To add a verb: write `NAME.rs` with `run`, and give it a line in [`Verb`] and in `main`.

mod build_ebpf;
mod check;
mod command;
mod debian;
mod go;
mod go_parts;
mod kernels;
mod overhead;
mod steps;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Verb {
    /// Compile the kernel side from source and write ebpf/prebuilt.
    BuildEbpf(build_ebpf::Args),
    /// Formatting, lints, layers, dependency audit, docs and unit tests; needs no root.
    Check,
    /// Everything: check, the eBPF object from source, live tests on this kernel and others; needs root.
    Test(test::Args),
    /// Smoke tests on other kernels, in virtual machines; needs no root.
    Kernels(kernels::Args),
    /// Build the pinned OpenTelemetry Collector into the cache, and print the folder.
    Collector,
    /// Build the pinned Prometheus and promtool into the cache, and print the folder.
    Prometheus,
    /// Fetch a version of Go, and print where it is.
    Go(go::Args),
    /// What hotspan costs, against its promises and beside perf; needs root.
    Overhead(overhead::Args),
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Check => check::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Kernels(args) => kernels::run(&args),
        Verb::Collector => go_parts::run(&go_parts::COLLECTOR),
        Verb::Prometheus => go_parts::run(&go_parts::PROMETHEUS),
        Verb::Go(args) => go::run(&args),
        Verb::Overhead(args) => overhead::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
