//! CPUs, each and all together: `/proc/stat`, `/proc/schedstat`, pressure, thermal throttling.
//! Documentation/filesystems/proc.rst, Documentation/scheduler/sched-stats.rst.

use std::collections::BTreeMap;

use super::contributors::Contributors;
use super::interval::{Interval, growth, ratio};
use super::psi::{self, Pressure};
use super::root::Reader;
use super::text;
use super::verdict::{Numbers, RATIO};
use crate::model::{Check, Instrument, Observations, Value};

/// Steps of CPU time in a second: `USER_HZ`, which is fixed in the kernel's interface.
pub const TICKS_PER_S: u64 = 100;

/// Raw counters of all CPUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// `/proc/stat`.
    pub stat: Option<Stat>,
    /// Nanoseconds that threads waited for each CPU, by its number; not every kernel counts them.
    pub wait_ns: BTreeMap<u32, u64>,
    /// How often each core slowed down because it was too hot, by its number.
    pub throttles: BTreeMap<u32, u64>,
    /// Pressure of the host.
    pub pressure: Option<Pressure>,
}

/// What `/proc/stat` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    /// All CPUs together.
    pub host: Times,
    /// Those that are online, by number.
    pub cores: BTreeMap<u32, Times>,
    /// Processes and threads started since boot.
    pub forks: Option<u64>,
    /// Context switches since boot.
    pub context_switches: Option<u64>,
    /// Interrupts since boot.
    pub interrupts: Option<u64>,
    /// When the host started, in seconds since the Unix epoch.
    pub boot_wall_s: Option<u64>,
    /// Threads that run or could, now.
    pub running: Option<u64>,
    /// Threads that wait for I/O, now.
    pub blocked: Option<u64>,
}

/// CPU time by mode, in ticks since boot. Time of guests is part of `user` and `nice`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The kernel's own words.
pub struct Times {
    pub user: u64,
    pub nice: u64,
    pub system: u64,
    pub idle: u64,
    pub iowait: u64,
    pub irq: u64,
    pub softirq: u64,
    pub steal: u64,
    /// Of `user`, that of guests.
    pub guest: u64,
    /// Of `nice`, that of guests.
    pub guest_nice: u64,
}

impl Times {
    fn parse(line: &str) -> Option<Self> {
        let fields = text::numbers(line)?;
        let [
            user,
            nice,
            system,
            idle,
            iowait,
            irq,
            softirq,
            ref rest @ ..,
        ] = fields[..]
        else {
            return None;
        };
        Some(Self {
            user,
            nice,
            system,
            idle,
            iowait,
            irq,
            softirq,
            steal: rest.first().copied().unwrap_or(0),
            guest: rest.get(1).copied().unwrap_or(0),
            guest_nice: rest.get(2).copied().unwrap_or(0),
        })
    }

    /// Ticks used, and ticks there were, since `before`. What the hypervisor took away was not
    /// there. `None` when a counter went back, as that of `iowait` may.
    #[must_use]
    pub fn used_since(&self, before: &Self) -> Option<(u64, u64)> {
        let since = |field: fn(&Self) -> u64| growth(Some(field(before)), Some(field(self)));
        since(|times| times.steal)?;
        let busy = [
            since(|times| times.user)?,
            since(|times| times.nice)?,
            since(|times| times.system)?,
            since(|times| times.irq)?,
            since(|times| times.softirq)?,
        ]
        .into_iter()
        .try_fold(0_u64, u64::checked_add)?;
        let idle = since(|times| times.idle)?.checked_add(since(|times| times.iowait)?)?;
        Some((busy, busy.checked_add(idle)?))
    }
}

/// Parses `/proc/stat`.
#[must_use]
pub fn parse_stat(text: &str) -> Option<Stat> {
    let mut host = None;
    let mut cores = BTreeMap::new();
    let mut others = BTreeMap::new();
    for line in text::lines(text) {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        match key.strip_prefix("cpu") {
            Some("") => host = Some(Times::parse(rest)?),
            Some(number) => drop(cores.insert(number.parse().ok()?, Times::parse(rest)?)),
            None => {
                let number = rest.split(' ').next().and_then(|word| word.parse().ok());
                number.map(|number: u64| others.insert(key, number));
            }
        }
    }
    Some(Stat {
        host: host?,
        cores,
        forks: others.get("processes").copied(),
        context_switches: others.get("ctxt").copied(),
        interrupts: others.get("intr").copied(),
        boot_wall_s: others.get("btime").copied(),
        running: others.get("procs_running").copied(),
        blocked: others.get("procs_blocked").copied(),
    })
}

/// Parses `/proc/schedstat`: nanoseconds that threads waited, by CPU. The eighth field of a CPU's
/// line means that in the versions 15 to 17, which Linux has had since 2.6.30.
#[must_use]
pub fn parse_schedstat(text: &str) -> Option<BTreeMap<u32, u64>> {
    let version = text::lines(text).next()?.strip_prefix("version ")?;
    if !(15..=17).contains(&version.parse::<u32>().ok()?) {
        return None;
    }
    text::lines(text)
        .filter_map(|line| line.strip_prefix("cpu"))
        .map(|line| {
            let (number, rest) = line.split_once(' ')?;
            Some((number.parse().ok()?, *text::numbers(rest)?.get(7)?))
        })
        .collect()
}

/// Reads the counters.
pub fn read(reader: &mut Reader) -> Reading {
    let stat = reader.read("proc/stat", parse_stat);
    let cores = stat.as_ref().map(|stat| &stat.cores);
    let throttles = cores
        .into_iter()
        .flat_map(BTreeMap::keys)
        .filter_map(|core| {
            let path =
                format!("sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count");
            Some((*core, reader.read(&path, text::number)?))
        })
        .collect();
    Reading {
        wait_ns: reader
            .read("proc/schedstat", parse_schedstat)
            .unwrap_or_default(),
        throttles,
        pressure: reader.read("proc/pressure/cpu", psi::parse),
        stat,
    }
}

/// Checks the host's CPUs together, the queues before them, and each one.
#[must_use]
pub fn checks(
    interval: Interval,
    before: &Reading,
    now: &Reading,
    contributors: &Contributors,
) -> Vec<Check> {
    let (Some(stat_before), Some(stat)) = (&before.stat, &now.stat) else {
        return Vec::new();
    };
    let used = stat.host.used_since(&stat_before.host);
    let host = Numbers {
        utilization: used.and_then(|(busy, total)| ratio(busy, total)),
        saturation: psi::waiting(interval, before.pressure, now.pressure)
            .map(|share| (share, RATIO)),
        errors: None,
    };
    let top = contributors.by_cpu(used.map_or(0, |(busy, _)| busy));
    let mut checks = vec![host.check("cpu", "host", top)];
    checks.push(run_queue(interval, before, now, contributors));
    for (core, times) in &stat.cores {
        let Some(times_before) = stat_before.cores.get(core) else {
            continue; // It was offline.
        };
        let used = times.used_since(times_before);
        let waiting = |reading: &Reading| reading.wait_ns.get(core).copied();
        let throttles = |reading: &Reading| reading.throttles.get(core).copied();
        let numbers = Numbers {
            utilization: used.and_then(|(busy, total)| ratio(busy, total)),
            saturation: interval
                .average(waiting(before), waiting(now), 1e9)
                .map(|threads| (threads, "{thread}")),
            errors: interval
                .per_s(throttles(before), throttles(now))
                .map(|rate| (rate, "{throttle}/s")),
        };
        let top = contributors.on_core(*core, used.map_or(0, |(busy, _)| busy));
        checks.push(numbers.check("cpu", format!("cpu{core}"), top));
    }
    checks
}

/// Who waits for a CPU: the average number of threads that could run and do not, for each CPU.
/// Where the kernel keeps no account by CPU, the threads that are alive are asked.
fn run_queue(
    interval: Interval,
    before: &Reading,
    now: &Reading,
    contributors: &Contributors,
) -> Check {
    let cores = now.stat.as_ref().map_or(0, |stat| stat.cores.len());
    let by_core = now.wait_ns.iter().map(|(core, wait_ns)| {
        interval.average(before.wait_ns.get(core).copied(), Some(*wait_ns), 1e9)
    });
    let threads = if now.wait_ns.is_empty() {
        let waited_ns = contributors.waited_ns();
        interval.average(waited_ns.map(|_| 0), waited_ns, 1e9)
    } else {
        by_core.sum::<Option<f64>>()
    };
    let numbers = Numbers {
        saturation: threads
            .filter(|_| cores > 0)
            .map(|threads| (threads / cores as f64, "{thread}/{cpu}")),
        ..Numbers::default()
    };
    numbers.check("run-queue", "host", contributors.by_wait())
}

static TIME: Instrument = Instrument::counter(
    "system.cpu.time",
    "s",
    "Time that each CPU spent in each mode.",
);
static CPUS: Instrument =
    Instrument::up_down("system.cpu.logical.count", "{cpu}", "CPUs that are online.");
static WAIT: Instrument = Instrument::counter(
    "hotspan.cpu.wait.time",
    "s",
    "Time that threads waited for a CPU while they could run.",
);
static THROTTLES: Instrument = Instrument::counter(
    "hotspan.cpu.throttles",
    "{throttle}",
    "How often the CPU slowed down because it was too hot.",
);
static SWITCHES: Instrument = Instrument::counter(
    "hotspan.context_switches",
    "{switch}",
    "Switches from one thread to another.",
);
static GUESTS: Instrument = Instrument::counter(
    "hotspan.cpu.guest.time",
    "s",
    "Of the time in user and nice mode, that of virtual machines.",
);
static INTERRUPTS: Instrument = Instrument::counter(
    "hotspan.interrupts",
    "{interrupt}",
    "Interrupts of all CPUs.",
);
static BOOT: Instrument = Instrument::gauge(
    "hotspan.boot_time",
    "s",
    "When the host started, since the Unix epoch.",
);
static CREATED: Instrument = Instrument::counter(
    "system.process.created",
    "{process}",
    "Processes and threads that were started.",
);
static RUNNABLE: Instrument = Instrument::up_down(
    "hotspan.threads.active",
    "{thread}",
    "Threads that run or could, and threads that wait for a disk.",
);

/// Tells the counters.
pub fn observe(now: &Reading, out: &mut Observations) {
    let Some(stat) = &now.stat else {
        return;
    };
    for (core, times) in &stat.cores {
        for (mode, ticks) in [
            // `nice` is a part of its own here, as it is in the kernel.
            ("user", times.user),
            ("nice", times.nice),
            ("system", times.system),
            ("idle", times.idle),
            ("iowait", times.iowait),
            ("interrupt", times.irq),
            ("softirq", times.softirq),
            ("steal", times.steal),
        ] {
            let attributes = [
                ("cpu.logical_number", Value::from(*core)),
                ("cpu.mode", Value::from(mode)),
            ];
            out.add(&TIME, attributes, ticks as f64 / TICKS_PER_S as f64);
        }
        for (mode, ticks) in [("user", times.guest), ("nice", times.guest_nice)] {
            let attributes = [
                ("cpu.logical_number", Value::from(*core)),
                ("cpu.mode", Value::from(mode)),
            ];
            out.add(&GUESTS, attributes, ticks as f64 / TICKS_PER_S as f64);
        }
    }
    out.add(&CPUS, [], stat.cores.len() as u64);
    let of = |core: &u32| [("cpu.logical_number", Value::from(*core))];
    for (core, wait_ns) in &now.wait_ns {
        out.add(&WAIT, of(core), *wait_ns as f64 / 1e9);
    }
    for (core, throttles) in &now.throttles {
        out.add(&THROTTLES, of(core), *throttles);
    }
    out.add(&SWITCHES, [], stat.context_switches);
    out.add(&CREATED, [], stat.forks);
    out.add(&INTERRUPTS, [], stat.interrupts);
    out.add(&BOOT, [], stat.boot_wall_s);
    let state = |state: &str| [("hotspan.thread.state", Value::from(state))];
    out.add(&RUNNABLE, state("runnable"), stat.running);
    out.add(&RUNNABLE, state("blocked"), stat.blocked);
    psi::observe("cpu", now.pressure, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const STAT: &str = "cpu  438153 436398 95285 13862 972 6 512 1453 0 0\n\
        cpu0 208844 229795 45252 8461 228 2 28 738 0 0\n\
        cpu12 229308 206603 50032 5400 744 4 484 714 0 0\n\
        intr 7783031 0 0 1\nctxt 9064879\nbtime 1795645222\nprocesses 127572\n\
        procs_running 22\nprocs_blocked 3\nsoftirq 1865307 0 335974\n";
    const SCHEDSTAT: &str = "version 15\ntimestamp 4295\n\
        cpu0 1 0 2 3 4 5 1000 777 9\ndomain0 3 1 2 3 4 5 6 7 8 9\n\
        cpu12 1 0 2 3 4 5 1000 888 9\n";

    #[test]
    fn stat_is_read_by_cpu_and_mode() {
        let stat = parse_stat(STAT).unwrap();
        assert_eq!((stat.host.user, stat.host.steal), (438_153, 1453));
        assert_eq!(stat.cores.keys().copied().collect::<Vec<_>>(), [0, 12]);
        assert_eq!((stat.forks, stat.running), (Some(127_572), Some(22)));
        assert_eq!(parse_stat("cpu  1 2 3\n"), None);
        assert_eq!(parse_stat(""), None);
        text::torture::check(STAT, parse_stat);
    }

    #[test]
    fn schedstat_of_known_versions_is_read() {
        let expected = BTreeMap::from([(0, 777), (12, 888)]);
        assert_eq!(parse_schedstat(SCHEDSTAT), Some(expected));
        assert_eq!(
            parse_schedstat("version 14\ncpu0 1 2 3 4 5 6 7 8 9\n"),
            None
        );
        text::torture::check(SCHEDSTAT, parse_schedstat);
    }

    fn reading(busy: u64, idle: u64, steal: u64) -> Reading {
        let times = Times {
            user: busy,
            idle,
            steal,
            ..Times::default()
        };
        Reading {
            stat: Some(Stat {
                host: times,
                cores: BTreeMap::from([(0, times)]),
                forks: None,
                context_switches: None,
                interrupts: None,
                boot_wall_s: None,
                running: None,
                blocked: None,
            }),
            wait_ns: BTreeMap::from([(0, busy * 10_000_000)]),
            ..Reading::default()
        }
    }

    fn utilization(before: &Reading, now: &Reading) -> Option<f64> {
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let checks = checks(interval, before, now, &Contributors::default());
        assert_eq!(checks.len(), 3);
        checks[2].utilization.map(|used| used.value)
    }

    #[test]
    fn stolen_time_is_not_there_and_what_goes_back_says_nothing() {
        let start = reading(100, 100, 100);
        assert_eq!(utilization(&start, &reading(150, 150, 100)), Some(0.5));
        assert_eq!(utilization(&start, &reading(150, 100, 150)), Some(1.0));
        assert_eq!(utilization(&start, &reading(150, 99, 100)), None);
        assert_eq!(utilization(&start, &reading(0, 0, 0)), None);
        assert_eq!(utilization(&start, &start), None);
    }

    #[test]
    fn a_core_that_was_offline_is_left_out() {
        let mut before = reading(1, 1, 0);
        before.stat.as_mut().unwrap().cores.clear();
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let found = checks(
            interval,
            &before,
            &reading(2, 2, 0),
            &Contributors::default(),
        );
        let instances: Vec<_> = found.iter().map(|check| &check.instance).collect();
        assert_eq!(instances, ["host", "host"]);
    }

    #[test]
    fn waiting_is_an_average_number_of_threads() {
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let (before, now) = (reading(100, 100, 0), reading(150, 150, 0));
        let found = checks(interval, &before, &now, &Contributors::default());
        assert_eq!(found[1].saturation.unwrap().value, 0.5);
        assert_eq!(found[2].saturation.unwrap().value, 0.5);
    }
}
