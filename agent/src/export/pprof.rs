//! pprof's `profile.proto`, gzipped, as `go tool pprof` and Pyroscope read it.
//!
//! Source: <https://github.com/google/pprof/blob/main/proto/profile.proto>. Sample types are
//! `samples/count` and `cpu/nanoseconds`; addresses are ELF addresses, so that a mapping is the
//! same in every process that uses the file. Labels are `pid`, `tid`, `comm` (the process name),
//! `thread`, and `trace_id` and `span_id` for samples that belong to a span.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::{Compression, GzBuilder};
use hotspan_proto::pprof::{
    Function, Label, Line, Location, Mapping, Message as _, Profile as Message, Sample, ValueType,
};
use indexmap::IndexMap;

use super::Options;
use crate::model::{
    self, Binary, BinaryIdx, FrameIdx, FrameKind, Profile, StackIdx, ThreadIdx, TraceLink,
};

/// File name of the mapping for code made at run time: perf's name for executable memory without
/// a file, which pprof tools know not to look for on disk.
pub const JIT_FILE: &str = "//anon";

/// Writes the profile as gzipped pprof.
pub fn write(profile: &Profile, _options: &Options, w: &mut dyn Write) -> io::Result<()> {
    let bytes = encode(profile).encode_to_vec();
    // Without a time stamp in the header, equal profiles are equal files.
    let mut gzip = GzBuilder::new().write(w, Compression::default());
    gzip.write_all(&bytes)?;
    gzip.finish()?;
    Ok(())
}

/// The profile as a message.
#[must_use]
pub fn encode(profile: &Profile) -> Message {
    let mut writer = Writer::new(profile);
    writer.mappings();
    writer.samples();
    writer.finish()
}

/// A sample's identity: its stack, and the labels it is told apart by.
type Identity = (StackIdx, ThreadIdx, Option<TraceLink>);

/// Name, name in the symbol table and source file, as string indices.
type FunctionKey = (i64, i64, i64);

struct Writer<'a> {
    profile: &'a Profile,
    message: Message,
    strings: IndexMap<String, i64>,
    functions: HashMap<FunctionKey, u64>,
    /// Location ids by frame, 0 for a frame without one yet.
    locations: Vec<u64>,
    /// First mapping id of each binary, 0 for none.
    binary_mappings: Vec<u64>,
    /// Mapping id of code made at run time, 0 for none.
    jit_mapping: u64,
    period_ns: i64,
}

impl<'a> Writer<'a> {
    fn new(profile: &'a Profile) -> Self {
        let mut writer = Self {
            profile,
            message: Message::default(),
            strings: IndexMap::new(),
            functions: HashMap::new(),
            locations: vec![0; profile.frames.len()],
            binary_mappings: vec![0; profile.binaries.len()],
            jit_mapping: 0,
            period_ns: 1_000_000_000 / i64::from(profile.rate_hz.max(1)),
        };
        writer.string("");
        let samples = writer.value_type("samples", "count");
        let cpu = writer.value_type("cpu", "nanoseconds");
        writer.message.sample_type = vec![samples, cpu.clone()];
        writer.message.period_type = Some(cpu);
        writer.message.period = writer.period_ns;
        writer.message.time_nanos = signed(profile.start_wall_ns);
        writer.message.duration_nanos = signed(profile.duration_ns);
        writer
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.strings.len() as i64;
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, ty: &str, unit: &str) -> ValueType {
        ValueType {
            ty: self.string(ty),
            unit: self.string(unit),
        }
    }

    /// One mapping per segment of each binary, the main binary first: tools take the first
    /// mapping for the program the profile is about.
    fn mappings(&mut self) {
        let profile = self.profile;
        let main = main_binary(profile);
        let others = (0..profile.binaries.len()).filter(|index| Some(*index) != main);
        for index in main.into_iter().chain(others) {
            let binary = &profile.binaries[index];
            self.binary_mappings[index] = self.message.mapping.len() as u64 + 1;
            self.binary(binary);
        }
        let is_jit = |frame: &model::Frame| frame.kind == FrameKind::Jit && frame.binary.is_none();
        if profile.frames.iter().any(is_jit) {
            let filename = self.string(JIT_FILE);
            self.jit_mapping = self.mapping(Mapping {
                filename,
                ..Mapping::default()
            });
        }
    }

    fn binary(&mut self, binary: &Binary) {
        let filename = self.string(&binary.path);
        let build_id = if binary.build_id.is_empty() {
            self.string(&binary.go_build_id)
        } else {
            self.string(&hex(&binary.build_id))
        };
        let bare = Mapping {
            filename,
            build_id,
            ..Mapping::default()
        };
        for segment in &binary.segments {
            self.mapping(Mapping {
                memory_start: segment.start,
                memory_limit: segment.end,
                file_offset: segment.file_offset,
                ..bare.clone()
            });
        }
        if binary.segments.is_empty() {
            self.mapping(bare);
        }
    }

    fn mapping(&mut self, mapping: Mapping) -> u64 {
        let id = self.message.mapping.len() as u64 + 1;
        self.message.mapping.push(Mapping { id, ..mapping });
        id
    }

    /// The mapping of the segment that holds `addr`; the binary's first one for an address
    /// outside all of them.
    fn mapping_of(&self, binary: BinaryIdx, addr: u64) -> u64 {
        let segments = &self.profile.binaries[binary.at()].segments;
        let segment = segments
            .iter()
            .position(|segment| (segment.start..segment.end).contains(&addr));
        self.binary_mappings[binary.at()] + segment.unwrap_or(0) as u64
    }

    fn samples(&mut self) {
        let threads = same_threads(self.profile);
        let mut counts: IndexMap<Identity, u64> = IndexMap::new();
        for sample in &self.profile.samples {
            let identity = (sample.stack, threads[sample.thread.at()], sample.link);
            *counts.entry(identity).or_default() += sample.count();
        }
        for ((stack, thread, link), count) in counts {
            let frames = &self.profile.stacks[stack.at()].frames;
            let location_id = frames.iter().map(|frame| self.location(*frame)).collect();
            let count = signed(count);
            let label = self.labels(thread, link);
            self.message.sample.push(Sample {
                location_id,
                value: vec![count, count.saturating_mul(self.period_ns)],
                label,
            });
        }
    }

    fn labels(&mut self, thread: ThreadIdx, link: Option<TraceLink>) -> Vec<Label> {
        let thread = &self.profile.threads[thread.at()];
        let process = &self.profile.processes[thread.process.at()];
        let mut labels = vec![
            self.number_label("pid", process.pid),
            self.number_label("tid", thread.tid),
            self.text_label("comm", &process.name),
            self.text_label("thread", &thread.name),
        ];
        if let Some(link) = link {
            labels.push(self.text_label("trace_id", &hex(&link.trace_id)));
            labels.push(self.text_label("span_id", &hex(&link.span_id)));
        }
        labels
    }

    fn number_label(&mut self, key: &str, number: u32) -> Label {
        Label {
            key: self.string(key),
            num: i64::from(number),
            ..Label::default()
        }
    }

    fn text_label(&mut self, key: &str, text: &str) -> Label {
        Label {
            key: self.string(key),
            str: self.string(text),
            ..Label::default()
        }
    }

    fn location(&mut self, index: FrameIdx) -> u64 {
        let known = self.locations[index.at()];
        if known != 0 {
            return known;
        }
        let frame = &self.profile.frames[index.at()];
        let mapping_id = match frame.binary {
            Some(binary) => self.mapping_of(binary, frame.addr),
            None if frame.kind == FrameKind::Jit => self.jit_mapping,
            None => 0,
        };
        let line = frame.lines.iter().map(|line| self.line(line)).collect();
        let mapping = (mapping_id as usize).checked_sub(1);
        if let Some(mapping) = mapping.and_then(|at| self.message.mapping.get_mut(at)) {
            mapping.has_functions = true;
            mapping.has_filenames |= frame.lines.iter().any(|line| line.file.is_some());
            mapping.has_line_numbers |= frame.lines.iter().any(|line| line.line != 0);
            mapping.has_inline_frames |= frame.lines.len() > 1;
        }
        let id = self.message.location.len() as u64 + 1;
        self.message.location.push(Location {
            id,
            mapping_id,
            address: frame.addr,
            line,
            is_folded: false,
        });
        self.locations[index.at()] = id;
        id
    }

    fn line(&mut self, line: &model::Line) -> Line {
        Line {
            function_id: self.function(line),
            line: i64::from(line.line),
        }
    }

    fn function(&mut self, line: &model::Line) -> u64 {
        // Where the symbol table's name is the same it stays unset: a name equal to it counts as
        // not demangled, and pprof then cuts everything in angle brackets out of it.
        let key = (
            self.string(&line.function),
            self.string(line.system_name.as_deref().unwrap_or("")),
            self.string(line.file.as_deref().unwrap_or("")),
        );
        let next = self.functions.len() as u64 + 1;
        let id = *self.functions.entry(key).or_insert(next);
        if id == next {
            self.message.function.push(Function {
                id,
                name: key.0,
                system_name: key.1,
                filename: key.2,
                start_line: 0,
            });
        }
        id
    }

    fn finish(mut self) -> Message {
        self.message.string_table = self.strings.into_keys().collect();
        self.message
    }
}

/// The executable of the process with the most samples.
fn main_binary(profile: &Profile) -> Option<usize> {
    let mut counts = vec![0; profile.processes.len()];
    for sample in &profile.samples {
        counts[profile.threads[sample.thread.at()].process.at()] += sample.count();
    }
    let mut processes: Vec<usize> = (0..counts.len()).collect();
    processes.sort_by_key(|process| std::cmp::Reverse(counts[*process]));
    processes.into_iter().find_map(|process| {
        let exe = profile.processes[process].exe.as_ref()?;
        profile.binaries.iter().position(|b| b.path == *exe)
    })
}

/// For each thread the first one with the same labels: a reused process id can bring a second.
fn same_threads(profile: &Profile) -> Vec<ThreadIdx> {
    let mut first = HashMap::new();
    let labels = |thread: &'_ model::Thread| {
        let process = &profile.processes[thread.process.at()];
        let names = (process.name.clone(), thread.name.clone());
        (process.pid, thread.tid, names)
    };
    (0..)
        .zip(&profile.threads)
        .map(|(index, thread)| *first.entry(labels(thread)).or_insert(ThreadIdx(index)))
        .collect()
}

/// pprof's integers are signed; no clock or count of ours comes near the border.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    fn text(message: &Message, index: i64) -> &str {
        &message.string_table[index as usize]
    }

    #[test]
    fn the_main_binary_comes_first_and_mappings_say_what_they_have() {
        let message = encode(&fixture::mixed());
        let main = &message.mapping[0];
        assert_eq!(text(&message, main.filename), "/usr/bin/api");
        assert_eq!(text(&message, main.build_id), "aa".repeat(20));
        assert_eq!((main.memory_start, main.memory_limit), (0x1000, 0x100_0000));
        assert!(main.has_functions && main.has_filenames);
        assert!(main.has_line_numbers && main.has_inline_frames);
        let libc = &message.mapping[2];
        assert_eq!(text(&message, libc.filename), "/lib/libc.so.6");
        assert!(libc.has_functions && !libc.has_filenames && !libc.has_inline_frames);
        let jit = message.mapping.last().unwrap();
        assert_eq!(text(&message, jit.filename), JIT_FILE);
    }

    #[test]
    fn samples_have_two_values_and_labels() {
        let message = encode(&fixture::mixed());
        let sample = &message.sample[0];
        assert_eq!(sample.value, [6, 60_000_000]);
        let labels: Vec<_> = sample
            .label
            .iter()
            .map(|l| (text(&message, l.key), text(&message, l.str), l.num))
            .collect();
        assert_eq!(
            labels,
            [
                ("pid", "", 100),
                ("tid", "", 100),
                ("comm", "api", 0),
                ("thread", "api", 0)
            ]
        );
    }

    #[test]
    fn lines_run_from_the_innermost_function_out() {
        let message = encode(&fixture::mixed());
        let leaf = message.sample[0].location_id[0];
        let location = &message.location[leaf as usize - 1];
        let lines: Vec<_> = location
            .line
            .iter()
            .map(|line| {
                let function = &message.function[line.function_id as usize - 1];
                (
                    text(&message, function.name),
                    text(&message, function.system_name),
                    line.line,
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                ("api::parse", "_R7", 7),
                ("core::iter::fold", "_R8", 8),
                ("api::serve", "_R9", 9)
            ]
        );
    }

    #[test]
    fn equal_stacks_and_labels_merge_and_links_keep_apart() {
        let mut profile = fixture::mixed();
        // The same thread on another CPU, a reused process id, and a sample of a span.
        let first = profile.samples[0].clone();
        profile.samples.push(model::Sample {
            cpu: 1,
            ..first.clone()
        });
        let mut twin = profile.threads[first.thread.at()].clone();
        profile
            .processes
            .push(profile.processes[twin.process.at()].clone());
        twin.process = model::ProcessIdx(profile.processes.len() as u32 - 1);
        profile.threads.push(twin);
        let thread = ThreadIdx(profile.threads.len() as u32 - 1);
        profile.samples.push(model::Sample {
            thread,
            ..first.clone()
        });
        let link = TraceLink {
            trace_id: [0xab; 16],
            span_id: [0xcd; 8],
        };
        profile.samples.push(model::Sample {
            link: Some(link),
            ..first
        });

        let message = encode(&profile);
        assert_eq!(message.sample.len(), 7);
        assert_eq!(message.sample[0].value[0], 18);
        let linked = &message.sample[6].label;
        assert_eq!(text(&message, linked[4].key), "trace_id");
        assert_eq!(text(&message, linked[4].str), "ab".repeat(16));
        assert_eq!(text(&message, linked[5].str), "cd".repeat(8));
    }

    #[test]
    fn equal_profiles_are_equal_files() {
        let file = || {
            let mut bytes = Vec::new();
            write(&fixture::mixed(), &Options::default(), &mut bytes).unwrap();
            bytes
        };
        assert_eq!(file(), file());
        assert_eq!(file()[..2], [0x1f, 0x8b]);
    }

    #[test]
    fn an_empty_profile_is_a_valid_file() {
        let message = encode(&Profile::default());
        assert_eq!(message.string_table[0], "");
        assert_eq!(message.sample_type.len(), 2);
    }
}
