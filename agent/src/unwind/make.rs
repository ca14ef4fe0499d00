//! From a file to its tables, and the proof of what they were made of.

use std::{fs::File, path::Path, sync::Arc};

use object::ReadCache;

use super::{
    Arch, Fault, Refused, debug_file, eh_frame,
    evidence::{Evidence, Observed},
    go,
    table::{self, Table},
};
use crate::{
    model::Segment,
    process::{KnownBinary, TargetRoot},
};

/// What files have in common whose tables may be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Likeness {
    /// GNU build id, empty when there is none.
    pub build_id: Vec<u8>,
    /// Hash of the file's ends and length.
    pub htlhash: [u8; 16],
    /// Executable segments.
    pub segments: Vec<Segment>,
    /// Whether Go's own tables are looked for.
    pub is_go: bool,
}

/// A file whose tables are wanted.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The file.
    pub file: Arc<File>,
    /// Its path as its processes see it.
    pub path: Arc<str>,
    /// One of those processes: a debug file is looked for in its root directory.
    pub pid: u32,
    /// What it has in common with the same file elsewhere.
    pub likeness: Arc<Likeness>,
}

/// The tables of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// For each executable segment those of its parts that have rules.
    pub tables: Vec<Table>,
    /// What they were made of; `None` when the file could not be read throughout.
    pub proof: Option<Arc<Proof>>,
    /// Why there are none, if the file is damaged.
    pub fault: Option<Fault>,
}

/// What tables were made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was read of the file.
    pub file: Evidence,
    /// What was read of its debug file.
    pub debug_file: DebugFile,
}

/// What part a debug file had in tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugFile {
    /// The file itself describes all of its code.
    NotWanted,
    /// There was none.
    Absent,
    /// There was one, and this was read of it.
    Used(Evidence),
}

impl Subject {
    /// A file that process `pid` has mapped as a subject; `None` when it cannot be read.
    #[must_use]
    pub fn new(known: &KnownBinary, pid: u32) -> Option<Self> {
        let facts = &known.facts;
        Some(Self {
            file: known.file()?.clone(),
            path: known.path.clone(),
            pid,
            likeness: Arc::new(Likeness {
                build_id: facts.build_id.clone(),
                htlhash: known.htlhash?,
                segments: facts.segments.clone(),
                is_go: !facts.go_build_id.is_empty(),
            }),
        })
    }

    /// Bytes of its code: what making its tables takes grows with it.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        let segments = self.likeness.segments.iter();
        segments.map(|segment| segment.end - segment.start).sum()
    }

    /// Makes the tables. Of a Go program, Go's own come first: they know the frameless functions
    /// that others leave out.
    #[must_use]
    pub fn make(&self) -> Made {
        // Only the sections that are needed are read, into memory of our own: the file may be cut
        // off by its owner meanwhile.
        let file = ReadCache::new(Observed::new(self.file.clone()));
        let mut found = eh_frame::rows(&file, None);
        let go = self.likeness.is_go.then(|| go::rows(&file)).flatten();
        let mut debug_proof = Some(DebugFile::NotWanted);
        if go.is_none()
            && found
                .as_ref()
                .is_ok_and(|found| found.report.bare_bytes > 0)
        {
            let debug_file = self.find_debug_file();
            debug_proof = Some(DebugFile::Absent);
            if let Some(debug_file) = debug_file {
                let debug_file = ReadCache::new(Observed::new(debug_file.into()));
                // Few files have one: theirs are simply computed anew.
                found = eh_frame::rows(&file, Some(&debug_file));
                debug_proof = debug_file.into_inner().evidence().map(DebugFile::Used);
            }
        }
        // What was read is not needed any more, and can be much.
        let file_proof = file.into_inner().evidence();
        let proof = file_proof
            .zip(debug_proof)
            .map(|(file, debug_file)| Arc::new(Proof { file, debug_file }));
        let fault = match (&found, &go) {
            (_, Some(_)) => None,
            (Ok(found), None) => found.report.fault(),
            // Code of another machine, which an emulator maps, is not damaged.
            (Err(Refused::Machine), None) => None,
            (Err(refused), None) => Some(Fault::Headers(*refused)),
        };
        // A file for another processor may be mapped by an emulator; nothing in it is executed.
        let others = found.ok().filter(|found| found.arch == Arch::NATIVE);
        let others = others.map(|found| found.rows).unwrap_or_default();
        let rows = match go {
            Some(go) => go::merge(&go, &others),
            None => others,
        };
        let mut tables = Vec::new();
        if !rows.rows.is_empty() {
            let segments = self.likeness.segments.iter();
            let pieces =
                segments.flat_map(|segment| table::pieces(&rows, segment.start..segment.end));
            tables.extend(pieces.filter_map(|piece| table::build(&rows, piece)));
        }
        Made {
            tables,
            proof,
            fault,
        }
    }

    fn find_debug_file(&self) -> Option<File> {
        let root = TargetRoot::of_process(self.pid)?;
        let found = debug_file::find(&self.file, Path::new(&*self.path), &root)?;
        Some(found.1)
    }
}

impl Proof {
    /// Whether a file gives the same tables as the one that this was read of.
    #[must_use]
    pub fn holds_for(&self, subject: &Subject) -> bool {
        if !self.file.is_same_in(&subject.file) {
            return false;
        }
        match &self.debug_file {
            DebugFile::NotWanted => true,
            DebugFile::Absent => subject.find_debug_file().is_none(),
            DebugFile::Used(evidence) => subject
                .find_debug_file()
                .is_some_and(|file| evidence.is_same_in(&file)),
        }
    }
}
