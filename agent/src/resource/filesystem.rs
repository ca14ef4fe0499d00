//! File systems: statvfs(3) of each mount, and the errors that ext4 found in itself.

use std::collections::{BTreeMap, BTreeSet};

use super::interval::{Interval, ratio};
use super::mounts::Mount;
use super::root::Reader;
use super::text;
use super::verdict::Numbers;
use crate::model::{Check, Instrument, Observations, Value};

/// Kinds that node_exporter leaves out: they hold no data of their own.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "erofs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// Kinds that another host or program serves. They are its resources, and when it is gone, asking
/// for them would hold us for good.
const REMOTE: &[&str] = &[
    "9p",
    "afs",
    "ceph",
    "cifs",
    "glusterfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
];

/// Places that node_exporter leaves out, and all below them.
const PLACES: &[&str] = &["/dev", "/proc", "/sys"];

/// Places below which node_exporter leaves out everything.
const FOLDERS: &[&str] = &[
    "/run/credentials/",
    "/var/lib/docker/",
    "/var/lib/containers/storage/",
];

/// Raw numbers of all file systems, by mount point.
pub type Reading = BTreeMap<String, Filesystem>;

/// What a file system holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// What is mounted, and its kind.
    pub source: String,
    /// Kind: `ext4`.
    pub kind: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are not used.
    pub bytes_free: u64,
    /// Bytes that users other than root may still use.
    pub bytes_available: u64,
    /// Files that there may be; 0 where there is no limit.
    pub inodes: u64,
    /// Files that may still be made.
    pub inodes_free: u64,
    /// Faults that ext4 found in itself since it was made.
    pub errors: Option<u64>,
}

/// The mounts to look at: each file system once, where all of it is mounted if there is such a
/// place.
fn chosen(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut mounts: Vec<_> = mounts.into_iter().filter(is_looked_at).collect();
    mounts.sort_by_key(|mount| mount.root != "/");
    let mut seen = BTreeSet::new();
    mounts.retain(|mount| seen.insert(mount.device.clone()));
    mounts
}

fn is_looked_at(mount: &Mount) -> bool {
    let (kind, point) = (&*mount.kind, &*mount.point);
    let is_below = |place: &&str| {
        point
            .strip_prefix(*place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    !PSEUDO.contains(&kind)
        && !REMOTE.contains(&kind)
        && !kind.starts_with("fuse")
        && !PLACES.iter().any(is_below)
        && !FOLDERS.iter().any(|folder| point.starts_with(folder))
}

/// Reads the numbers of what is mounted.
pub fn read(reader: &mut Reader, mounts: Vec<Mount>) -> Reading {
    let mut found = Reading::new();
    for mount in chosen(mounts) {
        let stat = match rustix::fs::statvfs(reader.place(&mount.point)) {
            Ok(stat) => stat,
            Err(error) => {
                reader.count(&error.into());
                continue;
            }
        };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let errors = (mount.kind == "ext4")
            .then(|| {
                let device = mount.source.rsplit('/').next()?;
                reader.read(&format!("sys/fs/ext4/{device}/errors_count"), text::number)
            })
            .flatten();
        let filesystem = Filesystem {
            source: mount.source,
            kind: mount.kind,
            bytes: bytes(stat.f_blocks),
            bytes_free: bytes(stat.f_bfree),
            bytes_available: bytes(stat.f_bavail),
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
            errors,
        };
        found.insert(mount.point, filesystem);
    }
    found
}

/// Checks the bytes and the inodes of each file system. As `df` has it, what is kept for root is
/// neither used nor free.
#[must_use]
pub fn checks(interval: Interval, before: &Reading, now: &Reading) -> Vec<Check> {
    let mut checks = Vec::new();
    for (point, filesystem) in now.iter().filter(|(_, filesystem)| filesystem.bytes > 0) {
        let before = before
            .get(point)
            .filter(|before| before.source == filesystem.source);
        let part = |all: u64, free: u64, available: u64| {
            let used = all.checked_sub(free)?;
            ratio(used, used.checked_add(available)?)
        };
        let bytes = Numbers {
            utilization: part(
                filesystem.bytes,
                filesystem.bytes_free,
                filesystem.bytes_available,
            ),
            saturation: None,
            errors: interval
                .per_s(before.and_then(|before| before.errors), filesystem.errors)
                .map(|rate| (rate, "{error}/s")),
        };
        checks.push(bytes.check("filesystem", point, Vec::new()));
        if filesystem.inodes > 0 {
            let free = filesystem.inodes_free;
            let inodes = Numbers {
                utilization: part(filesystem.inodes, free, free),
                ..Numbers::default()
            };
            checks.push(inodes.check("inodes", point, Vec::new()));
        }
    }
    checks
}

static USAGE: Instrument = Instrument::up_down(
    "system.filesystem.usage",
    "By",
    "Bytes by state; reserved are those that only root may still use.",
);
static LIMIT: Instrument = Instrument::up_down("system.filesystem.limit", "By", "Bytes in all.");
static INODES: Instrument = Instrument::up_down(
    "hotspan.filesystem.inodes",
    "{inode}",
    "Files there are and may still be made.",
);
static ERRORS: Instrument = Instrument::counter(
    "hotspan.filesystem.errors",
    "{error}",
    "Faults that ext4 found in itself since it was made.",
);

/// Tells the numbers.
pub fn observe(now: &Reading, out: &mut Observations) {
    for (point, filesystem) in now {
        let place = || {
            [
                ("system.device", Value::from(&*filesystem.source)),
                ("system.filesystem.mountpoint", Value::from(&**point)),
                ("system.filesystem.type", Value::from(&*filesystem.kind)),
            ]
        };
        let in_state = |state: &str| {
            let [device, mountpoint, kind] = place();
            let state = ("system.filesystem.state", Value::from(state));
            [device, mountpoint, kind, state]
        };
        let used = filesystem.bytes.checked_sub(filesystem.bytes_free);
        let reserved = filesystem
            .bytes_free
            .checked_sub(filesystem.bytes_available);
        out.add(&USAGE, in_state("used"), used);
        out.add(&USAGE, in_state("free"), filesystem.bytes_available);
        out.add(&USAGE, in_state("reserved"), reserved);
        out.add(&LIMIT, place(), filesystem.bytes);
        if filesystem.inodes > 0 {
            let used = filesystem.inodes.checked_sub(filesystem.inodes_free);
            out.add(&INODES, in_state("used"), used);
            out.add(&INODES, in_state("free"), filesystem.inodes_free);
        }
        out.add(&ERRORS, place(), filesystem.errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Verdict;
    use std::time::Duration;

    #[test]
    fn each_real_file_system_is_looked_at_once() {
        let mount = |device: &str, root: &str, point: &str, kind: &str| Mount {
            device: device.into(),
            root: root.into(),
            point: point.into(),
            kind: kind.into(),
            source: "x".into(),
            options: "rw".into(),
        };
        let mounts = vec![
            mount("8:1", "/etc/hosts", "/etc/hosts", "ext4"),
            mount("8:1", "/", "/", "ext4"),
            mount("0:1", "/", "/proc", "proc"),
            mount("0:2", "/", "/dev/shm", "tmpfs"),
            mount("0:3", "/", "/run", "tmpfs"),
            mount("0:4", "/", "/home", "nfs4"),
            mount("0:5", "/", "/var/lib/docker/overlay2/a", "tmpfs"),
            mount("0:6", "/", "/development", "xfs"),
        ];
        let points: Vec<_> = chosen(mounts)
            .into_iter()
            .map(|mount| mount.point)
            .collect();
        assert_eq!(points, ["/", "/run", "/development"]);
    }

    #[test]
    fn what_is_kept_for_root_is_neither_used_nor_free() {
        let filesystem = Filesystem {
            source: "/dev/vda".into(),
            kind: "ext4".into(),
            bytes: 1000,
            bytes_free: 100,
            bytes_available: 0,
            inodes: 10,
            inodes_free: 8,
            errors: Some(2),
        };
        let now = Reading::from([("/".to_owned(), filesystem.clone())]);
        let before = Filesystem {
            errors: Some(1),
            ..filesystem
        };
        let before = Reading::from([("/".to_owned(), before)]);
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let found = checks(interval, &before, &now);
        assert_eq!(found[0].utilization.unwrap().value, 1.0);
        assert_eq!(found[0].verdict, Verdict::Errors);
        assert_eq!(found[1].utilization.unwrap().value, 0.2);
        assert_eq!(
            checks(interval, &Reading::new(), &now)[0].verdict,
            Verdict::Saturated
        );
    }
}
