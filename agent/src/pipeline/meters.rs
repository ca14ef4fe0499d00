//! Everything that is measured beside the profiles: resources, system calls, and ourselves.
//!
//! In: the kernel's files and rows, whenever metrics are wanted. Out: [`Metric`]s, cumulative. Both exits ask
//! here, so that a scrape is as fresh as it can be.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{events::EventMeter, exporter::ExportHealth, syscalls::SyscallMeter};
use crate::{
    aggregate::{
        Series,
        clock::{Clock, now_mono_ns},
        durations::{histogram, histogram_s},
    },
    model::{Attributes, Data, Instrument, Kind, Metric, Number, Quality, Value},
    process::cpu_time,
    resource::{Reading, Root, events},
};

static SYSCALL_DURATION: Instrument = Instrument::histogram(
    "hotspan.syscall.duration",
    "s",
    "Time from entry to return of system calls.",
);
static SYSCALL_ERRORS: Instrument = Instrument::counter(
    "hotspan.syscall.errors",
    "{call}",
    "System calls that failed.",
);
static SYSCALLS_LOST: Instrument = Instrument::counter(
    "hotspan.syscall.lost",
    "{event}",
    "What could not be counted of system calls.",
);
static EVENTS_LOST: Instrument = Instrument::counter(
    "hotspan.event.lost",
    "{event}",
    "What could not be counted of waits, requests to disks and the like.",
);
static OWN_CPU: Instrument =
    Instrument::counter("hotspan.agent.cpu.time", "s", "CPU time of hotspan itself.");
static OWN_MEMORY: Instrument = Instrument::up_down(
    "hotspan.agent.memory.usage",
    "By",
    "Resident memory of hotspan itself.",
);
static BPF_TIME: Instrument = Instrument::counter(
    "hotspan.agent.bpf.time",
    "s",
    "Run time of hotspan's programs in the kernel, while kernel.bpf_stats_enabled is set.",
);
static SAMPLES: Instrument = Instrument::counter(
    "hotspan.agent.samples",
    "{sample}",
    "Samples that are in a profile.",
);
static SAMPLES_LOST: Instrument = Instrument::counter(
    "hotspan.agent.samples.lost",
    "{event}",
    "What was lost while sampling, by reason.",
);
static SAMPLES_CUT: Instrument = Instrument::counter(
    "hotspan.agent.samples.cut",
    "{sample}",
    "Samples whose stack is cut, by reason.",
);
static REQUESTS: Instrument = Instrument::counter(
    "hotspan.agent.export.requests",
    "{request}",
    "Requests to collectors, by what became of them.",
);
static REJECTED: Instrument = Instrument::counter(
    "hotspan.agent.export.rejected",
    "{item}",
    "Profiles and points that a collector took and threw away.",
);
static QUEUED: Instrument = Instrument::up_down(
    "hotspan.agent.export.queued",
    "{request}",
    "Requests that wait to be sent.",
);
static VALUES_REFUSED: Instrument = Instrument::counter(
    "hotspan.agent.metrics.refused",
    "{value}",
    "Values that are no measurement, or found no room.",
);

/// Series stay so long when the last process of their name has ended: who scrapes once a minute is to see
/// what short ones did.
const SERIES_OUTLIVE: Duration = Duration::from_secs(300);

/// What a part of the pipeline tells of itself: a signal's name, and how its exporter fares.
pub type ExportState = Box<dyn Fn() -> (&'static str, ExportHealth)>;

/// All sources of metrics.
pub struct Meters {
    root: Root,
    series: Series,
    syscalls: Option<SyscallMeter>,
    events: Option<EventMeter>,
    exports: Vec<ExportState>,
    /// Names of processes that run or have made calls, and when that was known last.
    processes: Seen,
    /// The same for paths of cgroups.
    cgroups: Seen,
    run_times: Vec<(String, Duration)>,
    samples: u64,
    lost: BTreeMap<&'static str, u64>,
    cut: BTreeMap<&'static str, u64>,
}

impl Meters {
    /// `budget` series of each metric.
    pub fn new(
        budget: usize,
        syscalls: Option<SyscallMeter>,
        events: Option<EventMeter>,
        exports: Vec<ExportState>,
    ) -> Self {
        Self {
            root: Root::host(),
            series: Series::new(budget, Clock::read().wall_of_boot(0)),
            syscalls,
            events,
            exports,
            processes: Seen::default(),
            cgroups: Seen::default(),
            run_times: Vec::new(),
            samples: 0,
            lost: BTreeMap::new(),
            cut: BTreeMap::new(),
        }
    }

    /// Takes over what processes made that ended, so that their rows serve others.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn tick(&mut self) -> Result<()> {
        match &mut self.syscalls {
            Some(syscalls) => syscalls.tick(),
            None => Ok(()),
        }
    }

    /// Notes how good a window's profile is, and how long the programs have run that made it.
    pub fn note_window(&mut self, quality: &Quality, run_times: Vec<(String, Duration)>) {
        self.run_times = run_times;
        self.samples += quality.kept;
        for (reason, count) in &quality.lost {
            *self.lost.entry(reason).or_default() += count;
        }
        for (reason, count) in &quality.cut {
            *self.cut.entry(reason).or_default() += count;
        }
    }

    /// Everything as it is now.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn collect(&mut self) -> Result<Vec<Metric>> {
        let reading = Reading::read_for_metrics(&self.root);
        for observation in reading.observe().0 {
            self.series.observe(observation);
        }
        self.collect_events(&reading)?;
        self.collect_syscalls()?;
        self.collect_own();
        Ok(self
            .series
            .collect(Clock::read().wall_of_mono(now_mono_ns())))
    }

    fn collect_events(&mut self, reading: &Reading) -> Result<()> {
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let changes = events.changes(reading)?;
        let there = reading.cgroup_ids.values().map(|path| path.as_str().into());
        let happened = changes.iter().filter_map(|change| change.cgroup.clone());
        self.cgroups.note(there.chain(happened));
        add_by_reason(&mut self.series, &EVENTS_LOST, &events.losses()?);
        for change in changes {
            let metric = events::metric(change.event);
            let attributes = metric.attributes(&change);
            if metric.instrument.kind == Kind::Counter {
                let count = change.durations.count.into();
                self.series.add(metric.instrument, attributes, count);
            } else {
                let durations = Data::Exponential(histogram(&change.durations, metric.unit));
                self.series
                    .merge(metric.instrument, attributes, &durations, None);
            }
        }
        self.cgroups.forget(&mut self.series, "hotspan.cgroup.path");
        Ok(())
    }

    fn collect_syscalls(&mut self) -> Result<()> {
        let Some(syscalls) = &mut self.syscalls else {
            return Ok(());
        };
        let changes = syscalls.changes()?;
        let running = syscalls.process_names().into_iter();
        let called = changes.keys().map(|(owner, _)| owner.process.clone());
        self.processes.note(running.chain(called));
        add_by_reason(&mut self.series, &SYSCALLS_LOST, &syscalls.losses()?);
        for ((owner, syscall), stats) in changes {
            let of = |more: Option<(&'static str, Value)>| {
                let attributes = [
                    ("hotspan.syscall.name", Value::from(&*syscall)),
                    ("hotspan.process.name", Value::Text(owner.process.clone())),
                ];
                let container = owner.container.clone();
                let container = container.map(|id| ("container.id", Value::Text(id)));
                Attributes::new(attributes.into_iter().chain(container).chain(more))
            };
            let durations = Data::Exponential(histogram_s(&stats.returned));
            self.series
                .merge(&SYSCALL_DURATION, of(None), &durations, None);
            for (&errno, &count) in &stats.errors {
                let error = crate::decode::syscalls::errno_name(errno);
                let attributes = of(Some(("error.type", Value::from(&*error))));
                self.series.add(&SYSCALL_ERRORS, attributes, count.into());
            }
        }
        self.processes
            .forget(&mut self.series, "hotspan.process.name");
        Ok(())
    }

    fn collect_own(&mut self) {
        let pid = std::process::id();
        let none = Attributes::default;
        if let Some(ns) = cpu_time::of_process(pid) {
            self.series
                .total(&OWN_CPU, none(), seconds(Duration::from_nanos(ns)));
        }
        if let Some(bytes) = crate::process::resident_bytes(pid) {
            self.series.value(&OWN_MEMORY, none(), bytes.into());
        }
        let counting = self.syscalls.as_ref().map(SyscallMeter::run_times);
        let events = self.events.as_ref().map(EventMeter::run_times);
        let mut run_times: BTreeMap<_, Duration> = BTreeMap::new();
        // Those that follow processes are at work twice.
        let all = self.run_times.iter().cloned();
        for (name, time) in all.chain([counting, events].into_iter().flatten().flatten()) {
            *run_times.entry(name).or_default() += time;
        }
        for (name, time) in run_times {
            let attributes = Attributes::new([("hotspan.bpf.program", Value::from(&*name))]);
            self.series.total(&BPF_TIME, attributes, seconds(time));
        }
        self.series.total(&SAMPLES, none(), self.samples.into());
        add_by_reason(&mut self.series, &SAMPLES_LOST, &self.lost);
        add_by_reason(&mut self.series, &SAMPLES_CUT, &self.cut);
        for state in &self.exports {
            let (signal, health) = state();
            let of = |outcome: &str| {
                let signal = ("signal", Value::from(signal));
                Attributes::new([signal, ("outcome", Value::from(outcome))])
            };
            self.series.total(&REQUESTS, of("sent"), health.sent.into());
            self.series
                .total(&REQUESTS, of("dropped"), health.dropped.into());
            for (reason, count) in health.failed {
                self.series.total(&REQUESTS, of(reason), count.into());
            }
            let signal = || Attributes::new([("signal", Value::from(signal))]);
            self.series
                .total(&REJECTED, signal(), health.rejected.into());
            self.series.value(&QUEUED, signal(), health.queued.into());
        }
        let refused = self.series.refused + self.series.left_out;
        self.series.total(&VALUES_REFUSED, none(), refused.into());
    }
}

/// Whose series there are, and when each was last there.
#[derive(Default)]
struct Seen(BTreeMap<Arc<str>, Instant>);

impl Seen {
    fn note(&mut self, names: impl Iterator<Item = Arc<str>>) {
        let now = Instant::now();
        self.0.extend(names.map(|name| (name, now)));
        self.0.retain(|_, seen| now - *seen < SERIES_OUTLIVE);
    }

    /// Ends the series of owners that are gone, which this attribute names.
    fn forget(&self, series: &mut Series, key: &str) {
        series.forget(|attributes| match attributes.get(key) {
            Some(Value::Text(name)) => !self.0.contains_key(name),
            _ => false,
        });
    }
}

fn add_by_reason(
    series: &mut Series,
    instrument: &'static Instrument,
    counts: &BTreeMap<&'static str, u64>,
) {
    for (&reason, &count) in counts {
        let attributes = Attributes::new([("reason", Value::from(reason))]);
        series.total(instrument, attributes, count.into());
    }
}

fn seconds(duration: Duration) -> Number {
    duration.as_secs_f64().into()
}
