//! What the agent tells the programs before they are loaded, and the flags of a target.

/// Which tasks are sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TargetMode {
    /// Every task but the idle ones.
    All = 0,
    /// Processes in the table of targets.
    Pids = 1,
    /// Tasks in a cgroup or below it.
    Cgroup = 2,
}

/// The process is sampled.
pub const TARGET_SAMPLE: u32 = 1;
/// Processes it starts become targets with the same flags.
pub const TARGET_FOLLOW_CHILDREN: u32 = 2;
/// It becomes a followed target when it replaces its program: a command between fork and exec.
pub const TARGET_AT_EXEC: u32 = 4;
/// Its children get [`TARGET_AT_EXEC`]: the recorder itself.
pub const TARGET_LAUNCHER: u32 = 8;

/// It is sampled while it is in the target cgroup: what the programs remember of every process, when there
/// is one.
pub const TARGET_BY_CGROUP: u32 = 16;

/// How often a target, the mappings of a process or tables have changed, by who changed them: each has a number
/// in `GENERATIONS`. The programs remember what they know of the process that each CPU sampled last, and
/// forget it when either grows; the rules that they found, when the agent's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChangedBy {
    /// The agent.
    Agent = 0,
    /// The programs.
    Programs = 1,
}

/// A structure of words with names, which the programs see as it is and the agent writes as words.
macro_rules! offsets {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name { $($(#[$member_doc])* pub $member: u32,)* }

        impl $name {
            /// All zero: nothing known.
            pub const ZERO: Self = Self { $($member: 0,)* };

            /// The words as the programs see them.
            #[must_use]
            pub const fn to_words(&self) -> [u32; size_of::<Self>() / 4] {
                [$(self.$member,)*]
            }
        }
    };
}

offsets! {
/// Offsets of kernel structure members, from the running kernel's BTF.
Offsets {
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.pid`
    task_pid,
    /// `task_struct.mm`
    task_mm,
    /// `task_struct.stack`
    task_stack,
    /// `task_struct.thread.fsbase` on x86-64, `task_struct.thread.uw.tp_value` on arm64
    task_thread_pointer,
    /// `mm_struct.start_stack`
    mm_start_stack,
    /// `mm_struct.start_code`
    mm_start_code,
    /// `mm_struct.end_code`
    mm_end_code,
    /// `task_struct.signal`
    task_signal,
    /// `task_struct.se.sum_exec_runtime`
    task_sum_exec_runtime,
    /// `task_struct.pending.signal`
    task_pending_signals,
    /// `task_struct.cgroups`
    task_cgroups,
    /// `signal_struct.live`
    signal_live,
    /// `css_set.dfl_cgrp` for cgroup v2, or `css_set.subsys[controller]` for v1; both are read as
    /// a pointer whose target starts with, or is, a `cgroup_subsys_state`.
    css_set_member,
    /// `cgroup_subsys_state.cgroup`
    css_cgroup,
    /// `cgroup_subsys_state.parent`
    css_parent,
    /// `cgroup.kn`
    cgroup_kn,
    /// `kernfs_node.id`
    kernfs_id,
    /// Bytes from the base of a kernel stack to the saved user registers.
    stack_to_pt_regs,
}
}

offsets! {
/// Offsets of kernel structure members that only programs of resources need. A group is 0 where this kernel
/// lacks one of its members.
ResourceOffsets {
    /// `task_struct.__state`, before Linux 5.14 `state`.
    task_state,
    /// `task_struct.flags`
    task_flags,
    /// Byte that holds `task_struct.in_iowait`.
    task_in_iowait,
    /// Its bit in that byte.
    task_in_iowait_mask,
    /// `task_struct.sched_info.run_delay`
    task_run_delay,
    /// `task_struct.sched_info.last_queued`
    task_last_queued,
    /// `task_struct.sched_info.pcount`
    task_run_count,
    /// `task_struct.se.cfs_rq`
    task_cfs_rq,
    /// `cfs_rq.rq`
    cfs_rq_rq,
    /// `rq.clock`
    rq_clock,
    /// `request.q`, or before Linux 5.17 `request.rq_disk`
    request_disk,
    /// `request_queue.disk`; 0 where the request leads to its disk by itself.
    queue_disk,
    /// `gendisk.major`
    disk_major,
    /// `gendisk.first_minor`
    disk_first_minor,
    /// `request.cmd_flags`
    request_flags,
    /// `request.__data_len`
    request_bytes,
    /// `request.start_time_ns`
    request_start,
    /// `request.bio`
    request_bio,
    /// `bio.bi_blkg`
    bio_blkg,
    /// `blkcg_gq.blkcg`
    blkg_blkcg,
    /// `blkcg.css`
    blkcg_css,
    /// `sock.sk_cgrp_data`
    sock_cgroup,
    /// `sock.__sk_common.skc_state`
    sock_state,
    /// Which argument of the tracepoints of requests is the request.
    request_argument,
}
}
