//! The surroundings that hotspan and the workloads need, in a machine that has nothing but a kernel.

use std::ffi::CStr;
use std::fs;

use anyhow::{Context, Result};
use rustix::fs::sync;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// What is mounted: where, of which type, with which options. Both versions of cgroups are there, as
/// on a host in systemd's hybrid mode.
const MOUNTS: &[(&str, &str, Option<&CStr>)] = &[
    ("/proc", "proc", None),
    ("/sys", "sysfs", None),
    ("/dev", "devtmpfs", None),
    ("/tmp", "tmpfs", None),
    ("/sys/kernel/tracing", "tracefs", None),
    ("/sys/kernel/security", "securityfs", None),
    ("/sys/fs/bpf", "bpf", None),
    ("/sys/fs/cgroup", "tmpfs", None),
    ("/sys/fs/cgroup/unified", "cgroup2", None),
    ("/sys/fs/cgroup/cpu", "cgroup", Some(c"cpu,cpuacct")),
];

/// Mounts the file systems, and keeps all but emergencies off the console, where they would cut our
/// lines.
pub fn set_up() -> Result<()> {
    for (place, kind, options) in MOUNTS {
        // Those that the kernel has made cannot be made again.
        let _ = fs::create_dir(place);
        mount(*kind, *place, *kind, MountFlags::empty(), *options)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    fs::write("/proc/sys/kernel/printk", "1").context("cannot quieten the console")
}

/// Ends the machine.
pub fn power_off() {
    sync();
    // When it fails, the end of the first process ends the machine, too.
    let _ = reboot(RebootCommand::PowerOff);
}
