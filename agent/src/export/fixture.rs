//! Profiles for tests: small, built by hand, with every kind of frame.

use crate::model::{
    Binary, BinaryIdx, BinaryKind, Frame, FrameIdx, FrameKind, Line, Process, ProcessIdx, Profile,
    Sample, Segment, Stack, StackIdx, Thread, ThreadIdx,
};

/// Start of every fixture, nanoseconds since the Unix epoch.
pub const START_WALL_NS: u64 = 1_700_000_000_000_000_000;
const PERIOD_NS: u64 = 10_000_000;

/// Builds a profile; samples follow each other one period apart.
pub struct Builder {
    pub profile: Profile,
}

impl Builder {
    pub fn new() -> Self {
        Self {
            profile: Profile {
                start_wall_ns: START_WALL_NS,
                duration_ns: 1_000_000_000,
                rate_hz: 100,
                ..Profile::default()
            },
        }
    }

    pub fn process(&mut self, pid: u32, name: &str, exe: &str) -> ProcessIdx {
        self.profile.processes.push(Process {
            pid,
            name: name.into(),
            exe: Some(exe.into()),
            ..Process::default()
        });
        ProcessIdx(self.profile.processes.len() as u32 - 1)
    }

    pub fn thread(&mut self, process: ProcessIdx, tid: u32, name: &str) -> ThreadIdx {
        self.profile.threads.push(Thread {
            process,
            tid,
            name: name.into(),
        });
        ThreadIdx(self.profile.threads.len() as u32 - 1)
    }

    pub fn binary(&mut self, kind: BinaryKind, path: &str, build_id: &[u8]) -> BinaryIdx {
        self.profile.binaries.push(Binary {
            kind,
            path: path.into(),
            build_id: build_id.to_vec(),
            go_build_id: "".into(),
            htlhash: None,
            segments: vec![Segment {
                start: 0x1000,
                end: 0x100_0000,
                file_offset: 0x1000,
            }],
        });
        BinaryIdx(self.profile.binaries.len() as u32 - 1)
    }

    /// A frame with functions given innermost first.
    pub fn frame(
        &mut self,
        kind: FrameKind,
        binary: Option<BinaryIdx>,
        addr: u64,
        functions: &[&str],
    ) -> FrameIdx {
        let line = |function: &&str| Line {
            function: (*function).into(),
            system_name: None,
            file: None,
            line: 0,
            column: 0,
        };
        self.profile.frames.push(Frame {
            kind,
            binary,
            addr,
            lines: functions.iter().map(line).collect(),
            is_named: !functions[0].contains("+0x"),
        });
        FrameIdx(self.profile.frames.len() as u32 - 1)
    }

    /// Samples of one stack, leaf first.
    pub fn sample(&mut self, thread: ThreadIdx, frames: &[FrameIdx], count: u64) -> &mut Sample {
        let profile = &mut self.profile;
        profile.stacks.push(Stack {
            frames: frames.to_vec(),
            is_rooted: true,
        });
        let first = profile.samples.iter().map(Sample::count).sum::<u64>();
        profile.quality.kept += count;
        profile.samples.push(Sample {
            thread,
            cpu: 0,
            stack: StackIdx(profile.stacks.len() as u32 - 1),
            link: None,
            timestamps_wall_ns: (first..first + count)
                .map(|i| START_WALL_NS + i * PERIOD_NS)
                .collect(),
        });
        profile.samples.last_mut().expect("just pushed")
    }
}

/// Three processes with kernel, native, Rust, Go, inlined, JIT, unnamed and note frames.
pub fn mixed() -> Profile {
    use FrameKind::{Go, Jit, Kernel, Native, Note, Rust};
    let mut b = Builder::new();
    let api = b.process(100, "api", "/usr/bin/api");
    let node = b.process(200, "node", "/usr/bin/node");
    let gosrv = b.process(300, "gosrv", "/usr/bin/gosrv");
    let api_main = b.thread(api, 100, "api");
    let api_worker = b.thread(api, 101, "worker 1");
    let node_main = b.thread(node, 200, "node");
    let go_main = b.thread(gosrv, 300, "gosrv");

    let kernel = b.binary(BinaryKind::Kernel, "[kernel]", &[0xee; 20]);
    let libc = b.binary(BinaryKind::File, "/lib/libc.so.6", &[0xcc; 20]);
    let api_file = b.binary(BinaryKind::File, "/usr/bin/api", &[0xaa; 20]);
    let node_file = b.binary(BinaryKind::File, "/usr/bin/node", &[]);
    let go_file = b.binary(BinaryKind::File, "/usr/bin/gosrv", &[]);

    let start = b.frame(Native, Some(api_file), 0x1100, &["_start"]);
    let main = b.frame(Native, Some(api_file), 0x1200, &["main"]);
    let serve = b.frame(Rust, Some(api_file), 0x1300, &["api::serve"]);
    let parse = b.frame(
        Rust,
        Some(api_file),
        0x1340,
        &["api::parse", "core::iter::fold", "api::serve"],
    );
    for (line, number) in b.profile.frames[parse.at()].lines.iter_mut().zip([7, 8, 9]) {
        line.file = Some("src/main.rs".into());
        line.line = number;
        line.system_name = Some(format!("_R{number}").into());
    }
    let entry = b.frame(Kernel, Some(kernel), 0x2000, &["do_syscall_64"]);
    let read = b.frame(Kernel, Some(kernel), 0x2100, &["vfs_read", "ksys_read"]);
    let unnamed = b.frame(Native, Some(libc), 0x29d90, &["libc.so.6+0x29d90"]);
    let no_table = b.frame(Note, None, 0, &["[no unwind table]"]);
    let node_start = b.frame(Native, Some(node_file), 0x1100, &["_start"]);
    let js = b.frame(
        Jit,
        None,
        0x7f00_0000_1000,
        &["LazyCompile:~render app.js:10"],
    );
    let go_root = b.frame(Go, Some(go_file), 0x1100, &["runtime.main"]);
    let go_leaf = b.frame(Go, Some(go_file), 0x1200, &["main.main"]);

    b.sample(api_main, &[parse, main, start], 6);
    b.sample(api_worker, &[parse, main, start], 1);
    b.sample(api_worker, &[read, entry, serve, main, start], 3);
    b.sample(api_main, &[unnamed, no_table], 2);
    b.sample(node_main, &[js, node_start], 4);
    b.sample(go_main, &[go_leaf, go_root], 5);
    b.profile
}
