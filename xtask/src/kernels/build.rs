//! The programs that run in a machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, test, workspace};

/// Workloads of `tests/workloads/c` that the checks start.
const WORKLOADS: [&str; 4] = ["recursion", "shares", "short_lived", "syscalls"];

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

/// Builds everything for the machine we run on; hotspan itself unless `$HOTSPAN_BIN` names one.
pub fn native(folder: &Path) -> Result<Programs> {
    let hotspan = match env::var_os("HOTSPAN_BIN") {
        Some(path) => path.into(),
        None => {
            test::release_build()?;
            test::binary()
        }
    };
    command::output(workspace::cargo().args([
        "build",
        "--package=hotspan-tests",
        "--bin=kernel_smoke",
        "--locked",
        "--quiet",
    ]))?;
    Ok(Programs {
        smoke: workspace::target().join("debug/kernel_smoke"),
        hotspan,
        workloads: workloads(Path::new("gcc"), &[], folder)?,
        library_folders: native_library_folders(),
    })
}

fn native_library_folders() -> Vec<PathBuf> {
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    ["/lib", "/usr/lib"]
        .map(|lib| Path::new(lib).join(&triplet))
        .into()
}

/// Compiles the workloads into `folder`, without frame pointers.
fn workloads(compiler: &Path, flags: &[&str], folder: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let sources = workspace::root().join("tests/workloads/c");
    WORKLOADS
        .iter()
        .map(|name| {
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
        })
        .collect()
}
