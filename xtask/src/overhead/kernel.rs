//! What only the kernel can tell: the resources that an ended process used, and whether it keeps
//! account of the time spent in BPF programs.
// wait4 and bpf(2) have no safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

/// What a process and the children it waited for have used.
pub struct Usage {
    /// How it ended.
    pub status: ExitStatus,
    /// User and system time.
    pub cpu: Duration,
    /// Peak of its resident memory. The kernel counts what it was before `exec` too, that is our
    /// own memory: a few megabytes, less than any profiler's.
    pub peak_rss_bytes: u64,
}

/// Waits for the end of `child`.
pub fn wait(child: Child) -> io::Result<Usage> {
    use std::os::unix::process::ExitStatusExt;

    let pid = child.id() as libc::pid_t;
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both results are live variables of the types that wait4 writes.
        let ended = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if ended == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: a rusage is plain numbers; it was zeroed, and then written by wait4.
    let usage = unsafe { usage.assume_init() };
    Ok(Usage {
        status: ExitStatus::from_raw(status),
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        peak_rss_bytes: usage.ru_maxrss as u64 * 1024,
    })
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
}

/// The kernel keeps account of run times while this lives, whatever `kernel.bpf_stats_enabled`
/// says: other programs may clear that under way.
pub struct BpfStats(#[expect(dead_code, reason = "held, not read")] OwnedFd);

impl BpfStats {
    /// Starts the account (kernel 5.8).
    pub fn enable() -> Result<Self> {
        const BPF_ENABLE_STATS: libc::c_long = 32;
        const BPF_STATS_RUN_TIME: u32 = 0;
        let attribute = BPF_STATS_RUN_TIME;
        // SAFETY: the attribute of this command is one 32-bit number, and its size is passed on.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_ENABLE_STATS,
                &raw const attribute,
                size_of::<u32>(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error())
                .context("the kernel keeps no account of BPF run times");
        }
        // SAFETY: the kernel just made this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
    }
}
