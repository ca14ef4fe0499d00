//! Samples become counts: equal frames, stacks and samples are kept once. System calls become totals.
//!
//! In: raw frames of one sample at a time, or rows of system calls. Out: tables that `symbolize` puts names
//! to, or that are shown as they are. After warm-up a sample costs a few hash look-ups and no
//! allocation.

pub mod clock;
mod samples;
pub mod syscalls;

pub use samples::{SampleKey, Samples, ThreadKey};
