//! The short story of a profile: its hottest functions and how good it is, as text and as JSON.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::model::{FrameKind, Profile};

/// A function and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hot {
    /// Name of the function.
    pub function: String,
    /// File name of the binary it is in, `[kernel]` and the like; empty for code made at run time.
    pub module: String,
    /// Samples in the function itself.
    #[serde(rename = "self")]
    pub own: u64,
    /// Samples in the function or what it called.
    pub total: u64,
}

/// What `record --json` prints: other programs read it, so fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Summary<'a> {
    /// Length of the recording in seconds.
    pub duration_s: f64,
    /// Samples per second and CPU.
    pub rate_hz: u32,
    /// How good the capture was.
    pub samples: Counts<'a>,
    /// The hottest functions, most samples of their own first.
    pub top: Vec<Hot>,
    /// Files that were written.
    pub files: Vec<String>,
}

/// Samples expected, kept and lost.
#[derive(Debug, Serialize)]
pub struct Counts<'a> {
    /// Rate × CPU time of the targets, rounded.
    pub expected: u64,
    /// Samples in the profile.
    pub kept: u64,
    /// Kept samples whose stack reaches the thread's first function.
    pub rooted: u64,
    /// Kept samples whose every frame has a name.
    pub named: u64,
    /// Samples lost, by reason.
    pub lost: &'a BTreeMap<&'static str, u64>,
    /// Kept samples whose stack is cut, by reason.
    pub cut: &'a BTreeMap<&'static str, u64>,
}

impl<'a> Summary<'a> {
    /// The summary of a profile, with its `top` hottest functions.
    #[must_use]
    pub fn new(profile: &'a Profile, top: usize, files: Vec<String>) -> Self {
        let quality = &profile.quality;
        Self {
            duration_s: (profile.duration_ns as f64 / 1e6).round() / 1e3,
            rate_hz: profile.rate_hz,
            samples: Counts {
                expected: quality.expected.round() as u64,
                kept: quality.kept,
                rooted: quality.rooted,
                named: quality.named,
                lost: &quality.lost,
                cut: &quality.cut,
            },
            top: hottest(profile, top),
            files,
        }
    }

    /// The summary for a person.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let share = |count: u64| 100.0 * count as f64 / self.samples.kept.max(1) as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "   self   total  function");
        for hot in &self.top {
            let (own, total) = (share(hot.own), share(hot.total));
            let module = if hot.module.is_empty() { "" } else { "  " };
            let function = shorten(&hot.function, 80);
            let place = shorten(&hot.module, 40);
            let _ = writeln!(text, "{own:6.1}% {total:6.1}%  {function}{module}{place}");
        }
        let Counts {
            expected,
            kept,
            rooted,
            named,
            lost,
            cut,
        } = &self.samples;
        let _ = write!(
            text,
            "{kept} samples of {expected} expected in {:.1} s at {} Hz; {:.1}% rooted, {:.1}% named",
            self.duration_s,
            self.rate_hz,
            share(*rooted),
            share(*named),
        );
        let _ = write!(text, "; lost: {}", reasons(lost));
        if !cut.is_empty() {
            let _ = write!(text, "; cut: {}", reasons(cut));
        }
        text.push('\n');
        text
    }
}

fn reasons(counts: &BTreeMap<&'static str, u64>) -> String {
    if counts.is_empty() {
        return "none".into();
    }
    let each: Vec<_> = counts
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    each.join(", ")
}

/// A name as a terminal may see it: programs choose the names of their functions, and control
/// characters in them would be commands.
fn shorten(name: &str, most: usize) -> String {
    let name = &name.replace(char::is_control, "?");
    match name.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn hottest(profile: &Profile, top: usize) -> Vec<Hot> {
    let mut counts: FxHashMap<(&str, &str), (u64, u64)> = FxHashMap::default();
    let mut seen = HashSet::new();
    for sample in &profile.samples {
        seen.clear();
        let mut is_leaf = true;
        for frame in profile.stack_frames(sample.stack) {
            if frame.kind == FrameKind::Note {
                continue;
            }
            let module = frame
                .binary
                .map_or("", |binary| profile.binaries[binary.at()].name());
            for line in &frame.lines {
                let key = (&*line.function, module);
                let count = counts.entry(key).or_default();
                if std::mem::take(&mut is_leaf) {
                    count.0 += sample.count();
                }
                // A recursive function is in the sample once.
                if seen.insert(key) {
                    count.1 += sample.count();
                }
            }
        }
    }
    let mut hot: Vec<_> = counts.into_iter().collect();
    hot.sort_by(|(a_key, a), (b_key, b)| b.cmp(a).then(a_key.cmp(b_key)));
    hot.truncate(top);
    hot.into_iter()
        .map(|((function, module), (own, total))| Hot {
            function: function.into(),
            module: module.into(),
            own,
            total,
        })
        .collect()
}
