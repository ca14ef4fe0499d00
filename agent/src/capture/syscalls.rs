//! System calls, seen from the agent: loads the programs that count them, and reads what they counted.
//!
//! In: which tasks. Out: rows, one for each system call of each process, whenever they are asked for. The
//! counting is all in the kernel; see [`hotspan_abi::syscalls`] for how.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, Queue, RingBuf},
};
use hotspan_abi::{
    counters::Counter,
    syscalls::{ErrorKey, MAX_ROWS, MAX_THREADS, RowKey, Thread},
};
use rustc_hash::FxHashMap;

use super::{
    Extent, Settings, attach_raw_tracepoint, cpus, durations::DurationRows, load_object,
    read_losses, row_count, take_map,
};
use crate::model::SyscallStats;

/// [`Thread`] in words.
type ThreadWords = [u64; size_of::<Thread>() / 8];
/// [`RowKey`] and [`ErrorKey`] in words.
type KeyWords = [u32; 2];

/// A system call of a process.
#[derive(Clone, Debug)]
pub struct ProcessSyscall {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Number of the system call, see [`RowKey::number`].
    pub number: u32,
    /// What its calls came to. None is in flight here.
    pub stats: SyscallStats,
}

/// A call that has not returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Number of the system call, see [`RowKey::number`].
    pub number: u32,
    /// `CLOCK_MONOTONIC` when it began.
    pub start_mono_ns: u64,
}

/// The programs at work. They detach when this is dropped.
pub struct SyscallCapture {
    slot_of: HashMap<MapData, u32, u32>,
    slots: Array<MapData, ThreadWords>,
    row_of: HashMap<MapData, KeyWords, u32>,
    rows: DurationRows,
    errors: HashMap<MapData, KeyWords, u64>,
    counts: PerCpuArray<MapData, u64>,
    targets: HashMap<MapData, u32, u32>,
    ring: RingBuf<MapData>,
    /// Rows that were given back.
    rows_returned: u64,
    row_count: u32,
    programs: Ebpf,
}

impl SyscallCapture {
    /// Loads the programs and starts to count.
    ///
    /// # Errors
    /// When the kernel refuses a program or a map; the text says which.
    pub fn load(settings: &Settings) -> Result<Self> {
        let (mut programs, _) = load_object(settings, Extent::Syscalls)?;
        let row_count = row_count(cpus::possible_count()?, MAX_ROWS);
        let rows = DurationRows::take(&mut programs, "SYSCALL_ROWS", "FREE_ROWS", 0..row_count)?;
        let mut capture = Self {
            slot_of: HashMap::try_from(take_map(&mut programs, "THREAD_SLOT_OF")?)?,
            slots: Array::try_from(take_map(&mut programs, "THREAD_SLOTS")?)?,
            row_of: HashMap::try_from(take_map(&mut programs, "SYSCALL_ROW_OF")?)?,
            rows,
            errors: HashMap::try_from(take_map(&mut programs, "SYSCALL_ERRORS")?)?,
            counts: PerCpuArray::try_from(take_map(&mut programs, "COUNTS")?)?,
            targets: HashMap::try_from(take_map(&mut programs, "TARGETS")?)?,
            ring: RingBuf::try_from(take_map(&mut programs, "EVENTS")?)?,
            rows_returned: 0,
            row_count,
            programs,
        };
        let mut free_slots =
            Queue::try_from(take_map(&mut capture.programs, "FREE_THREAD_SLOTS")?)?;
        for slot in 0..MAX_THREADS as u32 {
            free_slots
                .push(slot, 0)
                .context("cannot make slots for threads")?;
        }
        for (program, tracepoint) in [
            ("process_fork", "sched_process_fork"),
            ("process_exec", "sched_process_exec"),
            ("process_exit", "sched_process_exit"),
            ("syscalls_exec", "sched_process_exec"),
            ("syscalls_exit", "sched_process_exit"),
            // First the end of a call: a beginning without it would be taken for one in flight.
            ("syscall_exit", "sys_exit"),
            ("syscall_enter", "sys_enter"),
        ] {
            attach_raw_tracepoint(&mut capture.programs, program, tracepoint)
                .with_context(|| format!("cannot attach to the tracepoint {tracepoint}"))?;
        }
        Ok(capture)
    }

    /// Makes a process a target; `flags` are the `TARGET_*` of [`hotspan_abi::settings`].
    ///
    /// # Errors
    /// When the table of targets is full.
    pub fn add_target(&mut self, pid: u32, flags: u32) -> Result<()> {
        self.targets
            .insert(pid, flags, 0)
            .with_context(|| format!("cannot follow process {pid}: too many processes"))
    }

    /// Makes a process a target no more.
    pub fn remove_target(&mut self, pid: u32) {
        // It is not there when it never was one.
        let _ = self.targets.remove(&pid);
    }

    /// The news of processes since the last time, as records back to back.
    pub fn read_news(&mut self) -> Vec<u8> {
        let mut news = Vec::new();
        while let Some(record) = self.ring.next() {
            news.extend_from_slice(&record);
        }
        news
    }

    /// Whether so many rows are taken that those of ended processes should be given back.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn is_half_full(&self) -> Result<bool> {
        let taken = self.counts.get(&(Counter::SyscallRowsTaken as u32), 0)?;
        let in_use = taken.iter().sum::<u64>() - self.rows_returned;
        Ok(in_use * 2 > u64::from(self.row_count))
    }

    /// All processes that made system calls.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<_> = self
            .row_of
            .keys()
            .filter_map(Result::ok)
            .map(|[pid, _]| pid)
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// What was counted since the start.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Vec<ProcessSyscall>> {
        let errors = self.read_errors();
        let keys: Vec<_> = self.row_of.iter().filter_map(Result::ok).collect();
        keys.into_iter()
            .map(|(key, row)| self.read_row(key, row, &errors))
            .collect()
    }

    /// Takes what was counted of processes that ended, and gives their rows to others.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn take(&mut self, pids: &[u32]) -> Result<Vec<ProcessSyscall>> {
        if pids.is_empty() {
            return Ok(Vec::new());
        }
        let errors = self.read_errors();
        let keys: Vec<_> = self.row_of.iter().filter_map(Result::ok).collect();
        let ended = keys.into_iter().filter(|([pid, _], _)| pids.contains(pid));
        ended
            .map(|(key, row)| {
                self.row_of.remove(&key)?;
                let taken = self.read_row(key, row, &errors)?;
                for &errno in taken.stats.errors.keys() {
                    self.errors.remove(&[row, errno])?;
                }
                self.rows.give_back(row)?;
                self.rows_returned += 1;
                Ok(taken)
            })
            .collect()
    }

    /// Calls that have not returned.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        let slots = self.slot_of.iter().filter_map(Result::ok);
        let threads = slots.filter_map(|(tid, slot)| Some((tid, self.slots.get(&slot, 0).ok()?)));
        threads
            .filter(|(_, words)| words[0] != 0)
            .map(|(tid, [start_mono_ns, number_and_pid, ..])| InFlight {
                pid: (number_and_pid >> 32) as u32,
                tid,
                number: number_and_pid as u32,
                start_mono_ns,
            })
            .collect()
    }

    /// Whether a thread has made a call since the start.
    #[must_use]
    pub fn knows(&self, tid: u32) -> bool {
        self.slot_of.get(&tid, 0).is_ok()
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    #[must_use]
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        super::run_times(&self.programs)
    }

    /// What the kernel side counted of its losses.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>> {
        read_losses(
            &self.counts,
            &[
                Counter::SyscallThreadsFull,
                Counter::SyscallRowsFull,
                Counter::SyscallErrorsFull,
                Counter::TargetsFull,
            ],
        )
    }

    fn read_errors(&self) -> FxHashMap<u32, Vec<(u32, u64)>> {
        let mut errors: FxHashMap<u32, Vec<_>> = FxHashMap::default();
        for ([row, errno], count) in self.errors.iter().filter_map(Result::ok) {
            errors.entry(row).or_default().push((errno, count));
        }
        errors
    }

    fn read_row(
        &self,
        [pid, number]: KeyWords,
        row: u32,
        errors: &FxHashMap<u32, Vec<(u32, u64)>>,
    ) -> Result<ProcessSyscall> {
        let errors = errors.get(&row).into_iter().flatten();
        let stats = SyscallStats {
            returned: self.rows.read(row)?,
            errors: errors.copied().filter(|&(_, count)| count > 0).collect(),
            in_flight: 0,
        };
        Ok(ProcessSyscall { pid, number, stats })
    }
}

const _: () = assert!(size_of::<RowKey>() == size_of::<KeyWords>());
const _: () = assert!(size_of::<ErrorKey>() == size_of::<KeyWords>());
