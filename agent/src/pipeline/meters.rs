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

use super::{exporter::ExportHealth, syscalls::SyscallMeter};
use crate::{
    aggregate::{
        Series,
        clock::{Clock, now_mono_ns},
    },
    model::{
        Attributes, Data, ExponentialHistogram, Instrument, Metric, Number, Quality, SyscallStats,
        Value,
    },
    process::cpu_time,
    resource::{Reading, Root},
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
    exports: Vec<ExportState>,
    /// Names of processes that run or have made calls, and when that was known last.
    seen: BTreeMap<Arc<str>, Instant>,
    run_times: Vec<(String, Duration)>,
    samples: u64,
    lost: BTreeMap<&'static str, u64>,
    cut: BTreeMap<&'static str, u64>,
}

impl Meters {
    /// `budget` series of each metric.
    pub fn new(budget: usize, syscalls: Option<SyscallMeter>, exports: Vec<ExportState>) -> Self {
        Self {
            root: Root::host(),
            series: Series::new(budget, Clock::read().wall_of_boot(0)),
            syscalls,
            exports,
            seen: BTreeMap::new(),
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
        for observation in Reading::read_for_metrics(&self.root).observe().0 {
            self.series.observe(observation);
        }
        self.collect_syscalls()?;
        self.collect_own();
        Ok(self
            .series
            .collect(Clock::read().wall_of_mono(now_mono_ns())))
    }

    fn collect_syscalls(&mut self) -> Result<()> {
        let Some(syscalls) = &mut self.syscalls else {
            return Ok(());
        };
        let changes = syscalls.changes()?;
        let now = Instant::now();
        let running = syscalls.process_names().into_iter();
        let called = changes.keys().map(|(process, _)| process.clone());
        self.seen
            .extend(running.chain(called).map(|name| (name, now)));
        self.seen.retain(|_, seen| now - *seen < SERIES_OUTLIVE);
        for (reason, count) in syscalls.losses()? {
            let attributes = Attributes::new([("reason", Value::from(reason))]);
            self.series.total(&SYSCALLS_LOST, attributes, count.into());
        }
        for ((process, syscall), stats) in changes {
            let of = |more: Option<(&'static str, Value)>| {
                let attributes = [
                    ("hotspan.syscall.name", Value::from(&*syscall)),
                    ("hotspan.process.name", Value::Text(process.clone())),
                ];
                Attributes::new(attributes.into_iter().chain(more))
            };
            let durations = Data::Exponential(histogram(&stats));
            self.series
                .merge(&SYSCALL_DURATION, of(None), &durations, None);
            for (&errno, &count) in &stats.errors {
                let error = crate::decode::syscalls::errno_name(errno);
                let attributes = of(Some(("error.type", Value::from(&*error))));
                self.series.add(&SYSCALL_ERRORS, attributes, count.into());
            }
        }
        let seen = &self.seen;
        self.series
            .forget(|attributes| match attributes.get("hotspan.process.name") {
                Some(Value::Text(name)) => !seen.contains_key(name),
                _ => false,
            });
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
        let mut run_times: BTreeMap<_, Duration> = BTreeMap::new();
        // Those that follow processes are at work twice.
        let all = self.run_times.iter().cloned();
        for (name, time) in all.chain(counting.unwrap_or_default()) {
            *run_times.entry(name).or_default() += time;
        }
        for (name, time) in run_times {
            let attributes = Attributes::new([("hotspan.bpf.program", Value::from(&*name))]);
            self.series.total(&BPF_TIME, attributes, seconds(time));
        }
        self.series.total(&SAMPLES, none(), self.samples.into());
        for (instrument, counts) in [(&SAMPLES_LOST, &self.lost), (&SAMPLES_CUT, &self.cut)] {
            for (&reason, &count) in counts {
                let attributes = Attributes::new([("reason", Value::from(reason))]);
                self.series.total(instrument, attributes, count.into());
            }
        }
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

/// The kernel's buckets as a histogram in seconds: each by the middle of its bucket, which is wrong by
/// an eighth at most; the sum and the longest are exact.
fn histogram(stats: &SyscallStats) -> ExponentialHistogram {
    let mut histogram = ExponentialHistogram::default();
    for (&start_ns, &count) in &stats.durations {
        let end_ns =
            crate::aggregate::syscalls::bucket_end_ns(start_ns).min(stats.max_ns.max(start_ns));
        histogram.record(start_ns.midpoint(end_ns) as f64 / 1e9, count);
    }
    histogram.sum = stats.total_ns as f64 / 1e9;
    histogram
}

fn seconds(duration: Duration) -> Number {
    duration.as_secs_f64().into()
}
