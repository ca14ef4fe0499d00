//! Files, paths and processes that are made to hurt whoever looks at them: hotspan takes them in
//! bounded time and memory, and the process beside them is recorded as ever.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use hotspan_tests::chains::Chains;
use hotspan_tests::hostile::{CODE, COMPRESSED, Elf, REST, Segment, cie, eh_frame, entry, fde};
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
    fn start<S: AsRef<OsStr>>(what: &[S]) -> Result<Self> {
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

    /// Records both until the innocent one has worked.
    fn record(&self, mapped: Mapped, options: &str) -> Result<(Finished, Stacks)> {
        if matches!(mapped, Mapped::Before) {
            self.map()?;
            return self.record_mapped(options);
        }
        self.record_and(|| self.map(), options)
    }

    /// The same when the files are mapped already.
    fn record_mapped(&self, options: &str) -> Result<(Finished, Stacks)> {
        self.record_and(|| Ok(()), options)
    }

    fn record_and(
        &self,
        act: impl FnOnce() -> Result<()>,
        options: &str,
    ) -> Result<(Finished, Stacks)> {
        let folder = place::folder()?;
        let file = folder.path().join("out.folded");
        let (hostile, innocent) = (self.hostile.pid(), self.innocent.pid());
        let mut running = Hotspan::record()?
            .args(&format!("-F 999 -p {hostile} -p {innocent} {options}"))
            .output(&file)
            .start()?;
        running.wait_for_capture()?;
        act()?;
        self.innocent.wait_for_work(Duration::from_millis(1500))?;
        running.signal(Signal::INT)?;
        let run = running.finish()?.succeeded()?;
        Ok((run, read_folded(&file)?))
    }
}

const INNOCENT: &str = "_start > __libc_start_main… > __libc_start_call_main > main > run
                        run > heavy_caller > heavy
                        run > light_caller > light
                        run > clock_gettime… > *
                        heavy | light > burn";

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
        let is_logged = |line: &&str| line.contains("WARN") && line.contains(&*name);
        let mentions = run.stderr.lines().filter(is_logged);
        ensure!(mentions.count() <= 1, "{name}: {}", run.stderr);
    }
    let innocent = stacks.of_process("shares");
    Chains::parse(INNOCENT)?.check(&innocent, 0, &["heavy", "light"])
}

/// Maps files, before a recording and during another one, and checks both. Returns the stacks.
fn check_files(files: &[PathBuf]) -> Result<Stacks> {
    let mut all = Stacks::default();
    for mapped in [Mapped::Before, Mapped::Meanwhile] {
        let (run, stacks) = Pair::start(files)?.record(mapped, "")?;
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
    lengths.extend([
        1,
        4,
        5,
        63,
        headers,
        0x400,
        0x40c,
        0x418,
        CODE + 4,
        CODE + 16,
    ]);
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
    for distance in [
        4,
        1,
        2,
        8,
        good_bytes,
        good_bytes + 5,
        good_bytes + 8,
        1 << 20,
        u32::MAX,
        1 << 31,
    ] {
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
    let advance = fde(at, distance, &vec![0x41; 32 << 20]);
    let change = fde(
        at,
        distance,
        &[0x41, 0x0e, 0x10, 0x41, 0x0e, 0x18].repeat(4 << 20),
    );
    let remember = fde(at, distance, &vec![0x0a; 16 << 20]);
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

/// The start of a compressed section: what it is packed with, and how long it says it is.
fn packed(format: u32, claimed_bytes: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = [format, 0].map(u32::to_le_bytes).concat();
    bytes.extend([claimed_bytes, 8].map(u64::to_le_bytes).concat());
    bytes.extend(content);
    bytes
}

const ZLIB: u32 = 1;
const ZSTANDARD: u32 = 2;

fn zlib_of_zeros(bytes: usize) -> Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        encoder.write_all(&zeros)?;
    }
    Ok(encoder.finish()?)
}

/// A frame of blocks, each of which repeats a zero 128 Ki times (RFC 8878, section 3.1.1).
fn zstandard_of_zeros(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
    let blocks = bytes >> 17;
    for block in 1..=blocks {
        let head = (1_u32 << 17) << 3 | 1 << 1 | u32::from(block == blocks);
        frame.extend(&head.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// Sections that unpack to much more than the file has.
fn bombs() -> Result<Vec<Vec<u8>>> {
    const BYTES: usize = 1 << 30;
    let zlib = zlib_of_zeros(BYTES)?;
    let zstandard = zstandard_of_zeros(BYTES);
    let contents = [
        packed(ZLIB, 4 << 30, &zlib[..1000]),
        packed(ZLIB, BYTES as u64, &zlib),
        packed(ZLIB, 4096, &zlib),
        packed(ZLIB, 100 << 20, &zlib),
        packed(ZSTANDARD, 4 << 30, &zstandard[..1000]),
        packed(ZSTANDARD, BYTES as u64, &zstandard),
        packed(ZSTANDARD, 4096, &zstandard),
        packed(7, 4096, &zlib[..1000]),
    ];
    let mut files = Vec::new();
    for name in [
        ".debug_frame",
        ".symtab",
        ".strtab",
        ".debug_info",
        ".debug_line",
    ] {
        for content in &contents {
            let mut elf = Elf::new(500 + files.len() as u64, &eh_frame());
            if elf.sections.iter().any(|it| it.name == name) {
                elf.section(name).name = ".old";
            }
            let section = elf.add(name, 1, content);
            elf.sections[section].flags = COMPRESSED;
            if name == ".symtab" {
                elf.sections[section].kind = 2;
                elf.sections[section].item_bytes = 24;
            }
            files.push(elf.bytes());
        }
    }
    Ok(files)
}

#[test]
fn sections_that_unpack_to_a_gigabyte() -> Result<()> {
    let folder = place::folder()?;
    let files = write_all(folder.path(), bombs()?)?;
    check_files(&files)?;
    let (run, stacks) = Pair::start(&files)?.record(Mapped::Before, "--inline")?;
    check(&run, &stacks, &files)
}

/// A file of a terabyte, next to nothing of which is there. It says that all of it is loaded, and
/// has no sections, so that whoever wants to know whether it is a Go program has to search.
#[test]
fn sparse_files() -> Result<()> {
    const BYTES: u64 = 1 << 40;
    let folder = place::folder()?;
    let mut files = Vec::new();
    for has_sections in [false, true] {
        let mut elf = Elf::new(600 + u64::from(has_sections), &eh_frame());
        elf.segments[0].bytes = BYTES;
        let data = elf.segments[0];
        elf.segments.push(Segment {
            flags: 4,
            offset: 1 << 30,
            addr: BYTES,
            ..data
        });
        if has_sections {
            for name in [".symtab", ".strtab", ".eh_frame"] {
                elf.section(name).bytes = 300 << 30;
            }
        } else {
            elf.section_count = Some(0);
        }
        let path = folder.path().join(format!("bad-sparse-{has_sections}.so"));
        let mut bytes = elf.bytes();
        if !has_sections {
            // Nor a place where they were.
            bytes[40..48].fill(0);
        }
        fs::write(&path, bytes)?;
        OpenOptions::new().write(true).open(&path)?.set_len(BYTES)?;
        files.push(path);
    }
    check_files(&files).map(drop)
}

/// The owner cuts the file off just when its symbols are read.
#[test]
fn a_file_that_shrinks_while_it_is_read() -> Result<()> {
    let folder = place::folder()?;
    let path = folder.path().join("bad-shrinking.so");
    let mut elf = Elf::new(700, &eh_frame());
    // So many symbols take a while.
    let mut symbols = Vec::new();
    for number in 0..3_000_000_u64 {
        symbols.extend([1, 0x10012].map(u32::to_le_bytes).concat());
        symbols.extend([CODE + number % 8, 8].map(u64::to_le_bytes).concat());
    }
    let strings = elf.sections.iter().position(|it| it.name == ".strtab");
    elf.section(".symtab").name = ".old";
    let all = elf.add(".symtab", 2, &symbols);
    elf.sections[all].link = strings.context("no .strtab")? as u32;
    elf.sections[all].item_bytes = 24;
    elf.write(&path)?;

    let pair = Pair::start(&[&path])?;
    pair.map()?;
    let out = folder.path().join("out.folded");
    let (hostile, innocent) = (pair.hostile.pid(), pair.innocent.pid());
    let mut running = Hotspan::record()?
        .args(&format!("-F 999 -p {hostile} -p {innocent}"))
        .output(&out)
        .start()?;
    running.wait_for_capture()?;
    pair.innocent.wait_for_work(Duration::from_millis(1500))?;
    let pid = running.pid();
    running.signal(Signal::INT)?;
    let maps = format!("/proc/{pid}/maps");
    process::wait_for("the mapping of the file", Duration::from_secs(20), || {
        let maps = fs::read_to_string(&maps).unwrap_or_default();
        Ok(maps.contains("bad-shrinking.so").then_some(()))
    })?;
    OpenOptions::new().write(true).open(&path)?.set_len(REST)?;
    let run = running.finish()?.succeeded()?;
    check(&run, &read_folded(&out)?, &[path])
}

/// What lies under the path of a mapped file is a pipe by the time it is looked at, and so is what
/// the file names as the place of its debugging information. Nobody writes to either.
#[test]
fn pipes_in_place_of_files() -> Result<()> {
    let folder = place::folder()?;
    let pipe = folder.path().join("pipe");
    process::output(Command::new("mkfifo").arg(&pipe))?;
    let mut files = Vec::new();
    for section in [".gnu_debuglink", ".gnu_debugaltlink", ".debug_sup"] {
        let mut elf = Elf::new(800 + files.len() as u64, &eh_frame());
        let mut content = Vec::new();
        if section == ".debug_sup" {
            content.extend([5, 0, 0]);
        }
        content.extend(pipe.as_os_str().as_bytes());
        content.push(0);
        if section == ".gnu_debuglink" {
            content.resize(content.len().next_multiple_of(4), 0);
        } else {
            content.push(8);
        }
        content.extend([7; 8]);
        elf.add(section, 1, &content);
        let path = folder.path().join(format!("bad-link{section}.so"));
        elf.write(&path)?;
        files.push(path);
    }
    let path = folder.path().join("bad-replaced.so");
    Elf::new(810, &eh_frame()).write(&path)?;
    files.push(path.clone());

    let pair = Pair::start(&files)?;
    pair.map()?;
    fs::rename(&pipe, &path)?;
    process::output(Command::new("mkfifo").arg(&pipe))?;
    for options in ["", "--inline"] {
        let (run, stacks) = pair.record_mapped(options)?;
        check(&run, &stacks, &files)?;
        let named = stacks.with_chain(&["visit", "hostile_code"]);
        ensure!(named > 0, "{options}: {}", stacks.commonest());
    }
    Ok(())
}

#[test]
fn names_that_are_no_text() -> Result<()> {
    let folder = place::folder()?;
    let names: [&[u8]; 6] = [
        b"bad-new\nline;shares;_start 7.so",
        b"bad-\xff\xfe\x80.so",
        b"bad-\x1b[31m\r\t.so",
        b"bad-<script>&amp;\"'.so",
        b"bad- (deleted)",
        b"bad-\\012.so",
    ];
    let mut files = Vec::new();
    for name in names {
        let path = folder.path().join(OsString::from_vec(name.to_vec()));
        let mut elf = Elf::new(900 + files.len() as u64, &eh_frame());
        // Without a symbol, the file's own name is all there is.
        elf.section(".symtab").name = ".old";
        elf.write(&path)?;
        files.push(path);
    }
    let stacks = check_files(&files)?;
    let unnamed = stacks.filter(|stack| stack.last().is_some_and(|leaf| leaf.starts_with("bad-")));
    ensure!(
        10 * unnamed.total() > 9 * stacks.total(),
        "{}",
        stacks.commonest()
    );
    let (run, stacks) = Pair::start(&files)?.record(Mapped::Meanwhile, "--json")?;
    check(&run, &stacks, &[])?;
    let modules = run.summary()?.top.into_iter().map(|hot| hot.module);
    ensure!(
        modules.filter(|module| module.starts_with("bad-")).count() >= 5,
        "{}",
        run.stdout
    );
    Ok(())
}

#[test]
fn a_copy_in_memory_without_a_name() -> Result<()> {
    let folder = place::folder()?;
    let path = folder.path().join("bad-original.so");
    Elf::new(1000, &eh_frame()).write(&path)?;
    let mut what = OsString::from("memfd:");
    what.push(&path);
    let (run, stacks) = Pair::start(&[what])?.record(Mapped::Meanwhile, "")?;
    check(&run, &stacks, &[path])?;
    let chain = ["__libc_start_call_main", "main", "visit", "hostile_code"];
    let mapper = stacks.of_process("mapper");
    ensure!(
        10 * mapper.with_chain(&chain) > 9 * mapper.total(),
        "{}",
        mapper.commonest()
    );
    Ok(())
}

/// Removes a file when the test ends.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A map that names everything, nothing, and everything again, for 80 MB.
#[test]
fn a_perf_map_of_nonsense() -> Result<()> {
    let pair = Pair::start(&["anonymous"])?;
    pair.map()?;
    let map = Removed(format!("/tmp/perf-{}.map", pair.hostile.pid()).into());
    let mut text = Vec::new();
    text.extend(b"0 ffffffffffffffff everything;_start 7\n");
    text.extend(b"ffffffffffffffff ffffffffffffffff overflow\n");
    text.extend(b"nonsense\n\n \n0\n0 0\n0 0 \n-1 -1 x\n");
    text.resize(3 << 20, 0xff);
    text.push(b'\n');
    let mut seed = 1_u64;
    while text.len() < 80 << 20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        writeln!(text, "{:x} {:x} f{seed}", seed >> 17, seed >> 40 & 0xffff)?;
    }
    fs::write(&map.0, text)?;
    let (run, stacks) = pair.record_mapped("")?;
    check(&run, &stacks, std::slice::from_ref(&map.0))?;
    ensure!(
        stacks.of_process("mapper").total() > 0,
        "{}",
        stacks.commonest()
    );
    Ok(())
}

#[test]
fn sixty_thousand_mappings() -> Result<()> {
    let folder = place::folder()?;
    let path = folder.path().join("bad-many.so");
    Elf::new(1100, &eh_frame()).write(&path)?;
    let mut many = OsString::from("many:60000:");
    many.push(&path);
    for mapped in [Mapped::Before, Mapped::Meanwhile] {
        let what = [many.clone(), path.clone().into()];
        let (run, stacks) = Pair::start(&what)?.record(mapped, "")?;
        check(&run, &stacks, std::slice::from_ref(&path))?;
        let chain = ["visit", "hostile_code"];
        ensure!(stacks.with_chain(&chain) > 0, "{}", stacks.commonest());
    }
    Ok(())
}
