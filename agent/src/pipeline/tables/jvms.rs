//! JVMs, whose compiled code has its tables made of what lies in their memory.
//!
//! A thread for each reads that memory: the process may keep a reader waiting for as long as it likes
//! (userfaultfd(2)), and nobody else shall wait then.

use std::{
    fs::File,
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use crate::{
    model::BinaryId,
    process::{Binaries, Code, Found, Mapping, Mappings, memory::ProcessMemory},
    unwind::{
        hotspot::{CHUNK_BYTES, CodeCache, Exports, chunk_of},
        table::Table,
    },
};

/// What is known of a JVM's code is compared with what is there this often.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// A JVM that has not answered for so long is one that does not let itself be looked into, until it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// JVMs that are looked into at once, each with a thread.
const MAX_THREADS: usize = 256;
/// Requests that wait for one of them.
const MAX_REQUESTS: usize = 4;
/// Addresses that wait to be asked for, of one process.
const MAX_WANTED: usize = 64 << 10;
/// What they found and nobody has taken yet; they wait then.
const MAX_OUTCOMES: usize = 16;

/// Code that stacks lead to.
struct Request {
    number: u64,
    addrs: Vec<u64>,
    /// Stretches of code that have no table.
    without_table: FxHashSet<u64>,
}

/// What was found out about a JVM.
pub struct Outcome {
    /// Its process.
    pub pid: u32,
    /// Tables by the start of their stretch; `None` where there is none any more.
    pub tables: Vec<(u64, Option<Table>)>,
    life: u64,
    /// Up to this request, all are answered.
    answered: u64,
    /// Whether its mappings have to be listed anew.
    pub is_news: bool,
    /// `None` when it cannot be looked into.
    heaps: Option<Vec<Range<u64>>>,
    left_out: u64,
}

/// What is known of its heaps.
enum Heaps {
    /// Nothing yet.
    Unknown,
    Known(Vec<Range<u64>>),
    /// Nor will there be, unless it answers after all.
    Hidden,
}

struct Jvm {
    /// Tells processes that had the same pid apart.
    life: u64,
    library: BinaryId,
    /// How much higher it lies than its ELF addresses say.
    bias: u64,
    requests: Option<SyncSender<Request>>,
    /// Code that is asked for with the next request.
    wanted: Vec<u64>,
    asked: u64,
    answered: u64,
    /// Since when an answer is awaited.
    waits_since: Option<Instant>,
    heaps: Heaps,
    left_out: u64,
}

/// All that run.
pub struct Jvms {
    known: FxHashMap<u32, Jvm>,
    lives: u64,
    results: SyncSender<Outcome>,
    outcomes: Receiver<Outcome>,
    news: Arc<Notify>,
    /// Code that was left out, of those that are gone too.
    left_out: u64,
}

/// What a part of a process's code made at run time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A stretch of a JVM's code, or all that may be such: it has a table once a stack has led there.
    Code,
    /// No code of a JVM.
    Bare,
}

impl Jvms {
    /// None yet. `news` is notified of outcomes.
    pub fn new(news: Arc<Notify>) -> Self {
        let (results, outcomes) = sync_channel(MAX_OUTCOMES);
        Self {
            known: FxHashMap::default(),
            lives: 0,
            results,
            outcomes,
            news,
            left_out: 0,
        }
    }

    /// A process has these mappings now. Returns whether it is no more the JVM that it was.
    pub fn set_mappings(&mut self, pid: u32, mappings: &[Mapping], binaries: &Binaries) -> bool {
        let library = mappings
            .iter()
            .find_map(|mapping| library(mapping, binaries));
        let known = self.known.get(&pid);
        if library == known.map(|jvm| (jvm.library, jvm.bias)) {
            return false;
        }
        let before = self.known.remove(&pid);
        self.left_out += before.as_ref().map_or(0, |jvm| jvm.left_out);
        if let Some((library, bias)) = library {
            self.lives += 1;
            let jvm = Jvm {
                life: self.lives,
                library,
                bias,
                requests: None,
                wanted: Vec::new(),
                asked: 0,
                answered: 0,
                waits_since: None,
                heaps: Heaps::Unknown,
                left_out: 0,
            };
            self.known.insert(pid, jvm);
        }
        before.is_some()
    }

    /// Wants the code looked at that lies at those of these addresses that may be a JVM's. Returns what to
    /// ask [`Self::has_answered`] for.
    pub fn want(&mut self, pid: u32, addrs: impl Iterator<Item = u64>, mappings: &Mappings) -> u64 {
        let Some(jvm) = self.known.get_mut(&pid) else {
            return 0;
        };
        if matches!(jvm.heaps, Heaps::Hidden) {
            return 0;
        }
        let before = jvm.wanted.len();
        let addrs: Vec<_> = addrs.filter(|&addr| jvm.may_hold(addr, mappings)).collect();
        jvm.wanted.extend(addrs);
        if jvm.wanted.len() > MAX_WANTED {
            jvm.wanted.truncate(before);
            self.left_out += 1;
        }
        if jvm.wanted.is_empty() {
            0
        } else {
            jvm.asked + 1
        }
    }

    /// Asks for the code that is wanted; `has_table` tells which stretches of a process's code have tables.
    pub fn ask(&mut self, binaries: &Binaries, has_table: impl Fn(u32, u64) -> bool) {
        let watched = self.known.values().filter(|jvm| jvm.requests.is_some());
        let mut watched = watched.count();
        for (&pid, jvm) in &mut self.known {
            if jvm.wanted.is_empty() {
                continue;
            }
            if jvm.requests.is_none() {
                let library = binaries.get(jvm.library).file().cloned();
                let watch = library
                    .filter(|_| watched < MAX_THREADS)
                    .map(|library| Watch {
                        pid,
                        life: jvm.life,
                        library,
                        bias: jvm.bias,
                        results: self.results.clone(),
                        news: self.news.clone(),
                    });
                jvm.requests = watch.and_then(Watch::start);
                watched += 1;
            }
            let Some(requests) = &jvm.requests else {
                (jvm.heaps, jvm.wanted) = (Heaps::Hidden, Vec::new());
                continue;
            };
            jvm.wanted.sort_unstable();
            jvm.wanted.dedup();
            let chunks = jvm.wanted.iter().map(|&addr| chunk_of(addr));
            let request = Request {
                number: jvm.asked + 1,
                without_table: chunks.filter(|&chunk| !has_table(pid, chunk)).collect(),
                addrs: std::mem::take(&mut jvm.wanted),
            };
            match requests.try_send(request) {
                Ok(()) => {
                    jvm.asked += 1;
                    jvm.waits_since.get_or_insert_with(Instant::now);
                }
                // It is asked again with what comes.
                Err(TrySendError::Full(request)) => jvm.wanted = request.addrs,
                Err(TrySendError::Disconnected(_)) => jvm.heaps = Heaps::Hidden,
            }
        }
    }

    /// Gives those up for now that do not answer. Returns which.
    pub fn give_up(&mut self) -> Vec<u32> {
        let is_late = |since: Instant| since.elapsed() >= PATIENCE;
        let is_silent =
            |jvm: &Jvm| !matches!(jvm.heaps, Heaps::Hidden) && jvm.waits_since.is_some_and(is_late);
        let silent = self.known.iter_mut().filter(|(_, jvm)| is_silent(jvm));
        let given_up = silent.map(|(&pid, jvm)| {
            (jvm.heaps, jvm.wanted) = (Heaps::Hidden, Vec::new());
            pid
        });
        given_up.collect()
    }

    /// Whether a process is a JVM that can be looked into.
    pub fn has(&self, pid: u32) -> bool {
        let jvm = self.known.get(&pid);
        jvm.is_some_and(|jvm| matches!(jvm.heaps, Heaps::Known(_)))
    }

    /// Whether a request to look at code of a process is answered.
    pub fn has_answered(&self, pid: u32, request: u64) -> bool {
        self.known
            .get(&pid)
            .is_none_or(|jvm| jvm.answered >= request || matches!(jvm.heaps, Heaps::Hidden))
    }

    /// What has been found out.
    pub fn take(&mut self) -> Option<Outcome> {
        while let Ok(mut outcome) = self.outcomes.try_recv() {
            let jvm = self.known.get_mut(&outcome.pid);
            let Some(jvm) = jvm.filter(|jvm| jvm.life == outcome.life) else {
                continue; // It has ended meanwhile.
            };
            jvm.answered = outcome.answered;
            jvm.waits_since = (jvm.answered < jvm.asked).then(Instant::now);
            jvm.left_out = outcome.left_out;
            let is_first = !matches!(jvm.heaps, Heaps::Known(_));
            outcome.is_news = is_first || !outcome.tables.is_empty();
            jvm.heaps = outcome.heaps.take().map_or(Heaps::Hidden, Heaps::Known);
            return Some(outcome);
        }
        None
    }

    /// Code that was left out, because there was too much of it.
    pub fn left_out(&self) -> u64 {
        self.left_out + self.known.values().map(|jvm| jvm.left_out).sum::<u64>()
    }

    /// What a mapping without a file of a process is made of, by ascending address.
    pub fn parts(&self, pid: u32, mapping: &Mapping) -> Vec<(Range<u64>, Part)> {
        let whole = mapping.start..mapping.end;
        let Some(jvm) = self.known.get(&pid) else {
            return vec![(whole, Part::Bare)];
        };
        let heaps = match &jvm.heaps {
            Heaps::Unknown => return vec![(whole, Part::Code)],
            Heaps::Hidden => return vec![(whole, Part::Bare)],
            Heaps::Known(heaps) => heaps,
        };
        let mut parts = Vec::new();
        let mut start = whole.start;
        while start < whole.end {
            let heap = heaps.iter().find(|heap| heap.contains(&start));
            let (end, part) = match heap {
                Some(heap) => (heap.end.min(chunk_of(start) + CHUNK_BYTES), Part::Code),
                None => {
                    let next = heaps.iter().map(|heap| heap.start);
                    let next = next.filter(|&next| next > start).min();
                    (next.unwrap_or(whole.end), Part::Bare)
                }
            };
            parts.push((start..end.min(whole.end), part));
            start = end;
        }
        parts
    }
}

impl Jvm {
    /// Whether code of this JVM may lie at an address.
    fn may_hold(&self, addr: u64, mappings: &Mappings) -> bool {
        if let Heaps::Known(heaps) = &self.heaps
            && heaps.iter().any(|heap| heap.contains(&addr))
        {
            return true;
        }
        mappings.at(addr) == Found::Anonymous
    }
}

/// The JVM's library, if this is a mapping of it, and its bias.
fn library(mapping: &Mapping, binaries: &Binaries) -> Option<(BinaryId, u64)> {
    let Code::File(binary) = mapping.code else {
        return None;
    };
    let known = binaries.get(binary);
    if !known.path.ends_with("/libjvm.so") {
        return None;
    }
    let len = mapping.end - mapping.start;
    let addr = known.facts.addr_of_mapping(mapping.file_offset, len)?;
    Some((binary, mapping.start.wrapping_sub(addr)))
}

/// The thread that looks into a JVM.
struct Watch {
    pid: u32,
    life: u64,
    library: Arc<File>,
    bias: u64,
    results: SyncSender<Outcome>,
    news: Arc<Notify>,
}

impl Watch {
    /// Starts it; it ends when nobody can ask any more.
    fn start(self) -> Option<SyncSender<Request>> {
        let (asks, requests) = sync_channel(MAX_REQUESTS);
        let thread = thread::Builder::new().name("hotspan-jvm".into());
        let started = thread.spawn(move || self.run(&requests));
        started.ok().map(|_| asks)
    }

    fn run(self, requests: &Receiver<Request>) {
        let pid = self.pid;
        let exports = Exports::find(&self.library);
        let code =
            exports.and_then(|exports| CodeCache::open(&exports, self.bias, ProcessMemory(pid)));
        let Some(mut code) = code else {
            tracing::debug!(pid, "a JVM cannot be looked into");
            self.tell(0, None);
            return;
        };
        let (mut answered, mut compared) = (0, Instant::now());
        loop {
            let request = requests.recv_timeout(COMPARE_EVERY);
            let is_asked = request.is_ok();
            match request {
                Ok(request) => {
                    let has_table = |chunk| !request.without_table.contains(&chunk);
                    code.learn(&request.addrs, has_table);
                    answered = request.number;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if compared.elapsed() >= COMPARE_EVERY {
                code.compare();
                compared = Instant::now();
            }
            if (is_asked || code.has_changed()) && !self.tell(answered, Some(&mut code)) {
                return;
            }
        }
    }

    /// Hands on what is known; false when nobody waits any more.
    fn tell(&self, answered: u64, code: Option<&mut CodeCache<ProcessMemory>>) -> bool {
        let mut outcome = Outcome {
            pid: self.pid,
            tables: Vec::new(),
            life: self.life,
            answered,
            is_news: false,
            heaps: None,
            left_out: 0,
        };
        if let Some(code) = code {
            outcome.tables = code.take_tables();
            outcome.heaps = Some(code.heaps().collect());
            outcome.left_out = code.left_out;
        }
        let is_sent = self.results.send(outcome).is_ok();
        self.news.notify_one();
        is_sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 7;

    #[test]
    fn jvm_that_does_not_answer_is_given_up_until_it_does() {
        let mut jvms = Jvms::new(Arc::new(Notify::new()));
        let silent = Jvm {
            life: 1,
            library: BinaryId(0),
            bias: 0,
            requests: None,
            wanted: vec![0x1000],
            asked: 2,
            answered: 1,
            waits_since: Instant::now().checked_sub(PATIENCE),
            heaps: Heaps::Unknown,
            left_out: 0,
        };
        jvms.known.insert(PID, silent);
        assert!(!jvms.has_answered(PID, 2));
        assert_eq!((jvms.give_up(), jvms.give_up()), (vec![PID], vec![]));
        assert!(jvms.has_answered(PID, 2) && !jvms.has(PID));
        let late = Outcome {
            pid: PID,
            tables: Vec::new(),
            life: 1,
            answered: 2,
            is_news: false,
            heaps: Some(Vec::new()),
            left_out: 0,
        };
        jvms.results.send(late).unwrap();
        assert!(jvms.take().unwrap().is_news);
        assert!(jvms.has(PID) && jvms.give_up().is_empty());
    }
}
