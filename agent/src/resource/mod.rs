//! What each resource of the host is doing: utilization, saturation, errors.
//!
//! In: the kernel's files below a [`Root`]: `/proc`, `/sys`, cgroups of both versions, pressure; and what the
//! kernel side counted of events.
//! Out: [`Reading`]s of raw counters, and from two of them [`Check`]s. It keeps no history, starts
//! nothing, and prints nothing. A counter that went back, a device that came or went, a file that
//! is missing or makes no sense: these give no number, never a wrong one, and what could not be
//! read is counted in [`Unread`].
//!
//! To add a resource:
//! 1. A file with a pure parser for each kernel file (its test ends with `text::torture::check`), a
//!    `Reading` of raw counters, `read`, and `checks`, which goes through `verdict::Numbers`.
//! 2. A field of [`Reading`] below, a line in [`Reading::read`], and one in [`checks`].
//! 3. A rule in `verdict.rs`, with its reason. A test finds resources that have none.
//! 4. Its metrics: `observe`, a line in [`Reading::observe`], and a row of `METRICS.md`. Those of events are in
//!    `events.rs`.
//! 5. Files for it in the fixture of `tests.rs`.

pub mod cgroup;
mod contributors;
pub mod cpu;
pub mod disk;
pub mod events;
pub mod fields;
pub mod file_descriptors;
pub mod filesystem;
mod interval;
pub mod memory;
mod mounts;
pub mod network;
pub mod processes;
pub mod psi;
mod root;
pub mod tasks;
pub mod tcp;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

use std::time::Instant;

use crate::model::{Check, EventCount, Observations};
use contributors::Contributors;
use interval::Interval;
use root::Reader;

pub use root::{Root, Unread};

/// Raw counters of all resources at one instant.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each is documented in the module of its name.
pub struct Reading {
    /// When reading began.
    pub at: Instant,
    pub cpu: cpu::Reading,
    pub memory: memory::Reading,
    pub disk: disk::Reading,
    pub filesystem: filesystem::Reading,
    pub network: network::Reading,
    pub tcp: tcp::Reading,
    pub fields: fields::Reading,
    pub file_descriptors: Option<file_descriptors::Reading>,
    pub processes: processes::Reading,
    pub cgroup: cgroup::Reading,
    /// Paths of cgroups by their ids.
    pub cgroup_ids: cgroup::Ids,
    pub tasks: tasks::Reading,
    /// What could not be read.
    pub unread: Unread,
}

impl Reading {
    /// Reads everything.
    #[must_use]
    pub fn read(root: &Root) -> Self {
        Self::read_parts(root, true)
    }

    /// Reads what [`Reading::observe`] tells: not what each process does, which costs most.
    #[must_use]
    pub fn read_for_metrics(root: &Root) -> Self {
        Self::read_parts(root, false)
    }

    fn read_parts(root: &Root, with_tasks: bool) -> Self {
        let mut reader = Reader::new(root);
        let at = Instant::now();
        let reader = &mut reader;
        // What is compared with time comes first, close to the clock; what takes long comes last.
        let cpu = cpu::read(reader);
        let memory = memory::read(reader);
        let disk = disk::read(reader);
        let network = network::read(reader);
        let tcp = tcp::read(reader);
        let tasks = if with_tasks {
            tasks::read(reader)
        } else {
            tasks::Reading::default()
        };
        let mounts = mounts::read(reader);
        let (cgroup, cgroup_ids) = cgroup::read(reader, &mounts);
        Self {
            at,
            cpu,
            memory,
            disk,
            network,
            tcp,
            fields: fields::read(reader),
            file_descriptors: file_descriptors::read(reader),
            processes: processes::read(reader),
            cgroup,
            cgroup_ids,
            filesystem: filesystem::read(reader, mounts),
            tasks,
            unread: reader.unread,
        }
    }

    /// Everything as metrics.
    #[must_use]
    pub fn observe(&self) -> Observations {
        let mut out = Observations::default();
        cpu::observe(&self.cpu, &mut out);
        memory::observe(&self.memory, &mut out);
        disk::observe(&self.disk, &mut out);
        filesystem::observe(&self.filesystem, &mut out);
        network::observe(&self.network, &mut out);
        tcp::observe(&self.tcp, &mut out);
        fields::observe(&self.fields, &mut out);
        file_descriptors::observe(self.file_descriptors, &mut out);
        processes::observe(&self.processes, &mut out);
        cgroup::observe(&self.cgroup, &mut out);
        self.unread.observe(&mut out);
        out
    }
}

/// What happened between two readings; nothing when there was no time between them. `events` is what the
/// kernel side counted meanwhile, if it did.
#[must_use]
pub fn checks(before: &Reading, now: &Reading, events: Option<&[EventCount]>) -> Vec<Check> {
    let Some(interval) = Interval::new(now.at.saturating_duration_since(before.at)) else {
        return Vec::new();
    };
    let contributors =
        Contributors::new((&before.tasks, &now.tasks), (&before.cgroup, &now.cgroup));
    let host = cgroup::Host {
        cpus: now.cpu.stat.as_ref().map_or(0, |stat| stat.cores.len()),
        memory_bytes: now.memory.usage.map_or(0, |usage| usage.total),
    };
    let mut checks = [
        cpu::checks(interval, &before.cpu, &now.cpu, &contributors),
        memory::checks(interval, &before.memory, &now.memory, &contributors),
        disk::checks(interval, &before.disk, &now.disk, &contributors),
        filesystem::checks(interval, &before.filesystem, &now.filesystem),
        network::checks(interval, &before.network, &now.network),
        tcp::checks(interval, &before.tcp, &now.tcp),
        file_descriptors::checks(now.file_descriptors),
        processes::checks(&now.processes),
        cgroup::checks(interval, &before.cgroup, &now.cgroup, host),
    ]
    .concat();
    if let Some(events) = events {
        events::add(&mut checks, interval, host.cpus, events);
    }
    checks
}
