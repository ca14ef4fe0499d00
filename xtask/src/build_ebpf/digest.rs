//! The digest that tells whether a committed object belongs to the present sources.
//!
//! It is the SHA-256 of a text with one line for each thing that shapes the object, sorted:
//!
//! - `file PATH SHA-256` for every `*.rs` and `Cargo.toml` below `ebpf/`,
//! - `crate NAME VERSION SOURCE` for every locked crate that `hotspan-ebpf` is compiled from:
//!   ordinary dependencies and what they depend on, up to and with procedural macros,
//! - `flag FLAG` for every argument of the compiler and of cargo.
//!
//! The compiler is not part of it: the object may be built with any that is new enough. `DIGEST`
//! names the one that was used.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::workspace::{Metadata, Package};

const HEADER: &str = "\
# What each object was built from and with. Written by `cargo xtask build-ebpf`: do not edit.
# OBJECT SOURCES-SHA256 OBJECT-SHA256 TOOLCHAIN (xtask/src/build_ebpf/digest.rs says what is hashed)
";

/// A line of `DIGEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// File name of the object.
    pub object: String,
    /// Digest of its sources.
    pub sources_sha256: String,
    /// Digest of the object itself.
    pub object_sha256: String,
    /// What built it.
    pub toolchain: String,
}

/// Reads `DIGEST`; a file that is not there has no records.
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_records(&text).with_context(|| {
        format!(
            "{} is damaged: delete it and run `cargo xtask build-ebpf`",
            path.display()
        )
    })
}

fn parse_records(text: &str) -> Option<Vec<Record>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let mut words = line.splitn(4, ' ').map(str::to_owned);
            Some(Record {
                object: words.next()?,
                sources_sha256: words.next()?,
                object_sha256: words.next()?,
                toolchain: words.next()?,
            })
        })
        .collect()
}

/// Puts `record` into `DIGEST`, in place of the one of the same object.
pub fn write_record(path: &Path, record: Record) -> Result<()> {
    let mut records = read_records(path)?;
    records.retain(|other| other.object != record.object);
    records.push(record);
    records.sort_by(|a, b| a.object.cmp(&b.object));
    fs::write(path, text_of_records(&records))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn text_of_records(records: &[Record]) -> String {
    let mut text = HEADER.to_owned();
    for record in records {
        let Record {
            object,
            sources_sha256,
            object_sha256,
            toolchain,
        } = record;
        let _ = writeln!(
            text,
            "{object} {sources_sha256} {object_sha256} {toolchain}"
        );
    }
    text
}

/// SHA-256 of a file.
pub fn of_file(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&bytes))
}

/// Digest of the sources, the locked crates and the flags.
pub fn of_sources(root: &Path, metadata: &Metadata, flags: &[String]) -> Result<String> {
    let mut lines = BTreeSet::new();
    add_files(root, &root.join("ebpf"), &mut lines)?;
    lines.extend(compiled_crates(metadata, "hotspan-ebpf"));
    lines.extend(flags.iter().map(|flag| format!("flag {flag}")));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Ok(hex(text.as_bytes()))
}

fn add_files(root: &Path, folder: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "target" {
            add_files(root, &path, lines)?;
        } else if name == "Cargo.toml" || path.extension().is_some_and(|ext| ext == "rs") {
            let shown = path.strip_prefix(root).unwrap_or(&path).display();
            lines.insert(format!("file {shown} {}", of_file(&path)?));
        }
    }
    Ok(())
}

/// The crates that code of `root` is compiled from, without those of this workspace, which count
/// by their files. A procedural macro counts, what it is built from does not: that would make
/// the object stale whenever a crate of user space moves a shared parser.
fn compiled_crates(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let package_of = |id: &str| metadata.packages.iter().find(|package| package.id == id);
    let mut lines = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut todo: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| package.name == root)
        .collect();
    while let Some(package) = todo.pop() {
        if !seen.insert(&package.id) {
            continue;
        }
        if let Some(source) = &package.source {
            lines.insert(format!(
                "crate {} {} {source}",
                package.name, package.version
            ));
        }
        if is_macro(package) {
            continue;
        }
        let nodes = metadata.resolve.nodes.iter();
        for node in nodes.filter(|node| node.id == package.id) {
            let compiled = node
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            todo.extend(compiled.filter_map(|dep| package_of(&dep.pkg)));
        }
    }
    lines
}

fn is_macro(package: &Package) -> bool {
    package
        .targets
        .iter()
        .any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(object: &str) -> Record {
        Record {
            object: object.to_owned(),
            sources_sha256: "ab".to_owned(),
            object_sha256: "cd".to_owned(),
            toolchain: "rustc 1.96.0, LLVM 22.1.8".to_owned(),
        }
    }

    #[test]
    fn records_survive_being_written_and_read() {
        let records = vec![record("a.o"), record("b.o")];
        assert_eq!(parse_records(&text_of_records(&records)), Some(records));
    }

    #[test]
    fn a_line_with_a_missing_word_is_damage() {
        assert_eq!(parse_records("a.o ab cd"), None);
        assert_eq!(parse_records("<<<<<<< HEAD\n"), None);
    }

    #[test]
    fn crates_count_up_to_the_macros_but_not_beyond_and_not_for_builds_or_tests() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"packages": [
                {"id": "E", "name": "ebpf", "version": "0", "source": null, "targets": [{"kind": ["lib"]}], "manifest_path": ""},
                {"id": "A", "name": "aya", "version": "1", "source": "io", "targets": [{"kind": ["lib"]}], "manifest_path": ""},
                {"id": "M", "name": "macros", "version": "2", "source": "io", "targets": [{"kind": ["proc-macro"]}], "manifest_path": ""},
                {"id": "S", "name": "syn", "version": "3", "source": "io", "targets": [{"kind": ["lib"]}], "manifest_path": ""},
                {"id": "B", "name": "build", "version": "4", "source": "io", "targets": [{"kind": ["lib"]}], "manifest_path": ""}],
              "resolve": {"nodes": [
                {"id": "E", "deps": [{"pkg": "A", "dep_kinds": [{"kind": null}]}, {"pkg": "B", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "A", "deps": [{"pkg": "M", "dep_kinds": [{"kind": null}]}, {"pkg": "B", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "M", "deps": [{"pkg": "S", "dep_kinds": [{"kind": null}]}]},
                {"id": "S", "deps": []}, {"id": "B", "deps": []}]}}"#,
        )
        .unwrap();
        let crates: Vec<String> = compiled_crates(&metadata, "ebpf").into_iter().collect();
        assert_eq!(crates, ["crate aya 1 io", "crate macros 2 io"]);
    }

    #[test]
    fn hex_is_the_known_digest() {
        assert!(hex(b"abc").starts_with("ba7816bf8f01cfea414140de5dae2223"));
    }
}
