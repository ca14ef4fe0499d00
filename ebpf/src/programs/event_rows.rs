//! Adding events to their rows.

use hotspan_abi::{
    counters::Counter,
    resources::{Event, EventKey},
};

use super::target::cgroup_id;
use crate::{
    kernel_calls::{NO_EXIST, add_duration, count, current_task, kernel_word},
    maps::{EVENT_ROW_OF, EVENT_ROWS, FREE_EVENT_ROWS, offset_of},
};

/// Adds an event and how long it took, 0 for what takes no time.
#[inline(always)]
pub fn add(key: EventKey, duration_ns: u64) {
    add_to_row(find_row(key), duration_ns);
}

/// The same when it is known where.
#[inline(always)]
pub fn add_to_row(row: u32, duration_ns: u64) {
    if let Some(to) = EVENT_ROWS.get_ptr_mut(row) {
        // SAFETY: the row of this CPU. Programs that interrupt each other add to rows of different events.
        unsafe { add_duration(to, duration_ns) };
    }
}

/// The row of an event; the one that belongs to nobody when there is none left.
#[inline(always)]
pub fn find_row(key: EventKey) -> u32 {
    if key.cgroup == 0 && key.disk == 0 {
        return key.event;
    }
    // SAFETY: a row that is taken back meanwhile is one of a cgroup without threads.
    if let Some(row) = unsafe { EVENT_ROW_OF.get(key) } {
        return *row;
    }
    if let Ok(Some(row)) = FREE_EVENT_ROWS.pop() {
        if EVENT_ROW_OF.insert(key, row, NO_EXIST).is_ok() {
            return row;
        }
        // Another CPU was first, or there are too many.
        let _ = FREE_EVENT_ROWS.push(row, 0);
        // SAFETY: as above.
        if let Some(row) = unsafe { EVENT_ROW_OF.get(key) } {
            return *row;
        }
    }
    count(Counter::EventRowsFull);
    key.event
}

/// The cgroup of a thread, by its `css_set`.
#[inline(always)]
pub fn cgroup_of(css_set: u64) -> u64 {
    cgroup_id(kernel_word(css_set + offset_of!(css_set_member)))
}

/// Adds an event that happened to the running thread.
#[inline(always)]
pub fn add_to_current(event: Event, duration_ns: u64) {
    add_to_task(current_task(), event, duration_ns);
}

/// Adds an event that happened to this thread.
#[inline(always)]
pub fn add_to_task(task: u64, event: Event, duration_ns: u64) {
    let key = EventKey {
        cgroup: cgroup_of(kernel_word(task + offset_of!(task_cgroups))),
        disk: 0,
        event: event as u32,
    };
    add(key, duration_ns);
}
