//! Which tasks are sampled.

use hotspan_abi::{
    limits::MAX_CGROUP_LEVELS,
    settings::{TARGET_SAMPLE, TargetMode},
};

use crate::{
    kernel_calls::{current_task, read_kernel},
    maps::{TARGET_CGROUP, TARGET_MODE, TARGETS, offset_of},
};

/// Whether the running task of process `pid` is to be sampled.
#[inline(always)]
pub fn is_target(pid: u32) -> bool {
    let mode = TARGET_MODE.load();
    if mode == TargetMode::All as u32 {
        true
    } else if mode == TargetMode::Pids as u32 {
        target_flags(pid) & TARGET_SAMPLE != 0
    } else {
        is_in_cgroup(TARGET_CGROUP.load())
    }
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
fn is_in_cgroup(target: u64) -> bool {
    let Some(set) = read_kernel::<u64>(current_task() + offset_of!(task_cgroups)) else {
        return false;
    };
    let mut state = read_kernel::<u64>(set + offset_of!(css_set_member)).unwrap_or(0);
    for _ in 0..MAX_CGROUP_LEVELS {
        if state == 0 {
            return false;
        }
        if cgroup_id(state) == Some(target) {
            return true;
        }
        state = read_kernel::<u64>(state + offset_of!(css_parent)).unwrap_or(0);
    }
    false
}

#[inline(always)]
fn cgroup_id(state: u64) -> Option<u64> {
    let cgroup = read_kernel::<u64>(state + offset_of!(css_cgroup))?;
    let node = read_kernel::<u64>(cgroup + offset_of!(cgroup_kn))?;
    read_kernel::<u64>(node + offset_of!(kernfs_id))
}
