//! The files of a cgroup: text to numbers.

use std::collections::BTreeMap;

use super::super::text;
use super::{Cpu, Io};

/// Parses `cpu.stat` of either version. Version 1 counts stops in nanoseconds and no use.
pub fn parse_cpu_stat(text: &str) -> Option<Cpu> {
    let pairs = text::pairs(text)?;
    let get = |key| pairs.get(key).copied();
    let ns = |key| get(key).and_then(|us: u64| us.checked_mul(1000));
    Some(Cpu {
        used_ns: ns("usage_usec"),
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_ns: get("throttled_time").or_else(|| ns("throttled_usec")),
        ..Cpu::default()
    })
}

/// Parses `cpu.max`: `max 100000` or `50000 100000`, as CPUs.
pub fn parse_cpu_max(text: &str) -> Option<Option<f64>> {
    let (quota, period) = text::lines(text).next()?.split_once(' ')?;
    let period = period.parse().ok()?;
    match quota {
        "max" => Some(None),
        quota => Some(Some(cpus(quota.parse().ok()?, period)?)),
    }
}

/// Parses `cpu.cfs_quota_us`: -1 is none.
pub fn parse_quota(text: &str) -> Option<Option<u64>> {
    let quota: i64 = text::lines(text).next()?.trim().parse().ok()?;
    Some(u64::try_from(quota).ok())
}

/// How many CPUs a quota of each period is.
pub fn cpus(quota: u64, period: u64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// Parses the line `key` of `memory.stat`.
pub fn parse_inactive(text: &str, key: &str) -> Option<u64> {
    text::pairs(text)?.get(key).copied()
}

/// Parses `memory.events`: how often the limit was hit, and processes killed for it; the second
/// since Linux 4.13.
pub fn parse_memory_events(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let pairs = text::pairs(text)?;
    Some((pairs.get("max").copied(), pairs.get("oom_kill").copied()))
}

/// Parses `memory.oom_control`: processes killed.
pub fn parse_oom_control(text: &str) -> Option<Option<u64>> {
    Some(text::pairs(text)?.get("oom_kill").copied())
}

/// Parses `pids.events`.
pub fn parse_pids_events(text: &str) -> Option<u64> {
    text::pairs(text)?.get("max").copied()
}

/// Parses `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`. A device that did
/// nothing has its number alone, or no line.
pub fn parse_io_stat(text: &str) -> Option<BTreeMap<String, Io>> {
    let mut devices = BTreeMap::new();
    for line in text::lines(text) {
        let mut words = line.split_ascii_whitespace();
        let device = words.next()?;
        let mut io = Io::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "rbytes" => io.read_bytes = value.parse().ok()?,
                "wbytes" => io.written_bytes = value.parse().ok()?,
                _ => {}
            }
        }
        devices.insert(device.to_owned(), io);
    }
    Some(devices)
}

/// Parses `blkio.throttle.io_service_bytes_recursive`: `8:0 Read 1`, `8:0 Write 2`, more words,
/// and in the end `Total 3`.
pub fn parse_blkio(text: &str) -> Option<BTreeMap<String, Io>> {
    let mut devices: BTreeMap<_, Io> = BTreeMap::new();
    for line in text::lines(text) {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            [device, "Read", bytes] => {
                devices.entry(device.to_owned()).or_default().read_bytes = bytes.parse().ok()?;
            }
            [device, "Write", bytes] => {
                devices.entry(device.to_owned()).or_default().written_bytes = bytes.parse().ok()?;
            }
            [_, _, _] | ["Total", _] => {}
            _ => return None,
        }
    }
    Some(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_CPU: &str = "usage_usec 1234\nuser_usec 1000\nsystem_usec 234\nnr_periods 50\n\
        nr_throttled 7\nthrottled_usec 900\n";
    const V1_CPU: &str = "nr_periods 50\nnr_throttled 7\nthrottled_time 900000\n";
    const IO: &str = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n";
    const BLKIO: &str =
        "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Discard 0\n8:0 Total 30\nTotal 30\n";

    #[test]
    fn both_versions_count_stops() {
        let (v1, v2) = (
            parse_cpu_stat(V1_CPU).unwrap(),
            parse_cpu_stat(V2_CPU).unwrap(),
        );
        assert_eq!((v1.used_ns, v2.used_ns), (None, Some(1_234_000)));
        assert_eq!(
            v1,
            Cpu {
                used_ns: None,
                ..v2
            }
        );
        text::torture::check(V1_CPU, parse_cpu_stat);
        text::torture::check(V2_CPU, parse_cpu_stat);
    }

    #[test]
    fn limits_are_in_cpus() {
        assert_eq!(parse_cpu_max("max 100000\n"), Some(None));
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(Some(1.5)));
        assert_eq!(parse_cpu_max("150000\n"), None);
        assert_eq!(parse_cpu_max("150000 0\n"), None);
        assert_eq!(parse_quota("-1\n"), Some(None));
        assert_eq!(parse_quota("50000\n"), Some(Some(50_000)));
        text::torture::check("150000 100000\n", parse_cpu_max);
        text::torture::check("50000\n", parse_quota);
    }

    #[test]
    fn io_is_by_device_in_both_versions() {
        let expected = Io {
            read_bytes: 10,
            written_bytes: 20,
        };
        assert_eq!(parse_io_stat(IO).unwrap()["8:0"], expected);
        assert_eq!(parse_blkio(BLKIO).unwrap()["8:0"], expected);
        assert_eq!(parse_blkio("Total 0\n"), Some(BTreeMap::new()));
        assert_eq!(parse_io_stat(""), Some(BTreeMap::new()));
        text::torture::check(IO, parse_io_stat);
        text::torture::check(BLKIO, parse_blkio);
    }

    #[test]
    fn events_are_found_by_name() {
        let events = "low 0\nhigh 1\nmax 22\noom 3\noom_kill 4\n";
        assert_eq!(parse_memory_events(events), Some((Some(22), Some(4))));
        assert_eq!(
            parse_oom_control("under_oom 0\noom_kill 5\n"),
            Some(Some(5))
        );
        assert_eq!(parse_oom_control("under_oom 0\n"), Some(None));
        assert_eq!(parse_pids_events("max 6\n"), Some(6));
        assert_eq!(
            parse_inactive("anon 1\ninactive_file 77\n", "inactive_file"),
            Some(77)
        );
        text::torture::check(events, parse_memory_events);
        text::torture::check("under_oom 0\noom_kill 5\n", parse_oom_control);
        text::torture::check("max 6\n", parse_pids_events);
    }
}
