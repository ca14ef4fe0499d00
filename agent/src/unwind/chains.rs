//! Whole stacks: what the kernel side makes of our tables, beside what is true.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use hotspan_abi::{
    limits::WINDOW_WORDS,
    records::{EXACT_ADDRESS, StopReason},
    unwind::{Mapping, PAGE_BYTES, Rule, SEGMENT_WORDS, WideRule},
};
use hotspan_ebpf::{
    arch::{Aarch64, Arch, X86_64},
    unwind::{ReadMemory, Registers, Step, Tables, Unwinder},
};

use super::{Rows, TableRule, eh_frame, replay, table};

/// Memory that a function reads, of a process on a processor `A`.
pub(super) struct Memory<A, F>(F, std::marker::PhantomData<A>);

impl<A, F: FnMut(u64) -> Option<u64>> Memory<A, F> {
    pub fn new(read: F) -> Self {
        Self(read, std::marker::PhantomData)
    }
}

impl<A: Arch, F: FnMut(u64) -> Option<u64>> ReadMemory for Memory<A, F> {
    type Arch = A;

    fn read_words(&mut self, addr: u64, words: &mut [u64; WINDOW_WORDS]) -> bool {
        let addrs = (0..).map(|index| addr.wrapping_add(8 * index));
        let mut places = words.iter_mut().zip(addrs);
        places.all(|(word, addr)| (self.0)(addr).map(|read| *word = read).is_some())
    }

    fn read_word(&mut self, addr: u64) -> Option<u64> {
        (self.0)(addr)
    }
}

/// The tables of one process, as the kernel side has them.
#[derive(Default)]
pub(super) struct Space {
    words: Vec<u32>,
    wide: Vec<WideRule>,
    mappings: Vec<Mapping>,
}

impl Space {
    /// Adds the tables for an executable range of a file's addresses, mapped that much higher.
    pub fn add(&mut self, rows: &Rows, text: std::ops::Range<u64>, bias: u64) {
        for piece in table::pieces(rows, text) {
            let table = table::build(rows, piece).unwrap();
            let start = table.pages_start.wrapping_add(bias);
            let first = self.wide.len() as u32;
            self.wide.extend(&table.wide);
            let in_segment = self.words.len() % SEGMENT_WORDS;
            if in_segment + table.words.len() > SEGMENT_WORDS {
                let rest = SEGMENT_WORDS - in_segment;
                self.words.resize(self.words.len() + rest, 0);
            }
            let base = self.words.len() as u32;
            self.mappings.push(Mapping {
                start,
                end: start + u64::from(table.page_count) * PAGE_BYTES,
                pages_start: start,
                pages: base,
                page_count: table.page_count,
            });
            let words = table.place(base, |wide| Rule::wide(first + wide));
            self.words.extend(words);
        }
    }

    /// The frames of a stack, leaf first and marked as in a sample, and why they end.
    pub fn walk<A: Arch>(
        &self,
        registers: Registers,
        read: impl FnMut(u64) -> Option<u64>,
    ) -> (Vec<u64>, StopReason) {
        let mut mappings = self.mappings.clone();
        mappings.sort_by_key(|mapping| mapping.start);
        let view = View {
            words: &self.words,
            wide: &self.wide,
        };
        replay::walk(registers, &mut Memory::<A, _>::new(read), &mappings, &view)
    }
}

struct View<'a> {
    words: &'a [u32],
    wide: &'a [WideRule],
}

impl Tables for View<'_> {
    type Words<'b>
        = &'b [u32]
    where
        Self: 'b;

    fn segment(&self, index: u32) -> Option<&[u32]> {
        self.words
            .chunks(SEGMENT_WORDS)
            .nth(index as usize / SEGMENT_WORDS)
    }

    fn wide(&self, index: u32) -> Option<WideRule> {
        self.wide.get(index as usize).copied()
    }
}

/// Goes to the caller by one rule; `None` where there is none.
pub(super) fn step<A: Arch>(
    rule: TableRule,
    wide: &[WideRule],
    registers: Registers,
    read: impl FnMut(u64) -> Option<u64>,
) -> Option<Registers> {
    let rule = match rule {
        TableRule::Short(rule) => rule,
        TableRule::Wide(index) => Rule::wide(index).unwrap(),
    };
    let mut unwinder = Unwinder::EMPTY;
    unwinder.start(registers);
    let tables = View { words: &[], wide };
    match unwinder.step(rule, &mut Memory::<A, _>::new(read), &tables) {
        Step::Caller => Some(unwinder.registers),
        Step::Stop(_) => None,
    }
}

/// One recorded moment: registers, a part of the stack, and what is true of it.
struct Recorded {
    registers: Registers,
    start: u64,
    words: Vec<u64>,
    /// Return addresses, innermost first; with [`EXACT_ADDRESS`] where a signal hit.
    callers: Vec<u64>,
}

impl Recorded {
    fn read(&self, addr: u64) -> Option<u64> {
        let into = addr.checked_sub(self.start)?;
        let at = usize::try_from(into / 8).ok()?;
        self.words.get(at).filter(|_| into % 8 == 0).copied()
    }
}

fn number(hexadecimal: &str) -> u64 {
    u64::from_str_radix(hexadecimal, 16).unwrap()
}

fn numbers(hexadecimal: &str) -> Vec<u64> {
    hexadecimal
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(number)
        .collect()
}

/// A line of `aarch64.steps`, see `record_aarch64.py`.
fn recorded_aarch64(line: &str) -> Recorded {
    let parts: Vec<_> = line.split(';').collect();
    let [ip, sp, fp, link] = numbers(parts[0])[..] else {
        panic!("{line}")
    };
    let words = parts[1]
        .split(' ')
        .flat_map(|word| match word.strip_prefix('*') {
            Some(count) => vec![0; number(count) as usize],
            None => vec![number(word)],
        });
    let callers = parts[2].split(' ').filter(|word| !word.is_empty());
    let callers = callers.map(|word| match word.strip_prefix('!') {
        Some(addr) => number(addr) | EXACT_ADDRESS,
        None => number(word),
    });
    Recorded {
        registers: Registers {
            ip,
            sp,
            fp,
            link,
            result: NO_NEW_THREAD,
            ..Registers::default()
        },
        start: sp,
        words: words.collect(),
        callers: callers.collect(),
    }
}

/// A result of a system call, as the programs have it that go on where threads begin.
const NO_NEW_THREAD: u64 = 1;

const AARCH64: &[u8] = include_bytes!("chains/aarch64.elf");
const AARCH64_STEPS: &str = include_str!("chains/aarch64.steps");

/// Every instruction of a program for arm64: leaves, large and variable frames, frames without a
/// record, signed return addresses, a signal and its trampoline, which nothing describes.
#[test]
fn every_step_on_arm64_has_its_callers() {
    let found = eh_frame::rows(AARCH64, None).unwrap();
    let mut space = Space::default();
    for text in found.report.text {
        space.add(&found.rows, text, 0);
    }
    for line in AARCH64_STEPS.lines() {
        let recorded = recorded_aarch64(line);
        let walked = space.walk::<Aarch64>(recorded.registers, |addr| recorded.read(addr));
        let mut frames = vec![recorded.registers.ip];
        frames.extend(&recorded.callers);
        assert_eq!(walked, (frames, StopReason::Root), "{line}");
    }
}

/// Compiles a program of this folder.
fn compiled(folder: &Path, source: &str, options: &[&str]) -> PathBuf {
    let program = folder.join(source.replace('.', "_"));
    let path = format!("{}/src/unwind/chains/{source}", env!("CARGO_MANIFEST_DIR"));
    let status = Command::new("cc")
        .args(["-O2", &path, "-o"])
        .arg(&program)
        .args(options)
        .status();
    assert!(
        status.expect("a C compiler is needed").success(),
        "{source}"
    );
    program
}

/// The tables of the executable mappings that a line of `/proc/PID/maps` tells.
fn add_mapping(space: &mut Space, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let (start, end) = words[0].split_once('-').unwrap();
    let (start, end, offset) = (number(start), number(end), number(words[2]));
    let Some(path) = words.get(5).filter(|path| path.starts_with('/')) else {
        return;
    };
    let file = fs::read(path).unwrap();
    let found = eh_frame::rows(&file[..], None).unwrap();
    // What is mapped there of the file's only executable segment begins on the same page.
    for text in found.report.text {
        let bias = start.wrapping_sub(text.start & !0xfff);
        assert!(
            text.end.wrapping_add(bias) <= end,
            "{line}: {offset:x} {text:x?}"
        );
        space.add(&found.rows, text, bias);
    }
}

/// Steps through a program whose library functions are bound when they are first called: its own
/// code, linkage tables, the dynamic linker, the C library.
#[test]
fn steps_on_x86_64_have_their_callers() {
    let folder = tempfile::tempdir().unwrap();
    let recorder = compiled(folder.path(), "record_x86_64.c", &[]);
    let options = ["-Wl,-z,lazy", "-fstack-clash-protection", "-lm"];
    let target = compiled(folder.path(), "target.c", &options);
    let output = Command::new(recorder)
        .arg("3")
        .arg(target)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    let (mut space, mut known) = (Space::default(), HashSet::new());
    let (mut steps, mut lost) = (0, Vec::new());
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(mapping) = line.strip_prefix("m ") {
            if known.insert(mapping.to_owned()) {
                add_mapping(&mut space, mapping);
            }
            continue;
        }
        let parts: Vec<_> = line.split(';').collect();
        let ([ip, sp, fp, link, aligned, r10, r11], callers) = (
            numbers(parts[0])[..7].try_into().unwrap(),
            numbers(parts[2]),
        );
        let mut words = numbers(parts[1]);
        let start = words.remove(0);
        let recorded = Recorded {
            registers: Registers {
                ip,
                sp,
                fp,
                link,
                aligned,
                result: NO_NEW_THREAD,
                scratch: [r10, r11],
            },
            start,
            words,
            callers,
        };
        let (frames, stop) = space.walk::<X86_64>(recorded.registers, |addr| recorded.read(addr));
        steps += 1;
        // It is watched from `main` on: there the recorded words end, too.
        let is_right = frames.get(1..=recorded.callers.len()) == Some(&recorded.callers);
        if !is_right {
            lost.push(format!("{line}\n{frames:x?} {stop:?}"));
        }
    }
    assert!(steps > 2000, "{steps}");
    // In the first instructions of the dynamic linker's function that binds a symbol, the register
    // by which its caller's frame is known is not saved yet.
    assert!(
        lost.len() * 500 < steps,
        "{} of {steps}, the first:\n{}",
        lost.len(),
        lost[0]
    );
}
