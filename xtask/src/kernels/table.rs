//! `tests/kernels.toml`: which kernels there are, and what is expected of each.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::console::{Expected, Lack};
use crate::build_ebpf::Arch;
use crate::workspace;

/// The whole table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Names of the checks that every kernel answers.
    checks: Vec<String>,
    /// Instructions that the verifier may look at, for each program.
    budget: u32,
    /// What no kernel here has.
    lacks: BTreeMap<String, Lack>,
    /// The kernels.
    #[serde(rename = "kernel")]
    kernels: Vec<Kernel>,
}

/// One kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What we call it.
    pub name: String,
    /// The machine it runs on.
    pub arch: Arch,
    /// Debian's suites that have it.
    pub suites: Vec<String>,
    /// Name of its package, with one `*`.
    pub package: String,
    /// Where the kernel is in the package, with one `*`.
    pub image: String,
    /// What only it lacks.
    lacks: BTreeMap<String, Lack>,
}

impl Table {
    /// Reads the table.
    pub fn read() -> Result<Self> {
        let path = workspace::root().join("tests/kernels.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{}", path.display()))
    }

    /// What a kernel should show.
    pub fn expected<'a>(&'a self, kernel: &'a Kernel) -> Expected<'a> {
        let lacks = self.lacks.iter().chain(&kernel.lacks);
        Expected {
            checks: &self.checks,
            lacks: lacks.map(|(name, lack)| (name.as_str(), lack)).collect(),
            budget: self.budget,
        }
    }

    /// The kernels for `arch`, or those of them that are named in `only`.
    pub fn select(&self, arch: Arch, only: &[String]) -> Result<Vec<&Kernel>> {
        let all: Vec<&Kernel> = self
            .kernels
            .iter()
            .filter(|kernel| kernel.arch == arch)
            .collect();
        if let Some(unknown) = only
            .iter()
            .find(|name| all.iter().all(|kernel| kernel.name != **name))
        {
            let names: Vec<&str> = all.iter().map(|kernel| kernel.name.as_str()).collect();
            bail!(
                "there is no kernel {unknown} for {}; there are {}",
                arch.name(),
                names.join(", ")
            );
        }
        Ok(all
            .into_iter()
            .filter(|kernel| only.is_empty() || only.contains(&kernel.name))
            .collect())
    }
}
