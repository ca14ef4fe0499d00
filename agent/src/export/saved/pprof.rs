//! pprof's `profile.proto`, of any producer.

use std::collections::HashMap;

use hotspan_proto::pprof::{Location, Mapping, Message as _, Profile, Sample};

use super::{Error, Module, Saved, Stacks, Unit, base_name, choose_type};

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Saved>, Error> {
    let Ok(profile) = Profile::decode(bytes) else {
        return Ok(None);
    };
    let reader = Reader::new(&profile);
    // Other messages can decode too; these three no pprof file lacks.
    let starts_empty = profile.string_table.first().is_some_and(String::is_empty);
    let units: Vec<Unit> = reader.units();
    let has_types = profile
        .sample_type
        .iter()
        .all(|t| !reader.string(t.ty).is_empty());
    let (true, true, Some(value_index)) = (
        starts_empty,
        has_types,
        choose_type(&units, reader.default_type()),
    ) else {
        return Ok(None);
    };
    let period_is_time = profile
        .period_type
        .as_ref()
        .is_some_and(|t| reader.string(t.unit) == "nanoseconds");
    Ok(Some(Saved {
        folded: reader.stacks(value_index)?.folded,
        unit: units[value_index].clone(),
        duration_ns: u64::try_from(profile.duration_nanos).unwrap_or(0),
        period_ns: match period_is_time {
            true => u64::try_from(profile.period).unwrap_or(0),
            false => 0,
        },
    }))
}

struct Reader<'a> {
    profile: &'a Profile,
    mappings: HashMap<u64, &'a Mapping>,
    /// Names of functions by id.
    functions: HashMap<u64, &'a str>,
}

impl<'a> Reader<'a> {
    fn new(profile: &'a Profile) -> Self {
        let mut reader = Self {
            profile,
            mappings: profile.mapping.iter().map(|m| (m.id, m)).collect(),
            functions: HashMap::new(),
        };
        for function in &profile.function {
            let name = match reader.string(function.name) {
                "" => reader.string(function.system_name),
                name => name,
            };
            reader.functions.insert(function.id, name);
        }
        reader
    }

    /// A string of the table; empty for an index outside of it.
    fn string(&self, index: i64) -> &'a str {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.profile.string_table.get(index))
            .map_or("", String::as_str)
    }

    fn units(&self) -> Vec<Unit> {
        let types = self.profile.sample_type.iter();
        types
            .map(|t| Unit::of(self.string(t.ty), self.string(t.unit)))
            .collect()
    }

    fn default_type(&self) -> Option<usize> {
        let default = self.string(self.profile.default_sample_type);
        let mut types = self.profile.sample_type.iter();
        types.position(|t| !default.is_empty() && self.string(t.ty) == default)
    }

    fn stacks(&self, value_index: usize) -> Result<Stacks, Error> {
        let mut stacks = Stacks::default();
        let mut locations: HashMap<u64, String> = HashMap::new();
        for location in &self.profile.location {
            let text = self.location(&mut stacks, location)?;
            locations.insert(location.id, text);
        }
        let mut weights: HashMap<(&str, &[u64]), u64> = HashMap::new();
        for sample in &self.profile.sample {
            let value = sample.value.get(value_index).copied().unwrap_or(0);
            let weight = weights
                .entry((self.process(sample), &sample.location_id))
                .or_default();
            *weight = weight.saturating_add(u64::try_from(value).unwrap_or(0));
        }
        for ((process, ids), weight) in weights {
            let root = match process {
                "" => String::new(),
                name => stacks.folded.process(name),
            };
            let frames = ids.iter().rev();
            let frames = frames.filter_map(|id| Some(locations.get(id)?.as_str()));
            stacks.add([root.as_str()].into_iter().chain(frames), weight)?;
        }
        Ok(stacks)
    }

    /// The process name, which hotspan, perf's converters and lightswitch keep in a label.
    fn process(&self, sample: &Sample) -> &'a str {
        let labels = sample.label.iter();
        labels
            .filter(|label| matches!(self.string(label.key), "comm" | "process.name"))
            .map(|label| self.string(label.str))
            .next()
            .unwrap_or("")
    }

    fn location(&self, stacks: &mut Stacks, location: &Location) -> Result<String, Error> {
        let mapping = self.mappings.get(&location.mapping_id);
        let file = mapping.map_or("", |mapping| self.string(mapping.filename));
        let name = |id| self.functions.get(&id).copied().unwrap_or("");
        let names: Vec<&str> = location.line.iter().map(|l| name(l.function_id)).collect();
        if !names.is_empty() {
            return stacks.frame(Module::Named(file), &names);
        }
        let address = location.address;
        let unnamed = match mapping {
            Some(mapping) if !file.is_empty() => {
                let offset = address
                    .wrapping_sub(mapping.memory_start)
                    .wrapping_add(mapping.file_offset);
                format!("{}+{offset:#x}", base_name(file))
            }
            _ => format!("{address:#x}"),
        };
        stacks.frame(Module::Named(file), &[&unnamed])
    }
}
