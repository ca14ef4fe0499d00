//! Languages with a run time of their own: stacks go from the thread's first function to the leaf,
//! and each is one that the program can have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::chains::{Chains, check_printed, printed};
use hotspan_tests::program::{Recipe, script};
use hotspan_tests::shares::Recorded;
use hotspan_tests::stacks::{Stacks, is_like};
use hotspan_tests::workload::{Workload, on_one_cpu};

const OPTIONS: &str = "-F 999";
const WORK: Duration = Duration::from_millis(2500);
/// Chains that are checked of each language.
const SEEDS: [&str; 2] = ["3", "11"];

/// The way of a thread to `main`, in Debian's C library with its symbols.
const START: &str = "_start > __libc_start_main… > __libc_start_call_main > main";

fn built(compiler: &str, source: &str, product: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler,
        flags,
        source,
        product,
        library: None,
    }
    .make()
}

/// Records a command that runs a workload.
fn record(command: &mut Command) -> Result<Recorded> {
    let workload = Workload::start_command(command)?;
    let recorded = Recorded::of(&workload, OPTIONS, WORK)?;
    workload.stop()?;
    Ok(recorded)
}

/// Records a program that prints its chains, which follow `start`, and checks that it has no others
/// but those of `between`.
fn check_seeded(program: &Path, start: &str, between: &str) -> Result<()> {
    let between = Chains::parse(between)?;
    for seed in SEEDS {
        let mut command = on_one_cpu();
        command.arg(program).args(["120", seed]);
        let workload = Workload::start_command(&mut command)?;
        let chains = printed(start, workload.introduction().iter().map(String::as_str))?;
        let stacks = Recorded::of(&workload, OPTIONS, WORK)?.stacks;
        workload.stop()?;
        check_printed(&chains, &between, &stacks)
            .with_context(|| format!("{}, seed {seed}", program.display()))?;
    }
    Ok(())
}

#[test]
fn seeded_chains_in_cpp() -> Result<()> {
    let start = format!("{START} > (anonymous namespace)::run(chain const*, unsigned long)");
    let between = format!(
        "{START} > clock_gettime… | workload_goes_on() | thread_cpu_ns() | workload_clock(int) > *"
    );
    for flags in [&["-g", "-O2", "-Wl,-z,now"][..], &["-g", "-O3", "-fno-plt"]] {
        let program = built("g++", "cpp/seeded.cpp", "seeded_cpp", flags)?;
        check_seeded(&program, &start, &between)?;
    }
    Ok(())
}

const RUST_START: &str = "_start > __libc_start_main… > __libc_start_call_main > main > \
                          std::rt::lang_start_internal > std::rt::lang_start::{{closure}} > \
                          std::sys::backtrace::__rust_begin_short_backtrace > seeded::main";

#[test]
fn seeded_chains_in_rust() -> Result<()> {
    let start = format!("{RUST_START} > seeded::run");
    let between = format!("{RUST_START} > * > *");
    for flags in [
        &["--edition=2024", "-O", "-g", "-Cpanic=abort"][..],
        &["--edition=2024", "-O", "-g", "-Cpanic=unwind"],
    ] {
        let program = built("rustc", "rust/seeded.rs", "seeded_rust", flags)?;
        check_seeded(&program, &start, &between)?;
    }
    Ok(())
}

/// Checks that all stacks but one in a thousand begin at a first function of a thread.
fn check_rooted(stacks: &Stacks, roots: &[&str]) -> Result<()> {
    let total = stacks.total();
    ensure!(total > 1000, "{total} samples are too few to judge");
    let other = stacks.filter(|stack| !roots.iter().any(|root| is_like(&stack[1], root)));
    ensure!(
        other.total() <= total / 1000,
        "{} of {total} stacks begin elsewhere:{}",
        other.total(),
        other.commonest()
    );
    Ok(())
}

fn check_python(interpreter: &str) -> Result<()> {
    let mut python = on_one_cpu();
    let stacks = record(python.arg(interpreter).arg(script("python/shares.py")))?.stacks;
    check_rooted(&stacks, &["_start"])?;
    let chains = Chains::parse(
        "_start > __libc_start_main… > __libc_start_call_main > Py_BytesMain | main > Py_RunMain | \
         Py_BytesMain | pymain_… > *",
    )?;
    chains.check(&stacks, 0, &["_PyEval_EvalFrameDefault"])
}

#[test]
fn python_of_the_distribution() -> Result<()> {
    check_python("/usr/bin/python3")
}

fn java(options: &[&str]) -> Result<Stacks> {
    let mut java = on_one_cpu();
    java.arg("java")
        .args(options)
        .arg(script("java/Shares.java"));
    Ok(record(&mut java)?.stacks)
}

/// The main thread of Java, down to the first frames of the interpreter.
const JAVA: [&str; 5] = [
    "__clone3",
    "start_thread",
    "ThreadJavaMain",
    "JavaMain",
    "jni_CallStaticVoidMethod",
];

fn check_java(options: &[&str]) -> Result<()> {
    let stacks = java(options)?;
    check_rooted(&stacks, &["__clone3", "_start"])?;
    let main = stacks.with_chain(&JAVA);
    ensure!(10 * main > 8 * stacks.total(), "{}", stacks.commonest());
    Ok(())
}

#[test]
fn java_that_interprets() -> Result<()> {
    check_java(&["-Xint"])
}

#[test]
fn java_that_keeps_frame_pointers() -> Result<()> {
    check_java(&["-XX:+PreserveFramePointer"])
}

/// Compiled code uses the frame pointer for something else. A stack through it begins where it must,
/// or says that it is cut.
#[test]
fn java_as_it_comes() -> Result<()> {
    check_rooted(&java(&[])?, &["__clone3", "_start", "[no unwind table]"])
}
