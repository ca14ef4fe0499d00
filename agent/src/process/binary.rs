//! Files that processes execute, each known once however many processes map it.
//!
//! A file is opened when it is first seen and stays open, so that a process that ends, or a file
//! that is deleted or replaced, still gets its names.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustc_hash::FxHashMap;

use super::{
    elf,
    elf::ElfFacts,
    proc_files::without_deleted,
    target_root::{TargetRoot, open_link},
    vdso,
};
use crate::{
    decode::side_band::{FileIdentity, Mapped},
    model::{BinaryId, BinaryKind},
};

/// What is known of a file.
pub struct KnownBinary {
    /// What it is.
    pub kind: BinaryKind,
    /// Path as the process saw it that brought it first.
    pub path: Arc<str>,
    /// Facts from its headers; of a file we could not open, only the build id the kernel told.
    pub facts: ElfFacts,
    /// Hash of its ends and length.
    pub htlhash: Option<[u8; 16]>,
    file: Option<Arc<File>>,
}

impl KnownBinary {
    /// The file, if it could be opened.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// A path under which the file can be opened, whatever became of its name.
    #[must_use]
    pub fn open_path(&self) -> Option<PathBuf> {
        let file = self.file.as_ref()?;
        Some(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
    }
}

/// Files stay open up to this many, or half of what the system allows; later ones have no names once
/// their processes are gone.
const MAX_OPEN_FILES: u64 = 8192;

/// Files by identity and path: two paths of one file stay two, since both are shown.
type Key = (FileIdentity, Vec<u8>);

/// All known files.
pub struct Binaries {
    /// How many files may stay open.
    max_open: usize,
    list: Vec<KnownBinary>,
    /// `None` for files that are no ELF files: memory of a just-in-time compiler.
    by_key: FxHashMap<Key, Option<BinaryId>>,
}

impl Default for Binaries {
    fn default() -> Self {
        let max_open = (super::signal::raise_file_limit() / 2).min(MAX_OPEN_FILES) as usize;
        Self {
            max_open,
            list: Vec::new(),
            by_key: FxHashMap::default(),
        }
    }
}

impl Binaries {
    /// The file with this id.
    #[must_use]
    pub fn get(&self, id: BinaryId) -> &KnownBinary {
        &self.list[id.0 as usize]
    }

    /// The file behind a mapping of process `pid`, opened when it is new; `None` when the mapping
    /// holds no file but code made at run time.
    pub fn of_mapping(&mut self, pid: u32, mapped: &Mapped) -> Option<BinaryId> {
        let path = mapped.path.as_slice();
        if !(path.starts_with(b"/") || path == b"[vdso]") || path.starts_with(b"//anon") {
            return None;
        }
        let key = (mapped.identity.clone(), path.to_vec());
        if let Some(&known) = self.by_key.get(&key) {
            return known;
        }
        let id = self.add(pid, mapped);
        self.by_key.insert(key, id);
        id
    }

    fn add(&mut self, pid: u32, mapped: &Mapped) -> Option<BinaryId> {
        let is_vdso = mapped.path == b"[vdso]";
        let file = if is_vdso {
            vdso::image()
        } else {
            open(pid, mapped)
        };
        let (facts, htlhash) = match &file {
            Some(file) => (ElfFacts::read(file)?, elf::htlhash(file).ok()),
            None => (facts_without_file(mapped)?, None),
        };
        let path = String::from_utf8_lossy(without_deleted(&mapped.path)).into();
        // The same file by the other identity: a scan names inodes, an event build ids.
        let by_build_id = (!facts.build_id.is_empty()).then(|| {
            (
                FileIdentity::BuildId(facts.build_id.clone()),
                mapped.path.clone(),
            )
        });
        if let Some(&Some(known)) = by_build_id.as_ref().and_then(|key| self.by_key.get(key)) {
            return Some(known);
        }
        let id = BinaryId(u32::try_from(self.list.len()).ok()?);
        let kind = if is_vdso {
            BinaryKind::Vdso
        } else {
            BinaryKind::File
        };
        let file = file
            .filter(|_| self.list.len() < self.max_open)
            .map(Arc::new);
        self.list.push(KnownBinary {
            kind,
            path,
            facts,
            htlhash,
            file,
        });
        if let Some(key) = by_build_id {
            self.by_key.insert(key, Some(id));
        }
        Some(id)
    }
}

/// What is known of a file that cannot be opened any more. Memory files have no name to open, and
/// no code ahead of time either.
fn facts_without_file(mapped: &Mapped) -> Option<ElfFacts> {
    let path = &mapped.path;
    if path.starts_with(b"/memfd:") || path.starts_with(b"/dev/") || path.starts_with(b"/SYSV") {
        return None;
    }
    let build_id = match &mapped.identity {
        FileIdentity::BuildId(id) => id.clone(),
        FileIdentity::Inode { .. } => Vec::new(),
    };
    Some(ElfFacts {
        build_id,
        ..ElfFacts::default()
    })
}

/// Opens the file behind a mapping: through the mapping itself, which works whatever became of its
/// name, else by its path in the process's root, else by its path in ours, if it is the same file.
fn open(pid: u32, mapped: &Mapped) -> Option<File> {
    let link = format!("/proc/{pid}/map_files/{:x}-{:x}", mapped.start, mapped.end);
    if let Some(file) = open_link(link.as_ref()).filter(|file| may_be_mapped(file, mapped)) {
        return Some(file);
    }
    let path = Path::new(OsStr::from_bytes(without_deleted(&mapped.path)));
    [
        TargetRoot::of_process(pid),
        TargetRoot::open(Path::new("/")).ok(),
    ]
    .into_iter()
    .filter_map(|root| root?.open_any(path))
    .find(|file| is_same(file, &mapped.identity))
}

/// Whether a file that is mapped at the place of a mapping can be that of the mapping itself: by now
/// another one may have taken its place. The identity alone does not tell on every file system:
/// those in layers show one thing to a mapping and another to who asks for the file.
fn may_be_mapped(file: &File, mapped: &Mapped) -> bool {
    if is_same(file, &mapped.identity) {
        return true;
    }
    if let (FileIdentity::Inode { dev, .. }, Ok(metadata)) = (&mapped.identity, file.metadata())
        && metadata.dev() == *dev
    {
        return false;
    }
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    link.is_ok_and(|path| is_same_path(path.as_os_str().as_bytes(), &mapped.path))
}

/// Whether two paths, each as somebody else sees it, can be of one file: a root directory, or a
/// mount that the other does not have, makes a difference at the start alone.
fn is_same_path(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (without_deleted(one), without_deleted(other));
    one.ends_with(other) || other.ends_with(one)
}

fn is_same(file: &File, identity: &FileIdentity) -> bool {
    match identity {
        FileIdentity::BuildId(id) => {
            ElfFacts::read(file).is_some_and(|facts| facts.build_id == *id)
        }
        FileIdentity::Inode { dev, ino, .. } => file
            .metadata()
            .is_ok_and(|metadata| metadata.ino() == *ino && metadata.dev() == *dev),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_path(one: &str, other: &str, is_same: bool) {
        for (one, other) in [(one, other), (other, one)] {
            let found = is_same_path(one.as_bytes(), other.as_bytes());
            assert_eq!(found, is_same, "{one} {other}");
        }
    }

    #[test]
    fn paths_of_one_file_differ_at_their_start_alone() {
        check_path("/lib/a.so", "/lib/a.so", true);
        check_path("/lib/a.so (deleted)", "/lib/a.so", true);
        check_path("/srv/root/lib/a.so", "/lib/a.so", true);
        check_path("/lib/a.so", "/lib/b.so", false);
        check_path("/lib/a.so", "/lib64/a.so", false);
    }

    fn mapped(file: &File, path: &str) -> Mapped {
        let metadata = file.metadata().unwrap();
        Mapped {
            start: 0,
            end: 0x1000,
            file_offset: 0,
            identity: FileIdentity::Inode {
                dev: metadata.dev(),
                ino: metadata.ino(),
                generation: 0,
            },
            path: path.into(),
        }
    }

    #[test]
    fn file_that_has_taken_the_place_of_another_is_not_taken_for_it() {
        let [one, other] = ["one", "other"].map(|_| tempfile::NamedTempFile::new().unwrap());
        let path = one.path().to_str().unwrap();
        let expected = mapped(one.as_file(), path);
        assert!(may_be_mapped(one.as_file(), &expected));
        assert!(!may_be_mapped(other.as_file(), &expected));
        // A file system in layers tells another device.
        let mut layered = expected.clone();
        layered.identity = FileIdentity::Inode {
            dev: 1,
            ino: 1,
            generation: 0,
        };
        assert!(may_be_mapped(one.as_file(), &layered));
        assert!(!may_be_mapped(other.as_file(), &layered));
    }

    /// A process that takes its mapping back leaves a path, under which it can put anything.
    #[test]
    fn link_to_elsewhere_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::copy("/proc/self/exe", &target).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let file = File::open(&target).unwrap();
        let gone = |path: &Path| mapped(&file, path.to_str().unwrap());
        let pid = std::process::id();
        assert!(open(pid, &gone(&target)).is_some());
        assert!(open(pid, &gone(&link)).is_none());
    }
}
