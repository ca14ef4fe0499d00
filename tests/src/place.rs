//! Places that tests make and take away again: folders, full disks, cgroups, ports.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, wait_for};
use crate::recorder::check_host;

/// A folder that is gone after the test, readable by everybody.
///
/// # Errors
/// When it cannot be made.
pub fn folder() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("hotspan-test-").tempdir()?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// A port of the loopback interface that was free just now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// A file system of one page of memory.
#[derive(Debug)]
pub struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    /// Makes it.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new() -> Result<Self> {
        check_host()?;
        let folder = folder()?;
        process::output(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=4k", "hotspan-test"])
                .arg(folder.path()),
        )?;
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let unmounted = process::output(Command::new("umount").arg("-l").arg(self.path()));
        if let Err(error) = unmounted {
            eprintln!("{error:#}");
        }
    }
}

/// A disk whose blocks are in a file.
pub struct LoopDisk(PathBuf);

impl LoopDisk {
    /// Makes both.
    ///
    /// # Errors
    /// When the file cannot be made, or there can be no more of such disks.
    pub fn new(file: &Path, bytes: u64) -> Result<Self> {
        check_host()?;
        fs::File::create(file)?.set_len(bytes)?;
        let device = process::output(Command::new("losetup").args(["-f", "--show"]).arg(file))?;
        Ok(Self(device.trim().into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The kernel's name of it.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.0.file_name();
        name.and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let freed = process::output(Command::new("losetup").arg("-d").arg(&self.0));
        if let Err(error) = freed {
            eprintln!("{error:#}");
        }
    }
}

/// The mount point of the first cgroup hierarchy whose file system has this type, and one of these
/// options if there are any.
///
/// # Errors
/// When there is none.
pub fn cgroup_hierarchy(kind: &str, options: &[&str]) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .find(|(_, found, has)| {
            let has_option = has.split(',').any(|option| options.contains(&option));
            *found == kind && (options.is_empty() || has_option)
        })
        .map(|(mount, ..)| mount.into())
        .with_context(|| format!("no {kind} hierarchy with {options:?} is mounted"))
}

/// A cgroup that is removed after the test.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one below `parent`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("hotspan-test-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_in(&self, pid: u32) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move {pid} to {}", self.0.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that was just killed may still be in it for a moment.
        let removed =
            wait_for(
                "removal of a cgroup",
                Duration::from_secs(5),
                || match fs::remove_dir(&self.0) {
                    Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
                    result => Ok(Some(result?)),
                },
            );
        if let Err(error) = removed {
            eprintln!("{error:#}");
        }
    }
}
