//! The kernel side, seen from the agent: loads the programs, attaches them, reads what they send.
//!
//! In: [`Settings`]. Out: a [`Batch`] of raw records whenever it is asked, and counts of what was
//! lost. It does not look into the records: that is `decode`'s work.

mod bpf_syscall;
mod btf;
mod cgroup;
mod cpus;
mod durations;
mod events;
pub mod features;
mod mapped;
mod perf_event;
mod sample_rings;
mod syscalls;
mod tables;

use std::{
    collections::BTreeMap,
    env, fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::{PerfEvent, ProgramError, ProgramInfo, RawTracePoint},
};
use hotspan_abi::{
    counters::{COUNTERS, Counter},
    durations::Durations,
    limits::{RING_BYTES, WALKERS},
    records::RecordHeader,
    resources::MAX_EVENT_ROWS,
    settings::{Offsets, ResourceOffsets, TargetMode},
    syscalls::MAX_ROWS,
};

use tokio::io::unix::AsyncFd;

use btf::Btf;
pub use cgroup::{Cgroup, CgroupError};
pub use events::{EventCapture, EventRow};
use features::KernelVersion;
use perf_event::{Sampler, SideBand};
use sample_rings::SampleRings;
pub use syscalls::{InFlight, ProcessSyscall, SyscallCapture};
pub use tables::{DEFAULT_TABLE_BYTES, TABLE_BYTES, TableMaps};

/// The programs, compiled from `ebpf/`.
#[cfg(target_arch = "x86_64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/hotspan.bpf.o");
/// The programs, compiled from `ebpf/`.
#[cfg(target_arch = "aarch64")]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/hotspan-aarch64.bpf.o");

/// Names a compiled object to load instead of the embedded one: for tests of a fresh build.
const OBJECT_VARIABLE: &str = "HOTSPAN_BPF_OBJECT";

/// Which tasks are sampled. Processes are named by [`Capture::add_target`].
#[derive(Clone, Debug, Default)]
pub enum Target {
    /// Every task on the host.
    #[default]
    All,
    /// Processes that are added one by one.
    Pids,
    /// Tasks in a cgroup or below it.
    Cgroup(Cgroup),
}

/// What to capture.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which tasks.
    pub target: Target,
    /// Samples per second and CPU.
    pub rate_hz: u32,
    /// Whether kernel frames are wanted.
    pub kernel_stacks: bool,
    /// Instead of sampling by the clock, tell so many of the slowest calls of each system call, with stacks.
    pub slowest: Option<u32>,
}

/// The whole host, 99 times a second, with kernel frames.
impl Default for Settings {
    fn default() -> Self {
        Self {
            target: Target::All,
            rate_hz: 99,
            kernel_stacks: true,
            slowest: None,
        }
    }
}

/// Raw records, as they were read.
#[derive(Default)]
pub struct Batch {
    /// Records of the ring buffer, back to back; each knows its length.
    pub ring: Vec<u8>,
    /// Samples, likewise, in the order of each CPU.
    pub samples: Vec<u8>,
    /// How often one could not be told from the next.
    pub nonsense: u64,
    /// Records of the perf side band, back to back; each knows its length.
    pub side_band: Vec<u8>,
}

/// What is open on a CPU. The kernel lets go of it when the CPU goes offline.
struct Cpu {
    number: u32,
    side_band: SideBand,
    sampler: Option<Sampler>,
}

/// CPUs may come and go; so often it is looked.
const CPU_LOOK: Duration = Duration::from_millis(250);

/// A running capture. Everything detaches when it is dropped.
pub struct Capture {
    cpus: Vec<Cpu>,
    /// What drives new samplers; `None` where the clock does not.
    rate_hz: Option<u32>,
    has_started: bool,
    /// When it was looked last which CPUs there are.
    looked: Instant,
    ring: RingBuf<MapData>,
    /// Records of the ring buffer that the next batch begins with.
    later: Vec<u8>,
    samples: SampleRings,
    counts: PerCpuArray<MapData, u64>,
    targets: HashMap<MapData, u32, u32>,
    /// The unwind tables.
    pub tables: TableMaps,
    log: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    programs: Ebpf,
}

impl Capture {
    /// Loads the programs and attaches those that follow processes; the sampler waits for
    /// [`Self::start`].
    ///
    /// # Errors
    /// When the kernel refuses a program, a map or an event; the text says which.
    pub fn load(settings: &Settings) -> Result<Self> {
        let (mut programs, _) = load_object(settings, Extent::Samples)?;
        let log = if log::log_enabled!(log::Level::Debug) {
            aya_log::EbpfLogger::init(&mut programs).ok()
        } else {
            None
        };
        // The side band opens first: a process that starts after this point is known by it.
        let online = cpus::online().context("cannot read which CPUs are online")?;
        let mut cpus = online
            .into_iter()
            .filter_map(|number| unless_gone(Cpu::open(number)).transpose())
            .collect::<io::Result<Vec<_>>>()
            .context("the kernel refused the perf event that reports mappings")?;
        for name in [
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
            "sched_process_free",
        ] {
            let program = name.strip_prefix("sched_").unwrap_or(name);
            attach_raw_tracepoint(&mut programs, program, name)
                .with_context(|| format!("cannot attach to the tracepoint {name}"))?;
        }
        let rate_hz = settings.slowest.is_none().then_some(settings.rate_hz);
        if let Some(rate_hz) = rate_hz {
            let program: &mut PerfEvent = programs
                .program_mut("sample")
                .context("the eBPF object has no program sample")?
                .try_into()?;
            program.load().map_err(|error| refused("sample", error))?;
            tell_cost("sample", program.info());
            cpus.iter_mut()
                .try_for_each(|cpu| cpu.open_sampler(&programs, rate_hz))?;
        } else {
            for (program, tracepoint) in SLOW_CALL_PROGRAMS {
                attach_raw_tracepoint(&mut programs, program, tracepoint)
                    .with_context(|| format!("cannot attach to the tracepoint {tracepoint}"))?;
            }
        }
        let ring = RingBuf::try_from(take_map(&mut programs, "EVENTS")?)?;
        let counts = PerCpuArray::try_from(take_map(&mut programs, "COUNTS")?)?;
        let targets = HashMap::try_from(take_map(&mut programs, "TARGETS")?)?;
        let tables = TableMaps::take(&mut programs)?;
        let possible = cpus::possible_count()?;
        let chunks = sample_rings::chunk_count(tick_rate_hz(settings), possible);
        let samples = SampleRings::take(&mut programs, possible, chunks)?;
        Ok(Self {
            tables,
            samples,
            later: Vec::new(),
            cpus,
            rate_hz,
            has_started: false,
            looked: Instant::now(),
            ring,
            counts,
            targets,
            log,
            programs,
        })
    }

    /// Makes a process a target; `flags` are the `TARGET_*` of [`hotspan_abi::settings`].
    ///
    /// # Errors
    /// When the table of targets is full.
    pub fn add_target(&mut self, pid: u32, flags: u32) -> Result<()> {
        self.targets
            .insert(pid, flags, 0)
            .with_context(|| format!("cannot follow process {pid}: too many processes"))?;
        self.tables.next_generation();
        Ok(())
    }

    /// Makes a process that has ended a target no more.
    pub fn remove_target(&mut self, pid: u32) {
        // It is not there when it never was one.
        if self.targets.remove(&pid).is_ok() {
            self.tables.next_generation();
        }
    }

    /// Something to wait on, readable when a process has mapped a file, started or ended, or has a
    /// new name, and when the copy of a stack has come. News of CPUs that come later are not waited for,
    /// only read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn news(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let side_bands = self.cpus.iter().map(|cpu| cpu.side_band.as_fd());
        perf_event::readiness(side_bands.chain([self.ring.as_fd()]))
    }

    /// Starts the clocks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&mut self) -> Result<()> {
        self.has_started = true;
        self.cpus
            .iter()
            .filter_map(|cpu| cpu.sampler.as_ref())
            .try_for_each(Sampler::start)
            .context("cannot start sampling")
    }

    /// Stops the clocks; what was captured can still be read.
    pub fn stop(&mut self) {
        self.has_started = false;
        for sampler in self.cpus.iter().filter_map(|cpu| cpu.sampler.as_ref()) {
            // Fails only when the CPU went away, and then its clock has stopped.
            let _ = sampler.stop();
        }
    }

    /// Appends everything that happened up to `until_mono_ns`, which is now, to `batch`. What happens meanwhile
    /// is left for the next one, or else an event could come before a sample that it followed.
    ///
    /// The samples are read before the ring buffer: a copy of a stack is sent before its sample, so it is in
    /// this batch or an earlier one. Both are read before the side band: a mapping is announced before the
    /// first sample in it.
    pub fn read(&mut self, batch: &mut Batch, until_mono_ns: u64) {
        let take = |record: &[u8]| batch.samples.extend_from_slice(record);
        batch.nonsense += self.samples.drain(until_mono_ns, take);
        batch.ring.append(&mut self.later);
        while let Some(record) = self.ring.next() {
            let header = RecordHeader::of(&record);
            let is_later = header.is_some_and(|header| header.time_mono_ns > until_mono_ns);
            let to = if is_later {
                &mut self.later
            } else {
                &mut batch.ring
            };
            to.extend_from_slice(&record);
        }
        for cpu in &mut self.cpus {
            let take = |record: &[u8]| batch.side_band.extend_from_slice(record);
            cpu.side_band.drain(take);
        }
        if self.looked.elapsed() >= CPU_LOOK {
            self.looked = Instant::now();
            self.follow_cpus();
        }
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Lets go of CPUs that went offline, and opens what is needed on those that came.
    fn follow_cpus(&mut self) {
        let Ok(online) = cpus::online() else {
            return;
        };
        // One that went while its clock was opened has none.
        let wants_clock = self.rate_hz.is_some();
        self.cpus
            .retain(|cpu| online.contains(&cpu.number) && cpu.sampler.is_some() == wants_clock);
        for number in online {
            if self.cpus.iter().any(|cpu| cpu.number == number) {
                continue;
            }
            match self.open_cpu(number) {
                Ok(cpu) => self.cpus.push(cpu),
                // It may have gone again.
                Err(error) => {
                    tracing::debug!(cpu = number, reason = %error, "a new CPU is not sampled");
                }
            }
        }
    }

    fn open_cpu(&self, number: u32) -> Result<Cpu> {
        let mut cpu = Cpu::open(number)?;
        if let Some(rate_hz) = self.rate_hz {
            cpu.open_sampler(&self.programs, rate_hz)?;
        }
        if let Some(sampler) = cpu.sampler.as_ref().filter(|_| self.has_started) {
            sampler.start()?;
        }
        tracing::info!(cpu = number, "a CPU came online");
        Ok(cpu)
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    #[must_use]
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        run_times(&self.programs)
    }

    /// What the kernel side counted so far.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counts(&self) -> Result<Vec<(Counter, u64)>> {
        read_counts(&self.counts)
    }
}

/// What tells slow system calls, each with its tracepoint.
const SLOW_CALL_PROGRAMS: [(&str, &str); 3] = [
    ("slow_call_thread_exit", "sched_process_exit"),
    ("slow_call_exit", "sys_exit"),
    ("slow_call_enter", "sys_enter"),
];

fn read_counts(counts: &PerCpuArray<MapData, u64>) -> Result<Vec<(Counter, u64)>> {
    COUNTERS
        .iter()
        .map(|&counter| {
            let per_cpu = counts.get(&(counter as u32), 0)?;
            Ok((counter, per_cpu.iter().sum()))
        })
        .collect()
}

/// What was lost, of these reasons.
fn read_losses(
    counts: &PerCpuArray<MapData, u64>,
    reasons: &[Counter],
) -> Result<BTreeMap<&'static str, u64>> {
    let counts = read_counts(counts)?.into_iter();
    let lost = counts.filter(|(counter, count)| *count > 0 && reasons.contains(counter));
    Ok(lost
        .map(|(counter, count)| (counter.name(), count))
        .collect())
}

/// Run time of loaded programs by name, while the kernel keeps account of it
/// (`kernel.bpf_stats_enabled`).
fn run_times(programs: &Ebpf) -> Vec<(String, Duration)> {
    let run_time = |fd: i32| {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        let ns = text
            .lines()
            .find_map(|line| line.strip_prefix("run_time_ns:"))?;
        Some(Duration::from_nanos(ns.trim().parse().ok()?))
    };
    let loaded = programs.programs().filter_map(|(name, program)| {
        let fd = program.fd().ok()?.as_fd().as_raw_fd();
        Some((name.to_owned(), run_time(fd)?))
    });
    loaded.filter(|(_, time)| !time.is_zero()).collect()
}

/// Which of the object's maps are used. The others are made as small as can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Samples,
    Syscalls,
    Events,
}

/// Maps of [`Extent::Syscalls`].
const SYSCALL_MAPS: [&str; 7] = [
    "THREAD_SLOT_OF",
    "THREAD_SLOTS",
    "FREE_THREAD_SLOTS",
    "SYSCALL_ROW_OF",
    "SYSCALL_ROWS",
    "FREE_ROWS",
    "SYSCALL_ERRORS",
];

/// Maps of [`Extent::Events`]; those that count by row are made as large as fits.
const EVENT_MAPS: [&str; 7] = [
    "EVENT_ROW_OF",
    "EVENT_ROWS",
    "FREE_EVENT_ROWS",
    "SWITCHED",
    "DISK_REQUESTS",
    "DISK_DEPTH",
    "RECLAIMING",
];

fn load_object(settings: &Settings, extent: Extent) -> Result<(Ebpf, ResourceOffsets)> {
    let fresh = match env::var_os(OBJECT_VARIABLE) {
        Some(path) => Some(
            fs::read(&path)
                .with_context(|| format!("cannot read {} ({OBJECT_VARIABLE})", path.display()))?,
        ),
        None => None,
    };
    const TYPES: &str = "/sys/kernel/btf/vmlinux";
    let types = fs::read(TYPES).with_context(|| format!("cannot read {TYPES}"))?;
    let types = Btf::parse(&types)?;
    let offset_words = offsets(&types, &settings.target)?.to_words();
    let resource_offsets = match extent {
        Extent::Events => types.resource_offsets(|lack| {
            tracing::info!(reason = %lack, "some events of resources are not counted");
        }),
        _ => ResourceOffsets::ZERO,
    };
    let resource_words = resource_offsets.to_words();
    let (mode, cgroup) = match &settings.target {
        Target::All => (TargetMode::All, 0),
        Target::Pids => (TargetMode::Pids, 0),
        Target::Cgroup(cgroup) => (TargetMode::Cgroup, cgroup.id),
    };
    let (mode, kernel_stacks) = (mode as u32, u32::from(settings.kernel_stacks));
    let has_task_pt_regs = u32::from(has_task_pt_regs());
    let log_level: u8 = if log::log_enabled!(log::Level::Debug) {
        4
    } else {
        0
    };
    let cpus = cpus::possible_count()?;
    let own_pid = std::process::id();
    let slowest = settings.slowest.unwrap_or(0);
    let chunks = sample_rings::chunk_count(tick_rate_hz(settings), cpus);
    let mut loader = EbpfLoader::new();
    loader
        // Nothing in the object needs the kernel's types: we have read what we want of them.
        .btf(None)
        .override_global("OFFSETS", offset_words.as_slice(), true)
        .override_global("RESOURCE_OFFSETS", resource_words.as_slice(), true)
        .override_global("TARGET_MODE", &mode, true)
        .override_global("TARGET_CGROUP", &cgroup, true)
        .override_global("KERNEL_STACKS", &kernel_stacks, true)
        .override_global("HAS_TASK_PT_REGS", &has_task_pt_regs, true)
        .override_global(aya_log::LEVEL, &log_level, false)
        .override_global("OWN_PID", &own_pid, true)
        .override_global("SLOWEST", &slowest, true);
    match extent {
        Extent::Samples => {
            loader
                .map_max_entries("SCRATCH", cpus * WALKERS)
                .map_max_entries("SAMPLES", cpus * chunks)
                .map_max_entries("EVENTS", ring_bytes(cpus, tick_rate_hz(settings)));
        }
        Extent::Syscalls => {
            // Starts and ends of processes alone.
            loader.map_max_entries("EVENTS", RING_BYTES / 4);
            let rows = row_count(cpus, MAX_ROWS);
            for name in ["SYSCALL_ROW_OF", "SYSCALL_ROWS", "FREE_ROWS"] {
                loader.map_max_entries(name, rows);
            }
        }
        Extent::Events => {
            // One page: nothing is sent.
            loader.map_max_entries("EVENTS", 4096);
            let rows = row_count(cpus, MAX_EVENT_ROWS);
            for name in ["EVENT_ROW_OF", "EVENT_ROWS", "FREE_EVENT_ROWS"] {
                loader.map_max_entries(name, rows);
            }
        }
    }
    if settings.slowest.is_none() || extent != Extent::Samples {
        loader.map_max_entries("BEGUN", 1);
    }
    if extent != Extent::Samples {
        loader.map_max_entries("PROCESSES", 1);
    }
    if extent == Extent::Events {
        loader.map_max_entries("TARGETS", 1);
    }
    for (name, is_used) in SYSCALL_MAPS
        .iter()
        .map(|name| (name, extent == Extent::Syscalls))
        .chain(
            EVENT_MAPS
                .iter()
                .map(|name| (name, extent == Extent::Events)),
        )
    {
        if !is_used {
            loader.map_max_entries(name, 1);
        }
    }
    let programs = loader
        .load(fresh.as_deref().unwrap_or(OBJECT))
        .map_err(|error| anyhow!(error).context("the kernel refused the eBPF object"))?;
    Ok((programs, resource_offsets))
}

/// Rows for each CPU, so many that all take 16 MiB at most, and at least 256.
fn row_count(cpus: u32, most: usize) -> u32 {
    const BYTES: usize = 16 << 20;
    let fit = BYTES / (size_of::<Durations>() * cpus as usize);
    fit.clamp(256, most) as u32
}

fn offsets(btf: &Btf<'_>, target: &Target) -> Result<Offsets> {
    let mut offsets = btf.offsets()?;
    if !has_task_pt_regs() {
        offsets.stack_to_pt_regs = SAVED_REGISTERS_OFFSET;
    }
    if let Target::Cgroup(Cgroup {
        controller: Some(controller),
        ..
    }) = target
    {
        offsets.css_set_member = btf.css_set_controller(controller).ok_or_else(|| {
            anyhow!(
                "this kernel has no cgroup controller {controller}; name a cgroup of another one"
            )
        })?;
    }
    Ok(offsets)
}

/// Whether the kernel has `bpf_task_pt_regs`. A kernel that tells no version is taken for an old one.
fn has_task_pt_regs() -> bool {
    KernelVersion::of_this_host() >= Some(KernelVersion::new(5, 15))
}

/// Where `pt_regs` lies from the base of a kernel stack before kernel 5.15, which tells by itself:
/// at the end of 16 KiB.
#[cfg(target_arch = "x86_64")]
const SAVED_REGISTERS_OFFSET: u32 = (16 << 10) - 168;
#[cfg(target_arch = "aarch64")]
const SAVED_REGISTERS_OFFSET: u32 = (16 << 10) - 336;

/// How many samples a second are reckoned with: the first slow calls come all at once.
fn tick_rate_hz(settings: &Settings) -> u32 {
    settings.slowest.map_or(settings.rate_hz, |_| 4000)
}

/// Bytes for starts and ends of processes, and for copies of stacks of a twentieth of a second.
fn ring_bytes(cpus: u32, rate_hz: u32) -> u32 {
    const COPY_BYTES: u64 = 64 << 10;
    let wanted = u64::from(cpus) * u64::from(rate_hz) * COPY_BYTES / 20;
    let least = u64::from(RING_BYTES);
    wanted.clamp(least, least * 16).next_power_of_two() as u32
}

fn take_map(programs: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    programs
        .take_map(name)
        .with_context(|| format!("the eBPF object has no map {name}"))
}

fn attach_raw_tracepoint(programs: &mut Ebpf, name: &str, tracepoint: &str) -> Result<()> {
    let program: &mut RawTracePoint = programs
        .program_mut(name)
        .with_context(|| format!("the eBPF object has no program {name}"))?
        .try_into()?;
    program.load().map_err(|error| refused(name, error))?;
    tell_cost(name, program.info());
    program.attach(tracepoint)?;
    Ok(())
}

/// Tells what the verifier spent on a program; kernels before 5.16 keep that to themselves.
fn tell_cost(name: &str, info: Result<ProgramInfo, ProgramError>) {
    let verified_instructions = info.ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(
        program = name,
        verified_instructions,
        "the kernel took a program"
    );
}

/// One sentence about a program the kernel did not take. What its verifier says is long, and for
/// us alone: it goes to the log.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    let reason = match error {
        ProgramError::LoadError { io_error, .. }
            if io_error.raw_os_error() == Some(libc::EMFILE) =>
        {
            return anyhow!("too many open files; raise the limit with `ulimit -n 1024`");
        }
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            tracing::debug!(program = name, %verifier_log, "the verifier refused a program");
            io_error.into()
        }
        other => anyhow!(other),
    };
    reason.context(format!(
        "the kernel refused the program {name}; `hotspan doctor` tells what this kernel lacks"
    ))
}

impl Cpu {
    fn open(number: u32) -> io::Result<Self> {
        Ok(Self {
            number,
            side_band: SideBand::open(number)?,
            sampler: None,
        })
    }

    /// Opens the clock, stopped, for a program that is loaded; none when the CPU has gone.
    fn open_sampler(&mut self, programs: &Ebpf, rate_hz: u32) -> Result<()> {
        let program: &PerfEvent = programs
            .program("sample")
            .context("the eBPF object has no program sample")?
            .try_into()?;
        let sampler = Sampler::open(self.number, rate_hz, program.fd()?.as_fd());
        self.sampler = unless_gone(sampler)
            .context("the kernel refused the perf event that drives the sampler")?;
        Ok(())
    }
}

/// What was opened on a CPU; `None` when that has just gone offline.
fn unless_gone<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        opened => opened.map(Some),
    }
}
