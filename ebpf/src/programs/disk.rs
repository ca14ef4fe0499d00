//! Requests to disks: how long they waited for the disk, how long that took, how many it had, which failed.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use hotspan_abi::{
    counters::Counter,
    resources::{DiskRequest, Event, EventKey, Operation},
};

use super::{event_rows::add, target::cgroup_id};
use crate::{
    kernel_calls::{NO_EXIST, add_to, count, kernel_word, now_mono_ns, read_kernel},
    maps::{DISK_DEPTH, DISK_REQUESTS, resource_offset},
};

/// `block_rq_issue(request)`, before Linux 5.11 `(queue, request)`: a disk gets a request.
#[raw_tracepoint(tracepoint = "block_rq_issue")]
pub fn disk_issue(ctx: RawTracePointContext) -> i32 {
    let request = if resource_offset!(request_argument) == 0 {
        ctx.arg::<u64>(0)
    } else {
        ctx.arg::<u64>(1)
    };
    let flags = read_kernel::<u32>(request + resource_offset!(request_flags)).unwrap_or(0);
    let Some(operation) = operation(flags) else {
        return 0;
    };
    let now_ns = now_mono_ns();
    let start_ns = kernel_word(request + resource_offset!(request_start));
    let waited_ns = if start_ns == 0 || start_ns > now_ns {
        0
    } else {
        now_ns - start_ns
    };
    let disk = disk_of(request);
    let entry = DiskRequest {
        start_mono_ns: start_ns,
        issued_mono_ns: now_ns,
        waited_ns,
        cgroup: payer_of(request),
        disk,
        operation: operation as u32,
    };
    if DISK_REQUESTS.insert(request, entry, NO_EXIST).is_ok() {
        let depth = change_depth(disk, 1);
        let key = EventKey {
            cgroup: 0,
            disk,
            event: Event::DiskDepth as u32,
        };
        add(key, depth * Event::DEPTH_SCALE);
    } else if let Some(known) = DISK_REQUESTS.get_ptr_mut(request) {
        // SAFETY: it is there; the disk has the request once.
        let known = unsafe { &mut *known };
        if known.start_mono_ns == start_ns {
            // The disk had given it back, and gets it once more.
            known.issued_mono_ns = now_ns;
        } else {
            // The kernel has used its memory again: we were not told of the end of the one before.
            *known = entry;
            count(Counter::DiskEndsMissed);
        }
    } else {
        count(Counter::DiskRequestsFull);
    }
    0
}

/// `block_rq_complete(request, error, bytes)`: a disk is done with a request, or with the first part of it.
#[raw_tracepoint(tracepoint = "block_rq_complete")]
pub fn disk_complete(ctx: RawTracePointContext) -> i32 {
    let request = ctx.arg::<u64>(0);
    let Some(entry) = DISK_REQUESTS.get_ptr_mut(request) else {
        return 0;
    };
    // SAFETY: the entry is there; a request is completed once.
    let entry = unsafe { *entry };
    let of = |event: u32| EventKey {
        cgroup: entry.cgroup,
        disk: entry.disk,
        event,
    };
    let has_failed = ctx.arg::<u64>(1) as u32 != 0;
    let bytes = ctx.arg::<u64>(2) as u32;
    if has_failed {
        add(of(Event::DiskError as u32), 0);
    } else if bytes < read_kernel::<u32>(request + resource_offset!(request_bytes)).unwrap_or(0) {
        return 0;
    }
    let _ = DISK_REQUESTS.remove(request);
    change_depth(entry.disk, -1);
    let took_ns = now_mono_ns() - entry.issued_mono_ns;
    add(of(Event::DiskRead as u32 + entry.operation), took_ns);
    add(
        of(Event::DiskQueueRead as u32 + entry.operation),
        entry.waited_ns,
    );
    0
}

/// What a request is to do; `None` for commands of drivers, which are no I/O.
#[inline(always)]
fn operation(flags: u32) -> Option<Operation> {
    /// `REQ_OP_DRV_IN` is 34; before Linux 5.13, `REQ_OP_SCSI_IN` 32.
    const FIRST_OF_DRIVERS: u32 = 32;
    Some(match flags & 0xff {
        0 => Operation::Read,
        1 => Operation::Write,
        2 => Operation::Flush,
        3 | 5 => Operation::Discard,
        FIRST_OF_DRIVERS..=35 => return None,
        _ => Operation::Other,
    })
}

/// The disk of a request: 12 bits of major, 20 of minor.
#[inline(always)]
fn disk_of(request: u64) -> u32 {
    let mut disk = kernel_word(request + resource_offset!(request_disk));
    if resource_offset!(queue_disk) != 0 {
        disk = kernel_word(disk + resource_offset!(queue_disk));
    }
    let major = read_kernel::<u32>(disk + resource_offset!(disk_major)).unwrap_or(0);
    let minor = read_kernel::<u32>(disk + resource_offset!(disk_first_minor)).unwrap_or(0);
    major << 20 | minor & 0xf_ffff
}

/// The cgroup that the I/O is charged to, 0 when the kernel charges none.
#[inline(always)]
fn payer_of(request: u64) -> u64 {
    if resource_offset!(bio_blkg) == 0 {
        return 0;
    }
    let bio = kernel_word(request + resource_offset!(request_bio));
    if bio == 0 {
        return 0;
    }
    let group = kernel_word(bio + resource_offset!(bio_blkg));
    let payer = kernel_word(group + resource_offset!(blkg_blkcg));
    cgroup_id(payer + resource_offset!(blkcg_css))
}

/// Changes how many requests a disk has, and returns how many that is.
#[inline(always)]
fn change_depth(disk: u32, by: i64) -> u64 {
    let known = DISK_DEPTH.get_ptr_mut(disk).or_else(|| {
        let _ = DISK_DEPTH.insert(disk, 0, NO_EXIST);
        DISK_DEPTH.get_ptr_mut(disk)
    });
    let Some(depth) = known else {
        return 0;
    };
    // SAFETY: the entry is there, and stays.
    unsafe {
        add_to(depth, by as u64);
        depth.read_volatile()
    }
}
