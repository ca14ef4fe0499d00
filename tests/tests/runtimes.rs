//! Languages with a run time of their own: stacks go from the thread's first function to the leaf,
//! and each is one that the program can have.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::chains::{Chains, check_printed, printed};
use hotspan_tests::place;
use hotspan_tests::program::{self, Recipe, script};
use hotspan_tests::python;
use hotspan_tests::recorder::{Hotspan, read_folded};
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

fn stacks_of(program: &Path) -> Result<Stacks> {
    Ok(record(on_one_cpu().arg(program))?.stacks)
}

/// Records a program that prints its chains, which follow `start`, and checks that it has no others
/// but those of `between`, among the stacks that `select` leaves.
fn check_seeded(
    program: &Path,
    start: &str,
    between: &str,
    select: impl Fn(Stacks) -> Result<Stacks>,
) -> Result<()> {
    let between = Chains::parse(between)?;
    for seed in SEEDS {
        let mut command = on_one_cpu();
        command.arg(program).args(["120", seed]);
        let workload = Workload::start_command(&mut command)?;
        let chains = printed(start, workload.introduction().iter().map(String::as_str))?;
        let stacks = Recorded::of(&workload, OPTIONS, WORK)?.stacks;
        workload.stop()?;
        check_printed(&chains, &between, &select(stacks)?)
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
        check_seeded(&program, &start, &between, Ok)?;
    }
    Ok(())
}

/// The C++ runtime puts the place where a frame goes on into its own return address, so there are
/// moments at which a handler seems to have called it. What called the catcher is not in doubt, but for
/// the few instructions in which the runtime's frame makes way for the handler's.
#[test]
fn exceptions_in_cpp() -> Result<()> {
    let name =
        |function| format!("(anonymous namespace)::{function}(unsigned long, unsigned long*)");
    let [catcher, outer, inner] = ["catcher", "outer", "inner"].map(name);
    let thrower = "(anonymous namespace)::thrower(unsigned long)";
    let paths = format!(
        "{START} > {catcher} | {catcher} [clone .cold] > *
         main > clock_gettime… | workload_goes_on() | thread_cpu_ns() | workload_clock(int) > *"
    );
    for flags in [&["-g", "-O2", "-Wl,-z,now"][..], &["-g", "-O2", "-static"]] {
        let program = built("g++", "cpp/exceptions.cpp", "exceptions", flags)?;
        let stacks = stacks_of(&program)?;
        Chains::parse(&paths)?.check(&stacks, 8, &[thrower, "_Unwind_Resume"])?;
        let thrown = stacks.with_chain(&[&catcher, &outer, &inner, thrower]);
        ensure!(3 * thrown > stacks.total(), "{}", stacks.commonest());
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
        check_seeded(&program, &start, &between, Ok)?;
    }
    Ok(())
}

/// Go's scheduler works on a thread's own stack, which begins with the thread. All but a few samples are of
/// goroutines.
fn of_goroutines(stacks: &Stacks, thread_roots: &[&str]) -> Result<Stacks> {
    let is_of_thread = |stack: &[String]| thread_roots.iter().any(|root| is_like(&stack[1], root));
    let of_goroutines = stacks.filter(|stack| !is_of_thread(stack));
    ensure!(
        100 * of_goroutines.total() > 97 * stacks.total(),
        "{} of {} are of goroutines:{}",
        of_goroutines.total(),
        stacks.total(),
        stacks.commonest()
    );
    Ok(of_goroutines)
}

const GO_START: &str = "runtime.goexit… > main.main.… > main.work > main.run";
const GO_BETWEEN: &str = "runtime.goexit… > main.main.… > main.work > time.… | main.threadCPU | \
                          runtime.… | sync/… | main.leaf > *";

fn check_seeded_go(go: &str, product: &str, flags: &[&str]) -> Result<()> {
    let program = built(go, "go/seeded.go", product, &[&["build"], flags].concat())?;
    check_seeded(&program, GO_START, GO_BETWEEN, |stacks| {
        of_goroutines(&stacks, &["runtime.mstart…"])
    })
}

#[test]
fn seeded_chains_in_go() -> Result<()> {
    check_seeded_go("go", "seeded_go", &[])
}

#[test]
fn seeded_chains_in_go_without_symbols() -> Result<()> {
    check_seeded_go("go", "seeded_go_s", &["-ldflags=-s -w"])
}

#[test]
fn seeded_chains_in_go_at_a_random_address() -> Result<()> {
    check_seeded_go("go", "seeded_go_pie", &["-buildmode=pie"])
}

/// Goroutines end at `runtime.goexit`; what the scheduler does on a stack of its own begins with the
/// thread, or with the goroutine that it was called from.
fn check_goroutines(go: &str) -> Result<()> {
    let program = built(go, "go/goroutines.go", "goroutines", &["build"])?;
    let stacks = record(&mut Command::new(program))?.stacks;
    let total = stacks.total();
    ensure!(total > 1000, "{total} samples");
    let roots = [
        "runtime.goexit…",
        "runtime.mstart…",
        "runtime.clone…",
        "_rt0_amd64_linux",
    ];
    let rooted = stacks.filter(|stack| roots.iter().any(|root| is_like(&stack[1], root)));
    ensure!(
        1000 * rooted.total() >= 999 * total,
        "{} of {total} are rooted; others:{}",
        rooted.total(),
        stacks
            .filter(|stack| roots.iter().all(|root| !is_like(&stack[1], root)))
            .commonest()
    );
    for chain in [
        &[
            "runtime.goexit…",
            "main.main.func…",
            "main.computing",
            "main.compute",
            "main.leaf",
        ][..],
        &["main.main.func…", "main.allocating", "main.allocate"],
        &["main.main.func…", "main.reading", "syscall.read"],
        &["main.growing.func…", "main.grow", "main.grow"],
        &["main.main.func…", "main.main.func…", "main.playing"],
    ] {
        ensure!(
            stacks.with_chain(chain) > 0,
            "never seen: {chain:?}:{}",
            stacks.commonest()
        );
    }
    // What leaf is called by is never lost, though it has no frame.
    let (whole, leaf) = (
        stacks.with_chain(&["main.compute", "main.leaf"]),
        stacks.with("main.leaf"),
    );
    ensure!(
        1000 * whole >= 999 * leaf,
        "{whole} of {leaf}:{}",
        stacks.commonest()
    );
    Ok(())
}

fn check_callbacks(go: &str) -> Result<()> {
    let program = built(go, "go/cgo.go", "cgo", &["build"])?;
    let paths = "
        runtime.goexit… > runtime.main > main.main > main.work | main.workThere > \
            main._Cfunc_c_work… | main._Cfunc_c_calls_go… | runtime.cgocall… > runtime.cgocall… | \
            runtime.asmcgocall… > runtime.asmcgocall… | _cgo_…
        runtime.asmcgocall… > _cgo_… > c_work > c_leaf
        _cgo_… > c_calls_go > goWork > crosscall2… > runtime.cgocallback… > runtime.cgocallbackg… > \
            runtime.cgocallbackg… > runtime.cgocallbackg1… > _cgoexp_… > main.goWork > main.leaf
        main.main | runtime.… > *";
    let chains = Chains::parse(paths)?;
    let stacks = stacks_of(&program)?;
    // A goroutine that leaves in a callback from C leaves its thread there.
    let left = stacks.filter(|stack| stack.iter().any(|frame| frame == "runtime.gosched_m"));
    ensure!(
        left.total() > 0 && left.total() == left.with_chain(&["cgo", "runtime.goexit…"]),
        "{}",
        left.commonest()
    );
    // The C library starts the threads here.
    let stacks = of_goroutines(&stacks, &["__clone3", "runtime.mstart…"])?;
    chains.check(&stacks, 0, &["c_leaf", "main.leaf"])?;
    for chain in [["c_work", "c_leaf"], ["main.goWork", "main.leaf"]] {
        ensure!(
            3 * stacks.with_chain(&chain) > stacks.total(),
            "{}",
            stacks.commonest()
        );
    }
    Ok(())
}

#[test]
fn goroutines_of_every_kind() -> Result<()> {
    check_goroutines("go")
}

#[test]
fn go_that_calls_c_that_calls_go() -> Result<()> {
    check_callbacks("go")
}

/// Where Go switches stacks, it kept frames and frame pointers otherwise until 1.20, and until 1.24.
#[test]
fn go_of_earlier_versions() -> Result<()> {
    for version in ["1.20.14", "1.24.9"] {
        let go = program::go_compiler(version)?;
        check_seeded_go(&go, "seeded_go", &[])
            .and_then(|()| check_goroutines(&go))
            .and_then(|()| check_callbacks(&go))
            .with_context(|| format!("Go {version}"))?;
    }
    Ok(())
}

/// Until there are tables, a sample brings both stacks along that it is on.
#[test]
fn go_that_calls_c_from_its_first_instruction() -> Result<()> {
    let program = built("go", "go/cgo.go", "cgo", &["build"])?;
    let script = "for run in 1 2 3 4 5; do \"$0\" 0.1 >/dev/null; done";
    let command = [
        "sh".as_ref(),
        "-c".as_ref(),
        script.as_ref(),
        program.as_os_str(),
    ];
    check_from_start("-F 999", &command, 400, 200)
}

/// Its tables take longest to make, and its stack has a frame of half a mebibyte.
#[test]
fn the_rust_compiler_from_its_first_instruction() -> Result<()> {
    let folder = place::folder()?;
    let source = script("rust/seeded.rs");
    let compile = ["rustc", "-O", "--out-dir"].map(OsStr::new);
    let command = [
        &compile[..],
        &[folder.path().as_os_str(), source.as_os_str()],
    ]
    .concat();
    check_from_start("-F 499", &command, 150, 33)
}

/// Checks that of a command, recorded from its start on, there are more than `least` samples, and all but one of
/// so many are rooted.
fn check_from_start(options: &str, command: &[&OsStr], least: u64, one_of: u64) -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let recording = Hotspan::record()?
        .args(options)
        .args("--json")
        .output(&file);
    let recording = command.iter().fold(recording.arg("--"), Hotspan::arg);
    let samples = recording.run()?.succeeded()?.summary()?.samples;
    ensure!(
        samples.kept > least && one_of * (samples.kept - samples.rooted) <= samples.kept,
        "{} of {} are rooted:{}",
        samples.rooted,
        samples.kept,
        read_folded(&file)?.commonest()
    );
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
        .arg("-cp")
        .arg(program::java("Shares")?)
        .arg("Shares");
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

/// Compiled code uses the frame pointer for something else: what the JVM knows of it serves.
#[test]
fn java_as_it_comes() -> Result<()> {
    check_java(&[])
}

#[test]
fn java_by_its_first_compiler_alone() -> Result<()> {
    check_java(&["-XX:TieredStopAtLevel=1"])
}

#[test]
fn java_with_all_code_in_one_heap() -> Result<()> {
    check_java(&["-XX:-SegmentedCodeCache"])
}

/// Exceptions that go through many frames, and compiled code that is left in its midst.
#[test]
fn java_that_throws() -> Result<()> {
    let mut java = on_one_cpu();
    java.args(["java", "-cp"])
        .arg(program::java("Throws")?)
        .arg("Throws");
    let stacks = record(&mut java)?.stacks;
    check_rooted(&stacks, &["__clone3", "_start"])
}

/// While the JVM starts, tables are still being made, its stack has pages that are not in memory, and its
/// code changes all the time.
#[test]
fn java_from_its_first_instruction() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let java = python::java()?;
    let classes = program::java("Shares")?;
    let run = Hotspan::record()?
        .args("-F 499")
        .output(&file)
        .args(&format!(
            "-- {} -cp {} Shares 4",
            java.display(),
            classes.display()
        ))
        .run()?;
    run.succeeded()?;
    let stacks = read_folded(&file)?;
    let total = stacks.total();
    let cut = stacks.filter(|stack| stack[1].starts_with('['));
    ensure!(total > 1000, "{total} samples are too few to judge");
    // In the few instructions in which the interpreter makes a frame, and exits of threads.
    ensure!(
        1000 * cut.total() <= 3 * total,
        "{} of {total}:{}",
        cut.total(),
        cut.commonest()
    );
    Ok(())
}

/// From `run` to the leaf, as a perf map names them, behind what the interpreter and native code have of
/// `main`.
const COMPILED: [&str; 8] = [
    "long Chain.run(Chain$Step[], long)",
    "long Chain.first(Chain$Step, long)",
    "long Chain$…",
    "long Chain.third(int[], long)",
    "double Chain.fourth(double, float, long)",
    "long Chain.fifth(long, long, long, long, long, long, long, long)",
    "long Chain.sixth(long)",
    "long Chain.leaf(long)",
];

/// Records a JVM that has written its perf map.
fn record_named(java: &mut Command) -> Result<Stacks> {
    let workload = Workload::start_command(java)?;
    let pid = workload.pid().to_string();
    let asked = Command::new("jcmd")
        .args([&pid, "Compiler.perfmap"])
        .output()
        .context("jcmd, which Debian's default-jdk-headless brings, does not start")?;
    ensure!(asked.status.success(), "{asked:?}");
    let recorded = Recorded::of(&workload, OPTIONS, WORK);
    std::fs::remove_file(format!("/tmp/perf-{pid}.map"))?;
    workload.stop()?;
    Ok(recorded?.stacks)
}

#[test]
fn chain_of_compiled_java() -> Result<()> {
    let mut java = on_one_cpu();
    java.args(["java", "-XX:CompileCommand=quiet"])
        .arg("-XX:CompileCommand=dontinline,Chain*::*")
        .arg("-cp")
        .arg(program::java("Chain")?)
        .arg("Chain");
    let stacks = record_named(&mut java)?;
    check_rooted(&stacks, &["__clone3", "_start"])?;
    let [.., leaf] = COMPILED;
    let is_user = |it: &&String| !it.ends_with("_[k]");
    let is_whole = |stack: &[String]| {
        let user: Vec<_> = stack.iter().filter(is_user).collect();
        let compiled = user.len().checked_sub(COMPILED.len());
        compiled.is_some_and(|above| {
            let mut pairs = user[above..].iter().zip(COMPILED);
            stack[1..]
                .iter()
                .zip(JAVA)
                .all(|(name, expected)| name == expected)
                && user[above - 1].starts_with("Interpreter")
                && pairs.all(|(name, expected)| is_like(name, expected))
        })
    };
    let in_leaf = stacks.filter(|stack| stack.iter().any(|it| is_like(it, leaf)));
    let others = in_leaf.filter(|stack| !is_whole(stack));
    ensure!(
        2 * in_leaf.total() > stacks.total(),
        "{}",
        stacks.commonest()
    );
    ensure!(
        1000 * others.total() <= in_leaf.total(),
        "{} of {}:{}",
        others.total(),
        in_leaf.total(),
        others.commonest()
    );
    Ok(())
}

/// Virtual threads whose stacks come from memory frame by frame: what is on the stack of their carrier is
/// exact, from the place where they are entered or returned to.
#[test]
fn virtual_threads_of_java() -> Result<()> {
    const WAY: [&str; 3] = [
        "void java.lang.VirtualThread.runContinuation()",
        "void jdk.internal.vm.Continuation.run()",
        "StubRoutines (continuation…",
    ];
    const DOWN: &str = "long Virtual.down(int, long)";
    const LEAF: &str = "long Virtual.leaf(long)";
    let mut java = on_one_cpu();
    java.arg(python::java()?)
        .args([
            "-XX:CompileCommand=quiet",
            "-XX:CompileCommand=dontinline,Virtual::*",
        ])
        .arg("-cp")
        .arg(program::java("Virtual")?)
        .arg("Virtual");
    let stacks = record_named(&mut java)?;
    let is_user = |it: &&String| !it.ends_with("_[k]");
    let in_leaf = stacks.filter(|stack| {
        let last = stack.iter().rfind(is_user);
        last.is_some_and(|it| is_like(it, LEAF))
    });
    check_rooted(&in_leaf, &["__clone3"])?;
    // Frames that are not back from memory yet are not there.
    let others = in_leaf.filter(|stack| {
        let user: Vec<_> = stack.iter().filter(is_user).collect();
        let downs = user
            .iter()
            .rev()
            .skip(1)
            .take_while(|it| is_like(it, DOWN))
            .count();
        let Some((way, run)) = user
            .iter()
            .position(|it| is_like(it, WAY[0]))
            .and_then(|at| user[at..user.len() - 1 - downs].split_at_checked(WAY.len()))
        else {
            return true;
        };
        // It has no name when it was compiled after the map was written.
        let is_run =
            |it: &&String| is_like(it, "void Virtual.run()") || it.starts_with("[anonymous]");
        let is_way = way
            .iter()
            .zip(WAY)
            .all(|(name, expected)| is_like(name, expected));
        !(is_way && run.len() <= 1 && run.iter().all(is_run))
    });
    ensure!(
        1000 * others.total() <= in_leaf.total(),
        "{} of {}:{}",
        others.total(),
        in_leaf.total(),
        others.commonest()
    );
    Ok(())
}

#[test]
fn javascript_with_a_perf_map() -> Result<()> {
    let mut node = on_one_cpu();
    node.args(["node", "--perf-basic-prof"]);
    let workload = Workload::start_command(node.arg(script("node/shares.js")))?;
    let map = format!("/tmp/perf-{}.map", workload.pid());
    let recorded = Recorded::of(&workload, OPTIONS, WORK);
    std::fs::remove_file(map)?;
    let stacks = recorded?.stacks;
    check_rooted(&stacks, &["_start", "__clone3"])?;
    let chain = ["__libc_start_call_main", "node::Start(int, char**)"];
    ensure!(
        100 * stacks.with_chain(&chain) > 98 * stacks.total(),
        "{}",
        stacks.commonest()
    );
    let works = ["JS:*heavyWork …", "JS:*lightWork …"];
    let working: u64 = works.iter().map(|work| stacks.with(work)).sum();
    ensure!(10 * working > 8 * stacks.total(), "{}", stacks.commonest());
    for work in works {
        // From the event loop of the program's main thread down to the function.
        let is_whole = |stack: &[String]| {
            let has = |name| stack.iter().any(|it| is_like(it, name));
            // A function that is still interpreted has no code of its own.
            let is_turn = |it: &String| it.get(4..).is_some_and(|it| it.starts_with("turn "));
            let turns = stack.iter().any(is_turn) || has("Builtins_InterpreterEntryTrampoline");
            stack[1] == "_start" && has("uv_run") && turns && has(work)
        };
        let whole = stacks.filter(is_whole);
        let others =
            stacks.filter(|stack| stack.iter().any(|it| is_like(it, work)) && !is_whole(stack));
        ensure!(whole.total() > 0, "{work}:{}", stacks.commonest());
        ensure!(
            // JIT code has no tables: its first and last instructions may be taken for a frame.
            100 * whole.total() >= 97 * stacks.with(work),
            "{work}: {} of {}:{}",
            whole.total(),
            stacks.with(work),
            others.commonest()
        );
    }
    Ok(())
}
