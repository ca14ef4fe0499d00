//! What the kernel side counts of resources: how long they made threads wait, whom, and what failed.
//!
//! In: events between two readings, and the checks that files gave. Out: these checks with latencies, with the
//! cgroups that waited or failed, and with errors that no file tells; and which metric each event is.

use std::{collections::BTreeMap, sync::Arc};

use super::interval::{Interval, ratio};
use super::verdict::{self, Numbers};
use crate::model::{
    Attributes, Check, Contributor, Durations, Event, EventCount, Instrument, Latency, Measure,
    Value,
};
use crate::process::container_of_cgroup;

/// So many cgroups are named.
const MAX_NAMED: usize = 5;

/// Adds what events tell.
pub fn add(checks: &mut Vec<Check>, interval: Interval, cpus: usize, events: &[EventCount]) {
    for check in checks.iter_mut() {
        match check.resource {
            "run-queue" => {
                let waits = select(events, is(Event::RunQueue));
                check.latency = latency(&waits);
                add_waiting(check, interval, cpus, &waits);
                name(check, &waits, |durations| durations.total_ns);
            }
            "disk" => {
                let instance = check.instance.clone();
                let is_here = |one: &EventCount| one.disk.as_deref() == Some(&*instance);
                let done = select(events, |one| is_operation(one.event) && is_here(one));
                check.latency = latency(&done);
                name(check, &done, |durations| durations.total_ns);
                let failed = select(events, |one| one.event == Event::DiskError && is_here(one));
                add_errors(check, interval, &failed);
            }
            "tcp" => {
                let troubles = select(events, |one| {
                    (Event::TcpRetransmit..=Event::TcpResetReceived).contains(&one.event)
                });
                name(check, &troubles, |durations| durations.count);
            }
            "memory" => check.latency = latency(&select(events, is(Event::DirectReclaim))),
            "cgroup-memory" => {
                let path = check.instance.clone();
                let own = select(events, |one| {
                    one.event == Event::LimitReclaim && one.cgroup.as_deref() == Some(&*path)
                });
                check.latency = latency(&own);
            }
            _ => {}
        }
    }
    checks.extend(softirqs(interval, cpus, events));
}

/// Time of all CPUs that goes to what interrupts left.
fn softirqs(interval: Interval, cpus: usize, events: &[EventCount]) -> Option<Check> {
    let works = select(events, |one| one.event >= Event::SoftirqHi);
    let total_ns = works.iter().map(|one| one.durations.total_ns).sum::<u64>();
    let numbers = Numbers {
        utilization: interval
            .average(Some(0), Some(total_ns), 1e9)
            .filter(|_| cpus > 0)
            .map(|busy| (busy / cpus as f64).min(1.0)),
        ..Numbers::default()
    };
    let mut top: Vec<_> = works
        .iter()
        .filter_map(|one| {
            Some(Contributor {
                who: softirq_name(one.event)?.to_owned(),
                share: ratio(one.durations.total_ns, total_ns)?,
            })
        })
        .collect();
    top.sort_by(|a, b| b.share.total_cmp(&a.share));
    top.truncate(MAX_NAMED);
    let mut check = numbers.check("softirq", "host", top);
    check.latency = latency(&works);
    Some(check)
}

/// The kernel's name of what interrupts leave for later, as in `/proc/softirqs`.
#[must_use]
pub fn softirq_name(event: Event) -> Option<&'static str> {
    Some(match event {
        Event::SoftirqHi => "HI",
        Event::SoftirqTimer => "TIMER",
        Event::SoftirqNetTx => "NET_TX",
        Event::SoftirqNetRx => "NET_RX",
        Event::SoftirqBlock => "BLOCK",
        Event::SoftirqIrqPoll => "IRQ_POLL",
        Event::SoftirqTasklet => "TASKLET",
        Event::SoftirqSched => "SCHED",
        Event::SoftirqHrtimer => "HRTIMER",
        Event::SoftirqRcu => "RCU",
        _ => return None,
    })
}

static RUN_QUEUE: Instrument = Instrument::histogram(
    "hotspan.cpu.run_queue.duration",
    "s",
    "How long threads waited for a CPU, each time they got one.",
);
static OFF_CPU: Instrument = Instrument::histogram(
    "hotspan.cpu.off.duration",
    "s",
    "How long threads were away from their CPU, by what they waited for.",
);
static DISK_OPERATION: Instrument = Instrument::histogram(
    "hotspan.disk.operation.duration",
    "s",
    "How long disks took for requests, by operation.",
);
static DISK_QUEUE: Instrument = Instrument::histogram(
    "hotspan.disk.queue.duration",
    "s",
    "How long requests waited until their disk got them, by operation.",
);
static DISK_DEPTH: Instrument = Instrument::histogram(
    "hotspan.disk.queue.depth",
    "{operation}",
    "How many requests a disk had each time it got one.",
);
static DISK_FAILURES: Instrument = Instrument::counter(
    "hotspan.disk.operation.failures",
    "{operation}",
    "Requests that failed.",
);
static RETRANSMITS: Instrument = Instrument::counter(
    "hotspan.cgroup.tcp.retransmits",
    "{segment}",
    "Segments that were sent again.",
);
static RESETS: Instrument = Instrument::counter(
    "hotspan.cgroup.tcp.resets",
    "{connection}",
    "Connections that were cut or refused, by which end did.",
);
static OOM_KILLS: Instrument = Instrument::counter(
    "hotspan.memory.oom_victims",
    "{process}",
    "Processes chosen to be killed since there was no memory.",
);
static RECLAIM: Instrument = Instrument::histogram(
    "hotspan.memory.reclaim.duration",
    "s",
    "How long threads had to find memory themselves, by whose memory was full.",
);
static SOFTIRQ: Instrument = Instrument::histogram(
    "hotspan.softirq.duration",
    "s",
    "How long work took that interrupts leave for later.",
);

/// Nanoseconds in the unit of most of these.
const SECOND: f64 = 1e9;

/// What an event is as a metric.
pub struct EventMetric {
    /// A histogram, or a counter.
    pub instrument: &'static Instrument,
    /// What tells it apart from events of other kinds.
    attribute: Option<(&'static str, &'static str)>,
    /// What the numbers of the histogram are divided by.
    pub unit: f64,
}

/// The metric of an event.
#[must_use]
pub fn metric(event: Event) -> EventMetric {
    let timed = |instrument, attribute| EventMetric {
        instrument,
        attribute,
        unit: SECOND,
    };
    let off = |reason| timed(&OFF_CPU, Some(("hotspan.cpu.off.reason", reason)));
    let disk = |instrument, name| timed(instrument, Some(("hotspan.disk.operation", name)));
    match event {
        Event::RunQueue => timed(&RUN_QUEUE, None),
        Event::OffPreempted => off("preempted"),
        Event::OffDisk => off("disk"),
        Event::OffPageFault => off("page_fault"),
        Event::OffLock => off("lock"),
        Event::OffSleep => off("sleep"),
        Event::OffPoll => off("poll"),
        Event::OffNetwork => off("network"),
        Event::OffReadWrite => off("read_write"),
        Event::OffChild => off("child"),
        Event::OffSignal => off("signal"),
        Event::OffUninterruptible => off("uninterruptible"),
        Event::OffOther => off("other"),
        Event::DiskRead => disk(&DISK_OPERATION, "read"),
        Event::DiskWrite => disk(&DISK_OPERATION, "write"),
        Event::DiskFlush => disk(&DISK_OPERATION, "flush"),
        Event::DiskDiscard => disk(&DISK_OPERATION, "discard"),
        Event::DiskOther => disk(&DISK_OPERATION, "other"),
        Event::DiskQueueRead => disk(&DISK_QUEUE, "read"),
        Event::DiskQueueWrite => disk(&DISK_QUEUE, "write"),
        Event::DiskQueueFlush => disk(&DISK_QUEUE, "flush"),
        Event::DiskQueueDiscard => disk(&DISK_QUEUE, "discard"),
        Event::DiskQueueOther => disk(&DISK_QUEUE, "other"),
        Event::DiskDepth => EventMetric {
            unit: Event::DEPTH_SCALE as f64,
            ..timed(&DISK_DEPTH, None)
        },
        Event::DiskError => timed(&DISK_FAILURES, None),
        Event::TcpRetransmit => timed(&RETRANSMITS, Some(("hotspan.tcp.segment", "data"))),
        Event::TcpSynackRetransmit => timed(&RETRANSMITS, Some(("hotspan.tcp.segment", "synack"))),
        Event::TcpResetSent => timed(&RESETS, Some(("network.io.direction", "transmit"))),
        Event::TcpResetReceived => timed(&RESETS, Some(("network.io.direction", "receive"))),
        Event::OomKill => timed(&OOM_KILLS, None),
        Event::DirectReclaim => timed(&RECLAIM, Some(("hotspan.memory.full", "host"))),
        Event::LimitReclaim => timed(&RECLAIM, Some(("hotspan.memory.full", "cgroup"))),
        softirq => {
            let kind = softirq_name(softirq).map(|name| ("hotspan.softirq.name", name));
            timed(&SOFTIRQ, kind)
        }
    }
}

impl EventMetric {
    /// What tells the series of these events apart.
    #[must_use]
    pub fn attributes(&self, events: &EventCount) -> Attributes {
        let kind = self.attribute.map(|(key, value)| (key, Value::from(value)));
        let path = events.cgroup.as_ref();
        let container = path.and_then(|path| container_of_cgroup(path));
        let disk = events.disk.as_ref();
        Attributes::new(
            [
                kind,
                path.map(|path| ("hotspan.cgroup.path", Value::Text(path.clone()))),
                container.map(|id| ("container.id", Value::from(id))),
                disk.map(|disk| ("system.device", Value::Text(disk.clone()))),
            ]
            .into_iter()
            .flatten(),
        )
    }
}

fn is(event: Event) -> impl Fn(&EventCount) -> bool {
    move |one| one.event == event
}

fn is_operation(event: Event) -> bool {
    (Event::DiskRead..=Event::DiskOther).contains(&event)
}

fn select(events: &[EventCount], is_wanted: impl Fn(&EventCount) -> bool) -> Vec<&EventCount> {
    events.iter().filter(|one| is_wanted(one)).collect()
}

fn latency(events: &[&EventCount]) -> Option<Latency> {
    let mut all = Durations::default();
    for one in events {
        all.add(&one.durations);
    }
    let part_s = |part| all.quantile_ns(part) as f64 / 1e9;
    (all.count > 0).then(|| Latency {
        p50: part_s(0.5),
        p99: part_s(0.99),
        unit: "s",
    })
}

/// Names the cgroups to which most of this happened, beside who is named already.
fn name(check: &mut Check, events: &[&EventCount], amount: fn(&Durations) -> u64) {
    let mut by_cgroup: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
    let mut all = 0;
    for one in events {
        all += amount(&one.durations);
        if let Some(path) = one.cgroup.as_ref().filter(|path| &***path != "/") {
            *by_cgroup.entry(path).or_default() += amount(&one.durations);
        }
    }
    let mut named: Vec<_> = by_cgroup
        .into_iter()
        .filter_map(|(path, amount)| {
            Some(Contributor {
                who: match container_of_cgroup(path) {
                    Some(id) => format!("container {}", &id[..id.len().min(12)]),
                    None => format!("cgroup {path}"),
                },
                share: ratio(amount, all)?,
            })
        })
        .collect();
    named.sort_by(|a, b| b.share.total_cmp(&a.share));
    named.truncate(MAX_NAMED);
    check.top.extend(named);
    check.top.sort_by(|a, b| b.share.total_cmp(&a.share));
}

/// How many threads waited for each CPU on average. Those that ended meanwhile are among them, of which the
/// files of some kernels do not tell.
fn add_waiting(check: &mut Check, interval: Interval, cpus: usize, waits: &[&EventCount]) {
    let total_ns = waits.iter().map(|one| one.durations.total_ns).sum::<u64>();
    let threads = interval.average(Some(0), Some(total_ns), 1e9);
    if let Some(threads) = threads.filter(|_| cpus > 0 && total_ns > 0) {
        check.saturation = Some(Measure {
            value: threads / cpus as f64,
            unit: "{thread}/{cpu}",
        });
        verdict::review(check);
    }
}

/// What failed, if no file tells.
fn add_errors(check: &mut Check, interval: Interval, failed: &[&EventCount]) {
    if check.errors.is_none() {
        let count = failed.iter().map(|one| one.durations.count).sum();
        let per_s = interval.per_s(Some(0), Some(count));
        check.errors = per_s.map(|value| Measure {
            value,
            unit: "{error}/s",
        });
        verdict::review(check);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Verdict;

    fn event(event: Event, cgroup: Option<&str>, total_ns: u64) -> EventCount {
        EventCount {
            event,
            cgroup: cgroup.map(Into::into),
            disk: Some("vda".into()),
            durations: Durations {
                count: 2,
                total_ns,
                max_ns: total_ns / 2,
                buckets: [(total_ns / 2, 2)].into(),
            },
        }
    }

    fn checked(events: &[EventCount]) -> Vec<Check> {
        let mut checks: Vec<_> = ["run-queue", "disk", "tcp"]
            .map(|resource| {
                let numbers = Numbers {
                    utilization: Some(0.1),
                    ..Numbers::default()
                };
                numbers.check(
                    resource,
                    if resource == "disk" { "vda" } else { "host" },
                    vec![],
                )
            })
            .into();
        let interval = Interval::new(Duration::from_secs(2)).unwrap();
        add(&mut checks, interval, 2, events);
        checks
    }

    #[test]
    fn waits_are_told_with_whose_they_are() {
        let id = "0123456789ab".repeat(6)[..64].to_owned();
        let found = checked(&[
            event(Event::RunQueue, Some("/app"), 3_000_000),
            event(Event::RunQueue, Some(&format!("/docker/{id}")), 1_000_000),
            event(Event::RunQueue, Some("/"), 4_000_000),
            event(Event::RunQueue, None, 0),
        ]);
        let top: Vec<_> = found[0]
            .top
            .iter()
            .map(|one| (&*one.who, one.share))
            .collect();
        assert_eq!(
            top,
            [("cgroup /app", 0.375), ("container 0123456789ab", 0.125)]
        );
        assert!(found[0].latency.unwrap().p99 >= 0.0015);
        // 8 ms in two seconds, for two CPUs.
        assert_eq!(found[0].saturation.unwrap().value, 0.002);
        assert_eq!(found[1].latency, None);
    }

    #[test]
    fn a_disk_that_fails_is_told_though_no_file_does() {
        let found = checked(&[
            event(Event::DiskWrite, Some("/db"), 8_000_000),
            event(Event::DiskError, Some("/db"), 0),
        ]);
        assert_eq!(found[1].errors.unwrap().value, 1.0);
        assert_eq!(found[1].verdict, Verdict::Errors);
        assert_eq!(found[1].top[0].who, "cgroup /db");
        assert_eq!(checked(&[])[1].verdict, Verdict::Ok);
    }

    #[test]
    fn softirqs_are_a_part_of_all_cpus() {
        let found = checked(&[
            event(Event::SoftirqNetRx, None, 300_000_000),
            event(Event::SoftirqRcu, None, 100_000_000),
        ]);
        let check = found.last().unwrap();
        assert_eq!(check.utilization.unwrap().value, 0.1);
        assert_eq!((&*check.top[0].who, check.top[0].share), ("NET_RX", 0.75));
    }
}
