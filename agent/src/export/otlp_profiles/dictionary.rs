//! The tables of a request: everything once, with the zero value at index 0.
//!
//! Entries are interned by value, not by their index in the model: two frames of the model may be
//! the same location here (a shared library in two containers), and duplicates are forbidden.

use std::hash::Hash;

use hotspan_proto::otlp::{
    common::{AnyValue, any_value::Value},
    profiles::{
        Function, KeyValueAndUnit, Line, Link, Location, Mapping, ProfilesDictionary, Stack,
        ValueType,
    },
};
use indexmap::{Equivalent, IndexSet};
use prost::Message;
use rustc_hash::FxBuildHasher;

use crate::model::{self, BinaryIdx, Frame, FrameIdx, FrameKind, Profile, StackIdx, TraceLink};

/// Upper bound of the field key and the length before an entry of a table.
const ENTRY_BYTES: usize = 6;

/// A table whose entry 0 is the zero value.
struct Table<T> {
    entries: IndexSet<T, FxBuildHasher>,
    /// Upper bound of its encoded size.
    bytes: usize,
}

impl<T: Default + Eq + Hash> Table<T> {
    fn new() -> Self {
        let mut entries = IndexSet::default();
        entries.insert(T::default());
        Self {
            entries,
            bytes: ENTRY_BYTES,
        }
    }

    fn find<Q: ?Sized + Hash + Equivalent<T>>(&self, entry: &Q) -> Option<i32> {
        self.entries.get_index_of(entry).map(as_index)
    }

    /// The index of `entry`, whose encoding has `encoded_len` bytes.
    fn insert(&mut self, entry: T, encoded_len: impl FnOnce(&T) -> usize) -> i32 {
        let (at, is_new) = self.entries.insert_full(entry);
        if is_new {
            self.bytes += ENTRY_BYTES + encoded_len(&self.entries[at]);
        }
        as_index(at)
    }

    fn end(&self) -> End {
        (self.entries.len(), self.bytes)
    }

    fn truncate(&mut self, (len, bytes): End) {
        self.entries.truncate(len);
        self.bytes = bytes;
    }
}

fn as_index(at: usize) -> i32 {
    i32::try_from(at).expect("a table of 2^31 entries does not fit in memory")
}

/// A location, in a form that can be hashed.
#[derive(Default, PartialEq, Eq, Hash)]
struct LocationKey {
    mapping: i32,
    address: u64,
    lines: Vec<Line>,
    attribute: Option<i32>,
}

impl LocationKey {
    fn into_message(self) -> Location {
        Location {
            mapping_index: self.mapping,
            address: self.address,
            lines: self.lines,
            attribute_indices: self.attribute.into_iter().collect(),
        }
    }

    /// At most ten bytes for each number, five for an index, and the keys and lengths.
    fn encoded_len_bound(&self) -> usize {
        const LINE_BYTES: usize = ENTRY_BYTES + 6 + 11 + 11;
        32 + LINE_BYTES * self.lines.len()
    }
}

/// An attribute, in a form that can be hashed.
#[derive(Default, PartialEq, Eq, Hash)]
struct Attribute {
    key: i32,
    value: AttributeValue,
}

#[derive(Default, PartialEq, Eq, Hash)]
enum AttributeValue {
    /// Only in entry 0.
    #[default]
    Unset,
    Text(Box<str>),
    Number(i64),
}

impl Attribute {
    fn into_message(self) -> KeyValueAndUnit {
        let value = match self.value {
            AttributeValue::Unset => None,
            AttributeValue::Text(text) => Some(Value::StringValue(text.into())),
            AttributeValue::Number(number) => Some(Value::IntValue(number)),
        };
        KeyValueAndUnit {
            key_strindex: self.key,
            value: value.map(|value| AnyValue { value: Some(value) }),
            unit_strindex: 0,
        }
    }

    fn encoded_len_bound(&self) -> usize {
        let value = match &self.value {
            AttributeValue::Unset => 0,
            AttributeValue::Text(text) => ENTRY_BYTES + text.len(),
            AttributeValue::Number(_) => 11,
        };
        ENTRY_BYTES + ENTRY_BYTES + value
    }
}

/// Where a table ends: entries and bytes.
type End = (usize, usize);

/// Where each table ended at one time, in the order of [`Dictionary`]'s fields.
pub(super) struct Mark([End; 7]);

/// The tables of a request in the making.
pub(super) struct Dictionary<'a> {
    profile: &'a Profile,
    mappings: Table<Mapping>,
    locations: Table<LocationKey>,
    functions: Table<Function>,
    links: Table<Link>,
    strings: Table<String>,
    attributes: Table<Attribute>,
    stacks: Table<Stack>,
    /// Table indices already known for indices of the model.
    known_locations: Vec<Option<i32>>,
    known_stacks: Vec<Option<i32>>,
}

impl<'a> Dictionary<'a> {
    pub(super) fn new(profile: &'a Profile) -> Self {
        Self {
            profile,
            mappings: Table::new(),
            locations: Table::new(),
            functions: Table::new(),
            links: Table::new(),
            strings: Table::new(),
            attributes: Table::new(),
            stacks: Table::new(),
            known_locations: vec![None; profile.frames.len()],
            known_stacks: vec![None; profile.stacks.len()],
        }
    }

    /// Upper bound of the encoded size of all tables.
    pub(super) fn encoded_bytes(&self) -> usize {
        let Mark(ends) = self.mark();
        ENTRY_BYTES + ends.iter().map(|(_, bytes)| bytes).sum::<usize>()
    }

    /// Where the tables end now.
    pub(super) fn mark(&self) -> Mark {
        Mark([
            self.mappings.end(),
            self.locations.end(),
            self.functions.end(),
            self.links.end(),
            self.strings.end(),
            self.attributes.end(),
            self.stacks.end(),
        ])
    }

    /// Removes every entry added since `mark`, which otherwise would be orphans. Nothing may be
    /// added after it: what is known of the model's indices may point at what was removed.
    pub(super) fn forget_since(&mut self, mark: &Mark) {
        let [
            mappings,
            locations,
            functions,
            links,
            strings,
            attributes,
            stacks,
        ] = mark.0;
        self.mappings.truncate(mappings);
        self.locations.truncate(locations);
        self.functions.truncate(functions);
        self.links.truncate(links);
        self.strings.truncate(strings);
        self.attributes.truncate(attributes);
        self.stacks.truncate(stacks);
    }

    pub(super) fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            type_strindex: self.string(kind),
            unit_strindex: self.string(unit),
        }
    }

    pub(super) fn stack(&mut self, stack: StackIdx) -> i32 {
        if let Some(known) = self.known_stacks[stack.at()] {
            return known;
        }
        let profile = self.profile;
        let location_indices = profile.stacks[stack.at()]
            .frames
            .iter()
            .map(|&frame| self.location(frame))
            .collect();
        let index = self
            .stacks
            .insert(Stack { location_indices }, Message::encoded_len);
        self.known_stacks[stack.at()] = Some(index);
        index
    }

    pub(super) fn link(&mut self, link: Option<&TraceLink>) -> i32 {
        // Entry 0 stays the empty message: profcheck refuses the sixteen and eight zero bytes
        // that the proto text recommends.
        link.map_or(0, |link| {
            let link = Link {
                trace_id: link.trace_id.to_vec(),
                span_id: link.span_id.to_vec(),
            };
            self.links.insert(link, Message::encoded_len)
        })
    }

    pub(super) fn sample_attributes(&mut self, sample: &model::Sample) -> [i32; 3] {
        let thread = &self.profile.threads[sample.thread.at()];
        [
            self.text_attribute("thread.name", &thread.name),
            self.number_attribute("thread.id", i64::from(thread.tid)),
            self.number_attribute("cpu.logical_number", i64::from(sample.cpu)),
        ]
    }

    fn location(&mut self, frame: FrameIdx) -> i32 {
        if let Some(known) = self.known_locations[frame.at()] {
            return known;
        }
        let profile = self.profile;
        let frame_data = &profile.frames[frame.at()];
        let mapping = frame_data
            .binary
            .map_or(0, |binary| self.mapping(binary, frame_data.addr));
        let lines = if has_line_for_backend(frame_data, mapping) {
            let lines = frame_data.lines.iter();
            lines.map(|line| self.line(line)).collect()
        } else {
            Vec::new()
        };
        let location = LocationKey {
            mapping,
            address: frame_data.addr,
            lines,
            attribute: frame_type(frame_data.kind)
                .map(|kind| self.text_attribute("profile.frame.type", kind)),
        };
        let index = self
            .locations
            .insert(location, LocationKey::encoded_len_bound);
        self.known_locations[frame.at()] = Some(index);
        index
    }

    /// The mapping of the executable segment that holds `addr`; 0 for a file without any id.
    ///
    /// The specification wants a build id on each mapping, as without one no backend can tell what
    /// file it is.
    fn mapping(&mut self, binary: BinaryIdx, addr: u64) -> i32 {
        let binary = &self.profile.binaries[binary.at()];
        let mut attribute_indices = Vec::with_capacity(3);
        if !binary.build_id.is_empty() {
            let id = hex(&binary.build_id);
            attribute_indices.push(self.text_attribute("process.executable.build_id.gnu", &id));
        }
        if !binary.go_build_id.is_empty() {
            let id = &binary.go_build_id;
            attribute_indices.push(self.text_attribute("process.executable.build_id.go", id));
        }
        if let Some(htlhash) = &binary.htlhash {
            let id = hex(htlhash);
            attribute_indices.push(self.text_attribute("process.executable.build_id.htlhash", &id));
        }
        if attribute_indices.is_empty() {
            return 0;
        }
        let segment = binary
            .segments
            .iter()
            .find(|segment| (segment.start..segment.end).contains(&addr));
        let mapping = Mapping {
            memory_start: segment.map_or(0, |segment| segment.start),
            memory_limit: segment.map_or(0, |segment| segment.end),
            file_offset: segment.map_or(0, |segment| segment.file_offset),
            filename_strindex: self.string(binary.name()),
            attribute_indices,
        };
        self.mappings.insert(mapping, Message::encoded_len)
    }

    fn line(&mut self, line: &model::Line) -> Line {
        let function = Function {
            name_strindex: self.string(&line.function),
            system_name_strindex: self.optional_string(line.system_name.as_deref()),
            filename_strindex: self.optional_string(line.file.as_deref()),
            start_line: 0,
        };
        Line {
            function_index: self.functions.insert(function, Message::encoded_len),
            line: i64::from(line.line),
            column: i64::from(line.column),
        }
    }

    fn optional_string(&mut self, text: Option<&str>) -> i32 {
        text.map_or(0, |text| self.string(text))
    }

    fn string(&mut self, text: &str) -> i32 {
        match self.strings.find(text) {
            Some(index) => index,
            None => self.strings.insert(text.to_owned(), String::len),
        }
    }

    fn text_attribute(&mut self, key: &str, value: &str) -> i32 {
        let attribute = Attribute {
            key: self.string(key),
            value: AttributeValue::Text(value.into()),
        };
        self.attributes
            .insert(attribute, Attribute::encoded_len_bound)
    }

    fn number_attribute(&mut self, key: &str, value: i64) -> i32 {
        let attribute = Attribute {
            key: self.string(key),
            value: AttributeValue::Number(value),
        };
        self.attributes
            .insert(attribute, Attribute::encoded_len_bound)
    }

    pub(super) fn finish(self) -> ProfilesDictionary {
        ProfilesDictionary {
            mapping_table: self.mappings.entries.into_iter().collect(),
            location_table: messages(self.locations, LocationKey::into_message),
            function_table: self.functions.entries.into_iter().collect(),
            link_table: self.links.entries.into_iter().collect(),
            string_table: self.strings.entries.into_iter().collect(),
            attribute_table: messages(self.attributes, Attribute::into_message),
            stack_table: self.stacks.entries.into_iter().collect(),
        }
    }
}

fn messages<K, M>(table: Table<K>, into_message: fn(K) -> M) -> Vec<M> {
    table.entries.into_iter().map(into_message).collect()
}

/// Whether a frame goes out with its name.
///
/// `module+0xoffset` is left out where a mapping and an address say the same and let a backend find
/// the real name. Where no mapping can be given it is all there is to know of the module.
fn has_line_for_backend(frame: &Frame, mapping: i32) -> bool {
    let is_module_lost = frame.binary.is_some() && mapping == 0;
    frame.is_named || frame.kind == FrameKind::Note || is_module_lost
}

/// `profile.frame.type` of the semantic conventions. A note is no code and has none.
fn frame_type(kind: FrameKind) -> Option<&'static str> {
    match kind {
        // A perf map does not say whose compiler made the code, and machine code it is.
        FrameKind::Native | FrameKind::Jit => Some("native"),
        FrameKind::Rust => Some("rust"),
        FrameKind::Go => Some("go"),
        FrameKind::Kernel => Some("kernel"),
        FrameKind::Note => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}
