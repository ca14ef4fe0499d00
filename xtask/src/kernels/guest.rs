//! What a machine starts with: one archive of files, in which the first process, hotspan, the
//! workloads, and the libraries they need are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use cpio::newc::Builder;

use super::build::Programs;
use crate::command;

/// Where hotspan is in the machine.
const HOTSPAN: &str = "/bin/hotspan";
/// Where the workloads are.
const WORKLOADS: &str = "/workloads";
/// Where another compiled object is, if one is to be loaded.
const OBJECT: &str = "/hotspan.bpf.o";

const FOLDERS: [&str; 5] = ["/dev", "/proc", "/sys", "/tmp", "/run"];

/// Variables of the first process.
pub fn environment(has_object: bool) -> String {
    let mut text = format!("HOTSPAN_BIN={HOTSPAN} HOTSPAN_WORKLOADS={WORKLOADS} NO_COLOR=1");
    if has_object {
        text.push_str(&format!(" HOTSPAN_BPF_OBJECT={OBJECT}"));
    }
    text
}

/// Writes the archive to `target`. `object` is loaded in place of the one inside hotspan.
pub fn pack(programs: &Programs, object: Option<&Path>, target: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    files.insert("/init".to_owned(), programs.smoke.clone());
    files.insert(HOTSPAN.to_owned(), programs.hotspan.clone());
    for path in &programs.workloads {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.insert(format!("{WORKLOADS}/{name}"), path.clone());
    }
    let executables: Vec<PathBuf> = files.values().cloned().collect();
    files.extend(libraries(&executables, &programs.library_folders)?);
    files.extend(object.map(|object| (OBJECT.to_owned(), object.to_owned())));
    write(&files, target).with_context(|| format!("cannot write {}", target.display()))
}

/// The loader and the libraries that `programs` need, by their place in the machine.
fn libraries(programs: &[PathBuf], folders: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut todo = programs.to_owned();
    while let Some(file) = todo.pop() {
        let dynamic = command::text(Command::new("readelf").args(["-Wdl"]).arg(&file))?;
        for (place, name) in needs(&dynamic) {
            if found.contains_key(&place) {
                continue;
            }
            let path = folders
                .iter()
                .map(|folder| folder.join(&name))
                .find(|path| path.exists())
                .with_context(|| format!("{} needs {name}, which is nowhere", file.display()))?;
            todo.push(path.clone());
            found.insert(place, path);
        }
    }
    Ok(found)
}

/// The loader and the libraries that readelf's `dynamic` names: place in the machine, and file name.
fn needs(dynamic: &str) -> BTreeSet<(String, String)> {
    let between = |line: &str, before: &str| {
        let (_, rest) = line.split_once(before)?;
        Some(rest.split(']').next()?.trim().to_owned())
    };
    let loaders = dynamic.lines().filter_map(|line| {
        let path = between(line, "Requesting program interpreter:")?;
        let name = Path::new(&path).file_name()?.to_str()?.to_owned();
        Some((path, name))
    });
    // The loader looks for libraries there without being told.
    let libraries = dynamic
        .lines()
        .filter_map(|line| between(line, "Shared library: ["))
        .filter(|name| !name.starts_with("ld-linux"))
        .map(|name| (format!("/lib/{name}"), name));
    loaders.chain(libraries).collect()
}

fn write(files: &BTreeMap<String, PathBuf>, target: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(target)?);
    let folders: BTreeSet<&Path> = files
        .keys()
        .flat_map(|place| Path::new(place).ancestors().skip(1))
        .chain(FOLDERS.iter().map(Path::new))
        .filter(|folder| folder.parent().is_some())
        .collect();
    for folder in folders {
        entry(&mut out, &folder.to_string_lossy(), 0o040_755, &[])?;
    }
    // The first process has this open from the start.
    let console = Builder::new("dev/console")
        .mode(0o020_600)
        .rdev_major(5)
        .rdev_minor(1);
    console.write(&mut out, 0).finish()?;
    for (place, path) in files {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        entry(&mut out, place, 0o100_755, &content)?;
    }
    cpio::newc::trailer(&mut out)?;
    Ok(out.flush()?)
}

fn entry(out: &mut impl std::io::Write, place: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).context("a file is too large")?;
    let builder = Builder::new(place.trim_start_matches('/'))
        .mode(mode)
        .nlink(1);
    let mut writer = builder.write(out, size);
    writer.write_all(content)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_libraries_are_found() {
        let text = "  INTERP  0x318\n      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]\n\
            Dynamic section:\n 0x1 (NEEDED)  Shared library: [libc.so.6]\n\
             0x1 (NEEDED)  Shared library: [ld-linux-x86-64.so.2]\n";
        let pair = |place: &str, name: &str| (place.to_owned(), name.to_owned());
        let expected = [
            pair("/lib/libc.so.6", "libc.so.6"),
            pair("/lib64/ld-linux-x86-64.so.2", "ld-linux-x86-64.so.2"),
        ];
        assert_eq!(needs(text), expected.into());
    }

    #[test]
    fn a_program_finds_its_libraries_in_the_archive() {
        let folders = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu"].map(PathBuf::from);
        let found = libraries(&["/bin/sh".into()], &folders).unwrap();
        assert!(found.contains_key("/lib/libc.so.6"), "{found:?}");
        assert!(
            found.keys().any(|place| place.contains("/ld-linux")),
            "{found:?}"
        );
    }
}
