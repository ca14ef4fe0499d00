//! A command that is run to be looked at: how it starts, and what its end means for ours.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};

use anyhow::{Result, anyhow};
use tokio::process::{Child, Command};

use crate::pipeline::EndSignals;

/// Starts a command by `launch`, if there is one, in the same circumstances as without us, but for this: with
/// `keep_stdout`, standard output is ours, and the command's goes to standard error.
///
/// # Errors
/// When it cannot be started; the text says why.
pub fn start(
    words: &[OsString],
    keep_stdout: bool,
    signals: &EndSignals,
    launch: impl FnOnce(&mut Command) -> Result<Child>,
) -> Result<Option<Child>> {
    let Some((program, arguments)) = words.split_first() else {
        return Ok(None);
    };
    let mut command = Command::new(program);
    command.args(arguments);
    signals.leave_ignored(&mut command);
    if keep_stdout {
        command.stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
    }
    let child = launch(&mut command).map_err(|error| {
        let program = program.display();
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => {
                anyhow!("there is no program {program}; check the name and $PATH")
            }
            Some(io::ErrorKind::PermissionDenied) => {
                anyhow!("{program} is no program that may be run; check its permissions")
            }
            _ => error.context(format!("cannot start {program}")),
        }
    })?;
    Ok(Some(child))
}

/// The command's own exit code, or 128 and the signal that ended it, as a shell has it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
