//! Samples that came before the tables for their stacks.
//!
//! In: a sample, the copy of its stack that the kernel side sent along, and where the process had its
//! mappings then. Out, once the tables are there: the sample with the stack it really had.

use std::{collections::VecDeque, sync::Arc};

use hotspan_abi::records::{SampleHeader, StopReason};
use rustc_hash::FxHashMap;

use super::tables::TableLoader;
use crate::{
    capture::TableMaps,
    decode::record::{Sample, Snapshot},
    model::ProcessId,
    process::{Binaries, Mappings},
    unwind::{
        replay,
        stack_copy::{Pieces, StackCopy},
    },
};

/// The stacks of all samples that wait have this many words at most, equal ones counted once: 16 MiB.
const MAX_WORDS: usize = 2 << 20;

/// More samples do not wait.
const MAX_WAITING: usize = 4096;

/// A sample waits this long at most. The tables of the largest binaries take about as long.
const PATIENCE_NS: u64 = 3_000_000_000;

/// A sample that waits, or has waited, for tables.
pub struct EarlySample {
    /// The fixed part.
    pub header: SampleHeader,
    /// The life of the process that it is of.
    pub process: ProcessId,
    /// Kernel addresses, leaf first.
    pub kernel: Vec<u64>,
    /// User addresses, leaf first: at first what the kernel side found.
    pub user: Vec<u64>,
    /// Why the user part ends.
    pub stop: StopReason,
    /// The mappings of the process when the sample was taken.
    pub mappings: Arc<Mappings>,
    stack: StackCopy,
    /// The request to look at code that the stack leads to.
    request: u64,
}

/// All that wait, the oldest first.
#[derive(Default)]
pub struct EarlySamples {
    /// The stack that was copied last, and when, by CPU.
    stacks: FxHashMap<u32, (u64, StackCopy)>,
    pieces: Pieces,
    waiting: VecDeque<EarlySample>,
}

impl EarlySamples {
    /// Takes in a part of what was copied of a stack; its sample is the next one of the same CPU.
    pub fn add_stack(&mut self, snapshot: &Snapshot<'_>) {
        let header = &snapshot.header;
        let words: Vec<_> = snapshot.words().collect();
        let pieces = &mut self.pieces;
        let time_mono_ns = header.header.time_mono_ns;
        match self.stacks.get_mut(&header.cpu) {
            Some((time, stack)) if *time == time_mono_ns => stack.add(header, &words, pieces),
            _ => {
                let stack = StackCopy::new(header, &words, pieces);
                self.stacks.insert(header.cpu, (time_mono_ns, stack));
            }
        }
    }

    /// The copy of the stack of a sample, if one was sent along.
    pub fn take_stack(&mut self, sample: &Sample<'_>) -> Option<StackCopy> {
        if self.stacks.is_empty() {
            return None;
        }
        let (time_mono_ns, stack) = self.stacks.remove(&sample.header.cpu)?;
        (time_mono_ns == sample.header.header.time_mono_ns).then_some(stack)
    }

    /// Lets a sample wait for tables.
    pub fn push(
        &mut self,
        sample: &Sample<'_>,
        process: ProcessId,
        mappings: Arc<Mappings>,
        stack: StackCopy,
        request: u64,
    ) {
        self.waiting.push_back(EarlySample {
            header: sample.header,
            process,
            kernel: sample.kernel_frames().collect(),
            user: sample.user_frames().collect(),
            stop: sample.stop,
            mappings,
            stack,
            request,
        });
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out the samples that need not wait any longer at `now_mono_ns`, with the best stack there is.
    pub fn take_ready(
        &mut self,
        tables: &mut TableLoader,
        binaries: &Binaries,
        maps: &TableMaps,
        now_mono_ns: u64,
    ) -> Vec<EarlySample> {
        let mut ready = Vec::new();
        let mut surplus = self.waiting.len().saturating_sub(MAX_WAITING);
        for mut sample in std::mem::take(&mut self.waiting) {
            let age_ns = now_mono_ns.saturating_sub(sample.header.header.time_mono_ns);
            let pid = sample.header.pid;
            let known = tables.parts(pid, sample.mappings.as_slice(), binaries);
            let is_complete = known.is_complete && tables.has_learned(pid, sample.request);
            let is_room = surplus == 0 && self.pieces.alive_words() <= MAX_WORDS;
            if !is_complete && is_room && age_ns < PATIENCE_NS {
                self.waiting.push_back(sample);
                continue;
            }
            surplus = surplus.saturating_sub(1);
            let stack = std::mem::take(&mut sample.stack);
            let (user, stop) = replay::unwind(stack, &known.parts, maps);
            // The copy may have been too short for what the kernel side could read.
            if stop == StopReason::Root || user.len() >= sample.user.len() {
                (sample.user, sample.stop) = (user, stop);
            }
            ready.push(sample);
        }
        ready
    }
}
