//! The rings of samples, one for each CPU, see [`hotspan_abi::rings`].
#![allow(unsafe_code)] // They are mapped into our memory.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use aya::Ebpf;
use hotspan_abi::{
    records::{RecordHeader, SampleRecord},
    rings::{CHUNK_BYTES, CHUNK_WORDS, Ring, after, chunk_of},
};

use super::mapped::MappedArray;

const CHUNK_SPACE: usize = CHUNK_WORDS * 8;

/// Chunks of each ring: three seconds of samples with 64 frames, but not more than 64 MiB for all CPUs.
pub fn chunk_count(rate_hz: u32, cpus: u32) -> u32 {
    const SAMPLE_BYTES: u64 = 56 + 64 * 8;
    const MAX_BYTES: u64 = 64 << 20;
    let wanted = u64::from(rate_hz) * SAMPLE_BYTES * 3 / CHUNK_BYTES + 1;
    let most = (MAX_BYTES / (CHUNK_SPACE as u64 * u64::from(cpus))).max(2);
    wanted.next_power_of_two().clamp(2, 1 << most.ilog2()) as u32
}

/// The rings of all CPUs.
pub struct SampleRings {
    /// The working memory of each CPU, which begins with the ends of its ring.
    scratch: MappedArray,
    scratch_bytes: usize,
    samples: MappedArray,
    chunks: u64,
    cpus: u32,
}

impl SampleRings {
    /// Takes the maps of a loaded object: of so many CPUs, and with so many chunks for each.
    pub fn take(programs: &mut Ebpf, cpus: u32, chunks: u32) -> Result<Self> {
        let (scratch, scratch_bytes) = MappedArray::take(programs, "SCRATCH", cpus)?;
        let (samples, _) = MappedArray::take(programs, "SAMPLES", cpus * chunks)?;
        Ok(Self::new(scratch, scratch_bytes, samples, cpus, chunks))
    }

    fn new(
        scratch: MappedArray,
        scratch_bytes: usize,
        samples: MappedArray,
        cpus: u32,
        chunks: u32,
    ) -> Self {
        let rings = Self {
            scratch,
            scratch_bytes,
            samples,
            chunks: chunks.into(),
            cpus,
        };
        for cpu in 0..cpus {
            if let Some(chunks) = rings.word(cpu, offset_of!(Ring, chunks)) {
                chunks.store(rings.chunks, Ordering::Release);
            }
        }
        rings
    }

    /// Takes what was written up to a moment, in the order of each CPU. Returns how often a record's length was
    /// nonsense: what follows on it is passed over.
    pub fn drain(&mut self, until_mono_ns: u64, mut take: impl FnMut(&[u8])) -> u64 {
        let whole = |cpu: &u32| self.drain_one(*cpu, until_mono_ns, &mut take);
        u64::from(self.cpus) - (0..self.cpus).filter(whole).count() as u64
    }

    /// Takes those of one CPU; false when one was nonsense.
    fn drain_one(&self, cpu: u32, until_mono_ns: u64, take: &mut impl FnMut(&[u8])) -> bool {
        let (Some(written), Some(read)) = (
            self.word(cpu, offset_of!(Ring, written)),
            self.word(cpu, offset_of!(Ring, read)),
        ) else {
            return false;
        };
        let written = written.load(Ordering::Acquire);
        let mut position = read.load(Ordering::Relaxed);
        let mut is_whole = true;
        while position < written {
            let chunk = chunk_of(position, cpu, self.chunks);
            let at = CHUNK_SPACE * chunk as usize + (position % CHUNK_BYTES) as usize;
            let Some(record) = self.samples.at::<SampleRecord>(at) else {
                break;
            };
            // SAFETY: it was written before, and any words are a header.
            let header = unsafe { record.cast::<RecordHeader>().read() };
            let len = header.total_bytes as usize;
            if !(size_of::<RecordHeader>()..=size_of::<SampleRecord>()).contains(&len) {
                (position, is_whole) = (written, false);
                break;
            }
            if header.time_mono_ns > until_mono_ns {
                break;
            }
            // SAFETY: a record lies inside of the mapping, and nobody writes it until we have said that it is
            // read.
            take(unsafe { std::slice::from_raw_parts(record.as_ptr().cast::<u8>(), len) });
            position = after(position, len as u64);
        }
        read.store(position, Ordering::Release);
        is_whole
    }

    /// A word of a CPU's [`Ring`].
    fn word(&self, cpu: u32, offset: usize) -> Option<&AtomicU64> {
        let word = self.scratch.at(self.scratch_bytes * cpu as usize + offset);
        // SAFETY: it lies inside of the mapping, and is read and written as a whole on both sides.
        word.map(|word| unsafe { word.as_ref() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use hotspan_abi::rings::is_full;

    use super::*;

    const CHUNKS: u32 = 2;
    const SCRATCH_BYTES: usize = 4096;

    fn memory(bytes: usize) -> MappedArray {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes as u64).unwrap();
        MappedArray::new(file.as_fd(), bytes).unwrap()
    }

    fn rings(cpus: u32) -> SampleRings {
        let scratch = memory(SCRATCH_BYTES * cpus as usize);
        let samples = memory(CHUNK_SPACE * (cpus * CHUNKS) as usize);
        SampleRings::new(scratch, SCRATCH_BYTES, samples, cpus, CHUNKS)
    }

    /// Writes a record as the kernel side does; false when there is no room.
    fn write(rings: &SampleRings, cpu: u32, total_bytes: u32, time_mono_ns: u64) -> bool {
        let ring = rings.scratch.at::<Ring>(SCRATCH_BYTES * cpu as usize);
        // SAFETY: it lies in the mapping, and nobody reads meanwhile.
        let ring = unsafe { ring.unwrap().as_mut() };
        if is_full(*ring) {
            return false;
        }
        let chunk = chunk_of(ring.written, cpu, ring.chunks);
        let at = CHUNK_SPACE * chunk as usize + (ring.written % CHUNK_BYTES) as usize;
        let header = RecordHeader {
            kind: 1,
            total_bytes,
            time_mono_ns,
        };
        // SAFETY: as above.
        unsafe { rings.samples.at(at).unwrap().write(header) };
        ring.written = after(ring.written, total_bytes.into());
        true
    }

    fn times(rings: &mut SampleRings, until: u64) -> Vec<u64> {
        let mut times = Vec::new();
        rings.drain(until, |record| {
            times.push(RecordHeader::of(record).unwrap().time_mono_ns);
        });
        times
    }

    #[test]
    fn records_are_read_up_to_a_moment_and_the_rest_later() {
        let mut rings = rings(2);
        for (cpu, time) in [(0, 1), (1, 2), (0, 3), (1, 9)] {
            assert!(write(&rings, cpu, 64, time));
        }
        assert_eq!(times(&mut rings, 5), [1, 3, 2]);
        assert!(times(&mut rings, 5).is_empty());
        assert_eq!(times(&mut rings, 9), [9]);
    }

    #[test]
    fn ring_goes_round_and_a_full_one_takes_nothing() {
        let mut rings = rings(1);
        let (mut written, mut read) = (0, 0);
        for round in 0..50 {
            let len = 56 + 8 * (round % 1025);
            while write(&rings, 0, len, written) {
                written += 1;
            }
            for time in times(&mut rings, u64::MAX) {
                assert_eq!(time, read);
                read += 1;
            }
            assert_eq!(written, read);
        }
        assert!(written > 5000, "{written}");
    }

    #[test]
    fn record_without_a_length_ends_a_ring_for_now() {
        let mut rings = rings(1);
        for len in [64, 8, 64] {
            write(&rings, 0, len, 1);
        }
        assert_eq!(times(&mut rings, 5).len(), 1);
        assert!(write(&rings, 0, 64, 2));
        assert_eq!(times(&mut rings, 5), [2]);
        assert!(write(&rings, 0, 1 << 20, 3));
        assert_eq!(rings.drain(5, |_| panic!()), 1);
        assert_eq!(rings.drain(5, |_| panic!()), 0);
    }

    #[test]
    fn rings_are_as_long_as_the_rate_wants() {
        let of_two_cpus = |rate_hz| chunk_count(rate_hz, 2);
        assert_eq!([1, 99, 999, 10_000].map(of_two_cpus), [2, 4, 32, 256]);
        let of_cpus = |cpus| chunk_count(999, cpus);
        assert_eq!([16, 64, 512, 8192].map(of_cpus), [32, 8, 2, 2]);
    }
}
