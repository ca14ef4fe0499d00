//! Finds the perf map a process writes, without being led anywhere else by that process.
//!
//! In: a process id. Out: an open file. Its content is `symbolize`'s business.

#![allow(unsafe_code, reason = "openat2(2), which std does not wrap")]

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens `/tmp/perf-NS_PID.map` as the process `pid` sees it: in its mount namespace and below its
/// root, under the id `ns_pid` that it has in its own pid namespace.
///
/// `/tmp` is writable by everybody, so only a regular file is opened (a pipe could block, and
/// opening a device can do something), only if the process's user or root owns it, and links lead
/// at most to the process's own root. `None` when there is no such file, or the process has ended.
#[must_use]
pub fn open_perf_map(pid: u32, ns_pid: u32) -> Option<File> {
    open_below(
        Path::new(&format!("/proc/{pid}/root")),
        &format!("tmp/perf-{ns_pid}.map"),
        &read_uids(pid)?,
    )
}

/// Opens a regular file below a root directory, if one of `owners` or root owns it.
fn open_below(root: &Path, path: &str, owners: &[u32]) -> Option<File> {
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(root)
        .ok()?;
    let path = CString::new(path).ok()?;
    let found = File::from(open_path_in_root(&root, &path).ok()?);
    let meta = found.metadata().ok()?;
    let is_trusted = meta.uid() == 0 || owners.contains(&meta.uid());
    if !meta.is_file() || !is_trusted {
        return None;
    }
    // The handle above can only be looked at. This makes a readable one of the very same file, now
    // that it is known to be a regular one.
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .ok()
}

/// A handle (`O_PATH`) of what lies at `path` when `root` is the root directory. Absolute links and
/// `..` stay inside, and a link as the last component is not followed.
fn open_path_in_root(root: &File, path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the structure consists of integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: `path` ends in a zero byte, `how` has the size given, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
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
            let mut file = open_below(self.0.path(), NAME, &[owner])?;
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
        let opened = open_below(root.0.path(), NAME, &[owner + 1]);
        // Root's files are anybody's.
        assert_eq!(opened.is_some(), owner == 0);
        if owner == 0 {
            std::os::unix::fs::chown(root.path(NAME), Some(65_534), None).expect("root may");
            assert!(open_below(root.0.path(), NAME, &[1]).is_none());
            assert!(open_below(root.0.path(), NAME, &[65_534]).is_some());
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
