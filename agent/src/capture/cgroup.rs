//! A cgroup that was named on the command line.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A cgroup, in the terms the kernel side compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// The kernel's id of it: the inode number of its directory.
    pub id: u64,
    /// For cgroup v1, one of the controllers of the hierarchy it is in.
    pub controller: Option<String>,
}

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no such directory in any hierarchy.
    #[error(
        "there is no cgroup {0}; `systemd-cgls` or a look into /sys/fs/cgroup shows which there are"
    )]
    NotFound(PathBuf),
    /// The directory is no cgroup.
    #[error("{0} is no cgroup; name a directory under a cgroup mount such as /sys/fs/cgroup")]
    NotACgroup(PathBuf),
    /// A cgroup v1 hierarchy without a controller, which the kernel side cannot follow.
    #[error(
        "{0} is in a cgroup v1 hierarchy without a controller; name the same cgroup under /sys/fs/cgroup/cpu"
    )]
    NoController(PathBuf),
}

/// A mounted cgroup hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    is_v2: bool,
    controller: Option<String>,
}

/// Controllers that a v1 mount can name in its options.
const CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "hugetlb",
    "perf_event",
    "rdma",
    "misc",
];

impl Cgroup {
    /// Finds a cgroup by its directory, or by its path inside any mounted hierarchy.
    ///
    /// # Errors
    /// When there is none, or it cannot be followed.
    pub fn find(path: &Path) -> Result<Self, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        find_in(path, &parse_mounts(&mounts))
    }

    /// The processes in the cgroup and in all below it, as of now.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut directories = vec![self.path.clone()];
        while let Some(directory) = directories.pop() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            directories.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        pids
    }
}

/// Whether CPU time is accounted for by version 1.
#[must_use]
pub fn is_cpu_in_v1() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    parse_mounts(&mounts)
        .iter()
        .any(|hierarchy| !hierarchy.is_v2 && hierarchy.controller.as_deref() == Some("cpu"))
}

fn find_in(path: &Path, hierarchies: &[Hierarchy]) -> Result<Cgroup, CgroupError> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let places = std::iter::once(path.to_owned()).chain(
        hierarchies
            .iter()
            .map(|hierarchy| hierarchy.mount.join(relative)),
    );
    let mut failure = CgroupError::NotFound(path.to_owned());
    let mut first = None;
    for place in places {
        match open(&place, hierarchies) {
            // The same path may be in several hierarchies, and empty in most of them.
            Ok(Some(cgroup)) if cgroup.processes().is_empty() => {
                first.get_or_insert(cgroup);
            }
            Ok(Some(cgroup)) => return Ok(cgroup),
            Ok(None) => {}
            Err(error) => failure = error,
        }
    }
    first.ok_or(failure)
}

/// The cgroup at `place`; `None` when there is no such directory.
fn open(place: &Path, hierarchies: &[Hierarchy]) -> Result<Option<Cgroup>, CgroupError> {
    let metadata = match fs::metadata(place) {
        Ok(metadata) if metadata.is_dir() => metadata,
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Ok(None),
        _ => return Err(CgroupError::NotACgroup(place.to_owned())),
    };
    let real = place.canonicalize().unwrap_or_else(|_| place.to_owned());
    let hierarchy = hierarchies
        .iter()
        .filter(|hierarchy| real.starts_with(hierarchy.mount.canonicalize().unwrap_or_default()))
        .max_by_key(|hierarchy| hierarchy.mount.as_os_str().len());
    let is_cgroup = real.join("cgroup.procs").exists();
    match hierarchy {
        Some(hierarchy) if is_cgroup && (hierarchy.is_v2 || hierarchy.controller.is_some()) => {
            Ok(Some(Cgroup {
                id: metadata.ino(),
                controller: hierarchy.controller.clone(),
                path: real,
            }))
        }
        Some(_) if is_cgroup => Err(CgroupError::NoController(real)),
        _ => Err(CgroupError::NotACgroup(real)),
    }
}

/// The cgroup hierarchies in the text of `/proc/self/mounts`. Octal escapes do not occur in their
/// usual places and are left alone.
fn parse_mounts(text: &str) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let controller = options
                .split(',')
                .find(|option| CONTROLLERS.contains(option))
                .map(str::to_owned);
            match kind {
                "cgroup2" => Some(Hierarchy {
                    mount: mount.into(),
                    is_v2: true,
                    controller: None,
                }),
                "cgroup" => Some(Hierarchy {
                    mount: mount.into(),
                    is_v2: false,
                    controller,
                }),
                _ => None,
            }
        })
        .collect();
    // A relative path is looked up in v2 first, then where CPU time is accounted for.
    hierarchies.sort_by_key(|h| {
        (
            !h.is_v2,
            h.controller.as_deref() != Some("cpu"),
            h.controller.is_none(),
        )
    });
    hierarchies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_found() {
        let text = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<_> = parse_mounts(text)
            .into_iter()
            .map(|h| (h.is_v2, h.controller))
            .collect();
        assert_eq!(
            found,
            [(true, None), (false, Some("cpu".into())), (false, None)]
        );
    }

    #[test]
    fn directory_outside_a_hierarchy_is_refused() {
        assert!(matches!(
            find_in(Path::new("/proc"), &[]),
            Err(CgroupError::NotACgroup(_))
        ));
        assert!(matches!(
            find_in(Path::new("/no/such/place"), &[]),
            Err(CgroupError::NotFound(_))
        ));
    }
}
