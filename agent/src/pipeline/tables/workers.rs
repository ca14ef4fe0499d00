//! The threads that make tables, and the order in which they do it.
//!
//! Those of a large binary take seconds. So one thread makes tables of any binary, and another of
//! all but the large ones: these never wait behind one that is large, and at most one large one
//! takes memory at a time.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use tokio::sync::Notify;

use crate::{
    model::BinaryId,
    unwind::{Cache, Made, Proof, Subject},
};

/// Binaries with more code than this are large.
const LARGE_TEXT_BYTES: u64 = 16 << 20;
/// Binaries that wait at most: each keeps some hundred bytes. More ask again.
const MAX_WAITING: usize = 16 << 10;

/// Tables that wait to be taken at most; the threads wait then.
const MAX_DONE: usize = 16;

/// A binary whose tables are wanted.
pub struct Job {
    /// Which.
    pub binary: BinaryId,
    /// Its file.
    pub subject: Subject,
    /// How many processes have it mapped.
    pub users: usize,
    /// Binaries whose tables may be the same, and what those were made of.
    pub candidates: Vec<(BinaryId, Arc<Proof>)>,
}

/// What came of a job.
pub enum Outcome {
    /// New tables.
    Made(Made),
    /// The tables are those of another binary.
    SameAs(BinaryId),
}

impl Job {
    /// Does it, in the cheapest way, and tells which.
    fn run(&self, cache: Option<&Cache>) -> (Outcome, &'static str) {
        let mut candidates = self.candidates.iter();
        if let Some(same) = candidates.find(|(_, proof)| proof.holds_for(&self.subject)) {
            return (Outcome::SameAs(same.0), "shared");
        }
        if let Some(kept) = cache.and_then(|cache| cache.load(&self.subject)) {
            return (Outcome::Made(kept), "read");
        }
        let made = self.subject.make();
        if let Some(cache) = cache {
            cache.save(&self.subject, &made);
        }
        (Outcome::Made(made), "made")
    }

    /// The lower, the earlier: what it takes for each process that gains by it (Smith's rule).
    fn cost(&self) -> u64 {
        self.subject.text_bytes() / self.users.max(1) as u64
    }
}

/// A job in the order of its cost.
struct Waiting(u64, Job);

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

#[derive(Default)]
struct Jobs {
    small: BinaryHeap<Reverse<Waiting>>,
    large: BinaryHeap<Reverse<Waiting>>,
    is_closed: bool,
}

impl Jobs {
    fn push(&mut self, job: Job) {
        let heap = if job.subject.text_bytes() > LARGE_TEXT_BYTES {
            &mut self.large
        } else {
            &mut self.small
        };
        heap.push(Reverse(Waiting(job.cost(), job)));
    }

    /// The next job of a thread.
    fn pop(&mut self, takes_large: bool) -> Option<Job> {
        let is_large_next = match (self.small.peek(), self.large.peek()) {
            (Some(Reverse(small)), Some(Reverse(large))) => large.0 < small.0,
            (small, _) => small.is_none(),
        };
        let heap = if takes_large && is_large_next {
            &mut self.large
        } else {
            &mut self.small
        };
        Some(heap.pop()?.0.1)
    }
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    has_more: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        // What a thread that panicked left is whole: jobs go in and out in one step.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next job of a thread; `None` when there will be no more.
    fn next(&self, takes_large: bool) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if jobs.is_closed {
                return None;
            }
            if let Some(job) = jobs.pop(takes_large) {
                return Some(job);
            }
            let waited = self.has_more.wait(jobs);
            jobs = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The threads.
pub struct Workers {
    queue: Arc<Queue>,
    outcomes: Receiver<(BinaryId, Outcome)>,
    news: Arc<Notify>,
}

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(cache: Option<Cache>) -> Result<Self> {
        let cache = cache.map(Arc::new);
        let queue = Arc::new(Queue::default());
        let news = Arc::new(Notify::new());
        let (results, outcomes) = sync_channel(MAX_DONE);
        for (name, takes_large) in [("hotspan-tables", true), ("hotspan-small", false)] {
            let worker = Worker {
                queue: queue.clone(),
                cache: cache.clone(),
                results: results.clone(),
                news: news.clone(),
                takes_large,
            };
            thread::Builder::new()
                .name(name.into())
                .spawn(move || worker.run())
                .context("cannot start a thread for unwind tables")?;
        }
        Ok(Self {
            queue,
            outcomes,
            news,
        })
    }

    /// Adds a job; false when too many wait.
    pub fn push(&self, job: Job) -> bool {
        let mut jobs = self.queue.lock();
        if jobs.small.len() + jobs.large.len() >= MAX_WAITING {
            return false;
        }
        jobs.push(job);
        // Which thread takes it depends on its size.
        self.queue.has_more.notify_all();
        true
    }

    /// What has been done.
    pub fn take(&self) -> Option<(BinaryId, Outcome)> {
        self.outcomes.try_recv().ok()
    }

    /// Signalled when something has been done.
    pub fn news(&self) -> Arc<Notify> {
        self.news.clone()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.lock().is_closed = true;
        self.queue.has_more.notify_all();
    }
}

/// One thread.
struct Worker {
    queue: Arc<Queue>,
    cache: Option<Arc<Cache>>,
    results: SyncSender<(BinaryId, Outcome)>,
    news: Arc<Notify>,
    takes_large: bool,
}

impl Worker {
    fn run(self) {
        while let Some(job) = self.queue.next(self.takes_large) {
            let start = Instant::now();
            let (outcome, how) = job.run(self.cache.as_deref());
            let elapsed_us = start.elapsed().as_micros() as u64;
            tracing::debug!(path = %job.subject.path, how, elapsed_us, "unwind tables");
            if self.results.send((job.binary, outcome)).is_err() {
                return; // Nobody waits any more.
            }
            self.news.notify_one();
        }
    }
}
