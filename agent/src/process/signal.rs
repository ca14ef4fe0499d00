//! Signals and limits: what we ask of the system for ourselves and for processes that we started.
#![allow(unsafe_code)] // kill(2), signal(2), sigaction(2), mallopt(3), and mmap(2) in a handler.

use std::sync::{
    Once,
    atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
};

use super::cpu_time::clock_ns;

/// Asks a child to end, as `kill` does. One that has ended and was waited for is left alone.
pub fn terminate(child: &tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the pid is our child's until we wait for it, so no other process can have it.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// When the first signal to end came, in milliseconds of a clock that starts with the system; 0: not yet.
static ASKED_MS: AtomicU64 = AtomicU64::new(0);
/// The signal that waits until all is written; 0 if none does.
static WAITING: AtomicI32 = AtomicI32::new(0);
/// Signals so soon after the first are the same wish: a terminal and whoever passes its signals on both send
/// one.
const SAME_WISH_MS: u64 = 1000;

/// From now on what was captured is written, and a signal that would end us waits for that. One that comes
/// after another, and not at once, does not wait. `was_asked`: one has come.
pub fn write_before_signals(was_asked: bool) {
    ASKED_MS.store(if was_asked { now_ms() } else { 0 }, Ordering::Relaxed);
    let handler = asked_to_end as extern "C" fn(i32);
    set_handlers(handler as libc::sighandler_t);
}

/// All is written: signals end the process again, and first of all the one that has waited.
pub fn restore_signals() {
    set_handlers(libc::SIG_DFL);
    match WAITING.swap(0, Ordering::Relaxed) {
        0 => {}
        // SAFETY: it does what the signal would have done.
        signal => drop(unsafe { libc::raise(signal) }),
    }
}

fn set_handlers(handler: libc::sighandler_t) {
    let hangup = (!is_ignored(libc::SIGHUP)).then_some(libc::SIGHUP);
    for number in [libc::SIGINT, libc::SIGTERM].into_iter().chain(hangup) {
        // SAFETY: it replaces a handler of our own, and does only what a handler may.
        unsafe { libc::signal(number, handler) };
    }
}

extern "C" fn asked_to_end(signal: i32) {
    const TEXT: &[u8] = b"hotspan: asked again to end: what was not written yet is lost\n";
    let now = now_ms();
    let first = ASKED_MS.load(Ordering::Relaxed);
    if first == 0 {
        ASKED_MS.store(now, Ordering::Relaxed);
        WAITING.store(signal, Ordering::Relaxed);
    } else if now > first + SAME_WISH_MS {
        // SAFETY: the text has that length.
        unsafe { libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len()) };
        // SAFETY: the default action is always there.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: it comes when the handler returns, and ends us.
        unsafe { libc::raise(signal) };
    }
}

/// Never 0.
fn now_ms() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC).unwrap_or(0) / 1_000_000 + 1
}

/// Whether we ignore a signal: who starts us may have us do so, as `nohup` does.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: the structure consists of integers and pointers, for which zero is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: it only asks, and the answer has a place.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Has a command ignore signals for which we have handlers, as if we did.
pub fn ignore_in(command: &mut tokio::process::Command, signals: Vec<i32>) {
    let ignore = move || {
        for &signal in &signals {
            // SAFETY: a system call, and nothing refers to a handler.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: it only makes system calls.
    unsafe { command.pre_exec(ignore) };
}

/// Size of a page, for [`fill_in`].
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);

/// From now on, parts of mapped files that their owners cut off read as zeros. Without this, who
/// shortens a file while its symbols are read ends this process.
pub fn survive_cut_files() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: it only asks for a number.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        if let Ok(bytes) = usize::try_from(page_bytes) {
            PAGE_BYTES.store(bytes, Ordering::Relaxed);
        }
        // SAFETY: the structure consists of integers and pointers, for which zero is a value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = fill_in as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action is live, and its handler calls nothing but what handlers may call.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    });
}

/// Handles SIGBUS: puts a page of zeros where a mapped file has ended.
extern "C" fn fill_in(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid structure to a handler with SA_SIGINFO.
    let info = unsafe { &*info };
    if info.si_code == libc::BUS_ADRERR {
        let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
        // SAFETY: the kernel fills the address in for this signal.
        let addr = unsafe { info.si_addr() } as usize;
        // SAFETY: the page is one of a mapping whose file does not reach it any more, so it holds
        // nothing; what is put there is read-only, and goes with the rest when that is unmapped.
        let filled = unsafe {
            libc::mmap(
                (addr & !(page_bytes - 1)) as *mut libc::c_void,
                page_bytes,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if filled != libc::MAP_FAILED {
            return;
        }
    }
    // What is not mended happens again, and ends us as it should.
    // SAFETY: the default action replaces this handler.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
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

/// Gives memory that was freed back to the kernel. The allocator keeps it otherwise, and what it takes to
/// make tables and names once is much more than what stays.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory of the allocator only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn what_is_cut_off_a_mapped_file_reads_as_zeros() {
        survive_cut_files();
        let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 * page_bytes]).unwrap();
        // SAFETY: it makes a new mapping, of a file that is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                3 * page_bytes,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let read = |at: usize| {
            // SAFETY: the address is inside the mapping.
            let place = unsafe { start.cast::<u8>().add(at) };
            // SAFETY: as above; what is cut off is handled.
            unsafe { place.read_volatile() }
        };
        assert_eq!([read(0), read(3 * page_bytes - 1)], [7, 7]);
        file.set_len(page_bytes as u64).unwrap();
        assert_eq!([0, page_bytes, 3 * page_bytes - 1].map(read), [7, 0, 0]);
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        assert_eq!(unsafe { libc::munmap(start, 3 * page_bytes) }, 0);
    }
}
