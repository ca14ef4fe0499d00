//! `cargo xtask collector` and `cargo xtask prometheus`: the real counterparts of the live tests that are
//! written in Go.
//!
//! In: `xtask/collector` and `xtask/prometheus`, Go modules in which everything is pinned by checksum.
//! Out: the paths of binaries in the cache, where they are built once.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{command, go, workspace};

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
        let go = go::find()?;
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
