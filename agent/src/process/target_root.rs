//! Opens files inside the root directory of a process, without being led out of it.
//!
//! In: a process id and a path. Out: an open regular file, or why it is not to be trusted. The
//! process controls every name below its root: links must not lead to files of the host, and pipes
//! and devices must not be opened at all.

#![allow(
    unsafe_code,
    reason = "openat2(2) and openat(2), which std does not wrap"
)]

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Component, Path},
};

/// Why there is no file to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// There is none, or it may not be looked at.
    #[error("there is none")]
    Absent,
    /// It is a pipe, a device, a directory or a link.
    #[error("it is no regular file")]
    Irregular,
    /// Somebody else put it there.
    #[error("user {0} owns it, and not the one whose process it is of")]
    Owner(u32),
}

/// What is done with a link where the file should be. Links on the way are followed, inside the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLink {
    /// It is followed, inside the root.
    Follow,
    /// There is no file: in a folder where everybody may write, it would lead to anybody's.
    Refuse,
}

/// The root directory of a process, held open: what is found below it stays the same place when the
/// process ends.
#[derive(Debug)]
pub struct TargetRoot(File);

impl TargetRoot {
    /// The root of a process; `None` when it has ended.
    #[must_use]
    pub fn of_process(pid: u32) -> Option<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/root"))).ok()
    }

    /// A directory as a root.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)?;
        Ok(Self(root))
    }

    /// Opens the regular file at `path` below the root, absolute or not, if root or one of `owners`
    /// owns it.
    ///
    /// # Errors
    /// Why it is left alone.
    pub fn open_file(
        &self,
        path: &Path,
        owners: &[u32],
        last: LastLink,
    ) -> Result<File, Untrusted> {
        let handle = File::from(self.find(path, last).map_err(|_| Untrusted::Absent)?);
        let meta = handle.metadata().map_err(|_| Untrusted::Absent)?;
        if !meta.is_file() {
            return Err(Untrusted::Irregular);
        }
        if meta.uid() != 0 && !owners.contains(&meta.uid()) {
            return Err(Untrusted::Owner(meta.uid()));
        }
        reopen(&handle).ok_or(Untrusted::Absent)
    }

    /// Opens the regular file at `path` below the root, whoever owns it; a link as the last component is
    /// not followed.
    #[must_use]
    pub fn open_any(&self, path: &Path) -> Option<File> {
        reopen(&File::from(self.find(path, LastLink::Refuse).ok()?))
    }

    /// A handle (`O_PATH`) of what lies at `path`. Absolute links and `..` stay inside.
    fn find(&self, path: &Path, last: LastLink) -> io::Result<OwnedFd> {
        match self.find_in_root(path, last) {
            // Sandboxes refuse system calls that they do not know, in either way.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.find_without_links(path)
            }
            found => found,
        }
    }

    /// By openat2(2), where the kernel itself keeps to the root.
    fn find_in_root(&self, path: &Path, last: LastLink) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the structure consists of integers, for which zero is a value.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        let flags = match last {
            LastLink::Follow => libc::O_PATH | libc::O_CLOEXEC,
            LastLink::Refuse => libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        };
        how.flags = flags as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // SAFETY: `path` ends in a zero byte, `how` has the size given, and both outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                self.0.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        owned(result as RawFd)
    }

    /// One component at a time, and none may be a link: fewer files are found so, and none outside.
    fn find_without_links(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut place = self.0.try_clone()?.into();
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => CString::new(name.as_bytes())?,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            };
            place = child(&place, &name)?;
        }
        Ok(place)
    }
}

/// Opens the regular file that a link of `/proc` stands for; `None` for anything else.
#[must_use]
pub(super) fn open_link(link: &Path) -> Option<File> {
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(link)
        .ok()?;
    reopen(&handle)
}

/// Makes a readable file of a handle that can only be looked at: of the very same file, and only when it
/// is a regular one. A pipe could block, and opening a device can do something.
fn reopen(handle: &File) -> Option<File> {
    if !handle.metadata().ok()?.is_file() {
        return None;
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
        .ok()
}

/// A handle of what a directory holds under a name; of a link, the link itself, below which nothing
/// is.
fn child(directory: &OwnedFd, name: &CString) -> io::Result<OwnedFd> {
    const FLAGS: i32 = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the name ends in a zero byte and outlives the call.
    owned(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), FLAGS) })
}

fn owned(result: RawFd) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// The user ids of a process: real, effective, saved, file system. None when it has ended.
#[must_use]
pub fn user_ids(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    parse_user_ids(&status).unwrap_or_default()
}

fn parse_user_ids(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace()
        .map(|uid| uid.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// With `tmp/file` in it, unless `content` is empty.
        fn with(content: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir(directory.path().join("tmp")).unwrap();
            if !content.is_empty() {
                fs::write(directory.path().join("tmp/file"), content).unwrap();
            }
            Self(directory)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        /// What is read of `tmp/file`, which must be the same in both ways of looking for it.
        fn read(&self) -> Result<String, Untrusted> {
            let ours = self.read_at("/tmp/file");
            assert_eq!(self.read_at("tmp/file"), ours);
            ours
        }

        fn read_at(&self, path: &str) -> Result<String, Untrusted> {
            let owner = fs::metadata(self.0.path()).unwrap().uid();
            let root = TargetRoot::open(self.0.path()).unwrap();
            let mut file = root.open_file(Path::new(path), &[owner], LastLink::Refuse)?;
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            Ok(text)
        }

        /// Whether the way without openat2(2) finds a regular file.
        fn is_found_without_links(&self, path: &str) -> bool {
            let root = TargetRoot::open(self.0.path()).unwrap();
            let found = root.find_without_links(Path::new(path));
            found.is_ok_and(|found| File::from(found).metadata().unwrap().is_file())
        }
    }

    #[test]
    fn regular_file_is_opened() {
        assert_eq!(Folder::with("").read(), Err(Untrusted::Absent));
        let folder = Folder::with("text");
        assert_eq!(folder.read().unwrap(), "text");
        assert!(folder.is_found_without_links("/tmp/./file"));
        assert!(!folder.is_found_without_links("tmp/none"));
    }

    #[test]
    fn link_as_the_file_is_followed_only_on_demand() {
        let folder = Folder::with("");
        fs::write(folder.path("tmp/secret"), "secret").unwrap();
        symlink("/tmp/secret", folder.path("tmp/file")).unwrap();
        assert_eq!(folder.read(), Err(Untrusted::Irregular));
        assert!(!folder.is_found_without_links("tmp/file"));
        let root = TargetRoot::open(folder.0.path()).unwrap();
        let owner = fs::metadata(folder.0.path()).unwrap().uid();
        let follow = |path: &str| root.open_file(Path::new(path), &[owner], LastLink::Follow);
        let mut text = String::new();
        follow("tmp/file")
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "secret");
        symlink("/etc/hostname", folder.path("tmp/outside")).unwrap();
        assert_eq!(follow("tmp/outside").unwrap_err(), Untrusted::Absent);
    }

    #[test]
    fn link_on_the_way_stays_below_the_root() {
        let outside = Folder::with("outside");
        let folder = Folder::with("");
        fs::remove_dir(folder.path("tmp")).unwrap();
        symlink(outside.path("tmp"), folder.path("tmp")).unwrap();
        assert_eq!(folder.read(), Err(Untrusted::Absent));
        assert!(!folder.is_found_without_links("tmp/file"));

        fs::remove_file(folder.path("tmp")).unwrap();
        fs::create_dir(folder.path("scratch")).unwrap();
        fs::write(folder.path("scratch/file"), "inside").unwrap();
        symlink("/../../scratch", folder.path("tmp")).unwrap();
        assert_eq!(folder.read().unwrap(), "inside");
        // What follows no links finds nothing rather than something else.
        assert!(!folder.is_found_without_links("tmp/file"));
    }

    #[test]
    fn nothing_above_the_root_is_found() {
        let outer = Folder::with("outside");
        let root = TargetRoot::open(&outer.path("tmp")).unwrap();
        fs::create_dir(outer.path("tmp/tmp")).unwrap();
        assert_eq!(
            root.open_file(Path::new("../tmp/file"), &[], LastLink::Follow)
                .unwrap_err(),
            Untrusted::Absent
        );
        assert!(root.find_without_links(Path::new("../tmp/file")).is_err());
    }

    #[test]
    fn pipe_does_not_block_and_directory_is_no_file() {
        let folder = Folder::with("");
        let made = std::process::Command::new("mkfifo")
            .arg(folder.path("tmp/file"))
            .status();
        assert!(made.unwrap().success());
        assert_eq!(folder.read(), Err(Untrusted::Irregular));

        fs::remove_file(folder.path("tmp/file")).unwrap();
        fs::create_dir(folder.path("tmp/file")).unwrap();
        assert_eq!(folder.read(), Err(Untrusted::Irregular));
    }

    #[test]
    fn file_of_another_user_is_refused() {
        let folder = Folder::with("text");
        let owner = fs::metadata(folder.path("tmp/file")).unwrap().uid();
        let root = TargetRoot::open(folder.0.path()).unwrap();
        let open = |owners: &[u32]| root.open_file(Path::new("tmp/file"), owners, LastLink::Refuse);
        // Root's files are anybody's.
        assert_eq!(open(&[owner + 1]).is_ok(), owner == 0);
        if owner == 0 {
            std::os::unix::fs::chown(folder.path("tmp/file"), Some(65_534), None).unwrap();
            assert_eq!(open(&[1]).unwrap_err(), Untrusted::Owner(65_534));
            assert!(open(&[65_534]).is_ok());
        }
    }

    #[test]
    fn all_user_ids_of_a_process_are_read() {
        let status = "Name:\tx\nUid:\t1000\t0\t1000\t1001\nGid:\t5\t5\t5\t5\n";
        assert_eq!(parse_user_ids(status), Some(vec![1000, 0, 1000, 1001]));
        assert_eq!(parse_user_ids("Name:\tx\n"), None);
        assert!(user_ids(u32::MAX).is_empty());
    }
}
