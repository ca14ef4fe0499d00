//! Plain values that cross stages.
//!
//! In: nothing; every stage fills these. Out: [`Profile`] and [`Metric`] to the exporters, [`Check`] to people. There is no I/O here,
//! and no knowledge of the kernel's records or of any output format.

mod address;
mod check;
mod durations;
mod event;
mod metric;
mod profile;
mod raw;
mod syscall;

pub use address::{ElfAddr, FileOffset, RuntimeAddr};
pub use check::{Check, Contributor, Latency, Measure, Verdict};
pub use durations::Durations;
pub use event::{Event, EventCount, Hierarchy};
pub use metric::{
    Attributes, Data, Exemplar, ExplicitHistogram, ExponentialHistogram, Instrument, Kind, Metric,
    Number, Observation, Observations, Point, Resource, Temporality, Value,
};
pub use profile::{
    Binary, BinaryIdx, BinaryKind, Frame, FrameIdx, FrameKind, Line, Process, ProcessIdx, Profile,
    Quality, Sample, Segment, Stack, StackIdx, Thread, ThreadIdx, TraceLink,
};
pub use raw::{BinaryId, ProcessId, RawFrame};
pub use syscall::{SlowCall, SyscallStats};
