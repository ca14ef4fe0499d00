//! What of a file may be handed to blazesym, which reads sections whole and unpacks them without a bound.
//!
//! In: a file, which its owner controls. Out: whether its symbols and its debugging information take a
//! sensible amount of memory. Sections that are packed are unpacked for that, into nothing, because
//! what they claim to hold need not be true. Sources: System V ABI, chapter 4 (`Elf64_Chdr`).

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use object::{
    LittleEndian, ReadCache, ReadRef,
    elf::{FileHeader64, SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB, SectionHeader64},
    read::elf::{FileHeader, SectionHeader},
};

use crate::process::packed::unpacker;

const LE: LittleEndian = LittleEndian;

/// A file with more sections is not one of a linker's.
const MAX_SECTIONS: usize = 1 << 14;
/// Bytes of all symbol tables and their names: ten million symbols, more than any program has.
const MAX_SYMBOL_BYTES: u64 = 256 << 20;
/// Bytes of all debugging information that has to be unpacked.
const MAX_DEBUG_BYTES: u64 = 1 << 30;
/// Nothing that compilers write gets smaller by more than this.
const MAX_RATIO: u64 = 64;
/// Memory for unpacking `.gnu_debugdata`.
const MAX_UNPACKER_BYTES: u64 = 64 << 20;

/// Sections of symbols are known by their names, whatever they say of themselves.
const SYMBOLS: [&[u8]; 4] = [b".symtab\0", b".strtab\0", b".dynsym\0", b".dynstr\0"];

/// Sections that name another file.
const LINKS: [&[u8]; 3] = [b".gnu_debuglink\0", b".gnu_debugaltlink\0", b".debug_sup\0"];

/// What may be read of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readable {
    /// Its symbols.
    pub symbols: bool,
    /// Its debugging information.
    pub lines: bool,
}

/// Looks a file over. Debugging information that is in another file, which this one names, is not
/// followed: the name may be that of anything. Those of a build id are looked for by ourselves.
#[must_use]
pub fn readable(path: &Path, with_lines: bool) -> Readable {
    // Opened anew: whoever makes unwind tables of the file has its place in it.
    let found = File::open(path).ok().and_then(|file| {
        let file = ReadCache::new(file);
        Sections::read(&file).map(|sections| sections.readable(with_lines))
    });
    found.unwrap_or_default()
}

struct Sections<'a, R> {
    file: R,
    sections: &'a [SectionHeader64<LittleEndian>],
    /// Place of the names in the file.
    names: u64,
}

impl<'a, R: ReadRef<'a>> Sections<'a, R> {
    fn read(file: R) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
        if !header.is_little_endian() || header.shnum(LE, file).ok()? > MAX_SECTIONS {
            return None;
        }
        let sections = header.section_headers(LE, file).ok()?;
        let names = sections.get(header.shstrndx(LE, file).ok()? as usize);
        Some(Self {
            file,
            sections,
            names: names.map_or(u64::MAX, |names| names.sh_offset(LE)),
        })
    }

    fn readable(&self, with_lines: bool) -> Readable {
        let (mut symbols, mut lines) = (Budget::of(MAX_SYMBOL_BYTES), Budget::of(MAX_DEBUG_BYTES));
        for section in self.sections {
            let is_packed = matches!(section.compression(LE, self.file), Ok(Some(_)) | Err(_));
            let has_symbols = SYMBOLS.iter().any(|name| self.is_named(section, name))
                || matches!(section.sh_type(LE), SHT_SYMTAB | SHT_DYNSYM | SHT_STRTAB);
            if has_symbols {
                symbols.take(if is_packed {
                    self.unpacked(section)
                } else {
                    Some(section.sh_size(LE))
                });
            } else if self.is_named(section, b".gnu_debugdata\0") {
                symbols.take(self.unpacked_xz(section));
            } else if LINKS.iter().any(|name| self.is_named(section, name)) {
                lines.take(None);
            } else if with_lines && is_packed && self.is_named(section, b".debug_") {
                lines.take(self.unpacked(section));
            }
        }
        Readable {
            symbols: symbols.is_kept(),
            lines: with_lines && symbols.is_kept() && lines.is_kept(),
        }
    }

    /// Whether a section's name begins so. No more of it is read: names may have no end.
    fn is_named(&self, section: &SectionHeader64<LittleEndian>, start: &[u8]) -> bool {
        let at = self.names.checked_add(section.sh_name(LE).into());
        let there = at.and_then(|at| self.file.read_bytes_at(at, start.len() as u64).ok());
        there == Some(start)
    }

    /// Bytes of a packed section when unpacked; `None` when they cannot be told or are absurd.
    fn unpacked(&self, section: &SectionHeader64<LittleEndian>) -> Option<u64> {
        let (header, offset, packed) = section.compression(LE, self.file).ok()??;
        let claimed = header.ch_size.get(LE);
        if claimed > MAX_DEBUG_BYTES || claimed / MAX_RATIO > packed + (1 << 14) {
            return None;
        }
        let input = self.file.read_bytes_at(offset, packed).ok()?;
        count(unpacker(header.ch_type.get(LE), input)?, claimed)
    }

    /// The same of `.gnu_debugdata`, which does not say how long it is.
    fn unpacked_xz(&self, section: &SectionHeader64<LittleEndian>) -> Option<u64> {
        let input = section.data(LE, self.file).ok()?;
        let most = (input.len() as u64)
            .saturating_mul(MAX_RATIO)
            .min(MAX_SYMBOL_BYTES);
        let unpacker = xz2::stream::Stream::new_stream_decoder(MAX_UNPACKER_BYTES, 0).ok()?;
        count(xz2::bufread::XzDecoder::new_stream(input, unpacker), most)
    }
}

/// How many bytes there are, unless they are more than `most`.
fn count(bytes: impl Read, most: u64) -> Option<u64> {
    let count = io::copy(&mut bytes.take(most + 1), &mut io::sink()).ok()?;
    (count <= most).then_some(count)
}

/// Bytes that are left.
struct Budget(Option<u64>);

impl Budget {
    const fn of(bytes: u64) -> Self {
        Self(Some(bytes))
    }

    /// Takes some, `None` for too many.
    fn take(&mut self, bytes: Option<u64>) {
        self.0 = self
            .0
            .zip(bytes)
            .and_then(|(left, bytes)| left.checked_sub(bytes));
    }

    const fn is_kept(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;

    /// A file with one section.
    fn file(name: &str, kind: u32, flags: u64, content: &[u8], claimed: Option<u64>) -> Readable {
        let mut names = vec![0];
        names.extend(name.as_bytes());
        names.push(0);
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        for (at, value) in [
            (16, 3_u16),
            (18, 62),
            (20, 1),
            (52, 64),
            (58, 64),
            (60, 3),
            (62, 2),
        ] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let content_at = bytes.len() as u64;
        bytes.extend(content);
        let names_at = bytes.len() as u64;
        bytes.extend(&names);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let headers_at = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&headers_at.to_le_bytes());
        let sections = [
            (0, 0, 0, 0, 0),
            (
                1,
                kind,
                flags,
                content_at,
                claimed.unwrap_or(content.len() as u64),
            ),
            (0, SHT_STRTAB, 0, names_at, names.len() as u64),
        ];
        for (name, kind, flags, offset, len) in sections {
            bytes.extend([name, kind].map(u32::to_le_bytes).concat());
            bytes.extend(
                [flags, 0, offset, len, 0, 8, 24]
                    .map(u64::to_le_bytes)
                    .concat(),
            );
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, bytes).unwrap();
        readable(&path, true)
    }

    fn packed(format: u32, claimed: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = [format, 0].map(u32::to_le_bytes).concat();
        bytes.extend([claimed, 8].map(u64::to_le_bytes).concat());
        bytes.extend(content);
        bytes
    }

    fn zlib(content: &[u8]) -> Vec<u8> {
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(content).unwrap();
        packer.finish().unwrap()
    }

    const ALL: Readable = Readable {
        symbols: true,
        lines: true,
    };
    const NO_LINES: Readable = Readable {
        symbols: true,
        lines: false,
    };
    const NOTHING: Readable = Readable {
        symbols: false,
        lines: false,
    };
    /// `SHT_PROGBITS`, `SHF_COMPRESSED`.
    const BITS: u32 = 1;
    const COMPRESSED: u64 = 1 << 11;

    #[test]
    fn what_unpacks_to_what_it_claims_is_read() {
        let text: Vec<u8> = (0..100_000_u32)
            .flat_map(|at| (at % 1000).to_le_bytes())
            .collect();
        let claimed = text.len() as u64;
        let zstd = zstd::encode_all(&text[..], 1).unwrap();
        for (format, content) in [(1, zlib(&text)), (2, zstd)] {
            let debug = |claimed| {
                let content = packed(format, claimed, &content);
                file(".debug_info", BITS, COMPRESSED, &content, None)
            };
            assert_eq!(debug(claimed), ALL);
            assert_eq!(debug(claimed - 1), NO_LINES);
            assert_eq!(debug(u64::MAX), NO_LINES);
            let symbols = packed(format, claimed - 1, &content);
            assert_eq!(
                file(".symtab", SHT_SYMTAB, COMPRESSED, &symbols, None),
                NOTHING
            );
        }
        assert_eq!(
            file(".debug_info", BITS, COMPRESSED, &packed(7, 9, &text), None),
            NO_LINES
        );
        assert_eq!(
            file(".debug_info", BITS, COMPRESSED, &[1; 9], None),
            NO_LINES
        );
        // What is not packed is not copied.
        assert_eq!(file(".debug_info", BITS, 0, &text, Some(1 << 40)), ALL);
    }

    #[test]
    fn nothing_is_believed_to_get_a_hundred_times_smaller() {
        let zeros = vec![0; 16 << 20];
        for content in [zlib(&zeros), zstd::encode_all(&zeros[..], 1).unwrap()] {
            let content = packed(1, zeros.len() as u64, &content);
            assert_eq!(
                file(".debug_line", BITS, COMPRESSED, &content, None),
                NO_LINES
            );
        }
        let mut packer = xz2::write::XzEncoder::new(Vec::new(), 1);
        packer.write_all(&zeros).unwrap();
        let content = packer.finish().unwrap();
        assert_eq!(file(".gnu_debugdata", BITS, 0, &content, None), NOTHING);
    }

    #[test]
    fn links_to_other_files_are_not_followed() {
        for name in [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"] {
            assert_eq!(file(name, BITS, 0, b"/dev/zero", None), NO_LINES);
        }
    }

    #[test]
    fn symbols_are_bounded() {
        for (claimed, expected) in [(1 << 20, ALL), (257 << 20, NOTHING), (u64::MAX, NOTHING)] {
            assert_eq!(
                file(".symtab", SHT_SYMTAB, 0, &[0; 24], Some(claimed)),
                expected
            );
        }
        assert_eq!(readable(Path::new("/dev/null"), true), NOTHING);
    }
}
