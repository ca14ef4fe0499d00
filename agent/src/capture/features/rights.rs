//! Which rights this process has, and which it needs.

use super::host::{Host, KernelVersion};
use super::{Check, Missing};

/// Number of the first user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: u32 = 0xEFFF_FFFD;
/// Number of the first pid namespace (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u32 = 0xEFFF_FFFC;

/// A capability hotspan has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    /// Its bit (include/uapi/linux/capability.h).
    bit: u32,
    /// Its name, as the kernel's documentation writes it.
    name: &'static str,
    /// The name of its check.
    id: &'static str,
    /// Whether `CAP_SYS_ADMIN` stands in for it.
    is_in_sys_admin: bool,
    /// What is lost without it.
    loss: Loss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// No recording.
    All(&'static str),
    /// A poorer recording.
    Some(&'static str),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

/// To load programs and make maps.
const BPF: Capability = Capability {
    bit: 39,
    name: "CAP_BPF",
    id: "cap_bpf",
    is_in_sys_admin: true,
    loss: Loss::All("no program can be loaded, nothing is recorded"),
};
/// To sample CPUs and read the memory of others from programs.
const PERFMON: Capability = Capability {
    bit: 38,
    name: "CAP_PERFMON",
    id: "cap_perfmon",
    is_in_sys_admin: true,
    loss: Loss::All("CPUs cannot be sampled, nothing is recorded"),
};

/// To lift limits.
pub(super) const SYS_RESOURCE: Capability = Capability {
    bit: 24,
    name: "CAP_SYS_RESOURCE",
    id: "cap_sys_resource",
    is_in_sys_admin: false,
    loss: Loss::Nothing("only kernels before 5.11 need it, to lift the memlock limit"),
};
/// To see where the kernel's functions are.
pub(super) const SYSLOG: Capability = Capability {
    bit: 34,
    name: "CAP_SYSLOG",
    id: "cap_syslog",
    is_in_sys_admin: false,
    loss: Loss::Some("kernel frames have no names where /proc/kallsyms hides its addresses"),
};
/// Nearly everything; what it stands in for is said at each capability.
pub(super) const SYS_ADMIN: Capability = Capability {
    bit: 21,
    name: "CAP_SYS_ADMIN",
    id: "cap_sys_admin",
    is_in_sys_admin: true,
    loss: Loss::Nothing("the capabilities named above are enough to record"),
};

const CAPABILITIES: &[Capability] = &[
    BPF,
    PERFMON,
    Capability {
        bit: 19,
        name: "CAP_SYS_PTRACE",
        id: "cap_sys_ptrace",
        is_in_sys_admin: false,
        loss: Loss::Some(
            "the mappings and files of other users' processes are hidden: their frames have no names",
        ),
    },
    SYS_RESOURCE,
    Capability {
        bit: 2,
        name: "CAP_DAC_READ_SEARCH",
        id: "cap_dac_read_search",
        is_in_sys_admin: false,
        loss: Loss::Some("programs and libraries this user may not read get no names"),
    },
    SYSLOG,
    Capability {
        bit: 40,
        name: "CAP_CHECKPOINT_RESTORE",
        id: "cap_checkpoint_restore",
        is_in_sys_admin: true,
        loss: Loss::Some("deleted and replaced files that are still running get no names"),
    },
    Capability {
        bit: 14,
        name: "CAP_IPC_LOCK",
        id: "cap_ipc_lock",
        is_in_sys_admin: false,
        loss: Loss::Nothing("samples come through BPF maps, which lock no memory"),
    },
    SYS_ADMIN,
];

/// Who this process is and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    /// Effective user id.
    pub(super) uid: u32,
    /// Effective capabilities, one bit each.
    effective: u64,
    /// Whether it is in a user namespace of its own, where capabilities count for little.
    is_in_user_namespace: bool,
}

impl Rights {
    /// Rights of this process; none when /proc does not tell.
    pub(super) fn read(host: &Host) -> Self {
        let status = host.read("/proc/self/status").unwrap_or_default();
        let (uid, effective) = parse_status(&status).unwrap_or((u32::MAX, 0));
        let namespace = host.find_namespace("user");
        Self {
            uid,
            effective,
            is_in_user_namespace: namespace.is_some_and(|found| found != FIRST_USER_NAMESPACE),
        }
    }

    /// Rights of a root with these capabilities.
    #[cfg(test)]
    pub(super) fn of_test(effective: u64) -> Self {
        Self {
            uid: 0,
            effective,
            is_in_user_namespace: false,
        }
    }

    fn has_bit(self, bit: u32) -> bool {
        self.effective >> bit & 1 == 1
    }

    /// Whether a capability is effective, or another one that includes it.
    pub(super) fn has(self, capability: &Capability) -> bool {
        self.has_bit(capability.bit) || capability.is_in_sys_admin && self.has_bit(SYS_ADMIN.bit)
    }

    /// Whether the kernel lets this process load programs and sample CPUs, as far as rights go.
    pub(super) fn can_record(self) -> bool {
        self.find_missing().is_ok()
    }

    /// What keeps this process from recording.
    pub(super) fn find_missing(self) -> Result<(), Missing> {
        if self.is_in_user_namespace {
            return Err(Missing::FirstUserNamespace);
        }
        let lacking = match (self.has(&BPF), self.has(&PERFMON)) {
            (true, true) => return Ok(()),
            (false, true) => "CAP_BPF",
            (true, false) => "CAP_PERFMON",
            (false, false) => "CAP_BPF and CAP_PERFMON",
        };
        Err(if self.uid == 0 {
            Missing::CapabilitiesOfRoot { lacking }
        } else {
            Missing::Root { lacking }
        })
    }

    /// How to get capabilities that are lacking.
    pub(super) fn fix(self, lacking: &[Capability]) -> String {
        if self.uid != 0 {
            return "run hotspan as root, with sudo".to_owned();
        }
        let short: Vec<&str> = lacking
            .iter()
            .map(|capability| capability.name.trim_start_matches("CAP_"))
            .collect();
        format!(
            "add it where this container or service is started: docker run --cap-add={}, \
             Kubernetes capabilities.add: [{}]",
            short.join(" --cap-add="),
            short.join(", "),
        )
    }

    /// How to get the rights that recording needs.
    pub(super) fn fix_recording(self) -> String {
        if self.is_in_user_namespace {
            USER_NAMESPACE_FIX.to_owned()
        } else {
            self.fix(&[BPF, PERFMON])
        }
    }
}

const USER_NAMESPACE_FIX: &str =
    "run it outside the user namespace: as root of the host, in a container that is not rootless";

/// Effective user id and effective capabilities in `/proc/self/status`.
fn parse_status(status: &str) -> Option<(u32, u64)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let effective = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    Some((uid, effective))
}

/// Every check of rights.
pub(super) fn checks(host: &Host, rights: Rights) -> Vec<Check> {
    let kernel = host.find_kernel_version();
    let mut checks = vec![user(rights)];
    checks.extend(
        CAPABILITIES
            .iter()
            .map(|capability| check_capability(capability, host, rights, kernel)),
    );
    checks.push(user_namespace(rights));
    checks.push(pid_namespace(host.find_namespace("pid")));
    checks.push(confinement(host));
    checks.push(perf_event_paranoid(
        host.read_number("/proc/sys/kernel/perf_event_paranoid"),
        rights,
    ));
    checks.push(unprivileged_bpf(
        host.read_number("/proc/sys/kernel/unprivileged_bpf_disabled"),
    ));
    checks
}

fn user(rights: Rights) -> Check {
    let value = match rights.uid {
        0 => "root".to_owned(),
        u32::MAX => "unknown".to_owned(),
        uid => format!("uid {uid}"),
    };
    Check::ok("user", value)
}

fn check_capability(
    capability: &Capability,
    host: &Host,
    rights: Rights,
    kernel: Option<KernelVersion>,
) -> Check {
    let id = capability.id;
    if rights.has_bit(capability.bit) {
        return Check::ok(id, "effective");
    }
    if rights.has(capability) {
        return Check::ok(id, "not effective; CAP_SYS_ADMIN stands in for it");
    }
    let fix = rights.fix(&[*capability]);
    match capability.loss {
        Loss::All(costs) => Check::fail(id, "not effective", costs, fix),
        Loss::Nothing(_) if *capability == SYS_RESOURCE && has_memlock_accounting(kernel) => {
            Check::warn(
                id,
                "not effective",
                "the memlock limit cannot be lifted for BPF maps; see memlock",
                fix,
            )
        }
        Loss::Nothing(why) => Check::ok(id, format!("not effective, not needed: {why}")),
        Loss::Some(_) if *capability == SYSLOG && super::settings::has_kernel_symbols(host) => {
            Check::ok(
                id,
                "not effective; /proc/kallsyms shows addresses all the same",
            )
        }
        Loss::Some(costs) => Check::warn(id, "not effective", costs, fix),
    }
}

/// Whether BPF maps count against `RLIMIT_MEMLOCK`: before 5.11.
pub(super) fn has_memlock_accounting(kernel: Option<KernelVersion>) -> bool {
    kernel.is_some_and(|version| version < KernelVersion::new(5, 11))
}

fn user_namespace(rights: Rights) -> Check {
    if rights.is_in_user_namespace {
        return Check::fail(
            "user_namespace",
            "not the host's",
            "capabilities of a user namespace do not allow BPF, nothing is recorded",
            USER_NAMESPACE_FIX,
        );
    }
    Check::ok("user_namespace", "the host's")
}

/// Whether we are certainly not in the host's pid namespace.
pub fn is_in_own_pid_namespace(host: &Host) -> bool {
    host.find_namespace("pid")
        .is_some_and(|number| number != FIRST_PID_NAMESPACE)
}

fn pid_namespace(number: Option<u32>) -> Check {
    match number {
        Some(FIRST_PID_NAMESPACE) => Check::ok("pid_namespace", "the host's"),
        Some(_) => Check::fail(
            "pid_namespace",
            "a container's",
            "no process can be told from another: the kernel names them by the host's pids",
            "start the container in the host's: docker run --pid=host, Kubernetes hostPID: true",
        ),
        None => Check::warn(
            "pid_namespace",
            "unknown",
            "without /proc no process can be named",
            "mount -t proc proc /proc",
        ),
    }
}

fn confinement(host: &Host) -> Check {
    let status = host.read("/proc/self/status").unwrap_or_default();
    let profile = host
        .read("/proc/self/attr/apparmor/current")
        .or_else(|_| host.read("/proc/self/attr/current"))
        .unwrap_or_default();
    check_confinement(&status, profile.trim_end_matches('\0'))
}

fn check_confinement(status: &str, profile: &str) -> Check {
    let has_filter = status
        .lines()
        .filter_map(|line| line.strip_prefix("Seccomp:"))
        .any(|mode| mode.trim() != "0");
    // AppArmor calls it `unconfined`; SELinux gives a context, in which containers have a type of
    // their own.
    let is_confined = match profile {
        "" | "unconfined" => false,
        context if context.split(':').count() >= 4 => context.contains(":container_t:"),
        _ => true,
    };
    let filter = if has_filter {
        "a seccomp filter"
    } else {
        "no seccomp filter"
    };
    let value = match profile {
        "" => filter.to_owned(),
        profile => format!("{filter}, profile {profile}"),
    };
    if is_confined {
        return Check::warn(
            "confinement",
            value,
            "the profile may forbid looking into other processes: their frames have no names",
            "start the container with --security-opt apparmor=unconfined (SELinux: label=disable)",
        );
    }
    if has_filter {
        return Check::warn(
            "confinement",
            value,
            "the filter may forbid bpf(2), perf_event_open(2) or openat2(2)",
            "if a check of the programs fails below: --security-opt seccomp=unconfined",
        );
    }
    Check::ok("confinement", value)
}

fn perf_event_paranoid(level: Option<i64>, rights: Rights) -> Check {
    const ID: &str = "perf_event_paranoid";
    let Some(level) = level else {
        return Check::ok(ID, "not there");
    };
    if !rights.has(&PERFMON) {
        if level <= 0 {
            return Check::ok(ID, level.to_string());
        }
        return Check::warn(
            ID,
            level.to_string(),
            "without CAP_PERFMON the kernel refuses to sample whole CPUs",
            rights.fix(&[PERFMON]),
        );
    }
    // Levels above 2 are an addition of distributions, and not all of them let CAP_PERFMON pass.
    if level > 2 && !rights.has(&SYS_ADMIN) {
        return Check::warn(
            ID,
            level.to_string(),
            "some distributions' kernels then ask for CAP_SYS_ADMIN; see cpu_clock",
            "sysctl -w kernel.perf_event_paranoid=2",
        );
    }
    Check::ok(ID, format!("{level}, no limit with these rights"))
}

fn unprivileged_bpf(disabled: Option<i64>) -> Check {
    let value = match disabled {
        Some(0) => "0: every user may load some kinds of programs",
        Some(1) => "1: only for privileged users, until reboot",
        Some(2) => "2: only for privileged users",
        _ => "unknown",
    };
    // hotspan's kinds of programs need rights whatever this says.
    Check::ok("unprivileged_bpf_disabled", value)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    const ROOT: u64 = (1 << 41) - 1;

    fn rights(uid: u32, effective: u64) -> Rights {
        Rights {
            uid,
            ..Rights::of_test(effective)
        }
    }

    #[test]
    fn the_effective_user_and_capabilities_count() {
        let status = "Name:\thotspan\nUid:\t1000\t0\t1000\t1000\n\
                      CapPrm:\t0000000000000001\nCapEff:\t000001fffeffffff\n";
        assert_eq!(parse_status(status), Some((0, 0x1ff_feff_ffff)));
        assert_eq!(parse_status("Uid:\t0\n"), None);
        assert_eq!(parse_status(""), None);
    }

    #[test]
    fn one_lacking_capability_is_named_alone() {
        let without = |bit: u32| rights(0, ROOT & !(1 << SYS_ADMIN.bit) & !(1 << bit));
        assert_eq!(
            without(39).find_missing(),
            Err(Missing::CapabilitiesOfRoot { lacking: "CAP_BPF" })
        );
        assert_eq!(
            without(38).find_missing(),
            Err(Missing::CapabilitiesOfRoot {
                lacking: "CAP_PERFMON"
            })
        );
        assert_eq!(without(24).find_missing(), Ok(()));
        assert_eq!(
            rights(1000, 0).find_missing(),
            Err(Missing::Root {
                lacking: "CAP_BPF and CAP_PERFMON"
            })
        );
    }

    #[test]
    fn sys_admin_alone_is_enough() {
        let admin = rights(0, 1 << SYS_ADMIN.bit);
        assert_eq!(admin.find_missing(), Ok(()));
        let kernel = Some(KernelVersion::new(6, 1));
        let check = check_capability(&BPF, &Host::at("/nowhere"), admin, kernel);
        assert_eq!(check.status, Status::Ok);
    }

    #[test]
    fn capabilities_of_a_user_namespace_do_not_count() {
        let rights = Rights {
            is_in_user_namespace: true,
            ..rights(0, ROOT)
        };
        assert_eq!(rights.find_missing(), Err(Missing::FirstUserNamespace));
        assert_eq!(user_namespace(rights).status, Status::Fail);
    }

    #[test]
    fn sys_resource_matters_before_5_11_only() {
        let check = |kernel| {
            let rights = rights(0, ROOT & !(1 << SYS_RESOURCE.bit));
            check_capability(&SYS_RESOURCE, &Host::at("/nowhere"), rights, Some(kernel)).status
        };
        assert_eq!(check(KernelVersion::new(5, 10)), Status::Warn);
        assert_eq!(check(KernelVersion::new(5, 11)), Status::Ok);
    }

    #[test]
    fn confinement_is_read_from_profile_and_filter() {
        let check = |status, profile, expected| {
            assert_eq!(
                check_confinement(status, profile).status,
                expected,
                "{profile}"
            );
        };
        check("Seccomp:\t0\n", "", Status::Ok);
        check("Seccomp:\t0\n", "unconfined", Status::Ok);
        check("Seccomp:\t0\n", "docker-default (enforce)", Status::Warn);
        check(
            "Seccomp:\t2\nSeccomp_filters:\t1\n",
            "unconfined",
            Status::Warn,
        );
        let context = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023";
        check("Seccomp:\t0\n", context, Status::Ok);
        let context = "system_u:system_r:container_t:s0:c1,c2";
        check("Seccomp:\t0\n", context, Status::Warn);
    }

    #[test]
    fn paranoia_does_not_matter_with_perfmon() {
        let check = |level, rights, expected| {
            assert_eq!(perf_event_paranoid(Some(level), rights).status, expected);
        };
        check(2, rights(0, ROOT), Status::Ok);
        check(4, rights(0, ROOT), Status::Ok);
        check(2, rights(1000, 1 << 38), Status::Ok);
        check(3, rights(1000, 1 << 38), Status::Warn);
        check(1, rights(1000, 0), Status::Warn);
        check(-1, rights(1000, 0), Status::Ok);
    }

    #[test]
    fn only_the_first_pid_namespace_is_the_hosts() {
        assert_eq!(pid_namespace(Some(4_026_531_836)).status, Status::Ok);
        assert_eq!(pid_namespace(Some(4_026_532_200)).status, Status::Fail);
        assert_eq!(pid_namespace(None).status, Status::Warn);
    }
}
