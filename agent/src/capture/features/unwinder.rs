//! What the unwinder can take, and whether it works here.

use hotspan_abi::{
    limits::{MAX_KERNEL_FRAMES, MAX_USER_FRAMES},
    unwind::{MAX_MAPPINGS, MAX_PROCESSES, MAX_WIDE_RULES},
};
use serde::Serialize;

use super::{
    Check,
    catalogue::UNWIND_TABLES,
    probes::{CREATE, Prober, Refusal},
};
use crate::capture::tables::{self, DEFAULT_TABLE_BYTES, TABLE_BYTES};

/// How much of everything there can be at most. What is more is counted, and stacks are cut there.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Capacity {
    /// The processor whose code is unwound by tables.
    pub architecture: &'static str,
    /// User frames of a sample.
    pub user_frames: usize,
    /// Kernel frames of a sample.
    pub kernel_frames: usize,
    /// Memory for tables, unless a recording says otherwise.
    pub table_bytes: usize,
    /// Memory for tables that a recording can ask for.
    pub table_bytes_max: usize,
    /// Processes whose code is known at once.
    pub processes: usize,
    /// Mappings of one process.
    pub mappings_per_process: usize,
    /// Rules that need more than a word, of all tables together.
    pub wide_rules: usize,
}

impl Capacity {
    /// That of this build.
    pub const HERE: Self = Self {
        architecture: std::env::consts::ARCH,
        user_frames: MAX_USER_FRAMES,
        kernel_frames: MAX_KERNEL_FRAMES,
        table_bytes: DEFAULT_TABLE_BYTES,
        table_bytes_max: *TABLE_BYTES.end(),
        processes: MAX_PROCESSES,
        mappings_per_process: MAX_MAPPINGS,
        wide_rules: MAX_WIDE_RULES,
    };
}

impl Prober {
    pub(super) fn unwinder_checks(&self, capacity: &Capacity) -> Vec<Check> {
        let Capacity {
            architecture,
            user_frames,
            kernel_frames,
            table_bytes,
            table_bytes_max,
            processes,
            mappings_per_process,
            wide_rules,
        } = capacity;
        let works = tables::try_segment()
            .map(|()| "work here")
            .map_err(Refusal::at(CREATE));
        let mebibytes = |bytes: &usize| bytes >> 20;
        vec![
            self.check(&UNWIND_TABLES, works),
            Check::ok("unwind_architecture", *architecture),
            Check::ok(
                "unwind_frames",
                format!("{user_frames} of user code and {kernel_frames} of the kernel in a sample"),
            ),
            Check::ok(
                "unwind_memory",
                format!(
                    "{} MiB, at most {} MiB by record --unwind-memory",
                    mebibytes(table_bytes),
                    mebibytes(table_bytes_max)
                ),
            ),
            Check::ok("unwind_processes", processes.to_string()),
            Check::ok(
                "unwind_mappings",
                format!("{mappings_per_process} of a process"),
            ),
            Check::ok("unwind_wide_rules", wide_rules.to_string()),
        ]
    }
}
