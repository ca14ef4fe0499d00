//! Signals and limits: what we ask of the system for ourselves and for processes that we started.
#![allow(unsafe_code)] // kill(2), signal(2) and mallopt(3).

/// Asks a child to end, as `kill` does. One that has ended and was waited for is left alone.
pub fn terminate(child: &tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the pid is our child's until we wait for it, so no other process can have it.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Lets the signals that end a recording end the process from now on: one more Ctrl-C is meant for
/// us.
pub fn restore_signals() {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the default action replaces a handler of our own.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Raises the limit of open files to what is allowed, and returns it: every file that is executed
/// stays open until it has been named.
pub fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is written to a live variable.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: the limit is read from a live variable.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => raised.rlim_cur,
        _ => limit.rlim_cur,
    }
}

/// Lets all threads share one heap. Else each thread keeps for itself what it has freed, and the
/// threads that make unwind tables have the largest vectors of all; they hardly ever allocate at the
/// same time.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes a setting of the allocator, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
