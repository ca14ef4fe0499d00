//! Reads OTLP/JSON profiles as any consumer may meet them: our own, and those a collector wrote.
//!
//! Fields with their default value may be absent, and integers of 64 bits may be strings or
//! numbers. Written against the specification and not against the exporter, so that one can be
//! used to test the other.

use anyhow::{Context, Result, bail, ensure};
use hotspan_proto::otlp::{
    common::{AnyValue, InstrumentationScope, KeyValue, any_value},
    profiles::{
        Function, KeyValueAndUnit, Line, Link, Location, Mapping, Profile, ProfilesDictionary,
        ResourceProfiles, Sample, ScopeProfiles, Stack, ValueType,
    },
    profiles_service::ExportProfilesServiceRequest,
    resource::Resource,
};
use serde_json::{Map, Value};

/// Parses one request.
///
/// # Errors
/// When the text is no JSON, a field is unknown or has a value of the wrong kind.
pub fn parse(text: &str) -> Result<ExportProfilesServiceRequest> {
    let mut root = Object::of(serde_json::from_str(text)?)?;
    let request = ExportProfilesServiceRequest {
        resource_profiles: root.list("resourceProfiles", resource_profiles)?,
        dictionary: root.message("dictionary", dictionary)?,
    };
    root.end(request)
}

/// Undoes what a collector does to a request on its way, so that the rest can be compared with
/// what was sent, whose string table had `strings` entries.
///
/// It makes keys and values of resource and scope attributes references to strings that it appends
/// to the table, and an unset value (that of attribute 0) an empty one.
pub fn undo_collector(request: &mut ExportProfilesServiceRequest, strings: usize) {
    let Some(dictionary) = &mut request.dictionary else {
        return;
    };
    for attribute in &mut dictionary.attribute_table {
        attribute.value.take_if(|value| value.value.is_none());
    }
    let string = |index: i32| dictionary.string_table.get(index as usize).cloned();
    for resource in &mut request.resource_profiles {
        let scopes = resource.scope_profiles.iter_mut();
        let of_scopes = scopes.filter_map(|scope| Some(&mut scope.scope.as_mut()?.attributes));
        let of_resource = resource
            .resource
            .iter_mut()
            .map(|found| &mut found.attributes);
        for attribute in of_scopes.chain(of_resource).flatten() {
            if attribute.key_strindex != 0 {
                let index = std::mem::take(&mut attribute.key_strindex);
                attribute.key = string(index).unwrap_or_default();
            }
            if let Some(AnyValue { value: Some(value) }) = &mut attribute.value
                && let any_value::Value::StringValueStrindex(index) = *value
            {
                *value = any_value::Value::StringValue(string(index).unwrap_or_default());
            }
        }
    }
    dictionary.string_table.truncate(strings);
}

/// A JSON object whose fields are taken out one by one, so that unknown ones are noticed.
struct Object(Map<String, Value>);

impl Object {
    fn of(value: Value) -> Result<Self> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => bail!("{other} is no object"),
        }
    }

    fn end<T>(self, message: T) -> Result<T> {
        ensure!(self.0.is_empty(), "unknown fields {:?}", self.0);
        Ok(message)
    }

    fn field<T>(&mut self, name: &str, read: impl FnOnce(Value) -> Result<T>) -> Result<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).with_context(|| name.to_owned()),
        }
    }

    fn message<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        self.field(name, |value| object(value, read))
    }

    fn values<T>(&mut self, name: &str, read: impl Fn(Value) -> Result<T>) -> Result<Vec<T>> {
        let list = self.field(name, |value| match value {
            Value::Array(values) => values.into_iter().map(read).collect(),
            other => bail!("{other} is no list"),
        })?;
        Ok(list.unwrap_or_default())
    }

    fn list<T>(&mut self, name: &str, read: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.values(name, |value| object(value, &read))
    }

    fn text(&mut self, name: &str) -> Result<String> {
        Ok(self.field(name, text)?.unwrap_or_default())
    }

    fn bytes(&mut self, name: &str) -> Result<Vec<u8>> {
        Ok(self.field(name, hex)?.unwrap_or_default())
    }

    fn index(&mut self, name: &str) -> Result<i32> {
        Ok(self.field(name, small)?.unwrap_or_default())
    }

    fn indices(&mut self, name: &str) -> Result<Vec<i32>> {
        self.values(name, small)
    }

    /// An integer of 64 bits. The specification has writers put it into a string.
    fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(
        &mut self,
        name: &str,
    ) -> Result<T> {
        Ok(self.field(name, number)?.unwrap_or("0".parse()?))
    }
}

fn object<T>(value: Value, read: impl FnOnce(&mut Object) -> Result<T>) -> Result<T> {
    let mut fields = Object::of(value)?;
    let message = read(&mut fields)?;
    fields.end(message)
}

fn text(value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => bail!("{other} is no string"),
    }
}

fn hex(value: Value) -> Result<Vec<u8>> {
    let digits = text(value)?;
    ensure!(digits.is_ascii() && digits.len() % 2 == 0, "odd `{digits}`");
    (0..digits.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(&digits[at..at + 2], 16)?))
        .collect()
}

fn small(value: Value) -> Result<i32> {
    let number = value.as_i64().context("no 32-bit integer")?;
    Ok(i32::try_from(number)?)
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(value: Value) -> Result<T> {
    Ok(text(value)?.parse()?)
}

fn resource_profiles(from: &mut Object) -> Result<ResourceProfiles> {
    Ok(ResourceProfiles {
        resource: from.message("resource", |from| {
            Ok(Resource {
                attributes: from.list("attributes", key_value)?,
                dropped_attributes_count: from.index("droppedAttributesCount")? as u32,
                entity_refs: from.list("entityRefs", |_| bail!("entities are not known here"))?,
            })
        })?,
        scope_profiles: from.list("scopeProfiles", scope_profiles)?,
        schema_url: from.text("schemaUrl")?,
    })
}

fn scope_profiles(from: &mut Object) -> Result<ScopeProfiles> {
    Ok(ScopeProfiles {
        scope: from.message("scope", |from| {
            Ok(InstrumentationScope {
                name: from.text("name")?,
                version: from.text("version")?,
                attributes: from.list("attributes", key_value)?,
                dropped_attributes_count: from.index("droppedAttributesCount")? as u32,
            })
        })?,
        profiles: from.list("profiles", profile)?,
        schema_url: from.text("schemaUrl")?,
    })
}

fn profile(from: &mut Object) -> Result<Profile> {
    Ok(Profile {
        sample_type: from.message("sampleType", value_type)?,
        samples: from.list("samples", |from| {
            Ok(Sample {
                stack_index: from.index("stackIndex")?,
                attribute_indices: from.indices("attributeIndices")?,
                link_index: from.index("linkIndex")?,
                values: from.values("values", number)?,
                timestamps_unix_nano: from.values("timestampsUnixNano", number)?,
            })
        })?,
        time_unix_nano: from.number("timeUnixNano")?,
        duration_nano: from.number("durationNano")?,
        period_type: from.message("periodType", value_type)?,
        period: from.number("period")?,
        profile_id: from.bytes("profileId")?,
        dropped_attributes_count: from.index("droppedAttributesCount")? as u32,
        original_payload_format: from.text("originalPayloadFormat")?,
        original_payload: from.bytes("originalPayload")?,
        attribute_indices: from.indices("attributeIndices")?,
    })
}

fn value_type(from: &mut Object) -> Result<ValueType> {
    Ok(ValueType {
        type_strindex: from.index("typeStrindex")?,
        unit_strindex: from.index("unitStrindex")?,
    })
}

fn dictionary(from: &mut Object) -> Result<ProfilesDictionary> {
    Ok(ProfilesDictionary {
        mapping_table: from.list("mappingTable", |from| {
            Ok(Mapping {
                memory_start: from.number("memoryStart")?,
                memory_limit: from.number("memoryLimit")?,
                file_offset: from.number("fileOffset")?,
                filename_strindex: from.index("filenameStrindex")?,
                attribute_indices: from.indices("attributeIndices")?,
            })
        })?,
        location_table: from.list("locationTable", |from| {
            Ok(Location {
                mapping_index: from.index("mappingIndex")?,
                address: from.number("address")?,
                lines: from.list("lines", line)?,
                attribute_indices: from.indices("attributeIndices")?,
            })
        })?,
        function_table: from.list("functionTable", |from| {
            Ok(Function {
                name_strindex: from.index("nameStrindex")?,
                system_name_strindex: from.index("systemNameStrindex")?,
                filename_strindex: from.index("filenameStrindex")?,
                start_line: from.number("startLine")?,
            })
        })?,
        link_table: from.list("linkTable", |from| {
            Ok(Link {
                trace_id: from.bytes("traceId")?,
                span_id: from.bytes("spanId")?,
            })
        })?,
        string_table: from.values("stringTable", text)?,
        attribute_table: from.list("attributeTable", |from| {
            Ok(KeyValueAndUnit {
                key_strindex: from.index("keyStrindex")?,
                value: from.message("value", any_value)?,
                unit_strindex: from.index("unitStrindex")?,
            })
        })?,
        stack_table: from.list("stackTable", |from| {
            Ok(Stack {
                location_indices: from.indices("locationIndices")?,
            })
        })?,
    })
}

fn line(from: &mut Object) -> Result<Line> {
    Ok(Line {
        function_index: from.index("functionIndex")?,
        line: from.number("line")?,
        column: from.number("column")?,
    })
}

fn key_value(from: &mut Object) -> Result<KeyValue> {
    Ok(KeyValue {
        key: from.text("key")?,
        value: from.message("value", any_value)?,
        key_strindex: from.index("keyStrindex")?,
    })
}

/// The kinds of values that profiles of processes have.
fn any_value(from: &mut Object) -> Result<AnyValue> {
    let string = from.field("stringValue", text)?;
    let reference = from.field("stringValueStrindex", small)?;
    let int = from.field("intValue", number)?;
    let value = string
        .map(any_value::Value::StringValue)
        .or(reference.map(any_value::Value::StringValueStrindex))
        .or(int.map(any_value::Value::IntValue));
    Ok(AnyValue { value })
}
