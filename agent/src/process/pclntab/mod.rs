//! Go's function table, which every Go binary carries, stripped or not: the runtime itself walks
//! stacks and prints names with it.
//!
//! In: the bytes of an ELF file, which a target process controls. Out: functions with their names,
//! and for each of their addresses the depth of the stack, the file, the line and the inlined calls.
//! What follows from that is for others: `unwind` makes rules of the depths, `symbolize` makes
//! frames of the names.
//!
//! The layouts are those of `runtime/symtab.go`, `runtime/runtime2.go` (`_func`) and
//! `cmd/link/internal/ld/pcln.go` of Go 1.2 to 1.26. Nothing is believed without a bound: an offset
//! that leads out of the table makes a function without a name, or without depths, never an error.

mod find;
#[cfg(test)]
pub(crate) mod fixture;
mod values;

use std::{borrow::Cow, cell::Cell, ops::Range};

pub use find::find;
pub use values::{PcValue, PcValues};

/// A name or path longer than this is cut off. Instantiated generics have names of kilobytes.
const MAX_STRING_BYTES: usize = 16 << 10;
/// More functions than any binary has: an eighth of a table of 512 MB.
const MAX_FUNCTIONS: usize = 16 << 20;
/// Calls inlined into each other deeper than this are cut off; the compiler stops long before.
const MAX_INLINED: usize = 64;
/// Values that are read for all look-ups in one table. Ten thousand look-ups of real functions read
/// a tenth of it.
const MAX_LOOKUP_VALUES: u64 = 1 << 28;

/// `PCDATA_InlTreeIndex` and `FUNCDATA_InlTree` (`internal/abi/symtab.go`).
const INLINE_TREE_INDEX: usize = 2;
const INLINE_TREE: usize = 3;

/// Layout of the table, by the Go version that changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// 1.2 to 1.15.
    Go12,
    /// 1.16 and 1.17.
    Go116,
    /// 1.18 and 1.19: addresses are relative to the start of the text.
    Go118,
    /// 1.20 and later.
    Go120,
}

impl Version {
    fn of_magic(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fffb => Some(Self::Go12),
            0xffff_fffa => Some(Self::Go116),
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    /// Bytes of an address and of an offset in the list of functions.
    fn list_field_bytes(self) -> usize {
        if self >= Self::Go118 { 4 } else { 8 }
    }
}

/// Where the parts of the table start, as the header of it says.
#[derive(Clone, Debug)]
struct Header {
    version: Version,
    /// Smallest instruction, which addresses are counted in.
    quantum: u64,
    function_count: usize,
    /// Address of the text, if the header says so.
    text_start: u64,
    names: usize,
    units: usize,
    files: usize,
    values: usize,
    functions: usize,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let version = Version::of_magic(u32_at(bytes, 0)?)?;
        let quantum = u64::from(*bytes.get(6)?);
        if bytes.get(4..6)? != [0, 0] || ![1, 2, 4].contains(&quantum) || bytes[7] != 8 {
            return None;
        }
        let word = |index: usize| usize::try_from(u64_at(bytes, 8 + 8 * index)?).ok();
        let first = match version {
            Version::Go12 => None,
            Version::Go116 => Some(2),
            Version::Go118 | Version::Go120 => Some(3),
        };
        let part = |index: usize| first.map_or(Some(0), |first| word(first + index));
        let mut header = Self {
            version,
            quantum,
            function_count: word(0)?,
            text_start: 0,
            names: part(0)?,
            units: part(1)?,
            files: part(2)?,
            values: part(3)?,
            functions: part(4)?,
        };
        match version {
            Version::Go12 => header.find_old_files(bytes)?,
            Version::Go116 => {}
            Version::Go118 | Version::Go120 => header.text_start = word(2)? as u64,
        }
        let is_sound = (1..=MAX_FUNCTIONS).contains(&header.function_count)
            && [header.names, header.units, header.files, header.values]
                .iter()
                .all(|start| *start < bytes.len())
            && header.list_range().end <= bytes.len();
        is_sound.then_some(header)
    }

    /// Until 1.15 everything is relative to the table, and the list of files is behind the list
    /// of functions.
    fn find_old_files(&mut self, bytes: &[u8]) -> Option<()> {
        if self.function_count > MAX_FUNCTIONS {
            return None;
        }
        self.units = self.list_range().end;
        self.files = u32_at(bytes, self.units)? as usize;
        Some(())
    }

    /// The list of functions: pairs of an address and an offset, and one address more.
    fn list_range(&self) -> Range<usize> {
        let start = match self.version {
            Version::Go12 => 16,
            _ => self.functions,
        };
        let bytes = (2 * self.function_count + 1) * self.version.list_field_bytes();
        start..start.saturating_add(bytes)
    }
}

/// Reads the file by ELF address.
trait ReadAddr {
    /// Bytes at an address, fewer where its segment ends.
    fn read(&self, addr: u64, bytes: u64) -> Option<&[u8]>;
}

/// The function table of a Go binary.
pub struct Pclntab<'a> {
    bytes: Cow<'a, [u8]>,
    header: Header,
    /// What addresses in the table are relative to; 0 before Go 1.18.
    text_start: u64,
    /// What addresses of inline trees are relative to (`runtime.gofunc`), when it was found; 0
    /// before Go 1.18.
    inline_trees: Option<u64>,
    /// Executable bytes of the file: no function is believed outside of them.
    code: Vec<Range<u64>>,
    file: Box<dyn ReadAddr + 'a>,
    /// Values that look-ups may still read.
    values_left: Cell<u64>,
}

/// A function of the table.
#[derive(Clone, Copy)]
pub struct Function<'a> {
    table: &'a Pclntab<'a>,
    /// First address.
    pub entry: u64,
    /// Where the next function begins.
    pub end: u64,
    /// Position of its record in the table.
    record: usize,
}

/// A function's place in the source, and what was inlined there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name, with what a generic function is made for.
    pub name: String,
    /// Source file; empty when unknown.
    pub file: String,
    /// Source line; 0 when unknown.
    pub line: u32,
}

impl<'a> Pclntab<'a> {
    /// How many functions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.header.function_count
    }

    /// Whether there is no function.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Functions by ascending address. One that is not behind its neighbour, or outside the code,
    /// is left out.
    pub fn functions(&self) -> impl Iterator<Item = Function<'_>> {
        let mut floor = 0;
        (0..self.len()).filter_map(move |index| {
            let function = self.function(index)?;
            if function.entry < floor {
                return None;
            }
            floor = function.end;
            Some(function)
        })
    }

    /// The function that holds an ELF address.
    #[must_use]
    pub fn function_at(&self, addr: u64) -> Option<Function<'_>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.listed_addr(middle)? <= addr {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let function = self.function(low.checked_sub(1)?)?;
        (function.entry..function.end)
            .contains(&addr)
            .then_some(function)
    }

    fn function(&self, index: usize) -> Option<Function<'_>> {
        let (entry, end) = (self.listed_addr(index)?, self.listed_addr(index + 1)?);
        if !self
            .code
            .iter()
            .any(|code| code.start <= entry && entry < end && end <= code.end)
        {
            return None;
        }
        let size = self.header.version.list_field_bytes();
        let offset = self.list_field(2 * index + 1, size)?;
        let record = self
            .header
            .functions
            .checked_add(usize::try_from(offset).ok()?)
            .filter(|record| *record < self.bytes.len())?;
        Some(Function {
            table: self,
            entry,
            end,
            record,
        })
    }

    fn listed_addr(&self, index: usize) -> Option<u64> {
        let size = self.header.version.list_field_bytes();
        self.list_field(2 * index, size)?
            .checked_add(self.text_start)
    }

    fn list_field(&self, index: usize, size: usize) -> Option<u64> {
        let at = self.header.list_range().start + index * size;
        if size == 4 {
            u32_at(&self.bytes, at).map(u64::from)
        } else {
            u64_at(&self.bytes, at)
        }
    }

    fn string(&self, start: usize, offset: u32, max_bytes: usize) -> Option<&[u8]> {
        let rest = self.bytes.get(start.checked_add(offset as usize)?..)?;
        let rest = &rest[..rest.len().min(max_bytes)];
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(&rest[..end])
    }
}

impl<'a> Function<'a> {
    /// Name, with what a generic function is made for; empty when the table is broken.
    #[must_use]
    pub fn name(&self) -> &'a [u8] {
        self.name_at(self.field(0)).unwrap_or_default()
    }

    /// The name, empty when it has `max_bytes` or more: for comparing every function's with a few.
    #[must_use]
    pub fn name_below(&self, max_bytes: usize) -> &'a [u8] {
        let start = self.table.header.names;
        self.field(0)
            .and_then(|offset| self.table.string(start, offset, max_bytes))
            .unwrap_or_default()
    }

    /// Nothing is known above this function: it is the first one of its stack
    /// (`FuncFlag_TOPFRAME`).
    #[must_use]
    pub fn is_top(&self) -> bool {
        self.flags() & 1 != 0
    }

    /// It writes its stack pointer, so that depths alone do not lead to its caller
    /// (`FuncFlag_SPWRITE`).
    #[must_use]
    pub fn writes_stack_pointer(&self) -> bool {
        self.flags() & 2 != 0
    }

    /// Its instructions; empty when the file lacks them.
    #[must_use]
    pub fn code(&self) -> &'a [u8] {
        self.table
            .file
            .read(self.entry, self.end - self.entry)
            .unwrap_or_default()
    }

    /// How deep the stack is below the return address, by address. There is nothing for code that
    /// is not Go's, which the linker may list among the functions.
    #[must_use]
    pub fn depths(&self) -> PcValues<'a> {
        self.values(self.field(3))
    }

    /// The calls that an address stands for, innermost first; the last is this function. For a
    /// return address ask for the byte before it.
    #[must_use]
    pub fn calls(&self, addr: u64) -> Vec<Call> {
        let mut calls = Vec::new();
        let mut at = addr;
        while calls.len() < MAX_INLINED {
            let Some((name, parent)) = self.inlined(at) else {
                break;
            };
            calls.push(self.call(name, at));
            at = parent;
        }
        calls.push(self.call(self.name(), at));
        calls
    }

    fn call(&self, name: &[u8], addr: u64) -> Call {
        let line = self.value_at(self.field(5), addr).unwrap_or(0);
        Call {
            name: text(name),
            file: self.file(addr).map(text).unwrap_or_default(),
            line: u32::try_from(line).unwrap_or(0),
        }
    }

    fn file(&self, addr: u64) -> Option<&'a [u8]> {
        let table = self.table;
        let index = usize::try_from(self.value_at(self.field(4), addr)?).ok()?;
        if table.header.version == Version::Go12 {
            let at = table.header.files.checked_add(4 * index)?;
            return table.string(0, u32_at(&table.bytes, at)?, MAX_STRING_BYTES);
        }
        let index = (self.field(7)? as usize).checked_add(index)?;
        let at = table.header.units.checked_add(4 * index)?;
        let offset = u32_at(&table.bytes, at)?;
        (offset != u32::MAX).then(|| table.string(table.header.files, offset, MAX_STRING_BYTES))?
    }

    /// The function that was inlined at an address, and the address that its call stands for.
    fn inlined(&self, addr: u64) -> Option<(&'a [u8], u64)> {
        let index = self.value_at(self.inline_index(), addr)?;
        let table = self.table;
        let (bytes, name, parent) = match table.header.version {
            Version::Go12 => return None,
            // parent i16, funcID u8, pad, file i32, line i32, func i32, parentPc i32
            Version::Go116 | Version::Go118 => (20, 12, 16),
            // funcID u8, pad, nameOff i32, parentPc i32, startLine i32
            Version::Go120 => (16, 4, 8),
        };
        let at = u64::try_from(index).ok()?.checked_mul(bytes)?;
        let call = table
            .file
            .read(self.inline_tree()?.checked_add(at)?, bytes)?;
        let name = self.name_at(u32_at(call, name))?;
        let parent = self.entry.checked_add(u32_at(call, parent)?.into())?;
        (self.entry..self.end)
            .contains(&parent)
            .then_some((name, parent))
    }

    fn inline_index(&self) -> Option<u32> {
        let count = self.field(6)? as usize;
        if count <= INLINE_TREE_INDEX {
            return None;
        }
        let at = self.record + self.fixed_bytes() + 4 * INLINE_TREE_INDEX;
        u32_at(&self.table.bytes, at)
    }

    /// Address of the function's inline tree.
    fn inline_tree(&self) -> Option<u64> {
        let table = self.table;
        let last = self.record + self.fixed_bytes() - 1;
        if usize::from(*table.bytes.get(last)?) <= INLINE_TREE {
            return None;
        }
        let start = self.record + self.fixed_bytes() + 4 * (self.field(6)? as usize);
        if table.header.version >= Version::Go118 {
            let offset = u32_at(&table.bytes, start + 4 * INLINE_TREE)?;
            return table.inline_trees?.checked_add(offset.into());
        }
        u64_at(&table.bytes, start.next_multiple_of(8) + 8 * INLINE_TREE)
    }

    fn name_at(&self, offset: Option<u32>) -> Option<&'a [u8]> {
        self.table
            .string(self.table.header.names, offset?, MAX_STRING_BYTES)
    }

    /// The value of an address in the list at an offset.
    fn value_at(&self, offset: Option<u32>, addr: u64) -> Option<i32> {
        let left = &self.table.values_left;
        let value = self
            .values(offset)
            .take_while(|_| left.replace(left.get().saturating_sub(1)) > 0)
            .find(|value| addr < value.range.end)?;
        value.range.contains(&addr).then_some(value.value)
    }

    fn values(&self, offset: Option<u32>) -> PcValues<'a> {
        // Offset 0 says that there is no such table.
        let bytes = offset
            .filter(|offset| *offset != 0)
            .and_then(|offset| self.table.header.values.checked_add(offset as usize))
            .and_then(|start| self.table.bytes.get(start..))
            .unwrap_or_default();
        PcValues::new(bytes, self.entry..self.end, self.table.header.quantum)
    }

    /// Bytes of the address that a record begins with.
    fn entry_bytes(&self) -> usize {
        self.table.header.version.list_field_bytes()
    }

    /// A field of 32 bits behind the address: 0 name, 1 arguments, 2 deferred return, 3 depths,
    /// 4 files, 5 lines, 6 how many value tables, 7 unit.
    fn field(&self, index: usize) -> Option<u32> {
        let at = self.record.checked_add(self.entry_bytes() + 4 * index)?;
        u32_at(&self.table.bytes, at)
    }

    /// Bytes of a record up to its lists: the fields, from 1.20 on the first line, and four bytes
    /// of which the last says how many pointers there are.
    fn fixed_bytes(&self) -> usize {
        let fields = match self.table.header.version {
            Version::Go12 => 7,
            Version::Go116 | Version::Go118 => 8,
            Version::Go120 => 9,
        };
        self.entry_bytes() + 4 * fields + 4
    }

    /// `FuncFlag`s, which Go 1.17 introduced; the byte was padding before.
    fn flags(&self) -> u8 {
        let at = self.record + self.fixed_bytes() - 3;
        match self.table.header.version {
            Version::Go12 => 0,
            _ => self.table.bytes.get(at).copied().unwrap_or(0),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::{
        fixture::{Spec, TEXT, binary_of},
        *,
    };

    const VERSIONS: [Version; 4] = [
        Version::Go12,
        Version::Go116,
        Version::Go118,
        Version::Go120,
    ];

    fn functions() -> [Spec<'static>; 2] {
        [
            Spec {
                name: "main.main",
                code: &[0x90; 32],
                depths: &[(4, 0), (20, 24), (8, 0)],
                ..Spec::default()
            },
            Spec {
                name: "main.(*T).Method",
                code: &[0x90; 16],
                depths: &[(16, 0)],
                flags: 3,
                inlined: Some("main.small"),
            },
        ]
    }

    fn call(name: &str, line: u32) -> Call {
        Call {
            name: name.to_owned(),
            file: "/src/main.go".to_owned(),
            line,
        }
    }

    #[test]
    fn every_layout_gives_names_ranges_and_depths() {
        for version in VERSIONS {
            let file = binary_of(version, &functions());
            let table = find(&file[..]).unwrap();
            let found: Vec<_> = table
                .functions()
                .map(|it| (it.name(), it.entry - TEXT, it.end - TEXT))
                .collect();
            let expected = [
                (&b"main.main"[..], 0, 32),
                (&b"main.(*T).Method"[..], 32, 48),
            ];
            assert_eq!(found, expected, "{version:?}");
            let depths: Vec<_> = table.function_at(TEXT).unwrap().depths().collect();
            let depths: Vec<_> = depths
                .iter()
                .map(|it| (it.range.start - TEXT, it.value))
                .collect();
            assert_eq!(depths, [(0, 0), (4, 24), (24, 0)], "{version:?}");
        }
    }

    #[test]
    fn flags_are_read_where_they_exist() {
        for version in VERSIONS {
            let file = binary_of(version, &functions());
            let table = find(&file[..]).unwrap();
            let function = table.function_at(TEXT + 40).unwrap();
            let expected = version != Version::Go12;
            assert_eq!(function.is_top(), expected, "{version:?}");
            assert_eq!(function.writes_stack_pointer(), expected, "{version:?}");
        }
    }

    #[test]
    fn an_inlined_call_comes_before_its_caller() {
        for version in VERSIONS {
            let file = binary_of(version, &functions());
            let table = find(&file[..]).unwrap();
            let function = table.function_at(TEXT + 34).unwrap();
            assert_eq!(function.calls(TEXT + 33), [call("main.(*T).Method", 10)]);
            let expected = match version {
                Version::Go12 => vec![call("main.(*T).Method", 20)],
                _ => vec![call("main.small", 20), call("main.(*T).Method", 10)],
            };
            assert_eq!(function.calls(TEXT + 34), expected, "{version:?}");
        }
    }

    #[test]
    fn an_address_outside_has_no_function() {
        let file = binary_of(Version::Go120, &functions());
        let table = find(&file[..]).unwrap();
        for addr in [0, TEXT - 1, TEXT + 48, u64::MAX] {
            assert!(table.function_at(addr).is_none(), "{addr:#x}");
        }
    }

    #[test]
    fn files_without_a_table_have_none() {
        assert!(find(&b""[..]).is_none());
        assert!(find(&std::fs::read("/proc/self/exe").unwrap()[..]).is_none());
    }

    #[test]
    fn changed_or_cut_files_never_panic() {
        for version in VERSIONS {
            let original = binary_of(version, &functions());
            let mut random = fastrand::Rng::with_seed(1);
            for _ in 0..3000 {
                let mut file = original.clone();
                for _ in 0..random.usize(1..8) {
                    // The parts that are not padding.
                    let at = [random.usize(0..176), random.usize(0x2000..file.len())];
                    file[at[random.usize(0..2)]] = random.choice([0, 1, 0x7f, 0xff]).unwrap();
                }
                if random.u8(0..8) == 0 {
                    file.truncate(random.usize(0..original.len()));
                }
                let Some(table) = find(&file[..]) else {
                    continue;
                };
                for function in table.functions() {
                    let _ = function.calls(function.end - 1);
                    function.depths().for_each(drop);
                }
                let _ = table.function_at(random.u64(..)).map(|it| it.code().len());
            }
        }
    }
}
