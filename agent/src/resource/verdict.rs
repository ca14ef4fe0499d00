//! From numbers to a word: one table of thresholds, with their reasons.

use crate::model::{Check, Contributor, Measure, Verdict};

/// A ratio from 0 to 1.
pub const RATIO: &str = "1";

/// When to say what of a kind of resource. Errors come before saturation, that before use.
struct Rule {
    resource: &'static str,
    /// Busy from this utilization on.
    busy: f64,
    /// Saturated from this utilization on, whoever waits or not: for what runs full.
    full: f64,
    /// Saturated from this saturation on, by its unit.
    waiting: &'static [(&'static str, f64)],
    /// Failing above this rate of errors.
    errors: f64,
}

const NEVER: f64 = f64::INFINITY;

/// What is filled, not timed: at 80 % there is time to act, at 95 % it is about to fail somebody
/// (ext4 keeps 5 % for root, for one).
const fn filled(resource: &'static str, waiting: &'static [(&'static str, f64)]) -> Rule {
    Rule {
        resource,
        busy: 0.8,
        full: 0.95,
        waiting,
        errors: 0.0,
    }
}

/// What is used by time: by queueing theory (M/M/1), work waits as long as four others take at
/// 80 %. Full use alone is no harm, only waiting is.
const fn timed(resource: &'static str, waiting: &'static [(&'static str, f64)]) -> Rule {
    Rule {
        resource,
        busy: 0.8,
        full: NEVER,
        waiting,
        errors: 0.0,
    }
}

#[rustfmt::skip]
const RULES: &[Rule] = &[
    // Somebody waits a quarter of the time, or on one core somebody waits at any time.
    timed("cpu", &[(RATIO, 0.25), ("{thread}", 1.0)]),
    // For each CPU there is one that runs and one that waits: everything takes twice its time.
    timed("run-queue", &[("{thread}/{cpu}", 1.0)]),
    // 10 % is where oomd and Android's lmkd start to kill. A stall of direct reclaim takes some
    // milliseconds: ten of them are some percent, too.
    filled("memory", &[(RATIO, 0.1), ("{stall}/s", 10.0)]),
    // A page read back is a millisecond of waiting for a fast disk: 100 are 10 % of the time.
    filled("swap", &[("{page}/s", 100.0)]),
    // Between what one spindle (2) and the queue of a SATA disk (32) do well.
    timed("disk", &[("{operation}", 8.0)]),
    // Waiting for a disk is what programs expect, a fifth of the time is not.
    timed("io", &[(RATIO, 0.2)]),
    filled("filesystem", &[]),
    filled("inodes", &[]),
    // Frames of protocols that nobody listens to, such as a switch's spanning tree every two
    // seconds, count as dropped.
    Rule { resource: "network", busy: 0.8, full: 0.95, waiting: &[("{packet}/s", 1.0)], errors: 0.0 },
    // A round that ends early is followed by another: some are normal under load.
    timed("softnet", &[("{squeeze}/s", 10.0)]),
    // Any connection that a full queue turns away is one too many. One segment in a hundred sent
    // again is where throughput falls by half at usual distances.
    Rule { resource: "tcp", busy: 0.8, full: 0.95, waiting: &[("{connection}/s", f64::MIN_POSITIVE)], errors: 0.01 },
    timed("softirq", &[]),
    filled("file-descriptors", &[]),
    filled("processes", &[]),
    // As for the host.
    timed("cgroup-cpu", &[(RATIO, 0.25)]),
    filled("cgroup-memory", &[(RATIO, 0.1), ("{failure}/s", 10.0)]),
    timed("cgroup-io", &[(RATIO, 0.2)]),
    filled("cgroup-pids", &[]),
];

/// Numbers of a resource in an interval; `None` where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// From 0 to 1.
    pub utilization: Option<f64>,
    /// In the unit that stands beside it.
    pub saturation: Option<(f64, &'static str)>,
    /// In the unit that stands beside it.
    pub errors: Option<(f64, &'static str)>,
}

impl Numbers {
    /// Says what to think of these numbers.
    #[must_use]
    pub fn check(
        self,
        resource: &'static str,
        instance: impl Into<String>,
        top: Vec<Contributor>,
    ) -> Check {
        let measure = |(value, unit)| Measure { value, unit };
        let utilization = self.utilization.map(|value| measure((value, RATIO)));
        let (saturation, errors) = (self.saturation.map(measure), self.errors.map(measure));
        Check {
            resource,
            instance: instance.into(),
            utilization,
            saturation,
            errors,
            latency: None,
            verdict: verdict(resource, utilization, saturation, errors),
            top,
        }
    }
}

/// Thinks again of a check whose numbers have changed.
pub fn review(check: &mut Check) {
    check.verdict = verdict(
        check.resource,
        check.utilization,
        check.saturation,
        check.errors,
    );
}

fn verdict(
    resource: &str,
    utilization: Option<Measure>,
    saturation: Option<Measure>,
    errors: Option<Measure>,
) -> Verdict {
    if utilization.is_none() && saturation.is_none() && errors.is_none() {
        return Verdict::Unknown;
    }
    let rule = RULES
        .iter()
        .find(|rule| rule.resource == resource)
        .expect("every resource has a rule: a test looks at all that there are");
    let used = utilization.map_or(0.0, |used| used.value);
    let is_waited_for = saturation.is_some_and(|waiting| {
        rule.waiting
            .iter()
            .any(|(unit, from)| *unit == waiting.unit && waiting.value >= *from)
    });
    if errors.is_some_and(|errors| errors.value > rule.errors) {
        Verdict::Errors
    } else if is_waited_for || used >= rule.full {
        Verdict::Saturated
    } else if used >= rule.busy {
        Verdict::Busy
    } else {
        Verdict::Ok
    }
}

/// Whether the table knows the resource, and the unit of its saturation.
#[cfg(test)]
pub fn has_rule(check: &Check) -> bool {
    RULES.iter().any(|rule| {
        let knows = |waiting: Measure| rule.waiting.iter().any(|(unit, _)| *unit == waiting.unit);
        rule.resource == check.resource && check.saturation.is_none_or(knows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_before_waiting_and_that_before_use() {
        let check = |utilization, waiting: Option<f64>, errors: Option<f64>| {
            let numbers = Numbers {
                utilization,
                saturation: waiting.map(|value| (value, RATIO)),
                errors: errors.map(|value| (value, "{kill}/s")),
            };
            numbers.check("memory", "host", Vec::new()).verdict
        };
        assert_eq!(check(None, None, None), Verdict::Unknown);
        assert_eq!(check(Some(0.5), None, None), Verdict::Ok);
        assert_eq!(check(Some(0.8), Some(0.05), Some(0.0)), Verdict::Busy);
        assert_eq!(check(Some(0.95), None, None), Verdict::Saturated);
        assert_eq!(check(Some(0.5), Some(0.1), None), Verdict::Saturated);
        assert_eq!(check(Some(1.0), Some(1.0), Some(0.1)), Verdict::Errors);
        assert_eq!(check(None, Some(0.0), None), Verdict::Ok);
    }
}
