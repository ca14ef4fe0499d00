//! What happened to resources, as the kernel side counts it.

use std::sync::Arc;

pub use hotspan_abi::resources::{Event, Hierarchy};

use super::Durations;

/// Events of one kind, of one cgroup and one disk, in some time.
#[derive(Clone, Debug, PartialEq)]
pub struct EventCount {
    /// What happened.
    pub event: Event,
    /// The path of the cgroup it happened to: `/` for the root, `None` when that is not known, or when it
    /// happened to nobody.
    pub cgroup: Option<Arc<str>>,
    /// The name of the disk.
    pub disk: Option<Arc<str>>,
    /// How often, and how long it took.
    pub durations: Durations,
}
