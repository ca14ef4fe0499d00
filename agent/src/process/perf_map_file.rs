//! Finds the perf map a process writes, without being led anywhere else by that process.
//!
//! In: a process id. Out: an open file. Its content is `symbolize`'s business.

use std::{fs::File, path::Path};

use super::{
    proc_files,
    target_root::{LastLink, TargetRoot, Untrusted, user_ids},
};

/// A map that was not found is looked for again after this long.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;

/// The perf map of a process, looked for once code made at run time was sampled.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    file: Option<File>,
    looked_mono_ns: Option<u64>,
    has_complained: bool,
}

impl PerfMap {
    /// The map, still open though the process may have ended.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Opens the map while the process lives. Run times write it some time after their first code,
    /// so an absent one is looked for again, but not too often.
    pub fn look(&mut self, pid: u32, now_mono_ns: u64) {
        let is_soon = |looked| now_mono_ns.saturating_sub(looked) <= LOOK_AGAIN_NS;
        if self.file.is_some() || self.looked_mono_ns.is_some_and(is_soon) {
            return;
        }
        self.looked_mono_ns = Some(now_mono_ns);
        let ns_pid = proc_files::ns_pid(pid).unwrap_or(pid);
        match open(pid, ns_pid) {
            Ok(file) => self.file = Some(file),
            Err(Untrusted::Absent) => {}
            Err(reason) => {
                if !std::mem::replace(&mut self.has_complained, true) {
                    tracing::warn!(pid, %reason, "a perf map is ignored");
                }
            }
        }
    }
}

/// Opens `/tmp/perf-NS_PID.map` as the process `pid` sees it: in its mount namespace and below its
/// root, under the id `ns_pid` that it has in its own pid namespace.
///
/// `/tmp` is writable by everybody, so only a regular file is opened, and only if the process's
/// user or root owns it.
fn open(pid: u32, ns_pid: u32) -> Result<File, Untrusted> {
    let root = TargetRoot::of_process(pid).ok_or(Untrusted::Absent)?;
    let path = format!("tmp/perf-{ns_pid}.map");
    root.open_file(Path::new(&path), &user_ids(pid), LastLink::Refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_map_is_found_once_it_is_there() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        let mut map = PerfMap::default();
        map.look(pid, 1);
        assert!(map.file().is_none());
        std::fs::write(&path, "10 1 x\n").unwrap();
        map.look(pid, 2);
        assert!(map.file().is_none(), "looked for too soon");
        map.look(pid, LOOK_AGAIN_NS + 2);
        std::fs::remove_file(&path).unwrap();
        assert!(map.file().is_some());
    }
}
