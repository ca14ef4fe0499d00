//! What only an attempt shows: programs, maps, helpers and events are made, and dropped at once.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya_obj::btf::{Btf, BtfKind};

use super::Check;
use super::catalogue::{
    CPU_CLOCK, Feature, HELPERS, MAPS, NO_PREALLOC, PROG_TYPE_KPROBE, PROG_TYPE_PERF_EVENT,
    PROG_TYPE_RAW_TRACEPOINT, PROG_TYPE_TRACEPOINT, PROG_TYPE_TRACING, PROGRAMS, TASK_STORAGE,
    TRACE_FENTRY, TRACE_RAW_TP,
};
use super::host::{Host, KernelVersion};
use super::rights::{self, Rights, SYS_ADMIN};
use super::settings::MEMLOCK_FIX;
use crate::capture::bpf_syscall::{
    self as syscall, Event, Instruction, LoadError, Map, Program, Scope, instruction,
};

/// A trace point that fires rarely, in every kernel.
const TRACEPOINT: &str = "sched_process_exit";
/// A function that exists to be attached to: nothing but the kernel's own tests calls it.
const FUNCTION: &str = "bpf_fentry_test1";
const FUNCTION_C: &CStr = c"bpf_fentry_test1";

const MOV_R0_0: Instruction = instruction(0xb7, 0, 0, 0, 0);
const MOV_R0_1: Instruction = instruction(0xb7, 0, 0, 0, 1);
const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// Returns 1, which lets other users of the same trace point have their event.
const PASS: &[Instruction] = &[MOV_R0_1, EXIT];
/// Returns 0, all that a program at a function's entry may return.
const NOTHING: &[Instruction] = &[MOV_R0_0, EXIT];

/// Step of an attempt: opening an event.
const OPEN: &str = "open";
/// Step of an attempt: making a map.
pub(super) const CREATE: &str = "create";

/// How far an attempt came.
pub(super) type Attempt = Result<&'static str, Refusal>;

/// Where an attempt ended, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    step: &'static str,
    error: io::Error,
    /// What the verifier said last.
    remark: String,
}

impl Refusal {
    pub(super) fn at(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self {
            step,
            error,
            remark: String::new(),
        }
    }

    fn is_permission(&self) -> bool {
        // The verifier also says EACCES, but then it says why.
        self.remark.is_empty() && self.error.kind() == io::ErrorKind::PermissionDenied
    }

    fn text(&self) -> String {
        let Self {
            step,
            error,
            remark,
        } = self;
        if remark.is_empty() {
            format!("{step}: {error}")
        } else {
            format!("{step}: {error}: {remark}")
        }
    }
}

impl From<LoadError> for Refusal {
    fn from(failed: LoadError) -> Self {
        // The last lines are statistics such as `processed 2 insns`.
        let remark = failed
            .log
            .lines()
            .rfind(|line| !line.trim().is_empty() && !line.starts_with("processed "))
            .unwrap_or_default()
            .to_owned();
        Self {
            step: "load",
            error: failed.error,
            remark,
        }
    }
}

fn not_there() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

/// Makes the attempts.
pub(super) struct Prober {
    host: Host,
    rights: Rights,
    kernel: Option<KernelVersion>,
    /// The kernel's type information.
    btf: Option<Btf>,
    /// A CPU that is online.
    cpu: u32,
}

impl Prober {
    pub(super) fn new(host: Host, rights: Rights) -> Self {
        let online = host.read("/sys/devices/system/cpu/online");
        let kernel = host.find_kernel_version();
        if rights::has_memlock_accounting(kernel) {
            // As recording does. Where it fails, making maps tells.
            let _ = syscall::lift_memlock();
        }
        Self {
            kernel,
            btf: Btf::from_sys_fs().ok(),
            cpu: online.map_or(0, |list| parse_first_cpu(&list)),
            host,
            rights,
        }
    }

    pub(super) fn event_checks(&self) -> Vec<Check> {
        let clock = self.open_clock().map(|_| "opens on a whole CPU");
        vec![self.check(&CPU_CLOCK, clock), hardware_pmu()]
    }

    pub(super) fn program_checks(&self) -> Vec<Check> {
        PROGRAMS
            .iter()
            .map(|probe| self.check(&probe.feature, (probe.attempt)(self)))
            .collect()
    }

    pub(super) fn map_checks(&self) -> Vec<Check> {
        let mut checks: Vec<Check> = MAPS
            .iter()
            .map(|probe| {
                let created = syscall::create_map(&probe.map);
                self.check(&probe.feature, as_attempt(created))
            })
            .collect();
        checks.push(self.check(&TASK_STORAGE, as_attempt(create_task_storage())));
        checks
    }

    pub(super) fn helper_checks(&self) -> Vec<Check> {
        HELPERS
            .iter()
            .map(|probe| self.check(&probe.feature, try_helper(probe.number, probe.kind)))
            .collect()
    }

    pub(super) fn check(&self, feature: &Feature, attempt: Attempt) -> Check {
        let id = feature.id;
        match attempt {
            Ok(value) => Check::ok(id, value),
            Err(refusal) => {
                let fix = self.fix(&refusal, feature.cure);
                let check = if feature.is_required {
                    Check::fail
                } else {
                    Check::warn
                };
                check(id, refusal.text(), feature.costs, fix)
            }
        }
    }

    fn fix(&self, refusal: &Refusal, cure: &str) -> String {
        if !refusal.is_permission() {
            return cure.to_owned();
        }
        if !self.rights.can_record() {
            return self.rights.fix_recording();
        }
        if refusal.step == CREATE && rights::has_memlock_accounting(self.kernel) {
            return MEMLOCK_FIX.to_owned();
        }
        let is_admin = self.rights.has(&SYS_ADMIN);
        if refusal.step == OPEN && !is_admin && self.find_paranoid_level() > Some(2) {
            return "sysctl -w kernel.perf_event_paranoid=2, or CAP_SYS_ADMIN".to_owned();
        }
        if !is_admin {
            // perf_event_open(2) asks for it before it makes a uprobe, CAP_PERFMON or not.
            return self.rights.fix(&[SYS_ADMIN]);
        }
        "the rights are there, so a policy of this machine forbids it: have it allowed in \
         lockdown, the LSMs or the seccomp filter"
            .to_owned()
    }

    fn find_paranoid_level(&self) -> Option<i64> {
        self.host
            .read_number("/proc/sys/kernel/perf_event_paranoid")
    }

    fn open_clock(&self) -> Result<OwnedFd, Refusal> {
        let clock = Event::CpuClock {
            period_ns: 10_000_000,
        };
        syscall::open_event(clock, Scope::Cpu(self.cpu)).map_err(Refusal::at(OPEN))
    }

    pub(super) fn perf_event(&self) -> Attempt {
        let program = load(PROG_TYPE_PERF_EVENT, PASS)?;
        let event = self.open_clock()?;
        attach(&event, &program)
    }

    pub(super) fn raw_tracepoint(&self) -> Attempt {
        let program = load(PROG_TYPE_RAW_TRACEPOINT, PASS)?;
        attach_raw(&program, Some(c"sched_process_exit"))
    }

    pub(super) fn tracepoint(&self) -> Attempt {
        let program = load(PROG_TYPE_TRACEPOINT, PASS)?;
        let Some(tracefs) = self.host.mounts("tracefs").into_iter().next() else {
            return Ok("loads; not attached, because tracefs is not mounted");
        };
        let id = self
            .host
            .read(&format!("{tracefs}/events/sched/{TRACEPOINT}/id"))
            .map_err(Refusal::at("read its number in tracefs"))?;
        let event = Event::Tracepoint {
            id: id.parse().unwrap_or(0),
        };
        let event = syscall::open_event(event, Scope::Cpu(self.cpu)).map_err(Refusal::at(OPEN))?;
        attach(&event, &program)
    }

    pub(super) fn tp_btf(&self) -> Attempt {
        let name = format!("btf_trace_{TRACEPOINT}");
        let program = self.load_tracing(TRACE_RAW_TP, &name, BtfKind::Typedef, PASS)?;
        attach_raw(&program, None)
    }

    pub(super) fn fentry(&self) -> Attempt {
        let program = self.load_tracing(TRACE_FENTRY, FUNCTION, BtfKind::Func, NOTHING)?;
        attach_raw(&program, None)
    }

    pub(super) fn kprobe(&self) -> Attempt {
        let program = load(PROG_TYPE_KPROBE, PASS)?;
        let event = Event::Kprobe {
            source: self.find_source("kprobe")?,
            function: FUNCTION_C,
        };
        let event = syscall::open_event(event, Scope::Cpu(self.cpu)).map_err(Refusal::at(OPEN))?;
        attach(&event, &program)
    }

    pub(super) fn uprobe(&self) -> Attempt {
        let program = load(PROG_TYPE_KPROBE, PASS)?;
        let maps = self.host.read("/proc/self/maps").unwrap_or_default();
        let address = uprobe_target as *const () as u64;
        let event = Event::Uprobe {
            source: self.find_source("uprobe")?,
            path: c"/proc/self/exe",
            offset: find_file_offset(&maps, address)
                .ok_or_else(not_there)
                .map_err(Refusal::at("find own code"))?,
        };
        let event = syscall::open_event(event, Scope::ThisThread).map_err(Refusal::at(OPEN))?;
        attach(&event, &program)
    }

    /// Number of an event source that is no fixed part of perf_event_open(2).
    fn find_source(&self, name: &str) -> Result<u32, Refusal> {
        self.host
            .read_number(&format!("/sys/bus/event_source/devices/{name}/type"))
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(not_there)
            .map_err(Refusal::at("find its event source"))
    }

    fn load_tracing(
        &self,
        attach_type: u32,
        name: &str,
        kind: BtfKind,
        instructions: &[Instruction],
    ) -> Result<OwnedFd, Refusal> {
        let id = self
            .btf
            .as_ref()
            .and_then(|btf| btf.id_by_type_name_kind(name, kind).ok())
            .ok_or_else(not_there)
            .map_err(Refusal::at("find it in BTF"))?;
        let program = Program {
            kind: PROG_TYPE_TRACING,
            attach_type,
            attach_btf_id: id,
            instructions,
        };
        Ok(syscall::load_program(&program)?)
    }
}

fn as_attempt(created: io::Result<OwnedFd>) -> Attempt {
    created.map(|_| "can be made").map_err(Refusal::at(CREATE))
}

fn load(kind: u32, instructions: &[Instruction]) -> Result<OwnedFd, Refusal> {
    let program = Program {
        kind,
        attach_type: 0,
        attach_btf_id: 0,
        instructions,
    };
    Ok(syscall::load_program(&program)?)
}

fn attach(event: &OwnedFd, program: &OwnedFd) -> Attempt {
    syscall::attach_to_event(event.as_fd(), program.as_fd())
        .map(|()| "loads and attaches")
        .map_err(Refusal::at("attach"))
}

fn attach_raw(program: &OwnedFd, name: Option<&CStr>) -> Attempt {
    syscall::attach_raw(program.as_fd(), name)
        .map(|_| "loads and attaches")
        .map_err(Refusal::at("attach"))
}

/// Whether the kernel has a helper for a program type: loads a program that calls it without
/// arguments. When the kernel has it, the verifier accepts the call or complains of the arguments;
/// when not, it says so in one of three ways, by kernel version.
fn try_helper(number: i32, kind: u32) -> Attempt {
    const HAS: &str = "callable";
    let call = instruction(0x85, 0, 0, 0, number);
    let program = Program {
        kind,
        attach_type: 0,
        attach_btf_id: 0,
        instructions: &[call, MOV_R0_0, EXIT],
    };
    match syscall::load_program(&program) {
        Ok(_) => Ok(HAS),
        Err(failed) if is_argument_complaint(&failed.log) => Ok(HAS),
        Err(failed) => Err(failed.into()),
    }
}

fn is_argument_complaint(log: &str) -> bool {
    const UNKNOWN: &[&str] = &["invalid func", "unknown func", "cannot use helper"];
    !log.trim().is_empty() && !UNKNOWN.iter().any(|words| log.contains(words))
}

fn create_task_storage() -> io::Result<OwnedFd> {
    let btf = syscall::load_btf(&btf_of_an_int())?;
    syscall::create_map(&Map {
        kind: 29,
        key_bytes: 4,
        value_bytes: 4,
        max_entries: 0,
        flags: NO_PREALLOC,
        btf: Some(btf.as_fd()),
    })
}

/// Type information with one type, a signed integer of 32 bits (Documentation/bpf/btf.rst).
fn btf_of_an_int() -> Vec<u8> {
    const KIND_INT: u32 = 1 << 24;
    const SIGNED: u32 = 1 << 24;
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    let header = [24, 0, 16, 16, 1];
    let int = [0, KIND_INT, 4, SIGNED | 32];
    for word in header.into_iter().chain(int) {
        bytes.extend(word.to_le_bytes());
    }
    // The strings: the empty one.
    bytes.push(0);
    bytes
}

fn hardware_pmu() -> Check {
    const ID: &str = "hardware_pmu";
    // hotspan samples the CPU clock where there is one too, so that a sample stands for time.
    match syscall::open_event(Event::Cycles, Scope::ThisThread) {
        Ok(_) => Check::ok(ID, "present; samples are taken by the CPU clock"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Check::ok(
            ID,
            "unknown without rights; samples are taken by the CPU clock",
        ),
        Err(_) => Check::ok(
            ID,
            "absent, as in most VMs; samples are taken by the CPU clock",
        ),
    }
}

/// Code of our own to put a probe on. Nobody calls it.
#[inline(never)]
extern "C" fn uprobe_target() {
    std::hint::black_box(());
}

/// Where in its file an address of a process lies, by `/proc/PID/maps`.
fn find_file_offset(maps: &str, address: u64) -> Option<u64> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    maps.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (hex(start)?, hex(end)?);
        let file_offset = hex(fields.nth(1)?)?;
        (start..end)
            .contains(&address)
            .then(|| address - start + file_offset)
    })
}

/// The first CPU of a list such as `0-3,5`.
fn parse_first_cpu(list: &str) -> u32 {
    let first = list.split(['-', ',']).next().unwrap_or_default();
    first.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn the_verifiers_words_tell_a_missing_helper_from_a_bad_call() {
        let check = |log, expected| assert_eq!(is_argument_complaint(log), expected, "{log}");
        check("0: (85) call bpf_loop#181\nR1 !read_ok\n", true);
        check(
            "0: (85) call unknown#181\ninvalid func unknown#181\n",
            false,
        );
        check("unknown func bpf_loop#181\n", false);
        check(
            "program of this type cannot use helper bpf_loop#181\n",
            false,
        );
        check("", false);
    }

    #[test]
    fn a_refusal_shows_what_the_verifier_said_last() {
        let refusal = Refusal::from(LoadError {
            error: io::Error::from_raw_os_error(libc::EACCES),
            log: "0: (85) call\nR1 !read_ok\nprocessed 1 insns\n".to_owned(),
        });
        assert!(refusal.text().ends_with("R1 !read_ok"));
        assert!(!refusal.is_permission());
    }

    #[test]
    fn an_absent_event_is_not_a_matter_of_rights() {
        let host = Host::at("/nowhere");
        let prober = Prober {
            rights: Rights::read(&host),
            host,
            kernel: None,
            btf: None,
            cpu: 0,
        };
        let absent = Refusal::at(OPEN)(not_there());
        assert_eq!(prober.fix(&absent, "the cure"), "the cure");
        let denied = Refusal::at(OPEN)(io::Error::from_raw_os_error(libc::EACCES));
        assert!(prober.fix(&denied, "the cure").contains("root"));
    }

    #[test]
    fn an_address_is_found_in_its_file() {
        let maps = "55d0-55e0 r--p 00000000 fe:00 12 /bin/x\n\
                    55e0-5600 r-xp 00000100 fe:00 12 /bin/x\n\
                    7ffe-8000 rw-p 00000000 00:00 0                  [stack]\n";
        assert_eq!(find_file_offset(maps, 0x55e4), Some(0x104));
        assert_eq!(find_file_offset(maps, 0x5600), None);
        assert_eq!(find_file_offset("broken", 0), None);
    }

    #[test]
    fn the_first_cpu_of_a_list_may_be_alone() {
        let check = |list, expected| assert_eq!(parse_first_cpu(list), expected, "{list}");
        check("0-3,5", 0);
        check("2,4-7", 2);
        check("1", 1);
        check("", 0);
    }

    #[test]
    fn attempts_without_rights_end_in_a_status_and_not_in_a_panic() {
        let host = Host::this();
        let rights = Rights::read(&host);
        let prober = Prober::new(host, rights);
        let checks = [
            prober.event_checks(),
            prober.program_checks(),
            prober.map_checks(),
            prober.helper_checks(),
        ]
        .concat();
        assert!(checks.iter().all(Check::is_complete));
        if !prober.rights.can_record() {
            assert!(checks.iter().any(|check| check.status == Status::Fail));
        }
    }
}
