//! `cargo xtask kernels`: hotspan on other kernels than the one that runs here.
//!
//! In: `tests/kernels.toml`, Debian's kernels, QEMU, hotspan and `tests/src/bin/kernel_smoke`. Each
//! kernel boots in a machine of its own, whose first process runs the smoke tests and tells on the
//! serial console how they went. Out: what differs from the table. Nothing is installed: packages are
//! unpacked into the cache.

mod apt;
mod build;
mod console;
mod cross;
mod guest;
mod image;
mod qemu;
mod table;

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::build_ebpf::Arch;
use crate::workspace;
use console::Console;
use image::Image;
use qemu::{Machine, Qemu};
use table::Table;

/// Arguments of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Only this kernel, as tests/kernels.toml calls it; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The machine the kernels are for.
    #[arg(long, value_enum, default_value_t = Arch::host())]
    arch: Arch,
}

/// Machines at a time. Each has one CPU and needs a whole one of the host's.
const AT_ONCE: usize = 2;

/// Runs the verb. The object that `$HOTSPAN_BPF_OBJECT` names is tested, else the one inside hotspan.
pub fn run(args: &Args) -> Result<()> {
    let object = env::var_os("HOTSPAN_BPF_OBJECT").map(PathBuf::from);
    let summary = boot_all(args.arch, &args.only, object.as_deref())?;
    println!("{summary}");
    Ok(())
}

/// Boots the kernels for `arch`, or those named in `only`, and prints how it went. Fails when one of
/// them differs from the table.
pub fn boot_all(arch: Arch, only: &[String], object: Option<&Path>) -> Result<String> {
    let table = Table::read()?;
    let kernels = table.select(arch, only)?;
    let images = image::fetch(&kernels, arch)?;
    let qemu = Qemu::find(arch)?;
    let folder = workspace::target().join("kernels").join(arch.name());
    let programs = build::programs(arch, &folder)?;
    let files = folder.join("files.cpio");
    guest::pack(&programs, object, &files)?;
    let host = Host {
        arch,
        table: &table,
        qemu,
        folder,
        files,
        environment: guest::environment(object.is_some()),
    };
    let start = Instant::now();
    let failed = host.boot(&images);
    if !failed.is_empty() {
        bail!("not as tests/kernels.toml has it: {}", failed.join(", "));
    }
    Ok(format!(
        "{} kernels in {:.0} s",
        images.len(),
        start.elapsed().as_secs_f64()
    ))
}

/// What all machines share.
struct Host<'a> {
    arch: Arch,
    qemu: Qemu,
    table: &'a Table,
    folder: PathBuf,
    files: PathBuf,
    environment: String,
}

/// How one kernel did.
struct Verdict {
    took: Duration,
    console: Console,
    complaints: Vec<String>,
}

impl Host<'_> {
    /// Boots all, some at a time, and prints each verdict as it comes. Returns the names of those that
    /// differ from the table.
    fn boot(&self, images: &[Image<'_>]) -> Vec<String> {
        let waiting = Mutex::new(images.iter());
        let next = || waiting.lock().ok()?.next();
        let (sender, verdicts) = mpsc::channel();
        let mut failed = Vec::new();
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                let sender = sender.clone();
                let next = &next;
                scope.spawn(move || {
                    while let Some(image) = next() {
                        // The receiver waits for all of us.
                        let _ = sender.send((image, self.boot_one(image)));
                    }
                });
            }
            drop(sender);
            for (image, verdict) in verdicts {
                let is_good = verdict
                    .as_ref()
                    .is_ok_and(|verdict| verdict.complaints.is_empty());
                if !is_good {
                    failed.push(image.kernel.name.clone());
                }
                self.print(image, &verdict);
            }
        });
        failed
    }

    fn boot_one(&self, image: &Image<'_>) -> Result<Verdict> {
        let start = Instant::now();
        let machine = Machine {
            arch: self.arch,
            kernel: &image.path,
            files: &self.files,
            environment: &self.environment,
        };
        let console = Console::parse(&self.qemu.boot(&machine, &self.log(image))?);
        let complaints = console.complaints(&self.table.expected(image.kernel));
        Ok(Verdict {
            took: start.elapsed(),
            console,
            complaints,
        })
    }

    fn log(&self, image: &Image<'_>) -> PathBuf {
        self.folder.join(format!("{}.log", image.kernel.name))
    }

    fn print(&self, image: &Image<'_>, verdict: &Result<Verdict>) {
        let Image {
            kernel, version, ..
        } = image;
        match verdict {
            Ok(verdict) => {
                let word = if verdict.complaints.is_empty() {
                    "ok"
                } else {
                    "FAILED"
                };
                let seconds = verdict.took.as_secs_f64();
                println!("{:<8} {word:<6} {seconds:5.1} s  {version}", kernel.name);
                println!(
                    "         verified instructions: {}",
                    verdict.console.programs()
                );
                for (name, lack) in self.table.expected(kernel).lacks {
                    println!("         {:?} {name}: {}", lack.result, lack.why);
                }
                for complaint in &verdict.complaints {
                    println!("         {complaint}");
                }
                if !verdict.complaints.is_empty() {
                    println!("         its console is in {}", self.log(image).display());
                }
            }
            Err(error) => println!("{:<8} FAILED  {version}\n         {error:#}", kernel.name),
        }
    }
}
