//! Where things are in this workspace, and what cargo says about it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command;

/// The triples hotspan is built for; dependencies of other systems do not count as ours.
const TARGETS: [&str; 3] = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "bpfel-unknown-none",
];

/// The folder of the workspace. Cargo tells it at run time; the one compiled in would be wrong
/// when two clones share a target folder.
pub fn root() -> PathBuf {
    let manifest_dir =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest_dir = PathBuf::from(manifest_dir);
    manifest_dir.parent().unwrap_or(&manifest_dir).to_owned()
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(target)
}

/// Cargo, run in the workspace: the one that runs us, so that all steps use one compiler.
///
/// What it told us of ourselves is left out: build scripts that look at such variables would run anew
/// each time that cargo is run now by us and now by hand.
pub fn cargo() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let is_ours = |prefix| name.as_encoded_bytes().starts_with(prefix);
        if is_ours(b"CARGO_PKG_") || is_ours(b"CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// The folder of what is built once for all clones: `$HOTSPAN_CACHE`, or `~/.cache/hotspan`.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HOTSPAN_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(path).context("HOTSPAN_CACHE");
    }
    let home = env::home_dir().context("HOME is not set: set it, or HOTSPAN_CACHE")?;
    Ok(home.join(".cache/hotspan"))
}

/// Makes `folder` once: `build` is called when `product` is not in it yet, by one process at a
/// time, with an empty folder that then takes the place of `folder`. Returns the product's path.
pub fn make_once(
    folder: &Path,
    product: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let path = folder.join(product);
    if path.exists() {
        return Ok(path);
    }
    let mut lock_path = folder.as_os_str().to_owned();
    lock_path.push(".lock");
    let parent = folder.parent().context("a cache folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let lock =
        File::create(&lock_path).with_context(|| format!("cannot make {}", lock_path.display()))?;
    lock.lock()?;
    if path.exists() {
        return Ok(path);
    }
    let mut fresh = folder.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    fs::create_dir_all(&fresh)?;
    let built = build(&fresh).and_then(|()| {
        fs::create_dir_all(folder)?;
        install(&fresh, folder)
    });
    let _ = fs::remove_dir_all(&fresh);
    built.map(|()| path)
}

/// Moves every file of `fresh` into `folder`, each in one step, so that whoever runs the old or
/// looks for the new never sees half a file.
fn install(fresh: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(fresh)? {
        let entry = entry?;
        let target = folder.join(entry.file_name());
        if target.is_dir() {
            fs::remove_dir_all(&target)?;
        }
        fs::rename(entry.path(), &target)
            .with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

/// The locked dependency graph, as `cargo metadata` prints it.
#[derive(Deserialize)]
pub struct Metadata {
    /// Every package that any target of ours is built from.
    pub packages: Vec<Package>,
    /// Who depends on whom.
    pub resolve: Resolve,
}

/// A package in the graph.
#[derive(Deserialize)]
pub struct Package {
    /// Cargo's own id of it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it comes from; `None` for a folder on this machine.
    pub source: Option<String>,
    /// SPDX expression.
    pub license: Option<String>,
    /// What it builds.
    pub targets: Vec<Target>,
    /// Its Cargo.toml.
    pub manifest_path: PathBuf,
}

/// A thing a package builds.
#[derive(Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `proc-macro`, `custom-build`, ...
    pub kind: Vec<String>,
}

/// The resolved graph.
#[derive(Deserialize)]
pub struct Resolve {
    /// One node per package.
    pub nodes: Vec<Node>,
}

/// A package's dependencies.
#[derive(Deserialize)]
pub struct Node {
    /// The package.
    pub id: String,
    /// What it depends on.
    pub deps: Vec<Dependency>,
}

/// An edge of the graph.
#[derive(Deserialize)]
pub struct Dependency {
    /// The package depended on.
    pub pkg: String,
    /// Each way in which it is.
    pub dep_kinds: Vec<DependencyKind>,
}

/// In which way a package depends on another.
#[derive(Deserialize)]
pub struct DependencyKind {
    /// `None` for an ordinary dependency, else `build` or `dev`.
    pub kind: Option<String>,
}

/// Reads the locked dependency graph.
pub fn metadata() -> Result<Metadata> {
    let mut command = cargo();
    command.args(["metadata", "--format-version=1", "--locked"]);
    for target in TARGETS {
        command.args(["--filter-platform", target]);
    }
    let output = command::output(&mut command)?;
    serde_json::from_slice(&output).context("cargo metadata printed something unexpected")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_built_once_and_a_failed_build_leaves_nothing() {
        let folder = env::temp_dir().join(format!("hotspan-make-once-{}", std::process::id()));
        let failed = make_once(&folder, "bin/tool", |fresh| {
            fs::write(fresh.join("half"), "x")?;
            anyhow::bail!("no compiler")
        });
        assert!(failed.is_err());
        assert!(!folder.exists());
        let path = make_once(&folder, "bin/tool", |fresh| {
            fs::create_dir(fresh.join("bin"))?;
            Ok(fs::write(fresh.join("bin/tool"), "1")?)
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1");
        let again = make_once(&folder, "bin/tool", |_| panic!("built twice")).unwrap();
        assert_eq!(again, path);
        fs::remove_dir_all(&folder).unwrap();
        fs::remove_file(folder.with_extension("lock")).unwrap();
    }
}
