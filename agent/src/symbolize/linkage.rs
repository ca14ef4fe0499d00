//! Names of the stubs in procedure linkage tables, through which code calls functions of other
//! files. No symbol is theirs: the nearest one is that of some function before the table.
//!
//! The n-th stub of a table is that of the n-th relocation in `.rela.plt` (System V ABI, processor
//! supplements for x86-64 and AArch64), and named `FUNCTION@plt` as by debuggers.

use std::{fs::File, path::Path};

use object::{
    LittleEndian, ReadCache, ReadRef,
    elf::{FileHeader64, Rela64, SectionHeader64, Sym64},
    read::elf::{FileHeader, SectionHeader, Sym},
};

const LE: LittleEndian = LittleEndian;
/// A file with more sections is not one of a linker's.
const MAX_SECTIONS: u64 = 1 << 14;
/// Longer names are no names.
const MAX_NAME_BYTES: u64 = 4096;
/// Bytes of a stub.
const STUB_BYTES: u64 = 16;
/// Bytes before the first stub of `.plt`, which is shared by all.
const HEAD_BYTES: u64 = if cfg!(target_arch = "aarch64") {
    32
} else {
    16
};

/// A place in a linkage table; the name of the function that it leads to, where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub(pub Option<String>);

/// The stubs at these ELF addresses of a file, `None` for addresses of other code.
#[must_use]
pub fn find(path: &Path, addrs: &[u64]) -> Vec<Option<Stub>> {
    // Opened anew: whoever makes unwind tables of the file has its place in it.
    let found = File::open(path).ok().and_then(|file| {
        let file = ReadCache::new(file);
        let tables = Tables::read(&file)?;
        Some(addrs.iter().map(|&addr| tables.stub(addr)).collect())
    });
    found.unwrap_or_else(|| addrs.iter().map(|_| None).collect())
}

struct Tables<'a, R> {
    file: R,
    sections: &'a [SectionHeader64<LittleEndian>],
    /// Linkage tables, and the bytes before the first stub of each.
    tables: Vec<(&'a SectionHeader64<LittleEndian>, Option<u64>)>,
    relocations: Option<&'a SectionHeader64<LittleEndian>>,
}

impl<'a, R: ReadRef<'a>> Tables<'a, R> {
    fn read(file: R) -> Option<Self> {
        let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
        if !header.is_little_endian() || header.shnum(LE, file).ok()? as u64 > MAX_SECTIONS {
            return None;
        }
        let sections = header.section_headers(LE, file).ok()?;
        let names = sections.get(header.shstrndx(LE, file).ok()? as usize)?;
        let mut found = Self {
            file,
            sections,
            tables: Vec::new(),
            relocations: None,
        };
        for section in sections {
            let is = |name: &[u8]| found.has_text(names, section.sh_name(LE), name);
            if is(b".plt") {
                found.tables.push((section, Some(HEAD_BYTES)));
            } else if is(b".plt.sec") {
                found.tables.push((section, Some(0)));
            } else if is(b".plt.got") {
                // Its stubs are in no order that the file tells.
                found.tables.push((section, None));
            } else if is(b".rela.plt") {
                found.relocations = Some(section);
            }
        }
        Some(found)
    }

    /// Whether a text is this one. No more of it is read: texts may have no end.
    fn has_text(&self, section: &SectionHeader64<LittleEndian>, at: u32, wanted: &[u8]) -> bool {
        let offset = section.sh_offset(LE).checked_add(at.into());
        let there = offset.and_then(|offset| {
            let len = wanted.len() as u64 + 1;
            self.file.read_bytes_at(offset, len).ok()
        });
        there.is_some_and(|there| there.strip_suffix(b"\0") == Some(wanted))
    }

    fn stub(&self, addr: u64) -> Option<Stub> {
        let (into, head) = self.tables.iter().find_map(|&(table, head)| {
            let into = addr.checked_sub(table.sh_addr(LE))?;
            (into < table.sh_size(LE)).then_some((into, head))
        })?;
        let into = head.and_then(|head| into.checked_sub(head));
        Some(Stub(into.and_then(|into| self.name(into / STUB_BYTES))))
    }

    /// The name of the function of a relocation.
    fn name(&self, index: u64) -> Option<String> {
        let relocations = self.relocations?;
        let relocation: &Rela64<LittleEndian> = self.item(relocations, index)?;
        let symbols = self.sections.get(relocations.sh_link(LE) as usize)?;
        let symbol: &Sym64<LittleEndian> =
            self.item(symbols, relocation.r_sym(LE, false).into())?;
        let names = self.sections.get(symbols.sh_link(LE) as usize)?;
        let name = self.text(names, symbol.st_name(LE))?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// An item of a section that is a list.
    fn item<T: object::pod::Pod>(
        &self,
        section: &SectionHeader64<LittleEndian>,
        index: u64,
    ) -> Option<&'a T> {
        let into = index.checked_mul(size_of::<T>() as u64)?;
        if into >= section.sh_size(LE) {
            return None;
        }
        let offset = section.sh_offset(LE).checked_add(into)?;
        self.file.read_at(offset).ok()
    }

    /// A text of a section that holds texts, each of which ends with a zero.
    fn text(&self, section: &SectionHeader64<LittleEndian>, at: u32) -> Option<&'a [u8]> {
        let start = section.sh_offset(LE).checked_add(at.into())?;
        let end = section.sh_offset(LE).checked_add(section.sh_size(LE))?;
        let end = end.min(start.checked_add(MAX_NAME_BYTES)?);
        self.file.read_bytes_at_until(start..end, 0).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use object::pod::bytes_of;
    use tempfile::NamedTempFile;

    use super::*;

    const HEADER_BYTES: usize = size_of::<FileHeader64<LittleEndian>>();

    /// A file with sections of these names, addresses, contents and linked sections; the first is
    /// that of no section, the last holds their names.
    fn file(sections: &[(&str, u64, &[u8], u32)]) -> NamedTempFile {
        let mut names = Vec::new();
        let mut contents = Vec::new();
        let mut headers: Vec<u8> = Vec::new();
        for (at, &(name, addr, content, link)) in sections.iter().enumerate() {
            let name_at = names.len() as u32;
            names.extend(name.as_bytes());
            names.push(0);
            let content = if at + 1 == sections.len() {
                &names
            } else {
                content
            };
            let offset = (HEADER_BYTES + contents.len()) as u64;
            contents.extend(content);
            for word in [name_at, 1] {
                headers.extend(word.to_le_bytes());
            }
            for word in [0, addr, offset, content.len() as u64] {
                headers.extend(u64::to_le_bytes(word));
            }
            for word in [link, 0] {
                headers.extend(word.to_le_bytes());
            }
            headers.extend([0; 16]);
        }
        let mut header = [0_u8; HEADER_BYTES];
        header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        let headers_at = (HEADER_BYTES + contents.len()) as u64;
        header[40..48].copy_from_slice(&headers_at.to_le_bytes());
        for (at, value) in [
            (52, 64),
            (58, 64),
            (60, sections.len()),
            (62, sections.len() - 1),
        ] {
            header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        }
        let mut file = NamedTempFile::new().unwrap();
        for part in [&header[..], &contents, &headers] {
            file.write_all(part).unwrap();
        }
        file
    }

    /// A program with stubs for two functions at 0x1000 and 0x2000.
    fn program(names: &[u8]) -> NamedTempFile {
        let symbol = |name: u32| Sym64 {
            st_name: object::U32::new(LE, name),
            st_info: 0,
            st_other: 0,
            st_shndx: object::U16::new(LE, 0),
            st_value: object::U64::new(LE, 0),
            st_size: object::U64::new(LE, 0),
        };
        let relocation = |symbol: u64| Rela64 {
            r_offset: object::U64::new(LE, 0),
            r_info: object::U64::new(LE, symbol << 32 | 7),
            r_addend: object::I64::new(LE, 0),
        };
        let symbols = [symbol(0), symbol(1), symbol(6)];
        let symbols = symbols.map(|it| bytes_of(&it).to_vec()).concat();
        let relocations = [relocation(2), relocation(1), relocation(9)];
        let relocations = relocations.map(|it| bytes_of(&it).to_vec()).concat();
        let head = vec![0; HEAD_BYTES as usize + 64];
        file(&[
            ("", 0, &[], 0),
            (".plt", 0x1000, &head, 0),
            (".plt.sec", 0x2000, &[0; 32], 0),
            (".plt.got", 0x3000, &[0; 16], 0),
            (".rela.plt", 0, &relocations, 5),
            (".dynsym", 0, &symbols, 6),
            (".dynstr", 0, names, 0),
            (".shstrtab", 0, &[], 0),
        ])
    }

    const NAMES: &[u8] = b"\0puts\0getpid\0";

    #[test]
    fn stubs_have_the_names_of_their_relocations() {
        let first = 0x1000 + HEAD_BYTES;
        let addrs = [first, first + 31, 0x2000, 0x201f];
        let names = ["getpid", "puts", "getpid", "puts"];
        let names = names.map(|name| Some(Stub(Some(name.into()))));
        assert_eq!(find(program(NAMES).path(), &addrs), names);
    }

    #[test]
    fn what_has_no_name_is_still_no_other_function() {
        let first = 0x1000 + HEAD_BYTES;
        // The shared head, a relocation without a symbol, none at all, and a table without order.
        let addrs = [0x1000, first + 32, first + 48, 0x3008];
        assert_eq!(
            find(program(NAMES).path(), &addrs),
            vec![Some(Stub(None)); 4]
        );
        let outside = [0xfff, first + 64, 0x2020, u64::MAX];
        assert_eq!(
            find(program(NAMES).path(), &outside),
            [None, None, None, None]
        );
    }

    #[test]
    fn changed_or_cut_files_never_panic() {
        let original = std::fs::read(program(NAMES).path()).unwrap();
        let mut seed = 1_u64;
        for round in 0..2000 {
            let mut bytes = original.clone();
            for _ in 0..1 + round % 8 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 20) as u8;
            }
            bytes.truncate(bytes.len() - round % 100 * bytes.len() / 100);
            let mut file = NamedTempFile::new().unwrap();
            file.write_all(&bytes).unwrap();
            let _ = find(file.path(), &[0x1010, 0x2000, 0x3000]);
        }
    }
}
