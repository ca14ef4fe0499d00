//! The few facts of an ELF file that profiles need, read with small bounded reads.
//!
//! Target processes control these files: nothing is believed without a bound. Layouts come from
//! the `object` crate (System V ABI, chapter 4; GNU build id: `ld --build-id`).

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use object::{
    Endianness,
    elf::{FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_LOAD, PT_NOTE, ProgramHeader64},
    read::elf::{FileHeader, NoteIterator, ProgramHeader},
};
use sha2::{Digest, Sha256};

use crate::model::Segment;

/// A file with more program headers is cut off here; linkers make a dozen.
const MAX_PROGRAM_HEADERS: usize = 1024;
/// Notes longer than this are not read.
const MAX_NOTE_BYTES: u64 = 64 << 10;
/// Build ids longer than this are no build ids.
const MAX_BUILD_ID_BYTES: usize = 64;
/// A file with more executable segments is cut off here.
const MAX_SEGMENTS: usize = 64;
/// Note type of Go's build id, under the name `Go`.
const NT_GO_BUILD_ID: u32 = 4;

/// What profiles say about an ELF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfFacts {
    /// GNU build id, empty when there is none.
    pub build_id: Vec<u8>,
    /// Go build id, empty when there is none.
    pub go_build_id: Arc<str>,
    /// Executable segments.
    pub segments: Vec<Segment>,
}

impl ElfFacts {
    /// Reads the facts; `None` when this is no 64-bit ELF file.
    #[must_use]
    pub fn read(file: &File) -> Option<Self> {
        let mut head = [0; size_of::<FileHeader64<Endianness>>()];
        let len = read_up_to(file, &mut head, 0).ok()?;
        let header = FileHeader64::<Endianness>::parse(&head[..len]).ok()?;
        let endian = header.endian().ok()?;
        let mut facts = Self::default();
        // Usually they follow the header, but tools that change finished files move them.
        let count = usize::from(header.e_phnum.get(endian)).min(MAX_PROGRAM_HEADERS);
        let mut bytes = vec![0; count * size_of::<ProgramHeader64<Endianness>>()];
        let len = read_up_to(file, &mut bytes, header.e_phoff.get(endian)).ok()?;
        let there = len / size_of::<ProgramHeader64<Endianness>>();
        let (program_headers, _) =
            object::pod::slice_from_bytes::<ProgramHeader64<Endianness>>(&bytes, there).ok()?;
        for program_header in program_headers {
            match program_header.p_type(endian) {
                PT_LOAD if program_header.p_flags(endian) & PF_X != 0 => {
                    let start = program_header.p_vaddr(endian);
                    let Some(end) = start.checked_add(program_header.p_filesz(endian)) else {
                        continue;
                    };
                    if start < end && facts.segments.len() < MAX_SEGMENTS {
                        let file_offset = program_header.p_offset(endian);
                        facts.segments.push(Segment {
                            start,
                            end,
                            file_offset,
                        });
                    }
                }
                PT_NOTE => facts.read_notes(file, endian, program_header),
                _ => {}
            }
        }
        facts.segments.sort_by_key(|segment| segment.start);
        Some(facts)
    }

    fn read_notes(
        &mut self,
        file: &File,
        endian: Endianness,
        header: &ProgramHeader64<Endianness>,
    ) {
        let len = header.p_filesz(endian).min(MAX_NOTE_BYTES) as usize;
        let mut bytes = vec![0; len];
        let Ok(len) = read_up_to(file, &mut bytes, header.p_offset(endian)) else {
            return;
        };
        let align = header.p_align(endian);
        let Ok(mut notes) =
            NoteIterator::<FileHeader64<Endianness>>::new(endian, align, &bytes[..len])
        else {
            return;
        };
        while let Ok(Some(note)) = notes.next() {
            let description = note.desc();
            match (note.name(), note.n_type(endian)) {
                (b"GNU", NT_GNU_BUILD_ID) if description.len() <= MAX_BUILD_ID_BYTES => {
                    self.build_id = description.to_vec();
                }
                (b"Go", NT_GO_BUILD_ID) if description.len() <= 4 * MAX_BUILD_ID_BYTES => {
                    self.go_build_id = String::from_utf8_lossy(description).into();
                }
                _ => {}
            }
        }
    }

    /// The ELF address of a file offset inside an executable segment.
    #[must_use]
    pub fn addr_of_offset(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = offset.checked_sub(segment.file_offset)?;
            (into < segment.end - segment.start).then(|| segment.start + into)
        })
    }
}

impl ElfFacts {
    /// The ELF address that a mapping of this file starts at. The kernel maps whole pages, so a
    /// mapping may start before its segment does.
    #[must_use]
    pub fn addr_of_mapping(&self, file_offset: u64, len: u64) -> Option<u64> {
        let end = file_offset.checked_add(len)?;
        let segment = self.segments.iter().find(|segment| {
            let size = segment.end - segment.start;
            segment.file_offset < end && file_offset < segment.file_offset.saturating_add(size)
        })?;
        Some(
            segment
                .start
                .wrapping_add(file_offset)
                .wrapping_sub(segment.file_offset),
        )
    }
}

/// `process.executable.build_id.htlhash` (OpenTelemetry, profiles, mappings): the first 16 bytes of
/// the SHA-256 of the first 4096 bytes, the last 4096 bytes and the length, big-endian.
///
/// # Errors
/// When the file cannot be read.
pub fn htlhash(file: &File) -> io::Result<[u8; 16]> {
    const BLOCK: usize = 4096;
    let len = file.metadata()?.len();
    let mut block = [0; BLOCK];
    let mut hash = Sha256::new();
    let head = read_up_to(file, &mut block, 0)?;
    hash.update(&block[..head]);
    let tail = read_up_to(file, &mut block, len.saturating_sub(BLOCK as u64))?;
    hash.update(&block[..tail]);
    hash.update(len.to_be_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    Ok(*digest.first_chunk().expect("a SHA-256 digest has 32 bytes"))
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn own_executable_has_a_segment_that_holds_this_code() {
        let file = File::open("/proc/self/exe").unwrap();
        let facts = ElfFacts::read(&file).unwrap();
        assert!(!facts.segments.is_empty());
        let segment = facts.segments[0];
        assert_eq!(
            facts.addr_of_offset(segment.file_offset + 5),
            Some(segment.start + 5)
        );
        assert_eq!(facts.addr_of_offset(u64::MAX), None);
    }

    #[test]
    fn program_headers_may_lie_at_the_end() {
        let mut bytes = std::fs::read("/proc/self/exe").unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let at_start = ElfFacts::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        let headers = bytes[64..64 + usize::from(bytes[56]) * 56].to_vec();
        bytes[64..64 + headers.len()].fill(0xff);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let end = bytes.len() as u64;
        bytes[32..40].copy_from_slice(&end.to_le_bytes());
        bytes.extend(headers);
        file.write_all(&bytes).unwrap();
        assert_eq!(ElfFacts::read(&file).unwrap(), at_start);
    }

    #[test]
    fn htlhash_of_a_small_file_hashes_it_twice() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let mut wanted = Sha256::new();
        wanted.update(b"abcabc");
        wanted.update(3_u64.to_be_bytes());
        assert_eq!(htlhash(&file).unwrap()[..], wanted.finalize()[..16]);
    }

    #[test]
    fn changed_or_cut_files_never_panic() {
        let original = std::fs::read("/bin/true").unwrap();
        let mut seed = 1_u64;
        for round in 0..300 {
            let mut bytes = original[..original.len().min(4096)].to_vec();
            for _ in 0..1 + round % 8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % bytes.len().min(900);
                bytes[at] = (seed >> 20) as u8;
            }
            bytes.truncate(bytes.len() - round % 100 * 40);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            if let Some(facts) = ElfFacts::read(&file) {
                let _ = facts.addr_of_offset(seed);
            }
        }
    }
}
