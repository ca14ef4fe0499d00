//! The agent: profiles in windows, metrics beside them, sent and scraped until a signal ends it.
//!
//! In: what to do, with every address already checked. Out: nothing; it returns when it was asked to end and
//! what it had in hand was sent, or could not be. One thread: sampling and counting go on in the kernel
//! while this is busy with a window.

use std::{cell::RefCell, net::TcpListener as StdTcpListener, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, LocalSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    EndSignals, Ended, Plan as RecordingPlan, Recording,
    events::EventMeter,
    exporter::Exporter,
    meters::{ExportState, Meters},
    syscalls::SyscallMeter,
};
use crate::{
    aggregate::Deltas,
    export::{
        otlp_metrics,
        otlp_profiles::{self, Host},
        otlp_send::{MetricsRequest, ProfilesRequest, Target},
        prometheus::{self, Format, Page},
    },
    model::{Profile, Resource},
    process,
};

/// Scrapes that are answered at once; the next ones wait.
const MAX_CONNECTIONS: usize = 32;

/// Rows of processes that ended are taken over this often.
const TICK: Duration = Duration::from_millis(500);

/// What is sent at the end may take this long, so that who stops services does not lose patience.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// What the agent does.
pub struct Plan {
    /// How to sample; `None` without profiles.
    pub recording: Option<RecordingPlan>,
    /// Length of a window.
    pub window: Duration,
    /// Whether system calls are counted.
    pub counts_syscalls: bool,
    /// Whether waits, requests to disks and the like are counted in the kernel.
    pub counts_events: bool,
    /// Where profiles go.
    pub profiles_to: Option<Target>,
    /// Where metrics go.
    pub metrics_to: Option<Target>,
    /// How often they go there.
    pub metrics_every: Duration,
    /// Whether counters go there as differences.
    pub wants_deltas: bool,
    /// Where metrics are scraped.
    pub scraped_at: Option<StdTcpListener>,
    /// Series of each metric.
    pub series_budget: usize,
    /// Who the metrics are of.
    pub resource: Resource,
}

/// Runs until SIGTERM or SIGINT; what is in hand then is sent first.
///
/// # Errors
/// When the kernel refuses anything.
pub async fn run(plan: Plan) -> Result<()> {
    let work = async { Agent::start(plan)?.run().await };
    LocalSet::new().run_until(work).await
}

struct Agent {
    signals: EndSignals,
    recording: Option<Recording>,
    window: Duration,
    metrics_every: Duration,
    profiles: Option<Rc<Exporter<ProfilesRequest>>>,
    metrics: Option<Rc<Exporter<MetricsRequest>>>,
    deltas: Option<Deltas>,
    meters: Rc<RefCell<Meters>>,
    scraped: Rc<Scraped>,
    server: Option<StdTcpListener>,
}

/// What the scrape page is made of.
struct Scraped {
    meters: Rc<RefCell<Meters>>,
    resource: Resource,
    host: Host,
}

impl Page for Scraped {
    fn page(&self, format: Format) -> String {
        let metrics = self.meters.borrow_mut().collect().unwrap_or_else(|error| {
            tracing::warn!(reason = %error, "metrics could not be collected");
            Vec::new()
        });
        prometheus::page(&metrics, &self.resource, &self.host, format).0
    }
}

impl Agent {
    fn start(plan: Plan) -> Result<Self> {
        let syscalls = match (&plan.recording, plan.counts_syscalls) {
            (_, false) => None,
            (recording, true) => {
                let settings = recording
                    .as_ref()
                    .map(|recording| recording.settings.clone());
                Some(SyscallMeter::start(&settings.unwrap_or_default())?)
            }
        };
        let events = plan.counts_events.then(EventMeter::start).transpose()?;
        let recording = plan.recording.map(Recording::prepare).transpose()?;
        let profiles = plan
            .profiles_to
            .as_ref()
            .map(Exporter::start)
            .transpose()?
            .map(Rc::new);
        let metrics = plan
            .metrics_to
            .as_ref()
            .map(Exporter::start)
            .transpose()?
            .map(Rc::new);
        let mut exports: Vec<ExportState> = Vec::new();
        if let Some(exporter) = profiles.clone() {
            exports.push(Box::new(move || ("profiles", exporter.health())));
        }
        if let Some(exporter) = metrics.clone() {
            exports.push(Box::new(move || ("metrics", exporter.health())));
        }
        let meters = Meters::new(plan.series_budget, syscalls, events, exports);
        let meters = Rc::new(RefCell::new(meters));
        let scraped = Scraped {
            meters: meters.clone(),
            resource: plan.resource,
            host: Host::this_one(),
        };
        Ok(Self {
            signals: EndSignals::listen()?,
            recording,
            window: plan.window,
            metrics_every: plan.metrics_every,
            profiles,
            metrics,
            deltas: plan.wants_deltas.then(Deltas::default),
            meters,
            scraped: Rc::new(scraped),
            server: plan.scraped_at,
        })
    }

    async fn run(mut self) -> Result<()> {
        let server = self
            .server
            .take()
            .map(|listener| serve(listener, self.scraped.clone()));
        let server = server.transpose()?;
        let ticker = tokio::task::spawn_local(tick(self.meters.clone()));
        if let Some(recording) = &mut self.recording {
            recording.start()?;
        }
        tracing::info!("the agent is at work");
        let (mut window_end, mut metrics_due) = (
            Instant::now() + self.window,
            Instant::now() + self.metrics_every,
        );
        loop {
            let until = window_end
                .min(metrics_due)
                .saturating_duration_since(Instant::now());
            let ended = self.wait(until).await?;
            let is_end = !matches!(ended, Ended::Elapsed);
            if is_end || Instant::now() >= window_end {
                self.send_window()?;
                window_end += self.window;
            }
            if is_end || Instant::now() >= metrics_due {
                self.send_metrics()?;
                metrics_due += self.metrics_every;
            }
            if is_end {
                tracing::info!(reason = ?ended, "the agent ends");
                break;
            }
            // A machine that slept, or was too busy, does not catch up.
            window_end = window_end.max(Instant::now());
            metrics_due = metrics_due.max(Instant::now());
        }
        ticker.abort();
        server.as_ref().map(JoinHandle::abort);
        self.close().await;
        Ok(())
    }

    /// Samples until the time is over, or a signal comes.
    async fn wait(&mut self, time: Duration) -> Result<Ended> {
        if let Some(recording) = &mut self.recording {
            let signals = &mut self.signals;
            return recording.run(Some(time), signals, None, |_| ()).await;
        }
        Ok(tokio::select! {
            () = sleep(time) => Ended::Elapsed,
            signal = self.signals.next() => Ended::Signal(signal),
        })
    }

    fn send_window(&mut self) -> Result<()> {
        let Some(recording) = &mut self.recording else {
            return Ok(());
        };
        let profile = recording.cut_window()?;
        self.meters
            .borrow_mut()
            .note_window(&profile.quality, recording.run_times());
        if let Some(exporter) = &self.profiles
            && profile.quality.kept > 0
        {
            exporter.push(otlp_profiles::requests(&profile, &self.scraped.host));
        }
        tell(&profile);
        drop(profile);
        process::give_back_memory();
        Ok(())
    }

    fn send_metrics(&mut self) -> Result<()> {
        let Some(exporter) = &self.metrics else {
            return Ok(());
        };
        let mut metrics = self.meters.borrow_mut().collect()?;
        if let Some(deltas) = &mut self.deltas {
            metrics = deltas.of(&metrics);
        }
        exporter.push(otlp_metrics::requests(
            &metrics,
            &self.scraped.resource,
            &self.scraped.host,
        ));
        Ok(())
    }

    /// Sends what waits; both signals at once, since the time is short.
    async fn close(self) {
        let profiles = async {
            match &self.profiles {
                Some(exporter) => exporter.close(CLOSE_PATIENCE).await,
                None => 0,
            }
        };
        let metrics = async {
            match &self.metrics {
                Some(exporter) => exporter.close(CLOSE_PATIENCE).await,
                None => 0,
            }
        };
        let (profiles, metrics) = tokio::join!(profiles, metrics);
        if profiles + metrics > 0 {
            tracing::error!(
                profiles,
                metrics,
                "requests were not delivered before the end"
            );
        }
    }
}

fn tell(profile: &Profile) {
    let quality = &profile.quality;
    tracing::debug!(
        kept = quality.kept,
        expected = quality.expected,
        rooted = quality.rooted,
        "a window is complete"
    );
}

async fn tick(meters: Rc<RefCell<Meters>>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = meters.borrow_mut().tick() {
            tracing::warn!(reason = %error, "system calls of ended processes could not be read");
        }
    }
}

/// Answers scrapes.
fn serve(listener: StdTcpListener, page: Rc<Scraped>) -> Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener).context("cannot listen")?;
    Ok(tokio::task::spawn_local(async move {
        let connections = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = connections.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let page = page.clone();
                    tokio::task::spawn_local(async move {
                        prometheus::serve(stream, &*page).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Too many open files, for one: others will be closed.
                    tracing::warn!(reason = %error, "a scrape was not answered");
                    sleep(TICK).await;
                }
            }
        }
    }))
}
