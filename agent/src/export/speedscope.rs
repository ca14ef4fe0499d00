//! speedscope's JSON, for <https://www.speedscope.app> and editors that embed it.
//!
//! Source: <https://www.speedscope.app/file-format-schema.json>. One sampled profile per process,
//! the busiest first, because the left-heavy view does not merge profiles and the work of one
//! program is spread over its threads; with [`Options::per_thread`] one per thread. Samples are
//! in the order they were taken; weights are nanoseconds of CPU time.

use std::collections::HashMap;
use std::io::{self, Write};

use serde::Serialize;

use super::Options;
use super::pprof::JIT_FILE;
use crate::model::{Frame, FrameKind, Profile, StackIdx};

/// The schema's address, which also marks a file as speedscope's.
pub const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: String,
    name: &'a str,
    active_profile_index: usize,
    shared: Shared<'a>,
    profiles: Vec<Sampled>,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Function<'a>>,
}

/// A function. speedscope tells frames apart by every field, so a line per address would split
/// a function into as many rows; the line is the first one that has samples.
#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Sampled {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Stacks, root first.
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// Writes the profile as speedscope JSON.
pub fn write(profile: &Profile, options: &Options, w: &mut dyn Write) -> io::Result<()> {
    let mut functions = Functions::default();
    let frames: Vec<Vec<usize>> = profile
        .frames
        .iter()
        .map(|frame| functions.of_frame(profile, frame))
        .collect();
    let mut profiles: Vec<Sampled> = timelines(profile, options)
        .into_values()
        .map(|timeline| timeline.sampled(profile, &frames))
        .collect();
    profiles.sort_by(|a, b| b.end_value.cmp(&a.end_value).then(a.name.cmp(&b.name)));
    let file = File {
        schema: SCHEMA,
        exporter: format!("hotspan@{}", env!("CARGO_PKG_VERSION")),
        name: match options.title.as_str() {
            "" => "hotspan",
            title => title,
        },
        active_profile_index: 0,
        shared: Shared {
            frames: functions.list,
        },
        profiles,
    };
    serde_json::to_writer(w, &file)?;
    Ok(())
}

#[derive(Default)]
struct Functions<'a> {
    list: Vec<Function<'a>>,
    index: HashMap<(&'a str, Option<&'a str>), usize>,
}

impl<'a> Functions<'a> {
    /// The functions of a frame, outermost first.
    fn of_frame(&mut self, profile: &'a Profile, frame: &'a Frame) -> Vec<usize> {
        let binary = match frame.binary {
            Some(index) => Some(&*profile.binaries[index.at()].path),
            None => (frame.kind == FrameKind::Jit).then_some(JIT_FILE),
        };
        let lines = frame.lines.iter().rev();
        lines
            .map(|line| {
                let file = line.file.as_deref().or(binary);
                let number = (line.file.is_some() && line.line != 0).then_some(line.line);
                self.function(&line.function, file, number)
            })
            .collect()
    }

    fn function(&mut self, name: &'a str, file: Option<&'a str>, line: Option<u32>) -> usize {
        let next = self.list.len();
        let at = *self.index.entry((name, file)).or_insert(next);
        match self.list.get_mut(at) {
            Some(known) => known.line = known.line.into_iter().chain(line).min(),
            None => self.list.push(Function { name, file, line }),
        }
        at
    }
}

/// The samples of one process or thread.
struct Timeline {
    name: String,
    samples: Vec<(u64, StackIdx)>,
}

fn timelines(profile: &Profile, options: &Options) -> HashMap<u32, Timeline> {
    let mut timelines = HashMap::new();
    for sample in &profile.samples {
        let thread = &profile.threads[sample.thread.at()];
        let process = &profile.processes[thread.process.at()];
        let (key, name) = match options.per_thread {
            true => (
                sample.thread.0,
                format!("{}: {}/{}", process.name, thread.name, thread.tid),
            ),
            false => (thread.process.0, process.name.to_string()),
        };
        let timeline = timelines.entry(key).or_insert_with(|| Timeline {
            name: format!("{name}{PID}{})", process.pid),
            samples: Vec::new(),
        });
        let times = sample.timestamps_wall_ns.iter();
        timeline
            .samples
            .extend(times.map(|time| (*time, sample.stack)));
    }
    timelines
}

/// What stands between the process name and the process id in a profile's name.
pub const PID: &str = " (pid ";

impl Timeline {
    fn sampled(mut self, profile: &Profile, frames: &[Vec<usize>]) -> Sampled {
        let period_ns = 1_000_000_000 / u64::from(profile.rate_hz.max(1));
        self.samples.sort_unstable();
        let (mut samples, mut weights) = (Vec::new(), Vec::new());
        for run in self.samples.chunk_by(|a, b| a.1 == b.1) {
            let stack = profile.stacks[run[0].1.at()].frames.iter().rev();
            samples.push(stack.flat_map(|f| frames[f.at()].iter().copied()).collect());
            weights.push(run.len() as u64 * period_ns);
        }
        Sampled {
            r#type: "sampled",
            name: self.name,
            unit: "nanoseconds",
            start_value: 0,
            end_value: weights.iter().sum(),
            samples,
            weights,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;
    use serde_json::{Value, json};

    fn file(per_thread: bool) -> Value {
        let options = Options {
            per_thread,
            ..Options::default()
        };
        let mut bytes = Vec::new();
        write(&fixture::mixed(), &options, &mut bytes).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn there_is_one_profile_per_process_the_busiest_first() {
        let file = file(false);
        assert_eq!(file["$schema"], SCHEMA);
        let names: Vec<_> = file["profiles"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (p["name"].as_str().unwrap(), p["endValue"].as_u64().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ("api (pid 100)", 120_000_000),
                ("gosrv (pid 300)", 50_000_000),
                ("node (pid 200)", 40_000_000)
            ]
        );
    }

    #[test]
    fn samples_run_in_time_with_weights_in_nanoseconds() {
        let file = file(true);
        let worker = &file["profiles"][2];
        assert_eq!(worker["name"], "api: worker 1/101 (pid 100)");
        assert_eq!(worker["weights"], json!([10_000_000, 30_000_000]));
        let frames = file["shared"]["frames"].as_array().unwrap();
        let stack: Vec<_> = worker["samples"][0]
            .as_array()
            .unwrap()
            .iter()
            .map(|frame| frames[frame.as_u64().unwrap() as usize].clone())
            .collect();
        assert_eq!(
            stack[2..],
            [
                json!({"name": "api::serve", "file": "src/main.rs", "line": 9}),
                json!({"name": "core::iter::fold", "file": "src/main.rs", "line": 8}),
                json!({"name": "api::parse", "file": "src/main.rs", "line": 7}),
            ]
        );
        assert_eq!(stack[0], json!({"name": "_start", "file": "/usr/bin/api"}));
    }

    #[test]
    fn a_function_is_one_frame_with_its_first_line() {
        let mut functions = Functions::default();
        assert_eq!(functions.function("f", Some("a.c"), Some(9)), 0);
        assert_eq!(functions.function("f", Some("a.c"), None), 0);
        assert_eq!(functions.function("f", Some("a.c"), Some(7)), 0);
        assert_eq!(functions.function("f", Some("b.c"), Some(1)), 1);
        assert_eq!(functions.list[0].line, Some(7));
    }
}
