//! Reads saved profiles back, in every format hotspan writes that holds one, whoever wrote it.
//!
//! In: the bytes of a file. Out: weighted folded stacks. What a file is, its content says and
//! not its name. Each reader returns `None` for bytes that are not its format, and the next one
//! looks; text comes last, because almost anything can pass for it.
//!
//! Files are hostile input. What is read, what it unpacks to and what its stacks unfold to are
//! bounded, indices out of range read as unknown, and weights below zero or not numbers count
//! nothing.
//!
//! To add a format: write `saved/NAME.rs` with a `parse` function, and give it a line in
//! `READERS`.

mod otlp;
mod pprof;
mod speedscope;
mod text;

use std::fs::File;
use std::io::{self, Read};

use super::flamegraph::thousands;
use super::folded::{self, ElementKind, Folded};

/// How large a file may be, packed and unpacked: a day of a busy host, and small enough to hold.
const MAX_BYTES: u64 = 128 << 20;
/// How much text stacks may unfold to. A stack of a few bytes can name the same long function a
/// million times.
const MAX_TEXT_BYTES: usize = 512 << 20;
/// How many elements of a stack are kept, from the root; more than any profiler unwinds.
const MAX_DEPTH: usize = 4096;
/// The largest sum of weights: the browser that shows the picture counts in doubles.
const MAX_TOTAL: u64 = 1 << 53;

/// Reads one format: `None` for bytes that are another one.
type Reader = fn(&[u8]) -> Result<Option<Saved>, Error>;

/// The readers, in the order they are asked.
const READERS: [Reader; 5] = [
    speedscope::parse,
    otlp::parse_json,
    pprof::parse,
    otlp::parse,
    text::parse,
];

/// A profile read from a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saved {
    /// The stacks.
    pub folded: Folded,
    /// What their weights count.
    pub unit: Unit,
    /// Length of the profile in nanoseconds, 0 when the file does not say.
    pub duration_ns: u64,
    /// CPU nanoseconds a sample stands for, 0 when the file does not say.
    pub period_ns: u64,
}

/// What the weights of a profile count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Samples.
    #[default]
    Samples,
    /// Nanoseconds.
    Nanoseconds,
    /// Anything else, under the name the file gives it.
    Other(String),
}

impl Unit {
    /// The unit of a value of this type (`samples`, `cpu`, `alloc_space`) and unit (`count`,
    /// `nanoseconds`, `bytes`), in the words of pprof and OTLP.
    fn of(ty: &str, unit: &str) -> Self {
        match (ty, unit) {
            ("samples" | "sample", "count") | ("", "") => Self::Samples,
            (_, "nanoseconds" | "ns") => Self::Nanoseconds,
            (ty, "count" | "") => Self::Other(ty.to_owned()),
            (_, unit) => Self::Other(unit.to_owned()),
        }
    }
}

impl Saved {
    /// What is known of the profile, in one line: `10.0 s at 99 Hz · 1,234 samples`.
    #[must_use]
    pub fn facts(&self) -> String {
        let mut facts = String::new();
        if self.duration_ns > 0 {
            facts.push_str(&format!("{:.1} s", self.duration_ns as f64 / 1e9));
            if self.period_ns > 0 {
                facts.push_str(&format!(" at {:.0} Hz", 1e9 / self.period_ns as f64));
            }
            facts.push_str(" · ");
        }
        facts.push_str(&self.amount());
        facts
    }

    /// The sum of the weights with its unit: `1,234 samples`, `3.5 s`.
    #[must_use]
    pub fn amount(&self) -> String {
        let total = self.folded.total();
        match &self.unit {
            Unit::Samples => format!("{} samples", thousands(total)),
            Unit::Nanoseconds => format!("{:.2} s", total as f64 / 1e9),
            Unit::Other(unit) => format!("{} {unit}", thousands(total)),
        }
    }
}

/// Why a file could not be read as a profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The gzip data breaks off or is damaged.
    #[error("its gzip data is damaged; record or copy it again")]
    DamagedGzip,
    /// The file, or what it unfolds to, is beyond what is read.
    #[error(
        "it unfolds to more than hotspan reads ({} MiB of file, {} MiB of stacks); record for a \
         shorter time",
        MAX_BYTES >> 20,
        MAX_TEXT_BYTES >> 20
    )]
    TooLarge,
    /// The sum of the weights is beyond what a picture can show.
    #[error("its numbers add up to more than a flame graph can count (2^53)")]
    TooMuch,
    /// A profile without a single sample.
    #[error("it holds no samples; profile something that uses CPU time")]
    Empty,
    /// A picture.
    #[error(
        "it is a picture; give the profile it was drawn from (record with -o FILE.pb.gz to keep one)"
    )]
    Picture,
    /// What `perf record` writes.
    #[error(
        "it is perf's raw data; run `perf script | stackcollapse-perf.pl --kernel` on it first"
    )]
    PerfData,
    /// speedscope's other kind of profile.
    #[error("it is a speedscope file of events; only sampled profiles can be read")]
    Evented,
    /// Nothing known.
    #[error(
        "it is no profile; hotspan reads pprof, folded stacks, OTLP profiles and speedscope files"
    )]
    NotAProfile,
}

/// Reads a profile from a file, or from standard input for `-`.
///
/// # Errors
/// When the file cannot be read, is too large, or holds no profile.
pub fn read(path: &str) -> Result<Saved, Error> {
    match path {
        "-" => parse(&read_bounded(io::stdin().lock())?),
        path => parse(&read_bounded(File::open(path)?)?),
    }
}

/// Reads a profile from the bytes of a file.
///
/// # Errors
/// As for [`read`].
pub fn parse(bytes: &[u8]) -> Result<Saved, Error> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return parse_plain(bytes);
    }
    let unpacked = read_bounded(flate2::read::MultiGzDecoder::new(bytes));
    parse_plain(&unpacked.map_err(|error| match error {
        Error::Io(_) => Error::DamagedGzip,
        error => error,
    })?)
}

fn read_bounded(source: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    source.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge);
    }
    Ok(bytes)
}

fn parse_plain(bytes: &[u8]) -> Result<Saved, Error> {
    if bytes.starts_with(b"PERFILE2") {
        return Err(Error::PerfData);
    }
    let start = bytes.trim_ascii_start();
    if start.starts_with(b"<?xml") || start.starts_with(b"<svg") {
        return Err(Error::Picture);
    }
    for reader in READERS {
        if let Some(saved) = reader(bytes)? {
            return match saved.folded.stacks.is_empty() {
                true => Err(Error::Empty),
                false => Ok(saved),
            };
        }
    }
    Err(Error::NotAProfile)
}

/// Folded stacks in the making, within the bounds.
#[derive(Default)]
struct Stacks {
    folded: Folded,
    text_bytes: usize,
    total: u64,
}

impl Stacks {
    /// Elements of a frame from its functions' names, innermost first.
    fn frame(&mut self, module: Module<'_>, names: &[&str]) -> Result<String, Error> {
        self.spend(names.iter().map(|name| name.len() + 4).sum())?;
        let Some((last, inlined)) = names.split_last() else {
            return Ok(String::new());
        };
        let (last, mark) = ElementKind::split_mark(last);
        let kind = match module {
            Module::Known(kind) => kind,
            Module::Named(file) => mark
                .or(kind_of_file(file))
                .unwrap_or_else(|| ElementKind::guess(last)),
        };
        let names = inlined.iter().map(|name| ElementKind::split_mark(name).0);
        let names: Vec<&str> = names.chain([last]).collect();
        Ok(self.folded.frame(kind, names.into_iter()))
    }

    /// Adds weight to the stack that these elements make, from the root.
    fn add<'a>(
        &mut self,
        elements: impl Iterator<Item = &'a str>,
        weight: u64,
    ) -> Result<(), Error> {
        if weight == 0 {
            return Ok(());
        }
        self.total = self.total.saturating_add(weight);
        if self.total > MAX_TOTAL {
            return Err(Error::TooMuch);
        }
        let mut stack = String::new();
        for element in elements {
            self.spend(element.len() + 1)?;
            folded::append(&mut stack, element);
        }
        if stack.is_empty() {
            stack = self.folded.frame(ElementKind::Note, [""].into_iter());
        }
        if let Some((end, _)) = stack.match_indices(';').nth(MAX_DEPTH - 1) {
            stack.truncate(end);
            let note = self
                .folded
                .frame(ElementKind::Note, ["[truncated]"].into_iter());
            folded::append(&mut stack, &note);
        }
        self.folded.add(stack, weight);
        Ok(())
    }

    fn spend(&mut self, text_bytes: usize) -> Result<(), Error> {
        self.text_bytes = self.text_bytes.saturating_add(text_bytes);
        match self.text_bytes > MAX_TEXT_BYTES {
            true => Err(Error::TooLarge),
            false => Ok(()),
        }
    }
}

/// What a file says of where a frame lies.
#[derive(Clone, Copy)]
enum Module<'a> {
    /// The kind of the frame itself.
    Known(ElementKind),
    /// The name of the mapped file, empty for none.
    Named(&'a str),
}

/// The kind of every frame in a mapping with this file name, in the words of hotspan and perf.
fn kind_of_file(file: &str) -> Option<ElementKind> {
    const USER: [&str; 5] = ["[vdso", "[vsyscall", "[heap", "[stack", "[anon"];
    let is_user = USER.iter().any(|start| file.starts_with(start));
    if file == super::pprof::JIT_FILE {
        Some(ElementKind::Jit)
    } else if (file.starts_with('[') && !is_user) || file.ends_with(".ko") {
        Some(ElementKind::Kernel)
    } else {
        None
    }
}

/// The last component of a path.
fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("")
}

/// Which of several value types to draw: samples when they were counted, because every format
/// has them; else what the file says, else the last, as `go tool pprof` does.
fn choose_type(types: &[Unit], default: Option<usize>) -> Option<usize> {
    let samples = types.iter().position(|unit| *unit == Unit::Samples);
    samples
        .or(default.filter(|index| *index < types.len()))
        .or(types.len().checked_sub(1))
}

#[cfg(test)]
mod tests;
