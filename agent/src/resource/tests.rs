//! Whole readings of trees of files: a host with cgroups of version 1, one with version 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::model::{Measure, Verdict};

const STAT: &str = "cpu  200 0 0 200 0 0 0 0 0 0\ncpu0 100 0 0 100 0 0 0 0 0 0\n\
    cpu1 100 0 0 100 0 0 0 0 0 0\nctxt 1\nprocesses 2\nprocs_running 1\nprocs_blocked 0\n";

/// Files of the host, whichever version its cgroups have.
const HOST: &[(&str, &str)] = &[
    ("proc/stat", STAT),
    (
        "proc/schedstat",
        "version 15\ncpu0 1 2 3 4 5 6 7 80 9\ncpu1 1 2 3 4 5 6 7 80 9\n",
    ),
    ("proc/uptime", "100.00 1.00\n"),
    ("proc/loadavg", "0.50 0.40 0.30 1/100 123\n"),
    (
        "proc/meminfo",
        "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nSwapTotal: 100 kB\nSwapFree: 90 kB\n",
    ),
    (
        "proc/vmstat",
        "pgmajfault 1\npswpin 2\npswpout 3\nallocstall_normal 4\noom_kill 5\n",
    ),
    (
        "proc/diskstats",
        "8 0 sda 1 2 3 4 5 6 7 8 9 10 11\n7 0 loop0 1 2 3 4 5 6 7 8 9 10 11\n",
    ),
    (
        "proc/net/dev",
        "Inter-| Receive\n face |bytes packets\n eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n",
    ),
    ("proc/net/softnet_stat", "00000001 00000002 00000003\n"),
    (
        "proc/net/snmp",
        "Tcp: InSegs OutSegs RetransSegs\nTcp: 100 90 1\n",
    ),
    ("proc/net/netstat", "TcpExt: ListenDrops\nTcpExt: 3\n"),
    ("proc/net/sockstat", "TCP: inuse 1 mem 5\n"),
    ("proc/sys/net/ipv4/tcp_mem", "10\t20\t50\n"),
    ("proc/sys/fs/file-nr", "10\t0\t100\n"),
    ("proc/sys/kernel/pid_max", "32768\n"),
    ("proc/sys/kernel/threads-max", "1000\n"),
    ("proc/pressure/cpu", "some avg10=0.00 total=100\n"),
    ("proc/pressure/memory", "some total=100\nfull total=50\n"),
    ("proc/pressure/io", "some total=100\nfull total=50\n"),
    (
        "proc/7/stat",
        "7 (busy) R 1 7 7 0 -1 0 0 0 0 0 10 20 0 0 20 0 1 0 50 100 5 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0\n",
    ),
    ("proc/7/schedstat", "1 2 3\n"),
    ("proc/7/io", "read_bytes: 1\nwrite_bytes: 2\n"),
    ("sys/class/net/eth0/speed", "1000\n"),
    ("sys/block/sda/device/ioerr_cnt", "0x1\n"),
    (
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count",
        "3\n",
    ),
];

const CGROUP_V2: &[(&str, &str)] = &[
    (
        "proc/1/mountinfo",
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    ),
    ("sys/fs/ext4/sda1/errors_count", "1\n"),
    (
        "sys/fs/cgroup/app/cpu.stat",
        "usage_usec 10\nnr_periods 4\nnr_throttled 1\nthrottled_usec 9\n",
    ),
    ("sys/fs/cgroup/app/cpu.max", "50000 100000\n"),
    ("sys/fs/cgroup/app/cpu.pressure", "some total=9\n"),
    ("sys/fs/cgroup/app/memory.current", "4096\n"),
    ("sys/fs/cgroup/app/memory.max", "8192\n"),
    (
        "sys/fs/cgroup/app/memory.stat",
        "anon 1\ninactive_file 96\n",
    ),
    ("sys/fs/cgroup/app/memory.events", "max 1\noom_kill 2\n"),
    ("sys/fs/cgroup/app/memory.pressure", "some total=9\n"),
    (
        "sys/fs/cgroup/app/io.stat",
        "8:0 rbytes=1 wbytes=2 rios=3 wios=4\n",
    ),
    ("sys/fs/cgroup/app/io.pressure", "some total=9\n"),
    ("sys/fs/cgroup/app/pids.current", "5\n"),
    ("sys/fs/cgroup/app/pids.max", "10\n"),
    ("sys/fs/cgroup/app/pids.events", "max 0\n"),
];

const CGROUP_V1: &[(&str, &str)] = &[
    (
        "proc/self/mountinfo",
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
         2 1 0:5 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
         3 1 0:6 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         4 1 0:7 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
         5 1 0:8 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
         6 1 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    ),
    (
        "sys/fs/cgroup/cpu/app/cpu.stat",
        "nr_periods 4\nnr_throttled 1\nthrottled_time 9000\n",
    ),
    ("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "50000\n"),
    ("sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n"),
    ("sys/fs/cgroup/cpu/app/cpuacct.usage", "10000\n"),
    ("sys/fs/cgroup/memory/app/memory.usage_in_bytes", "4096\n"),
    ("sys/fs/cgroup/memory/app/memory.limit_in_bytes", "8192\n"),
    ("sys/fs/cgroup/memory/app/memory.failcnt", "1\n"),
    (
        "sys/fs/cgroup/memory/app/memory.stat",
        "inactive_file 1\ntotal_inactive_file 96\n",
    ),
    (
        "sys/fs/cgroup/memory/app/memory.oom_control",
        "under_oom 0\noom_kill 2\n",
    ),
    (
        "sys/fs/cgroup/blkio/app/blkio.throttle.io_service_bytes_recursive",
        "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
    ),
    ("sys/fs/cgroup/pids/app/pids.current", "5\n"),
    ("sys/fs/cgroup/pids/app/pids.max", "10\n"),
    ("sys/fs/cgroup/pids/app/pids.events", "max 0\n"),
    ("sys/fs/cgroup/unified/app/cpu.pressure", "some total=9\n"),
    (
        "sys/fs/cgroup/unified/app/memory.pressure",
        "some total=9\n",
    ),
    ("sys/fs/cgroup/unified/app/io.pressure", "some total=9\n"),
];

/// A folder with such files.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(files: &[&[(&str, &str)]]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, text) in files.concat() {
            tree.write(path, text);
        }
        tree
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self) -> Reading {
        Reading::read(&Root::at(self.0.path()))
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }
}

/// What two readings say when they are a second apart.
fn compare(before: &Reading, now: &Reading) -> Vec<Check> {
    let now = Reading {
        at: before.at + Duration::from_secs(1),
        ..now.clone()
    };
    checks(before, &now, None)
}

fn find<'a>(checks: &'a [Check], resource: &str, instance: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.resource == resource && check.instance == instance)
        .unwrap_or_else(|| panic!("no {resource} {instance}"))
}

/// Nothing that a reader could not believe.
fn assert_sane(checks: &[Check]) {
    for check in checks {
        let Check {
            utilization,
            saturation,
            errors,
            ..
        } = check;
        for Measure { value, unit } in [utilization, saturation, errors].into_iter().flatten() {
            assert!(value.is_finite() && *value >= 0.0, "{check:?}");
            assert!(*unit != "1" || *value <= 1.0, "{check:?}");
        }
        for one in &check.top {
            assert!((0.0..=1.0).contains(&one.share), "{check:?}");
        }
        assert!(verdict::has_rule(check), "no rule for {check:?}");
    }
}

#[test]
fn both_versions_of_cgroups_say_the_same() {
    let v1 = Tree::new(&[HOST, CGROUP_V1]).read();
    let v2 = Tree::new(&[HOST, CGROUP_V2]).read();
    assert_eq!(
        (v1.unread, v2.unread),
        (Unread::default(), Unread::default())
    );
    assert_eq!(v1.cgroup, v2.cgroup);
    assert_eq!(v1.cgroup.len(), 1);
}

#[test]
fn every_resource_is_checked_and_has_a_rule() {
    let tree = Tree::new(&[HOST, CGROUP_V2]);
    let before = tree.read();
    tree.write(
        "proc/stat",
        STAT.replace("cpu1 100 0 0 100", "cpu1 130 0 0 110"),
    );
    tree.write("proc/pressure/io", "some total=500100\nfull total=50\n");
    let stat = HOST
        .iter()
        .find(|(path, _)| *path == "proc/7/stat")
        .unwrap()
        .1;
    tree.write("proc/7/stat", stat.replace(" 10 20 0 0", " 20 40 0 0"));
    tree.write("sys/fs/cgroup/app/memory.events", "max 1\noom_kill 3\n");
    let found = compare(&before, &tree.read());
    assert_sane(&found);
    let mut kinds: Vec<_> = found.iter().map(|check| check.resource).collect();
    kinds.dedup();
    let expected = [
        "cpu",
        "run-queue",
        "cpu",
        "memory",
        "swap",
        "io",
        "disk",
        "filesystem",
        "inodes",
        "network",
        "softnet",
        "tcp",
        "file-descriptors",
        "processes",
        "cgroup-cpu",
        "cgroup-memory",
        "cgroup-io",
        "cgroup-pids",
    ];
    assert_eq!(kinds, expected);
    let core = find(&found, "cpu", "cpu1");
    assert_eq!(core.utilization.unwrap().value, 0.75);
    assert_eq!((&*core.top[0].who, core.top[0].share), ("busy[7]", 1.0));
    assert_eq!(
        find(&found, "memory", "host").utilization.unwrap().value,
        0.6
    );
    assert_eq!(find(&found, "io", "host").verdict, Verdict::Saturated);
    assert_eq!(find(&found, "tcp", "host").utilization.unwrap().value, 0.1);
    assert_eq!(
        find(&found, "processes", "host").utilization.unwrap().value,
        0.1
    );
    let memory = find(&found, "cgroup-memory", "/app");
    assert_eq!(memory.utilization.unwrap().value, 4000.0 / 8192.0);
    assert_eq!(memory.verdict, Verdict::Errors);
}

#[test]
fn a_host_without_any_file_has_nothing_to_say() {
    let tree = Tree::new(&[]);
    let (before, now) = (tree.read(), tree.read());
    assert_eq!(now.unread, Unread::default());
    let found = compare(&before, &now);
    assert!(found.iter().all(|check| check.verdict == Verdict::Unknown));
    assert_eq!(checks(&before, &before, None).len(), 0);
}

#[test]
fn files_that_make_no_sense_are_counted_and_spoil_nothing_else() {
    let tree = Tree::new(&[HOST, CGROUP_V2]);
    let before = tree.read();
    for path in tree.files() {
        let text = fs::read(&path).unwrap();
        for nonsense in ["", "\0", "nonsense\n", "-1 -2 -3\n", &"9".repeat(30)] {
            fs::write(&path, nonsense).unwrap();
            let now = tree.read();
            assert_sane(&compare(&before, &now));
            let is_wrong = !nonsense.is_empty() && !is_free_text(&path);
            assert!(
                now.unread.malformed > 0 || !is_wrong,
                "{path:?} {nonsense:?}"
            );
        }
        fs::write(&path, text).unwrap();
    }
}

/// Files in which a line that is not known, or not finished, is none.
fn is_free_text(path: &Path) -> bool {
    ["diskstats", "io.stat", "softnet_stat"]
        .iter()
        .any(|name| path.ends_with(name))
}

#[test]
fn no_change_of_bytes_makes_a_number_that_cannot_be() {
    let tree = Tree::new(&[HOST, CGROUP_V1]);
    let before = tree.read();
    let mut random = fastrand::Rng::with_seed(7);
    for path in tree.files() {
        let text = fs::read(&path).unwrap();
        for _ in 0..20 {
            let mut changed = text.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..changed.len());
                if random.bool() {
                    changed[at] = *random.choice(b"0123456789 \n-").unwrap();
                } else {
                    changed.insert(at, *random.choice(b"0123456789999").unwrap());
                }
            }
            fs::write(&path, changed).unwrap();
            let now = tree.read();
            assert_sane(&compare(&before, &now));
            assert_sane(&compare(&now, &before));
        }
        fs::write(&path, text).unwrap();
    }
}

#[test]
fn devices_and_cgroups_that_come_and_go_give_no_rate() {
    let tree = Tree::new(&[HOST, CGROUP_V2]);
    let before = tree.read();
    tree.write("proc/diskstats", "8 16 sdb 1 2 3 4 5 6 7 8 9 10 11\n");
    fs::remove_dir_all(tree.0.path().join("sys/fs/cgroup/app")).unwrap();
    tree.write("sys/fs/cgroup/new/cpu.stat", "usage_usec 999999999\n");
    let found = compare(&before, &tree.read());
    assert_sane(&found);
    let is_gone = |check: &Check| check.resource == "disk" || check.resource.starts_with("cgroup");
    assert_eq!(found.iter().filter(|check| is_gone(check)).count(), 0);
}

#[test]
fn thousands_of_processes_and_cgroups_are_all_read() {
    let tree = Tree::new(&[HOST, CGROUP_V2]);
    let stat = HOST
        .iter()
        .find(|(path, _)| *path == "proc/7/stat")
        .unwrap()
        .1;
    for pid in 1000..3000 {
        tree.write(
            &format!("proc/{pid}/stat"),
            stat.replacen('7', &pid.to_string(), 1),
        );
        tree.write(&format!("proc/{pid}/schedstat"), "1 2 3\n");
    }
    for number in 0..1000 {
        tree.write(
            &format!("sys/fs/cgroup/{number}/cpu.stat"),
            "usage_usec 1\n",
        );
    }
    let reading = tree.read();
    assert_eq!(reading.tasks.processes.len(), 2001);
    assert_eq!(reading.cgroup.len(), 1001);
    assert_eq!(reading.unread, Unread::default());
    let found = compare(&reading, &reading);
    assert_sane(&found);
}
