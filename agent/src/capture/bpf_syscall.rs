//! The few bpf(2) and perf_event_open(2) calls that aya offers no way to make: programs written as
//! bare instructions, and maps and events that exist only to learn whether the kernel has them.
//!
//! In: instructions and descriptions. Out: file descriptors that undo everything when dropped.
//! Structures follow `include/uapi/linux/bpf.h` and `perf_event.h`; the kernel takes a shorter
//! structure than its own and reads the rest as zero.

#![allow(unsafe_code, reason = "system calls that neither std nor aya wraps")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use aya_obj::generated::perf_event_attr;
use aya_obj::generated::perf_type_id::{
    PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT,
};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_BTF_LOAD: libc::c_int = 18;

const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// `_IOW('$', 8, __u32)`.
const PERF_EVENT_IOC_SET_BPF: libc::Ioctl = 0x4004_2408;

/// Bytes for the verifier's words: it needs few for programs of a handful of instructions.
const LOG_BYTES: usize = 16 << 10;

/// One BPF instruction as the kernel reads it (`struct bpf_insn`, little endian).
pub type Instruction = u64;

/// Builds an instruction from its fields.
#[must_use]
pub const fn instruction(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Instruction {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (offset as u16 as u64) << 16
        | (imm as u32 as u64) << 32
}

/// A program to load.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// `BPF_TRACE_*`, 0 where the type has none.
    pub attach_type: u32,
    /// BTF id of the kernel's function or trace point, 0 where the type has none.
    pub attach_btf_id: u32,
    /// The code.
    pub instructions: &'a [Instruction],
}

/// Why a program was not loaded.
#[derive(Debug)]
pub struct LoadError {
    /// What bpf(2) returned.
    pub error: io::Error,
    /// What the verifier said; empty when the program did not get that far.
    pub log: String,
}

/// A map to create.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_bytes: u32,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// How many entries; bytes for a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// BTF in which type 1 describes both key and value, for map types that demand it.
    pub btf: Option<BorrowedFd<'a>>,
}

/// An event to open, to learn whether the kernel has it. None of them is ever enabled.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The CPU clock, sampled every so many nanoseconds.
    CpuClock {
        /// Nanoseconds between two samples.
        period_ns: u64,
    },
    /// Cycles of user code, counted by the CPU itself.
    Cycles,
    /// A trace point.
    Tracepoint {
        /// Its number in tracefs.
        id: u64,
    },
    /// A probe at the first instruction of a kernel function.
    Kprobe {
        /// Number of the `kprobe` event source.
        source: u32,
        /// Name of the function.
        function: &'a CStr,
    },
    /// A probe in a file.
    Uprobe {
        /// Number of the `uprobe` event source.
        source: u32,
        /// The file.
        path: &'a CStr,
        /// Where in the file.
        offset: u64,
    },
}

/// What an event watches.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// Everything that runs on this CPU.
    Cpu(u32),
    /// The calling thread, on any CPU.
    ThisThread,
}

#[repr(C)]
struct MapElementAttr {
    map_fd: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
}
const _: () = assert!(size_of::<MapCreateAttr>() == 60);

#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}
const _: () = assert!(size_of::<ProgLoadAttr>() == 112);

#[repr(C)]
struct RawTracepointAttr {
    name: u64,
    prog_fd: u32,
    _pad: u32,
}

#[repr(C)]
#[derive(Default)]
struct BtfLoadAttr {
    btf: u64,
    log_buf: u64,
    btf_size: u32,
    log_size: u32,
    log_level: u32,
    _pad: u32,
}

/// Loads a program under a GPL-compatible licence.
///
/// # Errors
///
/// What bpf(2) returned, and the verifier's log.
pub fn load_program(program: &Program<'_>) -> Result<OwnedFd, LoadError> {
    let mut log = vec![0_u8; LOG_BYTES];
    let attr = ProgLoadAttr {
        prog_type: program.kind,
        expected_attach_type: program.attach_type,
        attach_btf_id: program.attach_btf_id,
        insn_cnt: program.instructions.len() as u32,
        insns: program.instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: LOG_BYTES as u32,
        log_buf: log.as_mut_ptr() as u64,
        ..ProgLoadAttr::default()
    };
    // SAFETY: the instructions, the licence and the log outlive the call, their lengths are
    // theirs, and the kernel writes to the log alone.
    let loaded = unsafe { bpf(BPF_PROG_LOAD, &attr) };
    loaded.map_err(|error| {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        LoadError {
            error,
            log: String::from_utf8_lossy(text).into_owned(),
        }
    })
}

/// Lifts this process's limit of locked memory, which BPF maps count against before Linux 5.11.
///
/// # Errors
///
/// What setrlimit(2) returned: it takes `CAP_SYS_RESOURCE`.
pub fn lift_memlock() -> io::Result<()> {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure outlives the call, which only reads it.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Creates a map.
///
/// # Errors
///
/// What bpf(2) returned.
pub fn create_map(map: &Map<'_>) -> io::Result<OwnedFd> {
    let type_id = u32::from(map.btf.is_some());
    let attr = MapCreateAttr {
        map_type: map.kind,
        key_size: map.key_bytes,
        value_size: map.value_bytes,
        max_entries: map.max_entries,
        map_flags: map.flags,
        btf_fd: map.btf.map_or(0, |btf| btf.as_raw_fd() as u32),
        btf_key_type_id: type_id,
        btf_value_type_id: type_id,
        ..MapCreateAttr::default()
    };
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(BPF_MAP_CREATE, &attr) }
}

/// Puts a map into an array of maps. When that is done, the kernel waits until all programs are over that may not
/// have seen it: some 10 ms.
///
/// # Errors
///
/// What bpf(2) returned.
pub fn set_inner_map(outer: BorrowedFd<'_>, index: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let mut inner = inner.as_raw_fd() as u32;
    map_element(BPF_MAP_UPDATE_ELEM, outer, index, &mut inner)
}

/// Whether an array of maps has one at an index.
#[must_use]
pub fn has_inner_map(outer: BorrowedFd<'_>, index: u32) -> bool {
    map_element(BPF_MAP_LOOKUP_ELEM, outer, index, &mut 0).is_ok()
}

/// Sets or looks up an element of an array of maps: a file descriptor, or the map's number.
fn map_element(
    command: libc::c_int,
    outer: BorrowedFd<'_>,
    index: u32,
    inner: &mut u32,
) -> io::Result<()> {
    let attr = MapElementAttr {
        map_fd: outer.as_raw_fd() as u32,
        _pad: 0,
        key: &raw const index as u64,
        value: &raw mut *inner as u64,
        flags: 0,
    };
    let bytes = size_of::<MapElementAttr>();
    // SAFETY: key and value are four bytes each, as the map's are, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, bytes) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Loads type information.
///
/// # Errors
///
/// What bpf(2) returned.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let attr = BtfLoadAttr {
        btf: btf.as_ptr() as u64,
        btf_size: btf.len() as u32,
        ..BtfLoadAttr::default()
    };
    // SAFETY: the bytes outlive the call and their length is theirs.
    unsafe { bpf(BPF_BTF_LOAD, &attr) }
}

/// Attaches a program to a raw trace point: the one named, or for a program that was loaded for
/// one (`tp_btf`, `fentry`) that one.
///
/// # Errors
///
/// What bpf(2) returned.
pub fn attach_raw(program: BorrowedFd<'_>, name: Option<&CStr>) -> io::Result<OwnedFd> {
    let attr = RawTracepointAttr {
        name: name.map_or(0, |name| name.as_ptr() as u64),
        prog_fd: program.as_raw_fd() as u32,
        _pad: 0,
    };
    // SAFETY: the name outlives the call and ends in a zero byte.
    unsafe { bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) }
}

/// Opens an event, disabled.
///
/// # Errors
///
/// What perf_event_open(2) returned.
pub fn open_event(event: Event<'_>, scope: Scope) -> io::Result<OwnedFd> {
    open_event_with(&event_attr(event), scope)
}

/// Opens an event by its whole description.
///
/// # Errors
///
/// What perf_event_open(2) returned.
pub fn open_event_with(attr: &perf_event_attr, scope: Scope) -> io::Result<OwnedFd> {
    let (pid, cpu): (libc::pid_t, libc::c_int) = match scope {
        Scope::Cpu(cpu) => (-1, cpu as libc::c_int),
        Scope::ThisThread => (0, -1),
    };
    let no_group: libc::c_int = -1;
    // SAFETY: the structure says its own size, and the strings it may point to are borrowed for
    // longer than the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const *attr,
            pid,
            cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    owned(result)
}

/// The description of a disabled event with nothing else set.
#[must_use]
pub fn plain_event(kind: u32, config: u64) -> perf_event_attr {
    // SAFETY: the structure is plain numbers, and the kernel asks for zeros where nothing is set.
    let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
    attr.type_ = kind;
    attr.size = size_of::<perf_event_attr>() as u32;
    attr.config = config;
    attr.set_disabled(1);
    attr
}

/// Makes an event run a program.
///
/// # Errors
///
/// What ioctl(2) returned.
pub fn attach_to_event(event: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this request takes a file descriptor by value and touches no memory of ours.
    let result = unsafe {
        libc::ioctl(
            event.as_raw_fd(),
            PERF_EVENT_IOC_SET_BPF,
            program.as_raw_fd(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn event_attr(event: Event<'_>) -> perf_event_attr {
    // `config` 0 is the CPU clock among software events and cycles among hardware events.
    match event {
        Event::CpuClock { period_ns } => {
            let mut attr = plain_event(PERF_TYPE_SOFTWARE as u32, 0);
            attr.__bindgen_anon_1.sample_period = period_ns;
            attr
        }
        Event::Cycles => {
            let mut attr = plain_event(PERF_TYPE_HARDWARE as u32, 0);
            attr.set_exclude_kernel(1);
            attr
        }
        Event::Tracepoint { id } => {
            let mut attr = plain_event(PERF_TYPE_TRACEPOINT as u32, id);
            attr.__bindgen_anon_1.sample_period = 1;
            attr
        }
        Event::Kprobe { source, function } => {
            let mut attr = plain_event(source, 0);
            attr.__bindgen_anon_3.config1 = function.as_ptr() as u64;
            attr
        }
        Event::Uprobe {
            source,
            path,
            offset,
        } => {
            let mut attr = plain_event(source, 0);
            attr.__bindgen_anon_3.config1 = path.as_ptr() as u64;
            attr.__bindgen_anon_4.config2 = offset;
            attr
        }
    }
}

/// Calls bpf(2) with one of the commands that return a file descriptor.
///
/// # Safety
///
/// `attr` is the structure of `command`, and what its pointers point to is valid during the call.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the structure; its size is passed along.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    owned(result)
}

/// The file descriptor a system call just returned, or its error.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
