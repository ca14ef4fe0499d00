//! Programs with known shares of CPU time in known functions: hotspan, perf and the programs' own
//! clocks agree, in every language.

use std::process::Command;

use anyhow::{Result, ensure};
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{Hotspan, Threads};
use hotspan_tests::shares::{Function, Recorded, Seen, WORK};
use hotspan_tests::workload::{Workload, on_one_cpu};

const HEAVY: Function = Function {
    clock: "heavy",
    chain: &["main", "run", "heavy_caller", "heavy"],
    perf: "heavy",
};
const LIGHT: Function = Function {
    clock: "light",
    chain: &["main", "run", "light_caller", "light"],
    perf: "light",
};

fn check_c_shares(build: Build) -> Result<()> {
    let workload = Workload::start(&program::c("shares", build)?)?;
    Seen::of(workload)?.check("shares", Threads::OnOneCpu, &[HEAVY, LIGHT])
}

#[test]
fn c_with_frame_pointers() -> Result<()> {
    check_c_shares(Build::FramePointers)
}

#[test]
fn c_in_one_file_at_a_random_address() -> Result<()> {
    check_c_shares(Build::StaticPie)
}

#[test]
fn c_in_one_file_at_a_fixed_address() -> Result<()> {
    check_c_shares(Build::StaticFixed)
}

#[test]
fn cpp_with_templates_and_lambdas() -> Result<()> {
    let workload = Workload::start(&program::cpp("names")?)?;
    let functions = [
        Function {
            clock: "relax",
            chain: &[
                "main",
                "geometry::run()",
                "geometry::relax_all(geometry::Grid<double, 4>&, unsigned long)",
                "geometry::Grid<double, 4>::relax(unsigned long)",
            ],
            perf: "relax",
        },
        Function {
            clock: "integrate",
            chain: &[
                "geometry::run()",
                "geometry::(anonymous namespace)::integrate(unsigned long)",
                "geometry::(anonymous namespace)::integrate(unsigned long)::{lambda(unsigned \
                 long)#1}::operator()(unsigned long) const",
            ],
            perf: "integrate",
        },
    ];
    Seen::of(workload)?.check("names_cpp", Threads::OnOneCpu, &functions)
}

#[test]
fn rust_with_traits_and_closures() -> Result<()> {
    let workload = Workload::start(&program::rust("names")?)?;
    let functions = [
        Function {
            clock: "settle",
            chain: &[
                "names::main",
                "names::market::trade",
                "<names::market::Order<u32> as names::market::Price>::settle",
            ],
            perf: "settle",
        },
        Function {
            clock: "close_all",
            chain: &[
                "names::main",
                "names::close_all",
                "names::market::each",
                "names::close_all::{{closure}}",
            ],
            perf: "close_all",
        },
    ];
    Seen::of(workload)?.check("names_rust", Threads::OnOneCpu, &functions)
}

/// The symbol table tells which types a generic function was made for, Go's own table does not.
#[test]
fn go_with_methods_and_generics() -> Result<()> {
    let workload = Workload::start(&program::go()?)?;
    let functions = [
        Function {
            clock: "heavy",
            chain: &["main.main", "main.heavyCaller", "main.(*Ledger).Heavy"],
            perf: "Ledger",
        },
        Function {
            clock: "light",
            chain: &["main.main", "main.lightCaller", "main.light[…"],
            perf: "main.light[",
        },
    ];
    Seen::of(workload)?.check("shares_go", Threads::OnOneCpu, &functions)
}

#[test]
fn javascript_with_a_perf_map() -> Result<()> {
    let mut node = on_one_cpu();
    node.args(["node", "--perf-basic-prof"])
        .arg(program::script("node/shares.js"));
    let workload = Workload::start_command(&mut node)?;
    let map = format!("/tmp/perf-{}.map", workload.pid());
    let functions = [
        Function {
            clock: "heavyWork",
            chain: &["JS:*heavyWork …"],
            perf: "heavyWork",
        },
        Function {
            clock: "lightWork",
            chain: &["JS:*lightWork …"],
            perf: "lightWork",
        },
    ];
    let seen = Seen::of(workload);
    std::fs::remove_file(map)?;
    let seen = seen?;
    seen.check("node", Threads::OnOneCpu, &functions)?;
    let marked = seen
        .recorded
        .stacks
        .filter(|stack| stack.iter().any(|f| f.ends_with("_[j]")));
    ensure!(
        marked.with("JS:*heavyWork …") > 0,
        "no JIT mark: {}",
        seen.recorded.stacks.commonest()
    );
    Ok(())
}

#[test]
fn threads_by_name() -> Result<()> {
    let workload = Workload::start_command(&mut Command::new(program::c(
        "threads",
        Build::FramePointers,
    )?))?;
    let spins = [["spin_alpha"], ["spin_beta"]];
    let spins = spins.each_ref().map(|chain| Function {
        clock: chain[0],
        chain,
        perf: chain[0],
    });
    let seen = Seen::of(workload)?;
    seen.check("threads", Threads::Anywhere(2), &spins)?;
    // A thread that sleeps uses next to nothing, and shows as next to nothing.
    let idle = seen.recorded.stacks.share("idle")?;
    ensure!(idle < 0.02, "an idle thread has {idle} of the samples");
    Ok(())
}

#[test]
fn time_inside_the_kernel() -> Result<()> {
    let workload = Workload::start(&program::c("syscalls", Build::FramePointers)?)?;
    let functions = [
        Function {
            clock: "compute",
            chain: &["main", "compute"],
            perf: "compute",
        },
        Function {
            clock: "read_zeros",
            chain: &["main", "read_zeros"],
            perf: "read_zeros|clock_gettime",
        },
    ];
    let seen = Seen::of(workload)?;
    // The read_zeros function asks for the time in between, through a C library that has no frame
    // pointers: perf's stacks lack their caller there.
    seen.check("syscalls", Threads::OnOneCpu, &functions)?;
    let chain = [
        "main",
        "read_zeros",
        "entry_SYSCALL_64_after_hwframe",
        "do_syscall_64",
    ];
    let in_kernel =
        seen.recorded.stacks.with_chain(&chain) as f64 / seen.recorded.stacks.total() as f64;
    ensure!(
        in_kernel > 0.8,
        "only {in_kernel} is in the kernel: {}",
        seen.recorded.stacks.commonest()
    );
    let read = seen
        .recorded
        .stacks
        .filter(|stack| stack.iter().any(|f| f == "vfs_read_[k]"));
    ensure!(
        read.total() > 0,
        "kernel frames have no mark: {}",
        seen.recorded.stacks.commonest()
    );
    Ok(())
}

#[test]
fn four_hundred_frames_of_recursion() -> Result<()> {
    let workload = Workload::start(&program::c("recursion", Build::FramePointers)?)?;
    let mut chain = vec!["main"];
    chain.extend([("descend"); 400]);
    chain.push("at_the_bottom");
    // perf stops at 127 frames, but it sees the leaf.
    let function = Function {
        clock: "at_the_bottom",
        chain: &chain,
        perf: "at_the_bottom",
    };
    Seen::of(workload)?.check("recursion", Threads::OnOneCpu, &[function])
}

#[test]
fn leaves_have_names_and_shares_without_frame_pointers() -> Result<()> {
    let workload = Workload::start(&program::c("shares", Build::NoFramePointers)?)?;
    let recorded = Recorded::of(&workload, "", WORK)?;
    let report = workload.stop()?;
    recorded.summary.check_complete(Threads::OnOneCpu)?;
    let leaves = Recorded {
        stacks: recorded.stacks.leaves(),
        ..recorded
    };
    for function in ["heavy", "light"] {
        leaves.check_share(
            function,
            report.share(function)?,
            "its clock",
            Threads::OnOneCpu,
        )?;
    }
    Ok(())
}

#[test]
fn stripped_program_reads_as_module_and_offset() -> Result<()> {
    let workload = Workload::start(&program::c("shares", Build::Stripped)?)?;
    let Recorded { summary, stacks } = Recorded::of(&workload, "", WORK / 2)?;
    summary.check_complete(Threads::OnOneCpu)?;
    let has_offset = |leaf: &String| leaf.starts_with("shares+0x");
    let unnamed = stacks.filter(|stack| stack.last().is_some_and(has_offset));
    ensure!(
        unnamed.total() as f64 > 0.9 * stacks.total() as f64,
        "leaves have other names:{}",
        stacks.commonest()
    );
    ensure!(
        summary.samples.named < summary.samples.kept / 10,
        "{summary:?}"
    );
    Ok(())
}

#[test]
fn a_higher_rate_gives_more_samples_of_the_same() -> Result<()> {
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    let recorded = Recorded::of(&workload, "-F 999", WORK / 2)?;
    let report = workload.stop()?;
    ensure!(recorded.summary.rate_hz == 999, "{:?}", recorded.summary);
    recorded.summary.check_complete(Threads::OnOneCpu)?;
    recorded.check_share(
        "heavy",
        report.share("heavy")?,
        "its clock",
        Threads::OnOneCpu,
    )
}

/// What is expected is the CPU time between the first tick and the last, not that of getting ready.
#[test]
fn a_short_recording_keeps_what_it_expects() -> Result<()> {
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    Hotspan::record()?
        .args(&format!("-p {} -F 999 -d 1s --json", workload.pid()))
        .run()?
        .succeeded()?
        .summary()?
        .check_complete(Threads::OnOneCpu)
}
