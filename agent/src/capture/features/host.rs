//! What the kernel says of itself in text files, parsed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// No file read here is longer, apart from those of which the beginning is enough.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// The files of a host: those of this one, or in tests a directory that looks like one.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// The host this process runs on.
    pub(super) fn this() -> Self {
        Self::at("/")
    }

    pub(super) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The beginning of a text file.
    pub(super) fn read_head(&self, path: &str, bytes: u64) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read_bytes(path, bytes)?).into_owned())
    }

    /// The first bytes of a file.
    pub(super) fn read_bytes(&self, path: &str, bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        File::open(self.path(path))?
            .take(bytes)
            .read_to_end(&mut content)?;
        Ok(content)
    }

    /// A text file without the white space around it.
    pub(super) fn read(&self, path: &str) -> io::Result<String> {
        let text = self.read_head(path, TEXT_BYTES_MAX)?;
        Ok(text.trim().to_owned())
    }

    /// A file that holds one number.
    pub(super) fn read_number(&self, path: &str) -> Option<i64> {
        self.read(path).ok()?.parse().ok()
    }

    /// The number of a namespace this process is in, such as `pid` or `user`.
    pub(super) fn find_namespace(&self, kind: &str) -> Option<u32> {
        let link = fs::read_link(self.path(&format!("/proc/self/ns/{kind}"))).ok()?;
        parse_namespace(link.to_str()?)
    }

    /// Where file systems of a type are mounted.
    pub(super) fn mounts(&self, kind: &str) -> Vec<String> {
        let text = self.read("/proc/self/mounts").unwrap_or_default();
        parse_mounts(&text, kind)
    }

    /// The kernel's version.
    pub(super) fn find_kernel_version(&self) -> Option<KernelVersion> {
        KernelVersion::parse(&self.read("/proc/sys/kernel/osrelease").ok()?)
    }

    /// Whether there is something at a path.
    pub(super) fn has(&self, path: &str) -> bool {
        Path::exists(&self.path(path))
    }
}

/// Version of a Linux kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl KernelVersion {
    /// The oldest kernel hotspan runs on: the ring buffer is from 5.8, `CAP_CHECKPOINT_RESTORE`
    /// from 5.9, and 5.10 is the oldest long-term kernel that has both. On arm64 programs can exchange a
    /// word since 5.12.
    pub const OLDEST: Self = match cfg!(target_arch = "aarch64") {
        true => Self::new(5, 12),
        false => Self::new(5, 10),
    };

    /// A version from its numbers.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The version of the kernel that runs.
    #[must_use]
    pub fn of_this_host() -> Option<Self> {
        Host::this().find_kernel_version()
    }

    /// Reads a release such as `6.1.0-47-cloud-amd64`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl std::fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The number in a namespace link such as `pid:[4026531836]`.
pub(super) fn parse_namespace(link: &str) -> Option<u32> {
    link.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// Mount points of one file system type in `/proc/self/mounts`, each once. The kernel writes
/// spaces in paths as `\040`; they stay so, because the paths are shown and not opened.
pub(super) fn parse_mounts(text: &str, kind: &str) -> Vec<String> {
    let mut points = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(found)) = (fields.next(), fields.next()) else {
            continue;
        };
        if found == kind && !points.iter().any(|known| known == point) {
            points.push(point.to_owned());
        }
    }
    points
}

/// Whether the beginning of `/proc/kallsyms` shows addresses. The kernel writes zeros for readers
/// it hides them from; some symbols are really at zero, but not all.
pub(super) fn shows_addresses(kallsyms: &str) -> bool {
    kallsyms
        .lines()
        .filter_map(|line| line.split_once(' '))
        .any(|(address, _)| address.bytes().any(|digit| digit != b'0'))
}

/// The choice in brackets in a file such as `none [integrity] confidentiality`.
pub(super) fn parse_choice(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// The soft limit of locked memory in `/proc/self/limits`, in bytes; `None` for no limit.
pub(super) fn parse_memlock(limits: &str) -> Option<u64> {
    let line = limits.strip_prefix("Max locked memory").or_else(|| {
        limits
            .lines()
            .find_map(|line| line.strip_prefix("Max locked memory"))
    })?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is wrong with the header of a kernel's type information.
///
/// The format is in `Documentation/bpf/btf.rst`: magic, version, flags, length of the header,
/// then offset and length of the types and of the strings, all after the header.
pub(super) fn find_btf_fault(header: &[u8], file_bytes: u64) -> Option<&'static str> {
    let word = |at: usize| {
        let bytes = header.get(at..at + 4)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
    };
    let (Some(start), Some(header_bytes)) = (word(0), word(4)) else {
        return Some("too short");
    };
    if start & 0xffff != 0xeb9f {
        return Some("wrong magic number");
    }
    if (start >> 16) & 0xff != 1 {
        return Some("unknown version");
    }
    let (Some(type_at), Some(type_bytes), Some(string_at), Some(string_bytes)) =
        (word(8), word(12), word(16), word(20))
    else {
        return Some("too short");
    };
    let end = header_bytes + (type_at + type_bytes).max(string_at + string_bytes);
    if type_bytes == 0 || end > file_bytes {
        return Some("incomplete");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_versions() {
        let check = |release, expected: Option<(u32, u32)>| {
            let expected = expected.map(|(major, minor)| KernelVersion { major, minor });
            assert_eq!(KernelVersion::parse(release), expected, "{release}");
        };
        check("6.18.44-fc-v669", Some((6, 18)));
        check("5.10.0-46-cloud-amd64", Some((5, 10)));
        check("4.18.0-553.el8_10.x86_64", Some((4, 18)));
        check("6.6-rc3", Some((6, 6)));
        check("7.0+", Some((7, 0)));
        check("", None);
        check("six", None);
        check("6", None);
        check("99999999999.1", None);
    }

    #[test]
    fn versions_compare_by_number_not_by_text() {
        assert!(KernelVersion::new(5, 9) < KernelVersion::OLDEST);
        assert!(KernelVersion::new(5, 12) >= KernelVersion::OLDEST);
        assert!(KernelVersion::new(6, 1) > KernelVersion::OLDEST);
    }

    #[test]
    fn namespace_links_have_numbers() {
        assert_eq!(parse_namespace("pid:[4026531836]"), Some(4_026_531_836));
        assert_eq!(parse_namespace("pid:[]"), None);
        assert_eq!(parse_namespace("pid"), None);
    }

    #[test]
    fn mounts_are_found_by_type_not_by_name() {
        let text = "tracefs /home/me fuse rw 0 0\n\
                    nodev /sys/kernel/tracing tracefs rw,nosuid 0 0\n\
                    tracefs /sys/kernel/debug/tracing tracefs rw 0 0\n\
                    tracefs /sys/kernel/tracing tracefs rw 0 0\n\
                    broken\n";
        assert_eq!(
            parse_mounts(text, "tracefs"),
            ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        );
        assert!(parse_mounts(text, "bpf").is_empty());
    }

    #[test]
    fn kallsyms_of_zeros_are_hidden() {
        assert!(!shows_addresses(
            "0000000000000000 A fixed_percpu_data\n0000000000000000 T _text\n"
        ));
        assert!(shows_addresses(
            "0000000000000000 A fixed_percpu_data\n0000000000001000 A cpu_debug_store\n"
        ));
        assert!(!shows_addresses(""));
    }

    #[test]
    fn the_choice_is_the_word_in_brackets() {
        assert_eq!(
            parse_choice("none [integrity] confidentiality"),
            Some("integrity")
        );
        assert_eq!(parse_choice("[none] integrity"), Some("none"));
        assert_eq!(parse_choice("none"), None);
    }

    #[test]
    fn memlock_is_the_soft_limit() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max locked memory         65536                8388608              bytes     \n";
        assert_eq!(parse_memlock(text), Some(65_536));
        assert_eq!(
            parse_memlock("Max locked memory  unlimited  unlimited  bytes"),
            None
        );
    }

    #[test]
    fn a_cut_btf_is_noticed() {
        let mut header = vec![0x9f, 0xeb, 1, 0];
        for word in [24_u32, 0, 100, 100, 50] {
            header.extend(word.to_le_bytes());
        }
        assert_eq!(find_btf_fault(&header, 174), None);
        assert_eq!(find_btf_fault(&header, 173), Some("incomplete"));
        assert_eq!(find_btf_fault(&header[..20], 174), Some("too short"));
        header[0] = 0x7f;
        assert_eq!(find_btf_fault(&header, 174), Some("wrong magic number"));
        assert_eq!(find_btf_fault(&[], 0), Some("too short"));
    }
}
