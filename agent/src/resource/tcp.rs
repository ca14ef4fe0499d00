//! TCP: `/proc/net/snmp`, `/proc/net/netstat`, `/proc/net/sockstat`.
//! Documentation/networking/snmp_counter.rst.

use rustc_hash::FxHashMap;

use super::interval::{Interval, growth, ratio};
use super::root::Reader;
use super::text;
use super::verdict::{Numbers, RATIO};
use crate::model::{Check, Instrument, Observations, Value};

/// Raw counters of TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What was sent and opened, since boot.
    pub segments: Option<Segments>,
    /// Connections that found the queue of their listener full, since boot.
    pub refused: Option<u64>,
    /// Memory of all sockets, in pages.
    pub memory_pages: Option<u64>,
    /// From here on no socket gets more memory, in pages.
    pub memory_limit_pages: Option<u64>,
}

/// The `Tcp` counters of `/proc/net/snmp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names of RFC 4022.
pub struct Segments {
    pub received: u64,
    /// Without those that only repeat.
    pub sent: u64,
    pub retransmitted: u64,
    pub established: Option<u64>,
    pub active_opens: Option<u64>,
    pub passive_opens: Option<u64>,
    pub failed_opens: Option<u64>,
    pub resets_sent: Option<u64>,
}

/// The numbers of one group in a file whose lines come in pairs: names, then values, both behind
/// the name of the group. What is no natural number, such as `MaxConn` -1, is left out.
fn group<'a>(text: &'a str, name: &str) -> Option<FxHashMap<&'a str, u64>> {
    let mut rows = text::lines(text)
        .filter_map(|line| line.split_once(": "))
        .filter(|(group, _)| *group == name)
        .map(|(_, rest)| rest.split_ascii_whitespace());
    let (names, values) = (rows.next()?, rows.next()?);
    if names.clone().count() != values.clone().count() {
        return None;
    }
    Some(
        names
            .zip(values)
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect(),
    )
}

/// Parses `/proc/net/snmp`.
#[must_use]
pub fn parse_snmp(text: &str) -> Option<Segments> {
    let tcp = group(text, "Tcp")?;
    let get = |name| tcp.get(name).copied();
    Some(Segments {
        received: get("InSegs")?,
        sent: get("OutSegs")?,
        retransmitted: get("RetransSegs")?,
        established: get("CurrEstab"),
        active_opens: get("ActiveOpens"),
        passive_opens: get("PassiveOpens"),
        failed_opens: get("AttemptFails"),
        resets_sent: get("OutRsts"),
    })
}

/// Parses `/proc/net/netstat`: connections that were turned away. `ListenDrops` counts those that
/// overflowed, and those for which there was no memory.
#[must_use]
pub fn parse_netstat(text: &str) -> Option<u64> {
    group(text, "TcpExt")?.get("ListenDrops").copied()
}

/// Parses `/proc/net/sockstat`: pages that sockets of TCP hold.
#[must_use]
pub fn parse_sockstat(text: &str) -> Option<u64> {
    let line = text::lines(text).find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = line.split_ascii_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

/// Parses `/proc/sys/net/ipv4/tcp_mem`: the last of three limits.
#[must_use]
pub fn parse_limit(text: &str) -> Option<u64> {
    text::numbers(text::lines(text).next()?)?.get(2).copied()
}

/// Reads the counters.
pub fn read(reader: &mut Reader) -> Reading {
    Reading {
        segments: reader.read("proc/net/snmp", parse_snmp),
        refused: reader.read("proc/net/netstat", parse_netstat),
        memory_pages: reader.read("proc/net/sockstat", parse_sockstat),
        memory_limit_pages: reader.read("proc/sys/net/ipv4/tcp_mem", parse_limit),
    }
}

/// Checks TCP: memory against its limit, connections turned away, and the share of segments that
/// had to be sent again.
#[must_use]
pub fn checks(interval: Interval, before: &Reading, now: &Reading) -> Vec<Check> {
    let segments = |count: fn(&Segments) -> u64| {
        growth(
            before.segments.as_ref().map(count),
            now.segments.as_ref().map(count),
        )
    };
    let again = segments(|segments| segments.retransmitted)
        .zip(segments(|segments| segments.sent))
        .and_then(|(again, first)| match again.checked_add(first)? {
            0 => Some(0.0), // Nothing was sent.
            all => ratio(again, all),
        });
    let numbers = Numbers {
        utilization: now
            .memory_pages
            .zip(now.memory_limit_pages)
            .and_then(|(pages, limit)| ratio(pages.min(limit), limit)),
        saturation: interval
            .per_s(before.refused, now.refused)
            .map(|rate| (rate, "{connection}/s")),
        errors: again.map(|share| (share, RATIO)),
    };
    vec![numbers.check("tcp", "host", Vec::new())]
}

static SEGMENTS: Instrument = Instrument::counter(
    "hotspan.tcp.segments",
    "{segment}",
    "Segments by direction; those that only repeat are not among those sent.",
);
static RETRANSMITTED: Instrument = Instrument::counter(
    "hotspan.tcp.retransmits",
    "{segment}",
    "Segments that were sent again.",
);
static OPENED: Instrument = Instrument::counter(
    "hotspan.tcp.opens",
    "{connection}",
    "Connections that were opened from here, and from elsewhere.",
);
static FAILED: Instrument = Instrument::counter(
    "hotspan.tcp.open_failures",
    "{connection}",
    "Connections that could not be opened.",
);
static RESETS: Instrument = Instrument::counter(
    "hotspan.tcp.resets_sent",
    "{segment}",
    "Resets that were sent.",
);
static REFUSED: Instrument = Instrument::counter(
    "hotspan.tcp.listen_drops",
    "{connection}",
    "Connections turned away because the queue of their listener was full.",
);
static ESTABLISHED: Instrument = Instrument::up_down(
    "hotspan.tcp.established",
    "{connection}",
    "Connections that are open.",
);
static MEMORY: Instrument =
    Instrument::up_down("hotspan.tcp.memory", "By", "Memory of all sockets.");
static MEMORY_LIMIT: Instrument = Instrument::up_down(
    "hotspan.tcp.memory.limit",
    "By",
    "From here on no socket gets more memory.",
);

/// Tells the counters.
pub fn observe(now: &Reading, out: &mut Observations) {
    if let Some(segments) = &now.segments {
        let direction = |word: &str| [("network.io.direction", Value::from(word))];
        out.add(&SEGMENTS, direction("receive"), segments.received);
        out.add(&SEGMENTS, direction("transmit"), segments.sent);
        out.add(&RETRANSMITTED, [], segments.retransmitted);
        let side = |side: &str| [("hotspan.tcp.side", Value::from(side))];
        out.add(&OPENED, side("active"), segments.active_opens);
        out.add(&OPENED, side("passive"), segments.passive_opens);
        out.add(&FAILED, [], segments.failed_opens);
        out.add(&RESETS, [], segments.resets_sent);
        out.add(&ESTABLISHED, [], segments.established);
    }
    out.add(&REFUSED, [], now.refused);
    let page_bytes = rustix::param::page_size() as u64;
    let bytes = |pages: u64| pages.checked_mul(page_bytes);
    out.add(&MEMORY, [], now.memory_pages.and_then(bytes));
    out.add(&MEMORY_LIMIT, [], now.memory_limit_pages.and_then(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Verdict;
    use std::time::Duration;

    const SNMP: &str = "Ip: Forwarding DefaultTTL\nIp: 2 64\n\
        Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors\n\
        Tcp: 1 200 120000 -1 382 233 48 83 5 46399 28695 7 9 130 0\n";
    const NETSTAT: &str = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 11 12 13\n\
        IpExt: InNoRoutes\nIpExt: 0\n";
    const SOCKSTAT: &str =
        "sockets: used 29\nTCP: inuse 1 orphan 0 tw 2 alloc 3 mem 44\nUDP: inuse 0 mem 5\n";

    #[test]
    fn counters_are_found_by_name() {
        let segments = parse_snmp(SNMP).unwrap();
        assert_eq!((segments.sent, segments.retransmitted), (28_695, 7));
        assert_eq!(segments.established, Some(5));
        assert_eq!(parse_netstat(NETSTAT), Some(13));
        assert_eq!(parse_sockstat(SOCKSTAT), Some(44));
        assert_eq!(parse_limit("1\t2\t3\n"), Some(3));
        assert_eq!(parse_netstat("TcpExt: a ListenDrops\nTcpExt: 1\n"), None);
        text::torture::check(SNMP, parse_snmp);
        text::torture::check(NETSTAT, parse_netstat);
        text::torture::check(SOCKSTAT, parse_sockstat);
        text::torture::check("1\t2\t3\n", parse_limit);
    }

    #[test]
    fn segments_sent_again_are_a_share_of_all() {
        let before = Reading {
            segments: parse_snmp(SNMP),
            ..Reading::default()
        };
        let later = SNMP.replace("28695 7", "28785 17");
        let now = Reading {
            segments: parse_snmp(&later),
            ..Reading::default()
        };
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let check = |before, now| checks(interval, before, now).remove(0);
        assert_eq!(check(&before, &now).errors.unwrap().value, 0.1);
        assert_eq!(check(&before, &now).verdict, Verdict::Errors);
        assert_eq!(check(&before, &before).errors.unwrap().value, 0.0);
        assert_eq!(check(&now, &before).verdict, Verdict::Unknown);
    }
}
