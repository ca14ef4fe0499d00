//! Open files of the host: `/proc/sys/fs/file-nr`. Documentation/admin-guide/sysctl/fs.rst.

use super::interval::ratio;
use super::root::Reader;
use super::text;
use super::verdict::Numbers;
use crate::model::{Check, Instrument, Observations};

/// Open files, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Open now.
    pub used: u64,
    /// The most there may be.
    pub limit: u64,
}

/// Parses `1481 0 2466183`: allocated, of these unused, limit.
#[must_use]
pub fn parse(text: &str) -> Option<Reading> {
    let fields = text::numbers(text::lines(text).next()?)?;
    let [allocated, unused, limit] = fields[..] else {
        return None;
    };
    Some(Reading {
        used: allocated.checked_sub(unused)?,
        limit,
    })
}

/// Reads the numbers.
pub fn read(reader: &mut Reader) -> Option<Reading> {
    reader.read("proc/sys/fs/file-nr", parse)
}

/// Checks how many files are open.
#[must_use]
pub fn checks(now: Option<Reading>) -> Vec<Check> {
    let numbers = Numbers {
        utilization: now.and_then(|files| ratio(files.used, files.limit)),
        ..Numbers::default()
    };
    vec![numbers.check("file-descriptors", "host", Vec::new())]
}

static COUNT: Instrument = Instrument::up_down(
    "hotspan.file_descriptors",
    "{file}",
    "Files that are open on the host.",
);
static LIMIT: Instrument = Instrument::up_down(
    "hotspan.file_descriptors.limit",
    "{file}",
    "The most files that may be open.",
);

/// Tells the numbers.
pub fn observe(now: Option<Reading>, out: &mut Observations) {
    out.add(&COUNT, [], now.map(|files| files.used));
    out.add(&LIMIT, [], now.map(|files| files.limit));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_ones_that_are_unused_are_not_open() {
        let expected = Reading {
            used: 1000,
            limit: 4000,
        };
        assert_eq!(parse("1481\t481\t4000\n"), Some(expected));
        assert_eq!(parse("1\t2\t3\n"), None);
        assert_eq!(parse("1\t0\n"), None);
        assert_eq!(checks(Some(expected))[0].utilization.unwrap().value, 0.25);
        text::torture::check("1481\t0\t2466183\n", parse);
    }
}
