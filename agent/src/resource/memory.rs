//! Memory and swap of the host: `/proc/meminfo`, `/proc/vmstat`, pressure.
//! Documentation/filesystems/proc.rst.

use super::contributors::Contributors;
use super::interval::{Interval, ratio};
use super::psi::{self, Pressure};
use super::root::Reader;
use super::text;
use super::verdict::{Numbers, RATIO};
use crate::model::{Check, Instrument, Observations, Value};

/// Raw numbers of the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// `/proc/meminfo`.
    pub usage: Option<Usage>,
    /// `/proc/vmstat`.
    pub events: Option<Events>,
    /// Pressure of the host.
    pub pressure: Option<Pressure>,
}

/// How much memory there is and who has it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The kernel's own words.
pub struct Usage {
    pub total: u64,
    pub free: u64,
    /// What programs could get without swapping; since Linux 3.14.
    pub available: Option<u64>,
    pub buffers: Option<u64>,
    pub cached: Option<u64>,
    pub shared: Option<u64>,
    pub slab_reclaimable: Option<u64>,
    pub slab_unreclaimable: Option<u64>,
    pub swap_total: Option<u64>,
    pub swap_free: Option<u64>,
    pub swap_cached: Option<u64>,
}

/// What happened to memory since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// Page faults of any kind.
    pub faults: Option<u64>,
    /// Page faults that had to wait for a disk.
    pub major_faults: Option<u64>,
    /// Pages read back from swap.
    pub swapped_in: Option<u64>,
    /// Pages written to swap.
    pub swapped_out: Option<u64>,
    /// How often a program had to free memory itself before it got some.
    pub direct_reclaims: Option<u64>,
    /// Processes killed for want of memory; since Linux 4.13.
    pub oom_kills: Option<u64>,
}

/// Parses `/proc/meminfo`.
#[must_use]
pub fn parse_meminfo(text: &str) -> Option<Usage> {
    let pairs = text::pairs(text)?;
    let bytes = |key| pairs.get(key).and_then(|kib: &u64| kib.checked_mul(1024));
    Some(Usage {
        total: bytes("MemTotal")?,
        free: bytes("MemFree")?,
        available: bytes("MemAvailable"),
        buffers: bytes("Buffers"),
        cached: bytes("Cached"),
        shared: bytes("Shmem"),
        slab_reclaimable: bytes("SReclaimable"),
        slab_unreclaimable: bytes("SUnreclaim"),
        swap_total: bytes("SwapTotal"),
        swap_free: bytes("SwapFree"),
        swap_cached: bytes("SwapCached"),
    })
}

/// Parses `/proc/vmstat`.
#[must_use]
pub fn parse_vmstat(text: &str) -> Option<Events> {
    let pairs = text::pairs(text)?;
    let get = |key| pairs.get(key).copied();
    // Before Linux 4.10 one counter, since then one for each zone that the kernel was built with.
    let stalls = [
        "allocstall",
        "allocstall_dma",
        "allocstall_dma32",
        "allocstall_normal",
    ]
    .into_iter()
    .chain(["allocstall_movable", "allocstall_device"])
    .filter_map(get);
    let has_stalls = stalls.clone().next().is_some();
    Some(Events {
        faults: get("pgfault"),
        major_faults: get("pgmajfault"),
        swapped_in: get("pswpin"),
        swapped_out: get("pswpout"),
        direct_reclaims: has_stalls
            .then(|| stalls.into_iter().try_fold(0_u64, u64::checked_add))
            .flatten(),
        oom_kills: get("oom_kill"),
    })
}

/// Reads the numbers.
pub fn read(reader: &mut Reader) -> Reading {
    Reading {
        usage: reader.read("proc/meminfo", parse_meminfo),
        events: reader.read("proc/vmstat", parse_vmstat),
        pressure: reader.read("proc/pressure/memory", psi::parse),
    }
}

/// Checks memory, and swap where the kernel knows of it.
#[must_use]
pub fn checks(
    interval: Interval,
    before: &Reading,
    now: &Reading,
    contributors: &Contributors,
) -> Vec<Check> {
    let per_s = |counter: fn(&Events) -> Option<u64>| {
        interval.per_s(
            before.events.as_ref().and_then(counter),
            now.events.as_ref().and_then(counter),
        )
    };
    let used = now.usage.and_then(|usage| {
        let used = usage.total.checked_sub(usage.available?)?;
        ratio(used, usage.total)
    });
    let waiting = psi::waiting(interval, before.pressure, now.pressure).map(|share| (share, RATIO));
    let memory = Numbers {
        utilization: used,
        saturation: waiting
            .or_else(|| Some((per_s(|events| events.direct_reclaims)?, "{stall}/s"))),
        errors: per_s(|events| events.oom_kills).map(|rate| (rate, "{kill}/s")),
    };
    let total = now.usage.map_or(0, |usage| usage.total);
    let mut checks = vec![memory.check("memory", "host", contributors.by_memory(total))];

    let swap_used = now.usage.and_then(|usage| {
        let used = usage.swap_total?.checked_sub(usage.swap_free?)?;
        ratio(used, usage.swap_total?)
    });
    let pages = per_s(|events| events.swapped_in).zip(per_s(|events| events.swapped_out));
    let swap = Numbers {
        utilization: swap_used,
        saturation: pages.map(|(pages_in, pages_out)| (pages_in + pages_out, "{page}/s")),
        errors: None,
    };
    checks.push(swap.check("swap", "host", Vec::new()));
    checks
}

static USAGE: Instrument = Instrument::up_down(
    "system.memory.usage",
    "By",
    "Memory by who has it; the states add up to all there is.",
);
static LIMIT: Instrument = Instrument::up_down("system.memory.limit", "By", "All memory there is.");
static AVAILABLE: Instrument = Instrument::up_down(
    "system.memory.linux.available",
    "By",
    "What programs could get without swapping.",
);
static SHARED: Instrument = Instrument::up_down(
    "system.memory.linux.shared",
    "By",
    "Shared memory and files in memory.",
);
static SLAB: Instrument = Instrument::up_down(
    "system.memory.linux.slab.usage",
    "By",
    "Memory of the kernel's own objects.",
);
static SWAP: Instrument = Instrument::up_down("system.paging.usage", "By", "Swap space by state.");
static FAULTS: Instrument = Instrument::counter("system.paging.faults", "{fault}", "Page faults.");
static OPERATIONS: Instrument = Instrument::counter(
    "system.paging.operations",
    "{operation}",
    "Pages read from swap and written to it.",
);
static STALLS: Instrument = Instrument::counter(
    "hotspan.memory.direct_reclaims",
    "{stall}",
    "How often a program had to free memory itself before it got some.",
);
static OOM_KILLS: Instrument = Instrument::counter(
    "hotspan.memory.oom_kills",
    "{kill}",
    "Processes killed for want of memory.",
);

/// Tells the numbers.
pub fn observe(now: &Reading, out: &mut Observations) {
    if let Some(usage) = now.usage {
        let state = |state: &str| [("system.memory.state", Value::from(state))];
        // As `free` has it: the slab that can be reclaimed is a cache.
        let cached = usage.cached.unwrap_or(0) + usage.slab_reclaimable.unwrap_or(0);
        let buffers = usage.buffers.unwrap_or(0);
        let used = usage.total.checked_sub(usage.free + cached + buffers);
        out.add(&USAGE, state("used"), used);
        out.add(&USAGE, state("free"), usage.free);
        out.add(&USAGE, state("cached"), cached);
        out.add(&USAGE, state("buffers"), buffers);
        out.add(&LIMIT, [], usage.total);
        out.add(&AVAILABLE, [], usage.available);
        out.add(&SHARED, [], usage.shared);
        let slab = |state: &str| [("system.memory.linux.slab.state", Value::from(state))];
        out.add(&SLAB, slab("reclaimable"), usage.slab_reclaimable);
        out.add(&SLAB, slab("unreclaimable"), usage.slab_unreclaimable);
        let paging = |state: &str| [("system.paging.state", Value::from(state))];
        let used = usage.swap_total.zip(usage.swap_free);
        let used = used.and_then(|(total, free)| total.checked_sub(free));
        out.add(&SWAP, paging("used"), used);
        out.add(&SWAP, paging("free"), usage.swap_free);
    }
    if let Some(events) = now.events {
        let kind = |kind: &str| [("system.paging.fault.type", Value::from(kind))];
        let minor = events.faults.zip(events.major_faults);
        let minor = minor.and_then(|(all, major)| all.checked_sub(major));
        out.add(&FAULTS, kind("major"), events.major_faults);
        out.add(&FAULTS, kind("minor"), minor);
        let direction = |direction: &str| [("system.paging.direction", Value::from(direction))];
        out.add(&OPERATIONS, direction("in"), events.swapped_in);
        out.add(&OPERATIONS, direction("out"), events.swapped_out);
        out.add(&STALLS, [], events.direct_reclaims);
        out.add(&OOM_KILLS, [], events.oom_kills);
    }
    psi::observe("memory", now.pressure, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MEMINFO: &str = "MemTotal:       24684096 kB\nMemFree:         1234567 kB\n\
        MemAvailable:    6171024 kB\nBuffers:          100 kB\nCached:           200 kB\n\
        SwapCached:            7 kB\nSwapTotal:       1000 kB\nSwapFree:         250 kB\n\
        Shmem:               5 kB\nSReclaimable:       11 kB\nSUnreclaim:         13 kB\n\
        HugePages_Total:       0\n";
    const VMSTAT: &str = "pgfault 500\npgmajfault 50\npswpin 10\npswpout 20\n\
        allocstall_dma32 0\nallocstall_normal 3\nallocstall_movable 3\noom_kill 2\n";

    #[test]
    fn meminfo_is_in_bytes() {
        let usage = parse_meminfo(MEMINFO).unwrap();
        assert_eq!(usage.total, 24_684_096 * 1024);
        assert_eq!(usage.swap_cached, Some(7 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
        text::torture::check(MEMINFO, parse_meminfo);
    }

    #[test]
    fn stalls_are_summed_over_zones() {
        let events = parse_vmstat(VMSTAT).unwrap();
        assert_eq!(events.direct_reclaims, Some(6));
        assert_eq!(parse_vmstat("pgfault 1\n").unwrap().direct_reclaims, None);
        assert_eq!(
            parse_vmstat("allocstall 8\n").unwrap().direct_reclaims,
            Some(8)
        );
    }

    #[test]
    fn vmstat_survives_anything() {
        // A file that was cut has fewer zones, so the sum over them is another.
        text::torture::check(VMSTAT, |text| {
            parse_vmstat(text).map(|events| Events {
                direct_reclaims: None,
                ..events
            })
        });
    }

    #[test]
    fn numbers_come_from_both_readings() {
        let before = Reading {
            usage: parse_meminfo(MEMINFO),
            events: parse_vmstat(VMSTAT),
            pressure: None,
        };
        let later = VMSTAT
            .replace("pswpin 10", "pswpin 30")
            .replace("oom_kill 2", "oom_kill 3");
        let now = Reading {
            events: parse_vmstat(&later),
            ..before
        };
        let interval = Interval::new(Duration::from_secs(2)).unwrap();
        let [memory, swap] = &checks(interval, &before, &now, &Contributors::default())[..] else {
            panic!("two checks");
        };
        assert_eq!(memory.utilization.unwrap().value, 0.75);
        assert_eq!(memory.saturation.unwrap().unit, "{stall}/s");
        assert_eq!(memory.errors.unwrap().value, 0.5);
        assert_eq!(swap.utilization.unwrap().value, 0.75);
        assert_eq!(swap.saturation.unwrap().value, 10.0);
        let back = checks(interval, &now, &before, &Contributors::default());
        assert_eq!((back[0].errors, back[1].saturation), (None, None));
    }
}
