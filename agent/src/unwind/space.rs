//! Which parts of the tables' space are free.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hotspan_abi::unwind::SEGMENT_WORDS;

/// A part of the space, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u32,
    pub len: u32,
}

/// Free parts. Each lies in one segment, and none touches another there.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeSpace {
    by_start: BTreeMap<u32, u32>,
    /// Length and start of each.
    by_len: BTreeSet<(u32, u32)>,
}

impl FreeSpace {
    /// Whether parts of these lengths could be taken.
    pub fn holds(&self, sizes: &[usize]) -> bool {
        let longest = self.by_len.last().map_or(0, |&(len, _)| len as usize);
        match sizes {
            [] => true,
            [words] => *words <= longest,
            _ => self.clone().take_all(sizes).is_some(),
        }
    }

    /// Takes parts of these lengths; when not all can be had, none.
    pub fn take_all(&mut self, sizes: &[usize]) -> Option<Vec<Range>> {
        let mut order: Vec<_> = (0..sizes.len()).collect();
        // The longest first: short ones fit in what is left.
        order.sort_by_key(|&at| Reverse(sizes[at]));
        let mut taken = vec![Range { start: 0, len: 0 }; sizes.len()];
        for at in order {
            let Some(range) = self.take(sizes[at]) else {
                taken.into_iter().for_each(|range| self.give(range));
                return None;
            };
            taken[at] = range;
        }
        Some(taken)
    }

    /// How much is free.
    pub fn words(&self) -> usize {
        self.by_start.values().map(|&len| len as usize).sum()
    }

    /// Takes that much out of the shortest part that is long enough, so that long ones stay.
    pub fn take(&mut self, words: usize) -> Option<Range> {
        let words = u32::try_from(words).ok()?;
        if words == 0 {
            return Some(Range { start: 0, len: 0 });
        }
        let &(len, start) = self.by_len.range((words, 0)..).next()?;
        self.remove(start, len);
        if len > words {
            self.insert(start + words, len - words);
        }
        Some(Range { start, len: words })
    }

    /// Frees a part.
    pub fn give(&mut self, range: Range) {
        let Range { mut start, mut len } = range;
        if len == 0 {
            return;
        }
        let before = self.by_start.range(..start).next_back();
        if let Some((&before, &before_len)) = before
            && before + before_len == start
            && !is_segment_start(start)
        {
            self.remove(before, before_len);
            start = before;
            len += before_len;
        }
        if let Some(&after_len) = self.by_start.get(&(start + len))
            && !is_segment_start(start + len)
        {
            self.remove(start + len, after_len);
            len += after_len;
        }
        self.insert(start, len);
    }

    fn insert(&mut self, start: u32, len: u32) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

fn is_segment_start(index: u32) -> bool {
    (index as usize).is_multiple_of(SEGMENT_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u32 = SEGMENT_WORDS as u32;

    #[test]
    fn shortest_part_that_is_long_enough_is_taken() {
        let mut free = FreeSpace::default();
        for (start, len) in [(0, 10), (20, 4), (30, 5)] {
            free.give(Range { start, len });
        }
        assert_eq!(free.take(5), Some(Range { start: 30, len: 5 }));
        assert_eq!(free.take(3), Some(Range { start: 20, len: 3 }));
        assert_eq!(free.take(2), Some(Range { start: 0, len: 2 }));
        assert_eq!(free.take(9), None);
        assert!(free.holds(&[8]) && !free.holds(&[9]));
        assert_eq!(free.words(), 9);
    }

    #[test]
    fn no_part_crosses_the_end_of_a_segment() {
        let mut free = FreeSpace::default();
        for (start, len) in [(SEGMENT, SEGMENT), (0, SEGMENT)] {
            free.give(Range { start, len });
        }
        let quarter = SEGMENT_WORDS / 4;
        assert!(!free.holds(&[SEGMENT_WORDS + 1]));
        assert_eq!(
            free.take_all(&[quarter, 1, 3 * quarter, 3 * quarter, quarter]),
            None
        );
        assert_eq!(free.words(), 2 * SEGMENT_WORDS);
        let sizes = [quarter, 3 * quarter, quarter, 3 * quarter];
        let taken = free.take_all(&sizes).unwrap();
        for (range, size) in taken.into_iter().zip(sizes) {
            assert!(range.start % SEGMENT + range.len <= SEGMENT);
            assert_eq!(range.len as usize, size);
        }
        assert_eq!(free.words(), 0);
    }

    #[test]
    fn any_order_of_giving_back_makes_one_part() {
        let mut seed = 3_u64;
        let mut free = FreeSpace::default();
        for segment in 0..4 {
            free.give(Range {
                start: segment * SEGMENT,
                len: SEGMENT,
            });
        }
        let mut taken: Vec<Range> = Vec::new();
        for _ in 0..5000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let choice = (seed >> 33) as usize;
            if choice.is_multiple_of(3) && !taken.is_empty() {
                free.give(taken.swap_remove(choice % taken.len()));
            } else {
                taken.extend(free.take(choice % 2000));
            }
            let words: usize = taken.iter().map(|range| range.len as usize).sum();
            assert_eq!(free.words() + words, 1 << 20);
        }
        taken.into_iter().for_each(|range| free.give(range));
        assert_eq!(free.by_start.len(), 4);
        assert!(free.holds(&[SEGMENT_WORDS; 4]));
    }
}
