//! Files that processes execute, each known once however many processes map it.
//!
//! A file is opened when it is first seen and stays open, so that a process that ends, or a file
//! that is deleted or replaced, still gets its names.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::PathBuf,
    sync::Arc,
};

use rustc_hash::FxHashMap;

use super::{elf, elf::ElfFacts, proc_files::without_deleted, vdso};
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
        let text = String::from_utf8_lossy(&mapped.path);
        let is_vdso = text == "[vdso]";
        let file = if is_vdso {
            vdso::image()
        } else {
            open(pid, mapped)
        };
        let (facts, htlhash) = match &file {
            Some(file) => (ElfFacts::read(file)?, elf::htlhash(file).ok()),
            None => (facts_without_file(mapped)?, None),
        };
        let path: Arc<str> = without_deleted(&text).into();
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
    let exact = format!("/proc/{pid}/map_files/{:x}-{:x}", mapped.start, mapped.end);
    if let Some(file) = open_regular(exact.into()) {
        return Some(file);
    }
    let text = String::from_utf8_lossy(&mapped.path);
    let path = without_deleted(&text);
    [format!("/proc/{pid}/root{path}"), path.to_owned()]
        .into_iter()
        .filter_map(|place| open_regular(place.into()))
        .find(|file| is_same(file, &mapped.identity))
}

fn open_regular(path: PathBuf) -> Option<File> {
    // Non-blocking, since the path may lead to a pipe by the time it is opened.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
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
