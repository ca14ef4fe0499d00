//! Rows of durations as maps hold them, and which of them belong to nobody.

use std::ops::Range;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues, Queue},
    util::nr_cpus,
};
use hotspan_abi::durations::{BUCKETS, Durations as Row, bucket_start_ns};

use super::take_map;
use crate::model::Durations;

/// [`Row`] in words.
type Words = [u64; size_of::<Row>() / 8];

/// The rows that some programs add to, and the queue of those that are free.
pub struct DurationRows {
    rows: PerCpuArray<MapData, Words>,
    free: Queue<MapData, u32>,
    cpus: usize,
}

impl DurationRows {
    /// Takes the maps of these names out of the object. The rows of `free` belong to nobody yet.
    ///
    /// # Errors
    /// When a map is not there, or cannot be written.
    pub fn take(
        programs: &mut Ebpf,
        rows: &str,
        free_rows: &str,
        free: Range<u32>,
    ) -> Result<Self> {
        let mut taken = Self {
            rows: PerCpuArray::try_from(take_map(programs, rows)?)?,
            free: Queue::try_from(take_map(programs, free_rows)?)?,
            cpus: nr_cpus().map_err(|(file, error)| anyhow::Error::new(error).context(file))?,
        };
        for row in free {
            let pushed = taken.free.push(row, 0);
            pushed.with_context(|| format!("cannot fill {free_rows}"))?;
        }
        Ok(taken)
    }

    /// What a row holds, of all CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self, row: u32) -> Result<Durations> {
        let mut durations = Durations::default();
        for words in self.rows.get(&row, 0)?.iter() {
            durations.add(&durations_of(words));
        }
        Ok(durations)
    }

    /// Clears a row that was read for the last time, and gives it to others.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn give_back(&mut self, row: u32) -> Result<()> {
        let zeros = vec![[0; size_of::<Row>() / 8]; self.cpus];
        self.rows.set(row, PerCpuValues::try_from(zeros)?, 0)?;
        Ok(self.free.push(row, 0)?)
    }
}

/// What a row holds for one CPU.
fn durations_of(&[count, total_ns, max_ns, ref buckets @ ..]: &Words) -> Durations {
    let counts = buckets
        .iter()
        .flat_map(|&two| [two as u32, (two >> 32) as u32]);
    let buckets = (0..BUCKETS as u32)
        .zip(counts)
        .filter(|&(_, count)| count > 0)
        .map(|(bucket, count)| (bucket_start_ns(bucket), count.into()))
        .collect();
    Durations {
        count,
        total_ns,
        max_ns,
        buckets,
    }
}
