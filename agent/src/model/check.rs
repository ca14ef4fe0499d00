//! What a resource of the host is doing, by the USE method: utilization, saturation, errors.
//! <https://www.brendangregg.com/usemethod.html>

use serde::Serialize;

/// A number and its unit, in the notation of UCUM as the semantic conventions write it: `1` for a
/// ratio, `{page}/s` for a rate of something counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// Finite, never negative.
    pub value: f64,
    /// What the number counts.
    pub unit: &'static str,
}

/// What to think of a resource, from good to bad; [`Verdict::Unknown`] is neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The kernel does not tell, or its counters started anew meanwhile.
    Unknown,
    /// There is room.
    Ok,
    /// Much of it is used.
    Busy,
    /// Somebody waits for it, or it is full.
    Saturated,
    /// It fails somebody.
    Errors,
}

/// Somebody who uses a resource.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Contributor {
    /// `name[pid]` for a process, `container ID` or `cgroup PATH` for a container.
    pub who: String,
    /// Their part of what all together use or wait, from 0 to 1. A process in a container is also
    /// in the container's share.
    pub share: f64,
}

/// How long something took, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Half of all took no longer.
    pub p50: f64,
    /// Of a hundred, 99 took no longer.
    pub p99: f64,
    /// `s`
    pub unit: &'static str,
}

/// One line of the USE checklist.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Kind of resource: `cpu`, `disk`.
    #[serde(rename = "name")]
    pub resource: &'static str,
    /// Which one of its kind: `cpu0`, `vda`, a mount point, the path of a cgroup, `host` for all.
    pub instance: String,
    /// How much of it is used.
    pub utilization: Option<Measure>,
    /// How much work waits for it.
    pub saturation: Option<Measure>,
    /// How often it failed.
    pub errors: Option<Measure>,
    /// How long it made somebody wait, where the kernel side counts that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What to think of it.
    pub verdict: Verdict,
    /// Who uses it, most first.
    pub top: Vec<Contributor>,
}
