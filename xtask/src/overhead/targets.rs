//! The programs whose stacks are judged: how each is built and started, and what its stacks are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::bench::{Bench, Load};
use super::stacks::Chain;
use crate::command;

/// A program that is judged.
pub struct Target {
    /// What it is.
    pub name: &'static str,
    /// Names of its threads' first functions.
    pub roots: &'static [&'static str],
    /// What the first functions call.
    pub callees: &'static [&'static str],
    /// What it knows of its own stacks.
    pub chain: Option<Chain>,
    source: Source,
    args: &'static [&'static str],
}

/// What a program is made of, and by what.
enum Source {
    /// Compiled by a command that gets the paths of the program and of the source.
    Compiled {
        file: &'static str,
        text: &'static str,
        compiler: &'static [&'static str],
    },
    /// Run by an interpreter.
    Script {
        file: &'static str,
        text: &'static str,
        interpreter: &'static str,
    },
}

macro_rules! compiled {
    ($file:literal, $($compiler:literal)+) => {
        Source::Compiled {
            file: $file,
            text: include_str!(concat!("programs/", $file)),
            compiler: &[$($compiler),+],
        }
    };
}

macro_rules! script {
    ($file:literal, $interpreter:literal) => {
        Source::Script {
            file: $file,
            text: include_str!(concat!("programs/", $file)),
            interpreter: $interpreter,
        }
    };
}

/// Threads of the C library: the first one, and all others. Their names in its debugging symbols,
/// which `libc6-dbg` has; the library itself names only `clone`.
pub const LIBC_ROOTS: &[&str] = &["_start", "__clone3", "clone3", "__clone", "clone"];
pub const LIBC_CALLEES: &[&str] = &[
    "__libc_start_main",
    "__libc_start_main_impl",
    "start_thread",
];

/// Threads of Go: goroutines, the first thread's start, and the stacks of the scheduler.
const GO_ROOTS: &[&str] = &[
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.mstart",
    "runtime.mstart.abi0",
    "runtime.rt0_go",
    "runtime.rt0_go.abi0",
];

const FUNCTIONS: &[&str] = &["first", "second", "third", "leaf"];

const fn functions(above: Option<usize>, functions: &'static [&'static str]) -> Option<Chain> {
    Some(Chain { above, functions })
}

const DEEP: &[&str] = &{
    let mut functions = ["descend"; 61];
    functions[60] = "leaf";
    functions
};

const fn c(name: &'static str, args: &'static [&'static str], chain: Option<Chain>) -> Target {
    Target {
        name,
        roots: LIBC_ROOTS,
        callees: LIBC_CALLEES,
        chain,
        source: compiled!("known.c", "gcc" "-O2" "-g" "-fomit-frame-pointer" "-o"),
        args,
    }
}

const fn managed(name: &'static str, source: Source) -> Target {
    Target {
        name,
        roots: LIBC_ROOTS,
        callees: LIBC_CALLEES,
        chain: None,
        source,
        args: &[],
    }
}

/// The one in Rust.
pub const RUST: Target = Target {
    chain: functions(None, FUNCTIONS),
    ..managed(
        "Rust",
        compiled!("known.rs", "rustc" "--edition=2024" "-O" "-g" "-o"),
    )
};

/// All of them. In C, two functions of the C library and `main` stand above the chain.
pub const TARGETS: [Target; 9] = [
    c("C, 8 frames", &["calls"], functions(Some(3), FUNCTIONS)),
    c(
        "C, 60 levels of recursion",
        &["deep"],
        functions(Some(3), DEEP),
    ),
    c(
        "C, syscall-heavy",
        &["read"],
        functions(
            Some(3),
            &[
                "first",
                "second",
                "third",
                "read|__read|__libc_read|__GI___libc_read",
            ],
        ),
    ),
    Target {
        chain: functions(None, FUNCTIONS),
        ..managed(
            "C++, a thread",
            compiled!("known.cpp", "g++" "-O2" "-g" "-fomit-frame-pointer" "-pthread" "-o"),
        )
    },
    RUST,
    Target {
        name: "Go, frameless leaf",
        roots: GO_ROOTS,
        callees: &["runtime.main", "runtime.mstart0"],
        // runtime.main and main.main.
        chain: functions(Some(2), FUNCTIONS),
        source: compiled!("known.go", "go" "build" "-o"),
        args: &[],
    },
    managed("Python", script!("steady.py", "/usr/bin/python3")),
    managed("Node", script!("steady.js", "node")),
    managed("Java", script!("Steady.java", "java")),
];

impl Target {
    /// Builds it, and starts it on the CPU for single workloads.
    pub fn start(&self, bench: &Bench) -> Result<Load> {
        bench.start(&mut bench.on_cpu(bench.cpu(), &self.build(bench)?))
    }

    /// Builds it; the command runs it.
    pub fn build(&self, bench: &Bench) -> Result<Command> {
        let mut program = match &self.source {
            Source::Compiled {
                file,
                text,
                compiler,
            } => {
                let (source, program) = (bench.file(file), bench.file(&file.replace('.', "_")));
                compile(compiler, &source, text, &program)?;
                Command::new(program)
            }
            Source::Script {
                file,
                text,
                interpreter,
            } => {
                let script = bench.file(file);
                fs::write(&script, text)?;
                let mut command = Command::new(interpreter);
                command.arg(script);
                command
            }
        };
        program.args(self.args);
        Ok(program)
    }
}

/// Compiles a program.
fn compile(compiler: &[&str], source: &Path, text: &str, program: &Path) -> Result<()> {
    fs::write(source, text)?;
    let mut command = Command::new(compiler[0]);
    command
        .args(&compiler[1..])
        .args([program, source])
        // Of an installed Go other than the first one on the PATH.
        .env_remove("GOROOT")
        .env_remove("GOFLAGS");
    command::output(&mut command).map(drop)
}
