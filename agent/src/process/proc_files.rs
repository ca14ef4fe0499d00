//! `/proc/PID`: what it says about a process, parsed apart from being read.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use crate::decode::side_band::{FileIdentity, Mapped};

/// No file of `/proc/PID` that we read is larger, but for maps of absurd processes.
const MAX_BYTES: u64 = 16 << 20;

fn read_bounded(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether there is such a process and it has not ended: not even as a zombie.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    let Ok(stat) = read_bounded(&format!("/proc/{pid}/stat")) else {
        return false;
    };
    let stat = String::from_utf8_lossy(&stat);
    // The state is the first field behind the name.
    !stat
        .rsplit_once(") ")
        .is_some_and(|(_, fields)| fields.starts_with(['Z', 'X']))
}

/// The process that a thread belongs to; a process is its own main thread.
#[must_use]
pub fn process_of_thread(tid: u32) -> Option<u32> {
    let bytes = read_bounded(&format!("/proc/{tid}/status")).ok()?;
    let status = String::from_utf8_lossy(&bytes);
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:"))?
        .trim()
        .parse()
        .ok()
}

/// All processes.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn processes() -> io::Result<Vec<u32>> {
    numbers_in("/proc")
}

/// All threads of a process.
///
/// # Errors
/// When the process is gone.
pub fn threads(pid: u32) -> io::Result<Vec<u32>> {
    numbers_in(&format!("/proc/{pid}/task"))
}

/// Resident memory of a process in bytes (proc_pid_statm(5)).
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let bytes = read_bounded(&format!("/proc/{pid}/statm")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// The system call that a thread is blocked in; `None` when it is in none, or runs.
#[must_use]
pub fn syscall_of_thread(pid: u32, tid: u32) -> Option<u32> {
    let bytes = read_bounded(&format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    parse_syscall(&String::from_utf8_lossy(&bytes))
}

/// `NUMBER ARGUMENTS… SP PC`, `running`, or -1 for a thread that is blocked elsewhere (proc_pid_syscall(5)).
/// Of the kernel's own threads everything is zero.
fn parse_syscall(text: &str) -> Option<u32> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok()?;
    (words.next_back()? != "0x0").then_some(number)
}

fn numbers_in(directory: &str) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(directory)?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// Name of the main thread.
pub fn name(pid: u32) -> Option<Arc<str>> {
    let bytes = read_bounded(&format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes)).into())
}

/// Path of the executable, as the process sees it.
pub fn exe(pid: u32) -> Option<Arc<str>> {
    let target = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(String::from_utf8_lossy(without_deleted(target.as_os_str().as_bytes())).into())
}

/// Id of the container the process is in.
pub fn container_id(pid: u32) -> Option<Arc<str>> {
    let bytes = read_bounded(&format!("/proc/{pid}/cgroup")).ok()?;
    parse_container_id(&String::from_utf8_lossy(&bytes)).map(Arc::from)
}

/// Start of the process, nanoseconds after boot.
pub fn start_boot_ns(pid: u32) -> Option<u64> {
    const TICKS_PER_S: u64 = 100; // USER_HZ: fixed in the kernel's interface.
    let bytes = read_bounded(&format!("/proc/{pid}/stat")).ok()?;
    Some(parse_start_ticks(&String::from_utf8_lossy(&bytes))? * (1_000_000_000 / TICKS_PER_S))
}

/// Process id inside the process's own pid namespace.
pub fn ns_pid(pid: u32) -> Option<u32> {
    let bytes = read_bounded(&format!("/proc/{pid}/status")).ok()?;
    parse_ns_pid(&String::from_utf8_lossy(&bytes))
}

/// `/proc/PID/maps`.
#[derive(Debug, Default)]
pub struct Maps(Vec<u8>);

impl Maps {
    /// The executable mappings.
    pub fn mappings(&self) -> Vec<Mapped> {
        let lines = self.0.split(|&byte| byte == b'\n');
        lines.filter_map(parse_maps_line).collect()
    }

    /// How long it is: what reading it costs grows with that.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Reads what a process has mapped.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn read_maps(pid: u32) -> io::Result<Maps> {
    read_bounded(&format!("/proc/{pid}/maps")).map(Maps)
}

/// A path as `/proc` shows it, without the mark of a deleted file.
pub fn without_deleted(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}

fn parse_start_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses can hold anything: fields are counted behind the last one.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn parse_ns_pid(status: &str) -> Option<u32> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Finds a container id in the lines of `/proc/PID/cgroup`.
fn parse_container_id(cgroup: &str) -> Option<&str> {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .find_map(container_of_cgroup)
}

/// Finds a container id in the path of a cgroup: the last path element that has one, as container
/// runtimes write it: 64 hexadecimal digits, or 32 and a number (Amazon ECS), with a prefix such
/// as `cri-containerd-` and a suffix `.scope` or not.
#[must_use]
pub fn container_of_cgroup(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(|element| {
        let element = element.strip_suffix(".scope").unwrap_or(element);
        let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let bare = element.rsplit('-').next().unwrap_or(element);
        if bare.len() == 64 && is_hex(bare) {
            return Some(bare);
        }
        let (task, number) = element.split_once('-')?;
        let is_ecs = task.len() == 32
            && is_hex(task)
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit());
        is_ecs.then_some(element)
    })
}

/// `start-end perms offset major:minor inode path`; `None` for what is not executable.
fn parse_maps_line(line: &[u8]) -> Option<Mapped> {
    // The path may hold any byte but a newline, so it is split off before text is assumed.
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (range, permissions, offset, device, inode) = (text()?, text()?, text()?, text()?, text()?);
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = range.split_once('-')?;
    let (major, minor) = device.split_once(':')?;
    let dev = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
    let path = fields.next().unwrap_or_default().trim_ascii_start();
    Some(Mapped {
        start: hex(start)?,
        end: hex(end)?,
        file_offset: hex(offset)?,
        identity: FileIdentity::Inode {
            dev,
            ino: inode.parse().ok()?,
            generation: 0,
        },
        path: path.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_call_of_a_blocked_thread_is_a_number() {
        for (text, expected) in [
            ("230 0x0 0x7ffd 0x0 0x0 0x0 0x0 0x7ffd 0x7f00\n", Some(230)),
            ("0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n", None),
            ("running\n", None),
            ("-1 0x7ffd 0x7f00\n", None),
            ("", None),
        ] {
            assert_eq!(parse_syscall(text), expected, "{text}");
        }
    }

    #[test]
    fn only_executable_mappings_are_taken() {
        let text = b"55d0-55e0 r--p 00000000 fd:01 12 /bin/a b (deleted)\n\
            55e0-55f0 r-xp 00001000 fd:01 12                         /bin/a b (deleted)\n\
            7f00-7f10 r-xp 00000000 00:00 0 \n\
            7ffc-7ffe r-xp 00000000 00:00 0                          [vdso]\n\
            nonsense\n";
        let found = Maps(text.to_vec()).mappings();
        let paths: Vec<_> = found
            .iter()
            .map(|m| String::from_utf8_lossy(&m.path))
            .collect();
        assert_eq!(paths, ["/bin/a b (deleted)", "", "[vdso]"]);
        assert_eq!(
            (found[0].start, found[0].end, found[0].file_offset),
            (0x55e0, 0x55f0, 0x1000)
        );
        let dev = libc::makedev(0xfd, 1);
        assert_eq!(
            found[0].identity,
            FileIdentity::Inode {
                dev,
                ino: 12,
                generation: 0
            }
        );
    }

    #[test]
    fn name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4321 99";
        assert_eq!(parse_start_ticks(stat), Some(4321));
        assert_eq!(parse_start_ticks(""), None);
    }

    #[test]
    fn innermost_pid_is_the_namespace_one() {
        assert_eq!(parse_ns_pid("Name:\tx\nNSpid:\t4711\t12\t1\n"), Some(1));
        assert_eq!(parse_ns_pid("Name:\tx\n"), None);
    }

    #[test]
    fn container_ids_of_the_runtimes_are_found() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for path in [
            format!("0::/docker/{id}"),
            format!("0::/system.slice/docker-{id}.scope"),
            format!("12:cpu:/kubepods/besteffort/pod1/{id}"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            format!("0::/kubepods.slice/crio-{id}.scope/container"),
            format!("0::/libpod_parent/libpod-{id}"),
        ] {
            assert_eq!(parse_container_id(&path), Some(id), "{path}");
        }
        let ecs = "3:cpu:/ecs/0123456789abcdef0123456789abcdef-123456789";
        assert_eq!(
            parse_container_id(ecs),
            Some("0123456789abcdef0123456789abcdef-123456789")
        );
        assert_eq!(parse_container_id("0::/user.slice/user-1000.slice"), None);
        assert_eq!(parse_container_id(""), None);
    }
}
