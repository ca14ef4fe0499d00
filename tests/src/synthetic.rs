//! A made-up profile with one of everything that an exporter must cope with.

use hotspan::model::{
    Binary, BinaryIdx, BinaryKind, Frame, FrameIdx, FrameKind, Line, Process, ProcessIdx, Profile,
    Quality, Sample, Segment, Stack, StackIdx, Thread, ThreadIdx, TraceLink,
};

/// Start of the window of [`profile`].
pub const START_WALL_NS: u64 = 1_790_000_000_000_000_123;
/// Length of the window of [`profile`].
pub const DURATION_NS: u64 = 10_000_000_000;

/// Two processes in containers that share a library, and a kernel thread. Among the stacks are
/// kernel frames, inlined, JIT, unnamed and homeless ones, a cut stack, and a stack twice. Among
/// the samples are one at each end of the window, a link, and two that differ in nothing that
/// leaves the host.
#[must_use]
pub fn profile() -> Profile {
    Profile {
        start_wall_ns: START_WALL_NS,
        duration_ns: DURATION_NS,
        rate_hz: 99,
        processes: processes(),
        threads: [
            (0, 100, "main"),
            (0, 101, "worker"),
            (0, 101, "worker"),
            (1, 200, "main"),
            (2, 7, "kworker/0:1"),
        ]
        .map(|(process, tid, name)| Thread {
            process: ProcessIdx(process),
            tid,
            name: name.into(),
        })
        .into(),
        binaries: binaries(),
        frames: frames(),
        stacks: stacks(),
        samples: samples(),
        quality: Quality::default(),
    }
}

fn processes() -> Vec<Process> {
    let user = |pid: u32, container: &str| Process {
        pid,
        name: "server".into(),
        exe: Some("/srv/bin/server".into()),
        container_id: Some(container.into()),
        start_wall_ns: START_WALL_NS - 1,
    };
    vec![
        user(100, "a1"),
        user(200, "b2"),
        Process {
            pid: 7,
            name: "kworker/0:1".into(),
            ..Default::default()
        },
    ]
}

fn binaries() -> Vec<Binary> {
    let file = |path: &str, build_id: &[u8], segments: &[(u64, u64)]| Binary {
        kind: BinaryKind::File,
        path: path.into(),
        build_id: build_id.into(),
        go_build_id: "".into(),
        htlhash: Some([0xab; 16]),
        segments: segments
            .iter()
            .map(|&(start, end)| Segment {
                start,
                end,
                file_offset: start & 0xffff,
            })
            .collect(),
    };
    vec![
        file(
            "/srv/bin/server",
            &[1; 20],
            &[(0x1000, 0x9000), (0xa000, 0xb000)],
        ),
        file("/lib/libshared.so", &[2; 20], &[(0x1000, 0x2000)]),
        // The same library, seen in the other container.
        file("/lib/libshared.so", &[2; 20], &[(0x1000, 0x2000)]),
        Binary {
            go_build_id: "abc/def".into(),
            ..file("/srv/bin/helper", &[], &[(0x40_0000, 0x50_0000)])
        },
        Binary {
            kind: BinaryKind::Kernel,
            htlhash: None,
            ..file("[kernel]", &[3; 20], &[])
        },
        // Gone before anyone could read its ids.
        Binary {
            htlhash: None,
            ..file("/tmp/gone", &[], &[(0, 0x1000)])
        },
    ]
}

fn frame(kind: FrameKind, binary: Option<u32>, addr: u64, function: &str) -> Frame {
    Frame {
        kind,
        binary: binary.map(BinaryIdx),
        addr,
        lines: vec![line(function)],
        is_named: true,
    }
}

fn line(function: &str) -> Line {
    Line {
        function: function.into(),
        system_name: None,
        file: None,
        line: 0,
        column: 0,
    }
}

fn frames() -> Vec<Frame> {
    let unnamed = |binary: Option<u32>, addr, text: &str| Frame {
        is_named: false,
        ..frame(FrameKind::Native, binary, addr, text)
    };
    let mut inlined = frame(FrameKind::Rust, Some(0), 0xa010, "server::serve");
    inlined.lines[0].system_name = Some("_RNvCs_6server5serve".into());
    inlined.lines[0].file = Some("src/main.rs".into());
    inlined.lines[0].line = 42;
    inlined.lines.insert(0, line("server::parse"));
    vec![
        frame(FrameKind::Native, Some(0), 0x1010, "main"),
        inlined,
        frame(FrameKind::Native, Some(1), 0x1100, "shared_work"),
        frame(FrameKind::Native, Some(2), 0x1100, "shared_work"),
        frame(FrameKind::Go, Some(3), 0x40_1000, "main.run"),
        frame(
            FrameKind::Kernel,
            Some(4),
            0xffff_ffff_8100_0000,
            "do_syscall_64",
        ),
        frame(FrameKind::Jit, None, 0x7f00_1234, "LazyCompile:~fib"),
        unnamed(Some(0), 0x8fff, "server+0x7fff"),
        unnamed(None, 0x7f00_0000, "0x7f000000"),
        unnamed(Some(5), 0x10, "gone+0x10"),
        frame(FrameKind::Note, None, 0, "[truncated]"),
    ]
}

fn stacks() -> Vec<Stack> {
    let stack = |is_rooted, frames: &[u32]| Stack {
        frames: frames.iter().copied().map(FrameIdx).collect(),
        is_rooted,
    };
    vec![
        stack(true, &[2, 1, 0]),
        stack(true, &[3, 1, 0]),
        stack(true, &[5, 6, 0]),
        stack(false, &[7, 8, 9, 10]),
        stack(false, &[4, 0]),
        stack(true, &[4, 0]),
        stack(true, &[5]),
    ]
}

fn samples() -> Vec<Sample> {
    let sample = |thread, cpu, stack, timestamps: &[u64]| Sample {
        thread: ThreadIdx(thread),
        cpu,
        stack: StackIdx(stack),
        link: None,
        timestamps_wall_ns: timestamps.iter().map(|at| START_WALL_NS + at).collect(),
    };
    vec![
        sample(0, 0, 0, &[0, 10_101_010, 20_202_020]),
        Sample {
            link: Some(TraceLink {
                trace_id: *b"\x4b\xf9\x2f\x35\x77\xb3\x4d\xa6\xa3\xce\x92\x9d\x0e\x0e\x47\x36",
                span_id: *b"\x00\xf0\x67\xaa\x0b\xa9\x02\xb7",
            }),
            ..sample(0, 0, 0, &[30_303_030])
        },
        sample(0, 1, 2, &[40, 50]),
        sample(1, 1, 4, &[60, 80]),
        // One identity with the one before: a thread and a stack that are twice in the model.
        sample(2, 1, 5, &[70]),
        sample(3, 0, 1, &[DURATION_NS - 1]),
        sample(3, 0, 3, &[5]),
        sample(4, 1, 6, &[6, 7]),
    ]
}
