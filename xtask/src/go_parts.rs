//! `cargo xtask collector` and `cargo xtask prometheus`: the real counterparts of the live tests that are
//! written in Go.
//!
//! In: `xtask/collector` and `xtask/prometheus`, Go modules in which everything is pinned by checksum.
//! Out: the paths of binaries in the cache, where they are built once.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{command, workspace};

/// A part, and how it is built.
pub struct Part {
    /// What to call it.
    name: &'static str,
    /// Its version; go.mod has the same.
    version: &'static str,
    /// Its folder in the cache, before the version.
    cached_as: &'static str,
    /// Where its go.mod is.
    source: &'static str,
    /// Binaries and the packages that they are built from.
    binaries: &'static [(&'static str, &'static str)],
}

/// The OpenTelemetry Collector.
pub static COLLECTOR: Part = Part {
    name: "the OpenTelemetry Collector",
    version: "0.161.0",
    cached_as: "otelcol",
    source: "xtask/collector",
    binaries: &[("otelcol", ".")],
};

/// Prometheus and the checker of scrape pages.
pub static PROMETHEUS: Part = Part {
    name: "Prometheus",
    version: "0.315.0",
    cached_as: "prometheus",
    source: "xtask/prometheus",
    binaries: &[
        ("promtool", "github.com/prometheus/prometheus/cmd/promtool"),
        (
            "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
        ),
    ],
};

/// The oldest Go that go.mod accepts, and the one that is fetched where only an older is.
const GO_MINIMUM: (u32, u32) = (1, 26);
const GO_FETCHED: &str = "1.26.8";

/// Runs the verb: prints the folder of the binaries.
pub fn run(part: &Part) -> Result<()> {
    println!("{}", make(part)?.display());
    Ok(())
}

/// Builds a part unless it is there, and returns the folder of its binaries.
pub fn make(part: &Part) -> Result<PathBuf> {
    let Part {
        name,
        version,
        cached_as,
        source,
        binaries,
    } = part;
    let folder = workspace::cache()?.join(format!("{cached_as}-{version}"));
    // The last binary is there when all are.
    let last = binaries.last().map_or("", |(binary, _)| binary);
    let made = workspace::make_once(&folder, last, |fresh| {
        eprintln!("building {name} {version}, which takes some minutes");
        let go = find_go()?;
        for (binary, package) in *binaries {
            let mut build = Command::new(&go);
            build
                .args([
                    "build",
                    "-mod=readonly",
                    "-trimpath",
                    "-ldflags=-s -w",
                    "-o",
                ])
                .arg(fresh.join(binary))
                .arg(package)
                .env("CGO_ENABLED", "0")
                // Set for an installed Go, it would be wrong for a fetched one.
                .env_remove("GOROOT")
                .current_dir(workspace::root().join(source));
            command::output(&mut build)?;
        }
        Ok(())
    })?;
    Ok(made.parent().unwrap_or(&made).to_owned())
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
