//! The executable mappings of one process.

use super::Found;
use crate::model::BinaryId;

/// What lies in a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Part of a file.
    File(BinaryId),
    /// Code made at run time.
    Anonymous,
}

/// An executable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the file of the first address.
    pub file_offset: u64,
    /// What lies there.
    pub code: Code,
}

impl Mapping {
    /// What lies at an address in it.
    #[must_use]
    pub fn at(&self, addr: u64) -> Found {
        match self.code {
            Code::File(id) => Found::File(id, (addr - self.start).wrapping_add(self.file_offset)),
            Code::Anonymous => Found::Anonymous,
        }
    }
}

/// A process with more mappings has them cut off here.
const MAX_MAPPINGS: usize = 16 << 10;

/// Mappings by address, none over another.
#[derive(Clone, Debug, Default)]
pub struct Mappings(Vec<Mapping>);

impl Mappings {
    /// Adds a mapping. What it covers of older ones is gone, as in the process.
    pub fn insert(&mut self, new: Mapping) {
        if new.start >= new.end || self.0.len() >= MAX_MAPPINGS {
            return;
        }
        let first = self.0.partition_point(|old| old.end <= new.start);
        let last = self.0.partition_point(|old| old.start < new.end);
        let mut pieces = Vec::with_capacity(3);
        if let Some(old) = self.0.get(first).filter(|old| old.start < new.start) {
            pieces.push(Mapping {
                end: new.start,
                ..*old
            });
        }
        pieces.push(new);
        let covered = self.0[first..last].last();
        if let Some(old) = covered.filter(|old| old.end > new.end) {
            let cut = new.end - old.start;
            let file_offset = old.file_offset.wrapping_add(cut);
            pieces.push(Mapping {
                start: new.end,
                file_offset,
                ..*old
            });
        }
        self.0.splice(first..last, pieces);
    }

    /// All of them, by address.
    #[must_use]
    pub fn as_slice(&self) -> &[Mapping] {
        &self.0
    }

    /// What lies at an address.
    #[must_use]
    pub fn at(&self, addr: u64) -> Found {
        let mapping = self.find(addr);
        mapping.map_or(Found::Nowhere, |mapping| mapping.at(addr))
    }

    /// The mapping that holds `addr`.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<&Mapping> {
        let after = self.0.partition_point(|mapping| mapping.start <= addr);
        self.0[..after].last().filter(|mapping| addr < mapping.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, file_offset: u64) -> Mapping {
        Mapping {
            start,
            end,
            file_offset,
            code: Code::Anonymous,
        }
    }

    #[test]
    fn address_is_found_in_its_mapping_alone() {
        let mut mappings = Mappings::default();
        mappings.insert(mapping(0x3000, 0x4000, 0));
        mappings.insert(mapping(0x1000, 0x2000, 0));
        assert_eq!(mappings.find(0xfff), None);
        assert_eq!(mappings.find(0x1000).map(|m| m.start), Some(0x1000));
        assert_eq!(mappings.find(0x1fff).map(|m| m.start), Some(0x1000));
        assert_eq!(mappings.find(0x2000), None);
        assert_eq!(mappings.find(0x3abc).map(|m| m.start), Some(0x3000));
    }

    #[test]
    fn new_mapping_cuts_the_old_one_in_two() {
        let mut mappings = Mappings::default();
        mappings.insert(mapping(0x1000, 0x9000, 0x100_0000));
        mappings.insert(mapping(0x3000, 0x4000, 7));
        assert_eq!(
            mappings.0,
            [
                mapping(0x1000, 0x3000, 0x100_0000),
                mapping(0x3000, 0x4000, 7),
                mapping(0x4000, 0x9000, 0x100_3000)
            ]
        );
    }

    #[test]
    fn any_sequence_leaves_mappings_in_order_and_apart() {
        let mut seed = 7_u64;
        let mut mappings = Mappings::default();
        let mut newest = vec![None; 64];
        for round in 0..500 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (start, len) = (seed >> 60 << 2 | seed >> 40 & 3, seed >> 50 & 15);
            let (start, end) = (start % 60, (start % 60 + len).min(64));
            // The offset says which insertion an address belongs to.
            mappings.insert(mapping(start, end, round * 1000 + start));
            newest[start as usize..(end as usize).max(start as usize)].fill(Some(round));
            assert!(
                mappings
                    .0
                    .windows(2)
                    .all(|pair| pair[0].end <= pair[1].start)
            );
            for (addr, wanted) in newest.iter().enumerate() {
                let found = mappings
                    .find(addr as u64)
                    .map(|m| (m.file_offset + (addr as u64 - m.start)) / 1000);
                assert_eq!(found, *wanted);
            }
        }
    }
}
