//! Process ids, which threads have, too: `/proc/loadavg`, `/proc/sys/kernel`.

use super::interval::ratio;
use super::root::Reader;
use super::text;
use super::verdict::Numbers;
use crate::model::{Check, Instrument, Observations, Value};

/// How many threads there are and may be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// `/proc/loadavg`.
    pub load: Option<Load>,
    /// No id is as high as this.
    pub highest_id: Option<u64>,
    /// The most threads there may be.
    pub threads_limit: Option<u64>,
}

/// What `/proc/loadavg` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Threads that run, could run, or wait for a disk, on average over 1, 5 and 15 minutes.
    pub averages: [f64; 3],
    /// Threads that run or could, now.
    pub running: u64,
    /// All threads, now.
    pub threads: u64,
}

/// Parses `21.92 18.04 11.52 22/150 30285`.
#[must_use]
pub fn parse_load(text: &str) -> Option<Load> {
    let mut words = text::lines(text).next()?.split(' ');
    let mut average = || {
        let number: f64 = words.next()?.parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some(number)
    };
    let averages = [average()?, average()?, average()?];
    let (running, threads) = words.next()?.split_once('/')?;
    Some(Load {
        averages,
        running: running.parse().ok()?,
        threads: threads.parse().ok()?,
    })
}

/// Reads the numbers.
pub fn read(reader: &mut Reader) -> Reading {
    Reading {
        load: reader.read("proc/loadavg", parse_load),
        highest_id: reader.read("proc/sys/kernel/pid_max", text::number),
        threads_limit: reader.read("proc/sys/kernel/threads-max", text::number),
    }
}

/// Checks how many of the possible threads there are.
#[must_use]
pub fn checks(now: &Reading) -> Vec<Check> {
    let limit = [now.highest_id, now.threads_limit]
        .into_iter()
        .flatten()
        .min();
    let numbers = Numbers {
        utilization: now
            .load
            .zip(limit)
            .and_then(|(load, limit)| ratio(load.threads, limit)),
        ..Numbers::default()
    };
    vec![numbers.check("processes", "host", Vec::new())]
}

static LOAD: Instrument = Instrument::gauge(
    "hotspan.load_average",
    "{thread}",
    "Threads that run, could run, or wait for a disk, on average.",
);
static THREADS: Instrument = Instrument::up_down("hotspan.threads", "{thread}", "All threads.");
static LIMIT: Instrument = Instrument::up_down(
    "system.process.limit",
    "{process}",
    "The most threads and processes there may be.",
);

/// Tells the numbers.
pub fn observe(now: &Reading, out: &mut Observations) {
    if let Some(load) = now.load {
        for (window, average) in ["1m", "5m", "15m"].into_iter().zip(load.averages) {
            out.add(&LOAD, [("hotspan.window", Value::from(window))], average);
        }
        out.add(&THREADS, [], load.threads);
    }
    let limits = [now.highest_id, now.threads_limit];
    out.add(&LIMIT, [], limits.into_iter().flatten().min());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_compared_with_the_lower_limit() {
        let reading = Reading {
            load: parse_load("21.92 18.04 11.52 22/150 30285\n"),
            highest_id: Some(300),
            threads_limit: Some(1000),
        };
        assert_eq!(reading.load.unwrap().averages, [21.92, 18.04, 11.52]);
        assert_eq!(checks(&reading)[0].utilization.unwrap().value, 0.5);
        assert_eq!(parse_load("NaN 1 1 1/2 3\n"), None);
        text::torture::check("21.92 18.04 11.52 22/150 30285\n", parse_load);
    }
}
