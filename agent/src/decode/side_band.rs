//! Records of perf's side band: mappings, names, forks and exits.
//!
//! Layouts: Linux, `include/uapi/linux/perf_event.h`, `enum perf_event_type`. Every record ends
//! with the sample id we asked for: pid, tid and time, 16 bytes.

const RECORD_LOST: u32 = 2;
const RECORD_COMM: u32 = 3;
const RECORD_EXIT: u32 = 4;
const RECORD_FORK: u32 = 7;
const RECORD_MMAP2: u32 = 10;

const MISC_COMM_EXEC: u16 = 1 << 13;

const HEADER_BYTES: usize = 8;
const SAMPLE_ID_BYTES: usize = 16;

/// What tells one mapped file from another, as far as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileIdentity {
    /// GNU build id, once the file has been read.
    BuildId(Vec<u8>),
    /// Device and inode.
    Inode {
        /// Device number, as `stat` has it.
        dev: u64,
        /// Inode number.
        ino: u64,
        /// Which file of those that had this inode number, 0 when unknown.
        generation: u64,
    },
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the file of the first address.
    pub file_offset: u64,
    /// The file.
    pub identity: FileIdentity,
    /// Path as the process sees it, `[vdso]`, or `//anon`.
    pub path: Vec<u8>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SideBandEvent {
    /// A process mapped a file, or anonymous memory, as executable.
    Mmap(Mapped),
    /// A thread has a new name, by exec or by its own doing.
    Comm {
        /// The new name.
        name: Vec<u8>,
        /// Whether the process replaced its program: all its mappings are gone.
        is_exec: bool,
    },
    /// A thread or a process started.
    Fork {
        /// The process of the thread that started it.
        parent_pid: u32,
    },
    /// A thread ended.
    Exit,
    /// The ring overran: this many records are missing.
    Lost(u64),
}

/// An event and whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideBandRecord {
    /// `CLOCK_MONOTONIC` when it happened.
    pub time_mono_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// What happened.
    pub event: SideBandEvent,
}

/// Splits a buffer into records; those of no interest or that cannot be understood are left out.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = SideBandRecord> {
    std::iter::from_fn(move || {
        loop {
            let size = usize::from(u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?));
            if size < HEADER_BYTES {
                return None;
            }
            let record = bytes.get(..size)?;
            bytes = &bytes[size..];
            if let Some(record) = parse(record) {
                return Some(record);
            }
        }
    })
}

/// Reads numbers one behind the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }
    /// The rest up to its first zero: strings are padded with zeros.
    fn string(self) -> &'a [u8] {
        self.0.split(|&b| b == 0).next().unwrap_or_default()
    }
}

fn parse(record: &[u8]) -> Option<SideBandRecord> {
    let (body, id) = record.split_at_checked(record.len().checked_sub(SAMPLE_ID_BYTES)?)?;
    let mut id = Reader(id);
    let (id_pid, id_tid, time_mono_ns) = (id.u32()?, id.u32()?, id.u64()?);
    let mut body = Reader(body);
    let (kind, misc, _size) = (body.u32()?, body.u16()?, body.u16()?);
    if kind == RECORD_LOST {
        let _event_id = body.u64()?;
        let event = SideBandEvent::Lost(body.u64()?);
        return Some(SideBandRecord {
            time_mono_ns,
            pid: id_pid,
            tid: id_tid,
            event,
        });
    }
    let pid = body.u32()?;
    let second = body.u32()?;
    let (tid, event) = match kind {
        RECORD_COMM => {
            let is_exec = misc & MISC_COMM_EXEC != 0;
            (
                second,
                SideBandEvent::Comm {
                    name: body.string().to_vec(),
                    is_exec,
                },
            )
        }
        RECORD_FORK => (body.u32()?, SideBandEvent::Fork { parent_pid: second }),
        RECORD_EXIT => (body.u32()?, SideBandEvent::Exit),
        RECORD_MMAP2 => (second, SideBandEvent::Mmap(parse_mmap2(body)?)),
        _ => return None,
    };
    Some(SideBandRecord {
        time_mono_ns,
        pid,
        tid,
        event,
    })
}

fn parse_mmap2(mut body: Reader<'_>) -> Option<Mapped> {
    let (start, len, file_offset) = (body.u64()?, body.u64()?, body.u64()?);
    let (major, minor, ino, generation) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
    let dev = libc::makedev(major, minor);
    let identity = FileIdentity::Inode {
        dev,
        ino,
        generation,
    };
    let (_protection, _flags) = (body.u32()?, body.u32()?);
    let end = start.checked_add(len)?;
    Some(Mapped {
        start,
        end,
        file_offset,
        identity,
        path: body.string().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
        let size = (HEADER_BYTES + body.len() + SAMPLE_ID_BYTES) as u16;
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(body);
        bytes.extend([1, 0, 0, 0, 2, 0, 0, 0]);
        bytes.extend(99_u64.to_ne_bytes());
        bytes
    }

    fn mmap2() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend([5_u32, 6].map(u32::to_ne_bytes).concat());
        body.extend([0x1000_u64, 0x2000, 0x3000].map(u64::to_ne_bytes).concat());
        body.extend([0xfd_u32, 1].map(u32::to_ne_bytes).concat());
        body.extend([12_u64, 34].map(u64::to_ne_bytes).concat());
        body.extend([0; 8]);
        body.extend(b"/bin/x\0\0");
        record(RECORD_MMAP2, 0, &body)
    }

    #[test]
    fn mapping_names_its_file() {
        let bytes = mmap2();
        let found: Vec<_> = records(&bytes).collect();
        assert_eq!(
            found,
            [SideBandRecord {
                time_mono_ns: 99,
                pid: 5,
                tid: 6,
                event: SideBandEvent::Mmap(Mapped {
                    start: 0x1000,
                    end: 0x3000,
                    file_offset: 0x3000,
                    identity: FileIdentity::Inode {
                        dev: libc::makedev(0xfd, 1),
                        ino: 12,
                        generation: 34
                    },
                    path: b"/bin/x".to_vec(),
                }),
            }]
        );
    }

    #[test]
    fn fork_names_child_and_parent() {
        let body = [[8_u32, 5, 8, 5].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
        let bytes = record(RECORD_FORK, 0, &body);
        let found = records(&bytes).next().unwrap();
        assert_eq!((found.pid, found.tid), (8, 8));
        assert_eq!(found.event, SideBandEvent::Fork { parent_pid: 5 });
    }

    #[test]
    fn any_cut_and_any_byte_is_survived() {
        let bytes = [mmap2(), record(RECORD_COMM, MISC_COMM_EXEC, &[7; 24])].concat();
        assert_eq!(records(&bytes).count(), 2);
        for len in 0..bytes.len() {
            assert!(records(&bytes[..len]).count() < 2);
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                records(&bytes).for_each(drop);
            }
        }
    }
}
