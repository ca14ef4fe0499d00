//! Disks: `/proc/diskstats`, and the pressure that waiting for any of them makes.
//! Documentation/admin-guide/iostats.rst.

use std::collections::BTreeMap;

use super::contributors::Contributors;
use super::interval::Interval;
use super::psi::{self, Pressure};
use super::root::Reader;
use super::text;
use super::verdict::{Numbers, RATIO};
use crate::model::{Check, Instrument, Observations, Value};

/// A sector of `/proc/diskstats`, whatever the disk's own are.
pub const SECTOR_BYTES: u64 = 512;

/// Raw counters of all disks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// By name.
    pub disks: BTreeMap<String, Disk>,
    /// Names of all block devices, by their major and minor numbers.
    pub names: BTreeMap<(u32, u32), String>,
    /// SCSI disks count commands that failed, by name.
    pub errors: BTreeMap<String, u64>,
    /// Pressure of the host.
    pub pressure: Option<Pressure>,
}

/// What a disk did since it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is counted for reading and for writing.
pub struct Disk {
    pub reads: u64,
    pub reads_merged: u64,
    pub sectors_read: u64,
    pub read_ms: u64,
    pub writes: u64,
    pub writes_merged: u64,
    pub sectors_written: u64,
    pub write_ms: u64,
    /// Operations under way, now.
    pub in_flight: u64,
    /// Time in which any operation was under way.
    pub busy_ms: u64,
    /// Time of all operations together.
    pub weighted_ms: u64,
    /// Discards, since Linux 4.18, and flushes, since 5.5.
    pub others: [Option<Other>; 2],
}

/// Operations that neither read nor write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// How many.
    pub operations: u64,
    /// Time of all together.
    pub ms: u64,
}

/// Parses `/proc/diskstats`. Memory and loop devices, floppy disks and partitions are left out:
/// what they do is done by something else.
#[must_use]
pub fn parse(text: &str) -> Option<BTreeMap<String, Disk>> {
    text::lines(text)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let name = words.nth(2)?;
            (!is_left_out(name)).then_some((name, words))
        })
        .map(|(name, words)| {
            let fields: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
            let [
                reads,
                reads_merged,
                sectors_read,
                read_ms,
                writes,
                writes_merged,
                sectors_written,
                write_ms,
                in_flight,
                busy_ms,
                weighted_ms,
                ref rest @ ..,
            ] = fields?[..]
            else {
                return None;
            };
            let disk = Disk {
                reads,
                reads_merged,
                sectors_read,
                read_ms,
                writes,
                writes_merged,
                sectors_written,
                write_ms,
                in_flight,
                busy_ms,
                weighted_ms,
                // Discards: operations, merged, sectors, time; flushes: operations, time.
                others: [[0, 3], [4, 5]].map(|[operations, ms]| {
                    Some(Other {
                        operations: *rest.get(operations)?,
                        ms: *rest.get(ms)?,
                    })
                }),
            };
            Some((name.to_owned(), disk))
        })
        .collect()
}

/// Parses the names in `/proc/diskstats`.
#[must_use]
pub fn parse_names(text: &str) -> Option<BTreeMap<(u32, u32), String>> {
    text::lines(text)
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(((major, minor), words.next()?.to_owned()))
        })
        .collect()
}

/// What node_exporter leaves out: `^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`.
fn is_left_out(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return false;
    }
    let is_partition_of_letter = ["hd", "sd", "vd", "xvd"].iter().any(|kind| {
        stem.strip_prefix(kind)
            .is_some_and(|disk| disk.len() == 1 && disk.as_bytes()[0].is_ascii_lowercase())
    });
    let is_partition_of_nvme = || {
        let numbers = stem.strip_prefix("nvme")?.strip_suffix('p')?;
        let (controller, namespace) = numbers.split_once('n')?;
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        Some(is_number(controller) && is_number(namespace))
    };
    matches!(stem, "ram" | "zram" | "loop" | "fd")
        || is_partition_of_letter
        || is_partition_of_nvme() == Some(true)
}

/// Parses `ioerr_cnt` of a SCSI disk: `0x2a`.
#[must_use]
pub fn parse_hex(text: &str) -> Option<u64> {
    let digits = text::lines(text).next()?.trim().strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok()
}

/// Reads the counters.
pub fn read(reader: &mut Reader) -> Reading {
    let both = |text: &str| Some((parse(text)?, parse_names(text)?));
    let (disks, names) = reader.read("proc/diskstats", both).unwrap_or_default();
    let errors = disks
        .keys()
        .filter_map(|name| {
            // The kernel writes a name's slash as an exclamation mark here: `cciss!c0d0`.
            let path = format!("sys/block/{}/device/ioerr_cnt", name.replace('/', "!"));
            Some((name.clone(), reader.read(&path, parse_hex)?))
        })
        .collect();
    Reading {
        disks,
        names,
        errors,
        pressure: reader.read("proc/pressure/io", psi::parse),
    }
}

/// Checks waiting for I/O as a whole, and each disk.
#[must_use]
pub fn checks(
    interval: Interval,
    before: &Reading,
    now: &Reading,
    contributors: &Contributors,
) -> Vec<Check> {
    let waiting = psi::waiting(interval, before.pressure, now.pressure);
    let host = Numbers {
        saturation: waiting.map(|share| (share, RATIO)),
        ..Numbers::default()
    };
    let mut checks = vec![host.check("io", "host", contributors.by_io())];
    for (name, disk) in &now.disks {
        let Some(disk_before) = before.disks.get(name) else {
            continue;
        };
        let errors = |reading: &Reading| reading.errors.get(name).copied();
        // A disk replaced by another of its name starts anew; so do all its counters.
        let is_same = disk.reads >= disk_before.reads && disk.writes >= disk_before.writes;
        let earlier = is_same.then_some(disk_before);
        let numbers = Numbers {
            utilization: interval.share(earlier.map(|disk| disk.busy_ms), Some(disk.busy_ms), 1e3),
            saturation: interval
                .average(
                    earlier.map(|disk| disk.weighted_ms),
                    Some(disk.weighted_ms),
                    1e3,
                )
                .map(|queue| (queue, "{operation}")),
            errors: interval
                .per_s(errors(before), errors(now))
                .map(|rate| (rate, "{error}/s")),
        };
        checks.push(numbers.check("disk", name, Vec::new()));
    }
    checks
}

static IO: Instrument = Instrument::counter("system.disk.io", "By", "Bytes read and written.");
static OPERATIONS: Instrument = Instrument::counter(
    "system.disk.operations",
    "{operation}",
    "Operations that were completed.",
);
static OPERATION_TIME: Instrument = Instrument::counter(
    "system.disk.operation_time",
    "s",
    "Time of all operations together.",
);
static OTHERS: Instrument = Instrument::counter(
    "hotspan.disk.other_operations",
    "{operation}",
    "Discards and flushes that were completed.",
);
static OTHERS_TIME: Instrument = Instrument::counter(
    "hotspan.disk.other_operation_time",
    "s",
    "Time of all discards and flushes together.",
);
static MERGED: Instrument = Instrument::counter(
    "system.disk.merged",
    "{operation}",
    "Operations that were put together with others.",
);
static IO_TIME: Instrument = Instrument::counter(
    "system.disk.io_time",
    "s",
    "Time in which any operation was under way.",
);
static WEIGHTED_TIME: Instrument = Instrument::counter(
    "hotspan.disk.weighted_io_time",
    "s",
    "Time of all operations under way together: its rate is the length of the queue.",
);
static IN_FLIGHT: Instrument = Instrument::up_down(
    "hotspan.disk.operations_in_flight",
    "{operation}",
    "Operations under way.",
);
static ERRORS: Instrument = Instrument::counter(
    "hotspan.disk.errors",
    "{error}",
    "Commands that failed, of SCSI disks.",
);

/// Tells the counters.
pub fn observe(now: &Reading, out: &mut Observations) {
    for (name, disk) in &now.disks {
        let device = || ("system.device", Value::from(&**name));
        let ways = [
            (
                "read",
                disk.sectors_read,
                disk.reads,
                disk.read_ms,
                disk.reads_merged,
            ),
            (
                "write",
                disk.sectors_written,
                disk.writes,
                disk.write_ms,
                disk.writes_merged,
            ),
        ];
        for (direction, sectors, operations, ms, merged) in ways {
            let attributes = || [device(), ("disk.io.direction", Value::from(direction))];
            out.add(&IO, attributes(), sectors.checked_mul(SECTOR_BYTES));
            out.add(&OPERATIONS, attributes(), operations);
            out.add(&OPERATION_TIME, attributes(), ms as f64 / 1e3);
            out.add(&MERGED, attributes(), merged);
        }
        for (name, other) in ["discard", "flush"].into_iter().zip(disk.others) {
            let of = || [device(), ("hotspan.disk.operation", Value::from(name))];
            let ms = other.map(|other| other.ms as f64 / 1e3);
            out.add(&OTHERS, of(), other.map(|other| other.operations));
            out.add(&OTHERS_TIME, of(), ms);
        }
        out.add(&IO_TIME, [device()], disk.busy_ms as f64 / 1e3);
        out.add(&WEIGHTED_TIME, [device()], disk.weighted_ms as f64 / 1e3);
        out.add(&IN_FLIGHT, [device()], disk.in_flight);
        out.add(&ERRORS, [device()], now.errors.get(name).copied());
    }
    psi::observe("io", now.pressure, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Verdict;
    use std::time::Duration;

    const DISKSTATS: &str = "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n \
        254       0 vda 524061 34898 24481210 2584110 132036 266776 93284432 648904 3 130316 3257503 47492 34 20394784 24185 2053 303\n \
        254       1 vda1 1 1 1 1 1 1 1 1 1 1 1\n   8       0 sda 11 22 33 44 55 66 77 88 99 111 122\n";

    #[test]
    fn whole_disks_are_read_on_old_and_new_kernels() {
        let disks = parse(DISKSTATS).unwrap();
        assert_eq!(disks.keys().collect::<Vec<_>>(), ["sda", "vda"]);
        assert_eq!((disks["vda"].in_flight, disks["vda"].busy_ms), (3, 130_316));
        assert_eq!(disks["sda"].weighted_ms, 122);
        assert_eq!(parse("8 0 sda 1 2\n"), None);
        text::torture::check(DISKSTATS, parse);
        text::torture::check(DISKSTATS, parse_names);
        text::torture::check("0x42\n", parse_hex);
    }

    #[test]
    fn the_same_devices_are_left_out_as_by_node_exporter() {
        for name in [
            "loop0",
            "ram1",
            "zram0",
            "fd0",
            "sda1",
            "xvda2",
            "nvme0n1p3",
            "vdb12",
        ] {
            assert!(is_left_out(name), "{name}");
        }
        for name in [
            "sda", "vda", "nvme0n1", "dm-0", "md127", "mmcblk0", "xvda", "sdaa1", "sr0",
        ] {
            assert!(!is_left_out(name), "{name}");
        }
    }

    #[test]
    fn a_disk_that_was_replaced_or_is_new_gives_no_number() {
        let reading = |text: &str| Reading {
            disks: parse(text).unwrap(),
            ..Reading::default()
        };
        let (before, now) = (
            reading("8 0 sda 10 0 0 0 0 0 0 0 0 100 200\n"),
            reading("8 0 sda 12 0 0 0 0 0 0 0 0 600 2200\n8 0 sdb 1 1 1 1 1 1 1 1 1 1 1\n"),
        );
        let interval = Interval::new(Duration::from_secs(1)).unwrap();
        let check = |before, now| checks(interval, before, now, &Contributors::default());
        let found = check(&before, &now);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].utilization.unwrap().value, 0.5);
        assert_eq!(found[1].saturation.unwrap().value, 2.0);
        assert_eq!(check(&now, &before)[1].verdict, Verdict::Unknown);
    }
}
