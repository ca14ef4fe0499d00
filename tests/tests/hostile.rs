//! Files, paths and processes that are made to hurt whoever looks at them: hotspan takes them in
//! bounded time and memory, and the process beside them is recorded as ever.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::chains::Chains;
use hotspan_tests::hostile::{CODE, COMPRESSED, Elf, REST, cie, eh_frame, entry, fde};
use hotspan_tests::place;
use hotspan_tests::process;
use hotspan_tests::program::Recipe;
use hotspan_tests::recorder::{Finished, Hotspan, read_folded};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::Workload;
use rustix::process::Signal;

/// More than any of this needs; a healthy run of these takes half of it.
const MOST_RSS_BYTES: u64 = 200 << 20;
/// The debug build of hotspan on a busy machine stays below it.
const MOST_CPU: Duration = Duration::from_secs(20);

fn c(source: &str) -> Result<PathBuf> {
    Recipe {
        compiler: "gcc",
        flags: &["-g", "-O2"],
        source: &format!("c/{source}.c"),
        ..Recipe::default()
    }
    .make()
}

/// A process that maps what is given to it, and one that has nothing to do with that.
struct Pair {
    hostile: Workload,
    innocent: Workload,
}

/// When the hostile process maps its files.
#[derive(Clone, Copy)]
enum Mapped {
    Before,
    Meanwhile,
}

impl Pair {
    fn start(what: &[OsString]) -> Result<Self> {
        let mut command = Command::new(c("mapper")?);
        command.arg("120").args(what);
        Ok(Self {
            hostile: Workload::start_command(&mut command)?,
            innocent: Workload::start_command(&mut Command::new(c("shares")?))?,
        })
    }

    fn map(&self) -> Result<()> {
        process::send(self.hostile.pid(), Signal::USR1)?;
        self.hostile.wait_for_line("mapped")
    }

    /// Records both until both have worked.
    fn record(&self, mapped: Mapped, options: &str) -> Result<(Finished, Stacks)> {
        let folder = place::folder()?;
        let file = folder.path().join("out.folded");
        if matches!(mapped, Mapped::Before) {
            self.map()?;
        }
        let (hostile, innocent) = (self.hostile.pid(), self.innocent.pid());
        let mut running = Hotspan::record()?
            .args(&format!("-F 999 -p {hostile} -p {innocent} {options}"))
            .output(&file)
            .start()?;
        running.wait_for_capture()?;
        if matches!(mapped, Mapped::Meanwhile) {
            self.map()?;
        }
        self.innocent.wait_for_work(Duration::from_millis(1500))?;
        running.signal(Signal::INT)?;
        let run = running.finish()?.succeeded()?;
        Ok((run, read_folded(&file)?))
    }
}

const INNOCENT: &str = "_start > __libc_start_main… > __libc_start_call_main > main > run
                        run > heavy_caller > heavy
                        run > light_caller > light
                        run > clock_gettime… > *";

/// Checks that a run was within its bounds, that it said no more than a line on each file, and that
/// the innocent process was recorded as ever.
fn check(run: &Finished, stacks: &Stacks, files: &[PathBuf]) -> Result<()> {
    let usage = run.usage;
    ensure!(
        usage.peak_rss_bytes < MOST_RSS_BYTES,
        "{} MiB: {}",
        usage.peak_rss_bytes >> 20,
        run.stderr
    );
    ensure!(usage.cpu < MOST_CPU, "{:?}: {}", usage.cpu, run.stderr);
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mentions = run.stderr.lines().filter(|line| line.contains(&*name));
        ensure!(mentions.count() <= 1, "{name}: {}", run.stderr);
    }
    let innocent = stacks.of_process("shares");
    Chains::parse(INNOCENT)?.check(&innocent, 0, &["heavy", "light"])
}

/// Maps files, before a recording and during another one, and checks both. Returns the stacks.
fn check_files(files: &[PathBuf]) -> Result<Stacks> {
    let what: Vec<OsString> = files.iter().map(Into::into).collect();
    let mut all = Stacks::default();
    for mapped in [Mapped::Before, Mapped::Meanwhile] {
        let (run, stacks) = Pair::start(&what)?.record(mapped, "")?;
        check(&run, &stacks, files)?;
        for (stack, count) in stacks.of_process("mapper").0 {
            all.add(stack, count);
        }
    }
    Ok(all)
}

/// Writes files that are made one way or another, numbered.
fn write_all(folder: &Path, files: Vec<Vec<u8>>) -> Result<Vec<PathBuf>> {
    let numbered = files.into_iter().enumerate();
    numbered
        .map(|(number, bytes)| {
            let path = folder.join(format!("bad-{number}.so"));
            fs::write(&path, bytes)?;
            Ok(path)
        })
        .collect()
}

#[test]
fn a_good_file_made_the_same_way_is_understood() -> Result<()> {
    let folder = place::folder()?;
    let files = write_all(folder.path(), vec![Elf::new(1, &eh_frame()).bytes()])?;
    let stacks = check_files(&files)?;
    let chain = ["__libc_start_call_main", "main", "visit", "hostile_code"];
    ensure!(
        10 * stacks.with_chain(&chain) > 9 * stacks.total(),
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn files_that_are_cut_off() -> Result<()> {
    let folder = place::folder()?;
    let elf = Elf::new(2, &eh_frame());
    let sections = elf.sections.iter();
    let mut lengths: Vec<u64> = sections
        .flat_map(|it| [it.offset, it.offset + 1, it.offset + it.bytes])
        .collect();
    let bytes = elf.bytes();
    let headers = 64 + 3 * 56;
    lengths.extend((0..headers).step_by(8));
    lengths.extend([1, 4, 5, 63, headers, 0x400, 0x40c, 0x418, CODE + 4, CODE + 16]);
    lengths.extend((REST..bytes.len() as u64).step_by(32));
    lengths.sort_unstable();
    lengths.dedup();
    let cut = |&length: &u64| bytes[..bytes.len().min(length as usize)].to_vec();
    let files = write_all(folder.path(), lengths.iter().map(cut).collect())?;
    check_files(&files).map(drop)
}

#[test]
fn sections_and_segments_that_claim_too_much() -> Result<()> {
    let folder = place::folder()?;
    let mut files = Vec::new();
    let mut number = 100;
    let mut file = |change: &dyn Fn(&mut Elf)| {
        number += 1;
        let mut elf = Elf::new(number, &eh_frame());
        change(&mut elf);
        files.push(elf.bytes());
    };
    for name in [".text", ".eh_frame", ".symtab", ".strtab", ".eh_frame_hdr"] {
        for bytes in [4 << 30, u64::MAX, u64::MAX / 64 * 24, 1 << 20] {
            file(&|elf| elf.section(name).bytes = bytes);
        }
        for offset in [u64::MAX, u64::MAX - 8, 4 << 30, 0, 1] {
            file(&|elf| elf.section(name).offset = offset);
            file(&|elf| elf.section(name).addr = offset);
        }
        file(&|elf| elf.section(name).link = u32::MAX);
        file(&|elf| elf.section(name).item_bytes = 0);
        file(&|elf| elf.section(name).flags = COMPRESSED);
        file(&|elf| elf.section(name).kind = 8);
    }
    for segment in 0..3 {
        for bytes in [4 << 30, u64::MAX, 0] {
            file(&|elf| elf.segments[segment].bytes = bytes);
            file(&|elf| elf.segments[segment].addr = bytes);
            file(&|elf| elf.segments[segment].offset = bytes);
        }
    }
    file(&|elf| elf.segments = vec![elf.segments[0]; 60]);
    file(&|elf| elf.sections = [&elf.sections[..], &vec![elf.sections[2]; 500]].concat());
    file(&|elf| elf.section_count = Some(0));
    file(&|elf| elf.section_count = Some(u16::MAX));
    let files = write_all(folder.path(), files)?;
    check_files(&files).map(drop)
}

/// Entries that point at themselves, at one another, at the middle of others, and far away.
#[test]
fn unwind_information_that_goes_in_circles() -> Result<()> {
    let folder = place::folder()?;
    let good = cie();
    let good_bytes = good.len() as u32;
    let mut files = Vec::new();
    let mut file = |eh_frame: &[u8]| {
        files.push(Elf::new(300 + files.len() as u64, eh_frame).bytes());
    };
    for distance in [4, 1, 2, 8, good_bytes, good_bytes + 5, good_bytes + 8, 1 << 20, u32::MAX, 1 << 31] {
        file(&[&good[..], &fde(REST + good.len() as u64, distance, &[])].concat());
    }
    // Two functions, each of which takes the other for what they share.
    let first = fde(REST, 0_u32.wrapping_sub(28), &[0; 3]);
    let second = fde(REST + first.len() as u64, first.len() as u32 + 4, &[0; 3]);
    file(&[first, second].concat());
    // Lengths that are zero, huge, of the longer form, or lead behind the end.
    for length in [0, 1, 3, 0xffff_fff0, u32::MAX, 1 << 30] {
        file(&[&u32::to_le_bytes(length)[..], &good[4..], &[0; 64]].concat());
    }
    file(&[&[0xff; 4][..], &u64::MAX.to_le_bytes(), &[0; 64]].concat());
    file(&[0xff; 4096]);
    // An entry that is shared and runs a program of its own without an end.
    file(&entry(&[&good[4..], &[0x0a; 100_000]].concat()));
    let files = write_all(folder.path(), files)?;
    check_files(&files).map(drop)
}

/// Programs that say little with many bytes, and files with more functions than anybody has.
#[test]
fn unwind_information_of_absurd_size() -> Result<()> {
    let folder = place::folder()?;
    let good = cie();
    let mut functions = good.clone();
    while functions.len() < 100 << 20 {
        let distance = functions.len() as u32 + 4;
        functions.extend(fde(REST + functions.len() as u64, distance, &[]));
    }
    let at = REST + good.len() as u64;
    let distance = good.len() as u32 + 4;
    // Each byte is a row; each pair is a row, with another rule; states that are remembered.
    let advance = fde(at, distance, &[0x41; 32 << 20]);
    let change = fde(at, distance, &[0x41, 0x0e, 0x10, 0x41, 0x0e, 0x18].repeat(4 << 20));
    let remember = fde(at, distance, &[0x0a; 16 << 20]);
    let bytes = [
        functions,
        [&good[..], &advance].concat(),
        [&good[..], &change].concat(),
        [&good[..], &remember].concat(),
    ];
    let files = bytes.iter().zip(400..);
    let files = files.map(|(eh_frame, id)| Elf::new(id, eh_frame).bytes());
    let files = write_all(folder.path(), files.collect())?;
    check_files(&files).map(drop)
}
