//! The shapes that the kernel's text files have in common.
//!
//! Only lines that end are taken, so that a file cut anywhere gives fewer numbers and no wrong one.

use rustc_hash::FxHashMap;

/// The lines that end.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}

/// A file of one number.
pub fn number(text: &str) -> Option<u64> {
    lines(text).next()?.trim().parse().ok()
}

/// A file of one number, or `max` for none.
pub fn limit(text: &str) -> Option<Option<u64>> {
    match lines(text).next()?.trim() {
        "max" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// Lines of `key value`, the key with or without a colon: `vmstat`, `meminfo`, `cpu.stat`,
/// `memory.events`. What stands behind the value, such as `kB`, is left to the caller. A file
/// without any such line is none.
pub fn pairs(text: &str) -> Option<FxHashMap<&str, u64>> {
    let pairs: FxHashMap<_, _> = lines(text)
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let key = words.next()?;
            let value = words.next()?.parse().ok()?;
            Some((key.strip_suffix(':').unwrap_or(key), value))
        })
        .collect();
    (!pairs.is_empty()).then_some(pairs)
}

/// All numbers of a line; `None` when one is none.
pub fn numbers(line: &str) -> Option<Vec<u64>> {
    line.split_ascii_whitespace()
        .map(|word| word.parse().ok())
        .collect()
}

/// What tests do to every parser.
#[cfg(test)]
pub mod torture {
    use std::fmt::Debug;

    /// Feeds `parse` every cut of `text`, and `text` with bytes changed, removed and doubled. It
    /// must not panic, and from a cut it must make what it makes of the whole, or less: every
    /// number in it must be one that the whole gives, too.
    pub fn check<T: Debug>(text: &str, parse: impl Fn(&str) -> T) {
        let numbers = |text: &str| -> Vec<String> {
            format!("{:?}", parse(text))
                .split(|c: char| !c.is_ascii_digit())
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let whole = numbers(text);
        assert!(!whole.is_empty(), "nothing is made of {text:?}");
        for end in 0..text.len() {
            for number in numbers(&text[..end]) {
                // A list that was cut is padded with nothing, a sum has no terms.
                assert!(
                    whole.contains(&number) || number == "0",
                    "cut at {end}: {number}"
                );
            }
        }
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2000 {
            let mut bytes = text.as_bytes().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes[at] = *random.choice(b"0 9\n-:x.").unwrap(),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, bytes[at]),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            parse(&String::from_utf8_lossy(&bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_lines_are_not_taken() {
        assert_eq!(number("12\n"), Some(12));
        assert_eq!(number("12"), None);
        assert_eq!(number("-1\n"), None);
        assert_eq!(limit("max\n"), Some(None));
        assert_eq!(limit("12\n"), Some(Some(12)));
        assert_eq!(limit("ma"), None);
        let found = pairs("a 1\nb: 2 kB\nc x\nd 3").unwrap();
        assert_eq!((found["a"], found["b"], found.len()), (1, 2, 2));
        assert_eq!(pairs("a 1"), None);
        assert_eq!(numbers("1 x"), None);
    }
}
