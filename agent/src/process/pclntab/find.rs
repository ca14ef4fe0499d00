//! Where the function table lies in a file, and what its addresses are relative to.
//!
//! The linker gives the table a section of its own, whose name an external linker may change, and
//! `strip` may take all sections away: then its first bytes are searched for. What its addresses
//! are relative to stands in the header of the table until Go 1.25, and always in
//! `runtime.firstmoduledata`, which is known by its pointers into the table. In a
//! position-independent binary all of these may be zeros that the loader fills in, so its
//! relocations are read too.

use std::{borrow::Cow, cell::Cell, marker::PhantomData, ops::Range};

use object::{
    LittleEndian, ReadRef,
    elf::{
        DT_RELA, DT_RELASZ, Dyn64, FileHeader64, PF_W, PF_X, PT_DYNAMIC, PT_LOAD,
        R_AARCH64_RELATIVE, R_X86_64_RELATIVE, Rela64,
    },
    read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader},
};

use super::{Header, MAX_LOOKUP_VALUES, Pclntab, ReadAddr, Version, u64_at};

const LE: LittleEndian = LittleEndian;
/// A file with more segments is cut off here.
const MAX_SEGMENTS: usize = 64;
/// Entries of the dynamic section that are read.
const MAX_DYNAMIC: usize = 1024;
/// Places that are tried: a binary has one table and one description of it, so more are lies.
const MAX_PLACES: usize = 4;
/// `runtime.moduledata` up to the last field that is read.
const MODULE_BYTES: u64 = 0x200;
/// Offset of `text` in it: behind a pointer, six slices and three pointers.
const MODULE_TEXT: usize = 176;

/// Bytes of the file that are loaded.
#[derive(Clone, Debug)]
struct Segment {
    addrs: Range<u64>,
    offset: u64,
    flags: u32,
}

/// A file and how it is loaded.
#[derive(Clone)]
struct Image<'a, R> {
    file: R,
    segments: Vec<Segment>,
    lifetime: PhantomData<&'a [u8]>,
}

/// Finds the function table of a Go binary for x86-64 or arm64; `None` in anything else.
#[must_use]
pub fn find<'a, R: ReadRef<'a> + 'a>(file: R) -> Option<Pclntab<'a>> {
    let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
    if !header.is_little_endian() {
        return None;
    }
    let image = Image::new(file, header)?;
    let places = image.places(header);
    let relocations = image.relocations(header).unwrap_or_default();
    places
        .into_iter()
        .take(MAX_PLACES)
        .find_map(|place| image.table_at(place, relocations))
}

impl<'a, R: ReadRef<'a> + 'a> Image<'a, R> {
    fn new(file: R, header: &FileHeader64<LittleEndian>) -> Option<Self> {
        let file_bytes = file.len().ok()?;
        let mut segments = Vec::new();
        for load in header.program_headers(LE, file).ok()? {
            if load.p_type(LE) != PT_LOAD || segments.len() == MAX_SEGMENTS {
                continue;
            }
            let (start, offset) = (load.p_vaddr(LE), load.p_offset(LE));
            // No more than the file has, whatever the header claims.
            let bytes = load.p_filesz(LE).min(file_bytes.saturating_sub(offset));
            if let Some(end) = start.checked_add(bytes) {
                segments.push(Segment {
                    addrs: start..end,
                    offset,
                    flags: load.p_flags(LE),
                });
            }
        }
        Some(Self {
            file,
            segments,
            lifetime: PhantomData,
        })
    }

    fn segment(&self, addr: u64) -> Option<&Segment> {
        self.segments.iter().find(|it| it.addrs.contains(&addr))
    }

    fn bytes(&self, addr: u64, bytes: u64) -> Option<&'a [u8]> {
        let segment = self.segment(addr)?;
        let offset = segment.offset + (addr - segment.addrs.start);
        let bytes = bytes.min(segment.addrs.end - addr);
        self.file.read_bytes_at(offset, bytes).ok()
    }

    fn data(&self, segment: &Segment) -> &'a [u8] {
        let Range { start, end } = segment.addrs;
        self.bytes(start, end - start).unwrap_or_default()
    }

    /// Addresses where the table may be: in its section, or, when no section has its name, wherever
    /// its first bytes occur in the data of a file that says it is Go's, or says nothing.
    fn places(&self, header: &FileHeader64<LittleEndian>) -> Vec<Range<u64>> {
        let mut named = Vec::new();
        let mut is_go = true;
        if let Ok(sections) = header.sections(LE, self.file)
            && !sections.is_empty()
        {
            is_go = false;
            for section in sections.iter() {
                let name = sections.section_name(LE, section).unwrap_or_default();
                is_go |= name.starts_with(b".go.") || name == b".note.go.buildid";
                if name.ends_with(b".gopclntab") {
                    let start = section.sh_addr(LE);
                    named.push(start..start.saturating_add(section.sh_size(LE)));
                }
            }
        }
        if named.is_empty() && is_go {
            return self.search();
        }
        named
    }

    fn search(&self) -> Vec<Range<u64>> {
        let data = self.segments.iter().filter(|it| it.flags & PF_X == 0);
        let found = data.flat_map(|segment| {
            let bytes = self.data(segment);
            // The linker aligns the table to a pointer at least.
            let skip = (segment.addrs.start.next_multiple_of(8) - segment.addrs.start) as usize;
            (skip..bytes.len())
                .step_by(8)
                .filter(|at| Header::parse(&bytes[*at..]).is_some())
                .map(|at| segment.addrs.start + at as u64..segment.addrs.end)
        });
        found.take(MAX_PLACES).collect()
    }

    /// Relocations that the loader applies.
    fn relocations(
        &self,
        header: &FileHeader64<LittleEndian>,
    ) -> Option<&'a [Rela64<LittleEndian>]> {
        let headers = header.program_headers(LE, self.file).ok()?;
        let dynamic = headers.iter().find(|it| it.p_type(LE) == PT_DYNAMIC)?;
        let count = dynamic.p_filesz(LE) as usize / size_of::<Dyn64<LittleEndian>>();
        let entries: &[Dyn64<LittleEndian>] = self
            .file
            .read_slice_at(dynamic.p_offset(LE), count.min(MAX_DYNAMIC))
            .ok()?;
        let value = |tag| {
            let entry = entries.iter().find(|it| it.d_tag(LE) == tag)?;
            Some(entry.d_val(LE))
        };
        let bytes = self.bytes(value(DT_RELA)?, value(DT_RELASZ)?)?;
        let count = bytes.len() / size_of::<Rela64<LittleEndian>>();
        object::pod::slice_from_bytes(bytes, count)
            .ok()
            .map(|(relocations, _)| relocations)
    }

    fn table_at(
        &self,
        place: Range<u64>,
        relocations: &'a [Rela64<LittleEndian>],
    ) -> Option<Pclntab<'a>> {
        let bytes = self.bytes(place.start, place.end - place.start)?;
        let mut bytes = Cow::Borrowed(bytes);
        relocate(&mut bytes, place.start, relocations);
        let header = Header::parse(&bytes)?;
        let module = self.module(place.start, &header, relocations);
        let code = self.segments.iter().filter(|it| it.flags & PF_X != 0);
        let table = Pclntab {
            bytes,
            text_start: text_start(&header, module.as_deref()),
            inline_trees: inline_trees(&header, module.as_deref()),
            code: code.map(|segment| segment.addrs.clone()).collect(),
            header,
            file: Box::new(self.clone()),
            values_left: Cell::new(MAX_LOOKUP_VALUES),
        };
        let is_sound = table.functions().next().is_some();
        is_sound.then_some(table)
    }

    /// The bytes of `runtime.firstmoduledata`, which begins with a pointer to the table and one to
    /// its names.
    fn module(
        &self,
        table: u64,
        header: &Header,
        relocations: &[Rela64<LittleEndian>],
    ) -> Option<Vec<u8>> {
        let names = table.checked_add(header.names as u64)?;
        let is_module =
            |bytes: &[u8]| u64_at(bytes, 0) == Some(table) && u64_at(bytes, 8) == Some(names);
        let writable = self.segments.iter().filter(|it| it.flags & PF_W != 0);
        let plain = writable.flat_map(|segment| {
            let bytes = self.data(segment);
            (0..bytes.len())
                .step_by(8)
                .filter(|at| is_module(&bytes[*at..]))
                .map(|at| segment.addrs.start + at as u64)
        });
        let relocated = relocations
            .iter()
            .filter(|it| is_relative(it) && it.r_addend(LE) as u64 == table)
            .map(|it| it.r_offset(LE));
        plain
            .take(MAX_PLACES)
            .chain(relocated.take(MAX_PLACES))
            .find_map(|addr| {
                let mut bytes = Cow::Borrowed(self.bytes(addr, MODULE_BYTES)?);
                relocate(&mut bytes, addr, relocations);
                is_module(&bytes).then(|| bytes.into_owned())
            })
    }
}

impl<'a, R: ReadRef<'a> + 'a> ReadAddr for Image<'a, R> {
    fn read(&self, addr: u64, bytes: u64) -> Option<&[u8]> {
        self.bytes(addr, bytes)
    }
}

/// What addresses in the table are relative to.
fn text_start(header: &Header, module: Option<&[u8]>) -> u64 {
    if header.version < Version::Go118 {
        return 0;
    }
    module
        .and_then(|module| u64_at(module, MODULE_TEXT))
        .unwrap_or(header.text_start)
}

/// What addresses of inline trees are relative to: `gofunc`, which is behind `text` and fifteen
/// pointers more in Go 1.18, and seventeen from 1.20 on.
fn inline_trees(header: &Header, module: Option<&[u8]>) -> Option<u64> {
    match header.version {
        Version::Go12 | Version::Go116 => Some(0),
        Version::Go118 => u64_at(module?, MODULE_TEXT + 8 * 16),
        Version::Go120 => u64_at(module?, MODULE_TEXT + 8 * 18),
    }
}

/// Writes what the loader would into bytes that begin at an address.
fn relocate(bytes: &mut Cow<'_, [u8]>, addr: u64, relocations: &[Rela64<LittleEndian>]) {
    for relocation in relocations.iter().filter(|it| is_relative(it)) {
        let Some(at) = relocation.r_offset(LE).checked_sub(addr) else {
            continue;
        };
        let (at, value) = (at as usize, relocation.r_addend(LE).to_le_bytes());
        if at < bytes.len()
            && let Some(end) = at.checked_add(value.len())
            && bytes.get(at..end).is_some_and(|now| now != value)
        {
            bytes.to_mut()[at..end].copy_from_slice(&value);
        }
    }
}

fn is_relative(relocation: &Rela64<LittleEndian>) -> bool {
    // The two architectures' numbers do not mean anything else on the other.
    [R_X86_64_RELATIVE, R_AARCH64_RELATIVE].contains(&relocation.r_type(LE, false))
}
