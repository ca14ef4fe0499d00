//! Packages of Debian: which are missing, and installing them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// A package, and how to see that what we want of it is there, from wherever it came.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// A program on the PATH, or a file when it starts with a slash.
    pub provides: &'static str,
}

/// The names of the packages that are missing.
pub fn missing(packages: &[Package]) -> Vec<&'static str> {
    packages
        .iter()
        .filter(|package| !is_there(package.provides))
        .map(|package| package.name)
        .collect()
}

fn is_there(provided: &str) -> bool {
    if provided.starts_with('/') {
        Path::new(provided).exists()
    } else {
        command::find_program(provided).is_some()
    }
}

/// The command that installs `packages`.
pub fn install_command(packages: &[&str]) -> String {
    format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    )
}

/// Installs `packages`, if there are any.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if command::find_program("apt-get").is_none() {
        bail!(
            "missing, and this is no Debian to install them on: {}. \
             Install what they stand for with this system's package manager.",
            packages.join(", ")
        );
    }
    if !is_root() {
        bail!("missing packages: run `sudo {}`", install_command(packages));
    }
    eprintln!("installing {}", packages.join(" "));
    command::output(apt_get().arg("update"))?;
    command::output(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )?;
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .arg("--quiet")
        // Another apt may run right after boot; waiting beats failing.
        .args(["--option", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The name of Debian's release that runs here, such as `bookworm`; an error on other systems.
pub fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse_codename(&text).context("this is no Debian")
}

/// The suites of a release, with what came later.
pub fn suites(release: &str) -> Vec<String> {
    ["", "-updates", "-security"]
        .map(|kind| format!("{release}{kind}"))
        .into()
}

fn parse_codename(os_release: &str) -> Option<String> {
    let value = |key| os_release.lines().find_map(|line| line.strip_prefix(key));
    (value("ID=")? == "debian").then_some(())?;
    value("VERSION_CODENAME=").map(str::to_owned)
}

/// Whether we run as root. The owner of a process's folder in /proc is its effective user.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_has_a_codename() {
        let text = "NAME=\"Debian\"\nVERSION_CODENAME=trixie\nID=debian\n";
        assert_eq!(parse_codename(text).as_deref(), Some("trixie"));
        assert_eq!(parse_codename("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
    }

    #[test]
    fn a_package_counts_as_there_when_its_program_or_file_is() {
        let packages = [
            Package {
                name: "dash",
                provides: "sh",
            },
            Package {
                name: "procfs",
                provides: "/proc/self",
            },
            Package {
                name: "absent",
                provides: "no-such-program-9",
            },
            Package {
                name: "gone",
                provides: "/no/such/file",
            },
        ];
        assert_eq!(missing(&packages), ["absent", "gone"]);
    }
}
