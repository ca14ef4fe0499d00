//! The processes that run, or ran while we looked.

use std::{fs::File, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    binary::Binaries,
    churn::Churn,
    mapping::{Code, Mapping, Mappings},
    perf_map_file::PerfMap,
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
    /// Shared with samples that wait for tables.
    mappings: Arc<Mappings>,
    sampled: Option<ProcessId>,
    has_exited: bool,
    /// When `/proc/PID/maps` was last read: not more than once a second.
    scanned_mono_ns: u64,
    /// What was mapped before that, and is not any more: for samples from then.
    unmapped: Vec<Mapping>,
}

/// A process that was sampled. It outlives the process itself.
struct Sampled {
    identity: Identity,
    perf_map: PerfMap,
}

/// Processes by pid.
pub struct ProcessTable {
    scope: Scope,
    running: FxHashMap<u32, Running>,
    /// A process that we start ourselves, until its fork is told.
    expected: Option<u32>,
    sampled: Vec<Sampled>,
    changes: Changes,
    churn: Churn,
    /// Records of the side band that its ring had no room for.
    pub lost_records: u64,
}

/// What changed since it was last asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Processes whose mappings are others, those that ended among them.
    pub pids: FxHashSet<u32>,
    /// Files that were mapped, also by processes that have ended since.
    pub binaries: FxHashSet<BinaryId>,
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
            changes: Changes::default(),
            churn: Churn::default(),
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
        for mapped in proc_files::read_maps(pid).unwrap_or_default().mappings() {
            process.map(&mapped, binaries, &mut self.changes);
        }
        self.running.insert(pid, process);
        self.changes.pids.insert(pid);
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
                    self.changes.pids.insert(pid);
                    self.churn.forget(pid);
                }
                if let Some(process) = self.tracked(pid) {
                    if is_exec {
                        process.mappings = Arc::default();
                        process.unmapped = Vec::new();
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
                self.map(pid, &mapped, record.time_mono_ns, binaries);
            }
            SideBandEvent::Fork { .. } | SideBandEvent::Comm { .. } | SideBandEvent::Exit => {}
        }
    }

    fn map(&mut self, pid: u32, mapped: &Mapped, time_mono_ns: u64, binaries: &mut Binaries) {
        let mut changes = std::mem::take(&mut self.changes);
        if let Some(process) = self.tracked(pid) {
            process.map(mapped, binaries, &mut changes);
            changes.pids.insert(pid);
            self.churn.mapped(pid, time_mono_ns);
        }
        self.changes = changes;
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
        self.changes.pids.insert(pid);
    }

    /// Notes that the last thread of a process has ended. The process stays until
    /// [`Self::forget_exited`], for samples of its very end.
    pub fn exit(&mut self, pid: u32) {
        if let Some(process) = self.running.get_mut(&pid) {
            process.has_exited = true;
            self.changes.pids.insert(pid);
            self.churn.forget(pid);
        }
    }

    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
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
    pub fn keep_mappings(&self, pid: u32) -> Arc<Mappings> {
        let process = self.running.get(&pid);
        process.map_or_else(Arc::default, |process| process.mappings.clone())
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
            perf_map: PerfMap::default(),
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
        let Some(process) = self.running.get(&pid) else {
            return Found::Nowhere;
        };
        let mut mapping = process.find(addr, now_mono_ns);
        let is_due = now_mono_ns.saturating_sub(process.scanned_mono_ns) > LOOK_AGAIN_NS;
        if mapping.is_none() && !process.has_exited && is_due {
            self.look_again(pid, now_mono_ns, binaries);
            mapping = self
                .running
                .get(&pid)
                .and_then(|process| process.find(addr, now_mono_ns));
        }
        let found = mapping.map_or(Found::Nowhere, |mapping| mapping.at(addr));
        if found == Found::Anonymous {
            let id = self.running.get(&pid).and_then(|process| process.sampled);
            if let Some(sampled) = id.and_then(|ProcessId(id)| self.sampled.get_mut(id as usize)) {
                sampled.perf_map.look(pid, now_mono_ns);
            }
        }
        found
    }

    /// Looks at what processes have mapped that mapped something some time ago: nothing tells what
    /// they unmap.
    pub fn look_for_unmapped(&mut self, now_mono_ns: u64, binaries: &mut Binaries) {
        while let Some(pid) = self.churn.next(now_mono_ns) {
            self.look_again(pid, now_mono_ns, binaries);
        }
    }

    /// Reads the mappings of a process anew.
    fn look_again(&mut self, pid: u32, now_mono_ns: u64, binaries: &mut Binaries) {
        let (mut bytes, mut has_changed) = (0, false);
        if let Some(process) = self.running.get_mut(&pid) {
            process.scanned_mono_ns = now_mono_ns;
            let maps = proc_files::read_maps(pid).unwrap_or_default();
            bytes = maps.len();
            has_changed = process.replace_mappings(&maps.mappings(), binaries, &mut self.changes);
        }
        if has_changed {
            tracing::debug!(pid, "the mappings of a process were others than we knew");
            self.changes.pids.insert(pid);
        }
        self.churn.looked(pid, bytes, has_changed, now_mono_ns);
    }

    /// A new window begins: what was said of processes that were sampled is not needed any more.
    pub fn forget_sampled(&mut self) {
        self.sampled.clear();
        for process in self.running.values_mut() {
            process.sampled = None;
        }
    }

    /// What a profile says about a sampled process.
    #[must_use]
    pub fn identity(&self, ProcessId(id): ProcessId) -> &Identity {
        &self.sampled[id as usize].identity
    }

    /// The perf map of a sampled process, still open though the process may have ended.
    #[must_use]
    pub fn perf_map(&self, ProcessId(id): ProcessId) -> Option<&File> {
        self.sampled[id as usize].perf_map.file()
    }
}

impl Running {
    /// The mapping that held an address at a time.
    fn find(&self, addr: u64, time_mono_ns: u64) -> Option<Mapping> {
        let is_unmapped = |mapping: &&Mapping| mapping.start <= addr && addr < mapping.end;
        let before = || self.unmapped.iter().find(is_unmapped);
        let found = self.mappings.find(addr);
        let found = match found {
            None if time_mono_ns < self.scanned_mono_ns => before(),
            found => found,
        };
        found.copied()
    }

    /// Takes the mappings for those that there are; false when they are the same as before. What is
    /// gone is kept for samples from before.
    fn replace_mappings(
        &mut self,
        found: &[Mapped],
        binaries: &mut Binaries,
        changes: &mut Changes,
    ) -> bool {
        // A process whose main thread has ended shows none, and so does one on its way out.
        if found.is_empty() {
            return false;
        }
        let before = std::mem::take(&mut self.mappings);
        for mapped in found {
            self.map(mapped, binaries, changes);
        }
        let now = self.mappings.as_slice();
        let is_gone = |mapping: &&Mapping| !now.contains(mapping);
        self.unmapped = before.as_slice().iter().filter(is_gone).copied().collect();
        before.as_slice() != now
    }

    fn map(&mut self, mapped: &Mapped, binaries: &mut Binaries, changes: &mut Changes) {
        let code = match binaries.of_mapping(self.identity.pid, mapped) {
            Some(id) => Code::File(id),
            None => Code::Anonymous,
        };
        if let Code::File(id) = code {
            changes.binaries.insert(id);
            // The kernel maps the program itself before its interpreter and libraries.
            if self.identity.exe.is_none() && mapped.path.starts_with(b"/") {
                self.identity.exe = Some(binaries.get(id).path.clone());
            }
        }
        let Mapped {
            start,
            end,
            file_offset,
            ..
        } = *mapped;
        Arc::make_mut(&mut self.mappings).insert(Mapping {
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
