//! Output files: checked before work starts, and written so that nothing half-made is left.
#![allow(unsafe_code)] // Ownership and flags of the written file.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};

/// Where a profile goes.
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file that is made under another name first, and takes its place when it is complete.
    File {
        /// Its name as the user gave it.
        name: String,
        /// Where it is.
        path: PathBuf,
    },
    /// Something that is no regular file, open: a device or a pipe.
    Special {
        /// Its name.
        name: String,
        /// It.
        file: File,
    },
}

impl Output {
    /// Makes sure that `name` can be written, without touching what is there.
    ///
    /// # Errors
    /// One sentence that names the path and the reason.
    pub fn prepare(name: &str) -> Result<Self> {
        if name == "-" {
            return Ok(Self::Stdout);
        }
        let cannot = || format!("cannot write {name}");
        match fs::metadata(name) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(anyhow!("it is a directory; name a file in it").context(cannot()));
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = open_special(name).with_context(cannot)?;
                return Ok(Self::Special {
                    name: name.into(),
                    file,
                });
            }
            Ok(_) | Err(_) => {}
        }
        let path = Self::place(name);
        // Made and gone again: nothing is left behind however the capture ends.
        let temporary = temporary(&path).with_context(cannot)?;
        create(&temporary)
            .map_err(|error| explain(error, &path))
            .with_context(cannot)?;
        fs::remove_file(&temporary).with_context(cannot)?;
        Ok(Self::File {
            name: name.into(),
            path,
        })
    }

    /// Where a file of this name is: two names of one place are equal here. A link keeps its place;
    /// the file it leads to is replaced.
    #[must_use]
    pub fn place(name: &str) -> PathBuf {
        let path = Path::new(name);
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        match (
            folder.unwrap_or(Path::new(".")).canonicalize(),
            path.file_name(),
        ) {
            (Ok(folder), Some(file)) if name != "-" => folder.join(file),
            _ => path.into(),
        }
    }

    /// Writes the file and puts it in its place; it belongs to the user who called `sudo`.
    ///
    /// # Errors
    /// One sentence that names the path and the reason.
    pub fn write(&mut self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut out = BufWriter::new(io::stdout().lock());
                match content(&mut out).and_then(|()| out.flush()) {
                    // Whoever reads has seen enough.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    result => result.context("cannot write standard output"),
                }
            }
            Self::File { name, path } => {
                replace(path, content).with_context(|| format!("cannot write {name}"))
            }
            Self::Special { name, file } => {
                let mut out = BufWriter::new(&*file);
                content(&mut out)
                    .and_then(|()| out.flush())
                    .with_context(|| format!("cannot write {name}"))
            }
        }
    }

    /// What to call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Stdout => "-".into(),
            Self::File { name, .. } | Self::Special { name, .. } => name.clone(),
        }
    }
}

/// Makes a file beside its place, and puts it there when it is complete.
fn replace(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary(path)?;
    let file = create(&temporary)?;
    let mut out = BufWriter::new(&file);
    let result = content(&mut out)
        .and_then(|()| out.flush())
        .and_then(|()| give_to_caller(&file))
        .and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// The name a file is made under.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

/// Opens a device or a pipe. A pipe must have its reader already: waiting for one would look like
/// recording.
fn open_special(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(name)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENXIO) => anyhow!("nobody reads from this pipe; start its reader first"),
            _ => error.into(),
        })?;
    // SAFETY: the descriptor is open as long as `file` lives; from here on writing may wait.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error().into()),
    }
}

fn explain(error: io::Error, path: &Path) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        let directory = path.parent().unwrap_or(path).display();
        return anyhow!("there is no directory {directory}; make it, or name another one");
    }
    error.into()
}

/// Under `sudo` the file belongs to who called it.
fn give_to_caller(file: &File) -> io::Result<()> {
    let id = |name| env::var(name).ok()?.parse::<u32>().ok();
    let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) else {
        return Ok(());
    };
    // SAFETY: the descriptor is open as long as `file` lives.
    match unsafe { libc::fchown(file.as_raw_fd(), uid, gid) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
