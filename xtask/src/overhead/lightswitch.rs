//! Running lightswitch, the other profiler that unwinds by tables in the kernel.
//!
//! It is built once, from crates.io. Two things that it needs and this kernel may lack are given to
//! it alone, and are gone when it ends: a debugfs, in a mount namespace of its own, and
//! `/proc/modules`, by a library that is loaded into it. It keeps tables in `/tmp`, which are
//! removed too: it starts as hotspan does, which keeps none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bench::{self, Bench, NOWHERE, Run};
use super::stacks::{self, Stack};
use crate::debian::{self, Package};
use crate::{command, workspace};

/// The newest on crates.io.
pub const VERSION: &str = "0.7.0";

/// It takes prime numbers only, so that it does not keep step with what it samples.
pub const RATE_HZ: u32 = 97;

#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    Package { name: "clang",      provides: "clang" },
    Package { name: "libelf-dev", provides: "/usr/include/libelf.h" },
    Package { name: "make",       provides: "make" },
    Package { name: "pkg-config", provides: "pkg-config" },
    Package { name: "zlib1g-dev", provides: "/usr/include/zlib.h" },
];

/// The profiler, ready to run.
pub struct Lightswitch {
    program: PathBuf,
    /// Loaded into it where the kernel has no modules.
    no_modules: PathBuf,
}

impl Lightswitch {
    /// Builds it unless it is there. `folder` takes what is built each time.
    pub fn make(folder: &Path) -> Result<Self> {
        let cached = workspace::cache()?.join(format!("lightswitch-{VERSION}"));
        let program = workspace::make_once(&cached, "bin/lightswitch", install)?;
        fs::create_dir_all(folder)?;
        let (source, no_modules) = (folder.join("no_modules.c"), folder.join("no_modules.so"));
        fs::write(&source, include_str!("programs/no_modules.c"))?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-shared", "-fPIC", "-o"])
            .args([&no_modules, &source]);
        command::output(gcc.arg("-ldl"))?;
        Ok(Self {
            program,
            no_modules,
        })
    }
}

fn install(folder: &Path) -> Result<()> {
    debian::install(&debian::missing(PACKAGES))?;
    eprintln!("building lightswitch {VERSION}, which takes some minutes");
    // Its build looks for the static libelf where the compiler does, and rustc does not.
    let libelf = command::text(Command::new("gcc").arg("-print-file-name=libelf.a"))?;
    let libraries = Path::new(&libelf)
        .parent()
        .context("libelf.a is in a folder")?;
    let built = command::output(
        workspace::cargo()
            .args([
                "install",
                "lightswitch",
                "--locked",
                "--quiet",
                "--version",
                VERSION,
            ])
            .arg("--root")
            .arg(folder)
            .arg("--target-dir")
            .arg(folder.join("target"))
            .env("RUSTFLAGS", format!("-Lnative={}", libraries.display()))
            .current_dir("/"),
    );
    let _ = fs::remove_dir_all(folder.join("target"));
    built.map(drop)
}

/// Where it keeps tables.
const ITS_CACHE: &str = "/tmp/lightswitch";

/// Gives it what it needs, in its own mount namespace: `$1` is the library without modules.
const SURROUNDINGS: &str = r#"
    set -e
    [ -d /sys/kernel/debug/tracing ] || mount -t debugfs debugfs /sys/kernel/debug
    [ -d /sys/kernel/debug/tracing/events ] || mount -t tracefs tracefs /sys/kernel/debug/tracing
    [ -e /proc/modules ] || export LD_PRELOAD="$1"
    shift
    exec "$@"
"#;

impl Bench {
    /// Records with lightswitch: one process, or all. `None`, and a line on standard error, when
    /// it cannot.
    pub fn lightswitch<T>(
        &self,
        pid: Option<u32>,
        rate_hz: u32,
        duration: Duration,
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Option<(Run<T>, Vec<Stack>)> {
        let lightswitch = self.lightswitch.as_ref().ok()?;
        let recorded = self.try_lightswitch(lightswitch, pid, rate_hz, duration, watch);
        recorded
            .inspect_err(|error| eprintln!("a round goes without lightswitch: {error:#}"))
            .ok()
    }

    fn try_lightswitch<T>(
        &self,
        lightswitch: &Lightswitch,
        pid: Option<u32>,
        rate_hz: u32,
        duration: Duration,
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<(Run<T>, Vec<Stack>)> {
        let folder = self.file("lightswitch");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                SURROUNDINGS,
                "sh",
            ])
            .args([&lightswitch.no_modules, &lightswitch.program])
            .args(["--duration", &duration.as_secs().to_string()])
            .args(["--sample-freq", &rate_hz.to_string()])
            .args(["--profile-format", "pprof", "--profile-name", "profile.pb"])
            .args(["--profile-path", bench::arg(&folder)?]);
        if let Some(pid) = pid {
            command.args(["--pids", &pid.to_string()]);
        }
        let had_cache = Path::new(ITS_CACHE).exists();
        let run = self.run_well(&mut command, Path::new(NOWHERE), watch);
        if !had_cache {
            let _ = fs::remove_dir_all(ITS_CACHE);
        }
        let run = run?;
        let folded = self.file("lightswitch.folded");
        command::output(Command::new(&self.hotspan).arg("flamegraph").args([
            &folder.join("profile.pb"),
            Path::new("-o"),
            &folded,
        ]))?;
        Ok((run, stacks::parse_folded(&fs::read_to_string(&folded)?)?))
    }
}
