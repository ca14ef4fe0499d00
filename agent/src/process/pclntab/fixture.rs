//! Small Go binaries for tests, laid out by the linker's rules of each version: a segment of code
//! and one of data, without sections.

use super::Version;

/// Address of the first function.
pub(crate) const TEXT: u64 = 0x40_1000;
const DATA: u64 = 0x50_0000;
const TEXT_OFFSET: usize = 0x1000;

/// A function to put into a binary.
#[derive(Clone, Default)]
pub(crate) struct Spec<'a> {
    pub name: &'a str,
    pub code: &'a [u8],
    /// How many bytes, and how deep the stack is there.
    pub depths: &'a [(u8, i32)],
    pub flags: u8,
    /// Name of a function that is inlined from the third byte on, called in the second.
    pub inlined: Option<&'a str>,
}

/// A binary of the newest layout.
pub(crate) fn binary(functions: &[Spec<'_>]) -> Vec<u8> {
    binary_of(Version::Go120, functions)
}

pub(super) fn binary_of(version: Version, functions: &[Spec<'_>]) -> Vec<u8> {
    let code: Vec<u8> = functions.iter().flat_map(|it| it.code).copied().collect();
    let trees_at = 0x400;
    let mut parts = Parts::new(version, functions, DATA + trees_at);
    let table_at = 0x800;
    let table = parts.table();
    let mut data = module(version, DATA + table_at, &table);
    data.resize(trees_at as usize, 0);
    data.append(&mut parts.trees);
    data.resize(table_at as usize, 0);
    data.extend(table);

    let data_offset = TEXT_OFFSET + code.len().next_multiple_of(0x1000);
    let mut file = header();
    file.extend(load(5, TEXT_OFFSET, TEXT, code.len()));
    file.extend(load(6, data_offset, DATA, data.len()));
    file.resize(TEXT_OFFSET, 0);
    file.extend(code);
    file.resize(data_offset, 0);
    file.extend(data);
    file
}

/// An ELF header with two program headers.
fn header() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // Executable, x86-64, version 1; entry, program headers, section headers, flags; then sizes.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(words(&[TEXT, 64, 0]));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    file
}

fn load(flags: u8, offset: usize, addr: u64, bytes: usize) -> Vec<u8> {
    let mut header = vec![1, 0, 0, 0, flags, 0, 0, 0];
    header.extend(words(&[
        offset as u64,
        addr,
        addr,
        bytes as u64,
        bytes as u64,
        0x1000,
    ]));
    header
}

/// `runtime.firstmoduledata`.
fn module(version: Version, table: u64, bytes: &[u8]) -> Vec<u8> {
    if version == Version::Go12 {
        return Vec::new();
    }
    let names_field = if version == Version::Go116 { 24 } else { 32 };
    let names = super::u64_at(bytes, names_field).unwrap();
    let mut module = [0; 41];
    module[0] = table;
    module[1] = table + names;
    module[22] = TEXT;
    let gofunc = if version == Version::Go118 { 38 } else { 40 };
    module[gofunc] = DATA + 0x400;
    words(&module)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

struct Parts {
    version: Version,
    names: Vec<u8>,
    values: Vec<u8>,
    records: Vec<(u64, Vec<u8>)>,
    end: u64,
    trees: Vec<u8>,
}

impl Parts {
    fn new(version: Version, functions: &[Spec<'_>], trees: u64) -> Self {
        let mut parts = Self {
            version,
            names: Vec::new(),
            // Offset 0 means that there is no list.
            values: vec![0],
            records: Vec::new(),
            end: TEXT,
            trees: Vec::new(),
        };
        for function in functions {
            parts.add(function, trees);
        }
        parts
    }

    fn name(&mut self, name: &str) -> u32 {
        let at = self.names.len() as u32;
        self.names.extend(name.as_bytes());
        self.names.push(0);
        at
    }

    fn list(&mut self, list: &[(u8, i32)]) -> u32 {
        let at = self.values.len() as u32;
        let mut last = -1;
        for (bytes, value) in list {
            let mut number = ((value - last) << 1 ^ (value - last) >> 31) as u32;
            while number >= 0x80 {
                self.values.push(number as u8 | 0x80);
                number >>= 7;
            }
            self.values.extend([number as u8, *bytes]);
            last = *value;
        }
        self.values.push(0);
        at
    }

    fn add(&mut self, function: &Spec<'_>, trees: u64) {
        let entry = self.end;
        self.end += function.code.len() as u64;
        let all = function.code.len() as u8;
        let fields = [
            self.name(function.name),
            0,
            0,
            self.list(function.depths),
            // One file; line 10, and 20 from the third byte on.
            self.list(&[(all, 0)]),
            self.list(&[(2, 10), (all - 2, 20)]),
            3,
        ];
        let tree_index = self.list(&[(2, -1), (all - 2, 0)]);
        let tree = trees + self.trees.len() as u64;
        let mut record = self.addr(entry);
        record.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        if self.version >= Version::Go116 {
            record.extend([0; 4]);
        }
        if self.version >= Version::Go120 {
            record.extend([0; 4]);
        }
        record.extend([0, function.flags, 0, 4]);
        let indexes = [0, 0, function.inlined.map_or(0, |_| tree_index)];
        record.extend(indexes.iter().flat_map(|index| index.to_le_bytes()));
        if self.version >= Version::Go118 {
            record.extend([0xff; 12]);
            record.extend(((tree - trees) as u32).to_le_bytes());
        } else {
            record.resize(record.len().next_multiple_of(8) + 24, 0);
            record.extend(tree.to_le_bytes());
        }
        self.records.push((entry, record));
        if let Some(name) = function.inlined {
            let name = self.name(name);
            // The call is in the second byte.
            let call = match self.version {
                Version::Go120 => vec![0, name, 1, 0],
                _ => vec![0, 0, 0, name, 1],
            };
            self.trees
                .extend(call.iter().flat_map(|field| field.to_le_bytes()));
        }
    }

    /// An address as the version writes it.
    fn addr(&self, addr: u64) -> Vec<u8> {
        if self.version >= Version::Go118 {
            ((addr - TEXT) as u32).to_le_bytes().to_vec()
        } else {
            addr.to_le_bytes().to_vec()
        }
    }

    fn offset(&self, offset: usize) -> Vec<u8> {
        let mut bytes = words(&[offset as u64]);
        bytes.truncate(self.version.list_field_bytes());
        bytes
    }

    /// The list of functions and the records behind it, whose offsets count from `start` bytes
    /// before it.
    fn functions(&self, start: usize) -> Vec<u8> {
        let list = (2 * self.records.len() + 1) * self.version.list_field_bytes();
        // Until 1.15 the offset of the files is behind the list.
        let mut at = (start + list + 4).next_multiple_of(8);
        let (mut bytes, mut records) = (Vec::new(), Vec::new());
        for (entry, record) in &self.records {
            bytes.extend(self.addr(*entry));
            bytes.extend(self.offset(at));
            records.extend(record);
            records.resize(records.len().next_multiple_of(8), 0);
            at = at.next_multiple_of(8) + record.len().next_multiple_of(8);
        }
        bytes.extend(self.addr(self.end));
        bytes.extend(self.offset(at)[..4].iter());
        bytes.resize((start + list + 4).next_multiple_of(8) - start, 0);
        bytes.extend(records);
        bytes
    }

    fn table(&self) -> Vec<u8> {
        let (magic, fields): (u32, &[u64]) = match self.version {
            Version::Go12 => return self.old_table(),
            Version::Go116 => (0xffff_fffa, &[1]),
            Version::Go118 => (0xffff_fff0, &[1, TEXT]),
            Version::Go120 => (0xffff_fff1, &[1, 0]),
        };
        let mut start = 8 + 8 * (1 + fields.len() + 5);
        let parts = [&self.names[..], &[0; 4], b"/src/main.go\0", &self.values];
        let mut bytes = [magic.to_le_bytes(), [0, 0, 1, 8]].concat();
        bytes.extend(words(&[self.records.len() as u64]));
        bytes.extend(words(fields));
        for part in parts {
            bytes.extend(words(&[start as u64]));
            start = (start + part.len()).next_multiple_of(8);
        }
        bytes.extend(words(&[start as u64]));
        for part in parts {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend(self.functions(0));
        bytes
    }

    /// The layout until 1.15, in which all offsets count from the start of the table.
    fn old_table(&self) -> Vec<u8> {
        let mut bytes = [0xffff_fffb_u32.to_le_bytes(), [0, 0, 1, 8]].concat();
        bytes.extend(words(&[self.records.len() as u64]));
        let functions = self.functions(16);
        let files = 16 + functions.len();
        let (names, values) = (files + 24, files + 24 + self.names.len());
        bytes.extend(functions);
        // Behind the list the offset of the files: how many, and where each path is.
        let list = 16 + (2 * self.records.len() + 1) * 8;
        bytes[list..list + 4].copy_from_slice(&(files as u32).to_le_bytes());
        bytes.extend((files as u32 + 8).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(b"/src/main.go\0\0\0\0");
        bytes.extend(&self.names);
        bytes.extend(&self.values);
        let starts = [names, values, values, values];
        for index in 0..self.records.len() {
            let at = super::u64_at(&bytes, 16 + 16 * index + 8).unwrap() as usize;
            for (field, start) in [0, 3, 4, 5].iter().zip(starts) {
                let at = at + 8 + 4 * field;
                let offset = super::u32_at(&bytes, at).unwrap() + start as u32;
                bytes[at..at + 4].copy_from_slice(&offset.to_le_bytes());
            }
        }
        bytes
    }
}
