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
    /// With a stack that reaches the thread's first function.
    pub rooted: f64,
    /// With a name for every frame.
    pub named: f64,
}

/// The samples of a folded profile, added up.
#[derive(Default)]
pub struct Depths {
    /// Samples.
    pub samples: u64,
    /// Frames in user space.
    pub user_frames: u64,
    /// Samples that were taken inside the kernel.
    pub kernel_samples: u64,
    /// Frames in the kernel.
    pub kernel_frames: u64,
}

impl Depths {
    /// Adds the lines `comm;root;…;leaf COUNT` of `folded`.
    pub fn add(&mut self, folded: &str) -> Result<()> {
        for line in folded.lines() {
            let (stack, count) = line.rsplit_once(' ').context("a folded line has a count")?;
            let count: u64 = count.parse().context("a folded line ends in a number")?;
            let frames = stack.split(';').skip(1);
            let kernel = frames.clone().filter(|f| f.ends_with("_[k]")).count() as u64;
            self.samples += count;
            self.kernel_frames += count * kernel;
            self.kernel_samples += if kernel > 0 { count } else { 0 };
            self.user_frames += count * (frames.count() as u64 - kernel);
        }
        Ok(())
    }
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
    fn frames_of_both_sides_are_counted_apart() {
        let mut depths = Depths::default();
        depths
            .add("a b;_start;main;burn 3\na b;main;read;vfs_read_[k] 2\n")
            .unwrap();
        assert_eq!(depths.samples, 5);
        assert_eq!(depths.user_frames, 3 * 3 + 2 * 2);
        assert_eq!((depths.kernel_samples, depths.kernel_frames), (2, 2));
    }

    #[test]
    fn sample_times_come_in_order() {
        let json = r#"{"resourceProfiles":[{"resource":{},"scopeProfiles":[{"profiles":[
            {"samples":[{"timestampsUnixNano":["30","10"]},{"timestampsUnixNano":["20"]}]}]}]}]}"#;
        assert_eq!(sample_times(json).unwrap(), [10, 20, 30]);
    }
}
