//! Python's protobuf as a reader that shares nothing with hotspan.

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
    let text = process::output(Command::new(interpreter()?).arg(script).arg(path))?;
    serde_json::from_str(&text).context("what Python printed")
}

/// A Python with the packages, made once.
fn interpreter() -> Result<PathBuf> {
    let folder = cache()?.join("python-opentelemetry-proto-1.45.2");
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
    process::output(
        Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(PACKAGES),
    )?;
    fs::write(is_ready, "")?;
    Ok(python)
}
