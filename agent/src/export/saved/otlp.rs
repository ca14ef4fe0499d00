//! OTLP profiles, as protobuf and as JSON, also as the Collector's file exporter writes them
//! (one JSON document per line).
//!
//! The messages here have the fields a flame graph needs, and one definition for both
//! encodings. The generated types cannot read JSON as the specification has it: there every
//! field that is zero may be absent and 64-bit integers are text.

use std::collections::HashMap;

use prost::Message;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, de};

use super::{Error, Module, Saved, Stacks, Unit, base_name, choose_type};
use crate::export::folded::ElementKind;

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Data {
    #[prost(message, repeated, tag = "1")]
    resource_profiles: Vec<ResourceProfiles>,
    #[prost(message, optional, tag = "2")]
    dictionary: Option<Dictionary>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Dictionary {
    #[prost(message, repeated, tag = "1")]
    mapping_table: Vec<Mapping>,
    #[prost(message, repeated, tag = "2")]
    location_table: Vec<Location>,
    #[prost(message, repeated, tag = "3")]
    function_table: Vec<Function>,
    #[prost(string, repeated, tag = "5")]
    string_table: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    attribute_table: Vec<Attribute>,
    #[prost(message, repeated, tag = "7")]
    stack_table: Vec<Stack>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mapping {
    #[prost(int32, tag = "4")]
    filename_strindex: i32,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Location {
    #[prost(int32, tag = "1")]
    mapping_index: i32,
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "number")]
    address: u64,
    #[prost(message, repeated, tag = "3")]
    lines: Vec<Line>,
    #[prost(int32, repeated, tag = "4")]
    attribute_indices: Vec<i32>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Line {
    #[prost(int32, tag = "1")]
    function_index: i32,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Function {
    #[prost(int32, tag = "1")]
    name_strindex: i32,
    #[prost(int32, tag = "2")]
    system_name_strindex: i32,
}

/// `KeyValueAndUnit`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Attribute {
    #[prost(int32, tag = "1")]
    key_strindex: i32,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stack {
    #[prost(int32, repeated, tag = "1")]
    location_indices: Vec<i32>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceProfiles {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_profiles: Vec<ScopeProfiles>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

/// An attribute of a resource: its key and its text are here or in the string table.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
    #[prost(int32, tag = "3")]
    key_strindex: i32,
}

/// The text variants of `AnyValue`.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AnyValue {
    #[prost(string, tag = "1")]
    string_value: String,
    #[prost(int32, tag = "8")]
    string_value_strindex: i32,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ScopeProfiles {
    #[prost(message, repeated, tag = "2")]
    profiles: Vec<Profile>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Profile {
    #[prost(message, optional, tag = "1")]
    sample_type: Option<ValueType>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(uint64, tag = "4")]
    #[serde(deserialize_with = "number")]
    duration_nano: u64,
    #[prost(message, optional, tag = "5")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "6")]
    #[serde(deserialize_with = "number")]
    period: i64,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ValueType {
    #[prost(int32, tag = "1")]
    type_strindex: i32,
    #[prost(int32, tag = "2")]
    unit_strindex: i32,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Sample {
    #[prost(int32, tag = "1")]
    stack_index: i32,
    #[prost(int32, repeated, tag = "2")]
    attribute_indices: Vec<i32>,
    #[prost(int64, repeated, tag = "4")]
    #[serde(deserialize_with = "numbers")]
    values: Vec<i64>,
    #[prost(fixed64, repeated, tag = "5")]
    #[serde(deserialize_with = "numbers")]
    timestamps_unix_nano: Vec<u64>,
}

/// A 64-bit integer, as text or as a number.
fn number<'de, D: Deserializer<'de>, T: TryFrom<i128>>(deserializer: D) -> Result<T, D::Error> {
    struct Number;
    impl Visitor<'_> for Number {
        type Value = i128;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an integer")
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<i128, E> {
            Ok(value.into())
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<i128, E> {
            Ok(value.into())
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<i128, E> {
            value.parse().map_err(E::custom)
        }
    }
    let number = deserializer.deserialize_any(Number)?;
    T::try_from(number).map_err(|_| D::Error::custom("integer out of range"))
}

fn numbers<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i128>,
{
    struct Integer<T>(T);
    impl<'de, T: TryFrom<i128>> Deserialize<'de> for Integer<T> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            number(deserializer).map(Self)
        }
    }
    let numbers = Vec::<Integer<T>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|number| number.0).collect())
}

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Saved>, Error> {
    match Data::decode(bytes) {
        Ok(data) if data.is_profiles() => read(&[data]).map(Some),
        _ => Ok(None),
    }
}

pub(super) fn parse_json(bytes: &[u8]) -> Result<Option<Saved>, Error> {
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Ok(None);
    }
    let documents = serde_json::Deserializer::from_slice(bytes).into_iter::<Data>();
    match documents.collect::<Result<Vec<Data>, _>>() {
        Ok(data) if data.iter().all(Data::is_profiles) => read(&data).map(Some),
        _ => Ok(None),
    }
}

impl Data {
    /// Whether this is what it was read as; other messages decode too.
    fn is_profiles(&self) -> bool {
        let strings = self.dictionary.as_ref().map(|d| d.string_table.first());
        !self.resource_profiles.is_empty() && strings.flatten().is_some_and(String::is_empty)
    }

    fn profiles(&self) -> impl Iterator<Item = (&ResourceProfiles, &Profile)> {
        self.resource_profiles.iter().flat_map(|resource| {
            let scopes = resource.scope_profiles.iter();
            scopes.flat_map(move |scope| scope.profiles.iter().map(move |p| (resource, p)))
        })
    }
}

/// Adds up every profile that counts the same as the one that is chosen.
fn read(documents: &[Data]) -> Result<Saved, Error> {
    let none = Dictionary::default();
    let profiles = || {
        documents.iter().flat_map(|data| {
            let dictionary = data.dictionary.as_ref().unwrap_or(&none);
            data.profiles().map(move |(r, p)| (dictionary, r, p))
        })
    };
    let units: Vec<Unit> = profiles().map(|(d, _, p)| d.unit(p)).collect();
    let Some(chosen) = choose_type(&units, Some(0)) else {
        return Err(Error::Empty);
    };
    let mut saved = Saved {
        unit: units[chosen].clone(),
        ..Saved::default()
    };
    let mut stacks = Stacks::default();
    let chosen = profiles()
        .zip(&units)
        .filter(|(_, unit)| **unit == saved.unit);
    for ((dictionary, resource, profile), _) in chosen {
        dictionary.add(&mut stacks, resource, profile)?;
        saved.duration_ns = saved.duration_ns.max(profile.duration_nano);
        if let Some(ty) = &profile.period_type
            && dictionary.string(ty.unit_strindex) == "nanoseconds"
        {
            saved.period_ns = u64::try_from(profile.period).unwrap_or(0);
        }
    }
    saved.folded = stacks.folded;
    Ok(saved)
}

fn get<T>(table: &[T], index: i32) -> Option<&T> {
    table.get(usize::try_from(index).ok()?)
}

impl Dictionary {
    /// A string of the table; empty for an index outside of it.
    fn string(&self, index: i32) -> &str {
        get(&self.string_table, index).map_or("", String::as_str)
    }

    /// The text of a value, empty for other values.
    fn text<'a>(&'a self, value: Option<&'a AnyValue>) -> &'a str {
        match value {
            Some(value) if value.string_value_strindex > 0 => {
                self.string(value.string_value_strindex)
            }
            Some(value) => &value.string_value,
            None => "",
        }
    }

    /// The text of the attribute with this key among those at `indices`.
    fn attribute(&self, indices: &[i32], key: &str) -> &str {
        let mut attributes = indices
            .iter()
            .filter_map(|i| get(&self.attribute_table, *i));
        let attribute = attributes.find(|a| self.string(a.key_strindex) == key);
        self.text(attribute.and_then(|a| a.value.as_ref()))
    }

    fn unit(&self, profile: &Profile) -> Unit {
        match &profile.sample_type {
            Some(ty) => Unit::of(self.string(ty.type_strindex), self.string(ty.unit_strindex)),
            None => Unit::Samples,
        }
    }

    fn add(
        &self,
        stacks: &mut Stacks,
        resource: &ResourceProfiles,
        profile: &Profile,
    ) -> Result<(), Error> {
        let process = resource.resource.as_ref().map_or("", |r| self.process(r));
        let mut weights: HashMap<(&str, i32), u64> = HashMap::new();
        for sample in &profile.samples {
            let root = match process {
                "" => self.attribute(&sample.attribute_indices, "thread.name"),
                process => process,
            };
            let weight = weights.entry((root, sample.stack_index)).or_default();
            *weight = weight.saturating_add(sample.weight());
        }
        let mut weights: Vec<_> = weights.into_iter().collect();
        weights.sort_unstable();
        let mut frames: HashMap<i32, String> = HashMap::new();
        for ((root, stack), weight) in weights {
            let root = match root {
                "" => String::new(),
                root => stacks.folded.process(root),
            };
            let locations = get(&self.stack_table, stack).map_or(&[][..], |s| &s.location_indices);
            for index in locations {
                if !frames.contains_key(index) {
                    frames.insert(*index, self.location(stacks, *index)?);
                }
            }
            let elements = locations.iter().rev().map(|index| frames[index].as_str());
            stacks.add([root.as_str()].into_iter().chain(elements), weight)?;
        }
        Ok(())
    }

    /// What the process is called: its executable, else a service name somebody chose.
    fn process<'a>(&'a self, resource: &'a Resource) -> &'a str {
        let value = |key: &str| {
            let mut attributes = resource.attributes.iter();
            let attribute = attributes.find(|a| match a.key.as_str() {
                "" => self.string(a.key_strindex) == key,
                plain => plain == key,
            });
            self.text(attribute.and_then(|a| a.value.as_ref()))
        };
        let service = value("service.name");
        let candidates = [
            value("process.executable.name"),
            base_name(value("process.executable.path")),
            match service.strip_prefix("unknown_service") {
                Some(rest) => rest.trim_start_matches(':'),
                None => service,
            },
        ];
        candidates.into_iter().find(|c| !c.is_empty()).unwrap_or("")
    }

    fn location(&self, stacks: &mut Stacks, index: i32) -> Result<String, Error> {
        let Some(location) = get(&self.location_table, index) else {
            return stacks.frame(Module::Named(""), &[""]);
        };
        let mapping = get(&self.mapping_table, location.mapping_index);
        let file = mapping.map_or("", |mapping| self.string(mapping.filename_strindex));
        let module = match self.attribute(&location.attribute_indices, "profile.frame.type") {
            "kernel" => Module::Known(ElementKind::Kernel),
            "go" => Module::Known(ElementKind::Go),
            "rust" => Module::Known(ElementKind::Rust),
            // Machine code in no file, and somebody knew its name: that was a perf map.
            "native" if is_jit(location) => Module::Known(ElementKind::Jit),
            _ => Module::Named(file),
        };
        let names: Vec<&str> = location
            .lines
            .iter()
            .map(
                |line| match get(&self.function_table, line.function_index) {
                    Some(function) if function.name_strindex == 0 => {
                        self.string(function.system_name_strindex)
                    }
                    Some(function) => self.string(function.name_strindex),
                    None => "",
                },
            )
            .collect();
        if !names.is_empty() {
            return stacks.frame(module, &names);
        }
        // Addresses are ELF addresses, and unnamed frames are called after them.
        let unnamed = match base_name(file) {
            "" => format!("{:#x}", location.address),
            file => format!("{file}+{:#x}", location.address),
        };
        stacks.frame(module, &[&unnamed])
    }
}

fn is_jit(location: &Location) -> bool {
    location.mapping_index == 0 && location.address != 0 && !location.lines.is_empty()
}

impl Sample {
    /// The sum of the values; without values each time stamp counts one.
    fn weight(&self) -> u64 {
        if self.values.is_empty() {
            return self.timestamps_unix_nano.len() as u64;
        }
        let values = self
            .values
            .iter()
            .map(|value| u64::try_from(*value).unwrap_or(0));
        values.fold(0, u64::saturating_add)
    }
}
