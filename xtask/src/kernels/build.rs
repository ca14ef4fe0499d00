//! The programs that run in a machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cross::{Cross, TARGET};
use crate::build_ebpf::Arch;
use crate::{command, go, test, workspace};

/// Workloads of `tests/workloads/c` that the checks start.
const WORKLOADS: [&str; 4] = ["recursion", "shares", "short_lived", "syscalls"];
/// The same for `tests/workloads/go`.
const GO_WORKLOAD: &str = "goroutines";

/// What goes into a machine.
pub struct Programs {
    /// The first process.
    pub smoke: PathBuf,
    /// What is tested.
    pub hotspan: PathBuf,
    /// What is recorded.
    pub workloads: Vec<PathBuf>,
    /// Where the loader and the libraries of all these are.
    pub library_folders: Vec<PathBuf>,
}

/// Builds everything for a machine. `folder` is for what is built here.
pub fn programs(arch: Arch, folder: &Path) -> Result<Programs> {
    if arch == Arch::host() {
        return native(folder);
    }
    ensure!(
        arch == Arch::Aarch64,
        "programs for {} are built on such a machine only",
        arch.name()
    );
    cross(folder)
}

/// With the compilers that are here; hotspan itself unless `$HOTSPAN_BIN` names one.
fn native(folder: &Path) -> Result<Programs> {
    let hotspan = match env::var_os("HOTSPAN_BIN") {
        Some(path) => path.into(),
        None => {
            test::release_build()?;
            test::binary()
        }
    };
    command::output(workspace::cargo().args(SMOKE_BUILD))?;
    Ok(Programs {
        smoke: workspace::target().join("debug/kernel_smoke"),
        hotspan,
        workloads: workloads(
            Arch::host(),
            Path::new("gcc"),
            &[],
            &folder.join("workloads"),
        )?,
        library_folders: native_library_folders(),
    })
}

/// With compilers that are fetched. Return addresses are signed, as current distributions do it.
fn cross(folder: &Path) -> Result<Programs> {
    let cross = Cross::find()?;
    let target = folder.join("target");
    let mut cargo = cross.cargo(&target);
    cargo
        // An emulated processor has no time for code that is not optimized.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .args(SMOKE_BUILD)
        .args(["--package=hotspan", "--bin=hotspan", "--target", TARGET]);
    command::output(&mut cargo)?;
    let built = target.join(TARGET).join("debug");
    Ok(Programs {
        smoke: built.join("kernel_smoke"),
        hotspan: built.join("hotspan"),
        workloads: workloads(
            Arch::Aarch64,
            &cross.cc(),
            &["-mbranch-protection=standard"],
            &folder.join("workloads"),
        )?,
        library_folders: vec![cross.library_folder()],
    })
}

/// How cargo builds the first process. It may be slow: most of the time others run.
const SMOKE_BUILD: [&str; 5] = [
    "build",
    "--package=hotspan-tests",
    "--bin=kernel_smoke",
    "--locked",
    "--quiet",
];

fn native_library_folders() -> Vec<PathBuf> {
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    ["/lib", "/usr/lib"]
        .map(|lib| Path::new(lib).join(&triplet))
        .into()
}

/// Compiles the workloads into `folder`, those in C without frame pointers.
fn workloads(arch: Arch, compiler: &Path, flags: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let sources = workspace::root().join("tests/workloads/c");
    let go = folder.join(GO_WORKLOAD);
    command::output(
        Command::new(go::find()?)
            .args(["build", "-o"])
            .arg(&go)
            .arg(workspace::root().join(format!("tests/workloads/go/{GO_WORKLOAD}.go")))
            .env("CGO_ENABLED", "0")
            .env("GOARCH", arch.debian())
            .env_remove("GOROOT"),
    )?;
    let in_c = WORKLOADS.iter().map(|name| {
        let product = folder.join(name);
        command::output(
            Command::new(compiler)
                .args(["-O2", "-g", "-fomit-frame-pointer"])
                .args(flags)
                .arg("-o")
                .arg(&product)
                .arg(sources.join(format!("{name}.c"))),
        )?;
        Ok(product)
    });
    in_c.chain([Ok(go)]).collect()
}
