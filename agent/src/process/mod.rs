//! Who is running.
//!
//! In: process ids. Out: what /proc and the files of a process tell. This stage gives no names to
//! addresses.

pub mod perf_map_file;
