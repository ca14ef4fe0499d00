//! Virtual machines: emulated, never by KVM, so that they run wherever a process does.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::apt::Apt;
use crate::build_ebpf::Arch;
use crate::overhead::proc_files;
use crate::{command, debian, workspace};

/// Debian's packages of QEMU, for all machines we boot.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-arm", "seabios", "ipxe-qemu"];

/// Memory of a machine, in MB.
const MEMORY: &str = "1024";

/// CPU time that a machine may use: three times what the tests take. A verifier that finds no end
/// takes all of it. Another processor's instructions take QEMU longer than those of its own kind.
fn cpu_patience(arch: Arch) -> Duration {
    Duration::from_secs(if arch == Arch::host() { 120 } else { 600 })
}

/// How long a machine may run on a host that has much else to do.
const PATIENCE: Duration = Duration::from_secs(900);

/// QEMU, installed or only unpacked.
pub struct Qemu {
    /// `None` when it is on the PATH.
    folder: Option<PathBuf>,
}

impl Qemu {
    /// Finds QEMU for `arch`, or fetches it and unpacks it into the cache.
    pub fn find(arch: Arch) -> Result<Self> {
        if command::find_program(&program(arch)).is_some() {
            return Ok(Self { folder: None });
        }
        let release = debian::codename()
            .with_context(|| format!("{} is not installed: install QEMU", program(arch)))?;
        let cache = workspace::cache()?;
        let folder = cache.join(format!("qemu-{release}"));
        let product = format!("usr/bin/{}", program(arch));
        workspace::make_once(&folder, &product, |fresh| {
            eprintln!("fetching QEMU");
            let scratch = cache.join("qemu-apt");
            let apt = Apt::update(scratch, Arch::host().debian(), debian::suites(&release))?;
            apt.unpack_with_dependencies(&PACKAGES, fresh)
        })
        .context("cannot fetch QEMU, which is not installed either")?;
        Ok(Self {
            folder: Some(folder),
        })
    }

    /// Boots a kernel with an initial file system. Returns what it wrote to its serial console until it
    /// powered off, which is also in the file `log`.
    pub fn boot(&self, machine: &Machine<'_>, log: &Path) -> Result<String> {
        let output =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = Guard(
            self.command(machine)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .with_context(|| format!("cannot run {}", program(machine.arch)))?,
        );
        let start = Instant::now();
        while child.0.try_wait()?.is_none() {
            let (took, used) = (
                start.elapsed(),
                proc_files::cpu_time(child.0.id()).unwrap_or_default(),
            );
            if took > PATIENCE || used > cpu_patience(machine.arch) {
                bail!(
                    "still running after {took:.0?} and {used:.0?} of CPU time, killed; its console \
                     is in {}",
                    log.display()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        let console = fs::read(log)?;
        Ok(String::from_utf8_lossy(&console).into_owned())
    }

    fn command(&self, machine: &Machine<'_>) -> Command {
        let name = program(machine.arch);
        let mut command = match &self.folder {
            None => Command::new(name),
            Some(folder) => unpacked(folder, &name),
        };
        let (board, cpu, console) = match machine.arch {
            // Whether the timer works is not asked: on a busy host it looks as if it did not.
            Arch::X86_64 => ("q35", "max", "ttyS0 no_timer_check"),
            // Pointer authentication by the architecture's own cipher would take most of the time.
            Arch::Aarch64 => ("virt", "max,pauth-impdef=on", "ttyAMA0"),
        };
        // A restart ends QEMU, and a panic restarts at once.
        let options = format!("console={console} panic=-1 quiet {}", machine.environment);
        command
            .args(["-machine", board, "-accel", "tcg,thread=multi", "-cpu", cpu])
            .args([
                "-smp", "1", "-m", MEMORY, "-net", "none", "-display", "none",
            ])
            .args(["-monitor", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(machine.kernel)
            .arg("-initrd")
            .arg(machine.files)
            .args(["-append", &options]);
        command
    }
}

/// What a machine is made of.
pub struct Machine<'a> {
    /// Its processor.
    pub arch: Arch,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initial file system.
    pub files: &'a Path,
    /// Variables of the first process, as `NAME=value` with blanks between.
    pub environment: &'a str,
}

fn program(arch: Arch) -> String {
    format!("qemu-system-{}", arch.name())
}

/// QEMU where it was unpacked, with its libraries and its data beside it.
fn unpacked(folder: &Path, name: &str) -> Command {
    let triplet = format!("{}-linux-gnu", Arch::host().name());
    let [libraries, old_libraries] = ["usr/lib", "lib"].map(|lib| folder.join(lib).join(&triplet));
    let mut command = Command::new(folder.join("usr/bin").join(name));
    command
        .env(
            "LD_LIBRARY_PATH",
            format!("{}:{}", libraries.display(), old_libraries.display()),
        )
        .env("QEMU_MODULE_DIR", libraries.join("qemu"))
        .arg("-L")
        .arg(folder.join("usr/share/qemu"))
        .arg("-L")
        .arg(folder.join("usr/share/seabios"));
    command
}

/// A child that is killed and reaped when it goes out of scope.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail when it has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
