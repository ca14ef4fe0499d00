//! Unwind tables while they live: where they come from, who shares them, and what happens when there
//! is no room.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place;
use hotspan_tests::process;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Finished, Hotspan, Threads, read_folded};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;

const WORK: Duration = Duration::from_millis(1500);

/// The stacks that begin with the first function of their process.
fn from_start(stacks: &Stacks) -> Stacks {
    stacks.filter(|stack| stack.get(1).is_some_and(|root| root == "_start"))
}

/// A recording of a process that finds all its tables made, so that they are there for its first
/// sample: on a busy machine that can take longer than a recording waits for them.
fn with_tables(pid: u32, options: &str) -> Result<Hotspan> {
    let cache = program::cache()?.join("tables");
    let record = |more: &str| -> Result<Hotspan> {
        let arguments = format!("-p {pid} {options} {more} --unwind-cache");
        Ok(Hotspan::record()?.args(&arguments).arg(&cache))
    };
    let folder = place::folder()?;
    let first = record("-d 2s")?.output(folder.path().join("out.folded"));
    first.run()?.succeeded()?;
    record("")
}

/// A library that keeps no frame pointers, and whose unwind information was stripped off: it is in
/// `plugin.debug`, compressed.
fn stripped_library(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("plugin.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/c/plugin.c");
    let mut compiler = Command::new("gcc");
    compiler
        .args(["-O2", "-g", "-shared", "-fPIC", "-fomit-frame-pointer"])
        .args([
            "-fno-asynchronous-unwind-tables",
            "-fno-unwind-tables",
            "-o",
        ])
        .arg(&library)
        .arg(source);
    process::output(&mut compiler)?;
    let objcopy = |arguments: &[&str]| {
        process::output(Command::new("objcopy").args(arguments).current_dir(folder))
    };
    objcopy(&[
        "--only-keep-debug",
        "--compress-debug-sections=zlib",
        "plugin.so",
        "plugin.debug",
    ])?;
    objcopy(&[
        "--strip-debug",
        "--add-gnu-debuglink=plugin.debug",
        "plugin.so",
    ])?;
    Ok(library)
}

/// Records a program that loads the library, in a mount namespace of its own: there are the library
/// and `others` in `place`, where nobody outside sees them.
fn record_hidden(library: &Path, others: &[&str], place: &Path) -> Result<Stacks> {
    const SCRIPT: &str = "mount -t tmpfs hotspan-test \"$1\" && cd \"$2\" && shift 2 && \
                          cp \"$@\" \"$OLDPWD\" 2>/dev/null; exec \"$0\" 120 \"$PLACE/plugin.so\"";
    let program = program::c("dlopen", Build::NoFramePointers)?;
    let folder = library.parent().context("in a folder")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT])
        .args([&program, place, folder])
        .arg("plugin.so")
        .args(others)
        .current_dir(place)
        .env("PLACE", place);
    let workload = Workload::start_command(&mut command)?;
    process::send(workload.pid(), Signal::USR1)?;
    workload.wait_for_line("loaded")?;
    ensure!(
        !place.join("plugin.so").exists(),
        "it can be seen from here"
    );
    let file = folder.join("out.folded");
    let mut running = with_tables(workload.pid(), "-F 499")?
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    workload.wait_for_work(WORK)?;
    running.signal(Signal::INT)?;
    running.finish()?.succeeded()?;
    read_folded(&file)
}

#[test]
fn debug_file_of_a_library_is_found_where_its_process_has_it() -> Result<()> {
    let (folder, place) = (place::folder()?, place::folder()?);
    let library = stripped_library(folder.path())?;
    let chain = ["main", "plugin_entry", "plugin_work"];
    let stacks = record_hidden(&library, &["plugin.debug"], place.path())?;
    let whole = from_start(&stacks).with_chain(&chain);
    ensure!(
        whole as f64 >= 0.99 * stacks.total() as f64 && whole > 300,
        "{whole} of {}: {}",
        stacks.total(),
        stacks.commonest()
    );
    Ok(())
}

/// Records a program with a large table.
fn record_many_rows(options: &str) -> Result<(Finished, Stacks)> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let workload = Workload::start(&program::c("many_rows", Build::NoFramePointers)?)?;
    let mut running = with_tables(workload.pid(), &format!("--json {options}"))?
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    workload.wait_for_work(WORK)?;
    running.signal(Signal::INT)?;
    Ok((running.finish()?.succeeded()?, read_folded(&file)?))
}

#[test]
fn full_memory_is_a_counter_and_a_frame() -> Result<()> {
    let (run, stacks) = record_many_rows("--unwind-memory 1M")?;
    let mut summary = run.summary()?;
    let full = summary.samples.lost.remove("unwind_tables_full");
    ensure!(full == Some(1), "{full:?} tables found no room");
    // Not a sample is missing.
    summary.check_complete(Threads::OnOneCpu)?;
    ensure!(summary.samples.rooted == 0, "{}", stacks.commonest());
    let cut = stacks.with("[no unwind table]");
    ensure!(cut == stacks.total(), "{}", stacks.commonest());
    // The leaf is there all the same.
    ensure!(
        stacks.with("work") as f64 >= 0.97 * cut as f64,
        "{}",
        stacks.commonest()
    );

    let (run, stacks) = record_many_rows("--unwind-memory 2M")?;
    let summary = run.summary()?;
    summary.check_complete(Threads::OnOneCpu)?;
    let whole = from_start(&stacks).with_chain(&["main", "worker", "work"]);
    ensure!(
        whole as f64 >= 0.98 * stacks.total() as f64,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

/// How the tables of a file came about, by what hotspan logs.
fn origin<'a>(run: &'a Finished, path: &Path) -> Vec<&'a str> {
    let path = format!("path={} ", path.display());
    let lines = run.stderr.lines().filter(|line| line.contains(&path));
    lines
        .filter_map(|line| line.split_once("how=\"")?.1.split('"').next())
        .collect()
}

#[test]
fn kept_tables_are_read_and_damaged_ones_made_anew() -> Result<()> {
    let (folder, cache) = (place::folder()?, place::folder()?);
    let program = folder.path().join("program");
    fs::copy(program::c("shares", Build::NoFramePointers)?, &program)?;
    fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o700))?;
    let record = || -> Result<Finished> {
        let workload = Workload::start(&program)?;
        let run = Hotspan::record()?
            .args(&format!(
                "-vv -p {} --json -d 1s --unwind-cache",
                workload.pid()
            ))
            .arg(cache.path())
            .run()?
            .succeeded()?;
        run.summary()?.check_rooted_and_named()?;
        Ok(run)
    };
    ensure!(origin(&record()?, &program) == ["made"]);
    ensure!(origin(&record()?, &program) == ["read"]);
    for entry in fs::read_dir(cache.path())? {
        let path = entry?.path();
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes)?;
    }
    ensure!(origin(&record()?, &program) == ["made"]);
    ensure!(origin(&record()?, &program) == ["read"]);
    Ok(())
}

#[test]
fn copies_of_a_program_share_their_tables() -> Result<()> {
    let folder = place::folder()?;
    let copy = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        fs::copy(program::c("shares", Build::NoFramePointers)?, &path)?;
        Ok(path)
    };
    let (first, second) = (copy("first")?, copy("second")?);
    let workloads = [Workload::start(&first)?, Workload::start(&second)?];
    let file = folder.path().join("out.folded");
    let pids = workloads.each_ref().map(Workload::pid);
    let run = Hotspan::record()?
        .args(&format!("-vv -p {} -p {} --json -d 2s", pids[0], pids[1]))
        .output(&file)
        .run()?
        .succeeded()?;
    let mut origins = [origin(&run, &first), origin(&run, &second)].concat();
    origins.sort_unstable();
    ensure!(origins == ["made", "shared"], "{origins:?}");
    run.summary()?.check_rooted_and_named()?;
    let stacks = read_folded(&file)?;
    for name in ["first", "second"] {
        let stacks = stacks.of_process(name);
        let heavy = from_start(&stacks).with_chain(&["main", "run", "heavy_caller", "heavy"]);
        ensure!(heavy > 0, "{name}: {}", stacks.commonest());
    }
    Ok(())
}

#[test]
fn library_that_is_closed_is_noticed() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let library = program::c_library("plugin")?;
    let mut command = Command::new(program::c("dlopen", Build::NoFramePointers)?);
    let workload = Workload::start_command(command.arg("120").arg(library))?;
    let mut running = Hotspan::record()?
        .args(&format!("-vv -p {}", workload.pid()))
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    for (signal, line) in [(Signal::USR1, "loaded"), (Signal::USR2, "closed")] {
        process::send(workload.pid(), signal)?;
        workload.wait_for_line(line)?;
        workload.wait_for_work(Duration::from_millis(300))?;
    }
    // The second look comes three seconds after the library was loaded.
    std::thread::sleep(Duration::from_secs(4));
    running.signal(Signal::INT)?;
    let run = running.finish()?.succeeded()?;
    let noticed = run.stderr.lines().filter(|line| {
        line.contains("the mappings of a process were others") && line.contains("pid=")
    });
    ensure!(noticed.count() == 1, "{}", run.stderr);
    // What was sampled in it has its names all the same.
    let stacks = read_folded(&file)?;
    let inside = from_start(&stacks).with_chain(&["main", "plugin_entry", "plugin_work"]);
    ensure!(inside > 10, "{}", stacks.commonest());
    Ok(())
}
