//! Fields of the kernel's files under the kernel's own names: what the other modules have no name of their
//! own for, and those who know the kernel look for. `/proc/meminfo`, `/proc/vmstat`, `/proc/net/snmp`, `snmp6`,
//! `netstat`, `sockstat`, `sockstat6`, `dev`: as many as Prometheus' node exporter tells by default.
//!
//! Nothing is checked here, since nobody knows what each of them means; they are metrics only.

use std::collections::BTreeMap;

use super::root::Reader;
use super::text;
use crate::model::{Instrument, Observations, Value};

/// Fields by name.
type Fields = BTreeMap<String, u64>;

/// Raw numbers, each group by the kernel's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `/proc/meminfo` in bytes, `Active_file`; those without a unit as they are, `HugePages_Total`.
    pub memory: Fields,
    /// `/proc/vmstat`: kills, paging, swapping and faults.
    pub vmstat: Fields,
    /// `/proc/net/snmp`, `snmp6` and `netstat`: `TcpExt_TCPTimeouts`.
    pub netstat: Fields,
    /// `/proc/net/sockstat` and `sockstat6`: `TCP_alloc`.
    pub sockets: Fields,
    /// The less common columns of `/proc/net/dev`: by interface, `receive_fifo`.
    pub interfaces: BTreeMap<String, Fields>,
}

/// Parses `/proc/meminfo`: `Active(file):  12 kB`.
#[must_use]
pub fn parse_meminfo(text: &str) -> Option<Fields> {
    let fields: Option<Fields> = text::lines(text)
        .map(|line| {
            let (name, rest) = line.split_once(':')?;
            let mut words = rest.split_ascii_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let number = match words.next() {
                Some("kB") => number.checked_mul(1024)?,
                _ => number,
            };
            Some((name.replace('(', "_").replace(')', ""), number))
        })
        .collect();
    fields.filter(|fields| !fields.is_empty())
}

/// Parses `/proc/vmstat`: node exporter's `^(oom_kill|pgpg|pswp|pg.*fault).*`.
#[must_use]
pub fn parse_vmstat(text: &str) -> Option<Fields> {
    let is_wanted = |name: &str| {
        ["oom_kill", "pgpg", "pswp"]
            .iter()
            .any(|start| name.starts_with(start))
            || (name.starts_with("pg") && name.contains("fault"))
    };
    let pairs = text::pairs(text)?.into_iter();
    let wanted = pairs.filter(|(name, _)| is_wanted(name));
    Some(
        wanted
            .map(|(name, number)| (name.to_owned(), number))
            .collect(),
    )
}

/// Whether node exporter tells a field of the network's protocols by default.
fn is_wanted(name: &str) -> bool {
    const WANTED: &[&str] = &[
        "Ip_Forwarding",
        "Icmp_InMsgs",
        "Icmp_OutMsgs",
        "Icmp6_InMsgs",
        "Icmp6_OutMsgs",
        "IpExt_InOctets",
        "IpExt_OutOctets",
        "Ip6_InOctets",
        "Ip6_OutOctets",
        "TcpExt_TCPSynRetrans",
        "TcpExt_TCPTimeouts",
        "TcpExt_TCPOFOQueue",
        "TcpExt_TCPRcvQDrop",
        "Tcp_ActiveOpens",
        "Tcp_InSegs",
        "Tcp_OutSegs",
        "Tcp_OutRsts",
        "Tcp_PassiveOpens",
        "Tcp_RetransSegs",
        "Tcp_CurrEstab",
    ];
    const OF_UDP: &[&str] = &[
        "InDatagrams",
        "OutDatagrams",
        "NoPorts",
        "RcvbufErrors",
        "SndbufErrors",
    ];
    let of_udp = name.strip_prefix("Udp_").or(name.strip_prefix("Udp6_"));
    WANTED.contains(&name)
        || of_udp.is_some_and(|field| OF_UDP.contains(&field))
        || name.ends_with("_InErrors")
        || name.ends_with("_InErrs")
        || name.starts_with("TcpExt_Listen")
        || name.starts_with("TcpExt_Syncookies")
}

/// Parses `/proc/net/snmp` and `netstat`: lines in pairs, names and then values, both behind their group.
#[must_use]
pub fn parse_groups(text: &str) -> Option<Fields> {
    let mut fields = Fields::new();
    let lines: Vec<_> = text::lines(text).collect();
    for [names, values] in lines.as_chunks::<2>().0 {
        let (group, names) = names.split_once(": ")?;
        let values = values.strip_prefix(group)?.strip_prefix(": ")?;
        let (names, values) = (names.split(' '), values.split(' '));
        if names.clone().count() != values.clone().count() {
            return None;
        }
        for (name, value) in names.zip(values) {
            let name = format!("{group}_{name}");
            // `MaxConn` is -1.
            if let (true, Ok(value)) = (is_wanted(&name), value.parse()) {
                fields.insert(name, value);
            }
        }
    }
    Some(fields)
}

/// Parses `/proc/net/snmp6`: `Ip6InOctets  12`.
#[must_use]
pub fn parse_snmp6(text: &str) -> Option<Fields> {
    let pairs = text::pairs(text)?.into_iter();
    let named = pairs.filter_map(|(name, number)| {
        let (group, field) = name.split_at(name.find('6')? + 1);
        Some((format!("{group}_{field}"), number))
    });
    Some(named.filter(|(name, _)| is_wanted(name)).collect())
}

/// Parses `/proc/net/sockstat`: `TCP: inuse 1 orphan 0`.
#[must_use]
pub fn parse_sockstat(text: &str) -> Option<Fields> {
    let mut fields = Fields::new();
    for line in text::lines(text) {
        let (group, rest) = line.split_once(": ")?;
        let words: Vec<_> = rest.split_ascii_whitespace().collect();
        for [name, number] in words.as_chunks::<2>().0 {
            fields.insert(format!("{group}_{name}"), number.parse().ok()?);
        }
    }
    (!fields.is_empty()).then_some(fields)
}

/// Parses `/proc/net/dev`, but for what [`super::network`] has.
#[must_use]
pub fn parse_dev(text: &str) -> Option<BTreeMap<String, Fields>> {
    const COLUMNS: [(&str, usize); 8] = [
        ("receive_fifo", 4),
        ("receive_frame", 5),
        ("receive_compressed", 6),
        ("receive_multicast", 7),
        ("transmit_fifo", 12),
        ("transmit_colls", 13),
        ("transmit_carrier", 14),
        ("transmit_compressed", 15),
    ];
    text::lines(text)
        .skip(2)
        .map(|line| {
            let (name, numbers) = line.rsplit_once(':')?;
            let numbers = text::numbers(numbers)?;
            let fields = COLUMNS.iter().map(|(column, at)| {
                let number = *numbers.get(*at)?;
                Some(((*column).to_owned(), number))
            });
            Some((name.trim().to_owned(), fields.collect::<Option<Fields>>()?))
        })
        .collect()
}

/// Reads the fields.
pub fn read(reader: &mut Reader) -> Reading {
    let mut netstat = Fields::new();
    for (path, parse) in [
        ("proc/net/snmp", parse_groups as fn(&str) -> Option<Fields>),
        ("proc/net/netstat", parse_groups),
        ("proc/net/snmp6", parse_snmp6),
    ] {
        netstat.extend(reader.read(path, parse).unwrap_or_default());
    }
    let mut sockets = Fields::new();
    for path in ["proc/net/sockstat", "proc/net/sockstat6"] {
        sockets.extend(reader.read(path, parse_sockstat).unwrap_or_default());
    }
    let vmstat = reader.read("proc/vmstat", parse_vmstat);
    Reading {
        memory: reader
            .read("proc/meminfo", parse_meminfo)
            .unwrap_or_default(),
        vmstat: vmstat.unwrap_or_default(),
        netstat,
        sockets,
        interfaces: reader.read("proc/net/dev", parse_dev).unwrap_or_default(),
    }
}

static MEMORY: Instrument = Instrument::gauge(
    "hotspan.meminfo",
    "1",
    "Fields of /proc/meminfo: bytes, or numbers of huge pages.",
);
static VMSTAT: Instrument =
    Instrument::counter("hotspan.vmstat", "1", "Fields of /proc/vmstat, since boot.");
static NETSTAT: Instrument = Instrument::gauge(
    "hotspan.netstat",
    "1",
    "Fields of /proc/net/snmp, snmp6 and netstat: since boot, but for the few that are states.",
);
static SOCKETS: Instrument = Instrument::gauge(
    "hotspan.sockstat",
    "1",
    "Fields of /proc/net/sockstat and sockstat6: sockets, or pages of memory.",
);
static INTERFACES: Instrument = Instrument::counter(
    "hotspan.network.fields",
    "1",
    "The less common columns of /proc/net/dev.",
);

/// Tells the fields.
pub fn observe(now: &Reading, out: &mut Observations) {
    for (instrument, fields) in [
        (&MEMORY, &now.memory),
        (&VMSTAT, &now.vmstat),
        (&NETSTAT, &now.netstat),
        (&SOCKETS, &now.sockets),
    ] {
        for (field, number) in fields {
            let of = [("hotspan.field", Value::from(&**field))];
            out.add(instrument, of, *number);
        }
    }
    for (interface, fields) in &now.interfaces {
        for (field, number) in fields {
            let of = [
                ("network.interface.name", Value::from(&**interface)),
                ("hotspan.field", Value::from(&**field)),
            ];
            out.add(&INTERFACES, of, *number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 10 kB\nActive(file): 2 kB\nHugePages_Total: 3\n";
    const VMSTAT: &str = "nr_free_pages 1\npgpgin 2\npgmajfault 3\noom_kill 4\nthp_fault_alloc 5\n";
    const SNMP: &str =
        "Tcp: MaxConn InErrs RtoMin\nTcp: -1 7 200\nUdp: NoPorts MemErrors\nUdp: 8 9\n";
    const SNMP6: &str = "Ip6InOctets 12\nIcmp6InMsgs 3\nUdp6NoPorts 4\nUdpLite6NoPorts 5\n";
    const SOCKSTAT: &str = "sockets: used 29\nTCP: inuse 1 orphan 0\n";
    const DEV: &str = "Inter-| Receive\n face |bytes packets\n \
        eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";

    fn fields(fields: &[(&str, u64)]) -> Fields {
        let owned = fields
            .iter()
            .map(|(name, number)| ((*name).to_owned(), *number));
        owned.collect()
    }

    #[test]
    fn fields_have_the_kernels_names() {
        let expected = [
            ("Active_file", 2048),
            ("HugePages_Total", 3),
            ("MemTotal", 10_240),
        ];
        assert_eq!(parse_meminfo(MEMINFO), Some(fields(&expected)));
        let expected = [("oom_kill", 4), ("pgmajfault", 3), ("pgpgin", 2)];
        assert_eq!(parse_vmstat(VMSTAT), Some(fields(&expected)));
        let expected = [("Tcp_InErrs", 7), ("Udp_NoPorts", 8)];
        assert_eq!(parse_groups(SNMP), Some(fields(&expected)));
        let expected = [
            ("Icmp6_InMsgs", 3),
            ("Ip6_InOctets", 12),
            ("Udp6_NoPorts", 4),
        ];
        assert_eq!(parse_snmp6(SNMP6), Some(fields(&expected)));
        let expected = [("TCP_inuse", 1), ("TCP_orphan", 0), ("sockets_used", 29)];
        assert_eq!(parse_sockstat(SOCKSTAT), Some(fields(&expected)));
        assert_eq!(parse_dev(DEV).unwrap()["eth0"]["transmit_colls"], 14);
    }

    #[test]
    fn files_that_are_cut_or_changed_are_survived() {
        text::torture::check(MEMINFO, parse_meminfo);
        text::torture::check(VMSTAT, parse_vmstat);
        text::torture::check(SNMP, parse_groups);
        text::torture::check(SNMP6, parse_snmp6);
        text::torture::check(SOCKSTAT, parse_sockstat);
        text::torture::check(DEV, parse_dev);
    }
}
