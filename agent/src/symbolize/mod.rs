//! Names for addresses.
//!
//! In: addresses of processes. Out: functions. This stage reads no kernel events.

pub mod perf_map;
