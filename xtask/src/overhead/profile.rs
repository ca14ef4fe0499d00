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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceProfiles {
    scope_profiles: Vec<ScopeProfiles>,
}

#[derive(Deserialize)]
struct ScopeProfiles {
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sample {
    timestamps_unix_nano: Vec<String>,
}

/// When each sample of an OTLP profile in JSON was taken, in nanoseconds since 1970, in order.
pub fn sample_times(otlp_json: &str) -> Result<Vec<u64>> {
    let request: Request =
        serde_json::from_str(otlp_json).context("hotspan wrote no OTLP profile in JSON")?;
    let mut times = request
        .resource_profiles
        .iter()
        .flat_map(|resource| &resource.scope_profiles)
        .flat_map(|scope| &scope.profiles)
        .flat_map(|profile| &profile.samples)
        .flat_map(|sample| &sample.timestamps_unix_nano)
        .map(|time| time.parse())
        .collect::<Result<Vec<u64>, _>>()
        .context("a sample's time is no number")?;
    times.sort_unstable();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_times_come_in_order() {
        let json = r#"{"resourceProfiles":[{"resource":{},"scopeProfiles":[{"profiles":[
            {"samples":[{"timestampsUnixNano":["30","10"]},{"timestampsUnixNano":["20"]}]}]}]}]}"#;
        assert_eq!(sample_times(json).unwrap(), [10, 20, 30]);
    }
}
