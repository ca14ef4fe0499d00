//! Signals to processes that we started.
#![allow(unsafe_code)] // kill(2).

/// Asks a child to end, as `kill` does. One that has ended and was waited for is left alone.
pub fn terminate(child: &tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the pid is our child's until we wait for it, so no other process can have it.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}
