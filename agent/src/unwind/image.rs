//! The parts of an ELF file that unwinding reads.
//!
//! Target processes control these files: each size is compared with a bound before anything is
//! read or allocated, and with the file's own length by `object`.

use std::{borrow::Cow, io::Read, ops::Range};

use gimli::{BaseAddresses, EhFrameHdr, LittleEndian as GimliLittle, Pointer};
use object::{
    LittleEndian,
    elf::{
        ET_DYN, ET_EXEC, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_GNU_EH_FRAME, PT_LOAD, PT_NOTE,
        ProgramHeader64, SHF_EXECINSTR, SHN_UNDEF, SHT_DYNSYM, SHT_NOBITS, SHT_SYMTAB, STT_FUNC,
        STT_OBJECT, SectionHeader64, Sym64,
    },
    read::{
        ReadRef,
        elf::{CompressionHeader, FileHeader, ProgramHeader, SectionHeader, Sym},
    },
};

use super::{Refused, arch::Arch};
use crate::process::packed::unpacker;

/// Section headers and program headers; a file with more is not one of a linker's.
const MAX_HEADERS: u64 = 1 << 14;
/// Bytes of one section of unwind information, decompressed: enough for a gigabyte of code.
const MAX_SECTION_BYTES: u64 = 64 << 20;
/// Bytes of a table of symbols: a million of them.
const MAX_SYMBOLS_BYTES: u64 = 24 << 20;
/// Bytes of a note segment, and of a link to a debug file.
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// An ELF file of a machine that is known.
pub(super) struct Image<'a, R: ReadRef<'a>> {
    file: R,
    arch: Arch,
    header: &'a FileHeader64<LittleEndian>,
    segments: &'a [ProgramHeader64<LittleEndian>],
    sections: &'a [SectionHeader64<LittleEndian>],
    /// File offset of the names of sections.
    names: u64,
}

/// Unwind information of one section.
pub(super) struct FrameSection<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// What its relative pointers are relative to.
    pub bases: BaseAddresses,
    /// Whether the bytes behind a terminator are something else: the section's end is not known.
    pub ends_at_zero: bool,
}

/// The name and checksum of a file with what was stripped off.
pub(super) struct DebugLink<'a> {
    pub name: &'a [u8],
    pub crc: u32,
}

impl<'a, R: ReadRef<'a>> Image<'a, R> {
    /// Reads the headers.
    pub fn parse(file: R) -> Result<Self, Refused> {
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(|_| Refused::NoElf)?;
        let endian = header.endian().map_err(|_| Refused::Machine)?;
        let arch = Arch::of_machine(header.e_machine(endian)).ok_or(Refused::Machine)?;
        if ![ET_EXEC, ET_DYN].contains(&header.e_type(endian)) {
            return Err(Refused::Machine);
        }
        let is_sane = |count: Result<u64, _>| count.is_ok_and(|count| count <= MAX_HEADERS);
        if !is_sane(header.phnum(endian, file).map(|count| count as u64)) {
            return Err(Refused::NoElf);
        }
        let segments = header
            .program_headers(endian, file)
            .map_err(|_| Refused::NoElf)?;
        // Without section headers, or with broken ones, the segments still lead to `.eh_frame`.
        let sections = if is_sane(header.shnum(endian, file).map(|count| count as u64)) {
            header.section_headers(endian, file).unwrap_or_default()
        } else {
            &[]
        };
        let names = header.shstrndx(endian, file).ok();
        let names = names.and_then(|index| sections.get(index as usize));
        Ok(Self {
            file,
            arch,
            header,
            segments,
            sections,
            names: names.map_or(u64::MAX, |names| names.sh_offset(endian)),
        })
    }

    /// The processor that it is for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The ELF addresses of executable segments, ascending and disjoint.
    pub fn text(&self) -> Vec<Range<u64>> {
        let executable = self.segments.iter().filter(|segment| {
            segment.p_type(LittleEndian) == PT_LOAD && segment.p_flags(LittleEndian) & PF_X != 0
        });
        let len = self.file.len().unwrap_or(0);
        let mut ranges: Vec<_> = executable
            .filter_map(|segment| {
                let start = segment.p_vaddr(LittleEndian);
                // What is not in the file cannot be executed, whatever the header claims.
                let there = len.checked_sub(segment.p_offset(LittleEndian))?;
                let bytes = there.min(segment.p_filesz(LittleEndian));
                Some(start..start.checked_add(bytes)?)
            })
            .collect();
        make_disjoint(&mut ranges);
        ranges
    }

    /// What of these ranges of text is code: what lies in executable sections, or all if there are no sections.
    pub fn code(&self, text: &[Range<u64>]) -> Vec<Range<u64>> {
        let executable = self.sections.iter().filter(|section| {
            section.sh_flags(LittleEndian) & u64::from(SHF_EXECINSTR) != 0
                && section.sh_type(LittleEndian) != SHT_NOBITS
        });
        let mut code: Vec<_> = executable
            .filter_map(|section| {
                let start = section.sh_addr(LittleEndian);
                let end = start.saturating_add(section.sh_size(LittleEndian));
                let around = text.get(text.partition_point(|text| text.end <= start))?;
                Some(around.start.max(start)..around.end.min(end))
            })
            .collect();
        make_disjoint(&mut code);
        if code.is_empty() {
            return text.to_vec();
        }
        code
    }

    /// Where the process starts.
    pub fn entry(&self) -> u64 {
        self.header.e_entry(LittleEndian)
    }

    /// `.eh_frame`, by its section or else through the header that the C library uses.
    pub fn eh_frame(&self) -> Option<FrameSection<'a>> {
        if let Some(section) = self.section(b".eh_frame") {
            let bytes = self.section_bytes(section)?;
            if !bytes.is_empty() {
                return Some(FrameSection {
                    bytes,
                    bases: self.bases().set_eh_frame(section.sh_addr(LittleEndian)),
                    ends_at_zero: false,
                });
            }
        }
        let header = self
            .segments
            .iter()
            .find(|segment| segment.p_type(LittleEndian) == PT_GNU_EH_FRAME)?;
        let header_addr = header.p_vaddr(LittleEndian);
        let bases = self.bases().set_eh_frame_hdr(header_addr);
        let header = self.bytes_at(
            header_addr,
            header.p_filesz(LittleEndian).min(MAX_NOTE_BYTES),
        )?;
        let header = EhFrameHdr::new(header, GimliLittle).parse(&bases, 8).ok()?;
        let Pointer::Direct(addr) = header.eh_frame_ptr() else {
            return None;
        };
        Some(FrameSection {
            bytes: self.bytes_at(addr, MAX_SECTION_BYTES)?.into(),
            bases: bases.set_eh_frame(addr),
            ends_at_zero: true,
        })
    }

    /// `.debug_frame`, decompressed.
    pub fn debug_frame(&self) -> Option<FrameSection<'a>> {
        let section = self.section(b".debug_frame")?;
        Some(FrameSection {
            bytes: self.section_bytes(section)?,
            bases: BaseAddresses::default(),
            ends_at_zero: false,
        })
    }

    /// The bytes that lie at an ELF address, at most `max` and up to the end of their segment.
    pub fn bytes_at(&self, addr: u64, max: u64) -> Option<&'a [u8]> {
        let (offset, len) = self.segments.iter().find_map(|segment| {
            let into = addr.checked_sub(segment.p_vaddr(LittleEndian))?;
            let left = segment.p_filesz(LittleEndian).checked_sub(into)?;
            let is_loaded = segment.p_type(LittleEndian) == PT_LOAD && left > 0;
            let offset = segment.p_offset(LittleEndian).checked_add(into)?;
            is_loaded.then_some((offset, left))
        })?;
        // A segment that claims more than there is has what there is.
        let there = self.file.len().ok()?.checked_sub(offset)?;
        let len = len.min(max).min(there);
        self.file.read_bytes_at(offset, len).ok()
    }

    /// Where functions begin, by the symbols there are, ascending.
    pub fn functions(&self) -> Vec<u64> {
        let mut functions = Vec::new();
        let mut left = MAX_SYMBOLS_BYTES;
        for section in self.sections {
            let is_table = [SHT_SYMTAB, SHT_DYNSYM].contains(&section.sh_type(LittleEndian));
            let Some(rest) = left
                .checked_sub(section.sh_size(LittleEndian))
                .filter(|_| is_table)
            else {
                continue;
            };
            left = rest;
            let symbols = section.data_as_array::<Sym64<LittleEndian>, _>(LittleEndian, self.file);
            let defined = symbols.unwrap_or_default().iter().filter(|symbol| {
                symbol.st_type() == STT_FUNC && symbol.st_shndx(LittleEndian) != SHN_UNDEF
            });
            functions.extend(defined.map(|symbol| symbol.st_value(LittleEndian)));
        }
        functions.sort_unstable();
        functions.dedup();
        functions
    }

    /// Where the dynamic symbols with these names are, as far as there are such variables.
    pub fn variables<const COUNT: usize>(&self, names: [&[u8]; COUNT]) -> [Option<u64>; COUNT] {
        let mut found = [None; COUNT];
        let is_table = |section: &&SectionHeader64<LittleEndian>| {
            section.sh_type(LittleEndian) == SHT_DYNSYM
                && section.sh_size(LittleEndian) <= MAX_SYMBOLS_BYTES
        };
        let Some(table) = self.sections.iter().find(is_table) else {
            return found;
        };
        let Some(strings) = self.sections.get(table.sh_link(LittleEndian) as usize) else {
            return found;
        };
        let symbols = table.data_as_array::<Sym64<LittleEndian>, _>(LittleEndian, self.file);
        for symbol in symbols.unwrap_or_default() {
            if symbol.st_type() != STT_OBJECT || symbol.st_shndx(LittleEndian) == SHN_UNDEF {
                continue;
            }
            let name = u64::from(symbol.st_name(LittleEndian));
            let offset = strings.sh_offset(LittleEndian).checked_add(name);
            if let Some(place) = names.iter().position(|name| self.is_name(offset, name)) {
                found[place] = Some(symbol.st_value(LittleEndian));
            }
        }
        found
    }

    /// The GNU build id, empty when there is none.
    pub fn build_id(&self) -> &'a [u8] {
        let notes = self.segments.iter().filter(|segment| {
            segment.p_type(LittleEndian) == PT_NOTE
                && segment.p_filesz(LittleEndian) <= MAX_NOTE_BYTES
        });
        for segment in notes {
            let Ok(Some(mut notes)) = segment.notes(LittleEndian, self.file) else {
                continue;
            };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == b"GNU" && note.n_type(LittleEndian) == NT_GNU_BUILD_ID {
                    return note.desc();
                }
            }
        }
        &[]
    }

    /// `.gnu_debuglink`: a name that ends with a zero, padded to four bytes, and a checksum.
    pub fn debug_link(&self) -> Option<DebugLink<'a>> {
        let section = self.section(b".gnu_debuglink")?;
        if section.sh_size(LittleEndian) > MAX_NOTE_BYTES {
            return None;
        }
        let bytes = section.data(LittleEndian, self.file).ok()?;
        let len = bytes.iter().position(|&byte| byte == 0)?;
        let crc = bytes.get((len + 4) & !3..)?.first_chunk()?;
        Some(DebugLink {
            name: &bytes[..len],
            crc: u32::from_le_bytes(*crc),
        })
    }

    /// A section by its name. Names are read only as far as they are compared: a table of names
    /// that never ends costs nothing.
    fn section(&self, name: &[u8]) -> Option<&'a SectionHeader64<LittleEndian>> {
        self.sections.iter().find(|section| {
            let offset = self.names.checked_add(section.sh_name(LittleEndian).into());
            self.is_name(offset, name)
        })
    }

    /// Whether this name, and no more, is at a file offset.
    fn is_name(&self, offset: Option<u64>, name: &[u8]) -> bool {
        let len = name.len() as u64 + 1;
        let there = offset.and_then(|offset| self.file.read_bytes_at(offset, len).ok());
        there.is_some_and(|there| there.strip_suffix(b"\0") == Some(name))
    }

    /// The content of a section, unless it or what it claims to hold is too large.
    fn section_bytes(&self, section: &SectionHeader64<LittleEndian>) -> Option<Cow<'a, [u8]>> {
        if section.sh_size(LittleEndian) > MAX_SECTION_BYTES {
            return None;
        }
        let Some((header, offset, compressed)) =
            section.compression(LittleEndian, self.file).ok()?
        else {
            return section.data(LittleEndian, self.file).ok().map(Cow::from);
        };
        let uncompressed = header.ch_size(LittleEndian);
        if uncompressed > MAX_SECTION_BYTES {
            return None;
        }
        let packed = self.file.read_bytes_at(offset, compressed).ok()?;
        let mut bytes = Vec::new();
        // What is longer than it claims is cut off: some bytes are as good as none of a broken file.
        unpacker(header.ch_type(LittleEndian), packed)?
            .take(uncompressed)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(bytes.into())
    }

    fn bases(&self) -> BaseAddresses {
        let mut bases = BaseAddresses::default();
        let addr = |name: &[u8]| Some(self.section(name)?.sh_addr(LittleEndian));
        if let Some(text) = addr(b".text") {
            bases = bases.set_text(text);
        }
        if let Some(got) = addr(b".got") {
            bases = bases.set_got(got);
        }
        bases
    }
}

/// Sorts ranges, and leaves out what is in an earlier one.
fn make_disjoint(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    let mut end = 0;
    ranges.retain_mut(|range| {
        range.start = range.start.max(end);
        end = range.end.max(end);
        range.start < range.end
    });
}
