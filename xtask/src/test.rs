//! `cargo xtask test`: everything, on the real kernel.
//!
//! In: the working tree, root, a kernel with BTF. Out: check's lines, those of the live tests, and
//! those of the other kernels. What is missing on a fresh Debian is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build_ebpf::Arch;
use crate::debian::{self, Package};
use crate::steps::Steps;
use crate::{build_ebpf, check, command, go_parts, kernels, workspace};

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Arguments for the live tests: names to run, or options of Rust's test runner.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// What the live tests and their workloads run, and the package it comes from on Debian. What
/// compiles the kernel side is found by `build_ebpf`.
#[rustfmt::skip]
const PACKAGES: &[Package] = &[
    Package { name: "binutils",          provides: "readelf" },
    Package { name: "bpftool",           provides: "bpftool" },
    Package { name: "chromium",          provides: "chromium" },
    Package { name: "default-jdk-headless", provides: "java" },
    Package { name: "fonts-dejavu-core", provides: "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf" },
    Package { name: "g++",               provides: "g++" },
    Package { name: "gcc",               provides: "gcc" },
    Package { name: "golang",            provides: "go" },
    Package { name: "libc6-dbg",         provides: "/usr/lib/debug/.build-id" },
    Package { name: "libzstd-dev",       provides: "/usr/include/zstd.h" },
    Package { name: "linux-perf",        provides: "perf" },
    Package { name: "make",              provides: "make" },
    Package { name: "musl-tools",        provides: "musl-gcc" },
    Package { name: "nodejs",            provides: "node" },
    Package { name: "prometheus-node-exporter", provides: "prometheus-node-exporter" },
    Package { name: "python3",           provides: "python3" },
    Package { name: "linux-libc-dev",    provides: "/usr/include/asm-generic/unistd.h" },
    Package { name: "python3-venv",      provides: "/usr/share/doc/python3-venv" },
    Package { name: "strace",            provides: "strace" },
    Package { name: "zlib1g-dev",        provides: "/usr/include/zlib.h" },
];

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    check_kernel()?;
    debian::install(&debian::missing(PACKAGES))?;
    mount_tracefs()?;

    let objects = workspace::root().join("target/ebpf");
    let object = objects.join(Arch::host().object_name());
    let mut steps = Steps::default();
    check::add_steps(&mut steps);
    steps.run("eBPF objects", || build_ebpf::build_fresh(&objects));
    for (name, part) in [
        ("collector", &go_parts::COLLECTOR),
        ("prometheus", &go_parts::PROMETHEUS),
    ] {
        steps.run(name, || Ok(go_parts::make(part)?.display().to_string()));
    }
    steps.run("release build", release_build);
    steps.finish()?;

    println!("live tests");
    let live = command::visible(&mut live_tests(&object, &args.filter)?);
    // Named tests are asked for alone.
    if args.filter.is_empty() {
        println!("kernels");
        let own = kernels::boot_all(Arch::host(), &[], Some(&object));
        let arm = match Arch::host() {
            Arch::X86_64 => {
                println!("kernels for arm64");
                let object = objects.join(Arch::Aarch64.object_name());
                kernels::boot_all(Arch::Aarch64, &[], Some(&object))
            }
            Arch::Aarch64 => Ok(String::new()),
        };
        return live.and(own).and(arm).map(drop);
    }
    live
}

fn check_kernel() -> Result<()> {
    if !debian::is_root() {
        bail!(
            "the live tests load eBPF programs: run `sudo -E env \"PATH=$PATH\" cargo xtask test`"
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "the live tests need a kernel with BTF, and this one has no /sys/kernel/btf/vmlinux: \
             boot one built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are"
        );
    }
    Ok(())
}

fn mount_tracefs() -> Result<()> {
    let tracing = Path::new("/sys/kernel/tracing");
    if tracing.join("events").exists() {
        return Ok(());
    }
    command::output(
        Command::new("mount")
            .args(["-t", "tracefs", "tracefs"])
            .arg(tracing),
    )
    .map(drop)
    .context("the live tests need tracefs")
}

/// Builds the program as it is shipped; returns a remark on it.
pub fn release_build() -> Result<String> {
    command::output(workspace::cargo().args([
        "build",
        "--release",
        "--package=hotspan",
        "--locked",
        "--quiet",
    ]))?;
    let size = fs::metadata(binary())?.len();
    Ok(format!("{:.1} MB", size as f64 / 1e6))
}

/// Where [`release_build`] leaves it.
pub fn binary() -> PathBuf {
    workspace::target().join("release/hotspan")
}

/// The live tests, one at a time: each measures the whole machine.
fn live_tests(object: &Path, filter: &[String]) -> Result<Command> {
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "test",
            "--package=hotspan-tests",
            "--tests",
            "--locked",
            "--no-fail-fast",
        ])
        .args(["--", "--test-threads=1"])
        .args(filter)
        .env("HOTSPAN_BIN", binary())
        .env("HOTSPAN_BPF_OBJECT", object)
        .env("HOTSPAN_CACHE", workspace::cache()?);
    Ok(cargo)
}
