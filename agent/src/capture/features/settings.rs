//! How this kernel is built and set up: what its text files say.

use std::fs;

use super::Check;
use super::host::{self, Host, KernelVersion};
use super::rights::{self, Rights, SYS_RESOURCE, SYSLOG};

/// Type information of the kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";
/// Enough of it for the header.
const BTF_HEADER_BYTES: u64 = 24;
/// All maps together on 64 CPUs.
const MAPS_BYTES: u64 = 64 << 20;
/// How to lift the limit from outside.
pub(super) const MEMLOCK_FIX: &str =
    "ulimit -l unlimited, LimitMEMLOCK=infinity in systemd, or CAP_SYS_RESOURCE";
/// The default of `--rate`.
const DEFAULT_RATE_HZ: i64 = 99;
/// The kernel's default depth of stacks.
const DEFAULT_STACK_FRAMES: i64 = 127;

/// Checks of the kernel itself.
pub(super) fn kernel_checks(host: &Host) -> Vec<Check> {
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        kernel_version(&release),
        architecture(std::env::consts::ARCH),
        btf(find_btf_fault(host)),
        bpf_jit(host.read_number("/proc/sys/net/core/bpf_jit_enable")),
        bpf_stats(host.read_number("/proc/sys/kernel/bpf_stats_enabled")),
        lockdown(host.read("/sys/kernel/security/lockdown").ok().as_deref()),
        lsm(host.read("/sys/kernel/security/lsm").ok()),
    ]
}

/// Checks of file systems, limits and symbols.
pub(super) fn system_checks(host: &Host, rights: Rights) -> Vec<Check> {
    vec![
        tracefs(&host.mounts("tracefs")),
        bpffs(&host.mounts("bpf")),
        cgroup(&host.mounts("cgroup"), &host.mounts("cgroup2")),
        memlock(
            &host.read("/proc/self/limits").unwrap_or_default(),
            host.find_kernel_version(),
            rights,
        ),
        max_sample_rate(host.read_number("/proc/sys/kernel/perf_event_max_sample_rate")),
        max_stack(host.read_number("/proc/sys/kernel/perf_event_max_stack")),
        kernel_symbols(
            has_kernel_symbols(host),
            host.read_number("/proc/sys/kernel/kptr_restrict"),
            rights,
        ),
        modules(host),
    ]
}

fn kernel_version(release: &str) -> Check {
    const ID: &str = "kernel_version";
    match KernelVersion::parse(release) {
        Some(version) if version >= KernelVersion::OLDEST => Check::ok(ID, release),
        Some(_) => Check::fail(
            ID,
            release,
            "the kernel lacks what hotspan is built on, nothing is recorded",
            format!("use Linux {} or newer", KernelVersion::OLDEST),
        ),
        None => Check::warn(
            ID,
            format!("unknown ({release:?})"),
            "whether this kernel is new enough shows only when recording starts",
            "mount -t proc proc /proc",
        ),
    }
}

fn architecture(name: &str) -> Check {
    if matches!(name, "x86_64" | "aarch64") {
        return Check::ok("architecture", name);
    }
    Check::fail(
        "architecture",
        name,
        "stacks cannot be read, nothing is recorded",
        "use an x86_64 or aarch64 machine",
    )
}

/// What is wrong with the kernel's type information.
pub(super) fn find_btf_fault(host: &Host) -> Option<&'static str> {
    let file_bytes = fs::metadata(host.path(BTF)).map(|meta| meta.len());
    let header = host.read_bytes(BTF, BTF_HEADER_BYTES);
    match (header, file_bytes) {
        (Ok(header), Ok(file_bytes)) => host::find_btf_fault(&header, file_bytes),
        _ if host.has(BTF) => Some("not readable"),
        _ => Some("not there"),
    }
}

fn btf(fault: Option<&'static str>) -> Check {
    match fault {
        None => Check::ok("btf", BTF),
        Some(fault) => Check::fail(
            "btf",
            format!("{BTF}: {fault}"),
            "the layout of the kernel's structures is unknown, nothing is recorded",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y; in a container, mount /sys",
        ),
    }
}

fn bpf_jit(enabled: Option<i64>) -> Check {
    match enabled {
        Some(0) => Check::warn(
            "bpf_jit",
            "off",
            "programs are interpreted: each sample costs several times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Check::ok("bpf_jit", "on"),
        // The file is root's, and only the first network namespace has it.
        None => Check::ok(
            "bpf_jit",
            "unknown (net.core.bpf_jit_enable is not readable here)",
        ),
    }
}

fn bpf_stats(enabled: Option<i64>) -> Check {
    if enabled == Some(1) {
        return Check::warn(
            "bpf_stats",
            "on",
            "the kernel takes the time around every run of every BPF program",
            "sysctl -w kernel.bpf_stats_enabled=0, once nobody measures any more",
        );
    }
    Check::ok("bpf_stats", "off")
}

fn lockdown(text: Option<&str>) -> Check {
    match text.map(|text| host::parse_choice(text).unwrap_or("unknown")) {
        Some("confidentiality") => Check::warn(
            "lockdown",
            "confidentiality",
            "programs may not read kernel memory: stacks of samples in the kernel stay incomplete",
            "boot with lockdown=integrity",
        ),
        Some(mode) => Check::ok("lockdown", mode),
        None => Check::ok("lockdown", "unknown (securityfs is not mounted)"),
    }
}

fn lsm(list: Option<String>) -> Check {
    let value = list.unwrap_or_else(|| "unknown (securityfs is not mounted)".to_owned());
    Check::ok("lsm", value)
}

fn tracefs(points: &[String]) -> Check {
    match points {
        [] => Check::warn(
            "tracefs",
            "not mounted",
            "classic trace points have no numbers to attach to; raw trace points take their place",
            "mount -t tracefs tracefs /sys/kernel/tracing",
        ),
        points => Check::ok("tracefs", points.join(", ")),
    }
}

fn bpffs(points: &[String]) -> Check {
    match points {
        [] => Check::warn(
            "bpffs",
            "not mounted",
            "nothing while recording; maps that other programs pin cannot be read",
            "mount -t bpf bpf /sys/fs/bpf",
        ),
        points => Check::ok("bpffs", points.join(", ")),
    }
}

fn cgroup(v1: &[String], v2: &[String]) -> Check {
    const ID: &str = "cgroup";
    match (v1, v2) {
        ([], [point, ..]) => Check::ok(ID, format!("v2 at {point}")),
        ([_, ..], [point, ..]) => Check::ok(ID, format!("hybrid: v1, and v2 at {point}")),
        ([point, ..], []) => Check::warn(
            ID,
            format!("v1 at {point}"),
            "record --cgroup has no v2 hierarchy to filter by",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified, or boot with \
             systemd.unified_cgroup_hierarchy=1",
        ),
        ([], []) => Check::warn(
            ID,
            "not mounted",
            "record --cgroup does not work, and containers have no ids",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        ),
    }
}

fn memlock(limits: &str, kernel: Option<KernelVersion>, rights: Rights) -> Check {
    const ID: &str = "memlock";
    let limit = host::parse_memlock(limits);
    let value = limit.map_or_else(
        || "unlimited".to_owned(),
        |bytes| format!("{} KiB", bytes >> 10),
    );
    if !rights::has_memlock_accounting(kernel) {
        return Check::ok(ID, format!("{value}, no limit for BPF since Linux 5.11"));
    }
    if limit.is_none_or(|bytes| bytes >= MAPS_BYTES) {
        return Check::ok(ID, value);
    }
    if rights.has(&SYS_RESOURCE) {
        return Check::ok(ID, format!("{value}, which hotspan lifts"));
    }
    Check::warn(
        ID,
        value,
        "BPF maps count against it, and recording fails when they do not fit",
        MEMLOCK_FIX,
    )
}

fn max_sample_rate(rate_hz: Option<i64>) -> Check {
    const ID: &str = "perf_event_max_sample_rate";
    match rate_hz {
        Some(rate_hz) if rate_hz < DEFAULT_RATE_HZ => Check::warn(
            ID,
            rate_hz.to_string(),
            "the kernel refuses the default rate of 99 Hz",
            "sysctl -w kernel.perf_event_max_sample_rate=100000, or a lower --rate",
        ),
        Some(rate_hz) => Check::ok(ID, rate_hz.to_string()),
        None => Check::ok(ID, "unknown"),
    }
}

fn max_stack(frames: Option<i64>) -> Check {
    const ID: &str = "perf_event_max_stack";
    match frames {
        Some(frames) if frames < DEFAULT_STACK_FRAMES => Check::warn(
            ID,
            frames.to_string(),
            "stacks that the kernel walks are cut at this many frames",
            "sysctl -w kernel.perf_event_max_stack=127, while nothing is recording",
        ),
        Some(frames) => Check::ok(ID, frames.to_string()),
        None => Check::ok(ID, "unknown"),
    }
}

/// Whether this process sees where the kernel's functions are.
pub(super) fn has_kernel_symbols(host: &Host) -> bool {
    host.read_head("/proc/kallsyms", 16 << 10)
        .is_ok_and(|text| host::shows_addresses(&text))
}

fn kernel_symbols(are_visible: bool, restrict: Option<i64>, rights: Rights) -> Check {
    const ID: &str = "kallsyms";
    let restrict = restrict.map_or_else(|| "unknown".to_owned(), |level| level.to_string());
    if are_visible {
        return Check::ok(ID, format!("shows addresses (kptr_restrict {restrict})"));
    }
    let fix = if rights.has(&SYSLOG) {
        "sysctl -w kernel.kptr_restrict=1".to_owned()
    } else {
        rights.fix(&[SYSLOG])
    };
    Check::warn(
        ID,
        format!("hides addresses (kptr_restrict {restrict})"),
        "kernel frames have no names",
        fix,
    )
}

fn modules(host: &Host) -> Check {
    match host.read_head("/proc/modules", 1) {
        Ok(_) => Check::ok("modules", "/proc/modules"),
        Err(_) if !host.has("/proc/modules") => {
            Check::ok("modules", "none: this kernel loads no modules")
        }
        Err(_) => Check::warn(
            "modules",
            "/proc/modules is not readable",
            "frames in kernel modules have no names",
            "run hotspan as root, with sudo",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn points(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn kernels_before_5_10_fail() {
        let check = |release, expected| assert_eq!(kernel_version(release).status, expected);
        check("4.18.0-553.el8", Status::Fail);
        check("5.9.16", Status::Fail);
        check("5.10.0-46-cloud-amd64", Status::Ok);
        check("6.18.44-fc", Status::Ok);
        check("", Status::Warn);
    }

    #[test]
    fn cgroup_hierarchies_are_told_apart() {
        let check = |v1: &[&str], v2: &[&str], status, value| {
            let check = cgroup(&points(v1), &points(v2));
            assert_eq!((check.status, check.value.as_str()), (status, value));
        };
        check(&[], &["/sys/fs/cgroup"], Status::Ok, "v2 at /sys/fs/cgroup");
        check(
            &["/sys/fs/cgroup/cpu"],
            &["/sys/fs/cgroup/unified"],
            Status::Ok,
            "hybrid: v1, and v2 at /sys/fs/cgroup/unified",
        );
        check(&["/cgroup"], &[], Status::Warn, "v1 at /cgroup");
        check(&[], &[], Status::Warn, "not mounted");
    }

    #[test]
    fn memlock_limits_only_old_kernels() {
        let limits = "Max locked memory         8388608              8388608              bytes";
        let check = |limits, version, rights, expected| {
            assert_eq!(memlock(limits, Some(version), rights).status, expected);
        };
        let (old, new) = (KernelVersion::new(5, 10), KernelVersion::new(5, 11));
        let (none, root) = (Rights::of_test(0), Rights::of_test(u64::MAX));
        check(limits, old, none, Status::Warn);
        check(limits, old, root, Status::Ok);
        check(limits, new, none, Status::Ok);
        let unlimited = "Max locked memory  unlimited unlimited bytes";
        check(unlimited, old, none, Status::Ok);
    }

    #[test]
    fn only_confidentiality_locks_hotspan_out() {
        let check = |text, expected| assert_eq!(lockdown(text).status, expected);
        check(Some("none integrity [confidentiality]"), Status::Warn);
        check(Some("none [integrity] confidentiality"), Status::Ok);
        check(Some("[none] integrity confidentiality"), Status::Ok);
        check(None, Status::Ok);
    }

    #[test]
    fn a_host_without_btf_fails() {
        let root = tempfile::tempdir().expect("a directory");
        let host = Host::at(root.path());
        assert_eq!(find_btf_fault(&host), Some("not there"));
        fs::create_dir_all(host.path("/sys/kernel/btf")).expect("made");
        fs::write(host.path(BTF), b"\x7fELF").expect("written");
        assert_eq!(find_btf_fault(&host), Some("too short"));
        assert_eq!(btf(find_btf_fault(&host)).status, Status::Fail);
    }

    #[test]
    fn a_host_without_any_file_warns_and_does_not_panic() {
        let root = tempfile::tempdir().expect("a directory");
        let host = Host::at(root.path());
        let rights = Rights::read(&host);
        let checks = [kernel_checks(&host), system_checks(&host, rights)].concat();
        assert!(checks.iter().any(|check| check.status == Status::Warn));
        assert!(checks.iter().all(Check::is_complete));
    }
}
