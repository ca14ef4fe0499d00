//! What each process uses: `/proc/PID/stat`, `schedstat` and `io`. proc(5).
//!
//! Not a resource: it answers who uses one.

use rustc_hash::FxHashMap;

use super::root::Reader;
use super::text;

/// More processes are left out, and counted. Each costs some 25 µs.
const MAX_PROCESSES: usize = 32_768;
/// More threads, beside the first of each process, are not asked how long they waited.
const MAX_THREADS: usize = 16_384;

/// Raw counters of all processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// When reading began, in ticks since boot.
    pub uptime_ticks: Option<u64>,
    /// By process id.
    pub processes: FxHashMap<u32, Process>,
}

/// Raw counters of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// What `/proc/PID/stat` says.
    pub stat: Stat,
    /// Nanoseconds that its threads, those alive, waited for a CPU; `None` where the kernel does
    /// not count or there are too many of them.
    pub wait_ns: Option<u64>,
    /// Bytes that it read from disks and wrote to them; needs the rights to trace the process.
    pub io_bytes: Option<u64>,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name, without what a terminal would obey.
    pub name: String,
    /// CPU time of all its threads, in ticks.
    pub cpu_ticks: u64,
    /// Threads, now.
    pub threads: u64,
    /// Start, in ticks since boot.
    pub start_ticks: u64,
    /// Resident memory, shared pages included.
    pub resident_pages: u64,
    /// Where its first thread ran last.
    pub core: u32,
}

/// Parses `/proc/PID/stat`. The name in parentheses can hold anything, newlines too: fields are
/// counted behind the last parenthesis.
#[must_use]
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (first, rest) = text.strip_suffix('\n')?.rsplit_once(") ")?;
    let (_, name) = first.split_once(" (")?;
    let fields: Vec<_> = rest.split(' ').collect();
    // proc(5) numbers fields from 1, and the state behind the name is 3.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat {
        name: name.replace(char::is_control, "?"),
        cpu_ticks: field(14)?.checked_add(field(15)?)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        resident_pages: field(24)?,
        core: field(39)?.try_into().ok()?,
    })
}

/// Parses `/proc/PID/schedstat`, which is about one thread: time on CPUs, time waiting for one,
/// turns.
#[must_use]
pub fn parse_schedstat(text: &str) -> Option<u64> {
    text::numbers(text::lines(text).next()?)?.get(1).copied()
}

/// Parses `/proc/PID/io`: bytes that went to and came from disks.
#[must_use]
pub fn parse_io(text: &str) -> Option<u64> {
    let pairs = text::pairs(text)?;
    pairs
        .get("read_bytes")?
        .checked_add(*pairs.get("write_bytes")?)
}

/// Parses `/proc/uptime`, which has hundredths of a second: ticks.
#[must_use]
pub fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text::lines(text)
        .next()?
        .split(' ')
        .next()?
        .split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    seconds
        .checked_mul(100)?
        .checked_add(hundredths.parse().ok()?)
}

/// Reads the counters of all processes. One that ends meanwhile is left out.
pub fn read(reader: &mut Reader) -> Reading {
    let uptime_ticks = reader.read("proc/uptime", parse_uptime);
    let pids = numbers(reader.list("proc"));
    let left_out = pids.len().saturating_sub(MAX_PROCESSES);
    reader.unread.left_out += left_out as u64;
    let mut threads_left = MAX_THREADS;
    let processes = pids
        .into_iter()
        .take(MAX_PROCESSES)
        .filter_map(|pid| Some((pid, read_process(reader, pid, &mut threads_left)?)))
        .collect();
    Reading {
        uptime_ticks,
        processes,
    }
}

fn read_process(reader: &mut Reader, pid: u32, threads_left: &mut usize) -> Option<Process> {
    let stat = reader.read_piece(&format!("proc/{pid}/stat"), parse_stat)?;
    let wait_ns = if stat.threads <= 1 {
        reader.read_piece(&format!("proc/{pid}/schedstat"), parse_schedstat)
    } else {
        wait_of_threads(reader, pid, threads_left)
    };
    Some(Process {
        stat,
        wait_ns,
        io_bytes: reader.read_piece(&format!("proc/{pid}/io"), parse_io),
    })
}

fn wait_of_threads(reader: &mut Reader, pid: u32, threads_left: &mut usize) -> Option<u64> {
    let tids = numbers(reader.list(&format!("proc/{pid}/task")));
    let Some(left) = threads_left.checked_sub(tids.len()) else {
        reader.unread.left_out += tids.len() as u64;
        return None;
    };
    *threads_left = left;
    let mut waits = tids.into_iter().filter_map(|tid| {
        reader.read_piece(&format!("proc/{pid}/task/{tid}/schedstat"), parse_schedstat)
    });
    let first = waits.next()?;
    waits.try_fold(first, u64::checked_add)
}

fn numbers(names: Vec<String>) -> Vec<u32> {
    names
        .into_iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "30285 (a) b\n(c) R 30232 30232 29180 0 -1 4194304 98 0 0 0 31 41 0 0 20 0 1 0 493968 3133440 382 18446744073709551615 94489327292416 94489327312297 140737457880192 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0 94489327328304 94489327329920 94489357357056 140737457887904 140737457887959 140737457887959 140737457889259 0\n";
    const IO: &str = "rchar: 7296\nwchar: 320\nsyscr: 14\nsyscw: 2\nread_bytes: 4096\nwrite_bytes: 0\ncancelled_write_bytes: 0\n";

    #[test]
    fn fields_are_counted_behind_the_name() {
        let expected = Stat {
            name: "a) b?(c".into(),
            cpu_ticks: 72,
            threads: 1,
            start_ticks: 493_968,
            resident_pages: 382,
            core: 3,
        };
        assert_eq!(parse_stat(STAT), Some(expected));
        assert_eq!(parse_stat("1 (a) R 1\n"), None);
        text::torture::check(STAT, parse_stat);
    }

    #[test]
    fn other_files_are_read_by_name_and_place() {
        assert_eq!(parse_io(IO), Some(4096));
        assert_eq!(parse_schedstat("1104245 47136045 2\n"), Some(47_136_045));
        assert_eq!(parse_uptime("4939.68 1.00\n"), Some(493_968));
        assert_eq!(parse_uptime("4939.6 1.00\n"), None);
        text::torture::check(IO, parse_io);
        text::torture::check("1104245 47136045 2\n", parse_schedstat);
        text::torture::check("4939.68 1.00\n", parse_uptime);
    }

    #[test]
    fn own_process_is_there_and_a_thread_more_is_seen() {
        let mut reader = Reader::new(&super::super::Root::host());
        let reading = read(&mut reader);
        let own = &reading.processes[&std::process::id()];
        assert!(own.stat.resident_pages > 0 && own.stat.threads >= 1);
        assert!(own.stat.start_ticks <= reading.uptime_ticks.unwrap());
    }
}
