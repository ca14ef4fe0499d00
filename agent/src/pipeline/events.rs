//! Counting of events: from the kernel's rows to whom they happened.
//!
//! In: the kernel's rows, and a reading that names cgroups and disks. Out: what happened since the last time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Result;
use rustc_hash::FxHashMap;

use hotspan_abi::resources::EventKey;

use crate::{
    capture::{EventCapture, EventRow},
    decode::events::{disk_numbers, waits},
    model::{Durations, Event, EventCount, Hierarchy},
    resource::Reading,
};

/// Events of the whole host.
pub struct EventMeter {
    capture: EventCapture,
    /// What has been told of each row.
    told: FxHashMap<EventKey, Durations>,
    /// Cgroups as they were last seen.
    paths: BTreeMap<(Hierarchy, u64), Arc<str>>,
}

impl EventMeter {
    /// Starts to count.
    ///
    /// # Errors
    /// When the kernel refuses all of it.
    pub fn start() -> Result<Self> {
        Ok(Self {
            capture: EventCapture::load(waits())?,
            told: FxHashMap::default(),
            paths: BTreeMap::new(),
        })
    }

    /// What this kernel does not tell.
    #[must_use]
    pub fn missing(&self) -> &[&'static str] {
        &self.capture.missing
    }

    /// What happened since the last time. The reading is of now.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn changes(&mut self, reading: &Reading) -> Result<Vec<EventCount>> {
        // A cgroup that was there and is not any more is gone. One that we never saw may be one of those that
        // are too many to look at.
        let (ids, paths) = (&reading.cgroup_ids, &self.paths);
        let is_gone = |key: &EventKey| {
            let id = Event::try_from(key.event).map(|event| (event.hierarchy(), key.cgroup));
            id.is_ok_and(|id| paths.contains_key(&id) && !ids.contains_key(&id))
        };
        let gone = self.capture.take(is_gone)?;
        let now = self.capture.read()?;
        for (id, path) in ids {
            let known = self
                .paths
                .entry(*id)
                .or_insert_with(|| path.as_str().into());
            if **known != **path {
                *known = path.as_str().into();
            }
        }
        let mut changes: Vec<_> = gone
            .iter()
            .filter_map(|row| self.since(row, reading))
            .collect();
        for row in &gone {
            self.told.remove(&row.key);
        }
        self.paths.retain(|id, _| ids.contains_key(id));
        changes.extend(now.iter().filter_map(|row| self.since(row, reading)));
        self.told
            .extend(now.into_iter().map(|row| (row.key, row.durations)));
        Ok(changes)
    }

    /// What was not counted, by reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>> {
        self.capture.losses()
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        self.capture.run_times()
    }

    fn since(&self, row: &EventRow, reading: &Reading) -> Option<EventCount> {
        let nothing = Durations::default();
        let told = self.told.get(&row.key).unwrap_or(&nothing);
        let durations = row.durations.since(told);
        if durations.count == 0 {
            return None;
        }
        let event = Event::try_from(row.key.event).ok()?;
        let disk = disk_numbers(row.key.disk);
        Some(EventCount {
            event,
            cgroup: self
                .paths
                .get(&(event.hierarchy(), row.key.cgroup))
                .cloned(),
            disk: (disk != (0, 0)).then(|| {
                let name = reading.disk.names.get(&disk);
                name.map_or_else(|| format!("{}:{}", disk.0, disk.1), String::clone)
                    .into()
            }),
            durations,
        })
    }
}
