//! What is looked at: the arguments that `record` and `syscalls` share.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::UsageError;
use crate::{
    capture::{Cgroup, Target},
    process,
};

/// Processes, a cgroup, or the whole host.
#[derive(clap::Args, Debug)]
pub struct TargetArgs {
    /// This process, all its threads (repeatable)
    #[arg(short, long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
    /// The whole host (the default)
    #[arg(short, long)]
    all: bool,
    /// This cgroup and all below it: a directory, or a path inside a hierarchy
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// With --pid: also processes that it starts from now on
    #[arg(long)]
    pub children: bool,
}

impl TargetArgs {
    /// The target, when this command is run, if any.
    ///
    /// # Errors
    /// When the arguments exclude each other, or name what is not there.
    pub fn target(&self, command: &[OsString]) -> Result<Target> {
        let named = [
            !self.pids.is_empty(),
            self.all,
            self.cgroup.is_some(),
            !command.is_empty(),
        ];
        if named.iter().filter(|&&is_named| is_named).count() > 1 {
            return Err(UsageError(
                "--pid, --all, --cgroup and a command exclude each other; name one of them".into(),
            )
            .into());
        }
        if self.children && self.pids.is_empty() {
            return Err(UsageError(
                "--children goes with --pid; a command's children are followed anyway".into(),
            )
            .into());
        }
        let ends_with_dashes = std::env::args_os()
            .next_back()
            .is_some_and(|last| last == "--");
        if command.is_empty() && ends_with_dashes {
            return Err(UsageError(
                "there is no command behind --; name one, or leave -- out".into(),
            )
            .into());
        }
        for &pid in &self.pids {
            if !process::is_running(pid) {
                bail!("there is no process {pid}; `ps -e` shows which there are");
            }
            if let Some(process) = process::process_of_thread(pid).filter(|&process| process != pid)
            {
                return Err(UsageError(format!(
                    "{pid} is a thread of process {process}; use --pid {process}"
                ))
                .into());
            }
        }
        Ok(match &self.cgroup {
            Some(path) => Target::Cgroup(Cgroup::find(path)?),
            None if self.pids.is_empty() && command.is_empty() => Target::All,
            None => Target::Pids,
        })
    }
}
