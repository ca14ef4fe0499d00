//! A value for each address of a function, as a list of differences.

use std::ops::Range;

/// A value and the addresses it holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcValue {
    /// ELF addresses, never empty, each behind the one before.
    pub range: Range<u64>,
    /// The value.
    pub value: i32,
}

/// Reads a function's values in the order of their addresses (`runtime.step`): pairs of numbers of
/// seven bits a byte, the difference to the value before, zigzag, and how far it holds. The first
/// value is a difference to -1, and a difference of 0 ends the list.
#[derive(Clone, Debug)]
pub struct PcValues<'a> {
    bytes: &'a [u8],
    /// Addresses that are still to come. A list that goes on behind them, or stands still, ends:
    /// so there is never more to read than a function is long.
    left: Range<u64>,
    quantum: u64,
    value: i32,
    is_first: bool,
}

impl<'a> PcValues<'a> {
    pub(super) fn new(bytes: &'a [u8], range: Range<u64>, quantum: u64) -> Self {
        Self {
            bytes,
            left: range,
            quantum,
            value: -1,
            is_first: true,
        }
    }

    fn number(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in (0..35).step_by(7) {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

impl Iterator for PcValues<'_> {
    type Item = PcValue;

    fn next(&mut self) -> Option<PcValue> {
        let difference = self.number()?;
        if difference == 0 && !self.is_first {
            self.bytes = &[];
            return None;
        }
        self.is_first = false;
        let difference = (difference >> 1) as i32 ^ -((difference & 1) as i32);
        self.value = self.value.wrapping_add(difference);
        let start = self.left.start;
        let end = start.checked_add(u64::from(self.number()?) * self.quantum)?;
        let end = end.min(self.left.end);
        self.left.start = end;
        if start >= end {
            self.bytes = &[];
            return None;
        }
        Some(PcValue {
            range: start..end,
            value: self.value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &[(u64, u64, i32)]) {
        let values: Vec<_> = PcValues::new(bytes, 100..200, 2)
            .map(|value| (value.range.start, value.range.end, value.value))
            .collect();
        assert_eq!(values, expected, "{bytes:?}");
    }

    #[test]
    fn values_are_differences_that_hold_for_a_number_of_instructions() {
        check(
            &[2, 5, 16, 1, 15, 3, 0],
            &[(100, 110, 0), (110, 112, 8), (112, 118, 0)],
        );
    }

    #[test]
    fn numbers_have_seven_bits_a_byte() {
        check(&[0x82, 1, 5, 0], &[(100, 110, 64)]);
    }

    #[test]
    fn a_first_difference_of_nothing_is_a_value() {
        check(&[0, 5, 0], &[(100, 110, -1)]);
    }

    #[test]
    fn a_list_ends_with_its_function() {
        check(&[2, 90, 2, 1, 0], &[(100, 200, 0)]);
    }

    #[test]
    fn a_list_that_stands_still_or_is_cut_off_ends() {
        check(&[2, 0, 2, 1, 0], &[]);
        check(&[2], &[]);
        check(&[], &[]);
        check(&[0xff; 20], &[]);
    }
}
