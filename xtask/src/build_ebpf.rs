//! `cargo xtask build-ebpf`: compiles `ebpf/` and writes `ebpf/prebuilt`.
//!
//! In: the eBPF sources and a compiler with Rust's own sources. Out: an object file with BTF but
//! without DWARF, without a path of this machine, and the same to the byte wherever the clone is.

mod digest;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::{command, workspace};
use digest::Record;
use toolchain::Toolchain;

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// The machine whose registers the programs read; all of them without it.
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Only tell whether ebpf/prebuilt was built from the present sources.
    #[arg(long, conflicts_with_all = ["install", "output", "rustc"])]
    check: bool,
    /// Install what is missing with apt-get.
    #[arg(long)]
    install: bool,
    /// Write the object to this file, and leave ebpf/prebuilt alone; for this machine unless --arch
    /// names another.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Use this compiler.
    #[arg(long, value_name = "FILE")]
    rustc: Option<PathBuf>,
}

/// A machine that hotspan runs on. eBPF is the same everywhere, but `pt_regs` is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// The machine we run on.
    pub fn host() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    /// The file name of its object.
    pub fn object_name(self) -> &'static str {
        match self {
            Self::X86_64 => "hotspan.bpf.o",
            Self::Aarch64 => "hotspan-aarch64.bpf.o",
        }
    }

    /// What Debian calls it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What Rust calls it, and aya's `bpf_target_arch`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.check {
        println!("{}", check_prebuilt()?);
        return Ok(());
    }
    let toolchain = Toolchain::find(args.rustc.as_deref(), args.install)?;
    println!("building with {toolchain}");
    if let Some(output) = &args.output {
        build(&toolchain, args.arch.unwrap_or(Arch::host()), output)?;
        println!("wrote {}", output.display());
        return Ok(());
    }
    match args.arch {
        Some(arch) => write_prebuilt(&toolchain, arch),
        None => Arch::value_variants()
            .iter()
            .try_for_each(|&arch| write_prebuilt(&toolchain, arch)),
    }
}

fn write_prebuilt(toolchain: &Toolchain, arch: Arch) -> Result<()> {
    let folder = prebuilt();
    fs::create_dir_all(&folder)?;
    let object = folder.join(arch.object_name());
    build(toolchain, arch, &object)?;
    let record = Record {
        object: arch.object_name().to_owned(),
        sources_sha256: sources_digest(arch)?,
        object_sha256: digest::of_file(&object)?,
        toolchain: toolchain.versions(),
    };
    digest::write_record(&folder.join("DIGEST"), record)?;
    println!(
        "wrote {} ({} bytes) and its line in DIGEST",
        object.display(),
        fs::metadata(&object)?.len()
    );
    Ok(())
}

/// Builds fresh objects into `folder`, installing what is missing. Returns how they compare with the
/// committed ones.
pub fn build_fresh(folder: &Path) -> Result<String> {
    let toolchain = Toolchain::find(None, true)?;
    let records = digest::read_records(&prebuilt().join("DIGEST"))?;
    let mut remark = format!("{toolchain}: identical to the committed objects");
    for &arch in Arch::value_variants() {
        let object = folder.join(arch.object_name());
        build(&toolchain, arch, &object)?;
        let committed = records
            .iter()
            .find(|record| record.object == arch.object_name())
            .with_context(|| format!("no object is committed for {}", arch.name()))?;
        if committed.object_sha256 == digest::of_file(&object)? {
            continue;
        }
        if committed.toolchain == toolchain.versions() {
            bail!(
                "{} is not what its sources give, though {toolchain} built both: run `cargo xtask build-ebpf`",
                committed.object
            );
        }
        remark = format!("{toolchain}; committed objects: {}", committed.toolchain);
    }
    Ok(remark)
}

/// Whether the committed objects were built from the present sources; the error says what to do.
pub fn check_prebuilt() -> Result<String> {
    let folder = prebuilt();
    let records = digest::read_records(&folder.join("DIGEST"))?;
    for arch in Arch::value_variants() {
        let Some(record) = records
            .iter()
            .find(|record| record.object == arch.object_name())
        else {
            bail!(
                "ebpf/prebuilt holds no object for {}: run `cargo xtask build-ebpf` and commit what it writes",
                arch.name()
            );
        };
        let fix = format!("run `cargo xtask build-ebpf --arch {}`", arch.name());
        if sources_digest(*arch)? != record.sources_sha256 {
            bail!(
                "ebpf/prebuilt/{} is stale: the eBPF sources, their dependencies or the build flags \
                 changed since it was built; {fix} and commit what it writes",
                record.object
            );
        }
        let object = digest::of_file(&folder.join(&record.object)).context(fix.clone())?;
        if object != record.object_sha256 {
            bail!(
                "ebpf/prebuilt/{} is not the file that DIGEST describes; {fix} and commit what it writes",
                record.object
            );
        }
    }
    let names: Vec<&str> = records
        .iter()
        .map(|record| record.object.as_str())
        .collect();
    Ok(format!("{} up to date", names.join(", ")))
}

fn prebuilt() -> PathBuf {
    workspace::root().join("ebpf/prebuilt")
}

fn sources_digest(arch: Arch) -> Result<String> {
    let flags: Vec<String> = rust_flags(arch).into_iter().chain(cargo_args()).collect();
    digest::of_sources(&workspace::root(), &workspace::metadata()?, &flags)
}

/// Flags for every crate of the kernel side.
fn rust_flags(arch: Arch) -> Vec<String> {
    vec![
        format!("--cfg=bpf_target_arch=\"{}\"", arch.name()),
        // BTF is made from DWARF: without it function records are missing and nothing loads.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ]
}

/// Arguments of `cargo build`. The workspace's release profile is for programs of user space, so
/// each of its settings is replaced.
fn cargo_args() -> impl Iterator<Item = String> {
    let profile = [
        "opt-level=3",
        "lto=true",
        "codegen-units=1",
        "panic=\"abort\"",
        "debug=2",
        "strip=\"none\"",
        "trim-paths=\"all\"",
    ];
    [
        "build",
        "--package=hotspan-ebpf",
        "--bin=hotspan-ebpf",
        "--release",
        "--target=bpfel-unknown-none",
        "-Zbuild-std=core",
        "-Ztrim-paths",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain(profile.map(|setting| format!("--config=profile.release.{setting}")))
}

fn build(toolchain: &Toolchain, arch: Arch, output: &Path) -> Result<()> {
    // One for each: they differ in flags, for which `core` is built anew, too.
    let target_dir = workspace::root().join("target/ebpf").join(arch.name());
    let mut cargo = toolchain.cargo()?;
    cargo
        .args(cargo_args())
        .args(["--locked", "--quiet", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(arch).join("\x1f"));
    command::visible(&mut cargo).context("the kernel side does not build")?;
    let linked = target_dir.join("bpfel-unknown-none/release/hotspan-ebpf");
    let parent = output.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    command::output(
        toolchain
            .objcopy()?
            .args(["--strip-debug"])
            .arg(&linked)
            .arg(output),
    )?;
    Ok(())
}
