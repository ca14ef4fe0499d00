//! What hotspan would like the kernel to have: a line for each kind of program, map and helper.
//!
//! To add one: give its table a line with what its lack costs, and for a kind of program an
//! attempt in `probes.rs`.

use super::probes::{Attempt, Prober};
use crate::capture::bpf_syscall::Map;

// Numbers of include/uapi/linux/bpf.h.
pub(super) const PROG_TYPE_KPROBE: u32 = 2;
pub(super) const PROG_TYPE_TRACEPOINT: u32 = 5;
pub(super) const PROG_TYPE_PERF_EVENT: u32 = 7;
pub(super) const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
pub(super) const PROG_TYPE_TRACING: u32 = 26;
pub(super) const TRACE_RAW_TP: u32 = 23;
pub(super) const TRACE_FENTRY: u32 = 24;

/// Something the kernel may have: its check, and what to say when it does not.
pub(super) struct Feature {
    pub(super) id: &'static str,
    pub(super) is_required: bool,
    pub(super) costs: &'static str,
    /// What helps when the kernel does not know it.
    pub(super) cure: &'static str,
}

pub(super) struct ProgramProbe {
    pub(super) feature: Feature,
    pub(super) attempt: fn(&Prober) -> Attempt,
}

pub(super) struct MapProbe {
    pub(super) feature: Feature,
    pub(super) map: Map<'static>,
}

pub(super) struct HelperProbe {
    pub(super) feature: Feature,
    pub(super) number: i32,
    /// A program type that hotspan calls it from.
    pub(super) kind: u32,
}

/// The event that takes the samples.
pub(super) const CPU_CLOCK: Feature = Feature {
    id: "cpu_clock",
    is_required: true,
    costs: "CPUs cannot be sampled, nothing is recorded",
    cure: "use a kernel built with CONFIG_PERF_EVENTS=y",
};

pub(super) const PROGRAMS: &[ProgramProbe] = &[
    ProgramProbe {
        feature: Feature {
            id: "program_perf_event",
            is_required: true,
            costs: "samples cannot be taken, nothing is recorded",
            cure: "use a kernel built with CONFIG_BPF_EVENTS=y and CONFIG_PERF_EVENTS=y",
        },
        attempt: Prober::perf_event,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_raw_tracepoint",
            is_required: true,
            costs: "starts and exits of processes are not seen, nothing is recorded",
            cure: "use a kernel built with CONFIG_BPF_EVENTS=y",
        },
        attempt: Prober::raw_tracepoint,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_tracepoint",
            is_required: false,
            costs: "raw trace points take their place, which know no names of fields",
            cure: "use a kernel built with CONFIG_BPF_EVENTS=y and CONFIG_FTRACE=y",
        },
        attempt: Prober::tracepoint,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_tp_btf",
            is_required: false,
            costs: "raw trace points take their place, which read kernel memory by copying",
            cure: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        },
        attempt: Prober::tp_btf,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_fentry",
            is_required: false,
            costs: "nothing while recording: trace points do the same work",
            cure: "use a kernel built with CONFIG_FUNCTION_TRACER=y and CONFIG_DYNAMIC_FTRACE=y",
        },
        attempt: Prober::fentry,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_kprobe",
            is_required: false,
            costs: "nothing while recording: trace points do the same work",
            cure: "use a kernel built with CONFIG_KPROBE_EVENTS=y",
        },
        attempt: Prober::kprobe,
    },
    ProgramProbe {
        feature: Feature {
            id: "program_uprobe",
            is_required: false,
            costs: "nothing while recording; functions of programs cannot be watched",
            cure: "use a kernel built with CONFIG_UPROBE_EVENTS=y",
        },
        attempt: Prober::uprobe,
    },
];

/// Maps that the agent writes unwind tables into as into its own memory.
pub(super) const UNWIND_TABLES: Feature = Feature {
    id: "unwind_tables",
    is_required: true,
    costs: "there is no place for unwind tables, nothing is recorded",
    cure: "use Linux 5.5 or newer",
};

pub(super) const NO_PREALLOC: u32 = 1;

const fn map(
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
    flags: u32,
) -> Map<'static> {
    Map {
        kind,
        key_bytes,
        value_bytes,
        max_entries,
        flags,
        btf: None,
    }
}

pub(super) const MAPS: &[MapProbe] = &[
    MapProbe {
        feature: Feature {
            id: "map_ring_buffer",
            is_required: true,
            costs: "samples cannot leave the kernel, nothing is recorded",
            cure: "use Linux 5.8 or newer",
        },
        // A whole page, whichever size pages have.
        map: map(27, 0, 0, 64 << 10, 0),
    },
    MapProbe {
        feature: Feature {
            id: "map_hash",
            is_required: true,
            costs: "processes cannot be filtered in the kernel, nothing is recorded",
            cure: "use a kernel built with CONFIG_BPF_SYSCALL=y",
        },
        map: map(1, 8, 8, 1, 0),
    },
    MapProbe {
        feature: Feature {
            id: "map_lpm_trie",
            is_required: false,
            costs: "nothing while recording: address ranges are searched in sorted arrays",
            cure: "use Linux 4.11 or newer",
        },
        map: map(11, 8, 8, 1, NO_PREALLOC),
    },
];

pub(super) const TASK_STORAGE: Feature = Feature {
    id: "map_task_storage",
    is_required: false,
    costs: "what is known of a thread is kept in a hash map, which is slower",
    cure: "use Linux 5.11 or newer",
};

pub(super) const HELPERS: &[HelperProbe] = &[
    HelperProbe {
        feature: Feature {
            id: "helper_get_stack",
            is_required: true,
            costs: "stacks cannot be taken, nothing is recorded",
            cure: "use Linux 5.10 or newer",
        },
        number: 67,
        kind: PROG_TYPE_PERF_EVENT,
    },
    HelperProbe {
        feature: Feature {
            id: "helper_probe_read_user",
            is_required: true,
            costs: "user stacks cannot be read, nothing is recorded",
            cure: "use Linux 5.10 or newer",
        },
        number: 112,
        kind: PROG_TYPE_PERF_EVENT,
    },
    HelperProbe {
        feature: Feature {
            id: "helper_get_current_task_btf",
            is_required: false,
            costs: "fields of threads are read by copying, which is slower",
            cure: "use Linux 5.11 or newer",
        },
        number: 158,
        kind: PROG_TYPE_PERF_EVENT,
    },
    HelperProbe {
        feature: Feature {
            id: "helper_task_pt_regs",
            is_required: false,
            costs: "user registers of samples in the kernel are searched on the kernel's stack",
            cure: "use Linux 5.15 or newer",
        },
        number: 175,
        kind: PROG_TYPE_PERF_EVENT,
    },
    HelperProbe {
        feature: Feature {
            id: "helper_loop",
            is_required: false,
            costs: "programs with loops take longer to load",
            cure: "use Linux 5.17 or newer",
        },
        number: 181,
        kind: PROG_TYPE_PERF_EVENT,
    },
    HelperProbe {
        feature: Feature {
            id: "helper_get_attach_cookie",
            is_required: false,
            costs: "nothing while recording; each probe in a program needs a copy of its code",
            cure: "use Linux 5.15 or newer",
        },
        number: 174,
        kind: PROG_TYPE_KPROBE,
    },
];
