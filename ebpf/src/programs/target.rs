//! Which tasks are sampled.

use hotspan_abi::{
    limits::MAX_CGROUP_LEVELS,
    settings::{TARGET_BY_CGROUP, TARGET_SAMPLE, TargetMode},
};

use crate::{
    kernel_calls::{current_task, kernel_word},
    maps::{TARGET_CGROUP, TARGET_MODE, TARGETS, offset_of},
};

/// Whether the running task of a process with these [`flags_in_mode`] is to be sampled.
#[inline(always)]
pub fn is_target(flags: u32) -> bool {
    if flags & TARGET_BY_CGROUP != 0 {
        is_in_cgroup(TARGET_CGROUP.load())
    } else {
        flags & TARGET_SAMPLE != 0
    }
}

/// The flags of a process, with what holds for all.
#[inline(always)]
pub fn flags_in_mode(pid: u32) -> u32 {
    let mode = TARGET_MODE.load();
    let of_all = if mode == TargetMode::All as u32 {
        TARGET_SAMPLE
    } else if mode == TargetMode::Cgroup as u32 {
        TARGET_BY_CGROUP
    } else {
        0
    };
    target_flags(pid) | of_all
}

/// The flags of a followed process, 0 for any other.
#[inline(always)]
pub fn target_flags(pid: u32) -> u32 {
    // SAFETY: a value that is changed meanwhile is read before or after the change.
    unsafe { TARGETS.get(pid) }.copied().unwrap_or(0)
}

/// Whether the running task is in the cgroup with this id, or below it.
///
/// Works on cgroup v1 and v2 alike: the offsets lead to the `cgroup_subsys_state` of the hierarchy
/// that the target is in. A v2 `struct cgroup` starts with its own state, so its address is one.
#[inline(always)]
pub fn is_in_cgroup(target: u64) -> bool {
    let set = kernel_word(current_task() + offset_of!(task_cgroups));
    let mut state = kernel_word(set + offset_of!(css_set_member));
    for _ in 0..MAX_CGROUP_LEVELS {
        if state == 0 {
            return false;
        }
        if cgroup_id(state) == target {
            return true;
        }
        state = kernel_word(state + offset_of!(css_parent));
    }
    false
}

/// The id of the cgroup of a `cgroup_subsys_state`. No cgroup has the id 0.
#[inline(always)]
pub fn cgroup_id(state: u64) -> u64 {
    id_of_cgroup(kernel_word(state + offset_of!(css_cgroup)))
}

/// The id of a `struct cgroup`.
#[inline(always)]
pub fn id_of_cgroup(cgroup: u64) -> u64 {
    let node = kernel_word(cgroup + offset_of!(cgroup_kn));
    kernel_word(node + offset_of!(kernfs_id))
}
