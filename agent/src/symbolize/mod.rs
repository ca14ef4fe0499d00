//! Addresses get names, in two steps.
//!
//! Early, while the process lives: [`normalize`] turns each address into a file and an offset.
//! Late, once for each distinct frame: [`profile`] looks the names up and puts a
//! [`crate::model::Profile`] together. It does not unwind, and it does not count.

mod bounds;
mod demangle;
mod go_symbols;
mod kallsyms;
mod linkage;
mod names;
pub mod normalize;
pub mod perf_map;
pub mod profile;
mod root;
