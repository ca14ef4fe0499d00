//! Writers of finished profiles and metrics: one file per format or destination.
//!
//! In: a [`crate::model::Profile`], or [`crate::model::Metric`]s. Out: bytes, or a request to a collector. Exporters do no
//! symbolization and know nothing of how the profile was captured.
//!
//! To add a format: write `export/NAME.rs` with a `write` function, and give it a line in
//! [`FORMATS`]. Nothing else changes.

#[cfg(test)]
mod fixture;
pub mod flamegraph;
pub mod folded;
pub mod otlp_metrics;
pub mod otlp_profiles;
pub mod otlp_send;
pub mod pprof;
pub mod prometheus;
pub mod queue;
pub mod saved;
pub mod speedscope;
pub mod summary;

use std::io::{self, Write};

use crate::model::Profile;

/// A file format a profile can be written in.
pub struct Format {
    /// What `--format` calls it.
    pub name: &'static str,
    /// File name endings that select it, longest first where one ends with another.
    pub extensions: &'static [&'static str],
    /// Writes a whole profile.
    pub write: fn(&Profile, &Options, &mut dyn Write) -> io::Result<()>,
}

/// Every format, in the order `--help` shows them.
pub const FORMATS: &[Format] = &[
    Format {
        name: "svg",
        extensions: &[".svg"],
        write: flamegraph::write,
    },
    Format {
        name: "folded",
        extensions: &[".folded", ".txt"],
        write: folded::write,
    },
    Format {
        name: "pprof",
        extensions: &[".pb.gz", ".pprof"],
        write: pprof::write,
    },
    Format {
        name: "otlp",
        extensions: &[".otlp"],
        write: otlp_profiles::write,
    },
    Format {
        name: "otlp-json",
        extensions: &[".otlp.json"],
        write: otlp_profiles::write_json,
    },
    Format {
        name: "speedscope",
        extensions: &[".speedscope.json"],
        write: speedscope::write,
    },
];

/// How stacks are laid out in a file, beside what the profile says.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Give each thread a tower of its own: a `thread-name/tid` element after the process name.
    pub per_thread: bool,
    /// Title of pictures.
    pub title: String,
}

/// The format whose extension `path` ends with, ignoring case.
#[must_use]
pub fn format_of_path(path: &str) -> Option<&'static Format> {
    let path = path.to_ascii_lowercase();
    FORMATS
        .iter()
        .find(|format| format.extensions.iter().any(|ext| path.ends_with(ext)))
}

/// The format called `name`.
#[must_use]
pub fn format_of_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}
