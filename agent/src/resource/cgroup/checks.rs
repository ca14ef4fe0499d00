//! What two readings of a cgroup say.

use super::super::interval::{Interval, growth, part_of_whole, ratio};
use super::super::psi;
use super::super::verdict::{Numbers, RATIO};
use super::{Group, Reading};
use crate::model::Check;

/// What there is without a limit.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// CPUs that are online.
    pub cpus: usize,
    /// Memory in bytes; 0 when it is not known.
    pub memory_bytes: u64,
}

/// Checks each cgroup that was there both times, and of it what the kernel tells.
#[must_use]
pub fn checks(interval: Interval, before: &Reading, now: &Reading, host: Host) -> Vec<Check> {
    let mut checks = Vec::new();
    for (path, group) in now {
        let Some(before) = before.get(path) else {
            continue;
        };
        let found = [
            ("cgroup-cpu", cpu(interval, before, group, now, path, host)),
            (
                "cgroup-memory",
                memory(interval, before, group, now, path, host),
            ),
            ("cgroup-io", io(interval, before, group)),
            ("cgroup-pids", pids(interval, before, group)),
        ];
        let is_known = |numbers: &Numbers| {
            numbers.utilization.is_some()
                || numbers.saturation.is_some()
                || numbers.errors.is_some()
        };
        checks.extend(
            found
                .into_iter()
                .filter(|(_, numbers)| is_known(numbers))
                .map(|(resource, numbers)| numbers.check(resource, path, Vec::new())),
        );
    }
    checks
}

/// The tightest limit on the way from a cgroup to the root: it binds all below.
fn tightest<T: PartialOrd>(
    groups: &Reading,
    path: &str,
    limit: impl Fn(&Group) -> Option<T>,
) -> Option<T> {
    let ends = path.match_indices('/').map(|(end, _)| end).skip(1);
    ends.chain([path.len()])
        .filter_map(|end| limit(groups.get(&path[..end])?))
        .reduce(|a, b| if b < a { b } else { a })
}

/// Time used of what it may use; periods in which it was stopped, or time in which one of its
/// threads waited, whichever is more.
fn cpu(
    interval: Interval,
    before: &Group,
    now: &Group,
    all: &Reading,
    path: &str,
    host: Host,
) -> Numbers {
    let (before, now) = (&before.cpu, &now.cpu);
    let cpus = host.cpus as f64;
    let may_use =
        tightest(all, path, |group| group.cpu.limit).map_or(cpus, |limit| limit.min(cpus));
    let used = interval.average(before.used_ns, now.used_ns, 1e9);
    let stopped = growth(before.throttled_periods, now.throttled_periods)
        .zip(growth(before.periods, now.periods))
        .and_then(|(stopped, periods)| match periods {
            0 => None,
            periods => ratio(stopped, periods),
        });
    let waiting = psi::waiting(interval, before.pressure, now.pressure);
    Numbers {
        utilization: used
            .filter(|_| may_use > 0.0)
            // With quotas carried over from idle periods it may use more for a moment.
            .map(|used| (used / may_use).min(1.0))
            .filter(|_| used.and_then(|used| part_of_whole(used / cpus)).is_some()),
        saturation: [stopped, waiting]
            .into_iter()
            .flatten()
            .reduce(f64::max)
            .map(|share| (share, RATIO)),
        errors: None,
    }
}

/// Memory that cannot be taken back at once, of what it may have.
fn memory(
    interval: Interval,
    before: &Group,
    now: &Group,
    all: &Reading,
    path: &str,
    host: Host,
) -> Numbers {
    let limit = tightest(all, path, |group| group.memory.limit_bytes)
        .map_or(host.memory_bytes, |limit| limit.min(host.memory_bytes));
    let (before, now) = (&before.memory, &now.memory);
    let waiting = psi::waiting(interval, before.pressure, now.pressure).map(|share| (share, RATIO));
    let hits = || {
        let rate = interval.per_s(before.limit_hits, now.limit_hits)?;
        Some((rate, "{failure}/s"))
    };
    Numbers {
        utilization: now
            .working_set_bytes()
            .and_then(|bytes| ratio(bytes.min(limit), limit)),
        saturation: waiting.or_else(hits),
        errors: interval
            .per_s(before.oom_kills, now.oom_kills)
            .map(|rate| (rate, "{kill}/s")),
    }
}

fn io(interval: Interval, before: &Group, now: &Group) -> Numbers {
    Numbers {
        saturation: psi::waiting(interval, before.io_pressure, now.io_pressure)
            .map(|share| (share, RATIO)),
        ..Numbers::default()
    }
}

fn pids(interval: Interval, before: &Group, now: &Group) -> Numbers {
    let (before, now) = (&before.pids, &now.pids);
    Numbers {
        utilization: now
            .count
            .zip(now.limit)
            .and_then(|(count, limit)| ratio(count.min(limit), limit)),
        saturation: None,
        errors: interval
            .per_s(before.refused, now.refused)
            .map(|rate| (rate, "{refusal}/s")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cpu, Memory, Pids};
    use super::*;
    use crate::model::Verdict;
    use std::time::Duration;

    const HOST: Host = Host {
        cpus: 4,
        memory_bytes: 1000,
    };

    fn found(before: &[(&str, Group)], now: &[(&str, Group)]) -> Vec<Check> {
        let reading = |groups: &[(&str, Group)]| -> Reading {
            let groups = groups.iter().cloned();
            groups
                .map(|(path, group)| (path.to_owned(), group))
                .collect()
        };
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        checks(interval, &reading(before), &reading(now), HOST)
    }

    fn cpu(used_ns: u64, limit: Option<f64>, throttled: Option<u64>) -> Group {
        Group {
            cpu: Cpu {
                used_ns: Some(used_ns),
                limit,
                periods: throttled.map(|_| used_ns / 100_000_000),
                throttled_periods: throttled,
                pressure: None,
                throttled_ns: None,
            },
            ..Group::default()
        }
    }

    #[test]
    fn the_tightest_limit_above_binds() {
        let before = [
            ("/a", cpu(0, Some(0.5), None)),
            ("/a/b", cpu(0, None, None)),
        ];
        let now = [
            ("/a", cpu(500_000_000, Some(0.5), None)),
            ("/a/b", cpu(250_000_000, Some(2.0), None)),
        ];
        let used: Vec<_> = found(&before, &now)
            .iter()
            .map(|check| check.utilization.unwrap().value)
            .collect();
        assert_eq!(used, [1.0, 0.5]);
        let free = found(
            &[("/a", cpu(0, None, None))],
            &[("/a", cpu(1_000_000_000, None, None))],
        );
        assert_eq!(free[0].utilization.unwrap().value, 0.25);
    }

    #[test]
    fn being_stopped_is_saturation() {
        let found = found(
            &[("/a", cpu(0, Some(1.0), Some(0)))],
            &[("/a", cpu(1_000_000_000, Some(1.0), Some(5)))],
        );
        assert_eq!(found[0].saturation.unwrap().value, 0.5);
        assert_eq!(found[0].verdict, Verdict::Saturated);
    }

    #[test]
    fn caches_are_not_needed_and_kills_are_errors() {
        let group = |oom_kills| Group {
            memory: Memory {
                bytes: Some(600),
                inactive_file_bytes: Some(350),
                limit_bytes: Some(500),
                limit_hits: Some(1),
                oom_kills: Some(oom_kills),
                pressure: None,
            },
            pids: Pids {
                count: Some(9),
                limit: Some(10),
                refused: Some(oom_kills),
            },
            ..Group::default()
        };
        let found = found(&[("/a", group(0))], &[("/a", group(1))]);
        assert_eq!(found[0].utilization.unwrap().value, 0.5);
        assert_eq!(found[0].verdict, Verdict::Errors);
        assert_eq!(found[1].utilization.unwrap().value, 0.9);
        assert_eq!(found[1].verdict, Verdict::Errors);
    }

    #[test]
    fn a_cgroup_made_anew_under_its_name_gives_no_rate() {
        let found = found(
            &[
                ("/a", cpu(5_000, None, None)),
                ("/gone", cpu(0, None, None)),
            ],
            &[("/a", cpu(1, None, None)), ("/new", cpu(9, None, None))],
        );
        assert_eq!(found, []);
    }
}
