//! Turns files of every format into [`Stacks`], without hotspan's own readers.
//!
//! A stack starts with the name of its process: the label `comm` in pprof, the name of the
//! executable in OTLP, the name of the profile in speedscope.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use hotspan_proto::otlp::{
    common::{KeyValue, any_value::Value},
    profiles::ProfilesDictionary,
    profiles_service::ExportProfilesServiceRequest,
};
use hotspan_proto::pprof;
use prost::Message;

use crate::otlp_json;
use crate::stacks::Stacks;

/// Reads and unpacks a pprof file.
///
/// # Errors
/// When it is none.
pub fn read_pprof(path: &Path) -> Result<pprof::Profile> {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(path)?)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{} is no gzip", path.display()))?;
    Ok(<pprof::Profile as pprof::Message>::decode(&*bytes)?)
}

/// The stacks of a pprof profile, each counted by the first value of its samples.
///
/// # Errors
/// When an index leads nowhere.
pub fn of_pprof(profile: &pprof::Profile) -> Result<Stacks> {
    let text = |index: i64| {
        let string = profile.string_table.get(usize::try_from(index)?);
        string.cloned().context("a string index leads nowhere")
    };
    let functions: BTreeMap<_, _> = profile.function.iter().map(|f| (f.id, f.name)).collect();
    let mut names = BTreeMap::new();
    for location in &profile.location {
        let lines = location.line.iter().map(|line| {
            let name = functions.get(&line.function_id);
            text(*name.context("a function id leads nowhere")?)
        });
        names.insert(location.id, lines.collect::<Result<Vec<_>>>()?);
    }
    let mut stacks = Stacks::default();
    for sample in &profile.sample {
        let mut stack = Vec::new();
        for id in &sample.location_id {
            stack.extend_from_slice(names.get(id).context("a location id leads nowhere")?);
        }
        for label in &sample.label {
            if text(label.key)? == "comm" {
                stack.push(text(label.str)?);
            }
        }
        stack.reverse();
        let count = *sample.value.first().context("a sample without value")?;
        stacks.add(stack, u64::try_from(count)?);
    }
    Ok(stacks)
}

/// Reads an OTLP file, in protobuf or, when its name ends in `.json`, in JSON.
///
/// # Errors
/// When it is none.
pub fn read_otlp(path: &Path) -> Result<ExportProfilesServiceRequest> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        return otlp_json::parse(std::str::from_utf8(&bytes)?);
    }
    Ok(ExportProfilesServiceRequest::decode(&*bytes)?)
}

/// The stacks of an OTLP request; each timestamp counts one.
///
/// # Errors
/// When an index leads nowhere.
pub fn of_otlp(request: &ExportProfilesServiceRequest) -> Result<Stacks> {
    let dictionary = request.dictionary.as_ref().context("no dictionary")?;
    let mut stacks = Stacks::default();
    for resource in &request.resource_profiles {
        let attributes = &resource
            .resource
            .as_ref()
            .context("no resource")?
            .attributes;
        let process = text_attribute(attributes, "process.executable.name");
        let scopes = resource.scope_profiles.iter();
        for sample in scopes
            .flat_map(|scope| &scope.profiles)
            .flat_map(|p| &p.samples)
        {
            let mut stack = otlp_stack(dictionary, sample.stack_index)?;
            stack.push(process.clone().unwrap_or_default());
            stack.reverse();
            stacks.add(stack, sample.timestamps_unix_nano.len() as u64);
        }
    }
    Ok(stacks)
}

fn otlp_stack(dictionary: &ProfilesDictionary, index: i32) -> Result<Vec<String>> {
    fn at<T>(table: &[T], index: i32) -> Result<&T> {
        let found = table.get(usize::try_from(index)?);
        found.context("an index leads nowhere")
    }
    let mut names = Vec::new();
    for location in &at(&dictionary.stack_table, index)?.location_indices {
        for line in &at(&dictionary.location_table, *location)?.lines {
            let function = at(&dictionary.function_table, line.function_index)?;
            names.push(at(&dictionary.string_table, function.name_strindex)?.clone());
        }
    }
    Ok(names)
}

/// The text of an attribute.
#[must_use]
pub fn text_attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// The stacks of a speedscope file, whose weights are nanoseconds: `period_ns` counts one.
///
/// # Errors
/// When it is none.
pub fn of_speedscope(path: &Path, period_ns: u64) -> Result<Stacks> {
    #[derive(serde::Deserialize)]
    struct File {
        shared: Shared,
        profiles: Vec<Profile>,
    }
    #[derive(serde::Deserialize)]
    struct Shared {
        frames: Vec<Frame>,
    }
    #[derive(serde::Deserialize)]
    struct Frame {
        name: String,
    }
    #[derive(serde::Deserialize)]
    struct Profile {
        name: String,
        unit: String,
        samples: Vec<Vec<usize>>,
        weights: Vec<u64>,
    }
    let file: File = serde_json::from_slice(&fs::read(path)?)?;
    let mut stacks = Stacks::default();
    for profile in &file.profiles {
        ensure!(
            profile.unit == "nanoseconds",
            "the unit is {}",
            profile.unit
        );
        ensure!(
            profile.samples.len() == profile.weights.len(),
            "weights are missing"
        );
        let process = profile.name.split(" (").next().unwrap_or_default();
        for (sample, weight) in profile.samples.iter().zip(&profile.weights) {
            ensure!(
                weight % period_ns == 0,
                "{weight} is no multiple of {period_ns}"
            );
            let frames = sample.iter().map(|index| file.shared.frames.get(*index));
            let mut stack = vec![process.to_owned()];
            for frame in frames {
                stack.push(frame.context("a frame index leads nowhere")?.name.clone());
            }
            stacks.add(stack, weight / period_ns);
        }
    }
    Ok(stacks)
}

/// The rectangles of a flame graph, by name: how many samples all those of a name have.
///
/// # Errors
/// When the picture has none.
pub fn rectangles(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string(path)?;
    let mut rectangles = BTreeMap::new();
    for title in text.split("<title>").skip(1) {
        let title = title.split("</title>").next().unwrap_or_default();
        let (name, rest) = title.rsplit_once(" (").with_context(|| title.to_owned())?;
        let count = rest
            .split(" samples")
            .next()
            .unwrap_or_default()
            .replace(',', "");
        let name = [
            ("&lt;", "<"),
            ("&gt;", ">"),
            ("&quot;", "\""),
            ("&amp;", "&"),
        ]
        .iter()
        .fold(name.to_owned(), |name, (entity, text)| {
            name.replace(entity, text)
        });
        let count: u64 = count.parse().with_context(|| title.to_owned())?;
        *rectangles.entry(name).or_default() += count;
    }
    if rectangles.is_empty() {
        bail!("there are no rectangles in {}", path.display());
    }
    Ok(rectangles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;
    use hotspan::export::{Options, format_of_name};

    fn file(format: &str, ending: &str) -> tempfile::TempPath {
        let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
        let write = format_of_name(format).unwrap().write;
        write(&synthetic::profile(), &Options::default(), &mut file).unwrap();
        file.into_temp_path()
    }

    #[test]
    fn all_formats_of_one_profile_have_the_same_stacks() {
        let folded = fs::read_to_string(file("folded", ".folded")).unwrap();
        let folded = Stacks::parse_folded(&folded).unwrap().without_marks();
        let pprof = of_pprof(&read_pprof(&file("pprof", ".pb.gz")).unwrap()).unwrap();
        let otlp = of_otlp(&read_otlp(&file("otlp", ".otlp")).unwrap()).unwrap();
        let json = of_otlp(&read_otlp(&file("otlp-json", ".otlp.json")).unwrap()).unwrap();
        let speedscope = of_speedscope(&file("speedscope", ".json"), 1_000_000_000 / 99).unwrap();
        assert_eq!(pprof, speedscope);
        assert_eq!(otlp, json);
        for stacks in [pprof, otlp, speedscope] {
            assert_eq!(stacks.total(), folded.total());
        }
        let rectangles = rectangles(&file("svg", ".svg")).unwrap();
        assert_eq!(rectangles["all"], folded.total());
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        let folded = file("folded", ".folded");
        assert!(read_pprof(&folded).is_err());
        assert!(read_otlp(&folded).is_err());
        assert!(of_speedscope(&folded, 1).is_err());
        assert!(rectangles(&folded).is_err());
    }
}
