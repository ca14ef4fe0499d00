//! Debian's packages without installing them: apt, with all it knows in a folder of our own.
//!
//! The configuration of the host's apt, a proxy for one, counts; its sources and its packages do not.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command;

/// Signs all suites of Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Package lists of some suites. They are removed when this goes out of scope.
pub struct Apt {
    folder: PathBuf,
    /// Debian's name of the architecture that packages are for.
    arch: &'static str,
}

/// A package that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Apt {
    /// Fetches the lists of `suites` into `folder`.
    pub fn update(
        folder: PathBuf,
        arch: &'static str,
        suites: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self> {
        let _ = fs::remove_dir_all(&folder);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(folder.join("status"), "")?;
        let sources: String = suites
            .into_iter()
            .map(|suite| source(suite.as_ref()))
            .collect();
        fs::write(folder.join("sources.list"), sources)?;
        let apt = Self { folder, arch };
        // Without `--error-on`, a list that could not be fetched is a warning.
        command::output(
            apt.run("apt-get")
                .args(["update", "--quiet", "--error-on=any"]),
        )?;
        Ok(apt)
    }

    /// A command of apt's that uses this folder.
    fn run(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &OsStr| {
            let mut text = std::ffi::OsString::from(format!("{name}="));
            text.push(value);
            command.arg("--option").arg(text);
        };
        let path = |part: &str| self.folder.join(part).into_os_string();
        option("Dir::Etc::sourcelist", &path("sources.list"));
        option("Dir::Etc::sourceparts", "/dev/null".as_ref());
        option("Dir::Etc::preferences", "/dev/null".as_ref());
        option("Dir::Etc::preferencesparts", "/dev/null".as_ref());
        option("Dir::State::lists", &path("lists"));
        option("Dir::State::status", &path("status"));
        option("Dir::Cache", &path("cache"));
        option("APT::Architecture", self.arch.as_ref());
        option("APT::Architectures", self.arch.as_ref());
        // The user that apt would become may not enter a home directory.
        option("APT::Sandbox::User", "root".as_ref());
        option("Debug::NoLocking", "true".as_ref());
        option("Acquire::Languages", "none".as_ref());
        option("Acquire::Retries", "2".as_ref());
        option("Acquire::http::Timeout", "20".as_ref());
        // A mirror that stands still is good enough for tests.
        option("Acquire::Check-Valid-Until", "false".as_ref());
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    }

    /// The newest package whose name matches `pattern`, which has one `*` that stands for a version.
    pub fn newest(&self, pattern: &str) -> Result<Found> {
        let (before, _) = split(pattern)?;
        let names = command::text(self.run("apt-cache").args(["pkgnames", before]))?;
        let newest = newest(names.lines(), pattern)?;
        let name = newest.with_context(|| format!("Debian has no package {pattern}"))?;
        let facts = self.show(name)?;
        let version = facts
            .lines()
            .find_map(|line| line.strip_prefix("Version: "));
        Ok(Found {
            name: name.to_owned(),
            version: version
                .with_context(|| format!("{name} has no version"))?
                .to_owned(),
        })
    }

    fn show(&self, name: &str) -> Result<String> {
        command::text(
            self.run("apt-cache")
                .args(["show", "--no-all-versions", name]),
        )
    }

    /// Fetches one package into `folder`, and returns its file.
    pub fn download(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        command::output(
            self.run("apt-get")
                .args(["download", "--quiet", name])
                .current_dir(folder),
        )?;
        let mut files = debs(folder)?;
        ensure!(files.len() == 1, "apt-get download left {files:?}");
        Ok(files.remove(0))
    }

    /// Fetches packages, and of what they need that which the host does not have, and unpacks all of it
    /// into `folder`.
    pub fn unpack_with_dependencies(&self, names: &[&str], folder: &Path) -> Result<()> {
        command::output(
            self.run("apt-get")
                .args(["install", "--download-only", "--yes", "--quiet"])
                .args(["--no-install-recommends", "--reinstall"])
                .args(["--option", "Dir::State::status=/var/lib/dpkg/status"])
                .args(names),
        )?;
        for file in debs(&self.folder.join("cache/archives"))? {
            unpack(&file, folder)?;
        }
        Ok(())
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        // What is left costs room alone.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn source(suite: &str) -> String {
    let archive = if suite.ends_with("-security") {
        "debian-security"
    } else {
        "debian"
    };
    format!("deb [signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main\n")
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// Unpacks a package below `folder`.
pub fn unpack(package: &Path, folder: &Path) -> Result<()> {
    command::output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(folder),
    )
    .map(drop)
}

/// Writes the one file of a package that matches `pattern` to `target`.
pub fn extract(package: &Path, pattern: &str, target: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let pipe = archive.stdout.take().context("dpkg-deb has no output")?;
    let status = Command::new("tar")
        .args(["--extract", "--to-stdout", "--wildcards"])
        .arg(format!("./{pattern}"))
        .stdin(pipe)
        .stdout(fs::File::create(target)?)
        .status()
        .context("cannot run tar")?;
    archive.wait()?;
    ensure!(status.success(), "{} has no {pattern}", package.display());
    Ok(())
}

/// What is before and after the `*`.
pub fn split(pattern: &str) -> Result<(&str, &str)> {
    match pattern.split_once('*') {
        Some(parts) => Ok(parts),
        None => bail!("the pattern {pattern} has no *"),
    }
}

/// The one of `names` that matches and has the highest version in place of the `*`.
pub fn newest<'a>(names: impl Iterator<Item = &'a str>, pattern: &str) -> Result<Option<&'a str>> {
    let (before, after) = split(pattern)?;
    Ok(names
        .filter_map(|name| {
            let middle = name.strip_prefix(before)?.strip_suffix(after)?;
            // Else it is another kind of package, such as `linux-binary-unsigned-…`.
            let is_version = middle.starts_with(|c: char| c.is_ascii_digit());
            is_version.then(|| (numbers(middle), name))
        })
        .max()
        .map(|(_, name)| name))
}

/// The numbers in a version, which order the versions of one package well enough.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_match_is_found() {
        let check = |names: &[&str], pattern, expected: Option<&str>| {
            assert_eq!(newest(names.iter().copied(), pattern).unwrap(), expected);
        };
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-0.deb11.99-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1-cloud-amd64",
        ];
        check(&names, "linux-image-6.1.0-*-cloud-amd64", Some(names[1]));
        let names = [
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-binary-7.10.1+deb13-cloud-amd64",
            "linux-binary-unsigned-7.11.1+deb13-cloud-amd64",
        ];
        check(&names, "linux-binary-*-cloud-amd64", Some(names[1]));
        check(&names, "linux-binary-8.*-cloud-amd64", None);
        assert!(newest(names.into_iter(), "linux").is_err());
    }

    #[test]
    fn security_updates_come_from_an_archive_of_their_own() {
        assert!(source("bookworm-security").contains("org/debian-security bookworm-security main"));
        assert!(source("sid").contains("org/debian sid main"));
    }
}
