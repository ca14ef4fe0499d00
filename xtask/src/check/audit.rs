//! Dependencies against `deny.toml`: licences, sources, banned crates; duplicates are reported.
//!
//! In: the locked graph. This is the part of cargo-deny that needs no network, without the
//! minutes that building cargo-deny takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::license;
use crate::workspace::{self, Metadata, Package};

/// The tables of `deny.toml` that we enforce.
#[derive(Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// Checks every package of the graph.
pub fn check() -> Result<String> {
    let path = workspace::root().join("deny.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).context("deny.toml")?;
    let metadata = workspace::metadata()?;
    let complaints = complaints(&policy, &metadata);
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    let duplicates = duplicates(&metadata);
    let mut remark = format!("{} packages", metadata.packages.len());
    if !duplicates.is_empty() {
        remark.push_str(&format!("; several versions of {}", duplicates.join(", ")));
    }
    Ok(remark)
}

fn complaints(policy: &Policy, metadata: &Metadata) -> Vec<String> {
    let root = workspace::root();
    let mut complaints = Vec::new();
    for package in &metadata.packages {
        let Package { name, version, .. } = package;
        if let Some(ban) = policy.bans.deny.iter().find(|ban| ban.name == *name) {
            let users = users_of(package, metadata).join(", ");
            complaints.push(format!(
                "{name} {version} is banned: {}; {users} uses it",
                ban.reason
            ));
        }
        match &package.source {
            Some(source) if !is_allowed_source(policy, source) => complaints.push(format!(
                "{name} {version} comes from {source}, which deny.toml does not allow"
            )),
            None if !package.manifest_path.starts_with(&root) => complaints.push(format!(
                "{name} {version} comes from {}, outside this workspace",
                package.manifest_path.display()
            )),
            _ => {}
        }
        complaints.extend(license_complaint(policy, package));
    }
    complaints
}

fn is_allowed_source(policy: &Policy, source: &str) -> bool {
    let registries = &policy.sources.allow_registry;
    source
        .strip_prefix("registry+")
        .is_some_and(|url| registries.iter().any(|allowed| allowed == url))
}

fn license_complaint(policy: &Policy, package: &Package) -> Option<String> {
    let Package { name, version, .. } = package;
    let Some(expression) = &package.license else {
        return Some(format!("{name} {version} states no licence"));
    };
    let exceptions = policy.licenses.exceptions.iter();
    let allowed: Vec<&String> = exceptions
        .filter(|exception| exception.name == *name)
        .flat_map(|exception| &exception.allow)
        .chain(&policy.licenses.allow)
        .collect();
    let is_allowed = |license: &str| allowed.iter().any(|allowed| *allowed == license);
    match license::is_satisfied(expression, &is_allowed) {
        Some(true) => None,
        Some(false) => Some(format!(
            "{name} {version} is under {expression}, which deny.toml does not allow"
        )),
        None => Some(format!(
            "{name} {version} states the licence {expression:?}, which is no SPDX expression"
        )),
    }
}

fn users_of<'a>(package: &Package, metadata: &'a Metadata) -> Vec<&'a str> {
    let users = metadata
        .resolve
        .nodes
        .iter()
        .filter(|node| node.deps.iter().any(|dep| dep.pkg == package.id));
    users
        .filter_map(|node| metadata.packages.iter().find(|other| other.id == node.id))
        .map(|user| user.name.as_str())
        .collect()
}

/// Crates that are in the graph in more than one incompatible version, as `name 1 2`.
fn duplicates(metadata: &Metadata) -> Vec<String> {
    let mut majors: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        majors
            .entry(&package.name)
            .or_default()
            .insert(compatible_part(&package.version));
    }
    majors
        .iter()
        .filter(|(_, majors)| majors.len() > 1)
        .map(|(name, majors)| {
            let majors: Vec<&str> = majors.iter().map(String::as_str).collect();
            format!("{name} {}", majors.join(" "))
        })
        .collect()
}

/// The part of a version that cargo's caret requirements hold fast: `1`, `0.14`, `0.0.3`.
fn compatible_part(version: &str) -> String {
    let numbers = version.split(['-', '+']).next().unwrap_or(version);
    let parts: Vec<&str> = numbers.split('.').collect();
    let zeros = parts.iter().take_while(|part| **part == "0").count();
    parts[..parts.len().min(zeros + 1)].join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn check(name: &str, license: Option<&str>, source: &str, expected: &[&str]) {
        let policy = toml::from_str(
            r#"
            [licenses]
            allow = ["MIT"]
            exceptions = [{ crate = "inferno", allow = ["CDDL-1.0"] }]
            [bans]
            deny = [{ crate = "openssl-sys", reason = "TLS is rustls" }]
            [sources]
            allow-registry = ["https://github.com/rust-lang/crates.io-index"]
            "#,
        )
        .unwrap();
        let metadata = serde_json::json!({
            "packages": [{"id": "P", "name": name, "version": "1.0.0", "source": source,
                          "license": license, "targets": [], "manifest_path": "/x/Cargo.toml"}],
            "resolve": {"nodes": []},
        });
        let metadata = serde_json::from_value(metadata).unwrap();
        assert_eq!(complaints(&policy, &metadata), expected);
    }

    #[test]
    fn an_exception_holds_for_its_crate_alone() {
        check("inferno", Some("CDDL-1.0"), CRATES_IO, &[]);
        check(
            "other",
            Some("CDDL-1.0"),
            CRATES_IO,
            &["other 1.0.0 is under CDDL-1.0, which deny.toml does not allow"],
        );
    }

    #[test]
    fn a_crate_without_a_licence_is_refused() {
        check("a", None, CRATES_IO, &["a 1.0.0 states no licence"]);
    }

    #[test]
    fn a_git_dependency_is_refused() {
        check(
            "a",
            Some("MIT"),
            "git+https://example.org/a",
            &["a 1.0.0 comes from git+https://example.org/a, which deny.toml does not allow"],
        );
    }

    #[test]
    fn a_banned_crate_is_refused_with_the_reason() {
        check(
            "openssl-sys",
            Some("MIT"),
            CRATES_IO,
            &["openssl-sys 1.0.0 is banned: TLS is rustls;  uses it"],
        );
    }

    #[test]
    fn compatible_versions_are_one_major() {
        let cases = [
            ("1.2.3", "1"),
            ("0.14.5", "0.14"),
            ("0.0.3", "0.0.3"),
            ("1.2.1+spec-1.1.0", "1"),
            ("0.9.0-rc.1", "0.9"),
        ];
        for (version, expected) in cases {
            assert_eq!(compatible_part(version), expected);
        }
    }
}
