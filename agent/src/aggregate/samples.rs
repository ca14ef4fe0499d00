//! Interning of frames, stacks, threads and samples.

use hotspan_abi::limits::COMM_BYTES;
use indexmap::{IndexMap, IndexSet};
use rustc_hash::FxBuildHasher;

use crate::model::{ProcessId, RawFrame};

/// A thread of a sampled process, under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThreadKey {
    /// Its process.
    pub process: ProcessId,
    /// Thread id.
    pub tid: u32,
    /// Its name, zero-terminated.
    pub name: [u8; COMM_BYTES],
}

/// What makes samples equal; the numbers are positions in the tables of [`Samples`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    /// Position of the thread.
    pub thread: u32,
    /// CPU number.
    pub cpu: u32,
    /// Position of the stack.
    pub stack: u32,
}

/// All samples of a window.
#[derive(Default)]
pub struct Samples {
    /// Distinct frames.
    pub frames: IndexSet<RawFrame, FxBuildHasher>,
    /// Distinct stacks: positions of frames, leaf first.
    pub stacks: IndexSet<Box<[u32]>, FxBuildHasher>,
    /// Distinct threads.
    pub threads: IndexSet<ThreadKey, FxBuildHasher>,
    /// Times of the samples, `CLOCK_MONOTONIC`, in the order they were taken.
    pub times_mono_ns: IndexMap<SampleKey, Vec<u64>, FxBuildHasher>,
    stack: Vec<u32>,
}

impl Samples {
    /// Counts one sample with the given frames, leaf first.
    pub fn push(
        &mut self,
        thread: ThreadKey,
        cpu: u32,
        time_mono_ns: u64,
        frames: impl Iterator<Item = RawFrame>,
    ) {
        self.stack.clear();
        for frame in frames {
            self.stack.push(self.frames.insert_full(frame).0 as u32);
        }
        let stack = match self.stacks.get_index_of(self.stack.as_slice()) {
            Some(known) => known,
            None => self.stacks.insert_full(self.stack.as_slice().into()).0,
        };
        let thread = self.threads.insert_full(thread).0;
        let key = SampleKey {
            thread: thread as u32,
            cpu,
            stack: stack as u32,
        };
        self.times_mono_ns
            .entry(key)
            .or_default()
            .push(time_mono_ns);
    }

    /// How many samples there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.times_mono_ns
            .values()
            .map(|times| times.len() as u64)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(tid: u32) -> ThreadKey {
        ThreadKey {
            process: ProcessId(0),
            tid,
            name: *b"worker\0\0\0\0\0\0\0\0\0\0",
        }
    }

    #[test]
    fn equal_samples_are_one_entry_with_all_their_times() {
        let mut samples = Samples::default();
        let frames = [RawFrame::Kernel(1), RawFrame::Nowhere(2)];
        samples.push(thread(1), 0, 10, frames.into_iter());
        samples.push(thread(1), 0, 20, frames.into_iter());
        assert_eq!((samples.frames.len(), samples.stacks.len()), (2, 1));
        assert_eq!(
            samples.times_mono_ns.values().collect::<Vec<_>>(),
            [&vec![10, 20]]
        );
        assert_eq!(samples.count(), 2);
    }

    #[test]
    fn thread_cpu_and_every_frame_tell_samples_apart() {
        let mut samples = Samples::default();
        let frames = [RawFrame::Kernel(1), RawFrame::Kernel(2)];
        samples.push(thread(1), 0, 1, frames.into_iter());
        samples.push(thread(2), 0, 2, frames.into_iter());
        samples.push(thread(1), 1, 3, frames.into_iter());
        samples.push(thread(1), 0, 4, frames.into_iter().rev());
        samples.push(thread(1), 0, 5, frames.into_iter().take(1));
        assert_eq!(samples.times_mono_ns.len(), 5);
    }
}
