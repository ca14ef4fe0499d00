//! Records of our programs: the one place where bytes become structures.
#![allow(unsafe_code)] // The cast below.

use hotspan_abi::limits::COMM_BYTES;
use hotspan_abi::records::{
    ProcessEvent, RecordHeader, RecordKind, SampleHeader, SlowCall, SnapshotHeader, StopReason,
};

/// Types of the ABI: plain numbers, so any bytes are a value.
trait Plain: Copy {}
impl Plain for RecordHeader {}
impl Plain for SampleHeader {}
impl Plain for ProcessEvent {}
impl Plain for SlowCall {}
impl Plain for SnapshotHeader {}

fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: the bytes are as many as the type has, alignment does not matter to this read, and
    // `Plain` types have no invalid values.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Something our programs sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record<'a> {
    /// A CPU sample.
    Sample(Sample<'a>),
    /// A process replaced its program.
    Exec(ProcessEvent),
    /// A thread ended.
    Exit(ProcessEvent),
    /// The CPU time of a thread that ended is final.
    Free(ProcessEvent),
    /// A system call that took long.
    SlowCall(SlowCall),
    /// The stack of the sample that follows on the same CPU.
    Snapshot(Snapshot<'a>),
}

impl Record<'_> {
    /// `CLOCK_MONOTONIC` when it happened.
    #[must_use]
    pub fn time_mono_ns(&self) -> u64 {
        match self {
            Self::Sample(sample) => sample.header.header.time_mono_ns,
            Self::Exec(event) | Self::Exit(event) | Self::Free(event) => event.header.time_mono_ns,
            Self::SlowCall(call) => call.header.time_mono_ns,
            Self::Snapshot(snapshot) => snapshot.header.header.time_mono_ns,
        }
    }
}

/// A CPU sample with its frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// The fixed part.
    pub header: SampleHeader,
    /// Why the user part ends.
    pub stop: StopReason,
    kernel: &'a [u8],
    user: &'a [u8],
}

/// The top of a user stack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Snapshot<'a> {
    /// The fixed part.
    pub header: SnapshotHeader,
    words: &'a [u8],
}

impl<'a> Snapshot<'a> {
    /// The words of the stack, from `header.start` on.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        words(self.words)
    }
}

impl<'a> Sample<'a> {
    /// Kernel addresses, leaf first.
    pub fn kernel_frames(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        words(self.kernel)
    }

    /// User addresses, leaf first.
    pub fn user_frames(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        words(self.user)
    }

    /// The thread's name.
    #[must_use]
    pub fn thread_name(&self) -> &[u8] {
        name(&self.header.comm)
    }
}

/// A thread's name, up to its zero.
#[must_use]
pub fn name(comm: &[u8; COMM_BYTES]) -> &[u8] {
    &comm[..comm.iter().position(|&b| b == 0).unwrap_or(comm.len())]
}

fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + use<'_> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_ne_bytes(*word))
}

/// Splits a buffer into records. One that cannot be understood is `None`; one whose length is
/// nonsense ends the buffer.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    std::iter::from_fn(move || {
        let header: RecordHeader = match read(bytes) {
            Some(header) => header,
            None if bytes.is_empty() => return None,
            None => {
                bytes = &[];
                return Some(None);
            }
        };
        let len = header.total_bytes as usize;
        if len < size_of::<RecordHeader>() || len > bytes.len() {
            bytes = &[];
            return Some(None);
        }
        let (record, rest) = bytes.split_at(len);
        bytes = rest;
        Some(parse(header.kind, record))
    })
}

fn parse(kind: u32, bytes: &[u8]) -> Option<Record<'_>> {
    match RecordKind::try_from(kind).ok()? {
        RecordKind::Sample => parse_sample(bytes).map(Record::Sample),
        RecordKind::Exec => read(bytes).map(Record::Exec),
        RecordKind::Exit => read(bytes).map(Record::Exit),
        RecordKind::Free => read(bytes).map(Record::Free),
        RecordKind::SlowCall => read(bytes).map(Record::SlowCall),
        RecordKind::Snapshot => parse_snapshot(bytes).map(Record::Snapshot),
    }
}

fn parse_sample(bytes: &[u8]) -> Option<Sample<'_>> {
    let header: SampleHeader = read(bytes)?;
    let frames = bytes.get(size_of::<SampleHeader>()..)?;
    let kernel_bytes = (header.kernel_frames as usize).checked_mul(8)?;
    let user_bytes = (header.user_frames as usize).checked_mul(8)?;
    if kernel_bytes.checked_add(user_bytes)? != frames.len() {
        return None;
    }
    let (kernel, user) = frames.split_at(kernel_bytes);
    let stop = StopReason::try_from(header.stop).ok()?;
    Some(Sample {
        header,
        stop,
        kernel,
        user,
    })
}

fn parse_snapshot(bytes: &[u8]) -> Option<Snapshot<'_>> {
    let header: SnapshotHeader = read(bytes)?;
    let words = &bytes[size_of::<SnapshotHeader>()..];
    let is_whole = (header.words as usize).checked_mul(8) == Some(words.len());
    is_whole.then_some(Snapshot { header, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kernel: &[u64], user: &[u64]) -> Vec<u8> {
        let total = size_of::<SampleHeader>() + (kernel.len() + user.len()) * 8;
        let fields = [
            1,
            total as u32,
            7,
            0,
            10,
            11,
            3,
            2,
            kernel.len() as u32,
            user.len() as u32,
        ];
        let mut bytes: Vec<u8> = fields.iter().flat_map(|f: &u32| f.to_ne_bytes()).collect();
        bytes.extend(b"worker\0\0\0\0\0\0\0\0\0\0");
        bytes.extend(kernel.iter().chain(user).flat_map(|f| f.to_ne_bytes()));
        bytes
    }

    #[test]
    fn sample_keeps_both_parts_apart() {
        let bytes = sample(&[1, 2], &[3, 4, 5]);
        let Some(Some(Record::Sample(sample))) = records(&bytes).next() else {
            panic!()
        };
        assert_eq!(sample.kernel_frames().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(sample.user_frames().collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(sample.thread_name(), b"worker");
        assert_eq!(
            (sample.header.pid, sample.header.tid, sample.header.cpu),
            (10, 11, 3)
        );
        assert_eq!(sample.stop, StopReason::NoUnwindTable);
        assert_eq!(sample.header.header.time_mono_ns, 7);
    }

    #[test]
    fn records_follow_each_other() {
        let mut bytes = sample(&[1], &[]);
        bytes.extend(sample(&[], &[2, 3]));
        assert_eq!(records(&bytes).flatten().count(), 2);
    }

    #[test]
    fn snapshot_has_as_many_words_as_it_says() {
        let header = [
            5, 120, 7, 0, 1, 2, 0x1000, 0, 1, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0, 9, 0, 10, 0,
        ];
        let mut bytes: Vec<u8> = header
            .iter()
            .flat_map(|field: &u32| field.to_ne_bytes())
            .collect();
        bytes.extend([8_u64, 9].map(u64::to_ne_bytes).concat());
        let Some(Some(Record::Snapshot(snapshot))) = records(&bytes).next() else {
            panic!()
        };
        let SnapshotHeader {
            cpu,
            start,
            readable,
            ..
        } = snapshot.header;
        assert_eq!((cpu, start, readable), (1, 0x1000, 1));
        assert_eq!(snapshot.words().collect::<Vec<_>>(), [8, 9]);
        bytes[20] = 3;
        assert_eq!(records(&bytes).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn frame_count_that_disagrees_with_the_length_is_refused() {
        let mut bytes = sample(&[1], &[2]);
        bytes[36] = 9;
        assert_eq!(records(&bytes).collect::<Vec<_>>(), [None]);
    }

    #[test]
    fn any_cut_and_any_byte_is_survived() {
        let bytes = sample(&[1], &[2, 3]);
        for len in 0..bytes.len() {
            assert!(records(&bytes[..len]).flatten().next().is_none());
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                assert!(records(&bytes).count() <= 2);
            }
        }
    }
}
