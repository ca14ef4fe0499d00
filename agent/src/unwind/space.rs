//! Which parts of the tables' space are free.

use std::collections::{BTreeMap, BTreeSet};

/// A part of the space, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u32,
    pub len: u32,
}

/// Free parts, none of which touches another.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeSpace {
    by_start: BTreeMap<u32, u32>,
    /// Length and start of each.
    by_len: BTreeSet<(u32, u32)>,
}

impl FreeSpace {
    /// Length of the longest part.
    pub fn longest(&self) -> usize {
        self.by_len.last().map_or(0, |&(len, _)| len as usize)
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
        {
            self.remove(before, before_len);
            start = before;
            len += before_len;
        }
        if let Some(&after_len) = self.by_start.get(&(start + len)) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((free.longest(), free.words()), (8, 9));
    }

    #[test]
    fn any_order_of_giving_back_makes_one_part() {
        let mut seed = 3_u64;
        let mut free = FreeSpace::default();
        free.give(Range {
            start: 0,
            len: 1 << 20,
        });
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
        assert_eq!(free.longest(), 1 << 20);
    }
}
