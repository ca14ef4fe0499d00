//! CPUs that go and come again while hotspan looks at them.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Hotspan, read_folded};
use hotspan_tests::workload::Workload;
use serde_json::Value;

/// The last CPU, which workloads run on. It is online again when this is dropped.
struct Cpu(String);

impl Cpu {
    fn last() -> Result<Self> {
        let text = fs::read_to_string("/sys/devices/system/cpu/present")?;
        let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
        let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
        ensure!(
            fs::exists(&switch)?,
            "{switch} is missing: this needs a machine with two CPUs, of which one can be taken offline"
        );
        Ok(Self(switch))
    }

    fn set(&self, state: &str) -> Result<()> {
        fs::write(&self.0, state).with_context(|| format!("cannot write {}", self.0))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = self.set("1");
    }
}

#[test]
fn a_cpu_that_comes_back_is_sampled_again() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let cpu = Cpu::last()?;
    let mut recording = Hotspan::record()?
        .args("-a -d 5s --json")
        .output(&file)
        .start()?;
    recording.wait_for_capture()?;
    cpu.set("0")?;
    thread::sleep(Duration::from_millis(700));
    cpu.set("1")?;
    thread::sleep(Duration::from_millis(700));
    // It stays on the CPU that was away.
    let workload = Workload::start(&program::c("shares", Build::NoFramePointers)?)?;
    let run = recording.finish()?.succeeded()?;
    workload.stop()?;
    let stacks = read_folded(&file)?.of_process("shares");
    // Two seconds are left at least, of which it works all the time.
    ensure!(
        stacks.total() > 100,
        "{} samples: {}",
        stacks.total(),
        run.stderr
    );
    Ok(())
}

#[test]
fn numbers_of_a_cpu_that_goes_make_sense() -> Result<()> {
    let cpu = Cpu::last()?;
    let watch = Hotspan::verb("use")?
        .args("--json --count 8 --interval 300ms")
        .start()?;
    for state in ["0", "1", "0", "1"] {
        thread::sleep(Duration::from_millis(400));
        cpu.set(state)?;
    }
    let run = watch.finish()?.succeeded()?;
    let reports: Vec<Value> = run
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(reports.len() == 8, "{} reports", reports.len());
    for report in &reports {
        for check in report["resources"].as_array().context("no resources")? {
            for key in ["utilization", "saturation", "errors"] {
                let value = check[key]["value"].as_f64().unwrap_or(0.0);
                let is_ratio = check[key]["unit"] == "1";
                ensure!(value >= 0.0 && (!is_ratio || value <= 1.0), "{check}");
            }
        }
    }
    Ok(())
}
