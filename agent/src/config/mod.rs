//! The agent's settings as a file says them, in YAML.
//!
//! In: the text of a file. Out: [`File`]. A key that is not known is a mistake, not a wish: the error names it
//! and its line. What is not said stays `None`; the command line stands above the file.

use serde::Deserialize;

/// Everything that a file can say. The keys are the long options of `hotspan agent`, with `_` for `-`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Collector of all signals.
    pub otlp: Option<String>,
    /// Address that is scraped: `HOST:PORT`.
    pub prometheus: Option<String>,
    /// Samples per second and CPU.
    pub rate: Option<i64>,
    /// Length of a window of profiles, like `10s`.
    pub window: Option<String>,
    /// How often metrics are sent, like `10s`.
    pub metrics_interval: Option<String>,
    /// Whether there are profiles.
    pub profiles: Option<bool>,
    /// Whether system calls are counted.
    pub syscalls: Option<bool>,
    /// Whether waits, requests to disks and the like are counted in the kernel.
    pub events: Option<bool>,
    /// Series of each metric.
    pub series_budget: Option<usize>,
    /// Memory for unwind tables, like `64M`.
    pub unwind_memory: Option<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadFile(String);

/// Longest file: nobody writes settings of a megabyte.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

impl File {
    /// Reads the settings out of a text; an empty one says nothing.
    ///
    /// # Errors
    /// [`BadFile`], with the place in the text.
    pub fn parse(text: &str) -> Result<Self, BadFile> {
        let is_empty = text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---"
        });
        if is_empty {
            return Ok(Self::default());
        }
        serde_yaml_ng::from_str(text).map_err(|error| BadFile(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_command_line() {
        let text = "otlp: http://localhost:4317\nprometheus: 127.0.0.1:9464\nrate: 19\n\
                    window: 10s\nmetrics_interval: 15s\nprofiles: false\nsyscalls: true\nevents: false\n\
                    series_budget: 500\nunwind_memory: 32M\n";
        let file = File::parse(text).unwrap();
        assert_eq!(file.otlp.as_deref(), Some("http://localhost:4317"));
        assert_eq!((file.rate, file.series_budget), (Some(19), Some(500)));
        assert_eq!((file.profiles, file.syscalls), (Some(false), Some(true)));
        assert_eq!(file.events, Some(false));
        for text in ["", "# nothing\n", "---\n\n"] {
            assert_eq!(File::parse(text).unwrap(), File::default());
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        for (text, words) in [
            ("otlp: x\nwindw: 10s\n", ["windw", "line 2"]),
            ("rate: fast\n", ["rate", "line 1"]),
            ("rate: {19\n", ["rate", "line 1"]),
            ("- a\n- b\n", ["sequence", "File"]),
        ] {
            let error = File::parse(text).unwrap_err().to_string();
            assert!(
                words.iter().all(|word| error.contains(word)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn any_text_is_survived() {
        let mut seed = 7_u64;
        for _ in 0..2000 {
            let text: String = (0..40)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    b"otlp: &*!|>[]{}#\n\t-'\"%@0a"[(seed >> 33) as usize % 25] as char
                })
                .collect();
            let _ = File::parse(&text);
        }
        // Aliases that would grow to gigabytes.
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let (before, now) = ((b'a' + level - 1) as char, (b'a' + level) as char);
            bomb +=
                &format!("{now}: &{now} [*{before}, *{before}, *{before}, *{before}, *{before}]\n");
        }
        assert!(File::parse(&bomb).is_err());
    }
}
