//! Finds the perf map a process writes, without being led anywhere else by that process.
//!
//! In: a process id. Out: an open file. Its content is `symbolize`'s business.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::in_root::open_below;

/// Opens `/tmp/perf-NS_PID.map` as the process `pid` sees it: in its mount namespace and below its
/// root, under the id `ns_pid` that it has in its own pid namespace.
///
/// `/tmp` is writable by everybody, so only a regular file is opened (a pipe could block, and
/// opening a device can do something), only if the process's user or root owns it, and links lead
/// at most to the process's own root. `None` when there is no such file, or the process has ended.
#[must_use]
pub fn open_perf_map(pid: u32, ns_pid: u32) -> Option<File> {
    open_owned(
        Path::new(&format!("/proc/{pid}/root")),
        &format!("tmp/perf-{ns_pid}.map"),
        &read_uids(pid)?,
    )
}

/// Opens a regular file below a root directory, if one of `owners` or root owns it.
fn open_owned(root: &Path, path: &str, owners: &[u32]) -> Option<File> {
    let file = open_below(root, Path::new(path))?;
    let owner = file.metadata().ok()?.uid();
    (owner == 0 || owners.contains(&owner)).then_some(file)
}

/// The user ids of a process: real, effective, saved, file system.
fn read_uids(pid: u32) -> Option<Vec<u32>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_uids(&status)
}

fn parse_uids(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace()
        .map(|uid| uid.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    const NAME: &str = "tmp/perf-7.map";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            fs::create_dir(directory.path().join("tmp")).expect("made");
            Self(directory)
        }

        fn path(&self, path: &str) -> std::path::PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, content: &str) {
            fs::write(self.path(path), content).expect("written");
        }

        fn open(&self) -> Option<String> {
            let owner = fs::metadata(self.0.path()).expect("there").uid();
            let mut file = open_owned(self.0.path(), NAME, &[owner])?;
            let mut text = String::new();
            file.read_to_string(&mut text).expect("readable");
            Some(text)
        }
    }

    #[test]
    fn a_regular_file_is_opened() {
        let root = Root::new();
        assert_eq!(root.open(), None);
        root.write(NAME, "10 1 x\n");
        assert_eq!(root.open().as_deref(), Some("10 1 x\n"));
    }

    #[test]
    fn a_link_as_the_file_is_not_followed() {
        let root = Root::new();
        root.write("tmp/secret", "secret");
        symlink("secret", root.path(NAME)).expect("linked");
        assert_eq!(root.open(), None);
    }

    #[test]
    fn a_link_on_the_way_stays_below_the_root() {
        let outside = Root::new();
        outside.write(NAME, "outside");
        let root = Root::new();
        fs::remove_dir(root.path("tmp")).expect("removed");
        symlink(outside.path("tmp"), root.path("tmp")).expect("linked");
        assert_eq!(root.open(), None);

        fs::remove_file(root.path("tmp")).expect("removed");
        fs::create_dir(root.path("scratch")).expect("made");
        root.write("scratch/perf-7.map", "inside");
        symlink("/../../scratch", root.path("tmp")).expect("linked");
        assert_eq!(root.open().as_deref(), Some("inside"));
    }

    #[test]
    fn a_pipe_does_not_block_and_a_directory_is_no_file() {
        let root = Root::new();
        let made = std::process::Command::new("mkfifo")
            .arg(root.path(NAME))
            .status();
        assert!(made.expect("mkfifo starts").success());
        assert_eq!(root.open(), None);

        fs::remove_file(root.path(NAME)).expect("removed");
        fs::create_dir(root.path(NAME)).expect("made");
        assert_eq!(root.open(), None);
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let root = Root::new();
        root.write(NAME, "x");
        let owner = fs::metadata(root.path(NAME)).expect("there").uid();
        let opened = open_owned(root.0.path(), NAME, &[owner + 1]);
        // Root's files are anybody's.
        assert_eq!(opened.is_some(), owner == 0);
        if owner == 0 {
            std::os::unix::fs::chown(root.path(NAME), Some(65_534), None).expect("root may");
            assert!(open_owned(root.0.path(), NAME, &[1]).is_none());
            assert!(open_owned(root.0.path(), NAME, &[65_534]).is_some());
        }
    }

    #[test]
    fn the_perf_map_of_this_process_is_found() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        fs::write(&path, "10 1 x\n").expect("written");
        let opened = open_perf_map(pid, pid);
        fs::remove_file(&path).expect("removed");
        assert!(opened.is_some());
        assert!(open_perf_map(pid, pid).is_none());
    }

    #[test]
    fn all_user_ids_of_a_process_are_read() {
        let status = "Name:\tx\nUid:\t1000\t0\t1000\t1001\nGid:\t5\t5\t5\t5\n";
        assert_eq!(parse_uids(status), Some(vec![1000, 0, 1000, 1001]));
        assert_eq!(parse_uids("Name:\tx\n"), None);
        assert_eq!(read_uids(u32::MAX), None);
    }
}
