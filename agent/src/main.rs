//! The `hotspan` binary.

fn main() -> std::process::ExitCode {
    hotspan::cli::main()
}
