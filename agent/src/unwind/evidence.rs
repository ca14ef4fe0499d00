//! What tables were made of: the proof that another file would give the same ones.
//!
//! Two files with one build id need not be the same: whoever writes a file chooses its build id, and
//! one made to mislead would stand for the real one wherever that is used. So a build id only tells
//! which tables to try. What proves them right for a file is that every byte they were made of is the
//! same there: the same computation would read the same bytes, and give the same tables. Those are a
//! few per cent of a file, and hashing them costs a fraction of the computation.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use object::read::ReadCacheOps;
use sha2::{Digest, Sha256};

/// A file that takes down what is read of it.
#[derive(Debug)]
pub struct Observed {
    file: Arc<File>,
    len: u64,
    at: u64,
    parts: Vec<Part>,
    hash: Sha256,
    has_failed: bool,
}

/// A part of a file that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it starts.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The file's length.
    pub len: u64,
    /// The parts that were read, in that order.
    pub parts: Vec<Part>,
    /// SHA-256 of all their bytes, one behind the other.
    pub digest: [u8; 32],
}

/// How much is read at once to look at evidence.
const CHUNK_BYTES: usize = 64 << 10;

impl Observed {
    /// A file of which nothing was read yet.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        Self {
            len: file.metadata().map_or(0, |metadata| metadata.len()),
            file,
            at: 0,
            parts: Vec::new(),
            hash: Sha256::new(),
            has_failed: false,
        }
    }

    /// What was read; `None` when the file could not be read, or changed its length meanwhile.
    #[must_use]
    pub fn evidence(self) -> Option<Evidence> {
        (!self.has_failed).then(|| Evidence {
            len: self.len,
            parts: self.parts,
            digest: self.hash.finalize().into(),
        })
    }
}

impl ReadCacheOps for Observed {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.len)
    }

    fn seek(&mut self, at: u64) -> Result<u64, ()> {
        self.at = at;
        Ok(at)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ()> {
        let left = self.len.saturating_sub(self.at);
        let bytes = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.read_exact(&mut buffer[..bytes])?;
        Ok(bytes)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ()> {
        if self.file.read_exact_at(buffer, self.at).is_err() {
            self.has_failed = true;
            return Err(());
        }
        self.hash.update(&*buffer);
        let bytes = buffer.len() as u64;
        match self.parts.last_mut() {
            Some(last) if last.offset + last.bytes == self.at => last.bytes += bytes,
            _ => self.parts.push(Part {
                offset: self.at,
                bytes,
            }),
        }
        self.at += bytes;
        Ok(())
    }
}

impl Evidence {
    /// Whether all that was read is the same in another file.
    #[must_use]
    pub fn is_same_in(&self, file: &File) -> bool {
        if file.metadata().map_or(0, |metadata| metadata.len()) != self.len {
            return false;
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        for part in &self.parts {
            let (mut at, mut left) = (part.offset, part.bytes);
            while left > 0 {
                let bytes = left.min(CHUNK_BYTES as u64) as usize;
                if file.read_exact_at(&mut buffer[..bytes], at).is_err() {
                    return false;
                }
                hash.update(&buffer[..bytes]);
                at += bytes as u64;
                left -= bytes as u64;
            }
        }
        self.digest == <[u8; 32]>::from(hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use object::{ReadCache, ReadRef};

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    #[test]
    fn only_what_was_read_must_be_the_same() {
        let original: Vec<u8> = (0..200_000_u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
        let cache = ReadCache::new(Observed::new(file(&original)));
        let read = |offset, bytes| (&cache).read_bytes_at(offset, bytes).unwrap().to_vec();
        assert_eq!(read(100_000, 90_000), original[100_000..190_000]);
        assert_eq!(read(16, 16), original[16..32]);
        assert_eq!(read(32, 8), original[32..40]);
        assert!((&cache).read_bytes_at(199_999, 2).is_err());
        let evidence = cache.into_inner().evidence().unwrap();
        let part = |offset, bytes| Part { offset, bytes };
        assert_eq!(evidence.parts, [part(100_000, 90_000), part(16, 24)]);
        assert!(evidence.is_same_in(&file(&original)));
        for (at, is_same) in [
            (15, true),
            (16, false),
            (39, false),
            (40, true),
            (99_999, true),
            (100_000, false),
            (189_999, false),
            (190_000, true),
        ] {
            let mut other = original.clone();
            other[at] ^= 1;
            assert_eq!(evidence.is_same_in(&file(&other)), is_same, "{at}");
        }
        assert!(!evidence.is_same_in(&file(&original[..199_999])));
    }

    #[test]
    fn file_that_is_cut_off_meanwhile_proves_nothing() {
        let file = file(&[7; 100]);
        let cache = ReadCache::new(Observed::new(file.clone()));
        assert!((&cache).read_bytes_at(0, 10).is_ok());
        file.set_len(50).unwrap();
        assert!((&cache).read_bytes_at(40, 20).is_err());
        assert_eq!(cache.into_inner().evidence(), None);
    }
}
