use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::bail;
use hotspan_abi::unwind::{MAX_PROCESSES, ProcessTable as AbiProcessTable, SEGMENT_WORDS};

use super::*;
use crate::{
    decode::side_band::{FileIdentity, Mapped, SideBandEvent, SideBandRecord},
    process::Scope,
};

const S: u64 = 1_000_000_000;

/// Added to the process ids of these tests: no process has such a one, the highest is 2^22.
const NOBODY: u32 = 1 << 23;

/// The kernel's maps, as far as these tests look into them.
#[derive(Default)]
struct Kernel {
    max_segments: usize,
    words: Vec<u32>,
    processes: BTreeMap<u32, AbiProcessTable>,
}

impl Maps for Kernel {
    fn grow(&mut self) -> Result<()> {
        let words = self.words.len() + SEGMENT_WORDS;
        if words > self.max_segments.saturating_mul(SEGMENT_WORDS) {
            bail!("no memory");
        }
        self.words.resize(words, 0);
        Ok(())
    }

    fn apply(&mut self, update: Update) -> Result<()> {
        match update {
            Update::Words(at, words) => {
                self.words[at as usize..][..words.len()].copy_from_slice(&words);
            }
            Update::Wide(..) => {}
            Update::Process(pid, table) => {
                self.processes.insert(pid, table);
            }
            Update::Forget(pid) => {
                self.processes.remove(&pid);
            }
        }
        Ok(())
    }

    fn publish(&mut self) {}
}

/// A host where programs come and go.
struct Host {
    processes: ProcessTable,
    binaries: Binaries,
    tables: TableLoader,
    kernel: Kernel,
    folder: tempfile::TempDir,
    library: PathBuf,
    now_mono_ns: u64,
}

impl Host {
    /// With that many bytes for tables, and a kernel that gives as much.
    fn new(max_bytes: usize) -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.lines().find(|line| line.contains("/libc.so")).unwrap();
        Self {
            processes: ProcessTable::new(Scope::All),
            binaries: Binaries::default(),
            tables: TableLoader::start(max_bytes, None).unwrap(),
            kernel: Kernel {
                max_segments: usize::MAX,
                ..Kernel::default()
            },
            folder: tempfile::tempdir().unwrap(),
            library: libc[libc.find('/').unwrap()..].into(),
            now_mono_ns: 1000 * S,
        }
    }

    /// A copy of the C library under a name. What is `appended` makes it another file.
    fn library(&self, name: &str, appended: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut bytes = fs::read(&self.library).unwrap();
        bytes.extend(appended.as_bytes());
        fs::write(&path, bytes).unwrap();
        path
    }

    fn event(&mut self, pid: u32, event: SideBandEvent) {
        let record = SideBandRecord {
            time_mono_ns: self.now_mono_ns,
            pid: pid + NOBODY,
            tid: pid + NOBODY,
            event,
        };
        self.processes.apply(record, &mut self.binaries);
    }

    /// A process maps the code of a file, far from what it mapped before.
    fn map(&mut self, pid: u32, path: &Path) -> BinaryId {
        let meta = fs::metadata(path).unwrap();
        let facts = ElfFacts::read(&fs::File::open(path).unwrap()).unwrap();
        let segment = facts.segments[0];
        let file_offset = segment.file_offset & !0xfff;
        let mapped = self.processes.mappings(pid + NOBODY).map_or(0, <[_]>::len) as u64;
        let start = 0x10_0000_0000 * (mapped + 1);
        let mapped = Mapped {
            start,
            end: start + (segment.end - segment.start).next_multiple_of(0x1000),
            file_offset,
            identity: FileIdentity::Inode {
                dev: meta.dev(),
                ino: meta.ino(),
                generation: 0,
            },
            path: path.to_str().unwrap().into(),
        };
        self.event(pid, SideBandEvent::Mmap(mapped));
        let mapping = self
            .processes
            .mappings(pid + NOBODY)
            .unwrap()
            .last()
            .unwrap();
        let Code::File(binary) = mapping.code else {
            panic!("no file")
        };
        binary
    }

    fn end(&mut self, pid: u32) {
        self.processes.exit(pid + NOBODY);
        self.processes.forget_exited();
    }

    fn update(&mut self) {
        self.tables.update(
            &mut self.processes,
            &self.binaries,
            &mut self.kernel,
            self.now_mono_ns,
        );
    }

    /// Lets so much time pass, and the threads do their work.
    fn pass(&mut self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(60);
        for _ in 0..=seconds {
            self.update();
            while !self.tables.is_idle() && self.tables.waiting.is_empty() {
                assert!(Instant::now() < until, "tables are never made");
                std::thread::sleep(Duration::from_millis(1));
                self.update();
            }
            self.now_mono_ns += S;
        }
    }

    /// Where the kernel finds the page index for each part of a process's mappings that has one.
    fn pages(&self, pid: u32) -> Vec<u32> {
        let Some(table) = self.kernel.processes.get(&(pid + NOBODY)) else {
            return Vec::new();
        };
        let mappings = self.kernel.words[table.mappings as usize..].chunks_exact(8);
        mappings
            .take(table.count as usize)
            .filter(|mapping| mapping[7] > 0)
            .map(|mapping| mapping[6])
            .collect()
    }

    fn state(&self, binary: BinaryId) -> Option<State> {
        self.tables.states.get(&binary).copied()
    }

    fn full(&self) -> u64 {
        self.tables.losses().full
    }
}

#[test]
fn copies_of_a_file_share_their_tables() {
    let mut host = Host::new(1 << 20);
    let first = host.library("first", "");
    let second = host.library("second", "");
    let (first, second) = (host.map(1, &first), host.map(2, &second));
    assert_ne!(first, second);
    host.pass(0);
    let pages = host.pages(1);
    assert_eq!((pages.len(), host.pages(2)), (1, pages.clone()));
    // One that comes later, too.
    let third = host.library("third", "");
    host.map(3, &third);
    host.pass(0);
    assert_eq!(host.pages(3), pages);
    // They stay while anybody has one of them mapped.
    host.end(1);
    host.pass(0);
    assert_eq!(host.pages(2), pages);
    let owner = host.state(second);
    assert!(matches!(owner, Some(State::Placed(_))), "{owner:?}");
    assert_eq!(host.state(first), owner);
}

#[test]
fn file_with_a_copied_build_id_harms_nobody() {
    let mut host = Host::new(1 << 20);
    let honest = host.library("honest", "");
    let original = host.map(1, &honest);
    let original = Subject::new(host.binaries.get(original), 1).unwrap();
    let proof = original.make().proof.unwrap();
    // The same build id, length, ends and segments, and other rules in the middle.
    let hostile = host.library("hostile", "");
    let mut bytes = fs::read(&hostile).unwrap();
    let part = proof
        .file
        .parts
        .iter()
        .max_by_key(|part| part.bytes)
        .unwrap();
    let middle = (part.offset + part.bytes / 2) as usize;
    bytes[middle..middle + 64].fill(0);
    fs::write(&hostile, bytes).unwrap();
    // It comes first.
    let mut host = Host {
        folder: host.folder,
        ..Host::new(1 << 20)
    };
    let hostile = host.map(1, &hostile);
    host.pass(0);
    let honest = host.map(2, &honest);
    host.pass(0);
    let likeness = |id| Subject::new(host.binaries.get(id), 0).unwrap().likeness;
    assert_eq!(likeness(hostile), likeness(honest));
    assert_eq!(host.state(hostile), Some(State::Placed(hostile)));
    assert_eq!(host.state(honest), Some(State::Placed(honest)));
    assert_ne!(host.pages(1), host.pages(2));
}

#[test]
fn full_space_is_counted_and_refused_tables_come_when_there_is_room() {
    let mut host = Host::new(1 << 20);
    let count = 12;
    let binaries: Vec<_> = (0..count)
        .map(|pid| {
            let path = host.library(&pid.to_string(), &pid.to_string().repeat(9));
            host.map(pid, &path)
        })
        .collect();
    host.pass(0);
    let is_refused = |host: &Host, id| matches!(host.state(id), Some(State::NoRoom(..)));
    let refused: Vec<_> = (0..count)
        .filter(|&pid| is_refused(&host, binaries[pid as usize]))
        .collect();
    assert!((3..8).contains(&refused.len()), "{refused:?}");
    assert_eq!(host.full(), refused.len() as u64);
    assert!(refused.iter().all(|&pid| host.pages(pid).is_empty()));
    // All that fit are sampled, so they stay; and no refusal is counted twice.
    for _ in 0..15 {
        for &binary in &binaries {
            host.tables.note_sampled(binary, host.now_mono_ns);
        }
        host.pass(1);
    }
    assert_eq!(host.full(), refused.len() as u64);
    assert!(
        refused
            .iter()
            .all(|&pid| is_refused(&host, binaries[pid as usize]))
    );
    // Enough of them end for one that was refused, and it is all the same when.
    for pid in (0..count).filter(|pid| !refused.contains(pid)).take(2) {
        host.end(pid);
    }
    host.pass(20);
    assert!(refused.iter().any(|&pid| !host.pages(pid).is_empty()));
}

#[test]
fn evicted_tables_come_back_when_a_sample_meets_their_binary() {
    let mut host = Host::new(1 << 20);
    let idle = host.library("idle", "idle");
    let idle = host.map(1, &idle);
    host.pass(0);
    assert_eq!(host.pages(1).len(), 1);
    host.now_mono_ns += 20 * S;
    let busy: Vec<_> = (10..18)
        .map(|pid| {
            let path = host.library(&pid.to_string(), &pid.to_string());
            host.map(pid, &path)
        })
        .collect();
    for _ in 0..6 {
        host.pass(1);
        for &binary in &busy {
            host.tables.note_sampled(binary, host.now_mono_ns);
        }
    }
    assert_eq!(host.state(idle), Some(State::Evicted));
    assert!(
        host.pages(1).is_empty(),
        "the kernel side may not find them"
    );
    // It sleeps on: nothing happens.
    host.pass(3);
    assert_eq!(host.state(idle), Some(State::Evicted));
    host.end(10);
    host.tables.note_sampled(idle, host.now_mono_ns);
    host.pass(4);
    assert_eq!(host.state(idle), Some(State::Placed(idle)));
    assert_eq!(host.pages(1).len(), 1);
}

#[test]
fn tables_of_ended_processes_stay_until_the_room_is_needed() {
    let mut host = Host::new(1 << 20);
    let path = host.library("program", "");
    let program = host.map(1, &path);
    host.pass(0);
    host.end(1);
    host.pass(60);
    assert_eq!(host.state(program), Some(State::Placed(program)));
    for pid in 2..12 {
        let path = host.library(&pid.to_string(), &pid.to_string());
        host.map(pid, &path);
    }
    host.pass(3);
    assert_eq!(host.state(program), None);
    host.map(1, &path);
    host.pass(0);
    assert!(host.state(program).is_some());
}

#[test]
fn process_that_has_ended_already_leaves_its_tables_for_the_next() {
    let mut host = Host::new(1 << 20);
    let path = host.library("program", "");
    let program = host.map(1, &path);
    host.end(1);
    host.pass(0);
    assert_eq!(host.state(program), Some(State::Placed(program)));
    host.map(2, &path);
    host.update();
    assert_eq!(host.pages(2).len(), 1);
}

#[test]
fn kernel_that_gives_no_memory_ends_nothing() {
    let mut host = Host::new(8 << 20);
    host.kernel.max_segments = 0;
    let path = host.library("program", "");
    host.map(1, &path);
    host.pass(1);
    assert_eq!((host.full(), host.pages(1)), (1, Vec::new()));
    // It takes all there is of what it gives.
    let mut host = Host::new(8 << 20);
    host.kernel.max_segments = 1;
    for pid in 0..12 {
        let path = host.library(&pid.to_string(), &pid.to_string());
        host.map(pid, &path);
    }
    host.pass(0);
    let placed = (0..12).filter(|&pid| !host.pages(pid).is_empty()).count();
    assert!((5..10).contains(&placed) && host.full() > 0, "{placed}");
}

#[test]
fn ten_thousand_processes_leave_nothing_behind() {
    let mut host = Host::new(1 << 20);
    let path = host.library("program", "");
    host.map(1, &path);
    host.pass(0);
    for pid in 2..10_002 {
        host.event(
            pid,
            SideBandEvent::Fork {
                parent_pid: 1 + NOBODY,
            },
        );
        if pid % 3 != 0 {
            let name = b"other".to_vec();
            host.event(
                pid,
                SideBandEvent::Comm {
                    name,
                    is_exec: true,
                },
            );
            host.map(pid, &path);
        }
        if pid % 100 == 0 {
            host.update();
        }
        host.end(pid);
        host.now_mono_ns += S / 1000;
    }
    host.pass(3);
    assert_eq!(host.kernel.processes.len(), 1);
    assert_eq!((host.tables.store.segments(), host.full()), (1, 0));
    assert_eq!(
        host.tables.users.of(BinaryId(0)).collect::<Vec<_>>(),
        [1 + NOBODY]
    );
}

#[test]
fn processes_that_are_too_many_are_counted_and_their_turn_comes() {
    let mut host = Host::new(64 << 20);
    let path = host.library("program", "");
    let pids = 1..=MAX_PROCESSES as u32 + 1;
    pids.clone().for_each(|pid| _ = host.map(pid, &path));
    host.pass(1);
    let known = host.kernel.processes.len();
    assert_eq!((known, host.full()), (MAX_PROCESSES, 1));
    let left_out = pids
        .clone()
        .find(|pid| host.pages(*pid).is_empty())
        .unwrap();
    host.end(if left_out == 1 { 2 } else { 1 });
    host.pass(1);
    assert_eq!(host.pages(left_out).len(), 1);
    assert_eq!(host.full(), 1);
}

#[test]
fn damaged_file_is_counted_once() {
    let mut host = Host::new(1 << 20);
    let path = host.library("damaged", "");
    let mut bytes = fs::read(&path).unwrap();
    // A length that leads behind the end, where the first entry of `.eh_frame` should be.
    let original = host.map(1, &path);
    let subject = Subject::new(host.binaries.get(original), 1).unwrap();
    let parts = &subject.make().proof.unwrap().file.parts;
    let section = parts.iter().max_by_key(|part| part.bytes).unwrap().offset as usize;
    bytes[section..section + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    let path = host.folder.path().join("worse");
    fs::write(&path, bytes).unwrap();
    let worse = host.map(2, &path);
    host.pass(0);
    host.map(3, &path);
    host.pass(60);
    assert_eq!(host.tables.losses().damaged, 1);
    assert_eq!(host.state(worse), Some(State::Placed(worse)));
}

#[test]
fn parts_without_a_table_fill_the_gaps() {
    let segment = crate::model::Segment {
        start: 0x1000,
        end: 0x9000,
        file_offset: 0x1000,
    };
    let facts = ElfFacts {
        segments: vec![segment],
        ..ElfFacts::default()
    };
    let mapping = Mapping {
        start: 0x7f00_0000_1000,
        end: 0x7f00_0000_9000,
        file_offset: 0x1000,
        code: Code::File(BinaryId(0)),
    };
    let placed = |start| Placed {
        start,
        pages: 7,
        page_count: 16,
    };
    let mut known = KnownParts {
        parts: Vec::new(),
        is_complete: true,
    };
    known.add_bare(0x7f00_0000_0000, 0x7f00_0000_1000);
    known.add(&mapping, &facts, &[placed(0x2000), placed(0x5000)]);
    let parts: Vec<_> = known
        .parts
        .iter()
        .map(|part| (part.start as u16, part.end as u16, part.page_count))
        .collect();
    let expected = [
        (0, 0x2000, 0),
        (0x2000, 0x3000, 16),
        (0x3000, 0x5000, 0),
        (0x5000, 0x6000, 16),
        (0x6000, 0x9000, 0),
    ];
    assert_eq!(parts, expected);
}
