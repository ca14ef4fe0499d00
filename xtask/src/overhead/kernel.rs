//! What only the kernel can tell or do: the resources that an ended process used, who runs first,
//! account of the time spent in BPF programs, and a BPF program that does nothing.
// Few of these have a safe wrapper among our dependencies.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::mem::{MaybeUninit, size_of_val};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

/// Makes what is started by `command` run before whatever else the machine has to do, and end with
/// us. What is measured together has the same priority; a workload can take an even higher one.
pub fn run_first(command: &mut Command) -> &mut Command {
    const NICE: libc::c_int = -10;
    let before_exec = || {
        // SAFETY: this and the next take numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // The kernel may group tasks by session before it looks at their own priority.
        // SAFETY: see above.
        unsafe { libc::setsid() };
        // SAFETY: see above.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // Absent where the kernel does not group.
        if let Ok(mut group) = File::options().write(true).open("/proc/self/autogroup") {
            group.write_all(b"-10")?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only; the path is short enough for the
    // standard library to need no memory for it.
    unsafe { command.pre_exec(before_exec) }
}

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
        const BPF_STATS_RUN_TIME: u64 = 0;
        // SAFETY: the attribute of this command is one number.
        let fd = unsafe { bpf(BPF_ENABLE_STATS, &[BPF_STATS_RUN_TIME]) };
        Ok(Self(
            fd.context("the kernel keeps no account of BPF run times")?,
        ))
    }
}

/// A sampling program that only returns, at work on some CPUs while this lives: what it takes is
/// the price of being measured.
pub struct EmptyProgram {
    #[expect(dead_code, reason = "held, not read")]
    program: OwnedFd,
    #[expect(dead_code, reason = "held, not read")]
    clocks: Vec<OwnedFd>,
}

impl EmptyProgram {
    /// Runs it on each of `cpus`, this often.
    pub fn start(cpus: &[u32], rate_hz: u32) -> Result<Self> {
        const BPF_PROG_TYPE_PERF_EVENT: u64 = 7;
        let program = load(BPF_PROG_TYPE_PERF_EVENT, RETURN)?;
        let clocks = cpus
            .iter()
            .map(|&cpu| start_clock(cpu, rate_hz, &program))
            .collect::<io::Result<_>>();
        Ok(Self {
            program,
            clocks: clocks.context("cannot run a program at the ticks of a CPU's clock")?,
        })
    }
}

/// `r0 = 0; exit` (include/uapi/linux/bpf.h, `struct bpf_insn`).
pub const RETURN: &[u64] = &[0xb7, 0x95];

/// The same after a call of `bpf_ktime_get_ns`.
pub const READ_CLOCK: &[u64] = &[0x85 | 5 << 32, 0xb7, 0x95];

/// Programs of these instructions, at the beginning and the end of every system call while this lives.
pub struct Pair(#[expect(dead_code, reason = "held, not read")] [OwnedFd; 2]);

impl Pair {
    /// Attaches them.
    pub fn attach(instructions: &[u64]) -> Result<Self> {
        const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
        const BPF_PROG_TYPE_RAW_TRACEPOINT: u64 = 17;
        let attach = |tracepoint: &CStr| -> Result<OwnedFd> {
            let program = load(BPF_PROG_TYPE_RAW_TRACEPOINT, instructions)?;
            let attribute = [tracepoint.as_ptr() as u64, program.as_raw_fd() as u64];
            // SAFETY: the attribute points at a name that lives on, and holds a program's descriptor.
            let link = unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &attribute) };
            link.with_context(|| format!("cannot attach to {}", tracepoint.to_string_lossy()))
        };
        Ok(Self([attach(c"sys_enter")?, attach(c"sys_exit")?]))
    }
}

/// A program of these instructions.
fn load(program_type: u64, instructions: &[u64]) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    let attribute = [
        program_type | (instructions.len() as u64) << 32,
        instructions.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
    ];
    // SAFETY: the attribute starts with type and number of instructions, then points at these and at
    // the license; both live on.
    let program = unsafe { bpf(BPF_PROG_LOAD, &attribute) };
    program.context("the kernel loads no program that does nothing")
}

/// # Safety
/// `attribute` is what the command expects.
unsafe fn bpf(command: libc::c_long, attribute: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is live and its size is passed on; the caller vouches for the rest.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attribute.as_ptr(),
            size_of_val(attribute),
        )
    };
    owned(fd)
}

/// Takes what a system call that makes a descriptor returned.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// A clock of one CPU that runs `program` at its ticks, as profilers have it.
fn start_clock(cpu: u32, rate_hz: u32, program: &OwnedFd) -> io::Result<OwnedFd> {
    const PERF_TYPE_SOFTWARE: u64 = 1;
    const PERF_COUNT_SW_CPU_CLOCK: u64 = 0;
    const FREQUENCY: u64 = 1 << 10;
    const PERF_EVENT_IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
    /// `PERF_ATTR_SIZE_VER0`.
    const WORDS: usize = 8;
    let attribute: [u64; WORDS] = [
        PERF_TYPE_SOFTWARE | (WORDS as u64 * 8) << 32,
        PERF_COUNT_SW_CPU_CLOCK,
        u64::from(rate_hz),
        0,
        0,
        FREQUENCY,
        0,
        0,
    ];
    // SAFETY: the attribute is a `perf_event_attr` of the first version, which has its size in it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attribute.as_ptr(),
            -1,
            cpu as libc::c_int,
            -1,
            0 as libc::c_ulong,
        )
    };
    let clock = owned(fd)?;
    // SAFETY: this request takes a descriptor, which is open.
    let failed = unsafe {
        libc::ioctl(
            clock.as_raw_fd(),
            PERF_EVENT_IOC_SET_BPF,
            program.as_raw_fd(),
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(clock)
}
