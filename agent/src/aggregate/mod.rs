//! Samples become counts: equal frames, stacks and samples are kept once. System calls become totals.
//! Measurements become series of metrics, of which there are never more than a budget allows.
//!
//! In: raw frames of one sample at a time; rows of system calls; numbers with attributes. Out: tables that
//! `symbolize` puts names to, or that are shown as they are; metrics for the exporters. After warm-up
//! a sample costs a few hash look-ups and no
//! allocation.

pub mod clock;
mod delta;
pub mod durations;
mod explicit;
mod exponential;
mod samples;
mod series;
pub mod syscalls;

pub use delta::Deltas;
pub use samples::{SampleKey, Samples, ThreadKey};
pub use series::{DEFAULT_BUDGET, Series};
