//! The rules of the profiling SIG's `profcheck`, and those of the specification it leaves out.
//!
//! In: one request as it goes over the wire. Out: every rule it breaks, as sentences that name the
//! entry. Duplicates and orphans are looked for in all tables.

use std::collections::HashSet;
use std::fmt::Debug;

use hotspan_proto::otlp::{
    common::{AnyValue, KeyValue, any_value::Value},
    profiles::{Profile, ProfilesDictionary, Sample, ValueType},
    profiles_service::ExportProfilesServiceRequest,
};

/// `profile.frame.type` in the semantic conventions.
const FRAME_TYPES: [&str; 13] = [
    "beam", "cpython", "dotnet", "go", "jvm", "kernel", "luajit", "native", "perl", "php", "ruby",
    "rust", "v8js",
];

/// Every rule that `request` breaks; empty when it conforms.
#[must_use]
pub fn check(request: &ExportProfilesServiceRequest) -> Vec<String> {
    let Some(dictionary) = &request.dictionary else {
        return vec!["there is no dictionary".to_owned()];
    };
    let mut check = Check {
        dictionary,
        used: [
            dictionary.mapping_table.len(),
            dictionary.location_table.len(),
            dictionary.function_table.len(),
            dictionary.link_table.len(),
            dictionary.string_table.len(),
            dictionary.attribute_table.len(),
            dictionary.stack_table.len(),
        ]
        .map(|len| vec![false; len]),
        broken: Vec::new(),
    };
    check.tables();
    check.entries();
    check.envelopes(request);
    check.orphans();
    check.broken
}

#[derive(Clone, Copy, Debug)]
enum Table {
    Mapping,
    Location,
    Function,
    Link,
    String,
    Attribute,
    Stack,
}

impl Table {
    const ALL: [Self; 7] = [
        Self::Mapping,
        Self::Location,
        Self::Function,
        Self::Link,
        Self::String,
        Self::Attribute,
        Self::Stack,
    ];
}

/// How a sample says how much it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Timestamps,
    OneValue,
    Both,
}

struct Check<'a> {
    dictionary: &'a ProfilesDictionary,
    /// Whether each entry of each table is referred to.
    used: [Vec<bool>; 7],
    broken: Vec<String>,
}

impl Check<'_> {
    fn require(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(sentence());
        }
    }

    /// Every table opens with its zero value and has each entry once.
    fn tables(&mut self) {
        let dictionary = self.dictionary;
        self.table(Table::Mapping, &dictionary.mapping_table);
        self.table(Table::Location, &dictionary.location_table);
        self.table(Table::Function, &dictionary.function_table);
        self.table(Table::Link, &dictionary.link_table);
        self.table(Table::String, &dictionary.string_table);
        self.table(Table::Attribute, &dictionary.attribute_table);
        self.table(Table::Stack, &dictionary.stack_table);
    }

    fn table<T: Default + PartialEq + Debug>(&mut self, table: Table, entries: &[T]) {
        self.require(entries.first() == Some(&T::default()), || {
            format!("entry 0 of the {table:?} table is not the zero value")
        });
        // Not every message can be hashed, but every one can be printed.
        let mut seen = HashSet::new();
        for (at, entry) in entries.iter().enumerate() {
            self.require(seen.insert(format!("{entry:?}")), || {
                format!("{table:?} {at} is a duplicate")
            });
        }
    }

    /// A reference to an entry of a table.
    fn refer(&mut self, table: Table, index: i32, from: &dyn Debug) -> Option<usize> {
        let at = usize::try_from(index).ok();
        let used = at.and_then(|at| self.used[table as usize].get_mut(at));
        let is_in_range = used.is_some();
        if let Some(used) = used {
            *used = true;
        }
        self.require(is_in_range, || {
            format!("{from:?} refers to {table:?} {index}, which does not exist")
        });
        at.filter(|_| is_in_range)
    }

    fn refer_text(&mut self, index: i32, from: &dyn Debug) -> &str {
        match self.refer(Table::String, index, from) {
            Some(at) => &self.dictionary.string_table[at],
            None => "",
        }
    }

    /// The attributes a message refers to, as key and value.
    fn refer_attributes(&mut self, indices: &[i32], from: &dyn Debug) -> Vec<(String, Value)> {
        let mut found: Vec<(String, Value)> = Vec::new();
        for &index in indices {
            let Some(at) = self.refer(Table::Attribute, index, from) else {
                continue;
            };
            let attribute = &self.dictionary.attribute_table[at];
            let key = usize::try_from(attribute.key_strindex)
                .ok()
                .and_then(|key| self.dictionary.string_table.get(key))
                .cloned()
                .unwrap_or_default();
            self.require(found.iter().all(|(other, _)| *other != key), || {
                format!("{from:?} has two attributes `{key}`")
            });
            if let Some(AnyValue { value: Some(value) }) = &attribute.value {
                found.push((key, value.clone()));
            }
        }
        found
    }

    /// What each table's entries must be in themselves.
    fn entries(&mut self) {
        self.mappings();
        self.locations();
        self.functions();
        self.links();
        self.attributes();
        for (at, stack) in self.dictionary.stack_table.iter().enumerate() {
            for &location in &stack.location_indices {
                self.refer(Table::Location, location, &("stack", at));
            }
        }
    }

    fn mappings(&mut self) {
        for (at, mapping) in self.dictionary.mapping_table.iter().enumerate().skip(1) {
            let name = ("mapping", at);
            self.refer_text(mapping.filename_strindex, &name);
            let (start, limit) = (mapping.memory_start, mapping.memory_limit);
            self.require((start, limit) == (0, 0) || start < limit, || {
                format!("mapping {at} starts at {start:#x} and ends at {limit:#x}")
            });
            let attributes = self.refer_attributes(&mapping.attribute_indices, &name);
            let mut has_build_id = false;
            for (key, value) in attributes {
                let Some(kind) = key.strip_prefix("process.executable.build_id.") else {
                    continue;
                };
                self.require(is_build_id(kind, &value), || {
                    format!("mapping {at} has {value:?} as its {kind} build id")
                });
                has_build_id = true;
            }
            self.require(has_build_id, || format!("mapping {at} has no build id"));
        }
    }

    fn locations(&mut self) {
        for (at, location) in self.dictionary.location_table.iter().enumerate().skip(1) {
            let name = ("location", at);
            if let Some(mapping) = self.refer(Table::Mapping, location.mapping_index, &name) {
                let mapping = &self.dictionary.mapping_table[mapping];
                let limits = mapping.memory_start..mapping.memory_limit;
                let is_inside = limits.contains(&location.address);
                self.require(is_inside || mapping.memory_limit == 0, || {
                    format!("location {at} lies outside of its mapping")
                });
            }
            for line in &location.lines {
                self.refer(Table::Function, line.function_index, &name);
                self.require(line.line >= 0 && line.column >= 0, || {
                    format!("location {at} has a negative line or column")
                });
            }
            for (key, value) in self.refer_attributes(&location.attribute_indices, &name) {
                let is_known =
                    matches!(&value, Value::StringValue(kind) if FRAME_TYPES.contains(&&**kind));
                self.require(key != "profile.frame.type" || is_known, || {
                    format!("location {at} has {value:?} as its frame type")
                });
            }
        }
    }

    fn functions(&mut self) {
        for (at, function) in self.dictionary.function_table.iter().enumerate().skip(1) {
            let names = [
                function.name_strindex,
                function.system_name_strindex,
                function.filename_strindex,
            ];
            for index in names {
                self.refer_text(index, &("function", at));
            }
            self.require(names.iter().any(|&index| index != 0), || {
                format!("function {at} has no name at all")
            });
            self.require(function.start_line >= 0, || {
                format!("function {at} starts at a negative line")
            });
        }
    }

    fn links(&mut self) {
        for (at, link) in self.dictionary.link_table.iter().enumerate().skip(1) {
            let lengths = (link.trace_id.len(), link.span_id.len());
            self.require(lengths == (16, 8), || {
                format!("link {at} has ids of {lengths:?} bytes")
            });
        }
    }

    fn attributes(&mut self) {
        for (at, attribute) in self.dictionary.attribute_table.iter().enumerate().skip(1) {
            let has_key = !self
                .refer_text(attribute.key_strindex, &("attribute", at))
                .is_empty();
            self.require(has_key, || format!("attribute {at} has no key"));
            self.refer_text(attribute.unit_strindex, &("attribute", at));
            self.refer_value(attribute.value.as_ref(), &("attribute", at));
        }
    }

    fn refer_value(&mut self, value: Option<&AnyValue>, from: &dyn Debug) {
        if let Some(Value::StringValueStrindex(index)) = value.and_then(|any| any.value.as_ref()) {
            self.refer_text(*index, from);
        }
    }

    fn envelopes(&mut self, request: &ExportProfilesServiceRequest) {
        self.require(!request.resource_profiles.is_empty(), || {
            "there are no resource profiles".to_owned()
        });
        for (at, resource) in request.resource_profiles.iter().enumerate() {
            let attributes = resource.resource.iter().flat_map(|found| &found.attributes);
            self.plain_attributes(attributes, &("resource", at));
            self.require(!resource.scope_profiles.is_empty(), || {
                format!("resource {at} has no scope")
            });
            for scope in &resource.scope_profiles {
                let attributes = scope.scope.iter().flat_map(|found| &found.attributes);
                self.plain_attributes(attributes, &("scope of resource", at));
                self.require(!scope.profiles.is_empty(), || {
                    format!("a scope of resource {at} has no profile")
                });
                for profile in &scope.profiles {
                    self.profile(profile, at);
                }
            }
        }
    }

    /// Attributes of a resource or a scope, which may name strings or refer to them.
    fn plain_attributes<'k>(
        &mut self,
        attributes: impl Iterator<Item = &'k KeyValue>,
        from: &dyn Debug,
    ) {
        let mut keys = HashSet::new();
        for attribute in attributes {
            let has_one_key = attribute.key.is_empty() != (attribute.key_strindex == 0);
            self.require(has_one_key, || {
                format!("{from:?} has an attribute without a key or with two")
            });
            let mut key = attribute.key.clone();
            if attribute.key_strindex != 0 {
                key = self.refer_text(attribute.key_strindex, from).to_owned();
            }
            self.refer_value(attribute.value.as_ref(), from);
            self.require(keys.insert(key.clone()), || {
                format!("{from:?} has two attributes `{key}`")
            });
        }
    }

    fn profile(&mut self, profile: &Profile, resource: usize) {
        let name = ("profile of resource", resource);
        self.value_type(profile.sample_type, &name);
        if profile.period != 0 || profile.period_type.is_some() {
            self.value_type(profile.period_type, &name);
        }
        self.refer_attributes(&profile.attribute_indices, &name);
        self.require(matches!(profile.profile_id.len(), 0 | 16), || {
            format!("{name:?} has an id that is not 16 bytes long")
        });
        let has_format = !profile.original_payload_format.is_empty();
        self.require(has_format != profile.original_payload.is_empty(), || {
            format!("{name:?} has an original payload or its format, not both")
        });
        self.require(!profile.samples.is_empty(), || {
            format!("{name:?} has no sample")
        });
        let mut shapes = HashSet::new();
        let mut identities = HashSet::new();
        for sample in &profile.samples {
            shapes.insert(format!("{:?}", self.sample(sample, profile, &name)));
            let mut attributes = sample.attribute_indices.clone();
            attributes.sort_unstable();
            let identity = (sample.stack_index, attributes, sample.link_index);
            self.require(identities.insert(identity), || {
                format!("{name:?} has two samples of one identity")
            });
        }
        self.require(shapes.len() <= 1, || {
            format!("{name:?} mixes shapes of samples")
        });
    }

    fn value_type(&mut self, value_type: Option<ValueType>, from: &dyn Debug) {
        let value_type = value_type.unwrap_or_default();
        let has_type = !self.refer_text(value_type.type_strindex, from).is_empty();
        let has_unit = !self.refer_text(value_type.unit_strindex, from).is_empty();
        self.require(has_type && has_unit, || {
            format!("{from:?} has values without type or unit")
        });
    }

    fn sample(&mut self, sample: &Sample, profile: &Profile, name: &dyn Debug) -> Option<Shape> {
        self.refer(Table::Stack, sample.stack_index, name);
        self.refer(Table::Link, sample.link_index, name);
        self.refer_attributes(&sample.attribute_indices, name);
        let end = profile.time_unix_nano.saturating_add(profile.duration_nano);
        let window = profile.time_unix_nano..end;
        for timestamp in &sample.timestamps_unix_nano {
            self.require(window.contains(timestamp), || {
                format!("{name:?} has a sample at {timestamp}, outside of its window")
            });
        }
        let shape = match (sample.values.len(), sample.timestamps_unix_nano.len()) {
            (0, 1..) => Some(Shape::Timestamps),
            (1, 0) => Some(Shape::OneValue),
            (values @ 1.., timestamps) if values == timestamps => Some(Shape::Both),
            _ => None,
        };
        self.require(shape.is_some(), || {
            format!("{name:?} has a sample of no known shape")
        });
        shape
    }

    fn orphans(&mut self) {
        for table in Table::ALL {
            for at in 1..self.used[table as usize].len() {
                self.require(self.used[table as usize][at], || {
                    format!("{table:?} {at} is an orphan")
                });
            }
        }
    }
}

fn is_build_id(kind: &str, value: &Value) -> bool {
    let Value::StringValue(id) = value else {
        return false;
    };
    let is_hex = id
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match kind {
        "gnu" => is_hex && !id.is_empty() && id.len() % 2 == 0,
        "htlhash" => is_hex && id.len() == 32,
        "go" => !id.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;
    use hotspan::export::otlp_profiles::{Host, requests};
    use hotspan_proto::otlp::profiles::{
        Function, KeyValueAndUnit, Line, Link, Location, Mapping, ScopeProfiles, Stack,
    };

    fn valid() -> ExportProfilesServiceRequest {
        requests(&synthetic::profile(), &Host::this_one()).remove(0)
    }

    #[test]
    fn a_valid_request_breaks_no_rule() {
        assert_eq!(check(&valid()), [""; 0]);
    }

    #[test]
    fn a_request_without_dictionary_is_found() {
        assert_eq!(check(&ExportProfilesServiceRequest::default()).len(), 1);
    }

    /// Spoils a valid request in one way, and wants to be told of it.
    fn broken(expected: &str, spoil: impl FnOnce(&mut ExportProfilesServiceRequest)) {
        let mut request = valid();
        spoil(&mut request);
        let found = check(&request);
        assert!(
            found.iter().any(|sentence| sentence.contains(expected)),
            "expected `{expected}` in {found:#?}"
        );
    }

    fn broken_table(expected: &str, spoil: impl FnOnce(&mut ProfilesDictionary)) {
        broken(expected, |request| {
            spoil(request.dictionary.as_mut().unwrap());
        });
    }

    fn broken_profile(expected: &str, spoil: impl FnOnce(&mut Profile)) {
        broken(expected, |request| {
            spoil(&mut request.resource_profiles[0].scope_profiles[0].profiles[0]);
        });
    }

    fn broken_mapping(expected: &str, spoil: impl FnOnce(&mut Mapping)) {
        broken_table(expected, |tables| spoil(&mut tables.mapping_table[1]));
    }

    #[test]
    fn an_empty_table_is_found() {
        broken_table("entry 0 of the Mapping", |d| d.mapping_table.clear());
        broken_table("entry 0 of the Location", |d| d.location_table.clear());
        broken_table("entry 0 of the Function", |d| d.function_table.clear());
        broken_table("entry 0 of the Link", |d| d.link_table.clear());
        broken_table("entry 0 of the String", |d| d.string_table.clear());
        broken_table("entry 0 of the Attribute", |d| d.attribute_table.clear());
        broken_table("entry 0 of the Stack", |d| d.stack_table.clear());
    }

    #[test]
    fn a_link_of_zero_bytes_is_not_the_zero_value() {
        broken_table("entry 0 of the Link", |d| {
            d.link_table[0] = Link {
                trace_id: vec![0; 16],
                span_id: vec![0; 8],
            };
        });
    }

    #[test]
    fn a_duplicate_is_found_in_every_table() {
        fn twice<T: Clone>(table: &mut Vec<T>) {
            table.push(table[1].clone());
        }
        broken_table("is a duplicate", |d| twice(&mut d.mapping_table));
        broken_table("is a duplicate", |d| twice(&mut d.location_table));
        broken_table("is a duplicate", |d| twice(&mut d.function_table));
        broken_table("is a duplicate", |d| twice(&mut d.link_table));
        broken_table("is a duplicate", |d| twice(&mut d.string_table));
        broken_table("is a duplicate", |d| twice(&mut d.attribute_table));
        broken_table("is a duplicate", |d| twice(&mut d.stack_table));
    }

    #[test]
    fn an_orphan_is_found_in_every_table() {
        broken_table("is an orphan", |d| {
            d.mapping_table.push(Mapping {
                file_offset: 12_345,
                ..d.mapping_table[1].clone()
            });
        });
        broken_table("Location 11 is an orphan", |d| {
            assert_eq!(d.location_table.len(), 11);
            d.location_table.push(Location {
                address: 12_345,
                ..Default::default()
            });
        });
        broken_table("is an orphan", |d| {
            d.function_table.push(Function {
                name_strindex: 1,
                start_line: 12_345,
                ..Default::default()
            });
        });
        broken_table("Link 2 is an orphan", |d| {
            d.link_table.push(Link {
                trace_id: vec![7; 16],
                span_id: vec![7; 8],
            });
        });
        broken_table("is an orphan", |d| d.string_table.push("orphan".into()));
        broken_table("is an orphan", |d| {
            d.attribute_table.push(KeyValueAndUnit {
                key_strindex: 1,
                ..Default::default()
            });
        });
        broken_table("is an orphan", |d| {
            d.stack_table.push(Stack {
                location_indices: vec![1; 99],
            });
        });
    }

    #[test]
    fn an_index_out_of_range_is_found() {
        for index in [-1, 9_999] {
            broken_mapping("does not exist", |m| m.filename_strindex = index);
            broken_mapping("does not exist", |m| m.attribute_indices[0] = index);
            broken_table("does not exist", |d| {
                d.location_table[1].mapping_index = index;
            });
            broken_table("does not exist", |d| {
                d.location_table[1].lines[0].function_index = index;
            });
            broken_table("does not exist", |d| {
                d.function_table[1].name_strindex = index;
            });
            broken_table("does not exist", |d| {
                d.attribute_table[1].key_strindex = index;
            });
            broken_table("does not exist", |d| {
                d.stack_table[1].location_indices[0] = index;
            });
            broken_profile("does not exist", |p| p.samples[0].stack_index = index);
            broken_profile("does not exist", |p| p.samples[0].link_index = index);
            broken_profile("does not exist", |p| {
                p.samples[0].attribute_indices[0] = index;
            });
            broken_profile("does not exist", |p| p.attribute_indices.push(index));
            broken_profile("does not exist", |p| {
                p.sample_type.as_mut().unwrap().type_strindex = index;
            });
            broken("does not exist", |r| {
                let resource = r.resource_profiles[0].resource.as_mut().unwrap();
                resource.attributes[0].key.clear();
                resource.attributes[0].key_strindex = index;
            });
        }
    }

    #[test]
    fn an_empty_envelope_is_found() {
        broken("no resource profiles", |r| r.resource_profiles.clear());
        broken("has no scope", |r| {
            r.resource_profiles[0].scope_profiles.clear();
        });
        broken("has no profile", |r| {
            let scopes = &mut r.resource_profiles[0].scope_profiles;
            scopes.push(ScopeProfiles::default());
        });
        broken_profile("has no sample", |p| p.samples.clear());
    }

    #[test]
    fn a_key_twice_is_found() {
        broken_mapping("has two attributes", |m| {
            m.attribute_indices.push(m.attribute_indices[0]);
        });
        broken_profile("has two attributes", |p| {
            let indices = &mut p.samples[0].attribute_indices;
            indices.push(indices[0]);
        });
        broken("has two attributes", |r| {
            let resource = r.resource_profiles[0].resource.as_mut().unwrap();
            resource.attributes.push(resource.attributes[0].clone());
        });
    }

    #[test]
    fn a_key_given_in_both_ways_is_found() {
        broken("without a key or with two", |r| {
            let resource = r.resource_profiles[0].resource.as_mut().unwrap();
            resource.attributes[0].key_strindex = 1;
        });
    }

    #[test]
    fn an_attribute_without_key_is_found() {
        broken_table("has no key", |d| d.attribute_table[1].key_strindex = 0);
    }

    #[test]
    fn a_mapping_that_ends_before_it_starts_is_found() {
        broken_mapping("and ends at", |m| m.memory_limit = m.memory_start);
    }

    #[test]
    fn a_mapping_without_build_id_is_found() {
        broken_mapping("has no build id", |m| m.attribute_indices.clear());
    }

    #[test]
    fn a_build_id_that_is_not_hexadecimal_is_found() {
        broken_table("as its gnu build id", |d| {
            let value = d.attribute_table.iter_mut().find_map(|a| {
                let is_gnu = d.string_table[a.key_strindex as usize].ends_with(".gnu");
                a.value.as_mut().filter(|_| is_gnu)
            });
            value.unwrap().value = Some(Value::StringValue("ABC".into()));
        });
    }

    #[test]
    fn an_address_outside_of_its_mapping_is_found() {
        broken_table("outside of its mapping", |d| {
            let location = d.location_table.iter_mut().find(|l| l.mapping_index == 1);
            location.unwrap().address = u64::MAX;
        });
    }

    #[test]
    fn a_negative_line_is_found() {
        for line in [
            Line {
                line: -1,
                ..Default::default()
            },
            Line {
                column: -1,
                ..Default::default()
            },
        ] {
            broken_table("negative line or column", |d| {
                d.location_table[1].lines.push(line);
            });
        }
        broken_table("starts at a negative line", |d| {
            d.function_table[1].start_line = -1;
        });
    }

    #[test]
    fn a_function_without_any_name_is_found() {
        broken_table("has no name at all", |d| {
            d.function_table.push(Function {
                start_line: 1,
                ..Default::default()
            });
        });
    }

    #[test]
    fn an_unknown_frame_type_is_found() {
        broken_table("as its frame type", |d| {
            let value = d.attribute_table.iter_mut().find_map(|a| {
                let is_type = d.string_table[a.key_strindex as usize] == "profile.frame.type";
                a.value.as_mut().filter(|_| is_type)
            });
            value.unwrap().value = Some(Value::StringValue("fortran".into()));
        });
    }

    #[test]
    fn a_link_with_short_ids_is_found() {
        broken_table("has ids of (15, 8) bytes", |d| {
            d.link_table[1].trace_id.pop();
        });
    }

    #[test]
    fn a_timestamp_at_the_end_of_the_window_is_found() {
        broken_profile("outside of its window", |p| {
            let end = p.time_unix_nano + p.duration_nano;
            p.samples[0].timestamps_unix_nano.push(end);
        });
        broken_profile("outside of its window", |p| {
            let before = p.time_unix_nano - 1;
            p.samples[0].timestamps_unix_nano.push(before);
        });
    }

    #[test]
    fn a_sample_of_no_shape_is_found() {
        broken_profile("of no known shape", |p| {
            p.samples[0].timestamps_unix_nano.clear();
        });
        broken_profile("of no known shape", |p| p.samples[0].values = vec![1]);
    }

    #[test]
    fn two_shapes_in_one_profile_are_found() {
        broken_profile("mixes shapes", |p| {
            p.samples[0].timestamps_unix_nano.clear();
            p.samples[0].values = vec![1];
        });
    }

    #[test]
    fn samples_of_one_identity_are_found() {
        broken_profile("two samples of one identity", |p| {
            p.samples.push(p.samples[0].clone());
        });
    }

    #[test]
    fn values_without_type_are_found() {
        broken_profile("without type or unit", |p| p.sample_type = None);
        broken_profile("without type or unit", |p| p.period_type = None);
    }

    #[test]
    fn half_an_original_payload_is_found() {
        broken_profile("not both", |p| p.original_payload_format = "pprof".into());
        broken_profile("not both", |p| p.original_payload = vec![1]);
    }

    #[test]
    fn a_short_profile_id_is_found() {
        broken_profile("not 16 bytes", |p| p.profile_id = vec![1]);
    }
}
