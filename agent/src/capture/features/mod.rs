//! What this kernel and these rights allow.
//!
//! In: the kernel's text files, and programs, maps and events that are tried and dropped at once.
//! Out: [`check_all`], every check with its cost and its fix, for `hotspan doctor`; and
//! [`why_not_record`], the quick question before a recording. Nothing on the host is changed.

mod catalogue;
mod host;
mod probes;
mod rights;
mod settings;
mod unwinder;

use serde::Serialize;

use host::Host;
pub use host::KernelVersion;
use rights::Rights;
pub use unwinder::Capacity;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is lost.
    Ok,
    /// Recording works, with less.
    Warn,
    /// Recording does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, the same in every release.
    pub id: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub value: String,
    /// What its lack costs; `None` when it is [`Status::Ok`].
    pub costs: Option<&'static str>,
    /// What helps: a command, a setting or a kernel; `None` when it is [`Status::Ok`].
    pub fix: Option<String>,
}

impl Check {
    fn ok(id: &'static str, value: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Ok,
            value: value.into(),
            costs: None,
            fix: None,
        }
    }

    fn warn(
        id: &'static str,
        value: impl Into<String>,
        costs: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            id,
            status: Status::Warn,
            value: value.into(),
            costs: Some(costs),
            fix: Some(fix.into()),
        }
    }

    fn fail(
        id: &'static str,
        value: impl Into<String>,
        costs: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(id, value, costs, fix)
        }
    }

    #[cfg(test)]
    fn is_complete(&self) -> bool {
        let is_ok = self.status == Status::Ok;
        self.costs.is_none() == is_ok && self.fix.is_none() == is_ok && !self.value.is_empty()
    }
}

/// Checks that belong together.
#[derive(Clone, Debug)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// The checks.
    pub checks: Vec<Check>,
}

/// Looks at everything. Takes some tens of milliseconds, most of it for the kernel's type
/// information.
#[must_use]
pub fn check_all() -> Vec<Section> {
    let host = Host::this();
    let rights = Rights::read(&host);
    let section = |title, checks| Section { title, checks };
    let mut sections = vec![
        section("kernel", settings::kernel_checks(&host)),
        section("rights", rights::checks(&host, rights)),
        section("system", settings::system_checks(&host, rights)),
    ];
    let prober = probes::Prober::new(host, rights);
    sections.extend([
        section("events", prober.event_checks()),
        section("programs", prober.program_checks()),
        section("maps", prober.map_checks()),
        section("helpers", prober.helper_checks()),
        section("unwinder", prober.unwinder_checks(&Capacity::HERE)),
    ]);
    sections
}

/// Why nothing can be recorded here: one sentence with the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The kernel is too old.
    #[error(
        "recording needs Linux {} or newer, and this kernel is {found}",
        KernelVersion::OLDEST
    )]
    Kernel {
        /// What it is.
        found: KernelVersion,
    },
    /// An ordinary user without the capabilities.
    #[error("recording needs root, or {lacking}: run it with sudo")]
    Root {
        /// Names of the capabilities.
        lacking: &'static str,
    },
    /// Root without the capabilities, as in a container.
    #[error(
        "recording needs {lacking}, which root lacks here: start the container or service with \
         --cap-add=BPF --cap-add=PERFMON"
    )]
    CapabilitiesOfRoot {
        /// Names of the capabilities.
        lacking: &'static str,
    },
    /// A user namespace of its own.
    #[error(
        "recording needs the rights of the host's user namespace: run it as root of the host, or \
         in a container that is not rootless"
    )]
    FirstUserNamespace,
    /// A pid namespace of its own.
    #[error(
        "recording needs the host's pid namespace, since the kernel names processes by it: start \
         the container with --pid=host, or in Kubernetes with hostPID: true"
    )]
    HostPidNamespace,
    /// No type information.
    #[error(
        "recording needs the kernel's type information in /sys/kernel/btf/vmlinux, which is \
         {fault}: use a kernel built with CONFIG_DEBUG_INFO_BTF=y, and in a container mount /sys"
    )]
    Btf {
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// Asks, within a millisecond or so, what recording certainly needs. What only an attempt shows is
/// left to the attempt.
///
/// # Errors
///
/// What is missing.
pub fn why_not_record() -> Result<(), Missing> {
    find_missing(&Host::this())
}

fn find_missing(host: &Host) -> Result<(), Missing> {
    if let Some(found) = host.find_kernel_version()
        && found < KernelVersion::OLDEST
    {
        return Err(Missing::Kernel { found });
    }
    Rights::read(host).find_missing()?;
    if rights::is_in_own_pid_namespace(host) {
        return Err(Missing::HostPidNamespace);
    }
    match settings::find_btf_fault(host) {
        Some(fault) => Err(Missing::Btf { fault }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A host made of files: a kernel's release, and the effective capabilities of root.
    fn host(root: &std::path::Path, release: &str, effective: u64) -> Host {
        let write = |path: &str, content: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
            fs::write(path, content).expect("written");
        };
        write("proc/sys/kernel/osrelease", release);
        write(
            "proc/self/status",
            &format!("Uid:\t0\t0\t0\t0\nCapEff:\t{effective:016x}\n"),
        );
        Host::at(root)
    }

    #[test]
    fn what_is_missing_is_said_in_the_order_one_can_mend_it() {
        let check = |release, effective, expected: &str| {
            let root = tempfile::tempdir().expect("a directory");
            let missing = find_missing(&host(root.path(), release, effective));
            let message = missing.expect_err("nothing there").to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("5.4.0-150-generic", 0, "this kernel is 5.4");
        check("6.1.0", 0, "needs CAP_BPF and CAP_PERFMON");
        check("6.1.0", 1 << 39, "needs CAP_PERFMON");
        check(
            "6.1.0",
            u64::MAX,
            "/sys/kernel/btf/vmlinux, which is not there",
        );
    }

    #[test]
    fn every_check_has_one_id_and_says_what_a_lack_costs() {
        let checks: Vec<Check> = check_all()
            .into_iter()
            .flat_map(|section| section.checks)
            .collect();
        for check in &checks {
            assert!(check.is_complete(), "{check:?}");
            let same = checks.iter().filter(|other| other.id == check.id).count();
            assert_eq!(same, 1, "{}", check.id);
        }
    }

    #[test]
    fn a_quick_refusal_is_also_a_failed_check() {
        if why_not_record().is_err() {
            let sections = check_all();
            let mut checks = sections.iter().flat_map(|section| &section.checks);
            assert!(checks.any(|check| check.status == Status::Fail));
        }
    }
}
