//! Where the kernel's files are, and reading them within bounds.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::model::{Instrument, Observations, Value};

/// No file that we read is longer, but for absurd hosts: `/proc/self/mountinfo` with 20 000 mounts.
const MAX_BYTES: usize = 4 << 20;

/// The longest file of a process that we read, `/proc/PID/stat`, has some 350 bytes.
const PIECE_BYTES: usize = 4096;

/// The directory that holds `proc` and `sys`: `/`, where a host is mounted in a container, or a
/// test's fixtures.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The root of this host's files.
    #[must_use]
    pub fn host() -> Self {
        Self::at("/")
    }

    /// A root elsewhere.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

/// What could not be read, by reason. A file that does not exist is none of it: not every kernel
/// and device has every file, and processes, devices and cgroups go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// The rights do not suffice.
    pub denied: u64,
    /// The text is not what this kernel file holds.
    pub malformed: u64,
    /// The kernel failed to tell: an I/O error.
    pub failed: u64,
    /// There are more processes, threads or cgroups than we look at.
    pub left_out: u64,
}

static UNREAD: Instrument = Instrument::up_down(
    "hotspan.resource.unread",
    "{file}",
    "Files of the kernel that the last collection could not read, by reason.",
);

impl Unread {
    /// Tells the counts.
    pub fn observe(&self, out: &mut Observations) {
        for (reason, count) in [
            ("denied", self.denied),
            ("malformed", self.malformed),
            ("failed", self.failed),
            ("left_out", self.left_out),
        ] {
            out.add(&UNREAD, [("hotspan.reason", Value::from(reason))], count);
        }
    }
}

/// Reads files below a [`Root`] and keeps account of what it could not read.
#[derive(Debug)]
pub struct Reader {
    root: PathBuf,
    bytes: Vec<u8>,
    /// What could not be read so far.
    pub unread: Unread,
}

impl Reader {
    /// A reader of the files below `root`.
    #[must_use]
    pub fn new(root: &Root) -> Self {
        Self {
            root: root.0.clone(),
            bytes: Vec::new(),
            unread: Unread::default(),
        }
    }

    /// Where the host's absolute `path` is.
    #[must_use]
    pub fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Reads a file and parses it. `None` where there is no such file, and, counted, where it
    /// cannot be read or `parse` makes nothing of it.
    pub fn read<T>(&mut self, path: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let outcome = read_bounded(&self.place(path), &mut self.bytes);
        self.parse(outcome, parse)
    }

    /// As [`Reader::read`], of a file that the kernel writes in one piece of at most
    /// [`PIECE_BYTES`], as it does those of a process (`single_open` of its `seq_file`): to read
    /// it once is enough, which tells with ten thousand processes.
    pub fn read_piece<T>(
        &mut self,
        path: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let outcome = read_once(&self.place(path), &mut self.bytes);
        self.parse(outcome, parse)
    }

    fn parse<T>(
        &mut self,
        outcome: io::Result<bool>,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let parsed = match outcome {
            Ok(true) => parse(&String::from_utf8_lossy(&self.bytes)),
            Ok(false) => None,
            Err(error) => {
                self.count(&error);
                return None;
            }
        };
        self.unread.malformed += u64::from(parsed.is_none());
        parsed
    }

    /// Names in a directory, without order; none where it cannot be listed.
    pub fn list(&mut self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.place(path));
        match entries {
            Ok(entries) => entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect(),
            Err(error) => {
                self.count(&error);
                Vec::new()
            }
        }
    }

    /// Takes a failure into the account.
    pub fn count(&mut self, error: &io::Error) {
        match error.kind() {
            ErrorKind::PermissionDenied => self.unread.denied += 1,
            _ if !is_absent(error) => self.unread.failed += 1,
            _ => {}
        }
    }
}

/// Whether `error` is the kernel's way to say that there is no such thing: a file that does not
/// exist, a process that ended, a cgroup or device that was removed while its file was open, a
/// link that is down and has no speed, PSI switched off.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || matches!(
            error.raw_os_error(),
            Some(libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EINVAL | libc::EOPNOTSUPP)
        )
        || error.kind() == ErrorKind::NotADirectory
}

/// Reads a file with one call; false when there may be more of it.
fn read_once(path: &Path, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.resize(PIECE_BYTES, 0);
    let length = File::open(path)?.read(bytes)?;
    bytes.truncate(length);
    Ok(length < PIECE_BYTES)
}

/// Reads a whole file into `bytes`; false when it is longer than what is sensible.
fn read_bounded(path: &Path, bytes: &mut Vec<u8>) -> io::Result<bool> {
    bytes.clear();
    let limit = MAX_BYTES as u64 + 1;
    File::open(path)?.take(limit).read_to_end(bytes)?;
    Ok(bytes.len() <= MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_nothing_and_what_is_wrong_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("word"), "word\n").unwrap();
        fs::write(folder.path().join("long"), vec![b'1'; MAX_BYTES + 1]).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let mut reader = Reader::new(&Root::at(folder.path()));
        let number = |text: &str| text.trim().parse::<u64>().ok();
        assert_eq!(reader.read("/none", number), None);
        assert_eq!(reader.read("word/below", number), None);
        assert_eq!(reader.unread, Unread::default());
        assert_eq!(reader.read("word", number), None);
        assert_eq!(reader.read("long", number), None);
        assert_eq!(reader.read_piece("long", number), None);
        assert_eq!(reader.read("folder", number), None);
        let expected = Unread {
            malformed: 3,
            failed: 1,
            ..Unread::default()
        };
        assert_eq!(reader.unread, expected);
    }
}
