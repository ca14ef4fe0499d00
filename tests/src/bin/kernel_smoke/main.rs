//! Smoke tests of hotspan on one kernel: the first process of a virtual machine that `cargo xtask
//! kernels` boots.
//!
//! In: hotspan (`$HOTSPAN_BIN`) and the compiled workloads (`$HOTSPAN_WORKLOADS`). Out: on standard
//! output, which is the serial console, the lines of [`report`]. What a kernel may lack is not known
//! here, but in `tests/kernels.toml`. Started by hand, as root, it runs the same checks on the host.

mod checks;
mod machine;
mod report;

use std::process::ExitCode;

use report::Report;

fn main() -> ExitCode {
    let is_machine = std::process::id() == 1;
    if is_machine {
        machine::set_up().expect("the kernel mounts its own file systems");
    }
    let mut report = Report::default();
    checks::run(&mut report);
    let is_good = report.finish();
    if is_machine {
        machine::power_off();
    }
    ExitCode::from(u8::from(!is_good))
}
