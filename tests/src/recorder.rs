//! Runs hotspan as a user does, with a deadline.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::process::{self, Guard, Usage, wait_for};
use crate::stacks::Stacks;

/// How long any run may take, unless a test says less. A test that hits it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// The hotspan that is tested: `$HOTSPAN_BIN`, or this workspace's debug build, made when needed.
///
/// # Errors
/// When it cannot be built.
pub fn binary() -> Result<&'static Path> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = BINARY.get_or_init(|| find_binary().map_err(|error| format!("{error:#}")));
    found
        .as_deref()
        .map_err(|error| anyhow!("no hotspan to test: {error}"))
}

fn find_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HOTSPAN_BIN").filter(|path| !path.is_empty()) {
        return fs::canonicalize(&path).with_context(|| format!("HOTSPAN_BIN={}", path.display()));
    }
    process::output(process::cargo().args([
        "build",
        "--quiet",
        "--package=hotspan",
        "--bin=hotspan",
    ]))?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(fs::canonicalize(
        workspace.join(target).join("debug/hotspan"),
    )?)
}

/// Says what a live test lacks here. Live tests never pass where they cannot run.
///
/// # Errors
/// When there is no root or no BTF.
pub fn check_host() -> Result<()> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|folder| folder.uid() == 0);
    ensure!(
        is_root,
        "live tests load eBPF programs: run them as root, with `cargo xtask test`"
    );
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "live tests need a kernel with BTF, and here is no /sys/kernel/btf/vmlinux"
    );
    Ok(())
}

/// A run of hotspan in the making.
#[derive(Debug)]
pub struct Hotspan {
    command: Command,
    patience: Duration,
}

impl Hotspan {
    /// `hotspan VERB`.
    ///
    /// # Errors
    /// When there is no hotspan, or live tests cannot run here.
    pub fn verb(verb: &str) -> Result<Self> {
        Self::under(&[], verb)
    }

    /// `hotspan record`.
    ///
    /// # Errors
    /// When there is no hotspan, or live tests cannot run here.
    pub fn record() -> Result<Self> {
        Self::verb("record")
    }

    /// `PREFIX… hotspan VERB`: under a program that takes something away from it.
    ///
    /// # Errors
    /// When there is no hotspan, or live tests cannot run here.
    pub fn under(prefix: &[&OsStr], verb: &str) -> Result<Self> {
        check_host()?;
        let mut words: Vec<OsString> = prefix.iter().map(Into::into).collect();
        words.push(binary()?.into());
        words.push(verb.into());
        Ok(Self::of_words(&words))
    }

    /// Any program that ends up as hotspan.
    #[must_use]
    pub fn of_words(words: &[OsString]) -> Self {
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, as a shell gives to each command.
            .process_group(0);
        Self {
            command,
            patience: PATIENCE,
        }
    }

    /// Adds arguments, separated by blanks.
    #[must_use]
    pub fn args(mut self, arguments: &str) -> Self {
        self.command.args(arguments.split_whitespace());
        self
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds `-o PATH`.
    #[must_use]
    pub fn output(self, path: impl AsRef<OsStr>) -> Self {
        self.arg("-o").arg(path)
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the directory it runs in.
    #[must_use]
    pub fn current_dir(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self) -> Result<Running> {
        let mut guard = Guard::start(&mut self.command)?;
        let output = guard.collect_output();
        Ok(Running {
            guard,
            output,
            started: Instant::now(),
            stolen_before: process::stolen_time()?,
            patience: self.patience,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn run(self) -> Result<Finished> {
        self.start()?.finish()
    }
}

/// A run under way.
#[derive(Debug)]
pub struct Running {
    guard: Guard,
    output: [JoinHandle<io::Result<String>>; 2],
    started: Instant,
    stolen_before: Duration,
    patience: Duration,
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.guard.pid()
    }

    /// Waits until its perf events are open. It samples soon after, when it knows the code of what
    /// runs already.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn wait_for_capture(&mut self) -> Result<()> {
        let pid = self.pid();
        wait_for("the capture", self.patience, || {
            if let Some(status) = self.guard.ended()? {
                bail!("hotspan ended: {status}");
            }
            Ok(process::has_open(pid, "anon_inode:[perf_event]").then_some(()))
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::send(self.pid(), signal)
    }

    /// Sends a signal to it and to what it started, as a terminal does for Ctrl-C.
    ///
    /// # Errors
    /// When all have ended.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        let group = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        Ok(kill_process_group(
            group.context("no process group")?,
            signal,
        )?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(mut self) -> Result<Finished> {
        let mut usage = Usage::default();
        let status = wait_for("the end of hotspan", self.patience, || {
            usage = process::usage(self.guard.pid()).unwrap_or(usage);
            self.guard.ended()
        })?;
        let took = self.started.elapsed();
        let [stdout, stderr] = self.output.map(|reader| match reader.join() {
            Ok(text) => text.context("cannot read the output"),
            Err(_) => Err(anyhow!("the reader of the output panicked")),
        });
        Ok(Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: stdout?,
            stderr: stderr?,
            took,
            usage,
            stolen: process::stolen_time()?.saturating_sub(self.stolen_before),
        })
    }
}

/// A run that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code, if no signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
    /// What it used, as seen some milliseconds before its end.
    pub usage: Usage,
    /// Time that a hypervisor took from all CPUs meanwhile.
    pub stolen: Duration,
}

impl Finished {
    /// The same run, if it succeeded.
    ///
    /// # Errors
    /// When it did not; with what it wrote to standard error.
    pub fn succeeded(self) -> Result<Self> {
        let Self {
            code,
            signal,
            stderr,
            ..
        } = &self;
        ensure!(
            *code == Some(0),
            "hotspan ended with {code:?}, signal {signal:?}: {stderr}"
        );
        Ok(self)
    }

    /// What it printed for `--json`, which is all that standard output may have.
    ///
    /// # Errors
    /// When that is anything but one such object.
    pub fn summary(&self) -> Result<Summary> {
        let summary: Summary = serde_json::from_str(&self.stdout)
            .with_context(|| format!("no summary: {:?}; {}", self.stdout, self.stderr))?;
        Ok(Summary {
            stolen: self.stolen,
            ..summary
        })
    }

    /// Checks that it failed as the contract has it: with this exit code and one sentence on
    /// standard error that mentions each of `mentions`, without delay.
    ///
    /// # Errors
    /// When it did otherwise.
    pub fn check_failure(&self, code: i32, mentions: &[&str]) -> Result<()> {
        let text = self.stderr.trim_end();
        let is_one_sentence = text.starts_with("hotspan: ")
            && text.lines().count() == 1
            && text.len() < 400
            && !text.contains("os error 0");
        ensure!(
            self.code == Some(code),
            "exit code {:?}, not {code}: {text}",
            self.code
        );
        ensure!(is_one_sentence, "not one sentence: {text}");
        ensure!(self.stdout.is_empty(), "standard output: {}", self.stdout);
        for mention in mentions {
            let is_there = text.to_lowercase().contains(&mention.to_lowercase());
            ensure!(is_there, "no word of {mention}: {text}");
        }
        Ok(())
    }
}

/// What `record --json` prints, as far as its contract goes.
#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    /// Length of the recording.
    pub duration_s: f64,
    /// Samples per second and CPU.
    pub rate_hz: u32,
    /// Samples expected, kept and lost.
    pub samples: Samples,
    /// The hottest functions.
    pub top: Vec<Hot>,
    /// Files that were written.
    pub files: Vec<String>,
    /// [`Finished::stolen`], which hotspan does not tell.
    #[serde(skip)]
    pub stolen: Duration,
}

/// Which threads were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One busy thread that stays on its CPU.
    OnOneCpu,
    /// So many busy threads that may move.
    Anywhere(u32),
}

impl Threads {
    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        match self {
            Self::OnOneCpu => 1,
            Self::Anywhere(count) => count,
        }
    }
}

/// Samples expected, kept and lost.
#[derive(Clone, Debug, Deserialize)]
pub struct Samples {
    /// Rate × CPU time of the targets.
    pub expected: f64,
    /// Samples in the profile.
    pub kept: u64,
    /// Of them, those that reach the thread's root.
    pub rooted: u64,
    /// Of them, those whose every frame has a name.
    pub named: u64,
    /// Lost samples by reason.
    pub lost: BTreeMap<String, u64>,
}

/// A hot function.
#[derive(Clone, Debug, Deserialize)]
pub struct Hot {
    /// Its name.
    pub function: String,
    /// The binary it is in.
    pub module: String,
    /// Samples in itself.
    #[serde(rename = "self")]
    pub own: u64,
    /// Samples in it and what it called.
    pub total: u64,
}

impl Summary {
    /// The part of the time in which so many threads ran, had each a CPU to itself all the time.
    #[must_use]
    pub fn running_part(&self, threads: u32) -> f64 {
        let ticks = f64::from(self.rate_hz) * self.duration_s * f64::from(threads);
        (self.samples.expected / ticks).clamp(0.0, 1.0)
    }

    /// Checks that no sample was lost, and that none was made up: what was kept is within 1 % of
    /// what these threads should have given.
    ///
    /// A thread that has a CPU to itself gets every tick of its sampling clock, and one that has
    /// it for a part of the time gets about that part: how many exactly is chance, for which three
    /// standard deviations are allowed. Moving between CPUs is another chance. What a hypervisor
    /// takes away is no CPU time of the thread, but the sampling clock goes on.
    ///
    /// # Errors
    /// Tells the numbers.
    pub fn check_complete(&self, threads: Threads) -> Result<()> {
        let Samples {
            expected,
            kept,
            lost,
            ..
        } = &self.samples;
        let part = self.running_part(threads.count());
        let least_variance = match threads {
            Threads::OnOneCpu => 0.0,
            Threads::Anywhere(_) => 0.25,
        };
        let variance = (1.0 - part).max(least_variance);
        // A tick at either end may or may not be inside.
        let slack = 3.0 * (expected * variance).sqrt() + 2.0;
        let stolen = self.stolen.as_secs_f64() * f64::from(self.rate_hz);
        let kept = *kept as f64;
        ensure!(*expected > 0.0, "nothing was expected: {self:?}");
        ensure!(lost.is_empty(), "samples were lost: {lost:?}");
        ensure!(
            kept >= 0.99 * expected - slack,
            "{kept} samples are too few for {expected}, even with a slack of {slack:.0}"
        );
        ensure!(
            kept <= 1.01 * expected + slack + stolen,
            "{kept} samples are too many for {expected}, even with a slack of {slack:.0} and \
             {stolen:.0} in stolen time"
        );
        Ok(())
    }

    /// Checks that nearly every stack reaches its root and has names throughout.
    ///
    /// # Errors
    /// Tells the numbers.
    pub fn check_rooted_and_named(&self) -> Result<()> {
        let Samples {
            kept,
            rooted,
            named,
            ..
        } = self.samples;
        let most = 0.98 * kept as f64;
        ensure!(
            rooted as f64 >= most,
            "of {kept} samples only {rooted} are rooted"
        );
        ensure!(
            named as f64 >= most,
            "of {kept} samples only {named} are named"
        );
        ensure!(
            rooted.max(named) <= kept,
            "{kept} samples, {rooted} rooted, {named} named"
        );
        Ok(())
    }
}

/// Reads a folded file.
///
/// # Errors
/// When there is none, or it breaks its contract.
pub fn read_folded(path: &Path) -> Result<Stacks> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    Stacks::parse_folded(&text).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(expected: u32, kept: u64, lost: &str) -> Summary {
        let text = format!(
            r#"{{"duration_s": 4.0, "rate_hz": 100, "top": [], "files": [], "samples":
            {{"expected": {expected}, "kept": {kept}, "rooted": {kept}, "named": 10, "lost": {lost}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn completeness_leaves_room_for_chance_alone() {
        for (expected, kept, is_complete) in [
            (400, 400, true),
            (400, 394, true),
            (400, 390, false),
            (400, 410, false),
            (200, 180, true),
            (200, 160, false),
            (200, 240, false),
            (0, 0, false),
        ] {
            let checked = summary(expected, kept, "{}").check_complete(Threads::OnOneCpu);
            assert_eq!(
                checked.is_ok(),
                is_complete,
                "{expected} {kept} {checked:?}"
            );
        }
        let stolen = Summary {
            stolen: Duration::from_millis(100),
            ..summary(400, 410, "{}")
        };
        assert!(stolen.check_complete(Threads::OnOneCpu).is_ok());
        let moved = Threads::Anywhere(1);
        assert!(summary(400, 390, "{}").check_complete(moved).is_ok());
        assert!(summary(400, 360, "{}").check_complete(moved).is_err());
        assert!(
            summary(400, 400, r#"{"ring_full": 1}"#)
                .check_complete(Threads::OnOneCpu)
                .is_err()
        );
    }

    #[test]
    fn unnamed_samples_are_noticed() {
        assert!(summary(10, 10, "{}").check_rooted_and_named().is_ok());
        assert!(summary(20, 20, "{}").check_rooted_and_named().is_err());
    }

    fn failed(code: i32, stderr: &str) -> Finished {
        Finished {
            code: Some(code),
            signal: None,
            stdout: String::new(),
            stderr: stderr.into(),
            took: Duration::ZERO,
            usage: Usage::default(),
            stolen: Duration::ZERO,
        }
    }

    #[test]
    fn a_failure_is_one_sentence_with_the_right_code() {
        let good = failed(2, "hotspan: the rate 0 is wrong; use 99\n");
        assert!(good.check_failure(2, &["rate", "99"]).is_ok());
        assert!(good.check_failure(1, &[]).is_err());
        assert!(good.check_failure(2, &["duration"]).is_err());
        for stderr in [
            "",
            "the rate is wrong",
            "hotspan: a\nhotspan: b\n",
            "thread panicked",
        ] {
            assert!(failed(2, stderr).check_failure(2, &[]).is_err(), "{stderr}");
        }
    }

    #[test]
    fn summary_needs_every_field_of_the_contract() {
        let run = |stdout: &str| Finished {
            stdout: stdout.into(),
            ..failed(0, "")
        };
        assert!(run("{}").summary().is_err());
        assert!(run("ready\n{}").summary().is_err());
    }
}
