//! hotspan: which code is hot on a Linux host, seen through eBPF.
//!
//! The modules are the stages of the pipeline, in the order data flows.

pub mod capture;
pub mod cli;
pub mod export;
pub mod model;
pub mod process;
pub mod symbolize;
