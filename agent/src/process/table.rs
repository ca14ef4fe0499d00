//! The processes that run, or ran while we looked.

use std::{fs::File, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    binary::Binaries,
    mapping::{Code, Mapping, Mappings},
    proc_files,
};
use crate::{
    decode::side_band::{Mapped, SideBandEvent, SideBandRecord},
    model::{BinaryId, ProcessId},
};

/// Which processes are kept track of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All on the host.
    All,
    /// Those that were added or sampled, and what they start.
    Known,
}

/// What a profile says about a process.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Name of the main thread.
    pub name: Arc<str>,
    /// Path of the executable.
    pub exe: Option<Arc<str>>,
    /// Id of its container.
    pub container_id: Option<Arc<str>>,
    /// Start, nanoseconds after boot; 0 when unknown.
    pub start_boot_ns: u64,
}

/// Where an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In a file, at this offset.
    File(BinaryId, u64),
    /// In code made at run time.
    Anonymous,
    /// In no executable mapping we know.
    Nowhere,
}

/// A process that runs, or whose end has been seen in the current batch.
#[derive(Clone, Default)]
struct Running {
    identity: Identity,
    mappings: Mappings,
    sampled: Option<ProcessId>,
    has_exited: bool,
    /// When `/proc/PID/maps` was last read: not more than once a second.
    scanned_mono_ns: u64,
}

/// A process that was sampled. It outlives the process itself.
struct Sampled {
    identity: Identity,
    perf_map: PerfMap,
}

/// The perf map of a process, looked for once code made at run time was sampled.
enum PerfMap {
    Absent { looked_mono_ns: u64 },
    Open(File),
}

/// Processes by pid.
pub struct ProcessTable {
    scope: Scope,
    running: FxHashMap<u32, Running>,
    /// A process that we start ourselves, until its fork is told.
    expected: Option<u32>,
    sampled: Vec<Sampled>,
    /// Processes whose mappings are not what they were at the last [`Self::take_changed`].
    changed: FxHashSet<u32>,
    /// Records of the side band that its ring had no room for.
    pub lost_records: u64,
}

/// What was not found in `/proc` is looked for again after this long.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;

impl ProcessTable {
    /// An empty table.
    #[must_use]
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            running: FxHashMap::default(),
            expected: None,
            sampled: Vec::new(),
            changed: FxHashSet::default(),
            lost_records: 0,
        }
    }

    /// Learns everything `/proc` says about the processes that run.
    pub fn scan_all(&mut self, binaries: &mut Binaries) {
        for pid in proc_files::processes().unwrap_or_default() {
            self.scan(pid, binaries);
        }
    }

    /// Learns everything `/proc` says about a process.
    pub fn scan(&mut self, pid: u32, binaries: &mut Binaries) {
        let identity = Identity {
            pid,
            name: proc_files::name(pid).unwrap_or_default(),
            exe: proc_files::exe(pid),
            container_id: proc_files::container_id(pid),
            start_boot_ns: proc_files::start_boot_ns(pid).unwrap_or(0),
        };
        let mut process = Running {
            identity,
            ..Running::default()
        };
        process.scan_mappings(binaries);
        self.running.insert(pid, process);
        self.changed.insert(pid);
    }

    /// Keeps track of a process that we have just started ourselves.
    pub fn expect(&mut self, pid: u32) {
        self.expected = Some(pid);
        self.running.entry(pid).or_default().identity.pid = pid;
    }

    /// Takes in what the side band says.
    pub fn apply(&mut self, record: SideBandRecord, binaries: &mut Binaries) {
        let (pid, tid) = (record.pid, record.tid);
        match record.event {
            SideBandEvent::Lost(count) => self.lost_records += count,
            SideBandEvent::Fork { parent_pid } if parent_pid != pid => {
                self.fork(pid, parent_pid, record.time_mono_ns);
            }
            SideBandEvent::Comm { name, is_exec } if pid == tid => {
                let name: Arc<str> = String::from_utf8_lossy(&name).into();
                if is_exec {
                    self.changed.insert(pid);
                }
                if let Some(process) = self.tracked(pid) {
                    if is_exec {
                        process.mappings = Mappings::default();
                        process.sampled = None;
                        process.identity.exe = None;
                        process.identity.container_id = proc_files::container_id(pid);
                    }
                    process.identity.name = name.clone();
                    if let Some(ProcessId(id)) = process.sampled {
                        self.sampled[id as usize].identity.name = name;
                    }
                }
            }
            SideBandEvent::Mmap(mapped) => {
                if let Some(process) = self.tracked(pid) {
                    process.map(&mapped, binaries);
                    self.changed.insert(pid);
                }
            }
            SideBandEvent::Fork { .. } | SideBandEvent::Comm { .. } | SideBandEvent::Exit => {}
        }
    }

    fn tracked(&mut self, pid: u32) -> Option<&mut Running> {
        match self.scope {
            Scope::All => Some(self.running.entry(pid).or_insert_with(|| Running {
                identity: Identity {
                    pid,
                    ..Identity::default()
                },
                ..Running::default()
            })),
            Scope::Known => self.running.get_mut(&pid),
        }
    }

    /// A child starts as a copy of its parent.
    fn fork(&mut self, pid: u32, parent_pid: u32, time_mono_ns: u64) {
        let Some(parent) = self.running.get(&parent_pid) else {
            // The pid is used again, by a process we do not follow, unless we started it.
            if self.expected.take_if(|expected| *expected == pid).is_none() {
                self.running.remove(&pid);
            }
            return;
        };
        let mut child = parent.clone();
        child.identity.pid = pid;
        child.identity.start_boot_ns = time_mono_ns;
        child.sampled = None;
        child.has_exited = false;
        self.running.insert(pid, child);
        self.changed.insert(pid);
    }

    /// Notes that the last thread of a process has ended. The process stays until
    /// [`Self::forget_exited`], for samples of its very end.
    pub fn exit(&mut self, pid: u32) {
        if let Some(process) = self.running.get_mut(&pid) {
            process.has_exited = true;
            self.changed.insert(pid);
        }
    }

    /// Processes whose mappings have changed since the last call, those that ended among them.
    pub fn take_changed(&mut self) -> FxHashSet<u32> {
        std::mem::take(&mut self.changed)
    }

    /// The executable mappings of a process by address; `None` when it has ended.
    #[must_use]
    pub fn mappings(&self, pid: u32) -> Option<&[Mapping]> {
        let process = self
            .running
            .get(&pid)
            .filter(|process| !process.has_exited)?;
        Some(process.mappings.as_slice())
    }

    /// The executable mappings of a process as they are now, to be kept.
    #[must_use]
    pub fn copy_mappings(&self, pid: u32) -> Mappings {
        let process = self.running.get(&pid);
        process.map_or_else(Mappings::default, |process| process.mappings.clone())
    }

    /// Processes that have a file mapped.
    pub fn users_of(&self, binary: BinaryId) -> impl Iterator<Item = u32> {
        let maps = move |process: &Running| {
            process
                .mappings
                .as_slice()
                .iter()
                .any(|mapping| mapping.code == Code::File(binary))
        };
        self.running
            .iter()
            .filter(move |(_, process)| maps(process))
            .map(|(&pid, _)| pid)
    }

    /// Forgets the processes that have ended; what was sampled of them stays.
    pub fn forget_exited(&mut self) {
        self.running.retain(|_, process| !process.has_exited);
    }

    /// The process of a sample. One that is not known yet is looked up in `/proc`; if it is gone
    /// already, `thread_name` is all there is.
    pub fn of_sample(
        &mut self,
        pid: u32,
        thread_name: &[u8],
        binaries: &mut Binaries,
    ) -> ProcessId {
        if !self.running.contains_key(&pid) {
            self.scan(pid, binaries);
        }
        let process = self.running.entry(pid).or_default();
        if process.identity.name.is_empty() {
            process.identity.name = String::from_utf8_lossy(thread_name).into();
        }
        if let Some(id) = process.sampled {
            return id;
        }
        let id = ProcessId(self.sampled.len() as u32);
        process.sampled = Some(id);
        let identity = process.identity.clone();
        self.sampled.push(Sampled {
            identity,
            perf_map: PerfMap::Absent { looked_mono_ns: 0 },
        });
        id
    }

    /// Processes that are kept track of and have not ended.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.running.keys().copied()
    }

    /// Where an address of a sampled process lies. An address in no mapping makes the mappings be
    /// read anew, but not too often: `now_mono_ns` is the time of the sample.
    pub fn find(
        &mut self,
        pid: u32,
        addr: u64,
        now_mono_ns: u64,
        binaries: &mut Binaries,
    ) -> Found {
        let Some(process) = self.running.get_mut(&pid) else {
            return Found::Nowhere;
        };
        let mut found = process.mappings.at(addr);
        let is_due = now_mono_ns.saturating_sub(process.scanned_mono_ns) > LOOK_AGAIN_NS;
        if found == Found::Nowhere && !process.has_exited && is_due {
            process.scanned_mono_ns = now_mono_ns;
            process.scan_mappings(binaries);
            self.changed.insert(pid);
            found = process.mappings.at(addr);
        }
        if found == Found::Anonymous {
            self.look_for_perf_map(pid, now_mono_ns);
        }
        found
    }

    /// Opens the perf map while the process lives. Run times write it some time after their first
    /// code, so an absent one is looked for again, but not too often.
    fn look_for_perf_map(&mut self, pid: u32, now_mono_ns: u64) {
        let id = self.running.get(&pid).and_then(|process| process.sampled);
        let Some(sampled) = id.and_then(|ProcessId(id)| self.sampled.get_mut(id as usize)) else {
            return;
        };
        let PerfMap::Absent { looked_mono_ns } = sampled.perf_map else {
            return;
        };
        if now_mono_ns.saturating_sub(looked_mono_ns) <= LOOK_AGAIN_NS {
            return;
        }
        let ns_pid = proc_files::ns_pid(pid).unwrap_or(pid);
        sampled.perf_map = match super::perf_map_file::open_perf_map(pid, ns_pid) {
            Some(file) => PerfMap::Open(file),
            None => PerfMap::Absent {
                looked_mono_ns: now_mono_ns,
            },
        };
    }

    /// What a profile says about a sampled process.
    #[must_use]
    pub fn identity(&self, ProcessId(id): ProcessId) -> &Identity {
        &self.sampled[id as usize].identity
    }

    /// The perf map of a sampled process, still open though the process may have ended.
    #[must_use]
    pub fn perf_map(&self, ProcessId(id): ProcessId) -> Option<&File> {
        match &self.sampled[id as usize].perf_map {
            PerfMap::Open(file) => Some(file),
            PerfMap::Absent { .. } => None,
        }
    }
}

impl Running {
    fn scan_mappings(&mut self, binaries: &mut Binaries) {
        for mapped in proc_files::mappings(self.identity.pid).unwrap_or_default() {
            self.map(&mapped, binaries);
        }
    }

    fn map(&mut self, mapped: &Mapped, binaries: &mut Binaries) {
        let code = match binaries.of_mapping(self.identity.pid, mapped) {
            Some(id) => Code::File(id),
            None => Code::Anonymous,
        };
        // The kernel maps the program itself before its interpreter and libraries.
        if let (Code::File(id), None) = (code, &self.identity.exe)
            && mapped.path.starts_with(b"/")
        {
            self.identity.exe = Some(binaries.get(id).path.clone());
        }
        let Mapped {
            start,
            end,
            file_offset,
            ..
        } = *mapped;
        self.mappings.insert(Mapping {
            start,
            end,
            file_offset,
            code,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::side_band::FileIdentity;

    fn record(pid: u32, event: SideBandEvent) -> SideBandRecord {
        SideBandRecord {
            time_mono_ns: 1,
            pid,
            tid: pid,
            event,
        }
    }

    /// What is known of process 7 after it was forked by 1, which is not known, and has mapped code.
    fn mappings_of_child(table: &mut ProcessTable) -> Option<usize> {
        let mut binaries = Binaries::default();
        let mapped = Mapped {
            start: 0x1000,
            end: 0x2000,
            file_offset: 0,
            identity: FileIdentity::Inode {
                dev: 0,
                ino: 0,
                generation: 0,
            },
            path: b"//anon".to_vec(),
        };
        for event in [
            SideBandEvent::Fork { parent_pid: 1 },
            SideBandEvent::Mmap(mapped),
        ] {
            table.apply(record(7, event), &mut binaries);
        }
        table.mappings(7).map(<[Mapping]>::len)
    }

    #[test]
    fn process_that_we_start_is_followed_from_its_fork() {
        let mut table = ProcessTable::new(Scope::Known);
        table.expect(7);
        assert_eq!(mappings_of_child(&mut table), Some(1));
        // The next one with this pid is somebody else's.
        assert_eq!(mappings_of_child(&mut table), None);
    }
}
