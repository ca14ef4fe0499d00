//! Cgroups as metrics. Those that are containers have the names of the semantic conventions; all
//! have names of ours, by their path.

use super::super::psi::Pressure;
use super::{Group, Reading};
use crate::model::{Instrument, Observations, Value};
use crate::process::container_of_cgroup;

static CONTAINER_CPU: Instrument =
    Instrument::counter("container.cpu.time", "s", "CPU time of the container.");
static CONTAINER_MEMORY: Instrument = Instrument::up_down(
    "container.memory.usage",
    "By",
    "Memory of the container, caches included.",
);
static CONTAINER_WORKING_SET: Instrument = Instrument::up_down(
    "container.memory.working_set",
    "By",
    "Memory of the container that cannot be taken back at once.",
);
static CONTAINER_IO: Instrument = Instrument::counter(
    "container.disk.io",
    "By",
    "Bytes that the container read and wrote.",
);
static CPU: Instrument = Instrument::counter("hotspan.cgroup.cpu.time", "s", "CPU time used.");
static CPU_LIMIT: Instrument = Instrument::up_down(
    "hotspan.cgroup.cpu.limit",
    "{cpu}",
    "CPUs that may be used at a time.",
);
static PERIODS: Instrument = Instrument::counter(
    "hotspan.cgroup.cpu.periods",
    "{period}",
    "Periods in which it wanted to run, since it has a limit.",
);
static THROTTLED: Instrument = Instrument::counter(
    "hotspan.cgroup.cpu.throttled_periods",
    "{period}",
    "Of these, those in which it was stopped.",
);
static THROTTLED_TIME: Instrument = Instrument::counter(
    "hotspan.cgroup.cpu.throttled_time",
    "s",
    "How long it was stopped.",
);
static MEMORY: Instrument = Instrument::up_down(
    "hotspan.cgroup.memory.usage",
    "By",
    "Memory, caches included.",
);
static WORKING_SET: Instrument = Instrument::up_down(
    "hotspan.cgroup.memory.working_set",
    "By",
    "Memory that cannot be taken back at once.",
);
static MEMORY_LIMIT: Instrument = Instrument::up_down(
    "hotspan.cgroup.memory.limit",
    "By",
    "The most memory it may have.",
);
static LIMIT_HITS: Instrument = Instrument::counter(
    "hotspan.cgroup.memory.limit_hits",
    "{hit}",
    "How often it wanted more.",
);
static OOM_KILLS: Instrument = Instrument::counter(
    "hotspan.cgroup.memory.oom_kills",
    "{kill}",
    "Processes killed because it got no more.",
);
static IO: Instrument = Instrument::counter("hotspan.cgroup.io", "By", "Bytes read and written.");
static PIDS: Instrument = Instrument::up_down(
    "hotspan.cgroup.threads",
    "{thread}",
    "Processes and threads.",
);
static PIDS_LIMIT: Instrument = Instrument::up_down(
    "hotspan.cgroup.threads.limit",
    "{thread}",
    "The most there may be.",
);
static PIDS_REFUSED: Instrument = Instrument::counter(
    "hotspan.cgroup.threads.refused",
    "{refusal}",
    "How often one more was refused.",
);
static WAITING: Instrument = Instrument::counter(
    "hotspan.cgroup.pressure.waiting",
    "s",
    "Time in which at least one task waited for the resource.",
);
static STALLED: Instrument = Instrument::counter(
    "hotspan.cgroup.pressure.stalled",
    "s",
    "Time in which all tasks waited for the resource.",
);

/// Tells the numbers of all cgroups.
pub fn observe(now: &Reading, out: &mut Observations) {
    for (path, group) in now {
        of_group(path, group, out);
        // What is nested in a container is a part of it.
        let last = path.rsplit('/').next().unwrap_or_default();
        if let Some(id) = container_of_cgroup(path).filter(|id| last.contains(id)) {
            of_container(id, group, out);
        }
    }
}

fn of_container(id: &str, group: &Group, out: &mut Observations) {
    let of = || [("container.id", Value::from(id))];
    out.add(&CONTAINER_CPU, of(), group.cpu.used_ns.map(seconds));
    out.add(&CONTAINER_MEMORY, of(), group.memory.bytes);
    out.add(
        &CONTAINER_WORKING_SET,
        of(),
        group.memory.working_set_bytes(),
    );
    for (direction, bytes) in io(group) {
        let direction = ("disk.io.direction", Value::from(direction));
        out.add(
            &CONTAINER_IO,
            [("container.id", Value::from(id)), direction],
            bytes,
        );
    }
}

fn of_group(path: &str, group: &Group, out: &mut Observations) {
    let path = || ("hotspan.cgroup.path", Value::from(path));
    let of = || [path()];
    let (cpu, memory, pids) = (&group.cpu, &group.memory, &group.pids);
    out.add(&CPU, of(), cpu.used_ns.map(seconds));
    out.add(&CPU_LIMIT, of(), cpu.limit);
    out.add(&PERIODS, of(), cpu.periods);
    out.add(&THROTTLED, of(), cpu.throttled_periods);
    out.add(&THROTTLED_TIME, of(), cpu.throttled_ns.map(seconds));
    out.add(&MEMORY, of(), memory.bytes);
    out.add(&WORKING_SET, of(), memory.working_set_bytes());
    out.add(&MEMORY_LIMIT, of(), memory.limit_bytes);
    out.add(&LIMIT_HITS, of(), memory.limit_hits);
    out.add(&OOM_KILLS, of(), memory.oom_kills);
    for (direction, bytes) in io(group) {
        out.add(
            &IO,
            [path(), ("disk.io.direction", Value::from(direction))],
            bytes,
        );
    }
    out.add(&PIDS, of(), pids.count);
    out.add(&PIDS_LIMIT, of(), pids.limit);
    out.add(&PIDS_REFUSED, of(), pids.refused);
    for (resource, pressure) in [
        ("cpu", cpu.pressure),
        ("memory", memory.pressure),
        ("io", group.io_pressure),
    ] {
        let of = || [path(), ("hotspan.resource", Value::from(resource))];
        let some = pressure.map(|pressure: Pressure| pressure.some_us as f64 / 1e6);
        let full = pressure.and_then(|pressure| pressure.full_us);
        out.add(&WAITING, of(), some);
        out.add(&STALLED, of(), full.map(|us| us as f64 / 1e6));
    }
}

/// Bytes on all devices, by direction.
fn io(group: &Group) -> impl Iterator<Item = (&'static str, u64)> {
    let sum = |bytes: fn(&super::Io) -> u64| {
        group
            .io
            .values()
            .try_fold(0_u64, |sum, io| sum.checked_add(bytes(io)))
            .filter(|_| !group.io.is_empty())
    };
    let (read, written) = (sum(|io| io.read_bytes), sum(|io| io.written_bytes));
    [("read", read), ("write", written)]
        .into_iter()
        .filter_map(|(direction, bytes)| Some((direction, bytes?)))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
