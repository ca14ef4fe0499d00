//! What is mounted: `/proc/PID/mountinfo`, proc_pid_mountinfo(5).

use super::root::Reader;
use super::text;

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of its device: the same for all mounts of one file system.
    pub device: String,
    /// Which directory of it is mounted: `/` for all of it.
    pub root: String,
    /// Where.
    pub point: String,
    /// Kind: `ext4`.
    pub kind: String,
    /// What is mounted: `/dev/vda1`.
    pub source: String,
    /// Options of the file system; for cgroups of version 1 the controllers are among them.
    pub options: String,
}

/// Parses `mountinfo`.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<Mount>> {
    let mounts: Vec<_> = text::lines(text).filter_map(parse_line).collect();
    (!mounts.is_empty()).then_some(mounts)
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/root rw,errors=continue`; between the
/// options and the hyphen stand any number of words.
fn parse_line(line: &str) -> Option<Mount> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(2);
    let mut second = second.split(' ');
    Some(Mount {
        device: first.next()?.to_owned(),
        root: without_escapes(first.next()?),
        point: without_escapes(first.next()?),
        kind: second.next()?.to_owned(),
        source: without_escapes(second.next()?),
        options: second.next()?.to_owned(),
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn without_escapes(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.first_chunk::<3>().filter(|_| *first == b'\\');
        let byte = escaped.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads what the host has mounted: as its first process sees it, or where that is not allowed, as
/// we do.
pub fn read(reader: &mut Reader) -> Vec<Mount> {
    let denied = reader.unread.denied;
    if let Some(mounts) = reader.read("proc/1/mountinfo", parse) {
        return mounts;
    }
    reader.unread.denied = denied;
    reader
        .read("proc/self/mountinfo", parse)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_around_the_optional_ones() {
        let text = "36 35 98:0 /a /mnt\\040x rw,noatime master:1 shared:2 - ext4 /dev/root rw\n\
            37 35 0:5 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\nnonsense\n";
        let mounts = parse(text).unwrap();
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (&*mounts[0].point, &*mounts[0].kind, &*mounts[0].source),
            ("/mnt x", "ext4", "/dev/root")
        );
        assert_eq!(
            (&*mounts[1].device, &*mounts[1].options),
            ("0:5", "rw,cpu,cpuacct")
        );
        assert_eq!(parse("nonsense\n"), None);
        text::torture::check(text, parse);
    }

    #[test]
    fn a_backslash_at_the_end_is_itself() {
        for (text, expected) in [
            ("a\\", "a\\"),
            ("\\1", "\\1"),
            ("\\134", "\\"),
            ("\\999", "\\999"),
        ] {
            assert_eq!(without_escapes(text), expected);
        }
    }
}
