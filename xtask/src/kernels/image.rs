//! The kernels themselves, each fetched once per version.
//!
//! In: patterns of packages. Out: files in the cache. Beside them lies a note with the newest version
//! of each kernel; a note of today is believed without asking Debian.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::apt::{self, Apt, Found};
use super::table::Kernel;
use crate::build_ebpf::Arch;
use crate::workspace;

/// How long a note is believed.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// A kernel that can be booted.
pub struct Image<'a> {
    /// Its line in the table.
    pub kernel: &'a Kernel,
    /// Package and version.
    pub version: String,
    /// The file.
    pub path: PathBuf,
}

/// Finds or fetches all of `kernels`, which are for one machine.
pub fn fetch<'a>(kernels: &[&'a Kernel], arch: Arch) -> Result<Vec<Image<'a>>> {
    let folder = workspace::cache()?.join("kernels");
    let noted: Vec<_> = kernels
        .iter()
        .map(|kernel| noted(&folder, kernel))
        .collect();
    if noted
        .iter()
        .all(|note| note.as_ref().is_some_and(|note| note.is_fresh))
    {
        return Ok(noted.into_iter().flatten().map(|note| note.image).collect());
    }
    match fetch_newest(&folder, kernels, arch) {
        Ok(images) => Ok(images),
        Err(error) if noted.iter().all(Option::is_some) => {
            eprintln!("no news from Debian, so the kernels from before are used: {error:#}");
            Ok(noted.into_iter().flatten().map(|note| note.image).collect())
        }
        Err(error) => {
            let missing = kernels
                .iter()
                .zip(&noted)
                .filter(|(_, note)| note.is_none());
            let names: Vec<&str> = missing.map(|(kernel, _)| kernel.name.as_str()).collect();
            Err(error.context(format!(
                "cannot fetch Debian's kernels, and {} has none for {}: connect this machine to \
                 deb.debian.org, or set the proxy of apt",
                folder.display(),
                names.join(", ")
            )))
        }
    }
}

struct Note<'a> {
    image: Image<'a>,
    is_fresh: bool,
}

/// What the note of a kernel says, if that version is there.
fn noted<'a>(folder: &Path, kernel: &'a Kernel) -> Option<Note<'a>> {
    let note = note_path(folder, kernel);
    let version = fs::read_to_string(&note).ok()?;
    let path = folder.join(&version).join(IMAGE);
    let age = fs::metadata(&note).ok()?.modified().ok()?.elapsed();
    path.exists().then_some(Note {
        image: Image {
            kernel,
            version,
            path,
        },
        is_fresh: age.is_ok_and(|age| age < FRESH),
    })
}

const IMAGE: &str = "vmlinuz";

fn note_path(folder: &Path, kernel: &Kernel) -> PathBuf {
    folder.join(format!("{}-{}.newest", kernel.name, kernel.arch.name()))
}

fn fetch_newest<'a>(folder: &Path, kernels: &[&'a Kernel], arch: Arch) -> Result<Vec<Image<'a>>> {
    let suites: BTreeSet<&str> = kernels
        .iter()
        .flat_map(|kernel| kernel.suites.iter().map(String::as_str))
        .collect();
    let scratch = folder.join(format!("apt-{}", arch.debian()));
    let apt = Apt::update(scratch, arch.debian(), suites)?;
    kernels
        .iter()
        .map(|kernel| {
            fetch_one(&apt, folder, kernel).with_context(|| format!("kernel {}", kernel.name))
        })
        .collect()
}

fn fetch_one<'a>(apt: &Apt, folder: &Path, kernel: &'a Kernel) -> Result<Image<'a>> {
    let Found { name, version } = apt.newest(&kernel.package)?;
    let version = format!("{name}_{version}");
    let path = workspace::make_once(&folder.join(&version), IMAGE, |fresh| {
        eprintln!("fetching {version}");
        let package = apt.download(&name, fresh)?;
        apt::extract(&package, &kernel.image, &fresh.join(IMAGE))?;
        Ok(fs::remove_file(package)?)
    })?;
    fs::write(note_path(folder, kernel), &version)?;
    Ok(Image {
        kernel,
        version,
        path,
    })
}
