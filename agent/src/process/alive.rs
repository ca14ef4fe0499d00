//! Whether processes that were named still run, asked with one system call for all of them.
#![allow(unsafe_code)] // pidfd_open(2) and poll(2).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::proc_files;

/// Processes that are watched for their end.
#[derive(Debug, Default)]
pub struct Watched {
    /// Readable once the process has ended, be it waited for or not.
    handles: Vec<OwnedFd>,
    /// Processes for which there is no handle: `/proc` tells.
    others: Vec<u32>,
}

impl Watched {
    /// Watches processes; those that have ended already count as ended.
    #[must_use]
    pub fn new(pids: &[u32]) -> Self {
        let mut watched = Self::default();
        for &pid in pids {
            match open_handle(pid) {
                Some(handle) => watched.handles.push(handle),
                None => watched.others.push(pid),
            }
        }
        watched
    }

    /// Whether any of them runs. Those that have ended are not looked at again.
    pub fn is_any_running(&mut self) -> bool {
        self.others.retain(|&pid| proc_files::is_running(pid));
        self.retain_running();
        !self.handles.is_empty() || !self.others.is_empty()
    }

    fn retain_running(&mut self) {
        let mut polled: Vec<_> = self
            .handles
            .iter()
            .map(|handle| libc::pollfd {
                fd: handle.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        if polled.is_empty() {
            return;
        }
        // SAFETY: the pointer and the length are those of a live vector.
        let ended = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, 0) };
        if ended > 0 {
            let mut polled = polled.iter();
            self.handles
                .retain(|_| polled.next().is_none_or(|handle| handle.revents == 0));
        }
    }
}

/// A handle of a process; `None` when it has ended, or a sandbox refuses the system call.
fn open_handle(pid: u32) -> Option<OwnedFd> {
    // SAFETY: it takes two integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        return None;
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn child() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn process_that_nobody_waited_for_has_ended() {
        let (mut first, mut second) = (child(), child());
        let mut watched = Watched::new(&[first.id(), second.id()]);
        assert!(watched.is_any_running());
        first.kill().unwrap();
        assert!(watched.is_any_running());
        second.kill().unwrap();
        // Its end takes a moment.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while watched.is_any_running() {
            assert!(std::time::Instant::now() < until, "a killed process runs");
        }
        first.wait().unwrap();
        second.wait().unwrap();
    }

    #[test]
    fn process_that_never_was_does_not_run() {
        assert!(!Watched::new(&[1 << 30]).is_any_running());
        assert!(!Watched::default().is_any_running());
    }
}
