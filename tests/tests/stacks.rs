//! Native programs of every kind, none with frame pointers unless it says so: each stack is one that
//! the program can have, from its thread's true first function to the leaf.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::chains::{Chains, check_printed, printed};
use hotspan_tests::place;
use hotspan_tests::process;
use hotspan_tests::program::Recipe;
use hotspan_tests::recorder::{Hotspan, read_folded};
use hotspan_tests::shares::Recorded;
use hotspan_tests::stacks::{Stacks, is_like};
use hotspan_tests::workload::{Workload, on_one_cpu};
use rustix::process::Signal;

/// Often enough for some thousand samples of each program.
const OPTIONS: &str = "-F 999";
const WORK: Duration = Duration::from_millis(2500);

/// The way of a thread from its first function to `main`, in Debian's C library with its symbols.
const START: &str = "_start > __libc_start_main… > __libc_start_call_main > main";

/// What any C workload calls between its phases.
const CLOCK: &str =
    "main | run > workload_goes_on | thread_cpu_ns > workload_clock > clock_gettime > *
                     main | run | workload_goes_on | thread_cpu_ns > clock_gettime… > *
                     main | run > workload_clock | rounds_of_ms";

/// A C program that binds its symbols when it starts, which has tests of its own.
fn c(source: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler: "gcc",
        flags: &[&["-g", "-Wl,-z,now"], flags].concat(),
        source: &format!("c/{source}.c"),
        ..Recipe::default()
    }
    .make()
}

/// Records a program with arguments.
fn record(program: &Path, arguments: &[&str]) -> Result<Recorded> {
    let mut command = on_one_cpu();
    command.arg(program).args(arguments);
    record_workload(Workload::start_command(&mut command)?, OPTIONS)
}

fn record_workload(workload: Workload, options: &str) -> Result<Recorded> {
    let recorded = Recorded::of(&workload, options, WORK)?;
    workload.stop()?;
    Ok(recorded)
}

const SHARES: &str = "main > run > heavy_caller > heavy
                      run > light_caller > light";

fn check_shares(program: &Path, start: &str) -> Result<()> {
    let chains = Chains::parse(&[start, SHARES, CLOCK].join("\n"))?;
    chains.check(&record(program, &[])?.stacks, 0, &["heavy", "light"])
}

#[test]
fn position_independent_program() -> Result<()> {
    for level in ["-O1", "-O2", "-O3", "-Os"] {
        check_shares(&c("shares", &[level, "-fPIE", "-pie"])?, START)?;
    }
    Ok(())
}

#[test]
fn program_at_a_fixed_address() -> Result<()> {
    check_shares(&c("shares", &["-O2", "-fno-pie", "-no-pie"])?, START)
}

#[test]
fn static_program() -> Result<()> {
    check_shares(&c("shares", &["-O2", "-static"])?, START)
}

#[test]
fn static_position_independent_program() -> Result<()> {
    check_shares(&c("shares", &["-O2", "-fPIE", "-static-pie"])?, START)
}

/// A section for debuggers, which is there when the one for the run time is not.
#[test]
fn unwind_information_for_debuggers() -> Result<()> {
    let flags = ["-O2", "-fno-asynchronous-unwind-tables"];
    check_shares(&c("shares", &flags)?, START)?;
    check_shares(&c("shares", &[&flags[..], &["-gz=zlib"]].concat())?, START)
}

#[test]
fn code_without_unwind_information() -> Result<()> {
    const NO_TABLES: [&str; 4] = [
        "-O2",
        "-g0",
        "-fno-asynchronous-unwind-tables",
        "-fno-unwind-tables",
    ];
    // Functions that call none have a frame only when they are asked to.
    let frame_pointers = ["-fno-omit-frame-pointer", "-DWITH_FRAME_POINTERS"];
    check_shares(
        &c("shares", &[&NO_TABLES[..], &frame_pointers].concat())?,
        START,
    )?;

    let stacks = record(&c("shares", &NO_TABLES)?, &[])?.stacks;
    // Its instructions are read; where they do not tell, the stack says that it is cut.
    let is_honest = |stack: &[String]| ["_start", "[no unwind table]"].contains(&&*stack[1]);
    let others = stacks.filter(|stack| !is_honest(stack));
    ensure!(
        1000 * others.total() <= stacks.total(),
        "{} of {} stacks begin elsewhere:{}",
        others.total(),
        stacks.total(),
        others.commonest()
    );
    let leaves = stacks.leaves();
    let known = leaves.with("heavy") + leaves.with("light");
    ensure!(100 * known > 99 * stacks.total(), "{}", leaves.commonest());
    Ok(())
}

fn musl(product: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler: "musl-gcc",
        flags: &[&["-g", "-O2"], flags].concat(),
        source: "c/shares.c",
        product,
        ..Recipe::default()
    }
    .make()
}

#[test]
fn musl_linked_statically() -> Result<()> {
    let program = musl("shares_musl_s", &["-static"])?;
    check_shares(&program, "_start > libc_start_main_stage2 > main")
}

#[test]
fn musl_linked_dynamically() -> Result<()> {
    check_shares(&musl("shares_musl", &[])?, "_start > libc.so+… > main")
}

/// Debian's name for its C library, and the file's.
const TRAMPOLINE: &str = "__restore_rt";

fn check_signals(how: &str, handlers: &str, leaves: &[&str]) -> Result<()> {
    let paths = format!(
        "{START} > call_interrupted > interrupted
        main | call_interrupted | interrupted | clock_gettime… > {TRAMPOLINE} > on_tick > handler_work
        on_tick > clock_gettime… > *
        {handlers}
        {CLOCK}"
    );
    let recorded = record(&c("signals", &["-O2"])?, &["120", how])?;
    let chains = Chains::parse(&paths)?;
    chains.check(&recorded.stacks, 0, leaves)?;
    chains.check(
        &recorded.stacks,
        0,
        &["handler_work", "second_work", "interrupted"],
    )?;
    // The functions that a handler calls are a fair part.
    let handled = recorded.stacks.with(leaves[0]);
    ensure!(
        8 * handled > recorded.stacks.total(),
        "{handled} samples in {}:{}",
        leaves[0],
        recorded.stacks.commonest()
    );
    Ok(())
}

#[test]
fn signal_handler() -> Result<()> {
    check_signals("plain", "", &["on_tick", "interrupted"])
}

#[test]
fn signal_handler_on_a_stack_of_its_own() -> Result<()> {
    check_signals("alternate", "", &["on_tick", "interrupted"])
}

#[test]
fn signal_handler_inside_of_another() -> Result<()> {
    let raise = format!(
        "on_tick > gsignal > __pthread_kill_implementation > {TRAMPOLINE} > on_second > second_work
         gsignal | __pthread_kill_implementation > *"
    );
    check_signals("nested", &raise, &["on_second", "interrupted"])
}

#[test]
fn code_that_the_kernel_maps() -> Result<()> {
    let paths = format!(
        "{START} > ask > clock_gettime… > clock_gettime | __vdso_clock_gettime
         {CLOCK}"
    );
    let stacks = record(&c("vdso", &["-O2"])?, &[])?.stacks;
    Chains::parse(&paths)?.check(&stacks, 0, &["ask"])
}

/// A library with cheap functions, and a program that calls them through a table in which
/// `fill` is how it is filled.
fn linkage(product: &str, flags: &[&str]) -> Result<Stacks> {
    let flags = [&["-g", "-O2"], flags].concat();
    let library = Recipe {
        compiler: "gcc",
        flags: &[&flags[..], &["-shared", "-fPIC"]].concat(),
        source: "c/cheap.c",
        product: "cheap.so",
        library: None,
    }
    .make()?;
    let program = Recipe {
        compiler: "gcc",
        flags: &flags,
        source: "c/plt.c",
        product,
        library: Some(&library),
    }
    .make()?;
    Ok(record(&program, &[])?.stacks)
}

const CHEAP: &str = "cheap_a | cheap_b | cheap_c | cheap_d";
const STUBS: &str = "cheap_a@plt | cheap_b@plt | cheap_c@plt | cheap_d@plt";

#[test]
fn stubs_of_the_procedure_linkage_table() -> Result<()> {
    let paths = format!(
        "{START} > call_many > {CHEAP} | {STUBS}
        {CLOCK}"
    );
    let chains = Chains::parse(&paths)?;
    for (product, flags) in [
        ("plt_lazy", &["-Wl,-z,lazy"][..]),
        ("plt_now", &["-Wl,-z,now"]),
        ("plt_none", &["-fcf-protection=none", "-Wl,-z,lazy"]),
        (
            "plt_sec",
            &["-fcf-protection=full", "-Wl,-z,lazy,-z,ibtplt"],
        ),
        ("plt_fixed", &["-fno-pie", "-no-pie", "-Wl,-z,lazy"]),
    ] {
        let stacks = linkage(product, flags)?;
        chains.check(&stacks, 0, &["call_many"])?;
        let in_stub = stacks.leaves().with("cheap_b@plt");
        ensure!(
            in_stub > 0,
            "{product}: no sample in a stub:{}",
            stacks.commonest()
        );
    }
    Ok(())
}

#[test]
fn lazy_binding() -> Result<()> {
    let flags = ["-DRESOLVE", "-fno-pie", "-no-pie", "-Wl,-z,lazy,-z,norelro"];
    let stacks = linkage("plt_resolve", &flags)?;
    let paths = format!(
        "{START} > call_many > {CHEAP} | {STUBS} | plt_resolve+… | _dl_runtime_resolve…
        _dl_runtime_resolve… > _dl_fixup > *
        {CLOCK}"
    );
    // The head of the table, which all stubs go on to, has no name. In the first instructions of what
    // it calls, the register by which the frame of `_dl_runtime_resolve` is known is not saved yet:
    // there the stack is cut.
    Chains::parse(&paths)?.check(&stacks, stacks.total() / 200, &["_dl_runtime_resolve…"])
}

#[test]
fn system_calls() -> Result<()> {
    let paths = format!(
        "{START} > read_zeros | compute
        read_zeros > clock_gettime… > *
        {CLOCK}"
    );
    let stacks = record(&c("syscalls", &["-O2"])?, &[])?.stacks;
    Chains::parse(&paths)?.check(&stacks, 0, &["read_zeros"])?;
    let kernel = stacks.with_chain(&[
        "read_zeros",
        "entry_SYSCALL_64_after_hwframe",
        "do_syscall_64",
    ]);
    ensure!(10 * kernel > 7 * stacks.total(), "{}", stacks.commonest());
    Ok(())
}

fn check_recursion(depth: usize) -> Result<Stacks> {
    let stacks = record(&c("recursion", &["-O2"])?, &["120", &depth.to_string()])?.stacks;
    ensure!(stacks.total() > 1000, "{} samples", stacks.total());
    Ok(stacks)
}

#[test]
fn four_hundred_frames() -> Result<()> {
    let stacks = check_recursion(400)?;
    let deepest = stacks.filter(|stack| {
        let descents = stack.iter().filter(|name| *name == "descend").count();
        stack[1] == "_start" && descents == 400
    });
    ensure!(
        1000 * deepest.total() >= 998 * stacks.total(),
        "{} of {} stacks have every frame:{}",
        deepest.total(),
        stacks.total(),
        stacks.commonest()
    );
    let paths = format!(
        "{START} > descend > descend | at_the_bottom
        {CLOCK}"
    );
    Chains::parse(&paths)?.check(&stacks, 0, &["at_the_bottom"])
}

#[test]
fn more_frames_than_a_sample_has_room_for() -> Result<()> {
    let stacks = check_recursion(2000)?;
    let cut = stacks.filter(|stack| {
        let descents = stack.iter().filter(|name| *name == "descend").count();
        // None when it was on its way there.
        let bottom = stack.get(descents + 2);
        stack[1] == "[truncated]"
            && descents >= 512
            && bottom.is_some_and(|name| is_like(name, "at_the_bottom"))
    });
    ensure!(
        1000 * cut.total() >= 998 * stacks.total(),
        "{} of {} stacks are cut at the root, and nowhere else:{}",
        cut.total(),
        stacks.total(),
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn first_functions_of_threads() -> Result<()> {
    let stacks = record(&c("beginnings", &["-O2"])?, &[])?.stacks;
    let chains = Chains::parse(
        "__clone3 | __clone
         __clone3 > start_thread > pthread_entry > pthread_work
         __clone > clone_entry > clone_work
         pthread_entry | clone_entry > clock_gettime… > *",
    )?;
    chains.check(&stacks, 0, &["pthread_work", "clone_work"])?;
    for work in ["pthread_work", "clone_work"] {
        ensure!(
            3 * stacks.with(work) > stacks.total(),
            "{}",
            stacks.commonest()
        );
    }
    Ok(())
}

/// Records a program and what it starts, until that has used enough CPU time.
fn record_children(how: &str) -> Result<Stacks> {
    let mut command = Command::new(c("children", &["-O2"])?);
    let workload = Workload::start_command(command.args(["120", how]))?;
    let pid = workload.pid();
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let mut running = Hotspan::record()?
        .args(&format!("{OPTIONS} -p {pid} --children"))
        .output(&file)
        .start()?;
    running.wait_for_capture()?;
    let used =
        || Ok::<_, anyhow::Error>(process::cpu_time(pid)? + process::children_cpu_time(pid)?);
    let goal = used()? + WORK;
    process::wait_for("the children's work", Duration::from_secs(90), || {
        Ok((used()? >= goal).then_some(()))
    })?;
    running.signal(Signal::INT)?;
    running.finish()?.succeeded()?;
    workload.stop()?;
    read_folded(&file)
}

/// Checks the stacks of a program of which `paths` tells what starts its children. Those have no
/// user stack any more when the kernel takes them down, which is a few per cent of their time.
fn check_children(how: &str, paths: &str, bad_in_thousand: u64) -> Result<()> {
    let stacks = record_children(how)?;
    let is_end = |stack: &[String]| is_like(&stack[1], "entry_SYSCALL_64_after_hwframe");
    let ends = stacks.filter(is_end).total();
    ensure!(
        20 * ends < stacks.total(),
        "{ends} ends:{}",
        stacks.commonest()
    );
    let stacks = stacks.filter(|stack| !is_end(stack));
    let paths = format!(
        "{paths}
        main > wait4 | __wait4 | __GI___wait4 | clock_gettime… > *
        by_fork | by_vfork | by_clone | by_spawn | by_vfork_exec > child | _exit… | _Exit | __GI__exit
        _exit… | _Exit | __GI__exit > *
        child > child_work > clock_gettime… > *"
    );
    let allowed = stacks.total() * (bad_in_thousand - 1) / 1000;
    Chains::parse(&paths)?.check(&stacks, allowed, &["child_work"])
}

#[test]
fn fork_without_exec() -> Result<()> {
    let paths = format!("{START} > by_fork > __libc_fork | fork… | __fork > *");
    check_children("fork", &paths, 1)
}

#[test]
fn vfork() -> Result<()> {
    let paths = format!("{START} > by_vfork > __vfork | vfork… > *");
    check_children("vfork", &paths, 1)
}

#[test]
fn clone_of_a_process() -> Result<()> {
    let paths = format!(
        "_start | __clone
        {START} > by_clone > __clone | clone… > *
        __clone > clone_entry > child"
    );
    check_children("clone", &paths, 1)
}

/// What processes do before their own first function; most of it is the dynamic linker's.
const LOADER: &str = "_start > _dl_start… | _dl_sysdep_start… > *
                      __libc_start_main… > call_init | __libc_init_first | __cxa_atexit… > *
                      __libc_start_call_main > exit… | __GI_exit > *
                      main > workload_calibrate | sigaction… | workload_prepare > *";

/// Processes of 0.1 s: their first milliseconds pass before anybody knows where their files are.
const BRIEF: u64 = 10;

#[test]
fn posix_spawn() -> Result<()> {
    let paths = format!(
        "_start | __clone3 | __clone
        {START} > by_spawn > posix_spawn… | __posix_spawn… > *
        __clone3 | __clone > __spawni_child > *
        main > child
        {LOADER}"
    );
    check_children("spawn", &paths, BRIEF)
}

#[test]
fn vfork_and_exec() -> Result<()> {
    let paths = format!(
        "{START} > by_vfork_exec > __vfork | vfork… | execl… > *
        main > child
        {LOADER}"
    );
    check_children("vfork-exec", &paths, BRIEF)
}

#[test]
fn exec_without_exit() -> Result<()> {
    let paths = format!(
        "{START} > generations > child
        generations > execl… | sigpending… | sigprocmask… | workload_ready | puts… | fflush… > *
        {LOADER}"
    );
    check_children("exec", &paths, BRIEF)
}

fn copy(folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("copy");
    fs::copy(c("shares", &["-O2"])?, &copy)?;
    Ok(copy)
}

fn check_shares_of(workload: Workload) -> Result<()> {
    let chains = Chains::parse(&[START, SHARES, CLOCK].join("\n"))?;
    let stacks = record_workload(workload, OPTIONS)?.stacks;
    chains.check(&stacks, 0, &["heavy", "light"])
}

#[test]
fn deleted_program() -> Result<()> {
    let folder = place::folder()?;
    let copy = copy(folder.path())?;
    let workload = Workload::start(&copy)?;
    fs::remove_file(&copy)?;
    check_shares_of(workload)
}

#[test]
fn replaced_program() -> Result<()> {
    let folder = place::folder()?;
    let copy = copy(folder.path())?;
    let workload = Workload::start(&copy)?;
    fs::remove_file(&copy)?;
    fs::copy(c("vdso", &["-O2"])?, &copy)?;
    check_shares_of(workload)
}

#[test]
fn other_namespaces() -> Result<()> {
    let folder = place::folder()?;
    let program = c("shares", &["-O2"])?;
    check_shares_of(Workload::start_in_namespaces(&program, folder.path())?)
}

fn plugin(product: &str, flags: &[&str]) -> Result<PathBuf> {
    Recipe {
        compiler: "gcc",
        flags: &[&["-g", "-shared", "-fPIC"], flags].concat(),
        source: "c/plugin.c",
        product,
        library: None,
    }
    .make()
}

/// Libraries that come and go at the same place, with code that has frames of other sizes at the same
/// addresses. News of that are read ten milliseconds late: until then a stack may be cut, which is
/// at most so many samples of each visit, but never be another one.
#[test]
fn libraries_that_take_turns() -> Result<()> {
    let plugins = [
        plugin("plugin_a.so", &["-O2"])?,
        plugin("plugin_b.so", &["-O0"])?,
    ];
    let mut command = on_one_cpu();
    let program = c("reload", &["-O2"])?;
    command.arg(program).arg("120").args(&plugins);
    let stacks = record_workload(Workload::start_command(&mut command)?, OPTIONS)?.stacks;
    let visits = stacks.total() / 100;
    let cut = stacks.filter(|stack| stack[1].starts_with('['));
    ensure!(
        cut.total() <= 10 * visits,
        "{visits} visits:{}",
        cut.commonest()
    );
    let stacks = stacks.filter(|stack| !stack[1].starts_with('['));
    let paths = format!(
        "{START} > visit > plugin_entry > plugin_work
        visit > dlopen… | dlclose… | dlsym… | ___dlopen | ___dlsym | __dlclose > *
        {CLOCK}"
    );
    Chains::parse(&paths)?.check(&stacks, 0, &["plugin_work"])
}

#[test]
fn seeded_chains_in_c() -> Result<()> {
    for flags in [
        &["-O2"][..],
        &["-O1"],
        &["-O3", "-fcf-protection=none"],
        &["-Os"],
    ] {
        check_seeded(&c("seeded", flags)?)?;
    }
    Ok(())
}

const SEEDS: [&str; 2] = ["3", "11"];

/// Records a program that prints its chains, and checks that there are no others.
fn check_seeded(program: &Path) -> Result<()> {
    let start = format!("{START} > run");
    let between = Chains::parse(&[START, CLOCK].join("\n"))?;
    for seed in SEEDS {
        let mut command = on_one_cpu();
        command.arg(program).args(["120", seed]);
        let workload = Workload::start_command(&mut command)?;
        let introduction = workload.introduction().to_vec();
        let chains = printed(&start, introduction.iter().map(String::as_str))?;
        let stacks = record_workload(workload, OPTIONS)?.stacks;
        check_printed(&chains, &between, &stacks)
            .with_context(|| format!("{}, seed {seed}", program.display()))?;
    }
    Ok(())
}
