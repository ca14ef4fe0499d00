//! Running the profilers and what they profile.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use super::kernel::{self, Usage};
use super::lightswitch::Lightswitch;
use super::proc_files;
use super::profile::Summary;
use super::stacks::{self, Stack};
use crate::{command, workspace};

const SOURCE: &str = include_str!("programs/load.c");

/// The workload's process name: short enough for the kernel to keep it whole.
pub const LOAD_NAME: &str = "overhead-load";

/// Where output goes that nobody reads.
pub const NOWHERE: &str = "/dev/null";

/// The bench on which everything is measured.
pub struct Bench {
    /// The hotspan that is measured.
    pub hotspan: PathBuf,
    /// The CPUs we may use.
    pub cpus: Vec<u32>,
    /// Shorter and fewer runs, which show that everything works and nothing else.
    pub quick: bool,
    /// The other profiler, or why it cannot be had.
    pub lightswitch: Result<Lightswitch, String>,
    /// Where programs and profiles go.
    folder: PathBuf,
}

/// How the workload is compiled.
#[derive(Clone, Copy)]
pub enum Frames {
    /// With frame pointers.
    Pointers,
    /// Without.
    NoPointers,
}

/// A run of a profiler.
pub struct Run<T> {
    /// Time from just before it was started until it was gone.
    pub wall: Duration,
    /// When it was started.
    pub start: SystemTime,
    /// CPU time and memory.
    pub usage: Usage,
    /// What was seen while it ran.
    pub seen: T,
    /// Where its standard output went.
    pub output: PathBuf,
}

impl<T> Run<T> {
    /// CPU time in seconds.
    pub fn cpu_s(&self) -> f64 {
        self.usage.cpu.as_secs_f64()
    }

    /// Peak memory in MB.
    pub fn rss_mb(&self) -> f64 {
        self.usage.peak_rss_bytes as f64 / 1e6
    }

    /// The summary that hotspan printed.
    pub fn summary(&self) -> Result<Summary> {
        let text = fs::read_to_string(&self.output)?;
        serde_json::from_str(&text).context("hotspan printed no summary")
    }
}

/// A running workload; it ends when this is dropped.
pub struct Load(Child);

impl Load {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only when it has ended, which is what they are for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    /// Compiles the workloads.
    pub fn prepare(hotspan: PathBuf, quick: bool) -> Result<Self> {
        let folder = workspace::root().join("target/overhead");
        let bench = Self {
            hotspan,
            cpus: proc_files::allowed_cpus()?,
            quick,
            lightswitch: Lightswitch::make(&folder).map_err(|error| format!("{error:#}")),
            folder,
        };
        let source = bench.file("load.c");
        for (frames, options) in [
            (
                Frames::Pointers,
                &["-fno-omit-frame-pointer", "-DWITH_FRAME_POINTERS"][..],
            ),
            (Frames::NoPointers, &["-fomit-frame-pointer"][..]),
        ] {
            let program = bench.program(frames);
            fs::create_dir_all(program.parent().unwrap_or(&bench.folder))?;
            fs::write(&source, SOURCE)?;
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-g"]).args(options).arg("-o");
            command::output(gcc.arg(program).arg(&source))?;
        }
        Ok(bench)
    }

    /// A file for what is written on the way.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn program(&self, frames: Frames) -> PathBuf {
        let folder = match frames {
            Frames::Pointers => "frame-pointers",
            Frames::NoPointers => "no-frame-pointers",
        };
        self.file(folder).join(LOAD_NAME)
    }

    /// How often each thing is measured.
    pub fn rounds(&self) -> u32 {
        if self.quick { 1 } else { 3 }
    }

    /// A duration, or a shorter one when it has to be quick.
    pub fn seconds(&self, thorough: u64, quick: u64) -> Duration {
        Duration::from_secs(if self.quick { quick } else { thorough })
    }

    /// The CPU on which single workloads run. Not the first, which has most of the interrupts.
    pub fn cpu(&self) -> u32 {
        self.cpus.last().copied().unwrap_or(0)
    }

    /// A workload that is not started yet; `args` are those of `load.c`.
    pub fn load_command(&self, frames: Frames, args: &[&str]) -> Command {
        let mut command = Command::new(self.program(frames));
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Starts a workload and waits until it works.
    pub fn load(&self, frames: Frames, mode: &str, cpu: u32, depth: u32) -> Result<Load> {
        let args = [mode, &cpu.to_string(), &depth.to_string()];
        self.start(&mut self.load_command(frames, &args))
    }

    /// A program that stays on one CPU.
    pub fn on_cpu(&self, cpu: u32, program: &Command) -> Command {
        let mut command = Command::new("taskset");
        command
            .args(["--cpu-list", &cpu.to_string()])
            .arg(program.get_program())
            .args(program.get_args());
        command
    }

    /// Starts a program that prints `ready` when it works, and waits for that.
    pub fn start(&self, command: &mut Command) -> Result<Load> {
        let program = command.get_program().display().to_string();
        let mut child = kernel::run_first(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let output = child.stdout.take().context("its output is a pipe")?;
        let load = Load(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line != "ready\n" {
            bail!("{command:?} does not start");
        }
        Ok(load)
    }

    /// Starts a program that serves until it is killed.
    pub fn serve(&self, command: &mut Command) -> Result<Load> {
        let program = command.get_program().display().to_string();
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = kernel::run_first(quiet).spawn();
        Ok(Load(
            child.with_context(|| format!("cannot run {program}"))?,
        ))
    }

    /// A process that keeps one CPU busy, and has it for itself.
    pub fn busy_load(&self) -> Result<Load> {
        self.load(Frames::Pointers, "stack", self.cpu(), 8)
    }

    /// The same at ordinary priority: for what hotspan has to wait for, such as the kernel's own
    /// threads on that CPU while programs are loaded.
    pub fn ordinary_load(&self) -> Result<Load> {
        self.load(Frames::Pointers, "busy", self.cpu(), 0)
    }

    /// Runs `hotspan record ARGS --json`; `watch` gets its pid and may look at it meanwhile.
    pub fn record<T>(&self, args: &[&str], watch: impl FnOnce(u32) -> Result<T>) -> Result<Run<T>> {
        let mut command = Command::new(&self.hotspan);
        command.arg("record").args(args).arg("--json");
        self.run_well(&mut command, &self.file("summary.json"), watch)
    }

    /// Like [`Self::record`], of a target that uses no CPU time, which hotspan calls a failure.
    pub fn record_nothing<T>(
        &self,
        args: &[&str],
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<T> {
        let mut command = Command::new(&self.hotspan);
        command.arg("record").args(args).arg("--json");
        Ok(self.run(&mut command, Path::new(NOWHERE), watch)?.seen)
    }

    /// Records with hotspan; returns the stacks too.
    pub fn record_stacks<T>(
        &self,
        args: &[&str],
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<(Run<T>, Vec<Stack>)> {
        let folded = self.file("hotspan.folded");
        let run = self.record(&[args, &["--output", arg(&folded)?]].concat(), watch)?;
        Ok((run, stacks::parse_folded(&fs::read_to_string(&folded)?)?))
    }

    /// Runs a program that must succeed; its standard output goes to the file `output`.
    pub fn run_well<T>(
        &self,
        command: &mut Command,
        output: &Path,
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<Run<T>> {
        let run = self.run(command, output, watch)?;
        if !run.usage.status.success() {
            let program = command.get_program().display();
            bail!("{program} failed: {}", self.said());
        }
        Ok(run)
    }

    fn run<T>(
        &self,
        command: &mut Command,
        output: &Path,
        watch: impl FnOnce(u32) -> Result<T>,
    ) -> Result<Run<T>> {
        command
            .stdin(Stdio::null())
            .stdout(File::create(output)?)
            .stderr(File::create(self.file("stderr"))?);
        let (start, clock) = (SystemTime::now(), Instant::now());
        let child = kernel::run_first(command)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let seen = watch(child.id());
        let usage = kernel::wait(child)?;
        let wall = clock.elapsed();
        let seen = match seen {
            // The program's own last words are the better reason.
            Err(error) if !usage.status.success() => return Err(error.context(self.said())),
            seen => seen?,
        };
        Ok(Run {
            wall,
            start,
            usage,
            seen,
            output: output.to_owned(),
        })
    }

    /// The last words of the last program on standard error.
    fn said(&self) -> String {
        let text = fs::read_to_string(self.file("stderr")).unwrap_or_default();
        let lines: Vec<_> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(2)..].join("; ")
    }
}

/// A path as an argument.
pub fn arg(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
