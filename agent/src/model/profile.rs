//! A finished, symbolized profile: what every exporter reads.
//!
//! Tables refer to each other by index, as in OTLP profiles, so that a stack seen a million times
//! is stored once. The model is complete in itself: an exporter needs no other source.

use std::{collections::BTreeMap, sync::Arc};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl $name {
            /// The position as a slice index.
            #[must_use]
            pub fn at(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// Position in [`Profile::processes`].
    ProcessIdx
);
index!(
    /// Position in [`Profile::threads`].
    ThreadIdx
);
index!(
    /// Position in [`Profile::binaries`].
    BinaryIdx
);
index!(
    /// Position in [`Profile::frames`].
    FrameIdx
);
index!(
    /// Position in [`Profile::stacks`].
    StackIdx
);

/// One window of CPU samples.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Start of the window, nanoseconds since the Unix epoch. No sample is earlier.
    pub start_wall_ns: u64,
    /// Length of the window in nanoseconds. Every sample is earlier than start + duration.
    pub duration_ns: u64,
    /// Samples per second and CPU; a sample stands for `1e9 / rate_hz` nanoseconds of CPU time.
    pub rate_hz: u32,
    /// Processes with at least one sample.
    pub processes: Vec<Process>,
    /// Threads with at least one sample.
    pub threads: Vec<Thread>,
    /// Files (and the kernel) that frames belong to.
    pub binaries: Vec<Binary>,
    /// Distinct frames.
    pub frames: Vec<Frame>,
    /// Distinct stacks.
    pub stacks: Vec<Stack>,
    /// Samples; each combination of thread, CPU, stack and link occurs once.
    pub samples: Vec<Sample>,
    /// How good the capture was.
    pub quality: Quality,
}

/// A process, or one life of a process id: a reused pid is another entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Process id in the host's pid namespace (the kernel's tgid).
    pub pid: u32,
    /// Process name (`comm` of the main thread), as the kernel has it: at most 15 bytes.
    pub name: Arc<str>,
    /// Path of the executable as the process sees it; `None` for kernel threads.
    pub exe: Option<Arc<str>>,
    /// Container id from the cgroup path.
    pub container_id: Option<Arc<str>>,
    /// Start of the process, nanoseconds since the Unix epoch; 0 when unknown.
    pub start_wall_ns: u64,
}

/// A thread of a process, under one name: a thread that renames itself is two entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// The process it belongs to.
    pub process: ProcessIdx,
    /// Thread id in the host's pid namespace.
    pub tid: u32,
    /// Thread name (`comm`).
    pub name: Arc<str>,
}

/// What a [`Binary`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryKind {
    /// An ELF file mapped by a process.
    File,
    /// The vDSO, which the kernel maps into every process.
    Vdso,
    /// The kernel image, its modules and its BPF programs.
    Kernel,
}

/// A file that frames belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// What it is.
    pub kind: BinaryKind,
    /// Path as the process sees it, without ` (deleted)`; `[vdso]`; `[kernel]`; `[name]` for a module.
    pub path: Arc<str>,
    /// GNU build id (any length), empty when the file has none.
    pub build_id: Vec<u8>,
    /// Go build id, empty when there is none.
    pub go_build_id: Arc<str>,
    /// `process.executable.build_id.htlhash` (OTLP profiles, mappings): first 16 bytes of the
    /// SHA-256 of the first 4096 bytes, the last 4096 bytes and the length.
    pub htlhash: Option<[u8; 16]>,
    /// Its executable segments, by address.
    pub segments: Vec<Segment>,
}

impl Binary {
    /// Last component of the path: what a frame without a name is shown with.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name,
            _ => &self.path,
        }
    }
}

/// An executable segment of a [`Binary`], in the file's own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// First ELF virtual address.
    pub start: u64,
    /// One past the last ELF virtual address.
    pub end: u64,
    /// Offset in the file where `start` lies.
    pub file_offset: u64,
}

/// What kind of code a [`Frame`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Machine code made ahead of time, language unknown or C or C++.
    Native,
    /// Rust.
    Rust,
    /// Go.
    Go,
    /// The kernel, a module or a BPF program.
    Kernel,
    /// Machine code made at run time, named by a perf map.
    Jit,
    /// No code: a mark that tells why the stack stops, such as `[truncated]`.
    Note,
}

/// One frame of a stack: an address, and the functions it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What kind of code it is.
    pub kind: FrameKind,
    /// The file it is in; `None` for JIT code, notes and addresses outside any file.
    pub binary: Option<BinaryIdx>,
    /// ELF address in `binary`, already moved into the call instruction for a return address;
    /// the runtime address without a binary; 0 for a note.
    pub addr: u64,
    /// The functions at this address, innermost (inlined) first, the physical function last.
    /// Never empty. A frame without a name has one line with `module+0xoffset`.
    pub lines: Vec<Line>,
    /// Whether the name is a symbol, and not an address in disguise.
    pub is_named: bool,
}

/// A function in a frame, with its place in the source when known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Demangled function name.
    pub function: Arc<str>,
    /// Name in the symbol table, when it differs from `function`.
    pub system_name: Option<Arc<str>>,
    /// Source file.
    pub file: Option<Arc<str>>,
    /// Source line, 0 when unknown.
    pub line: u32,
    /// Source column, 0 when unknown.
    pub column: u32,
}

/// A stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Frames, leaf first: kernel frames, then user frames, then a note if the stack is cut.
    pub frames: Vec<FrameIdx>,
    /// Whether the stack reaches the thread's first function.
    pub is_rooted: bool,
}

/// The span a sample belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceLink {
    /// W3C trace id, in network order.
    pub trace_id: [u8; 16],
    /// W3C span id, in network order.
    pub span_id: [u8; 8],
}

/// Samples with the same identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The thread that was running.
    pub thread: ThreadIdx,
    /// The CPU it was running on.
    pub cpu: u32,
    /// Its stack.
    pub stack: StackIdx,
    /// The span it was working for.
    pub link: Option<TraceLink>,
    /// When, nanoseconds since the Unix epoch, ascending. Its length is the count.
    pub timestamps_wall_ns: Vec<u64>,
}

impl Sample {
    /// How many samples there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.timestamps_wall_ns.len() as u64
    }
}

/// What was captured of what there was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// Rate × CPU time of the targets as the kernel accounts for it.
    pub expected: f64,
    /// Samples in the profile.
    pub kept: u64,
    /// Kept samples whose stack reaches the thread's first function.
    pub rooted: u64,
    /// Kept samples whose every frame has a name.
    pub named: u64,
    /// Samples that were taken and lost, by reason. Reasons that did not occur are absent.
    pub lost: BTreeMap<&'static str, u64>,
    /// Kept samples whose stack is cut, by reason. Reasons that did not occur are absent.
    pub cut: BTreeMap<&'static str, u64>,
}

impl Profile {
    /// The frames of a stack, leaf first.
    pub fn stack_frames(&self, stack: StackIdx) -> impl DoubleEndedIterator<Item = &Frame> {
        self.stacks[stack.at()]
            .frames
            .iter()
            .map(|frame| &self.frames[frame.at()])
    }

    /// The process a sample belongs to.
    #[must_use]
    pub fn process_of(&self, sample: &Sample) -> &Process {
        &self.processes[self.threads[sample.thread.at()].process.at()]
    }
}
