//! Which CPUs there are.

use std::{fs, io};

/// CPUs that are online, ascending.
///
/// # Errors
/// When the list cannot be read.
pub fn online() -> io::Result<Vec<u32>> {
    read("/sys/devices/system/cpu/online")
}

/// How many CPUs this kernel can ever have: the highest number plus one.
///
/// # Errors
/// When the list cannot be read.
pub fn possible_count() -> io::Result<u32> {
    Ok(read("/sys/devices/system/cpu/possible")?
        .last()
        .map_or(1, |last| last + 1))
}

fn read(path: &str) -> io::Result<Vec<u32>> {
    parse_list(fs::read_to_string(path)?.trim()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} is no list of CPUs"),
        )
    })
}

/// Parses the kernel's list format: `0-3,5`.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    const MOST: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::parse_list;

    #[test]
    fn ranges_and_single_cpus_are_read() {
        assert_eq!(parse_list("0-3,5"), Some(vec![0, 1, 2, 3, 5]));
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list(""), Some(vec![]));
        assert_eq!(parse_list("0-x"), None);
        assert_eq!(parse_list("0-4294967295"), None);
    }
}
