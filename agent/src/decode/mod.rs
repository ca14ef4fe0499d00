//! Bytes from the kernel become events; nothing else interprets them.
//!
//! In: the buffers of a [`crate::capture::Batch`]. Out: [`record::Record`]s of our programs and
//! [`side_band::SideBandRecord`]s of perf. What cannot be understood is counted by the caller.

pub mod events;
pub mod record;
pub mod side_band;
pub mod syscalls;
