//! What happens to resources, seen from the agent: loads the programs that count it, and reads what they
//! counted.
//!
//! In: nothing. Out: rows, one for each kind of event of each cgroup and disk, whenever they are asked for.
//! The counting is all in the kernel; see [`hotspan_abi::resources`] for how.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray},
};
use hotspan_abi::{
    counters::Counter,
    resources::{EVENTS, Event, EventKey, MAX_EVENT_ROWS, WAITING_SYSCALLS},
    settings::ResourceOffsets,
};

use super::{
    Extent, Settings, Target, attach_raw_tracepoint,
    cgroup::{Cgroup, is_cpu_in_v1},
    cpus,
    durations::DurationRows,
    load_object, read_losses, row_count, take_map,
};
use crate::model::Durations;

/// [`EventKey`] in words.
type KeyWords = [u32; 4];
const _: () = assert!(size_of::<EventKey>() == size_of::<KeyWords>());

/// A kind of event of a cgroup and a disk.
#[derive(Clone, Debug)]
pub struct EventRow {
    /// Whose it was; what does not apply or is not known is 0.
    pub key: EventKey,
    /// How often, and how long it took.
    pub durations: Durations,
}

/// Programs that belong together: what they need of the kernel's structures, and each with its tracepoint.
struct Group {
    name: &'static str,
    is_possible: fn(&ResourceOffsets) -> bool,
    programs: &'static [(&'static str, &'static str)],
}

const GROUPS: &[Group] = &[
    Group {
        name: "scheduler",
        is_possible: |offsets| offsets.rq_clock != 0,
        programs: &[("resource_switch", "sched_switch")],
    },
    Group {
        name: "disks",
        is_possible: |offsets| offsets.request_bytes != 0,
        // First the end of a request: one that begins is counted until it ends.
        programs: &[
            ("disk_complete", "block_rq_complete"),
            ("disk_issue", "block_rq_issue"),
        ],
    },
    Group {
        name: "TCP",
        is_possible: |offsets| offsets.sock_cgroup != 0,
        programs: &[
            ("tcp_retransmit", "tcp_retransmit_skb"),
            ("tcp_retransmit_synack", "tcp_retransmit_synack"),
            ("tcp_send_reset", "tcp_send_reset"),
            ("tcp_receive_reset", "tcp_receive_reset"),
        ],
    },
    Group {
        name: "out of memory",
        is_possible: |_| true,
        programs: &[("memory_oom_kill", "mark_victim")],
    },
    Group {
        name: "direct reclaim",
        is_possible: |_| true,
        programs: &[
            ("memory_reclaim_end", "mm_vmscan_direct_reclaim_end"),
            ("memory_reclaim_begin", "mm_vmscan_direct_reclaim_begin"),
        ],
    },
    Group {
        name: "reclaim at a limit",
        is_possible: |_| true,
        programs: &[
            ("memory_limit_end", "mm_vmscan_memcg_reclaim_end"),
            ("memory_limit_begin", "mm_vmscan_memcg_reclaim_begin"),
        ],
    },
    Group {
        name: "softirqs",
        is_possible: |_| true,
        programs: &[
            ("softirq_exit", "softirq_exit"),
            ("softirq_entry", "softirq_entry"),
        ],
    },
];

/// The programs at work. They detach when this is dropped.
pub struct EventCapture {
    row_of: HashMap<MapData, KeyWords, u32>,
    rows: DurationRows,
    counts: PerCpuArray<MapData, u64>,
    /// What this kernel does not tell.
    pub missing: Vec<&'static str>,
    programs: Ebpf,
}

impl EventCapture {
    /// Loads the programs and starts to count. `waits` tells why threads wait in which system call. What
    /// this kernel cannot tell is in [`Self::missing`].
    ///
    /// # Errors
    /// When the kernel refuses all programs, or a map; the text says which.
    pub fn load(waits: impl Iterator<Item = (u32, Event)>) -> Result<Self> {
        // Nobody is a target here: it tells the hierarchy whose cgroups are counted by.
        let target = match is_cpu_in_v1() {
            true => Target::Cgroup(Cgroup {
                path: "/".into(),
                id: 0,
                controller: Some("cpu".to_owned()),
            }),
            false => Target::All,
        };
        let settings = Settings {
            target,
            ..Settings::default()
        };
        let (mut programs, offsets) = load_object(&settings, Extent::Events)?;
        let cpus = cpus::possible_count()?;
        // The first rows belong to nobody.
        let free = EVENTS.len() as u32..row_count(cpus, MAX_EVENT_ROWS);
        let rows = DurationRows::take(&mut programs, "EVENT_ROWS", "FREE_EVENT_ROWS", free)?;
        let mut waits_of =
            Array::<_, u32>::try_from(take_map(&mut programs, "WAITS_OF_SYSCALLS")?)?;
        for (number, event) in waits.filter(|(number, _)| (*number as usize) < WAITING_SYSCALLS - 1)
        {
            waits_of.set(number, event as u32, 0)?;
        }
        let mut capture = Self {
            row_of: HashMap::try_from(take_map(&mut programs, "EVENT_ROW_OF")?)?,
            rows,
            counts: PerCpuArray::try_from(take_map(&mut programs, "COUNTS")?)?,
            missing: Vec::new(),
            programs,
        };
        let mut failure = anyhow!("this kernel's types are strange to us");
        for group in GROUPS {
            match capture.attach(group, &offsets) {
                Ok(true) => {}
                Ok(false) => capture.missing.push(group.name),
                Err(error) => {
                    tracing::info!(events = group.name, reason = %error, "some events of resources are not counted");
                    capture.missing.push(group.name);
                    failure = error;
                }
            }
        }
        if capture.missing.len() == GROUPS.len() {
            return Err(failure.context("the kernel refused all programs that count events"));
        }
        Ok(capture)
    }

    fn attach(&mut self, group: &Group, offsets: &ResourceOffsets) -> Result<bool> {
        if !(group.is_possible)(offsets) {
            return Ok(false);
        }
        for (program, tracepoint) in group.programs {
            attach_raw_tracepoint(&mut self.programs, program, tracepoint)
                .with_context(|| format!("cannot attach to the tracepoint {tracepoint}"))?;
        }
        Ok(true)
    }

    /// What was counted since the start.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Vec<EventRow>> {
        let of_nobody = EVENTS.iter().map(|&event| {
            let key = EventKey {
                event: event as u32,
                ..EventKey::default()
            };
            (key, event as u32)
        });
        let keys = self.row_of.iter().filter_map(Result::ok);
        let keys = keys.map(|(words, row)| (key_of(words), row));
        let rows: Vec<_> = of_nobody.chain(keys).collect();
        rows.into_iter()
            .map(|(key, row)| self.read_row(key, row))
            .filter(|row| row.as_ref().map_or(true, |row| row.durations.count > 0))
            .collect()
    }

    /// Takes what was counted of cgroups that are gone, and gives their rows to others.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn take(&mut self, is_gone: impl Fn(&EventKey) -> bool) -> Result<Vec<EventRow>> {
        let keys: Vec<_> = self.row_of.iter().filter_map(Result::ok).collect();
        let gone = keys
            .into_iter()
            .filter(|(words, _)| is_gone(&key_of(*words)));
        gone.map(|(words, row)| {
            self.row_of.remove(&words)?;
            let taken = self.read_row(key_of(words), row)?;
            self.rows.give_back(row)?;
            Ok(taken)
        })
        .collect()
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    #[must_use]
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        super::run_times(&self.programs)
    }

    /// What the kernel side counted of its losses.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>> {
        read_losses(
            &self.counts,
            &[
                Counter::EventRowsFull,
                Counter::SwitchedFull,
                Counter::DiskRequestsFull,
                Counter::DiskEndsMissed,
                Counter::ReclaimingFull,
            ],
        )
    }

    fn read_row(&self, key: EventKey, row: u32) -> Result<EventRow> {
        let durations = self.rows.read(row)?;
        Ok(EventRow { key, durations })
    }
}

fn key_of([low, high, disk, event]: KeyWords) -> EventKey {
    EventKey {
        cgroup: u64::from(high) << 32 | u64::from(low),
        disk,
        event,
    }
}
