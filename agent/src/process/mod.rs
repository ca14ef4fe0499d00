//! Who is running: processes, their executable mappings, the files behind them, their CPU time.
//!
//! In: events of the side band, and `/proc` for what started before us. Out: answers to "which
//! file and offset is this address of that process", and facts that profiles carry. It reads other
//! processes' files, which they control: every read is bounded, and nothing is executed or followed
//! out of their root.

mod account;
mod alive;
pub mod binary;
mod churn;
pub mod cpu_time;
mod elf;
mod mapping;
pub mod memory;
pub mod packed;
pub mod pclntab;
mod perf_map_file;
mod proc_files;
mod signal;
mod table;
mod target_root;
mod vdso;

pub use account::CpuAccount;
pub use alive::Watched;
pub use binary::{Binaries, KnownBinary};
pub use elf::ElfFacts;
pub use mapping::{Code, Mapping, Mappings};
pub use proc_files::{
    container_id, container_of_cgroup, is_running, name, process_of_thread, processes,
    resident_bytes, syscall_of_thread, threads,
};
pub use signal::{
    give_back_memory, ignore_in, is_ignored, restore_signals, share_heap, survive_cut_files,
    terminate, write_before_signals,
};
pub use table::{Changes, Found, Identity, ProcessTable, Scope};
pub use target_root::{LastLink, TargetRoot};
