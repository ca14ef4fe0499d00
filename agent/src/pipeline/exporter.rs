//! Sends what windows make to a collector, while the next window is under way.
//!
//! In: requests of one signal. Out: what became of them, as counts. A collector that is slow or away costs
//! the queue's memory and then the oldest requests, never the sampling.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::export::{
    otlp_send::{Policy, SendError, Sender, Signal, Target},
    queue::Queue,
};

/// What waits takes this much memory at most.
const MAX_QUEUE_BYTES: usize = 16 << 20;

/// A request that was not taken for so long is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportHealth {
    /// Requests that the collector took.
    pub sent: u64,
    /// Profiles or points that it threw away all the same.
    pub rejected: u64,
    /// Requests that it did not take, by reason.
    pub failed: BTreeMap<&'static str, u64>,
    /// Requests that made room for newer ones.
    pub dropped: u64,
    /// Requests that wait.
    pub queued: u64,
}

/// The way to one collector for one signal.
pub struct Exporter<S: Signal> {
    shared: Rc<Shared<S>>,
    task: RefCell<JoinHandle<()>>,
}

struct Shared<S> {
    queue: RefCell<Queue<S>>,
    news: Notify,
    is_closing: Cell<bool>,
    health: RefCell<ExportHealth>,
}

impl<S: Signal> Exporter<S> {
    /// Starts the task that sends; nobody is connected to before there is something to send.
    ///
    /// # Errors
    /// When there are no root certificates for TLS.
    pub fn start(target: &Target) -> Result<Self> {
        let shared = Rc::new(Shared {
            queue: RefCell::new(Queue::new(MAX_QUEUE_BYTES)),
            news: Notify::new(),
            is_closing: Cell::new(false),
            health: RefCell::default(),
        });
        let sender = Sender::new::<S>(target)?;
        let task = tokio::task::spawn_local(send_all(shared.clone(), sender, target.timeout));
        Ok(Self {
            shared,
            task: RefCell::new(task),
        })
    }

    /// Lets requests wait for their turn.
    pub fn push(&self, requests: Vec<S>) {
        let mut queue = self.shared.queue.borrow_mut();
        for request in requests {
            queue.push(request.encoded_len(), request);
        }
        drop(queue);
        self.shared.news.notify_one();
    }

    /// What became of the requests so far.
    pub fn health(&self) -> ExportHealth {
        let queue = self.shared.queue.borrow();
        ExportHealth {
            dropped: queue.dropped,
            queued: queue.len() as u64,
            ..self.shared.health.borrow().clone()
        }
    }

    /// Sends what waits, if it can be done in this time, and nothing after that. Returns how many requests
    /// are lost.
    pub async fn close(&self, patience: Duration) -> u64 {
        self.shared.is_closing.set(true);
        self.shared.news.notify_one();
        // Nobody else waits for the task.
        let is_done = poll_fn(|context| Pin::new(&mut *self.task.borrow_mut()).poll(context));
        if timeout(patience, is_done).await.is_ok() {
            return 0;
        }
        self.task.borrow().abort();
        // The one that was being sent is in the queue no more.
        self.shared.queue.borrow().len() as u64 + 1
    }
}

async fn send_all<S: Signal>(shared: Rc<Shared<S>>, mut sender: Sender, attempt: Duration) {
    loop {
        let next = shared.queue.borrow_mut().pop();
        let Some(request) = next else {
            if shared.is_closing.get() {
                return;
            }
            shared.news.notified().await;
            continue;
        };
        let policy = Policy {
            deadline: Instant::now() + PATIENCE,
            attempt,
            first_delay: Duration::from_millis(500),
            waits_for_server: true,
        };
        let outcome = sender.send(&[request], &policy).await;
        let mut health = shared.health.borrow_mut();
        match outcome {
            Ok(receipt) => {
                health.sent += receipt.requests;
                health.rejected += receipt.rejected;
            }
            Err(error) => {
                *health.failed.entry(reason(&error)).or_default() += 1;
                tracing::warn!(exporter = "otlp", signal = S::NAME, reason = %error, "a request was not delivered");
            }
        }
    }
}

fn reason(error: &SendError) -> &'static str {
    match error {
        SendError::Unreachable { .. } => "unreachable",
        SendError::Refused { .. } => "refused",
        SendError::GaveUp { .. } => "gave_up",
    }
}
