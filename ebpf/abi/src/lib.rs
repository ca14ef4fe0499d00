//! The records and tables that hotspan's eBPF programs and its agent share.
//!
//! Everything is `#[repr(C)]` with sized integers and explicit padding, and each record's size is
//! asserted, so that both sides agree without generated code. Numbers from the kernel side go
//! through `TryFrom`: an unknown one is counted, never guessed.
#![no_std]

pub mod counters;
pub mod durations;
pub mod limits;
pub mod records;
pub mod resources;
pub mod rings;
pub mod settings;
pub mod syscalls;
pub mod unwind;
