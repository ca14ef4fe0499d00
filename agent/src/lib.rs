//! hotspan: which code is hot on a Linux host, seen through eBPF.
//!
//! The modules are the stages of the pipeline, in the order data flows.

pub mod aggregate;
pub mod capture;
pub mod cli;
pub mod config;
pub mod decode;
pub mod export;
pub mod model;
pub mod pipeline;
pub mod process;
pub mod resource;
pub mod symbolize;
pub mod telemetry;
pub mod unwind;
