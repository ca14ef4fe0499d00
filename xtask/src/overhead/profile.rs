//! What the measurements read from a profile that hotspan wrote.

use anyhow::{Context, Result};
use serde::Deserialize;

/// The object that `record --json` prints, as far as we need it.
#[derive(Deserialize)]
pub struct Summary {
    /// Counts of samples.
    pub samples: Counts,
}

/// Counts of samples.
#[derive(Deserialize)]
pub struct Counts {
    /// Rate × CPU time of the targets.
    pub expected: f64,
    /// In the profile.
    pub kept: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    resource_profiles: Vec<ResourceProfiles>,
    dictionary: Dictionary,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceProfiles {
    resource: Resource,
    scope_profiles: Vec<ScopeProfiles>,
}

#[derive(Deserialize)]
struct Resource {
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Attribute {
    key: String,
    value: AttributeValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttributeValue {
    int_value: Option<String>,
}

#[derive(Deserialize)]
struct ScopeProfiles {
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    samples: Vec<EqualSamples>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EqualSamples {
    stack_index: usize,
    timestamps_unix_nano: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dictionary {
    stack_table: Vec<StackEntry>,
    location_table: Vec<Location>,
    function_table: Vec<Function>,
    string_table: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StackEntry {
    location_indices: Vec<usize>,
}

#[derive(Deserialize)]
struct Location {
    lines: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    function_index: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Function {
    name_strindex: usize,
}

impl Dictionary {
    /// The name of a stack's outermost function. Leaves come first.
    fn root(&self, stack: usize) -> Option<&str> {
        let location = *self.stack_table.get(stack)?.location_indices.last()?;
        let line = self.location_table.get(location)?.lines.last()?;
        let function = self.function_table.get(line.function_index)?;
        self.string_table
            .get(function.name_strindex)
            .map(String::as_str)
    }
}

/// One sample.
#[derive(Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was taken, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its process.
    pub pid: u32,
    /// Its outermost function.
    pub root: String,
}

/// The samples of an OTLP profile in JSON, in order of time.
pub fn samples(otlp_json: &str) -> Result<Vec<Sample>> {
    let request: Request =
        serde_json::from_str(otlp_json).context("hotspan wrote no OTLP profile in JSON")?;
    let mut samples = Vec::new();
    for process in &request.resource_profiles {
        let mut attributes = process.resource.attributes.iter();
        let pid = attributes
            .find(|attribute| attribute.key == "process.pid")
            .and_then(|attribute| attribute.value.int_value.as_ref()?.parse().ok())
            .context("a resource has no process.pid")?;
        let profiles = process
            .scope_profiles
            .iter()
            .flat_map(|scope| &scope.profiles);
        for equal in profiles.flat_map(|profile| &profile.samples) {
            let root = request.dictionary.root(equal.stack_index);
            for time in &equal.timestamps_unix_nano {
                samples.push(Sample {
                    time_ns: time.parse().context("a sample's time is no number")?,
                    pid,
                    root: root.unwrap_or_default().to_owned(),
                });
            }
        }
    }
    samples.sort_unstable_by_key(|sample| sample.time_ns);
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_in_order_with_their_process_and_root() {
        let json = r#"{"resourceProfiles":[{
            "resource":{"attributes":[{"key":"process.pid","value":{"intValue":"7"}}]},
            "scopeProfiles":[{"profiles":[{"samples":[
                {"stackIndex":1,"timestampsUnixNano":["30","10"]},
                {"stackIndex":0,"timestampsUnixNano":["20"]}]}]}]}],
            "dictionary":{"stackTable":[{"locationIndices":[]},{"locationIndices":[0,1]}],
            "locationTable":[{"lines":[{"functionIndex":0}]},{"lines":[{"functionIndex":1}]}],
            "functionTable":[{"nameStrindex":0},{"nameStrindex":1}],
            "stringTable":["leaf","_start"]}}"#;
        let sample = |time_ns, root: &str| Sample {
            time_ns,
            pid: 7,
            root: root.to_owned(),
        };
        let expected = [sample(10, "_start"), sample(20, ""), sample(30, "_start")];
        assert_eq!(samples(json).unwrap(), expected);
    }
}
