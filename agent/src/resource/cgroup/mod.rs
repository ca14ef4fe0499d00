//! Cgroups, and so containers: CPU with throttling, memory with limits and OOM kills, I/O, pids;
//! version 1, version 2, and both at once. Documentation/admin-guide/cgroup-v1, cgroup-v2.rst.
//!
//! A cgroup is its path below where its hierarchies are mounted. Under version 1 each controller
//! has a hierarchy of its own; what they say of one path is put together. On hosts with both, the
//! unified hierarchy adds pressure. The root is the host and is left out.

mod checks;
mod files;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};

use super::mounts::Mount;
use super::psi::{self, Pressure};
use super::root::Reader;
use super::text;
use crate::model::Hierarchy;

pub use checks::{Host, checks};
pub use metrics::observe;

/// More cgroups are left out, and counted.
const MAX_GROUPS: usize = 20_000;
/// Nesting that is deeper is left out, and counted.
const MAX_DEPTH: usize = 32;

/// Raw numbers of all cgroups, by path: `/system.slice/cron.service`.
pub type Reading = BTreeMap<String, Group>;

/// Raw numbers of a cgroup and all below it; `None` where no controller counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Time on CPUs.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// What was read and written, by device (`8:0`).
    pub io: BTreeMap<String, Io>,
    /// Pressure of waiting for I/O.
    pub io_pressure: Option<Pressure>,
    /// Processes and threads.
    pub pids: Pids,
}

/// CPU of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Time used.
    pub used_ns: Option<u64>,
    /// CPUs it may use at a time: its quota by its period.
    pub limit: Option<f64>,
    /// Periods in which it wanted to run, since it has a limit.
    pub periods: Option<u64>,
    /// Of these, how many it was stopped in.
    pub throttled_periods: Option<u64>,
    /// How long it was stopped.
    pub throttled_ns: Option<u64>,
    /// Pressure.
    pub pressure: Option<Pressure>,
}

/// Memory of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// All that is charged to it, caches included.
    pub bytes: Option<u64>,
    /// Of that, caches of files that nobody used lately.
    pub inactive_file_bytes: Option<u64>,
    /// The most it may have.
    pub limit_bytes: Option<u64>,
    /// How often it wanted more.
    pub limit_hits: Option<u64>,
    /// Processes killed because it got no more.
    pub oom_kills: Option<u64>,
    /// Pressure.
    pub pressure: Option<Pressure>,
}

impl Memory {
    /// What cannot be taken back at once: the number that Kubernetes evicts by.
    #[must_use]
    pub fn working_set_bytes(&self) -> Option<u64> {
        Some(self.bytes?.saturating_sub(self.inactive_file_bytes?))
    }
}

/// I/O of a cgroup on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub struct Io {
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// Processes and threads of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub count: Option<u64>,
    /// The most there may be.
    pub limit: Option<u64>,
    /// How often one more was refused.
    pub refused: Option<u64>,
}

impl Group {
    /// What was read and written on all devices.
    #[must_use]
    pub fn io_bytes(&self) -> Option<u64> {
        if self.io.is_empty() {
            return None;
        }
        self.io.values().try_fold(0_u64, |sum, io| {
            sum.checked_add(io.read_bytes)?
                .checked_add(io.written_bytes)
        })
    }
}

/// Paths of cgroups by the kernel's ids, which are those of one hierarchy.
pub type Ids = BTreeMap<(Hierarchy, u64), String>;

/// Reads all cgroups of the hierarchies among `mounts`.
pub fn read(reader: &mut Reader, mounts: &[Mount]) -> (Reading, Ids) {
    let mut groups = Reading::new();
    let mut ids = Ids::new();
    // Version 1 has a hierarchy for each controller, before that of version 2.
    let v1 = |controller: &str| {
        let has = |mount: &Mount| mount.options.split(',').any(|option| option == controller);
        mounts
            .iter()
            .any(|mount| mount.kind == "cgroup" && has(mount))
    };
    let of_v2 = [
        Some(Hierarchy::Unified),
        (!v1("cpu")).then_some(Hierarchy::Cpu),
        (!v1("blkio")).then_some(Hierarchy::Io),
    ];
    let mut seen = BTreeSet::new();
    for mount in mounts {
        let is_v2 = mount.kind == "cgroup2";
        let is_cgroup = is_v2 || mount.kind == "cgroup";
        // `cpu` and `cpuacct` may be one hierarchy with several mounts.
        if !is_cgroup || !seen.insert(&mount.device) {
            continue;
        }
        let controllers: Vec<_> = mount.options.split(',').collect();
        let has = |controller| controllers.contains(&controller);
        let of_v1 = [
            has("cpu").then_some(Hierarchy::Cpu),
            has("blkio").then_some(Hierarchy::Io),
            None,
        ];
        let hierarchies = if is_v2 { of_v2 } else { of_v1 };
        if let Ok(root) = fs::metadata(reader.place(&mount.point)) {
            let root = |hierarchy| ((hierarchy, root.ino()), "/".to_owned());
            ids.extend(hierarchies.into_iter().flatten().map(root));
        }
        for (path, id) in paths(reader, &mount.point) {
            for hierarchy in hierarchies.into_iter().flatten() {
                ids.insert((hierarchy, id), path.clone());
            }
            let folder = format!("{}{path}", mount.point);
            let group = groups.entry(path).or_default();
            if is_v2 {
                read_v2(reader, &folder, group);
                continue;
            }
            if has("cpu") {
                read_v1_cpu(reader, &folder, &mut group.cpu);
            }
            if has("cpuacct") {
                let path = format!("{folder}/cpuacct.usage");
                group.cpu.used_ns = reader.read(&path, text::number);
            }
            if has("memory") {
                read_v1_memory(reader, &folder, &mut group.memory);
            }
            if has("blkio") {
                let path = format!("{folder}/blkio.throttle.io_service_bytes_recursive");
                group.io = reader.read(&path, files::parse_blkio).unwrap_or_default();
            }
            if has("pids") {
                group.pids = read_pids(reader, &folder);
            }
        }
    }
    (groups, ids)
}

/// All cgroups below the root of a hierarchy, each with its id, which is the number of its folder's inode.
/// Those that go while we look are gone.
fn paths(reader: &mut Reader, mount: &str) -> Vec<(String, u64)> {
    let mut paths = Vec::new();
    let mut open = vec![(String::new(), 0)];
    while let Some((parent, depth)) = open.pop() {
        let entries = match fs::read_dir(reader.place(&format!("{mount}{parent}"))) {
            Ok(entries) => entries,
            Err(error) => {
                reader.count(&error);
                continue;
            }
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                reader.unread.malformed += 1;
                continue;
            };
            if paths.len() >= MAX_GROUPS || depth >= MAX_DEPTH {
                reader.unread.left_out += 1;
                continue;
            }
            let path = format!("{parent}/{name}");
            paths.push((path.clone(), entry.ino()));
            open.push((path, depth + 1));
        }
    }
    paths
}

fn read_v2(reader: &mut Reader, folder: &str, group: &mut Group) {
    let path = |file: &str| format!("{folder}/{file}");
    let pressure = |reader: &mut Reader, resource: &str| {
        reader.read(&path(&format!("{resource}.pressure")), psi::parse)
    };
    let Group {
        cpu,
        memory,
        io,
        io_pressure,
        pids,
    } = group;
    cpu.pressure = pressure(reader, "cpu");
    memory.pressure = pressure(reader, "memory");
    *io_pressure = pressure(reader, "io");
    // Every cgroup counts its time; where version 1 does, too, both say the same.
    if let Some(stat) = reader.read(&path("cpu.stat"), files::parse_cpu_stat) {
        cpu.used_ns = stat.used_ns.or(cpu.used_ns);
        cpu.periods = stat.periods.or(cpu.periods);
        cpu.throttled_periods = stat.throttled_periods.or(cpu.throttled_periods);
        cpu.throttled_ns = stat.throttled_ns.or(cpu.throttled_ns);
    }
    if let Some(limit) = reader.read(&path("cpu.max"), files::parse_cpu_max) {
        cpu.limit = limit;
    }
    if let Some(bytes) = reader.read(&path("memory.current"), text::number) {
        memory.bytes = Some(bytes);
        memory.limit_bytes = reader.read(&path("memory.max"), text::limit).flatten();
        memory.inactive_file_bytes = reader.read(&path("memory.stat"), |text| {
            files::parse_inactive(text, "inactive_file")
        });
        let events = reader.read(&path("memory.events"), files::parse_memory_events);
        (memory.limit_hits, memory.oom_kills) = events.unwrap_or_default();
    }
    if let Some(found) = reader.read(&path("io.stat"), files::parse_io_stat) {
        *io = found;
    }
    let found = read_pids(reader, folder);
    if found.count.is_some() {
        *pids = found;
    }
}

fn read_v1_cpu(reader: &mut Reader, folder: &str, cpu: &mut Cpu) {
    let stat = reader.read(&format!("{folder}/cpu.stat"), files::parse_cpu_stat);
    if let Some(stat) = stat {
        cpu.periods = stat.periods;
        cpu.throttled_periods = stat.throttled_periods;
        cpu.throttled_ns = stat.throttled_ns;
    }
    let quota = reader.read(&format!("{folder}/cpu.cfs_quota_us"), files::parse_quota);
    let period = reader.read(&format!("{folder}/cpu.cfs_period_us"), text::number);
    cpu.limit = quota
        .flatten()
        .zip(period)
        .and_then(|(quota, period)| files::cpus(quota, period));
}

fn read_v1_memory(reader: &mut Reader, folder: &str, memory: &mut Memory) {
    let mut number = |file: &str| reader.read(&format!("{folder}/memory.{file}"), text::number);
    memory.bytes = number("usage_in_bytes");
    // Without a limit this is the highest number of pages there could be: more than any host has.
    memory.limit_bytes = number("limit_in_bytes");
    memory.limit_hits = number("failcnt");
    memory.inactive_file_bytes = reader.read(&format!("{folder}/memory.stat"), |text| {
        files::parse_inactive(text, "total_inactive_file")
    });
    // Since Linux 4.13; before, there are other lines only.
    memory.oom_kills = reader
        .read(
            &format!("{folder}/memory.oom_control"),
            files::parse_oom_control,
        )
        .flatten();
}

/// The same in both versions.
fn read_pids(reader: &mut Reader, folder: &str) -> Pids {
    let Some(count) = reader.read(&format!("{folder}/pids.current"), text::number) else {
        return Pids::default();
    };
    Pids {
        count: Some(count),
        limit: reader
            .read(&format!("{folder}/pids.max"), text::limit)
            .flatten(),
        refused: reader.read(&format!("{folder}/pids.events"), files::parse_pids_events),
    }
}
