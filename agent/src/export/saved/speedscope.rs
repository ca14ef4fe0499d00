//! speedscope's JSON with sampled profiles.

use serde::Deserialize;

use super::{Error, Module, Saved, Stacks, Unit};
use crate::export::speedscope::PID;

#[derive(Deserialize)]
struct File {
    shared: Shared,
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Shared {
    frames: Vec<Frame>,
}

#[derive(Deserialize)]
struct Frame {
    name: String,
    #[serde(default)]
    file: Option<String>,
}

#[derive(Deserialize)]
struct Profile {
    r#type: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    samples: Vec<Vec<usize>>,
    #[serde(default)]
    weights: Vec<f64>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Option<Saved>, Error> {
    let Ok(file) = serde_json::from_slice::<File>(bytes) else {
        return Ok(None);
    };
    if file.profiles.iter().any(|p| p.r#type != "sampled") {
        return Err(Error::Evented);
    }
    let mut stacks = Stacks::default();
    let mut frames = Vec::new();
    for frame in &file.shared.frames {
        let module = Module::Named(frame.file.as_deref().unwrap_or(""));
        frames.push(stacks.frame(module, &[&frame.name])?);
    }
    let (unit, _) = file.profiles.first().map_or_else(Default::default, unit);
    for profile in file.profiles.iter().filter(|p| self::unit(p).0 == unit) {
        let root = root(&mut stacks, profile);
        let (_, factor) = self::unit(profile);
        for (sample, weight) in runs(profile) {
            let frames = sample.iter().filter_map(|i| Some(frames.get(*i)?.as_str()));
            // Weights below zero and those that are not numbers become zero.
            let weight = (weight * factor).round() as u64;
            stacks.add([root.as_str()].into_iter().chain(frames), weight)?;
        }
    }
    Ok(Some(Saved {
        folded: stacks.folded,
        unit,
        ..Saved::default()
    }))
}

/// The unit of a profile, and what its weights are multiplied with to get there.
fn unit(profile: &Profile) -> (Unit, f64) {
    match profile.unit.as_str() {
        "nanoseconds" => (Unit::Nanoseconds, 1.0),
        "microseconds" => (Unit::Nanoseconds, 1e3),
        "milliseconds" => (Unit::Nanoseconds, 1e6),
        "seconds" => (Unit::Nanoseconds, 1e9),
        "none" | "" => (Unit::Samples, 1.0),
        other => (Unit::Other(other.to_owned()), 1.0),
    }
}

/// The distinct stacks of a profile, each with the sum of its weights.
fn runs(profile: &Profile) -> impl Iterator<Item = (&[usize], f64)> {
    let mut sums: std::collections::BTreeMap<&[usize], f64> = Default::default();
    for (at, sample) in profile.samples.iter().enumerate() {
        let weight = profile.weights.get(at).copied().unwrap_or(1.0);
        *sums.entry(sample).or_default() += weight.max(0.0);
    }
    sums.into_iter()
}

/// The profile's name as the first element, without the process id that hotspan appends.
fn root(stacks: &mut Stacks, profile: &Profile) -> String {
    let name = match profile.name.rsplit_once(PID) {
        Some((name, _)) => name,
        None => &profile.name,
    };
    match name {
        "" => String::new(),
        name => stacks.folded.process(name),
    }
}
