//! Counting of system calls: from the kernel's rows to totals by name.
//!
//! In: which tasks, and for how long. Out: [`SyscallTotals`], or what changed. One thread: the kernel adds up, and
//! a tick reads which processes started and ended; when rows get short, those of ended ones serve others.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use hotspan_abi::{
    limits::COMM_BYTES,
    settings::{TARGET_FOLLOW_CHILDREN, TARGET_LAUNCHER, TARGET_SAMPLE},
};
use tokio::{
    process::{Child, Command},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    EndSignals,
    slow_calls::{SlowCalls, Slowest},
};
use crate::{
    aggregate::syscalls::{Calls, SyscallTotals, since},
    capture::{ProcessSyscall, Settings, SyscallCapture, Target},
    decode::{
        record::{self, Record, records},
        syscalls::syscall_name,
    },
    model::SyscallStats,
    process::{self, Watched},
};

/// How often the news of processes are read, before there is no room for more of them.
const TICK: Duration = Duration::from_millis(250);

/// News may be lost: so often it is looked who is still there.
const LOOK: Duration = Duration::from_secs(10);

/// Names of so many processes are kept.
const MAX_OWNERS: usize = 8192;

/// Who makes system calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Name of the process.
    pub process: Arc<str>,
    /// Id of the container it is in.
    pub container: Option<Arc<str>>,
}

/// The processes that make system calls, and those that ended.
struct Owners {
    known: BTreeMap<u32, Owner>,
    ended: BTreeSet<u32>,
    looked: Instant,
}

impl Owners {
    fn new() -> Self {
        Self {
            known: BTreeMap::new(),
            ended: BTreeSet::new(),
            looked: Instant::now(),
        }
    }

    /// Takes in who started, and who ended.
    fn read_news(&mut self, capture: &mut SyscallCapture) {
        let news = capture.read_news();
        for record in records(&news).flatten() {
            match record {
                Record::Exec(event) => self.meet(event.pid, Some(&event.comm)),
                Record::Exit(event) if event.is_last_thread != 0 => {
                    if !self.known.contains_key(&event.pid) {
                        self.meet(event.pid, Some(&event.comm));
                    }
                    self.ended.insert(event.pid);
                }
                _ => {}
            }
        }
    }

    /// Looks who made calls and is not known, or is known and not there any more.
    fn look(&mut self, capture: &SyscallCapture) {
        for pid in capture.processes() {
            if !self.known.contains_key(&pid) {
                self.meet(pid, None);
            }
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let gone = self.known.keys().filter(|&&pid| !process::is_running(pid));
            self.ended.extend(gone);
        }
    }

    fn meet(&mut self, pid: u32, comm: Option<&[u8; COMM_BYTES]>) {
        if self.known.len() >= MAX_OWNERS && !self.known.contains_key(&pid) {
            return;
        }
        // A thread may have another name than its process; one that has just begun a program has not.
        let said = || comm.map(|comm| String::from_utf8_lossy(record::name(comm)).into());
        match process::name(pid).or_else(said) {
            Some(process) => {
                let container = process::container_id(pid);
                self.known.insert(pid, Owner { process, container });
            }
            None => _ = self.ended.insert(pid),
        }
    }

    /// Those that ended; they are still known. A pid that serves another process by now is no ended one.
    fn take_ended(&mut self) -> Vec<u32> {
        let ended = std::mem::take(&mut self.ended).into_iter();
        ended.filter(|&pid| !process::is_running(pid)).collect()
    }
}

/// What to count.
pub struct Plan {
    /// Which tasks; the rest is of no concern here.
    pub settings: Settings,
    /// Processes, when they are named one by one.
    pub pids: Vec<u32>,
    /// Whether processes that they start are counted too.
    pub follow_children: bool,
    /// How many of the slowest calls of each system call are wanted, with their stacks.
    pub slowest: Option<u32>,
}

/// Counting under way.
pub struct Counting {
    capture: SyscallCapture,
    slow_calls: Option<SlowCalls>,
    totals: SyscallTotals,
    /// Calls that were under way before we came: by thread, the process and the number. The kernel side
    /// did not see them begin.
    old_calls: BTreeMap<u32, (u32, u32)>,
    owners: Owners,
    /// Processes whose end is the end of all.
    targets: Option<Watched>,
    start: Instant,
    /// When something was shown last, and what had been counted by then.
    shown: (Instant, Calls),
}

impl Counting {
    /// Loads the programs and starts to count.
    ///
    /// # Errors
    /// When the kernel refuses anything.
    pub fn start(plan: &Plan) -> Result<Self> {
        let slow_calls = plan
            .slowest
            .map(|of_each| SlowCalls::start(plan, of_each))
            .transpose()?;
        let mut capture = SyscallCapture::load(&plan.settings)?;
        let follow = if plan.follow_children {
            TARGET_FOLLOW_CHILDREN
        } else {
            0
        };
        for &pid in &plan.pids {
            capture.add_target(pid, TARGET_SAMPLE | follow)?;
        }
        let pids = match &plan.settings.target {
            Target::All => process::processes().context("cannot read /proc")?,
            Target::Cgroup(cgroup) => cgroup.processes(),
            Target::Pids => plan.pids.clone(),
        };
        let are_watched = !plan.pids.is_empty() && !plan.follow_children;
        let now = Instant::now();
        Ok(Self {
            capture,
            slow_calls,
            totals: SyscallTotals::default(),
            old_calls: old_calls(&pids),
            owners: Owners::new(),
            targets: are_watched.then(|| Watched::new(&plan.pids)),
            start: now,
            shown: (now, Calls::new()),
        })
    }

    /// Starts the command whose calls are counted: from the one on that makes it this command.
    ///
    /// # Errors
    /// When the command cannot be started.
    pub fn launch(&mut self, command: &mut Command) -> Result<Child> {
        let own_pid = std::process::id();
        self.capture.add_target(own_pid, TARGET_LAUNCHER)?;
        self.start = Instant::now();
        let child = match &mut self.slow_calls {
            Some(slow_calls) => slow_calls.launch(command),
            None => command.spawn().map_err(Into::into),
        };
        self.capture.remove_target(own_pid);
        child
    }

    /// Counts until something ends it; returns the command's status, when that was the end. Every
    /// `refresh`, if that is given, `show` is told what was called since the last time, and how long ago
    /// that was; false ends the counting.
    ///
    /// # Errors
    /// When a map cannot be read, or the child is lost.
    pub async fn run(
        &mut self,
        limit: Option<Duration>,
        refresh: Option<Duration>,
        signals: &mut EndSignals,
        child: Option<&mut Child>,
        show: impl FnMut(&Calls, Duration) -> bool,
    ) -> Result<Option<ExitStatus>> {
        let elapsed = async {
            match limit {
                Some(limit) => sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(elapsed);
        let mut slow_calls = self.slow_calls.take();
        let ended = {
            let slow_calls = async {
                match &mut slow_calls {
                    Some(slow_calls) => slow_calls.run().await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(slow_calls);
            self.count_until(elapsed, slow_calls, refresh, signals, child, show)
                .await
        };
        self.slow_calls = slow_calls;
        ended
    }

    async fn count_until(
        &mut self,
        mut elapsed: Pin<&mut impl Future<Output = ()>>,
        mut slow_calls: Pin<&mut impl Future<Output = Result<()>>>,
        refresh: Option<Duration>,
        signals: &mut EndSignals,
        mut child: Option<&mut Child>,
        mut show: impl FnMut(&Calls, Duration) -> bool,
    ) -> Result<Option<ExitStatus>> {
        let mut tick = interval(TICK.min(refresh.unwrap_or(TICK)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let command_exit = async {
                match &mut child {
                    Some(child) => child.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut elapsed => return Ok(None),
                signal = signals.next() => {
                    if signal == libc::SIGTERM && let Some(child) = &child {
                        process::terminate(child);
                    }
                    return Ok(None);
                }
                status = command_exit => return Ok(Some(status.context("lost the command")?)),
                ended = &mut slow_calls => ended?,
                _ = tick.tick() => {}
            }
            self.owners.read_news(&mut self.capture);
            if self.capture.is_half_full()? {
                self.take_ended()?;
            }
            if refresh.is_some_and(|refresh| self.shown.0.elapsed() >= refresh) {
                let (calls, time) = self.since_shown()?;
                if !show(&calls, time) {
                    return Ok(None);
                }
            }
            if self
                .targets
                .as_mut()
                .is_some_and(|targets| !targets.is_any_running())
            {
                return Ok(None);
            }
        }
    }

    /// Everything up to now, and how long that took.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn finish(&mut self) -> Result<(&SyscallTotals, Duration)> {
        self.read()?;
        Ok((&self.totals, self.start.elapsed()))
    }

    /// The slowest calls, if they were wanted, and what was lost of them. This is the last to be asked.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn take_slow_calls(&mut self) -> Result<Option<Slowest>> {
        self.slow_calls.take().map(SlowCalls::finish).transpose()
    }

    /// The name of a process whose calls were counted, if it lived long enough to be asked.
    #[must_use]
    pub fn name_of(&self, pid: u32) -> Option<&str> {
        self.owners.known.get(&pid).map(|owner| &*owner.process)
    }

    /// What was not counted, by reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>> {
        self.capture.losses()
    }

    /// Takes over what processes made that ended.
    fn take_ended(&mut self) -> Result<()> {
        self.owners.read_news(&mut self.capture);
        self.owners.look(&self.capture);
        let ended = self.owners.take_ended();
        for ProcessSyscall { pid, number, stats } in self.capture.take(&ended)? {
            self.totals.add_ended(pid, syscall_name(number), &stats);
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        self.take_ended()?;
        self.totals.clear_running();
        for ProcessSyscall { pid, number, stats } in self.capture.read()? {
            self.totals.add_running(pid, syscall_name(number), &stats);
        }
        let one = SyscallStats {
            in_flight: 1,
            ..SyscallStats::default()
        };
        let in_flight = self.capture.in_flight();
        self.old_calls.retain(|&tid, &mut (pid, number)| {
            // A thread that is known has returned from it.
            !self.capture.knows(tid) && process::syscall_of_thread(pid, tid) == Some(number)
        });
        for &(pid, number) in self.old_calls.values() {
            self.totals.add_running(pid, syscall_name(number), &one);
        }
        for call in in_flight {
            self.totals
                .add_running(call.pid, syscall_name(call.number), &one);
        }
        Ok(())
    }

    fn since_shown(&mut self) -> Result<(Calls, Duration)> {
        self.read()?;
        let (now, all) = (Instant::now(), self.totals.all());
        let (then, before) = std::mem::replace(&mut self.shown, (now, all));
        Ok((since(&self.shown.1, &before), now - then))
    }
}

/// What system calls came to since the last time, by who made them and the name of the call.
pub type Changes = BTreeMap<(Owner, Cow<'static, str>), SyscallStats>;

/// System calls of the whole host, for as long as the agent runs: what changes, and nothing more, is kept.
pub struct SyscallMeter {
    capture: SyscallCapture,
    owners: Owners,
    /// What has been told of each system call of each process.
    told: BTreeMap<(u32, u32), SyscallStats>,
    changes: Changes,
}

impl SyscallMeter {
    /// Starts to count.
    ///
    /// # Errors
    /// When the kernel refuses anything.
    pub fn start(settings: &Settings) -> Result<Self> {
        Ok(Self {
            capture: SyscallCapture::load(settings)?,
            owners: Owners::new(),
            told: BTreeMap::new(),
            changes: Changes::new(),
        })
    }

    /// Reads which processes started and ended; when rows get short, takes over what these made.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn tick(&mut self) -> Result<()> {
        self.owners.read_news(&mut self.capture);
        if self.capture.is_half_full()? {
            self.take_ended()?;
        }
        Ok(())
    }

    /// What was called since the last time.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn changes(&mut self) -> Result<Changes> {
        self.take_ended()?;
        for row in self.capture.read()? {
            self.note(&row);
            self.told.insert((row.pid, row.number), row.stats);
        }
        Ok(std::mem::take(&mut self.changes))
    }

    /// Names of the processes that run.
    pub fn process_names(&self) -> BTreeSet<Arc<str>> {
        let owners = self.owners.known.values();
        owners.map(|owner| owner.process.clone()).collect()
    }

    /// What was not counted, by reason.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn losses(&self) -> Result<BTreeMap<&'static str, u64>> {
        self.capture.losses()
    }

    /// Run time of each program in the kernel, as far as that is accounted for.
    pub fn run_times(&self) -> Vec<(String, Duration)> {
        self.capture.run_times()
    }

    fn take_ended(&mut self) -> Result<()> {
        self.owners.read_news(&mut self.capture);
        self.owners.look(&self.capture);
        let ended = self.owners.take_ended();
        for row in self.capture.take(&ended)? {
            self.note(&row);
            self.told.remove(&(row.pid, row.number));
        }
        for pid in ended {
            self.owners.known.remove(&pid);
        }
        Ok(())
    }

    fn note(&mut self, row: &ProcessSyscall) {
        let nothing = SyscallStats::default();
        let told = self.told.get(&(row.pid, row.number)).unwrap_or(&nothing);
        let stats = row.stats.since(told);
        if stats.returned.count == 0 {
            return;
        }
        let owner = self.owners.known.get(&row.pid).cloned();
        let owner = owner.unwrap_or_else(|| Owner {
            process: "unknown".into(),
            container: None,
        });
        let key = (owner, syscall_name(row.number));
        self.changes.entry(key).or_default().add(&stats);
    }
}

/// What the threads of these processes are blocked in.
fn old_calls(pids: &[u32]) -> BTreeMap<u32, (u32, u32)> {
    let pids = pids.iter().filter(|&&pid| pid != std::process::id());
    let threads = pids.flat_map(|&pid| {
        let tids = process::threads(pid).unwrap_or_default().into_iter();
        tids.map(move |tid| (pid, tid))
    });
    threads
        .filter_map(|(pid, tid)| Some((tid, (pid, process::syscall_of_thread(pid, tid)?))))
        .collect()
}
