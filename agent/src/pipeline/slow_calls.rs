//! The slowest system calls, with the stacks that they were made from.
//!
//! In: which tasks, and how many of each system call. Out: calls, the slowest first. It is a recording whose
//! samples are taken when a slow call returns.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use tokio::process::{Child, Command};

use super::{EARLY_PATIENCE, EndSignals, Plan as RecordingPlan, Recording};
use crate::{
    aggregate::clock::now_mono_ns,
    capture::{DEFAULT_TABLE_BYTES, Settings},
    decode::syscalls::syscall_name,
    model::SlowCall,
};

/// What was found.
pub struct Slowest {
    /// The slowest first.
    pub calls: Vec<SlowCall>,
    /// What was lost, by reason.
    pub lost: BTreeMap<&'static str, u64>,
}

/// Looking for them.
pub struct SlowCalls {
    recording: Recording,
    of_each: u32,
}

impl SlowCalls {
    /// Loads the programs and starts to look.
    ///
    /// # Errors
    /// When the kernel refuses anything.
    pub fn start(plan: &super::syscalls::Plan, of_each: u32) -> Result<Self> {
        let mut recording = Recording::prepare(RecordingPlan {
            settings: Settings {
                slowest: Some(of_each),
                ..plan.settings.clone()
            },
            pids: plan.pids.clone(),
            follow_children: plan.follow_children,
            name_filter: None,
            with_lines: false,
            table_bytes: DEFAULT_TABLE_BYTES,
            table_cache: None,
        })?;
        recording.start()?;
        Ok(Self { recording, of_each })
    }

    /// Starts the command whose calls are looked at.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn launch(&mut self, command: &mut Command) -> Result<Child> {
        self.recording.launch(command)
    }

    /// Takes in what is told, until this is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn run(&mut self) -> Result<()> {
        // Whoever waits for this as well ends both.
        let mut signals = EndSignals::listen()?;
        self.recording.run(None, &mut signals, None, |_| ()).await?;
        std::future::pending().await
    }

    /// The slowest calls of each system call, all together the slowest first, and what was lost of them.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn finish(mut self) -> Result<Slowest> {
        self.recording.read();
        let profile = self.recording.profile(now_mono_ns(), EARLY_PATIENCE)?;
        let samples = self.recording.samples.times_mono_ns.iter();
        // Samples of the profile are in the order in which they were aggregated.
        let sample_at: HashMap<_, _> = samples
            .zip(&profile.samples)
            .flat_map(|((key, times), sample)| {
                let cpu = key.cpu;
                times.iter().map(move |time| ((cpu, *time), sample))
            })
            .collect();
        let mut told = std::mem::take(&mut self.recording.slow_calls);
        told.sort_by_key(|call| std::cmp::Reverse(call.duration_ns));
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        told.retain(|call| {
            let count = counts.entry(call.number).or_default();
            *count += 1;
            *count <= self.of_each
        });
        let calls = told.into_iter().filter_map(|call| {
            let sample = sample_at.get(&(call.cpu, call.header.time_mono_ns))?;
            let thread = &profile.threads[sample.thread.at()];
            let process = profile.process_of(sample);
            let frames = profile.stack_frames(sample.stack).rev();
            let lines = frames.flat_map(|frame| frame.lines.iter().rev());
            Some(SlowCall {
                syscall: syscall_name(call.number).into_owned(),
                duration_ns: call.duration_ns,
                pid: process.pid,
                tid: thread.tid,
                process: process.name.to_string(),
                thread: thread.name.to_string(),
                stack: lines.map(|line| line.function.to_string()).collect(),
            })
        });
        let mut lost = profile.quality.lost.clone();
        // There is no clock whose ticks could be missed.
        lost.remove("ticks_missed");
        Ok(Slowest {
            calls: calls.collect(),
            lost,
        })
    }
}
