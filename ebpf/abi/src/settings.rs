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

/// Entry of the map of generations that the agent raises when it has changed a target or the mappings of
/// a process. The programs remember what they know of the process that each CPU sampled last, and
/// forget it when the sum of both entries grows.
pub const GENERATION_OF_AGENT: u32 = 0;
/// The entry that the programs raise.
pub const GENERATION_OF_KERNEL: u32 = 1;

/// Offsets of kernel structure members, from the running kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `task_struct.stack`
    pub task_stack: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.se.sum_exec_runtime`
    pub task_sum_exec_runtime: u32,
    /// `task_struct.pending.signal`
    pub task_pending_signals: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `css_set.dfl_cgrp` for cgroup v2, or `css_set.subsys[controller]` for v1; both are read as
    /// a pointer whose target starts with, or is, a `cgroup_subsys_state`.
    pub css_set_member: u32,
    /// `cgroup_subsys_state.cgroup`
    pub css_cgroup: u32,
    /// `cgroup_subsys_state.parent`
    pub css_parent: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `kernfs_node.id`
    pub kernfs_id: u32,
    /// Bytes from the base of a kernel stack to the saved user registers.
    pub stack_to_pt_regs: u32,
}

impl Offsets {
    /// All zero: nothing known.
    pub const ZERO: Self = Self {
        task_tgid: 0,
        task_pid: 0,
        task_mm: 0,
        task_stack: 0,
        task_signal: 0,
        task_sum_exec_runtime: 0,
        task_pending_signals: 0,
        task_cgroups: 0,
        signal_live: 0,
        css_set_member: 0,
        css_cgroup: 0,
        css_parent: 0,
        cgroup_kn: 0,
        kernfs_id: 0,
        stack_to_pt_regs: 0,
    };

    /// The bytes as the programs see them.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        let words = [
            self.task_tgid,
            self.task_pid,
            self.task_mm,
            self.task_stack,
            self.task_signal,
            self.task_sum_exec_runtime,
            self.task_pending_signals,
            self.task_cgroups,
            self.signal_live,
            self.css_set_member,
            self.css_cgroup,
            self.css_parent,
            self.cgroup_kn,
            self.kernfs_id,
            self.stack_to_pt_regs,
        ];
        let mut bytes = [0; size_of::<Self>()];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}
