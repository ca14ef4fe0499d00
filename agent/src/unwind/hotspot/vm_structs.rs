//! What a JVM says about its own structures: `libjvm.so` exports tables of the names, types and places of
//! the fields that debuggers need (OpenJDK, `src/hotspot/share/runtime/vmStructs.hpp`, since JDK 6).

use std::fs::File;

use object::ReadCache;
use rustc_hash::FxHashMap;

use crate::{process::memory::ReadBytes, unwind::image::Image};

/// Exported variables, each of eight bytes.
const VARIABLES: [&str; 11] = [
    "gHotSpotVMStructs",
    "gHotSpotVMStructEntryTypeNameOffset",
    "gHotSpotVMStructEntryFieldNameOffset",
    "gHotSpotVMStructEntryTypeStringOffset",
    "gHotSpotVMStructEntryIsStaticOffset",
    "gHotSpotVMStructEntryOffsetOffset",
    "gHotSpotVMStructEntryAddressOffset",
    "gHotSpotVMStructEntryArrayStride",
    "gHotSpotVMTypes",
    "gHotSpotVMTypeEntrySizeOffset",
    "gHotSpotVMTypeEntryArrayStride",
];

/// Entries of a table: there are some hundred.
const MAX_ENTRIES: u64 = 8192;
/// Bytes of an entry: there are 48.
const MAX_STRIDE: u64 = 256;
/// Bytes of a name, the final zero among them.
const MAX_NAME_BYTES: usize = 64;

/// Where a library has the variables that lead to its tables: ELF addresses.
#[derive(Clone, Debug)]
pub struct Exports(pub(super) [u64; VARIABLES.len()]);

impl Exports {
    /// Finds them; `None` when the file is no JVM that describes itself.
    #[must_use]
    pub fn find(file: &File) -> Option<Self> {
        let cache = ReadCache::new(file);
        let image = Image::parse(&cache).ok()?;
        let addrs = image.variables(VARIABLES.map(str::as_bytes));
        let mut exports = Self([0; VARIABLES.len()]);
        for (place, addr) in exports.0.iter_mut().zip(addrs) {
            *place = addr?;
        }
        Some(exports)
    }
}

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
}

impl Field {
    /// One past its last byte.
    pub fn end(self) -> usize {
        self.offset.saturating_add(self.bytes)
    }

    /// The number in it, in a structure with these bytes.
    pub fn read(self, structure: &[u8]) -> Option<u64> {
        let mut word = [0; 8];
        let bytes = structure.get(self.offset..self.end())?;
        word.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(word))
    }
}

/// The structures of one JVM, as far as they are wanted.
#[derive(Debug, Default)]
pub struct Structures {
    fields: FxHashMap<(Vec<u8>, Vec<u8>), Field>,
    /// Addresses of static fields.
    statics: FxHashMap<(Vec<u8>, Vec<u8>), u64>,
    sizes: FxHashMap<Vec<u8>, u64>,
}

impl Structures {
    /// Reads those of these types; `bias` is how much higher the library lies than its ELF addresses
    /// say.
    pub fn read(
        Exports(addrs): &Exports,
        bias: u64,
        types: &[&str],
        memory: &impl ReadBytes,
    ) -> Option<Self> {
        let mut variables = [0; VARIABLES.len()];
        for (variable, addr) in variables.iter_mut().zip(addrs) {
            *variable = memory.read_word(addr.wrapping_add(bias))?;
        }
        let [
            fields_at,
            type_name,
            field_name,
            type_string,
            is_static,
            offset,
            address,
            field_stride,
            types_at,
            size,
            type_stride,
        ] = variables;
        let mut structures = Self::default();
        let mut names = Names {
            memory,
            types,
            seen: FxHashMap::default(),
        };
        for entry in entries(memory, fields_at, field_stride) {
            let Some(owner) = names.wanted(word(&entry, type_name)?)? else {
                continue;
            };
            let key = (owner.into(), read_name(memory, word(&entry, field_name)?)?);
            if half(&entry, is_static)? != 0 {
                structures.statics.insert(key, word(&entry, address)?);
                continue;
            }
            let kind = read_name(memory, word(&entry, type_string)?)?;
            let field = Field {
                offset: word(&entry, offset)?.try_into().ok()?,
                bytes: bytes_of(&kind),
            };
            structures.fields.insert(key, field);
        }
        for entry in entries(memory, types_at, type_stride) {
            // The name is the first field of an entry.
            if let Some(name) = names.wanted(word(&entry, 0)?)? {
                structures.sizes.insert(name.into(), word(&entry, size)?);
            }
        }
        Some(structures)
    }

    /// A field.
    pub fn field(&self, owner: &str, name: &str) -> Option<Field> {
        self.fields.get(&(owner.into(), name.into())).copied()
    }

    /// The address of a static field.
    pub fn static_field(&self, owner: &str, name: &str) -> Option<u64> {
        self.statics.get(&(owner.into(), name.into())).copied()
    }

    /// How long a structure is.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.sizes.get(name.as_bytes()).copied()
    }
}

/// Bytes of a number of this type; pointers are of every other.
fn bytes_of(kind: &[u8]) -> usize {
    match kind {
        b"bool" | b"volatile signed char" => 1,
        b"u2" | b"int16_t" | b"uint16_t" => 2,
        b"int" | b"uint" | b"jint" | b"int32_t" | b"uint32_t" => 4,
        _ => 8,
    }
}

/// The entries of a table, up to the first whose name is null.
fn entries(memory: &impl ReadBytes, table: u64, stride: u64) -> impl Iterator<Item = Vec<u8>> {
    let stride = if (8..=MAX_STRIDE).contains(&stride) {
        stride
    } else {
        0
    };
    let count = if stride == 0 { 0 } else { MAX_ENTRIES };
    (0..count).map_while(move |index| {
        let mut entry = vec![0; stride as usize];
        let read = memory.read_bytes(table.wrapping_add(index * stride), &mut entry);
        (read == entry.len() && word(&entry, 0)? != 0).then_some(entry)
    })
}

fn word(entry: &[u8], offset: u64) -> Option<u64> {
    let bytes = entry.get(usize::try_from(offset).ok()?..)?;
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

fn half(entry: &[u8], offset: u64) -> Option<u32> {
    let bytes = entry.get(usize::try_from(offset).ok()?..)?;
    Some(u32::from_le_bytes(*bytes.first_chunk()?))
}

/// The text at an address; `None` when it cannot be read or is longer than a name.
pub fn read_name(memory: &impl ReadBytes, addr: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; MAX_NAME_BYTES];
    let read = memory.read_bytes(addr, &mut bytes);
    bytes.truncate(read);
    let len = bytes.iter().position(|&byte| byte == 0)?;
    bytes.truncate(len);
    Some(bytes)
}

/// Names of types, most of which stand in many entries.
struct Names<'a, M> {
    memory: &'a M,
    types: &'a [&'a str],
    seen: FxHashMap<u64, Option<&'a str>>,
}

impl<'a, M: ReadBytes> Names<'a, M> {
    /// The name at an address, if it is one of those wanted. The outer `None` is for one that cannot be
    /// read.
    fn wanted(&mut self, addr: u64) -> Option<Option<&'a str>> {
        if let Some(&seen) = self.seen.get(&addr) {
            return Some(seen);
        }
        // Longer names than there are room for are those of templates.
        let mut bytes = [0; MAX_NAME_BYTES];
        let read = self.memory.read_bytes(addr, &mut bytes);
        let is_it = |name: &&&str| {
            let with_end = bytes.get(..=name.len()).filter(|_| name.len() < read);
            with_end.is_some_and(|there| there.strip_suffix(b"\0") == Some(name.as_bytes()))
        };
        let found = self.types.iter().find(is_it).copied();
        self.seen.insert(addr, found);
        (read > 0).then_some(found)
    }
}
