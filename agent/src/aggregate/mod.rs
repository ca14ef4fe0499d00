//! Samples become counts: equal frames, stacks and samples are kept once.
//!
//! In: raw frames of one sample at a time. Out: tables that `symbolize` puts names to. After warm-up
//! a sample costs a few hash look-ups and no allocation.

pub mod clock;
mod samples;

pub use samples::{SampleKey, Samples, ThreadKey};
