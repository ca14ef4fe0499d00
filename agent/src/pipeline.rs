//! The only file that knows every stage: it moves data from one to the next.
//!
//! In: what to capture and for how long. Out: a finished [`Profile`]. Everything but the making of tables
//! runs on one thread: the kernel buffers samples, and a tick ten times a second carries them on.

pub mod agent;
mod early;
pub mod events;
mod exporter;
mod meters;
mod slow_calls;
pub mod syscalls;
mod tables;

use std::{
    collections::{BTreeMap, VecDeque},
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hotspan_abi::{
    counters::Counter,
    records::{SampleHeader, SlowCall},
    settings::{TARGET_FOLLOW_CHILDREN, TARGET_LAUNCHER, TARGET_SAMPLE},
};
use regex::bytes::Regex;
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

use early::{EarlySample, EarlySamples};
use tables::TableLoader;

use crate::{
    aggregate::{
        Samples, ThreadKey,
        clock::{Clock, now_mono_ns},
    },
    capture::{Batch, Capture, Settings, Target},
    decode::{
        record::{self, Record, Sample},
        side_band::{self, SideBandRecord},
    },
    model::{ProcessId, Profile, RawFrame},
    process::{self, Binaries, CpuAccount, ProcessTable, Scope, Watched},
    symbolize::{
        normalize::{Addresses, normalize},
        profile::{Context, NameCache, profile},
    },
    unwind::Cache,
};

/// How often what the kernel has buffered is read.
const TICK: Duration = Duration::from_millis(100);

/// A recording waits this long for the tables of the processes that it starts with.
const TABLE_PATIENCE: Duration = Duration::from_millis(100);

/// The kernel lets go of a thread some time after its end; a recording waits this long at most for
/// the CPU time of the last ones.
const SETTLE_PATIENCE: Duration = Duration::from_millis(60);

/// The end of a recording waits this long for the tables of its last samples.
const EARLY_PATIENCE: Duration = Duration::from_secs(2);

/// The end of a window among others waits less long: the runtime waits with it.
const WINDOW_PATIENCE: Duration = Duration::from_millis(200);

/// A process that ended may still be sampled this long, and its CPU time be told.
const AFTERLIFE_NS: u64 = 300_000_000;

/// News of processes, and copies of stacks, are read this long after the first of them: late enough not to
/// wake up for each of the files that a process maps. Samples have no tables until then, but bring copies of their
/// stacks along: only for what lies outside of those they depend on it.
const COALESCE: Duration = Duration::from_millis(2);

/// What to record.
pub struct Plan {
    /// What the kernel side does.
    pub settings: Settings,
    /// Processes to sample, when [`Target::Pids`].
    pub pids: Vec<u32>,
    /// Whether processes that they start are sampled too.
    pub follow_children: bool,
    /// Keep only samples of processes or threads with such a name.
    pub name_filter: Option<Regex>,
    /// Look up source lines and inlined functions.
    pub with_lines: bool,
    /// How much memory unwind tables may take.
    pub table_bytes: usize,
    /// Where they are kept from one recording to the next.
    pub table_cache: Option<Cache>,
}

/// Why a recording ended.
#[derive(Debug)]
pub enum Ended {
    /// Its time was over.
    Elapsed,
    /// The user, or the system, asked for it.
    Signal(i32),
    /// The command ended.
    CommandExited(ExitStatus),
    /// Every process that was named has ended.
    TargetsGone,
}

/// The signals that ask for the end. One that comes while nobody waits is not lost, as long as this lives.
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    /// Not for who was started by `nohup`.
    hangup: Option<Signal>,
    /// Those of them that were ignored before.
    ignored: Vec<i32>,
}

impl EndSignals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub fn listen() -> Result<Self> {
        let mut ignored = vec![libc::SIGINT, libc::SIGTERM];
        ignored.retain(|&signal| process::is_ignored(signal));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: match process::is_ignored(libc::SIGHUP) {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
            ignored,
        })
    }

    /// Has a command that we start ignore what it would if we had not come between.
    pub fn leave_ignored(&self, command: &mut Command) {
        if !self.ignored.is_empty() {
            process::ignore_in(command, self.ignored.clone());
        }
    }

    /// The number of the next one.
    pub async fn next(&mut self) -> i32 {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = hangup => libc::SIGHUP,
        }
    }
}

/// A recording under way.
pub struct Recording {
    plan: Plan,
    capture: Capture,
    /// The processes of the plan.
    targets: Watched,
    table: ProcessTable,
    tables: TableLoader,
    binaries: Binaries,
    samples: Samples,
    early: EarlySamples,
    /// Slow system calls, each with a sample of its CPU and time.
    slow_calls: Vec<SlowCall>,
    account: CpuAccount,
    start_mono_ns: u64,
    batch: Batch,
    side_band: VecDeque<SideBandRecord>,
    /// Processes that ended, and when; the oldest first.
    ended: VecDeque<(u64, u32)>,
    frames: Vec<RawFrame>,
    command: Option<u32>,
    /// Samples, kept or not.
    taken: u64,
    filtered: u64,
    malformed: u64,
    names: NameCache,
    /// What earlier windows have told of counters that go on.
    told: BTreeMap<&'static str, u64>,
}

impl Recording {
    /// Loads the programs and gets ready; sampling starts with [`Self::start`].
    ///
    /// # Errors
    /// When the kernel refuses anything.
    pub fn prepare(mut plan: Plan) -> Result<Self> {
        let mut capture = Capture::load(&plan.settings)?;
        let scope = match plan.settings.target {
            Target::All => Scope::All,
            Target::Pids | Target::Cgroup(_) => Scope::Known,
        };
        let mut table = ProcessTable::new(scope);
        let mut binaries = Binaries::default();
        let follow = if plan.follow_children {
            TARGET_FOLLOW_CHILDREN
        } else {
            0
        };
        for &pid in &plan.pids {
            capture.add_target(pid, TARGET_SAMPLE | follow)?;
            table.scan(pid, &mut binaries);
        }
        Ok(Self {
            account: CpuAccount::open(&plan.settings.target),
            targets: Watched::new(&plan.pids),
            tables: TableLoader::start(plan.table_bytes, plan.table_cache.take())?,
            plan,
            capture,
            table,
            binaries,
            samples: Samples::default(),
            early: EarlySamples::default(),
            slow_calls: Vec::new(),
            start_mono_ns: 0,
            batch: Batch::default(),
            side_band: VecDeque::new(),
            ended: VecDeque::new(),
            frames: Vec::new(),
            command: None,
            taken: 0,
            filtered: 0,
            malformed: 0,
            names: NameCache::default(),
            told: BTreeMap::new(),
        })
    }

    /// Starts sampling.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&mut self) -> Result<()> {
        if matches!(self.plan.settings.target, Target::All) {
            self.table.scan_all(&mut self.binaries);
        }
        self.wait_for_tables();
        // Last of all: what the targets use while this gets ready is not sampled.
        self.open_window();
        self.capture.start()
    }

    fn open_window(&mut self) {
        self.account = CpuAccount::open(&self.plan.settings.target);
        for &pid in &self.plan.pids {
            self.account.add_running(pid);
        }
        for pid in self.cgroup_processes() {
            self.account.add_running(pid);
        }
        self.start_mono_ns = now_mono_ns();
    }

    /// Gives the tables of what runs already a moment, so that the first samples have them.
    fn wait_for_tables(&mut self) {
        let until = Instant::now() + TABLE_PATIENCE;
        self.update_tables();
        while !self.tables.is_idle() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            self.update_tables();
        }
    }

    fn update_tables(&mut self) {
        let Self {
            tables,
            table,
            binaries,
            capture,
            ..
        } = self;
        let now_mono_ns = now_mono_ns();
        tables.update(table, binaries, &mut capture.tables, now_mono_ns);
        self.keep_early(now_mono_ns);
    }

    fn cgroup_processes(&self) -> Vec<u32> {
        match &self.plan.settings.target {
            Target::Cgroup(cgroup) => cgroup.processes(),
            Target::All | Target::Pids => Vec::new(),
        }
    }

    /// Starts the command that is recorded: the kernel side follows it from its first instruction,
    /// because it knows who starts it.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn launch(&mut self, command: &mut Command) -> Result<Child> {
        self.capture
            .add_target(std::process::id(), TARGET_LAUNCHER)?;
        let child = command.spawn()?;
        self.command = child.id();
        if let Some(pid) = self.command {
            self.table.expect(pid);
        }
        Ok(child)
    }

    /// Records until something ends it, or the time is over: it may go on then; `progress` is told the number of samples now and then.
    ///
    /// # Errors
    /// When the child is lost.
    pub async fn run(
        &mut self,
        duration: Option<Duration>,
        signals: &mut EndSignals,
        mut child: Option<&mut Child>,
        mut progress: impl FnMut(u64),
    ) -> Result<Ended> {
        let news = self.capture.news()?;
        let tables_made = self.tables.news();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let elapsed = async {
            match duration {
                Some(duration) => sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(elapsed);
        loop {
            let command_exit = async {
                match &mut child {
                    Some(child) => child.wait().await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                () = &mut elapsed => Ended::Elapsed,
                signal = signals.next() => Ended::Signal(signal),
                status = command_exit => Ended::CommandExited(status.context("lost the command")?),
                guard = news.readable() => {
                    // A process that starts maps several files in a row: let it.
                    sleep(COALESCE).await;
                    guard?.clear_ready();
                    self.read();
                    self.update_tables();
                    continue;
                }
                () = tables_made.notified() => {
                    self.update_tables();
                    continue;
                }
                _ = tick.tick() => {
                    self.read();
                    self.update_tables();
                    progress(self.samples.count());
                    if self.targets_are_gone() { Ended::TargetsGone } else { continue }
                }
            };
            return Ok(ended);
        }
    }

    fn targets_are_gone(&mut self) -> bool {
        let has_targets = !self.plan.pids.is_empty() && !self.plan.follow_children;
        has_targets && !self.targets.is_any_running()
    }

    /// Takes in what has arrived, in the order in which it happened.
    fn read(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.ring.clear();
        batch.samples.clear();
        batch.nonsense = 0;
        batch.side_band.clear();
        let until_mono_ns = now_mono_ns();
        self.capture.read(&mut batch, until_mono_ns);
        self.side_band.extend(side_band::records(&batch.side_band));
        // Each CPU has a ring of its own, so the order must be made.
        self.side_band
            .make_contiguous()
            .sort_by_key(|record| record.time_mono_ns);
        let (mut records, mut malformed) = (Vec::new(), batch.nonsense);
        for record in record::records(&batch.ring).chain(record::records(&batch.samples)) {
            match record {
                Some(record) => records.push(record),
                None => malformed += 1,
            }
        }
        self.malformed += malformed;
        // What belongs to a sample has its time, and stays before it.
        records.sort_by_key(Record::time_mono_ns);
        for record in records {
            self.apply_side_band_until(record.time_mono_ns());
            match record {
                Record::Sample(sample) => {
                    self.taken += 1;
                    self.sample(&sample);
                }
                Record::SlowCall(call) => self.slow_calls.push(call),
                Record::Snapshot(snapshot) => self.early.add_stack(&snapshot),
                Record::Exec(event) if Some(event.pid) == self.command => {
                    self.account.add_started(event.pid, event.thread_cpu_ns);
                }
                Record::Exec(_) => {}
                Record::Free(event) => {
                    self.account
                        .thread_free(event.pid, event.tid, event.thread_cpu_ns);
                }
                Record::Exit(event) => {
                    let is_last_thread = event.is_last_thread != 0;
                    let (pid, tid) = (event.pid, event.tid);
                    // The kernel tells of ends from before the window too.
                    if event.header.time_mono_ns >= self.start_mono_ns {
                        self.account
                            .thread_exit(pid, tid, event.thread_cpu_ns, is_last_thread);
                    }
                    if is_last_thread {
                        self.table.exit(pid);
                        self.ended.push_back((event.header.time_mono_ns, pid));
                    }
                }
            }
        }
        self.apply_side_band_until(until_mono_ns);
        self.table.forget_exited();
        self.table
            .look_for_unmapped(now_mono_ns(), &mut self.binaries);
        self.remove_ended_targets();
        self.batch = batch;
    }

    /// Processes that ended are targets no more, once nothing is left of them. A pid that is used
    /// again stays what it is.
    fn remove_ended_targets(&mut self) {
        let until = now_mono_ns().saturating_sub(AFTERLIFE_NS);
        while let Some(&(time, pid)) = self.ended.front()
            && time < until
        {
            self.ended.pop_front();
            // The news of its start may have come after those of its end.
            if self.table.mappings(pid).is_some() && !process::is_running(pid) {
                self.table.exit(pid);
                self.table.forget_exited();
            }
            if self.table.mappings(pid).is_none() {
                self.capture.remove_target(pid);
            }
        }
    }

    fn apply_side_band_until(&mut self, time_mono_ns: u64) {
        while self
            .side_band
            .front()
            .is_some_and(|record| record.time_mono_ns <= time_mono_ns)
        {
            if let Some(record) = self.side_band.pop_front() {
                self.table.apply(record, &mut self.binaries);
            }
        }
    }

    fn sample(&mut self, sample: &Sample<'_>) {
        let header = &sample.header;
        let stack = self.early.take_stack(sample);
        let process = self
            .table
            .of_sample(header.pid, sample.thread_name(), &mut self.binaries);
        if let Some(filter) = &self.plan.name_filter {
            let name = &self.table.identity(process).name;
            if !filter.is_match(name.as_bytes()) && !filter.is_match(sample.thread_name()) {
                self.filtered += 1;
                return;
            }
        }
        if let Some(stack) = stack {
            let mappings = self.table.keep_mappings(header.pid);
            let addrs = stack.words().chain([stack.registers.ip]);
            let request = self.tables.want_code(header.pid, addrs, &mappings);
            return self.early.push(sample, process, mappings, stack, request);
        }
        let Self {
            table,
            binaries,
            frames,
            ..
        } = self;
        let addresses = Addresses {
            kernel: sample.kernel_frames(),
            user: sample.user_frames(),
            stop: sample.stop,
        };
        let time_mono_ns = header.header.time_mono_ns;
        let find = |addr| table.find(header.pid, addr, time_mono_ns, binaries);
        normalize(addresses, process, find, frames);
        self.keep(header, process);
    }

    /// Waits a while for the tables of the last samples, and keeps all that are left.
    fn settle_early(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        self.update_tables();
        while !self.early.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
            self.update_tables();
        }
        self.keep_early(u64::MAX);
    }

    /// Keeps the samples that wait for tables no longer.
    fn keep_early(&mut self, now_mono_ns: u64) {
        if self.early.is_empty() {
            return;
        }
        let maps = &self.capture.tables;
        let ready = self
            .early
            .take_ready(&mut self.tables, &self.binaries, maps, now_mono_ns);
        for sample in ready {
            let EarlySample {
                header,
                process,
                kernel,
                user,
                stop,
                mappings,
                ..
            } = sample;
            let addresses = Addresses {
                kernel: kernel.into_iter(),
                user: user.into_iter(),
                stop,
            };
            normalize(
                addresses,
                process,
                |addr| mappings.at(addr),
                &mut self.frames,
            );
            self.keep(&header, process);
        }
    }

    /// Counts a sample with the frames that were found last.
    fn keep(&mut self, header: &SampleHeader, process: ProcessId) {
        let time_mono_ns = header.header.time_mono_ns;
        for frame in &self.frames {
            match *frame {
                RawFrame::File(binary, _) => self.tables.note_sampled(binary, time_mono_ns),
                RawFrame::Anonymous(_, addr) => {
                    let pid = header.pid;
                    self.tables.note_code_sampled(pid, addr, time_mono_ns);
                }
                _ => {}
            }
        }
        let thread = ThreadKey {
            process,
            tid: header.tid,
            name: header.comm,
        };
        self.samples.push(
            thread,
            header.cpu,
            header.header.time_mono_ns,
            self.frames.iter().copied(),
        );
    }

    /// Stops sampling, reads what is left and puts the profile together.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn finish(mut self) -> Result<Profile> {
        self.capture.stop();
        let end_mono_ns = now_mono_ns();
        self.read();
        let until = Instant::now() + SETTLE_PATIENCE;
        while !self.account.is_settled() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            self.read();
        }
        self.profile(end_mono_ns, EARLY_PATIENCE)
    }

    /// Puts the profile of what was sampled since the start, or since the last window, together. Sampling
    /// goes on.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn cut_window(&mut self) -> Result<Profile> {
        let end_mono_ns = now_mono_ns();
        self.read();
        let profile = self.profile(end_mono_ns, WINDOW_PATIENCE)?;
        self.samples = Samples::default();
        self.table.forget_sampled();
        (self.taken, self.filtered) = (0, 0);
        self.open_window();
        self.start_mono_ns = end_mono_ns;
        Ok(profile)
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    #[must_use]
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        self.capture.run_times()
    }

    /// The profile up to now; samples whose tables are not there wait for them so long.
    fn profile(&mut self, end_mono_ns: u64, patience: Duration) -> Result<Profile> {
        for pid in self.table.pids().chain(self.cgroup_processes()) {
            self.account.add_started(pid, 0);
        }
        let used_ns = self.account.close();
        self.settle_early(patience);
        let context = Context {
            table: &self.table,
            binaries: &self.binaries,
            clock: Clock::read(),
            with_lines: self.plan.with_lines,
            rate_hz: self.plan.settings.rate_hz,
            start_mono_ns: self.start_mono_ns,
            end_mono_ns,
        };
        let mut profile = profile(&self.samples, &context, &mut self.names);
        let quality = &mut profile.quality;
        quality.expected = used_ns as f64 / 1e9 * f64::from(self.plan.settings.rate_hz);
        if self.filtered > 0 {
            // Nobody keeps account of CPU time by name: the share that was kept must do.
            let kept = quality.kept as f64;
            quality.expected *= kept / (kept + self.filtered as f64);
        }
        let mut counted = self.count_losses()?;
        let dropped = counted.get(Counter::RingFull.name()).copied();
        let taken = self.taken + dropped.unwrap_or(0);
        counted.insert("ticks_missed", ticks_missed(quality.expected, taken));
        quality
            .lost
            .extend(counted.into_iter().filter(|&(_, count)| count > 0));
        Ok(profile)
    }

    /// What was lost in this window.
    fn count_losses(&mut self) -> Result<BTreeMap<&'static str, u64>> {
        let losses = self.tables.losses();
        let mut all = vec![
            ("malformed_record", self.malformed),
            ("side_band_ring_full", self.table.lost_records),
            ("unwind_tables_full", losses.full),
            ("unwind_files_damaged", losses.damaged),
        ];
        let counts = self.capture.counts()?.into_iter();
        all.extend(counts.map(|(counter, count)| (counter.name(), count)));
        let in_window = |(name, count)| {
            let before = self.told.insert(name, count).unwrap_or(0);
            (name, count.saturating_sub(before))
        };
        Ok(all.into_iter().map(in_window).collect())
    }
}

/// Samples that were never taken, because the clock could not keep up with the rate. What chance
/// explains is not counted: how often a short piece of work meets the clock varies.
fn ticks_missed(expected: f64, taken: u64) -> u64 {
    let missing = expected - taken as f64;
    let by_chance = 5.0 * expected.max(1.0).sqrt() + 0.02 * expected;
    if missing > by_chance {
        missing as u64
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::ticks_missed;

    #[test]
    fn only_what_chance_does_not_explain_is_missed() {
        assert_eq!(ticks_missed(100.0, 80), 0);
        assert_eq!(ticks_missed(10_000.0, 9_500), 0);
        assert_eq!(ticks_missed(100_000.0, 77_000), 23_000);
        assert_eq!(ticks_missed(10.0, 500), 0);
    }
}
