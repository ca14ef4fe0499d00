//! Opens files that other processes name, without being led anywhere else by them.
#![allow(unsafe_code, reason = "openat2(2), which std does not wrap")]

use std::{
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

/// Opens the regular file that lies at `path` when `root` is the root directory: links lead at most
/// to that root, and a link as the last component is not followed.
///
/// Nothing else is opened, not even to look at it: a pipe could block, and opening a device can do
/// something. `None` when there is no such file.
#[must_use]
pub fn open_below(root: &Path, path: &Path) -> Option<File> {
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(root)
        .ok()?;
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    reopen(&File::from(open_path_in_root(&root, &path).ok()?))
}

/// Opens the regular file that a link of `/proc` stands for; `None` for anything else.
#[must_use]
pub fn open_link(link: &Path) -> Option<File> {
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(link)
        .ok()?;
    reopen(&handle)
}

/// Makes a readable file of a handle that can only be looked at: of the very same file, now that it
/// is known to be a regular one.
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
