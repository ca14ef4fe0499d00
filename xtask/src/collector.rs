//! `cargo xtask collector`: the real OpenTelemetry Collector, for the live tests.
//!
//! In: `xtask/collector`, a Go program of the Collector's own modules, each pinned by checksum.
//! Out: the path of the binary in the cache, where it is built once.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{command, workspace};

/// Version of the Collector; go.mod has the same.
const VERSION: &str = "0.161.0";
/// The oldest Go that go.mod accepts, and the one that is fetched where only an older is.
const GO_MINIMUM: (u32, u32) = (1, 26);
const GO_FETCHED: &str = "1.26.8";

/// Runs the verb.
pub fn run() -> Result<()> {
    println!("{}", make()?.display());
    Ok(())
}

/// Builds the Collector unless it is there, and returns its path.
pub fn make() -> Result<PathBuf> {
    let folder = workspace::cache()?.join(format!("otelcol-{VERSION}"));
    workspace::make_once(&folder, "otelcol", |fresh| {
        eprintln!("building the OpenTelemetry Collector {VERSION}, which takes some minutes");
        let go = find_go()?;
        command::output(
            Command::new(go)
                .args([
                    "build",
                    "-mod=readonly",
                    "-trimpath",
                    "-ldflags=-s -w",
                    "-o",
                ])
                .arg(fresh.join("otelcol"))
                .arg(".")
                .env("CGO_ENABLED", "0")
                // Set for an installed Go, it would be wrong for a fetched one.
                .env_remove("GOROOT")
                .current_dir(workspace::root().join("xtask/collector")),
        )
        .map(drop)
    })
}

/// A Go that is new enough: the installed one, or one that it fetches.
fn find_go() -> Result<PathBuf> {
    let Some(installed) = command::find_program("go") else {
        bail!("Go is not installed: run `apt-get install golang`");
    };
    // Asked in a folder without go.mod, so that it tells its own version.
    let version = command::text(
        Command::new(&installed)
            .args(["env", "GOVERSION"])
            .current_dir("/"),
    )?;
    match parse_go_version(&version) {
        Some(version) if version >= GO_MINIMUM => Ok(installed),
        _ => fetch_go(&installed),
    }
}

/// `go1.26.8` → (1, 26).
fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("go")?.split(['.', 'r', 'b', ' ', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Fetches a newer Go as a module, which is how Go updates itself since 1.21; Debian 12's is
/// older, but can fetch modules.
fn fetch_go(installed: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Download {
        dir: PathBuf,
    }
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Go is known for {other}: install Go {GO_FETCHED} or later"),
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{GO_FETCHED}.linux-{arch}");
    eprintln!("fetching Go {GO_FETCHED}");
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
        assert_eq!(parse_go_version("go1.26.8"), Some((1, 26)));
        assert_eq!(parse_go_version("go1.30rc1"), Some((1, 30)));
        assert!(parse_go_version("go1.9") < Some(GO_MINIMUM));
        assert_eq!(parse_go_version("devel"), None);
    }
}
