//! `cargo xtask go VERSION`: that Go, from the module proxy, and prints where it is.
//!
//! What is in Go is built with the installed one where it is new enough; older ones are for programs as
//! other people have built them.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command;

/// The oldest Go that go.mod accepts, and the one that is fetched where only an older is.
const MINIMUM: (u32, u32) = (1, 26);
const FETCHED: &str = "1.26.8";

#[derive(clap::Args)]
pub struct Args {
    /// Like 1.20.14.
    version: String,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    println!("{}", fetch(&installed()?, &args.version)?.display());
    Ok(())
}

/// A Go that is new enough: the installed one, or one that it fetches.
pub fn find() -> Result<PathBuf> {
    let installed = installed()?;
    // Asked in a folder without go.mod, so that it tells its own version.
    let version = command::text(
        Command::new(&installed)
            .args(["env", "GOVERSION"])
            .current_dir("/"),
    )?;
    match parse_version(&version) {
        Some(version) if version >= MINIMUM => Ok(installed),
        _ => fetch(&installed, FETCHED),
    }
}

fn installed() -> Result<PathBuf> {
    command::find_program("go").context("Go is not installed: run `apt-get install golang`")
}

/// `go1.26.8` → (1, 26).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(['.', 'r', 'b', ' ', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Fetches another Go as a module, which is how Go updates itself since 1.21; Debian 12's is
/// older, but can fetch modules.
fn fetch(installed: &Path, version: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Download {
        dir: PathBuf,
    }
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Go is known for {other}: install Go {version} or later"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{version}.linux-{arch}");
    eprintln!("fetching Go {version}");
    let output = command::output(
        Command::new(installed)
            .args(["mod", "download", "-json", &module])
            .current_dir("/"),
    )?;
    let Download { dir } = serde_json::from_slice(&output).context("go mod download")?;
    // Modules are stored without permissions.
    make_executable(&dir.join("bin"))?;
    make_executable(&dir.join("pkg/tool"))?;
    Ok(dir.join("bin/go"))
}

fn make_executable(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_go_are_compared_by_number() {
        assert_eq!(parse_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_version("go1.30rc1"), Some((1, 30)));
        assert!(parse_version("go1.9") < Some(MINIMUM));
        assert_eq!(parse_version("devel"), None);
    }
}
