//! ELF files that no linker makes, each with a page of good code: what `workloads/c/mapper.c` runs.

use std::fs;
use std::path::Path;

use anyhow::Result;

/// Where the code is in each file, and at which address.
pub const CODE: u64 = 0x1000;
/// Where the rest begins.
pub const REST: u64 = 0x2000;

/// `counting` of `mapper.c`.
#[cfg(target_arch = "x86_64")]
const COUNTING: &[u8] = &[
    0x48, 0x85, 0xff, 0x74, 0x05, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0xc3,
];
#[cfg(target_arch = "aarch64")]
const COUNTING: &[u8] = &[
    0x60, 0x00, 0x00, 0xb4, 0x00, 0x04, 0x00, 0xf1, 0xe1, 0xff, 0xff, 0x54, 0xc0, 0x03, 0x5f, 0xd6,
];

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

/// Return address register, and where the CFA is at a function's start.
#[cfg(target_arch = "x86_64")]
const FRAME_START: (u8, &[u8]) = (16, &[0x0c, 7, 8, 0x90, 1]);
#[cfg(target_arch = "aarch64")]
const FRAME_START: (u8, &[u8]) = (30, &[0x0c, 31, 0]);

/// A program header.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// `PT_LOAD` and so on.
    pub kind: u32,
    /// Readable 4, writable 2, executable 1.
    pub flags: u32,
    /// Place in the file.
    pub offset: u64,
    /// Address.
    pub addr: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// A section header.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Name.
    pub name: &'static str,
    /// `SHT_PROGBITS` and so on.
    pub kind: u32,
    /// `SHF_COMPRESSED` and so on.
    pub flags: u64,
    /// Address.
    pub addr: u64,
    /// Place in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Another section that belongs to it.
    pub link: u32,
    /// Bytes of an item.
    pub item_bytes: u64,
}

/// `PT_LOAD`, `PT_NOTE`, `PT_GNU_EH_FRAME`.
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const EH_FRAME_HEADER: u32 = 0x6474_e550;
/// `SHT_PROGBITS`, `SHT_SYMTAB`, `SHT_STRTAB`.
const BITS: u32 = 1;
const SYMBOLS: u32 = 2;
const STRINGS: u32 = 3;
/// `SHF_COMPRESSED`.
pub const COMPRESSED: u64 = 1 << 11;

/// A file as it is put together.
#[derive(Clone, Debug)]
pub struct Elf {
    /// Program headers.
    pub segments: Vec<Segment>,
    /// Section headers; the first is empty and the last holds the names.
    pub sections: Vec<Section>,
    /// What lies behind the code.
    pub rest: Vec<u8>,
    /// Sets files apart.
    pub build_id: u64,
    /// What the header says the number of sections is.
    pub section_count: Option<u16>,
}

impl Elf {
    /// A good file with one function, `hostile_code`, and this `.eh_frame`.
    #[must_use]
    pub fn new(build_id: u64, eh_frame: &[u8]) -> Self {
        let mut elf = Self {
            segments: Vec::new(),
            sections: vec![Section {
                name: "",
                kind: 0,
                flags: 0,
                addr: 0,
                offset: 0,
                bytes: 0,
                link: 0,
                item_bytes: 0,
            }],
            rest: Vec::new(),
            build_id,
            section_count: None,
        };
        elf.sections.push(Section {
            name: ".text",
            kind: BITS,
            flags: 6,
            addr: CODE,
            offset: CODE,
            bytes: COUNTING.len() as u64,
            ..elf.sections[0]
        });
        let eh_frame = elf.add(".eh_frame", BITS, eh_frame);
        let mut symbols = vec![0_u8; 24];
        symbols.extend(1_u32.to_le_bytes());
        symbols.extend([0x12, 0, 1, 0]);
        symbols.extend(CODE.to_le_bytes());
        symbols.extend((COUNTING.len() as u64).to_le_bytes());
        let symbols = elf.add(".symtab", SYMBOLS, &symbols);
        let strings = elf.add(".strtab", STRINGS, b"\0hostile_code\0");
        elf.sections[symbols].link = strings as u32;
        elf.sections[symbols].item_bytes = 24;
        let mut header = vec![1, 0x1b, 0xff, 0xff];
        let header_at = REST + elf.rest.len() as u64;
        let distance = elf.sections[eh_frame].offset.wrapping_sub(header_at + 4);
        header.extend((distance as i32).to_le_bytes());
        let header = elf.add(".eh_frame_hdr", BITS, &header);
        let header = elf.sections[header];
        let load = Segment {
            kind: LOAD,
            flags: 5,
            offset: 0,
            addr: 0,
            bytes: REST + elf.rest.len() as u64,
        };
        elf.segments.push(load);
        elf.segments.push(Segment {
            kind: NOTE,
            flags: 4,
            offset: 0x400,
            addr: 0x400,
            bytes: 24,
        });
        elf.segments.push(Segment {
            kind: EH_FRAME_HEADER,
            flags: 4,
            offset: header.offset,
            addr: header.offset,
            bytes: header.bytes,
        });
        elf
    }

    /// Adds a section behind the others, and returns its position.
    pub fn add(&mut self, name: &'static str, kind: u32, content: &[u8]) -> usize {
        let offset = REST + self.rest.len() as u64;
        self.rest.extend(content);
        self.rest.resize(self.rest.len().next_multiple_of(8), 0);
        self.sections.push(Section {
            name,
            kind,
            addr: offset,
            offset,
            bytes: content.len() as u64,
            ..self.sections[0]
        });
        self.sections.len() - 1
    }

    /// The section of this name.
    pub fn section(&mut self, name: &str) -> &mut Section {
        let found = self.sections.iter_mut().find(|it| it.name == name);
        found.expect("the file has such a section")
    }

    /// The bytes of the file, with its section headers last.
    #[must_use]
    pub fn bytes(mut self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut places = Vec::new();
        for name in self.sections.iter().map(|it| it.name).chain([".shstrtab"]) {
            places.push(names.len() as u32);
            names.extend(name.as_bytes());
            names.push(0);
        }
        self.add(".shstrtab", STRINGS, &names);
        let headers_at = REST + self.rest.len() as u64;
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        let count = self.section_count.unwrap_or(self.sections.len() as u16);
        for (at, value) in [
            (16, 3),
            (18, MACHINE),
            (20, 1),
            (52, 64),
            (54, 56),
            (56, self.segments.len() as u16),
            (58, 64),
            (60, count),
            (62, self.sections.len() as u16 - 1),
        ] {
            bytes[at..at + 2].copy_from_slice(&u16::to_le_bytes(value));
        }
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&headers_at.to_le_bytes());
        for it in &self.segments {
            bytes.extend([it.kind, it.flags].map(u32::to_le_bytes).concat());
            let words = [it.offset, it.addr, it.addr, it.bytes, it.bytes, 4];
            bytes.extend(words.map(u64::to_le_bytes).concat());
        }
        bytes.resize(0x400, 0);
        bytes.extend([4_u32, 8, 3].map(u32::to_le_bytes).concat());
        bytes.extend(b"GNU\0");
        bytes.extend(self.build_id.to_le_bytes());
        bytes.resize(CODE as usize, 0);
        bytes.extend(COUNTING);
        bytes.resize(REST as usize, 0);
        bytes.extend(&self.rest);
        for (it, name) in self.sections.iter().zip(places) {
            bytes.extend([name, it.kind].map(u32::to_le_bytes).concat());
            let words = [it.flags, it.addr, it.offset, it.bytes];
            bytes.extend(words.map(u64::to_le_bytes).concat());
            bytes.extend([it.link, 0].map(u32::to_le_bytes).concat());
            bytes.extend([8, it.item_bytes].map(u64::to_le_bytes).concat());
        }
        bytes
    }

    /// Writes it.
    ///
    /// # Errors
    /// When that fails.
    pub fn write(self, path: &Path) -> Result<()> {
        Ok(fs::write(path, self.bytes())?)
    }
}

/// `.eh_frame` of a good file, at the address where [`Elf::new`] puts it: one function.
#[must_use]
pub fn eh_frame() -> Vec<u8> {
    let mut bytes = cie();
    let cie_bytes = bytes.len();
    bytes.extend(fde(REST + cie_bytes as u64, cie_bytes as u32 + 4, &[]));
    bytes.extend([0; 4]);
    bytes
}

/// An entry that functions share: relative addresses of four bytes.
#[must_use]
pub fn cie() -> Vec<u8> {
    let (register, start) = FRAME_START;
    let mut body = vec![0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, register, 1, 0x1b];
    body.extend(start);
    entry(&body)
}

/// A function's entry at an address, which goes back `cie_distance` from its second word to the
/// entry that it shares; it describes the code, by this program.
#[must_use]
pub fn fde(addr: u64, cie_distance: u32, program: &[u8]) -> Vec<u8> {
    let mut body = cie_distance.to_le_bytes().to_vec();
    let start = CODE.wrapping_sub(addr + 8) as i32;
    body.extend(start.to_le_bytes());
    body.extend((COUNTING.len() as u32).to_le_bytes());
    body.push(0);
    body.extend(program);
    entry(&body)
}

/// An entry with its length in front.
#[must_use]
pub fn entry(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize((body.len() + 4).next_multiple_of(8) - 4, 0);
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::output;

    /// Another reader understands the file that all others are made from.
    #[test]
    fn the_good_file_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("good");
        Elf::new(7, &eh_frame()).write(&path).unwrap();
        let readelf = |options: &str| {
            let mut command = Command::new("readelf");
            let text = output(command.args(options.split(' ')).arg(&path)).unwrap();
            assert!(!text.contains("arning"), "{text}");
            text
        };
        assert!(readelf("-W --syms").contains("hostile_code"));
        assert!(readelf("-W -n").contains("0700000000000000"));
        let frames = readelf("-W --debug-dump=frames");
        let range = format!("pc={CODE:016x}..{:016x}", CODE + COUNTING.len() as u64);
        assert!(frames.contains(&range), "{frames}");
    }
}
