//! Programs whose files are not where they were, or never were where hotspan can see them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hotspan_tests::place;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Hotspan, Threads, read_folded};
use hotspan_tests::shares::{Recorded, WORK};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;

const CHAINS: [&[&str]; 2] = [
    &["main", "run", "heavy_caller", "heavy"],
    &["main", "run", "light_caller", "light"],
];

/// Records a running `shares`, and checks that everything has its name.
fn check_names(workload: Workload) -> Result<()> {
    let recorded = Recorded::of(&workload, "", WORK)?;
    // A workload that was started by others may move between CPUs.
    recorded.summary.check_complete(Threads::Anywhere(1))?;
    recorded.summary.check_rooted_and_named()?;
    check_chains(&recorded.stacks)?;
    let clock = workload.stop()?.share("heavy")?;
    recorded.check_share("heavy", clock, "its clock", Threads::Anywhere(1))
}

fn check_chains(stacks: &Stacks) -> Result<()> {
    let whole: u64 = CHAINS.iter().map(|chain| stacks.with_chain(chain)).sum();
    ensure!(
        whole as f64 > 0.97 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

fn copy_of_shares(folder: &Path) -> Result<std::path::PathBuf> {
    let copy = folder.join("copy");
    fs::copy(program::c("shares", Build::FramePointers)?, &copy)?;
    Ok(copy)
}

#[test]
fn deleted_program() -> Result<()> {
    let folder = place::folder()?;
    let copy = copy_of_shares(folder.path())?;
    let workload = Workload::start(&copy)?;
    fs::remove_file(copy)?;
    check_names(workload)
}

#[test]
fn replaced_program() -> Result<()> {
    let folder = place::folder()?;
    let copy = copy_of_shares(folder.path())?;
    let workload = Workload::start(&copy)?;
    // Other code at the same addresses: names from it would be wrong, not missing.
    let other = folder.path().join("other");
    fs::copy(program::c("recursion", Build::FramePointers)?, &other)?;
    fs::rename(other, copy)?;
    check_names(workload)
}

#[test]
fn program_in_namespaces_of_its_own() -> Result<()> {
    let mount_point = place::folder()?;
    let program = program::c("shares", Build::FramePointers)?;
    let workload = Workload::start_in_namespaces(&program, mount_point.path())?;
    ensure!(
        !mount_point.path().join("hidden").exists(),
        "the program can be seen from here"
    );
    check_names(workload)
}

#[test]
fn jit_code_in_namespaces_of_its_own() -> Result<()> {
    // Its perf map is in a /tmp of its own, and named after its pid inside.
    let script = "exec 3<\"$0\" && mount -t tmpfs hotspan-test /tmp && cat <&3 >/tmp/shares.js && \
                  exec node --perf-basic-prof /tmp/shares.js";
    let mut command = Command::new("unshare");
    command
        .args([
            "--pid",
            "--mount",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ])
        .arg(program::script("node/shares.js"));
    let unshare = Workload::start_command(&mut command)?;
    let inside = hotspan_tests::process::children(unshare.pid())?;
    ensure!(inside.len() == 1, "{inside:?}");
    ensure!(
        !Path::new("/tmp/perf-1.map").exists(),
        "a perf map is in the way"
    );
    let run = Hotspan::record()?
        .args(&format!("-p {} -d 2s -o -", inside[0]))
        .run()?
        .succeeded()?;
    let stacks = Stacks::parse_folded(&run.stdout)?;
    ensure!(stacks.total() > 0, "no samples");
    let named = stacks.with("JS:*heavyWork …") + stacks.with("JS:*lightWork …");
    ensure!(
        named as f64 > 0.9 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn library_that_is_loaded_while_recording() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let library = program::c_library("plugin")?;
    let mut command = Command::new(program::c("dlopen", Build::FramePointers)?);
    let workload = Workload::start_command(command.arg("120").arg(library))?;
    let mut running = Hotspan::record()?
        .args(&format!("-p {} --json", workload.pid()))
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    workload.wait_for_work(Duration::from_millis(500))?;
    hotspan_tests::process::send(workload.pid(), Signal::USR1)?;
    workload.wait_for_line("loaded")?;
    workload.wait_for_work(Duration::from_millis(1500))?;
    running.signal(Signal::INT)?;
    let run = running.finish()?.succeeded()?;
    run.summary()?.check_rooted_and_named()?;
    let stacks = read_folded(&file)?;
    let before = stacks.with_chain(&["main", "before_loading"]);
    let after = stacks.with_chain(&["main", "plugin_entry", "plugin_work"]);
    ensure!(
        before > 20 && after > 100,
        "{before} before, {after} after: {}",
        stacks.commonest()
    );
    ensure!(
        (before + after) as f64 > 0.95 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn program_that_is_gone_before_the_end() -> Result<()> {
    let folder = place::folder()?;
    let copy = copy_of_shares(folder.path())?;
    let file = folder.path().join("out.folded");
    let workload = Workload::start(&copy)?;
    let mut running = Hotspan::record()?
        .args("-a --comm ^copy$ -F 199")
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    workload.wait_for_work(Duration::from_millis(700))?;
    workload.stop()?;
    fs::remove_file(copy)?;
    // Only now are names looked up.
    running.signal(Signal::INT)?;
    running.finish()?.succeeded()?;
    let stacks = read_folded(&file)?;
    check_chains(&stacks)
}
