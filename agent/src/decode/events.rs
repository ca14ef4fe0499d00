//! What the kinds of events are: why threads wait in which system call, and the numbers of disks.

use hotspan_abi::resources::{Event, WAITING_SYSCALLS};

use super::syscalls::syscall_name;

/// Why a thread waits in a system call, for those that are made to wait.
pub fn waits() -> impl Iterator<Item = (u32, Event)> {
    (0..WAITING_SYSCALLS as u32)
        .filter_map(|number| Some((number, wait_of(&syscall_name(number))?)))
}

/// Names are the same on all processors, where there is such a call.
fn wait_of(syscall: &str) -> Option<Event> {
    Some(match syscall {
        "futex" | "futex_wait" | "futex_waitv" | "futex_requeue" | "flock" | "semop"
        | "semtimedop" => Event::OffLock,
        "nanosleep" | "clock_nanosleep" => Event::OffSleep,
        "poll" | "ppoll" | "select" | "pselect6" | "epoll_wait" | "epoll_pwait"
        | "epoll_pwait2" | "io_uring_enter" | "io_getevents" | "io_pgetevents" => Event::OffPoll,
        "recvfrom" | "recvmsg" | "recvmmsg" | "sendto" | "sendmsg" | "sendmmsg" | "connect"
        | "accept" | "accept4" | "shutdown" => Event::OffNetwork,
        "read" | "readv" | "pread64" | "preadv" | "preadv2" | "write" | "writev" | "pwrite64"
        | "pwritev" | "pwritev2" | "splice" | "tee" | "vmsplice" | "sendfile"
        | "copy_file_range" => Event::OffReadWrite,
        "wait4" | "waitid" | "vfork" | "clone" | "clone3" => Event::OffChild,
        "pause" | "rt_sigtimedwait" | "rt_sigsuspend" => Event::OffSignal,
        _ => return None,
    })
}

/// Major and minor number of a disk.
#[must_use]
pub fn disk_numbers(disk: u32) -> (u32, u32) {
    (disk >> 20, disk & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_wait_have_a_reason() {
        let waits: Vec<_> = waits().collect();
        let of = |number: i64| waits.iter().find(|(known, _)| i64::from(*known) == number);
        assert_eq!(of(libc::SYS_futex).unwrap().1, Event::OffLock);
        assert_eq!(of(libc::SYS_ppoll).unwrap().1, Event::OffPoll);
        assert_eq!(of(libc::SYS_accept4).unwrap().1, Event::OffNetwork);
        assert_eq!(of(libc::SYS_getpid), None);
        assert!(waits.len() > 30, "{}", waits.len());
    }
}
