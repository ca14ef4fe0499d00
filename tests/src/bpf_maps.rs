//! The maps of a running hotspan, through bpftool.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::output;

/// How many entries the map of this name has in a process that holds it.
///
/// # Errors
/// When there is no such map, or bpftool is missing.
pub fn entries(pid: u32, name: &str) -> Result<usize> {
    let folder = format!("/proc/{pid}/fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else {
            continue;
        };
        let id = id.trim();
        let map: Value = bpftool(&["-j", "map", "show", "id", id])?;
        if map["name"] == name {
            let dump = bpftool(&["-j", "map", "dump", "id", id])?;
            return Ok(dump.as_array().context("no dump")?.len());
        }
    }
    anyhow::bail!("process {pid} holds no map {name}")
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let text = output(Command::new("bpftool").args(arguments))?;
    Ok(serde_json::from_str(&text)?)
}
