//! Network interfaces, and the queue between them and the protocols: `/proc/net/dev`,
//! `/sys/class/net`, `/proc/net/softnet_stat`. Documentation/networking/statistics.rst.

use std::collections::BTreeMap;

use super::interval::{Interval, growth, part_of_whole};
use super::root::Reader;
use super::text;
use super::verdict::Numbers;
use crate::model::{Check, Instrument, Observations, Value};

/// Raw counters of the network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// By name.
    pub interfaces: BTreeMap<String, Interface>,
    /// What a link carries each second in each direction, by name; virtual ones and those that are
    /// down have no such number.
    pub bits_per_s: BTreeMap<String, u64>,
    /// The queue of each CPU.
    pub queues: Vec<Queue>,
}

/// What an interface did since it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Received.
    pub receive: Direction,
    /// Sent.
    pub transmit: Direction,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The kernel's own words.
pub struct Direction {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Packets between interrupts and protocols, on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Packets taken.
    pub processed: u64,
    /// Packets that found the queue full.
    pub dropped: u64,
    /// Rounds that ended because their time was over, not because there was nothing left.
    pub squeezed: u64,
}

/// Parses `/proc/net/dev`.
#[must_use]
pub fn parse(text: &str) -> Option<BTreeMap<String, Interface>> {
    let mut rows = text::lines(text);
    rows.next()?;
    rows.next()?.contains("bytes").then_some(())?;
    rows.map(|line| {
        // A name may hold a colon, as that of an alias does; no number does.
        let (name, numbers) = line.rsplit_once(':')?;
        let fields = text::numbers(numbers)?;
        let direction = |first: usize| {
            let [bytes, packets, errors, dropped] = *fields.get(first..)?.first_chunk()?;
            Some(Direction {
                bytes,
                packets,
                errors,
                dropped,
            })
        };
        let interface = Interface {
            receive: direction(0)?,
            transmit: direction(8)?,
        };
        Some((name.trim().to_owned(), interface))
    })
    .collect()
}

/// Parses `/proc/net/softnet_stat`: a line of hexadecimal numbers for each CPU. The counters have
/// 32 bits.
#[must_use]
pub fn parse_softnet(text: &str) -> Option<Vec<Queue>> {
    text::lines(text)
        .map(|line| {
            let mut fields = line
                .split_ascii_whitespace()
                .map(|word| u64::from_str_radix(word, 16).ok());
            Some(Queue {
                processed: fields.next()??,
                dropped: fields.next()??,
                squeezed: fields.next()??,
            })
        })
        .collect()
}

/// Parses a link's speed in Mbit/s: -1 or 0 for one that has none.
fn parse_speed(text: &str) -> Option<Option<u64>> {
    let mbits: i64 = text::lines(text).next()?.trim().parse().ok()?;
    let mbits = u64::try_from(mbits).ok().filter(|mbits| *mbits > 0);
    // Drivers that do not know say 2^32 - 1.
    let mbits = mbits.filter(|mbits| *mbits < u64::from(u32::MAX));
    Some(mbits.and_then(|mbits| mbits.checked_mul(1_000_000)))
}

/// Reads the counters.
pub fn read(reader: &mut Reader) -> Reading {
    let interfaces = reader.read("proc/net/dev", parse).unwrap_or_default();
    let bits_per_s = interfaces
        .keys()
        .filter(|name| !name.contains('/'))
        .filter_map(|name| {
            let path = format!("sys/class/net/{name}/speed");
            Some((name.clone(), reader.read(&path, parse_speed)??))
        })
        .collect();
    Reading {
        interfaces,
        bits_per_s,
        queues: reader
            .read("proc/net/softnet_stat", parse_softnet)
            .unwrap_or_default(),
    }
}

/// Checks each interface, and the queues of all CPUs together.
#[must_use]
pub fn checks(interval: Interval, before: &Reading, now: &Reading) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, interface) in &now.interfaces {
        let Some(earlier) = before.interfaces.get(name) else {
            continue;
        };
        let per_s = |count: fn(&Direction) -> u64, of: fn(&Interface) -> Direction| {
            interval.per_s(Some(count(&of(earlier))), Some(count(&of(interface))))
        };
        let both = |count: fn(&Direction) -> u64| {
            let received = per_s(count, |interface| interface.receive)?;
            let sent = per_s(count, |interface| interface.transmit)?;
            Some((received, sent))
        };
        let bits_per_s = now.bits_per_s.get(name).map(|bits| *bits as f64);
        let numbers = Numbers {
            // Links are full in one direction while the other is idle. Tunnels and the like have
            // a speed that is made up: what exceeds it proves that.
            utilization: both(|direction| direction.bytes).zip(bits_per_s).and_then(
                |((received, sent), bits)| part_of_whole(received.max(sent) * 8.0 / bits),
            ),
            saturation: both(|direction| direction.dropped)
                .map(|(received, sent)| (received + sent, "{packet}/s")),
            errors: both(|direction| direction.errors)
                .map(|(received, sent)| (received + sent, "{error}/s")),
        };
        checks.push(numbers.check("network", name, Vec::new()));
    }
    if !now.queues.is_empty() {
        let sum = |count: fn(&Queue) -> u64| {
            // A CPU that came or went changes whose line is whose.
            if before.queues.len() != now.queues.len() {
                return None;
            }
            let pairs = before.queues.iter().zip(&now.queues);
            pairs
                .map(|(before, now)| growth(Some(count(before)), Some(count(now))))
                .try_fold(0_u64, |sum, growth| sum.checked_add(growth?))
        };
        let rate = |growth: Option<u64>| interval.per_s(growth.map(|_| 0), growth);
        let numbers = Numbers {
            utilization: None,
            saturation: rate(sum(|queue| queue.squeezed)).map(|rate| (rate, "{squeeze}/s")),
            errors: rate(sum(|queue| queue.dropped)).map(|rate| (rate, "{packet}/s")),
        };
        checks.push(numbers.check("softnet", "host", Vec::new()));
    }
    checks
}

static IO: Instrument = Instrument::counter("system.network.io", "By", "Bytes by direction.");
static PACKETS: Instrument = Instrument::counter(
    "system.network.packet.count",
    "{packet}",
    "Packets by direction.",
);
static ERRORS: Instrument =
    Instrument::counter("system.network.errors", "{error}", "Errors by direction.");
static DROPPED: Instrument = Instrument::counter(
    "system.network.packet.dropped",
    "{packet}",
    "Packets dropped by direction.",
);
static SPEED: Instrument = Instrument::gauge(
    "hotspan.network.speed",
    "By/s",
    "What the link carries in each direction.",
);
static QUEUE_PROCESSED: Instrument = Instrument::counter(
    "hotspan.softnet.processed",
    "{packet}",
    "Packets taken from the queue between interrupts and protocols.",
);
static QUEUE_DROPPED: Instrument = Instrument::counter(
    "hotspan.softnet.dropped",
    "{packet}",
    "Packets that found this queue full.",
);
static QUEUE_SQUEEZED: Instrument = Instrument::counter(
    "hotspan.softnet.squeezed",
    "{squeeze}",
    "Rounds that ended because their time was over, not because nothing was left.",
);

/// Tells the counters.
pub fn observe(now: &Reading, out: &mut Observations) {
    for (name, interface) in &now.interfaces {
        for (direction, counts) in [
            ("receive", interface.receive),
            ("transmit", interface.transmit),
        ] {
            let with = |key: &'static str| {
                [
                    (key, Value::from(&**name)),
                    ("network.io.direction", Value::from(direction)),
                ]
            };
            out.add(&IO, with("network.interface.name"), counts.bytes);
            out.add(&PACKETS, with("system.device"), counts.packets);
            out.add(&ERRORS, with("network.interface.name"), counts.errors);
            out.add(&DROPPED, with("network.interface.name"), counts.dropped);
        }
        let speed = now.bits_per_s.get(name).map(|bits| *bits as f64 / 8.0);
        out.add(
            &SPEED,
            [("network.interface.name", Value::from(&**name))],
            speed,
        );
    }
    for (queue, counts) in (0_u32..).zip(&now.queues) {
        let of = || [("hotspan.queue", Value::from(queue))];
        out.add(&QUEUE_PROCESSED, of(), counts.processed);
        out.add(&QUEUE_DROPPED, of(), counts.dropped);
        out.add(&QUEUE_SQUEEZED, of(), counts.squeezed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:  299156    3468    0    0    0     0          0         0   299156    3468    0    0    0     0       0          0\n  \
        eth0:1482849969   43172    5    6    0     0          0         0  2406100   25432    7    8    0     0       0          0\n";
    const SOFTNET: &str =
        "0000746e 00000001 00000002 00000000\n000180c7 0000000a 00000000 00000000\n";

    #[test]
    fn both_directions_are_read() {
        let interfaces = parse(DEV).unwrap();
        assert_eq!(interfaces["lo"].receive, interfaces["lo"].transmit);
        let expected = Direction {
            bytes: 2_406_100,
            packets: 25_432,
            errors: 7,
            dropped: 8,
        };
        assert_eq!(interfaces["eth0"].transmit, expected);
        assert_eq!(parse("x\n"), None);
        text::torture::check(DEV, parse);
    }

    #[test]
    fn softnet_is_hexadecimal() {
        let queues = parse_softnet(SOFTNET).unwrap();
        assert_eq!((queues[0].processed, queues[1].dropped), (0x746e, 10));
        text::torture::check(SOFTNET, parse_softnet);
    }

    #[test]
    fn links_without_a_speed_have_none() {
        for (text, expected) in [
            ("1000\n", Some(Some(1_000_000_000))),
            ("-1\n", Some(None)),
            ("0\n", Some(None)),
            ("4294967295\n", Some(None)),
            ("fast\n", None),
        ] {
            assert_eq!(parse_speed(text), expected);
        }
    }

    #[test]
    fn use_is_that_of_the_fuller_direction() {
        let reading = |received, sent, dropped| {
            let direction = |bytes| Direction {
                bytes,
                dropped,
                ..Direction::default()
            };
            let interface = Interface {
                receive: direction(received),
                transmit: direction(sent),
            };
            Reading {
                interfaces: BTreeMap::from([("a".to_owned(), interface)]),
                bits_per_s: BTreeMap::from([("a".to_owned(), 8000)]),
                queues: Vec::new(),
            }
        };
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let check = |before, now| checks(interval, &before, &now).remove(0);
        let found = check(reading(0, 0, 0), reading(100, 500, 1));
        assert_eq!(found.utilization.unwrap().value, 0.5);
        assert_eq!(found.saturation.unwrap().value, 2.0);
        let found = check(reading(9, 9, 9), reading(0, 0, 0));
        assert_eq!((found.utilization, found.saturation), (None, None));
        assert_eq!(
            check(reading(0, 0, 0), reading(9000, 0, 0)).utilization,
            None
        );
    }
}
