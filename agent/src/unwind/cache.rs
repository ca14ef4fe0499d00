//! Tables on disk: what takes long to make need not be made at each start.
//!
//! One file a binary, named after what it is like. It is believed only if its own digest is right,
//! and used only for a binary that has each byte that the tables were made of ([`Proof`]); so a
//! damaged one costs nothing but the time to make it anew. Nobody else may write in the folder.
//!
//! | bytes | what is there |
//! |---|---|
//! | 8 | [`MAGIC`], with the version |
//! | | what was read of the binary: its length, how many parts, offset and length of each, 32 bytes of digest |
//! | 8 | debug file: 0 not wanted, 1 there was none, 2 the same of it follows |
//! | 8 | how many tables |
//! | | of each: address of the first page, pages; how many words, wide rules and rows with one, and these |
//! | 32 | SHA-256 of all before |
//!
//! Numbers have 64 bits, words of tables 32, all little-endian.

use std::{
    env,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use hotspan_abi::unwind::{WIDE_RULE_WORDS, WideRule};
use sha2::{Digest, Sha256};

use super::{
    evidence::{Evidence, Part},
    make::{DebugFile, Likeness, Made, Proof, Subject},
    table::Table,
};

/// The last byte is the version: one more whenever other tables are made of the same file.
const MAGIC: [u8; 8] = *b"HSTABLE\x03";
/// Files of all binaries take this much at most; those that were not used for longest go.
const MAX_TOTAL_BYTES: u64 = 256 << 20;
/// One of them, four times as much as the largest known binaries need.
const MAX_FILE_BYTES: u64 = 64 << 20;
const SUFFIX: &str = "tables";
const DIGEST_BYTES: usize = 32;

/// A folder with tables.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    max_total_bytes: u64,
}

impl Cache {
    /// Uses a folder, which is made if there is none.
    ///
    /// # Errors
    /// When it cannot be used, or others may write in it.
    pub fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let meta = fs::metadata(folder)?;
        let own = fs::metadata("/proc/self")?.uid();
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        if meta.uid() != own || meta.mode() & 0o022 != 0 {
            return Err(io::Error::other(
                "others may write in it; use a folder of your own with mode 0700",
            ));
        }
        Ok(Self {
            folder: folder.to_owned(),
            max_total_bytes: MAX_TOTAL_BYTES,
        })
    }

    /// The tables of a binary, if they are there and those of this very binary.
    #[must_use]
    pub fn load(&self, subject: &Subject) -> Option<Made> {
        let path = self.path_of(&subject.likeness);
        let file = File::open(&path).ok()?;
        let mut bytes = Vec::new();
        let mut reader = (&file).take(MAX_FILE_BYTES);
        reader.read_to_end(&mut bytes).ok()?;
        let (tables, proof) = decode(&bytes)?;
        if !proof.holds_for(subject) {
            return None;
        }
        // The time of the last use.
        let _ = file.set_modified(SystemTime::now());
        Some(Made {
            tables,
            proof: Some(Arc::new(proof)),
            fault: None,
        })
    }

    /// Keeps tables. What cannot be kept is made anew the next time.
    pub fn save(&self, subject: &Subject, made: &Made) {
        let Some(proof) = &made.proof else {
            return;
        };
        let bytes = encode(&made.tables, proof);
        if made.tables.is_empty() || bytes.len() as u64 > MAX_FILE_BYTES {
            return;
        }
        let path = self.path_of(&subject.likeness);
        if let Err(error) = write(&path, &bytes).and_then(|()| self.tidy()) {
            tracing::debug!(path = %path.display(), reason = %error, "unwind tables are not kept");
        }
    }

    fn path_of(&self, likeness: &Likeness) -> PathBuf {
        let Likeness {
            build_id,
            htlhash,
            segments,
            is_go,
        } = likeness;
        let mut hash = Sha256::new();
        hash.update(env::consts::ARCH);
        hash.update((build_id.len() as u64).to_le_bytes());
        hash.update(build_id);
        hash.update(htlhash);
        for segment in segments {
            for number in [segment.start, segment.end, segment.file_offset] {
                hash.update(number.to_le_bytes());
            }
        }
        hash.update([u8::from(*is_go)]);
        let mut name = String::new();
        for byte in &hash.finalize()[..16] {
            write!(name, "{byte:02x}").expect("a string takes everything");
        }
        self.folder.join(name).with_extension(SUFFIX)
    }

    /// Removes the files that were not used for longest, until the others fit.
    fn tidy(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                let meta = fs::metadata(&path)?;
                files.push((meta.modified()?, meta.len(), path));
            }
        }
        let mut total: u64 = files.iter().map(|file| file.1).sum();
        files.sort();
        for (_, len, path) in files {
            if total <= self.max_total_bytes {
                break;
            }
            fs::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }
}

/// Writes a file so that nobody sees a part of it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    // One may have been left behind.
    let _ = fs::remove_file(&fresh);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

fn encode(tables: &[Table], proof: &Proof) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    put_evidence(&mut out, &proof.file);
    match &proof.debug_file {
        DebugFile::NotWanted => put(&mut out, 0),
        DebugFile::Absent => put(&mut out, 1),
        DebugFile::Used(evidence) => {
            put(&mut out, 2);
            put_evidence(&mut out, evidence);
        }
    }
    put(&mut out, tables.len() as u64);
    for table in tables {
        put(&mut out, table.pages_start);
        put(&mut out, table.page_count.into());
        for len in [table.words.len(), table.wide.len(), table.wide_rows.len()] {
            put(&mut out, len as u64);
        }
        put_words(&mut out, &table.words);
        for rule in &table.wide {
            put_words(&mut out, &rule.to_words());
        }
        put_words(&mut out, &table.wide_rows);
    }
    let digest = Sha256::digest(&out);
    out.extend(digest);
    out
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u32]) {
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put_evidence(out: &mut Vec<u8>, evidence: &Evidence) {
    put(out, evidence.len);
    put(out, evidence.parts.len() as u64);
    for part in &evidence.parts {
        put(out, part.offset);
        put(out, part.bytes);
    }
    out.extend(evidence.digest);
}

fn decode(bytes: &[u8]) -> Option<(Vec<Table>, Proof)> {
    let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_BYTES)?)?;
    if !body.starts_with(&MAGIC) || digest != &Sha256::digest(body)[..] {
        return None;
    }
    let mut reader = Reader(&body[MAGIC.len()..]);
    let proof = Proof {
        file: reader.evidence()?,
        debug_file: match reader.number()? {
            0 => DebugFile::NotWanted,
            1 => DebugFile::Absent,
            2 => DebugFile::Used(reader.evidence()?),
            _ => return None,
        },
    };
    let tables = (0..reader.number()?)
        .map(|_| reader.table())
        .collect::<Option<_>>()?;
    reader.0.is_empty().then_some((tables, proof))
}

/// Reads what [`encode`] writes. Nothing is believed that the bytes do not bear out.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn words(&mut self, count: u64) -> Option<Vec<u32>> {
        let bytes = self.take(count.checked_mul(4)?)?;
        let (words, _) = bytes.as_chunks();
        Some(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    fn evidence(&mut self) -> Option<Evidence> {
        let (len, count) = (self.number()?, self.number()?);
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push(Part {
                offset: self.number()?,
                bytes: self.number()?,
            });
        }
        let digest = *self.take(DIGEST_BYTES as u64)?.first_chunk()?;
        Some(Evidence { len, parts, digest })
    }

    fn table(&mut self) -> Option<Table> {
        let (pages_start, page_count) = (self.number()?, u32::try_from(self.number()?).ok()?);
        let (words, wide, wide_rows) = (self.number()?, self.number()?, self.number()?);
        let words = self.words(words)?;
        let wide = (0..wide)
            .map(|_| {
                Some(WideRule::from_words(
                    *self.words(WIDE_RULE_WORDS as u64)?.first_chunk()?,
                ))
            })
            .collect::<Option<_>>()?;
        let table = Table {
            pages_start,
            page_count,
            words,
            wide,
            wide_rows: self.words(wide_rows)?,
        };
        table.is_sound().then_some(table)
    }
}

#[cfg(test)]
mod tests;
