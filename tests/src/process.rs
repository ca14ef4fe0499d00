//! Processes that tests start: none outlives its test, and nothing is waited for without an end.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `look` finds something. Says what it waited for when `patience` is over.
///
/// # Errors
/// When nothing was found in time, and the errors of `look`.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(found);
        }
        ensure!(
            Instant::now() < end,
            "{what} did not happen in {patience:?}"
        );
        thread::sleep(LOOK_EVERY);
    }
}

/// Sends a signal to one process.
///
/// # Errors
/// When there is no such process.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
    kill_process(id.context("no process id")?, signal)
        .with_context(|| format!("cannot send {signal:?} to {pid}"))
}

/// A child that is killed and reaped when it goes out of scope.
#[derive(Debug)]
pub struct Guard(Child);

impl Guard {
    /// Starts `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn();
        Ok(Self(
            child.with_context(|| format!("cannot start {command:?}"))?,
        ))
    }

    /// Its process id. Nobody else gets it before the guard is gone.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The lines it writes to standard output, as they come. Standard output must be piped.
    #[must_use]
    pub fn stdout_lines(&mut self) -> Receiver<String> {
        lines(self.0.stdout.take().expect("standard output is piped"))
    }

    /// The lines it writes to standard error, as they come. Standard error must be piped.
    #[must_use]
    pub fn stderr_lines(&mut self) -> Receiver<String> {
        lines(self.0.stderr.take().expect("standard error is piped"))
    }

    /// All it writes to standard output and to standard error, when it has ended.
    #[must_use]
    pub fn collect_output(&mut self) -> [JoinHandle<io::Result<String>>; 2] {
        fn collect(source: Option<impl Read + Send + 'static>) -> JoinHandle<io::Result<String>> {
            let mut source = source.expect("the output is piped");
            thread::spawn(move || {
                let mut bytes = Vec::new();
                source.read_to_end(&mut bytes)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            })
        }
        [collect(self.0.stdout.take()), collect(self.0.stderr.take())]
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let what = format!("the end of process {}", self.pid());
        wait_for(&what, patience, || self.ended())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail when it is gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            // Read on when nobody listens, so that the writer does not block.
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Runs a program to its end and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or fails; with what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{command:?} failed, {status}: {stderr}");
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Cargo, run in the workspace.
///
/// Without what the cargo that runs the tests has told them about their package: some build
/// scripts, such as that of ring, would run anew because it changed, and back again next time.
#[must_use]
pub fn cargo() -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// CPU time that the threads of a process that are alive have used.
///
/// # Errors
/// When there is no such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut used = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos = stat.split(' ').next().context("schedstat is empty")?;
        used += Duration::from_nanos(nanos.parse()?);
    }
    Ok(used)
}

/// What a process has used in all its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The most memory it had resident at once.
    pub peak_rss_bytes: u64,
    /// CPU time of all its threads.
    pub cpu: Duration,
}

/// What a process has used.
///
/// # Errors
/// When there is no such process, or it has ended.
pub fn usage(pid: u32) -> Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|text| text.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes.context("a process without memory")?.parse()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(Usage {
        peak_rss_bytes: kilobytes << 10,
        cpu: parse_times(&stat, 14)?,
    })
}

/// CPU time of a process's children that have ended and were waited for.
///
/// # Errors
/// When there is no such process.
pub fn children_cpu_time(pid: u32) -> Result<Duration> {
    parse_times(&fs::read_to_string(format!("/proc/{pid}/stat"))?, 16)
}

/// The sum of two neighbouring fields of `/proc/PID/stat`, in 1/100 s: user and system time. The name
/// in parentheses, the second field, can hold anything.
fn parse_times(stat: &str, first: usize) -> Result<Duration> {
    let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
    let numbers = fields.split(' ').skip(first - 3).take(2);
    let numbers = numbers.map(str::parse::<u64>);
    let ticks = numbers.sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// Time that a hypervisor took from this machine's CPUs while they had something to do.
///
/// # Errors
/// When the kernel does not tell.
pub fn stolen_time() -> Result<Duration> {
    parse_stolen_time(&fs::read_to_string("/proc/stat")?)
}

/// The eighth number of the first line, in 1/100 s.
fn parse_stolen_time(stat: &str) -> Result<Duration> {
    let number = stat.split_whitespace().nth(8);
    let ticks: u64 = number.context("/proc/stat is short")?.parse()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// The children of a process's main thread.
///
/// # Errors
/// When there is no such process.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let pids = text.split_whitespace().map(str::parse);
    Ok(pids.collect::<Result<_, _>>()?)
}

/// Whether one of a process's open files has this name in `/proc/PID/fd`.
#[must_use]
pub fn has_open(pid: u32, name: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| target.as_os_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_happen_is_named_in_time() {
        let start = Instant::now();
        let patience = Duration::from_millis(30);
        let error = wait_for::<()>("the end of time", patience, || Ok(None)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the end of time did not happen")
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn no_child_outlives_its_guard() {
        let guard = Guard::start(Command::new("sleep").arg("60")).unwrap();
        let proc = format!("/proc/{}", guard.pid());
        assert!(fs::exists(&proc).unwrap());
        drop(guard);
        assert!(!fs::exists(&proc).unwrap());
    }

    #[test]
    fn stolen_time_is_found() {
        let stat = "cpu  1 2 4 1000 2000 8 16 40 1 0\ncpu0 ";
        let expected = Duration::from_millis(400);
        assert_eq!(parse_stolen_time(stat).unwrap(), expected);
        assert!(parse_stolen_time("cpu 1 2").is_err());
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 5 6 7 8 9 10 12 13 20 0 1 0 4321 99";
        assert_eq!(parse_times(stat, 14).unwrap(), Duration::from_millis(190));
        assert_eq!(parse_times(stat, 16).unwrap(), Duration::from_millis(250));
        assert!(parse_times("7", 14).is_err());
    }

    #[test]
    fn own_usage_is_known() {
        let used = usage(std::process::id()).unwrap();
        assert!(used.peak_rss_bytes > 1 << 20, "{used:?}");
        assert!(usage(u32::MAX).is_err());
    }

    #[test]
    fn failing_program_tells_what_it_wrote() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }
}
