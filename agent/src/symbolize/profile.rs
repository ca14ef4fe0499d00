//! The late step: a window of raw samples becomes a profile with names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    sync::Arc,
};

use hotspan_abi::{limits::COMM_BYTES, records::StopReason};
use rustc_hash::FxHashMap;

use super::{
    kallsyms::Kallsyms,
    names::{FileNames, Named},
    perf_map::{PerfMap, Refused},
    root::is_rooted,
};
use crate::{
    aggregate::{Samples, ThreadKey, clock::Clock},
    model::{
        Binary, BinaryId, BinaryIdx, BinaryKind, Frame, FrameIdx, FrameKind, Line, Process,
        ProcessId, ProcessIdx, Profile, Quality, RawFrame, Sample, Segment, Stack, StackIdx,
        Thread, ThreadIdx,
    },
    process::{Binaries, ProcessTable},
};

/// What the late step needs beside the samples.
pub struct Context<'a> {
    /// Sampled processes.
    pub table: &'a ProcessTable,
    /// Files they executed.
    pub binaries: &'a Binaries,
    /// Turns kernel times into wall-clock times.
    pub clock: Clock,
    /// Source lines and inlined functions are wanted.
    pub with_lines: bool,
    /// Samples per second and CPU.
    pub rate_hz: u32,
    /// Start of the window.
    pub start_mono_ns: u64,
    /// End of the window.
    pub end_mono_ns: u64,
}

/// Names that were looked up, so that the next window need not read symbols again.
#[derive(Default)]
pub struct NameCache {
    files: FxHashMap<(BinaryId, u64), Option<Named>>,
    kernel_addrs: BTreeSet<u64>,
    kernel: Kallsyms,
}

/// Names that are kept from one window to the next.
const MAX_CACHED_NAMES: usize = 1 << 16;

impl NameCache {
    /// Forgets everything, when it is much.
    fn make_room(&mut self) {
        if self.files.len() + self.kernel_addrs.len() > MAX_CACHED_NAMES {
            *self = Self::default();
        }
    }

    /// The names of ELF addresses of a file.
    fn find(
        &mut self,
        id: BinaryId,
        addrs: &[u64],
        look_up: impl FnOnce(&[u64]) -> Vec<Option<Named>>,
    ) -> Vec<Option<Named>> {
        let is_new = |addr: &u64| !self.files.contains_key(&(id, *addr));
        let new: Vec<_> = addrs.iter().copied().filter(is_new).collect();
        if !new.is_empty() {
            for (addr, named) in new.iter().zip(look_up(&new)) {
                self.files.insert((id, *addr), named);
            }
        }
        let cached = |addr: &u64| self.files.get(&(id, *addr)).cloned().flatten();
        addrs.iter().map(cached).collect()
    }

    /// The kernel's symbols for addresses; those from before serve as long as they are enough.
    fn kernel(&mut self, addrs: impl Iterator<Item = u64>) -> &Kallsyms {
        let count = self.kernel_addrs.len();
        let kernel = &self.kernel;
        self.kernel_addrs
            .extend(addrs.filter(|&addr| !kernel.covers(addr)));
        if self.kernel_addrs.len() > count {
            // Who comes again will come often.
            let keeps_image = count > 0;
            let read = Kallsyms::read(self.kernel_addrs.iter().copied(), keeps_image);
            self.kernel = read.unwrap_or_else(|error| {
                tracing::warn!(reason = %error, "kernel functions have no names");
                Kallsyms::default()
            });
        }
        &self.kernel
    }
}

/// Names every frame and puts the profile together. `expected` and `lost` of its quality are the
/// caller's to fill in.
#[must_use]
pub fn profile(samples: &Samples, context: &Context<'_>, names: &mut NameCache) -> Profile {
    names.make_room();
    let mut builder = Builder::new(context);
    let mut frames = builder.frames(samples, names);
    let stacks: Vec<_> = samples
        .stacks
        .iter()
        .map(|stack| builder.stack(stack, samples, &mut frames))
        .collect();
    builder.add_samples(samples, &stacks);
    builder.profile
}

/// A stack of the window: its position in the profile, and what it adds to the quality.
struct BuiltStack {
    at: StackIdx,
    is_rooted: bool,
    is_named: bool,
    cut: Option<&'static str>,
}

/// A frame of the window with its names, and its position in the profile once a stack uses it: the
/// mark of a cut is left out where the stack turns out to be complete.
struct NamedFrame {
    frame: Frame,
    position: Option<FrameIdx>,
}

impl NamedFrame {
    fn position(&mut self, profile: &mut Profile) -> FrameIdx {
        *self.position.get_or_insert_with(|| {
            profile.frames.push(self.frame.clone());
            FrameIdx(profile.frames.len() as u32 - 1)
        })
    }
}

struct Builder<'a> {
    context: &'a Context<'a>,
    profile: Profile,
    binaries: FxHashMap<BinaryId, BinaryIdx>,
    modules: FxHashMap<usize, BinaryIdx>,
    processes: FxHashMap<ProcessId, ProcessIdx>,
}

impl<'a> Builder<'a> {
    fn new(context: &'a Context<'a>) -> Self {
        let start_wall_ns = context.clock.wall_of_mono(context.start_mono_ns);
        // One nanosecond more, because the window's end is not part of it.
        let duration_ns = context.end_mono_ns.saturating_sub(context.start_mono_ns) + 1;
        let profile = Profile {
            start_wall_ns,
            duration_ns,
            rate_hz: context.rate_hz,
            ..Profile::default()
        };
        Self {
            context,
            profile,
            binaries: FxHashMap::default(),
            modules: FxHashMap::default(),
            processes: FxHashMap::default(),
        }
    }

    /// Names all frames of the window, in its order.
    fn frames(&mut self, samples: &Samples, cache: &mut NameCache) -> Vec<NamedFrame> {
        let mut frames: Vec<Option<Frame>> = vec![None; samples.frames.len()];
        let mut by_file: BTreeMap<BinaryId, Vec<(usize, u64)>> = BTreeMap::new();
        let mut kernel = Vec::new();
        let mut anonymous: BTreeMap<ProcessId, Vec<(usize, u64)>> = BTreeMap::new();
        for (at, frame) in samples.frames.iter().enumerate() {
            match *frame {
                RawFrame::File(binary, offset) => {
                    by_file.entry(binary).or_default().push((at, offset));
                }
                RawFrame::Kernel(addr) => kernel.push((at, addr)),
                RawFrame::Anonymous(process, addr) => {
                    anonymous.entry(process).or_default().push((at, addr));
                }
                RawFrame::Nowhere(addr) => {
                    frames[at] = Some(unnamed(FrameKind::Native, None, "unknown", addr));
                }
                RawFrame::Cut(stop) => frames[at] = Some(note(stop)),
            }
        }
        let names = FileNames::new(self.context.with_lines);
        for (binary, wanted) in by_file {
            self.name_file(&names, cache, binary, &wanted, &mut frames);
        }
        let refused = names.refused();
        if refused > 0 {
            tracing::warn!(
                files = refused,
                "symbols of some files would take too much memory, and are not read"
            );
        }
        if !kernel.is_empty() {
            self.name_kernel(cache, &kernel, &mut frames);
        }
        for (process, wanted) in anonymous {
            self.name_anonymous(process, &wanted, &mut frames);
        }
        let named = frames.into_iter();
        named
            .map(|frame| NamedFrame {
                frame: frame.expect("every kind of frame was named"),
                position: None,
            })
            .collect()
    }

    fn name_file(
        &mut self,
        names: &FileNames,
        cache: &mut NameCache,
        id: BinaryId,
        wanted: &[(usize, u64)],
        frames: &mut [Option<Frame>],
    ) {
        let known = self.context.binaries.get(id);
        let at = self.binary(id);
        let name = self.profile.binaries[at.at()].name().to_owned();
        // Without program headers the offset is the best address there is.
        let addrs: Vec<u64> = wanted
            .iter()
            .map(|&(_, offset)| known.facts.addr_of_offset(offset).unwrap_or(offset))
            .collect();
        let found = cache.find(id, &addrs, |new| names.find(known, new));
        for ((&(slot, _), &addr), found) in wanted.iter().zip(&addrs).zip(found) {
            frames[slot] = Some(match found {
                Some(Named { kind, lines }) => Frame {
                    kind,
                    binary: Some(at),
                    addr,
                    lines,
                    is_named: true,
                },
                None => unnamed(FrameKind::Native, Some(at), &name, addr),
            });
        }
    }

    fn binary(&mut self, id: BinaryId) -> BinaryIdx {
        if let Some(&at) = self.binaries.get(&id) {
            return at;
        }
        let known = self.context.binaries.get(id);
        let at = self.add_binary(Binary {
            kind: known.kind,
            path: known.path.clone(),
            build_id: known.facts.build_id.clone(),
            go_build_id: known.facts.go_build_id.clone(),
            htlhash: known.htlhash,
            segments: known.facts.segments.clone(),
        });
        self.binaries.insert(id, at);
        at
    }

    fn add_binary(&mut self, binary: Binary) -> BinaryIdx {
        self.profile.binaries.push(binary);
        BinaryIdx(self.profile.binaries.len() as u32 - 1)
    }

    fn name_kernel(
        &mut self,
        cache: &mut NameCache,
        wanted: &[(usize, u64)],
        frames: &mut [Option<Frame>],
    ) {
        let symbols = cache.kernel(wanted.iter().map(|&(_, addr)| addr));
        for &(slot, addr) in wanted {
            frames[slot] = Some(match symbols.find(addr) {
                Some(symbol) => {
                    let module = &symbols.modules()[symbol.module];
                    let binary = self.kernel_binary(symbol.module, module);
                    Frame {
                        kind: FrameKind::Kernel,
                        binary: Some(binary),
                        addr: addr - module.start,
                        lines: vec![plain_line(symbol.name)],
                        is_named: true,
                    }
                }
                None => unnamed(FrameKind::Kernel, None, "[kernel]", addr),
            });
        }
    }

    /// The kernel's parts have addresses relative to their start: where they are loaded is a
    /// secret, and different at every boot.
    fn kernel_binary(&mut self, at: usize, module: &super::kallsyms::Module) -> BinaryIdx {
        if let Some(&at) = self.modules.get(&at) {
            return at;
        }
        const PAGE: u64 = 4096;
        let end = (module.last - module.start) / PAGE * PAGE + PAGE;
        let binary = self.add_binary(Binary {
            kind: BinaryKind::Kernel,
            path: module.name.as_str().into(),
            build_id: if at == 0 {
                kernel_build_id()
            } else {
                Vec::new()
            },
            go_build_id: Arc::default(),
            htlhash: None,
            segments: vec![Segment {
                start: 0,
                end,
                file_offset: 0,
            }],
        });
        self.modules.insert(at, binary);
        binary
    }

    fn name_anonymous(
        &mut self,
        process: ProcessId,
        wanted: &[(usize, u64)],
        frames: &mut [Option<Frame>],
    ) {
        let map = self.perf_map(process);
        for &(slot, addr) in wanted {
            frames[slot] = Some(match map.find(crate::model::RuntimeAddr(addr)) {
                Some(name) => Frame {
                    kind: FrameKind::Jit,
                    binary: None,
                    addr,
                    lines: vec![plain_line(name)],
                    is_named: true,
                },
                None => unnamed(FrameKind::Jit, None, "[anonymous]", addr),
            });
        }
    }

    /// The names that a process gives to code that it made at run time.
    fn perf_map(&self, process: ProcessId) -> PerfMap {
        let Some(file) = self.context.table.perf_map(process) else {
            return PerfMap::default();
        };
        let pid = self.context.table.identity(process).pid;
        let map = PerfMap::parse(file).unwrap_or_else(|error| {
            tracing::warn!(pid, reason = %error, "a perf map is ignored");
            PerfMap::default()
        });
        if map.refused() != Refused::default() {
            tracing::warn!(pid, reason = %map.refused(), "a part of a perf map is ignored");
        }
        map
    }

    fn stack(&mut self, stack: &[u32], samples: &Samples, named: &mut [NamedFrame]) -> BuiltStack {
        let (code, stop) = match stack.split_last() {
            Some((&last, code)) => match samples.frames[last as usize] {
                RawFrame::Cut(stop) => (code, stop),
                _ => (stack, StopReason::NoUserStack),
            },
            None => (stack, StopReason::NoUserStack),
        };
        let frame = |at: u32| &named[at as usize].frame;
        let mut outermost = code.iter().rev().map(|&at| match frame(at) {
            frame if frame.is_named => frame.lines.last().map_or("", |line| &line.function),
            _ => "",
        });
        let last_two = [
            outermost.next().unwrap_or(""),
            outermost.next().unwrap_or(""),
        ];
        let is_rooted = !code.is_empty() && is_rooted(stop, last_two);
        let is_named = code.iter().all(|&at| frame(at).is_named);
        let kept = if is_rooted { code } else { stack };
        let frames = kept
            .iter()
            .map(|&at| named[at as usize].position(&mut self.profile))
            .collect();
        self.profile.stacks.push(Stack { frames, is_rooted });
        let at = StackIdx(self.profile.stacks.len() as u32 - 1);
        BuiltStack {
            at,
            is_rooted,
            is_named,
            cut: (!is_rooted).then(|| cut_reason(stop)),
        }
    }

    fn add_samples(&mut self, samples: &Samples, stacks: &[BuiltStack]) {
        let threads: Vec<_> = samples.threads.iter().map(|key| self.thread(key)).collect();
        let mut quality = Quality::default();
        let (start, end) = (
            self.profile.start_wall_ns,
            self.profile.start_wall_ns + self.profile.duration_ns,
        );
        for (key, times) in &samples.times_mono_ns {
            let stack = &stacks[key.stack as usize];
            let count = times.len() as u64;
            quality.kept += count;
            quality.rooted += if stack.is_rooted { count } else { 0 };
            quality.named += if stack.is_named { count } else { 0 };
            if let Some(reason) = stack.cut {
                *quality.cut.entry(reason).or_default() += count;
            }
            let mut timestamps_wall_ns: Vec<u64> = times
                .iter()
                .map(|&time| self.context.clock.wall_of_mono(time).clamp(start, end - 1))
                .collect();
            timestamps_wall_ns.sort_unstable();
            self.profile.samples.push(Sample {
                thread: threads[key.thread as usize],
                cpu: key.cpu,
                stack: stack.at,
                link: None,
                timestamps_wall_ns,
            });
        }
        self.profile.quality = quality;
    }

    fn thread(&mut self, key: &ThreadKey) -> ThreadIdx {
        let process = self.process(key.process);
        let end = key
            .name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(COMM_BYTES);
        let name = String::from_utf8_lossy(&key.name[..end]).into();
        self.profile.threads.push(Thread {
            process,
            tid: key.tid,
            name,
        });
        ThreadIdx(self.profile.threads.len() as u32 - 1)
    }

    fn process(&mut self, id: ProcessId) -> ProcessIdx {
        if let Some(&at) = self.processes.get(&id) {
            return at;
        }
        let identity = self.context.table.identity(id);
        self.profile.processes.push(Process {
            pid: identity.pid,
            name: identity.name.clone(),
            exe: identity.exe.clone(),
            container_id: identity.container_id.clone(),
            start_wall_ns: match identity.start_boot_ns {
                0 => 0,
                time => self.context.clock.wall_of_boot(time),
            },
        });
        let at = ProcessIdx(self.profile.processes.len() as u32 - 1);
        self.processes.insert(id, at);
        at
    }
}

fn plain_line(name: &str) -> Line {
    Line {
        function: name.into(),
        system_name: None,
        file: None,
        line: 0,
        column: 0,
    }
}

/// A frame that only its address can tell from others: `module+0xoffset`.
fn unnamed(kind: FrameKind, binary: Option<BinaryIdx>, module: &str, addr: u64) -> Frame {
    let lines = vec![plain_line(&format!("{module}+{addr:#x}"))];
    Frame {
        kind,
        binary,
        addr,
        lines,
        is_named: false,
    }
}

fn note(stop: StopReason) -> Frame {
    let lines = vec![plain_line(&format!("[{}]", cut_reason(stop)))];
    Frame {
        kind: FrameKind::Note,
        binary: None,
        addr: 0,
        lines,
        is_named: true,
    }
}

/// How the reason for a cut stack is shown, in brackets in a stack. A chain of frame pointers that
/// ends in the middle of nowhere has lost its way like one that leads nowhere.
fn cut_reason(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Root | StopReason::FramePointerEnd | StopReason::NoUnwindTable => {
            "no unwind table"
        }
        StopReason::NoUserStack => "no user stack",
        StopReason::StackReadFailed => "stack read failed",
        StopReason::Truncated => "truncated",
        StopReason::NoRegisters => "no user registers",
    }
}

/// GNU build id of the running kernel.
fn kernel_build_id() -> Vec<u8> {
    let mut notes = Vec::new();
    let read = fs::File::open("/sys/kernel/notes")
        .and_then(|file| file.take(64 << 10).read_to_end(&mut notes));
    if read.is_err() {
        return Vec::new();
    }
    parse_build_id_note(&notes).unwrap_or_default().to_vec()
}

/// Finds the build id among ELF notes: name length, description length, type, then both strings,
/// each padded to four bytes.
fn parse_build_id_note(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let padded = |len: u32| (len as usize).checked_next_multiple_of(4);
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_len, desc_len, kind) = (word(0), word(4), word(8));
        let (name, rest) = rest.split_at_checked(padded(name_len)?)?;
        let description = rest.get(..desc_len as usize)?;
        if kind == NT_GNU_BUILD_ID && name.starts_with(b"GNU\0") {
            return Some(description);
        }
        notes = rest.get(padded(desc_len)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (name, kind, description) in [
            (&b"Linux\0\0\0"[..], 1_u32, &[9, 9, 9, 0][..]),
            (b"GNU\0", 3, &[1, 2, 3, 4]),
        ] {
            let name_len = name.iter().position(|&b| b == 0).unwrap() as u32 + 1;
            for word in [name_len, description.len() as u32, kind] {
                notes.extend(word.to_ne_bytes());
            }
            notes.extend(name);
            notes.extend(description);
        }
        assert_eq!(parse_build_id_note(&notes), Some(&[1, 2, 3, 4][..]));
        for len in 0..notes.len() {
            assert_eq!(parse_build_id_note(&notes[..len]), None);
        }
        assert_eq!(parse_build_id_note(&[0xff; 64]), None);
    }
}
