//! Output files: checked before work starts, and written so that nothing half-made is left.
#![allow(unsafe_code)] // Ownership of the written file.

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
        /// Its name.
        path: PathBuf,
        /// The name it is made under.
        temporary: PathBuf,
        /// The file.
        file: File,
    },
    /// Something that is no regular file: a device or a pipe.
    Special {
        /// Its name.
        path: PathBuf,
    },
}

impl Output {
    /// Makes sure that `path` can be written, without touching what is there.
    ///
    /// # Errors
    /// One sentence that names the path and the reason.
    pub fn prepare(path: &str) -> Result<Self> {
        if path == "-" {
            return Ok(Self::Stdout);
        }
        let path = Path::new(path);
        let cannot = || format!("cannot write {}", path.display());
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(anyhow!("it is a directory; name a file in it").context(cannot()));
            }
            Ok(metadata) if !metadata.is_file() => return Ok(Self::Special { path: path.into() }),
            Ok(_) | Err(_) => {}
        }
        // A link keeps its place: the file it leads to is replaced.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        let name = path
            .file_name()
            .ok_or_else(|| anyhow!("it has no file name"))
            .with_context(cannot)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)
            .map_err(|error| explain(error, &path))
            .with_context(cannot)?;
        Ok(Self::File {
            path,
            temporary,
            file,
        })
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
            Self::File {
                path,
                temporary,
                file,
            } => {
                let mut out = BufWriter::new(&*file);
                content(&mut out)
                    .and_then(|()| out.flush())
                    .and_then(|()| give_to_caller(file))
                    .and_then(|()| fs::rename(&*temporary, &*path))
                    .with_context(|| format!("cannot write {}", path.display()))
            }
            Self::Special { path } => OpenOptions::new()
                .write(true)
                .open(&*path)
                .map(BufWriter::new)
                .and_then(|mut out| content(&mut out).and_then(|()| out.flush()))
                .with_context(|| format!("cannot write {}", path.display())),
        }
    }

    /// What to call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Stdout => "-".into(),
            Self::File { path, .. } | Self::Special { path } => path.display().to_string(),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Self::File { temporary, .. } = self {
            // Gone already when it was put in its place.
            let _ = fs::remove_file(temporary);
        }
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
