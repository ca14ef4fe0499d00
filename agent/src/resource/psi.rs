//! Pressure stall information: how long tasks waited for a resource.
//! Documentation/accounting/psi.rst; the same format for the host and for cgroups of version 2.

use super::interval::Interval;
use super::text;
use crate::model::{Instrument, Observations, Value};

/// Raw counters of one pressure file, in microseconds since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Time in which at least one task waited.
    pub some_us: u64,
    /// Time in which all tasks waited. Before Linux 5.13 there is none for CPUs.
    pub full_us: Option<u64>,
}

/// Parses `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`, then the same for `full`.
#[must_use]
pub fn parse(text: &str) -> Option<Pressure> {
    let total = |kind: &str| {
        let line = text::lines(text).find(|line| line.split(' ').next() == Some(kind))?;
        line.split(' ')
            .find_map(|word| word.strip_prefix("total="))?
            .parse()
            .ok()
    };
    Some(Pressure {
        some_us: total("some")?,
        full_us: total("full"),
    })
}

/// The share of the interval in which at least one task waited.
#[must_use]
pub fn waiting(interval: Interval, before: Option<Pressure>, now: Option<Pressure>) -> Option<f64> {
    let some = |pressure: Option<Pressure>| pressure.map(|pressure| pressure.some_us);
    interval.share(some(before), some(now), 1e6)
}

static WAITING: Instrument = Instrument::counter(
    "hotspan.pressure.waiting",
    "s",
    "Time in which at least one task waited for the resource.",
);
static STALLED: Instrument = Instrument::counter(
    "hotspan.pressure.stalled",
    "s",
    "Time in which all tasks waited for the resource.",
);

/// Tells the pressure of the host on a resource.
pub fn observe(resource: &'static str, pressure: Option<Pressure>, out: &mut Observations) {
    let seconds = |us: u64| us as f64 / 1e6;
    let resource = || [("hotspan.resource", Value::from(resource))];
    let some = pressure.map(|pressure| seconds(pressure.some_us));
    let full = pressure.and_then(|pressure| pressure.full_us).map(seconds);
    out.add(&WAITING, resource(), some);
    out.add(&STALLED, resource(), full);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_with_and_without_full() {
        let text = "some avg10=98.41 avg60=97.53 avg300=97.71 total=4431514018\n\
            full avg10=0.00 avg60=0.00 avg300=0.00 total=17\n";
        let expected = Pressure {
            some_us: 4_431_514_018,
            full_us: Some(17),
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("some avg10=1 total=5\n").unwrap().full_us, None);
        assert_eq!(parse("full total=5\n"), None);
        text::torture::check(text, parse);
    }
}
