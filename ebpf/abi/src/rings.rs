//! Rings of samples: how they get from the kernel side to the agent.
//!
//! Each CPU has a ring, which it alone writes and the agent alone reads: one that all share, with a lock,
//! would take about as long as the walk of a stack. Samples are made where they lie. A ring is a row of
//! chunks, which are the entries of a map. A record begins in the first [`CHUNK_BYTES`] of a chunk and is in
//! one piece, because there is room for the longest behind them.
//!
//! A position counts bytes from the start on, as if chunks were no longer than [`CHUNK_BYTES`] and there was
//! no end of them. Records lie one behind the other, but the first in a chunk at its start: see [`after`].

use crate::records::SampleRecord;

/// Bytes of a chunk that records begin in. A power of two: positions are masked.
pub const CHUNK_BYTES: u64 = 64 << 10;
const _: () = assert!(CHUNK_BYTES.is_power_of_two());

/// Words of a chunk. Whole pages, as all of them are mapped into the agent's memory.
pub const CHUNK_WORDS: usize = (CHUNK_BYTES as usize + (12 << 10)) / 8;
const _: () = assert!(CHUNK_BYTES as usize - 8 + size_of::<SampleRecord>() <= CHUNK_WORDS * 8);

/// A CPU's ring: how long it is, and where it is written and read. It lies at the start of the CPU's working
/// memory, and none is there before the agent has set it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ring {
    /// Position of the next record that the CPU writes.
    pub written: u64,
    /// Position of the next record that the agent reads.
    pub read: u64,
    /// How many chunks there are: a power of two.
    pub chunks: u64,
}

/// The chunk that a position lies in, of the ring of a CPU that has so many.
#[inline(always)]
#[must_use]
pub const fn chunk_of(position: u64, cpu: u32, chunks: u64) -> u32 {
    let chunk = (position / CHUNK_BYTES) & chunks.wrapping_sub(1);
    (cpu as u64 * chunks + chunk) as u32
}

/// The position behind a record of so many bytes.
#[inline(always)]
#[must_use]
pub const fn after(position: u64, bytes: u64) -> u64 {
    let end = position + bytes;
    let (chunk, end_chunk) = (position / CHUNK_BYTES, end / CHUNK_BYTES);
    if chunk == end_chunk {
        end
    } else {
        (chunk + 1) * CHUNK_BYTES
    }
}

/// Whether a ring has no room for a record. The chunk that is read next is not written.
#[inline(always)]
#[must_use]
pub const fn is_full(ring: Ring) -> bool {
    (ring.written / CHUNK_BYTES).wrapping_sub(ring.read / CHUNK_BYTES) >= ring.chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_record_of_a_chunk_is_at_its_start() {
        assert_eq!(after(0, 64), 64);
        assert_eq!(after(CHUNK_BYTES - 64, 64), CHUNK_BYTES);
        assert_eq!(after(CHUNK_BYTES - 8, 8248), CHUNK_BYTES);
        assert_eq!(after(3 * CHUNK_BYTES + 8, 16), 3 * CHUNK_BYTES + 24);
        assert_eq!(chunk_of(5 * CHUNK_BYTES + 8, 3, 4), 13);
    }

    #[test]
    fn chunk_that_is_read_is_not_written() {
        let is_full = |written, read| {
            is_full(Ring {
                written,
                read,
                chunks: 2,
            })
        };
        assert!(!is_full(0, 0));
        assert!(!is_full(2 * CHUNK_BYTES - 8, 8));
        assert!(is_full(2 * CHUNK_BYTES, CHUNK_BYTES - 8));
        assert!(!is_full(2 * CHUNK_BYTES, CHUNK_BYTES));
        assert!(super::is_full(Ring::default()));
    }
}
