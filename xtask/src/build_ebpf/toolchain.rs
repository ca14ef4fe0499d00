//! Finding a compiler that can build the kernel side, and the linker that fits it.
//!
//! The target `bpfel-unknown-none` has no compiled standard library, so the compiler needs Rust's
//! own sources beside it; and bpf-linker reads the compiler's bitcode, so both need the same
//! LLVM. Two kinds of installation have both: Debian's `rustc-web`, which uses Debian's LLVM, and
//! a toolchain of rustup with the component `rust-src`, which brings an LLVM of its own.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{command, debian, workspace};

/// LLVM's version that both bpf-linkers below are for.
const LLVM_MAJOR: &str = "22";
/// Where Debian keeps that LLVM.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

/// Debian's compiler, with its sources.
const DEBIAN_COMPILER: [debian::Package; 2] = [
    debian::Package {
        name: "rustc-web",
        provides: "/usr/bin/rustc",
    },
    debian::Package {
        name: "rust-web-src",
        provides: "/usr/lib/rustlib/src/rust/library/core",
    },
];

/// What bpf-linker is built from when it uses Debian's LLVM.
const DEBIAN_LINKER: [debian::Package; 5] = [
    debian::Package {
        name: "llvm-22-dev",
        provides: "/usr/lib/llvm-22/include/llvm-c/Core.h",
    },
    debian::Package {
        name: "libpolly-22-dev",
        provides: "/usr/lib/llvm-22/lib/libPolly.a",
    },
    debian::Package {
        name: "zlib1g-dev",
        provides: "/usr/include/zlib.h",
    },
    debian::Package {
        name: "libzstd-dev",
        provides: "/usr/include/zstd.h",
    },
    debian::Package {
        name: "g++",
        provides: "g++",
    },
];

/// A compiler with its sources, and the linker that fits it.
pub struct Toolchain {
    rustc: PathBuf,
    sysroot: PathBuf,
    host: String,
    release: String,
    llvm: String,
    linker: &'static Linker,
}

/// A way to build bpf-linker.
struct Linker {
    version: &'static str,
    feature: &'static str,
    /// Name of its folder in the cache.
    folder: &'static str,
}

/// Linked with Debian's LLVM.
static SYSTEM_LINKER: Linker = Linker {
    version: "0.13.0",
    feature: "llvm-22",
    folder: "bpf-linker-0.13.0-llvm22",
};
/// Uses the LLVM inside rustup's compiler, at run time; newer releases no longer can.
static RUSTUP_LINKER: Linker = Linker {
    version: "0.10.4",
    feature: "rust-llvm-22",
    folder: "bpf-linker-0.10.4-rust-llvm22",
};

impl Toolchain {
    /// Finds a compiler, or looks at the `wanted` one, and makes sure of its linker. What is
    /// missing is installed when `install` says so; else the error says how to.
    pub fn find(wanted: Option<&Path>, install: bool) -> Result<Self> {
        let toolchain = match wanted {
            Some(rustc) => Self::look_at(rustc)?,
            None => match Self::search() {
                Ok(toolchain) => toolchain,
                Err(_) if install => {
                    debian::install(&debian::missing(&DEBIAN_COMPILER))?;
                    Self::search()?
                }
                Err(error) => return Err(error),
            },
        };
        if toolchain.uses_debian_llvm() {
            let missing = debian::missing(&DEBIAN_LINKER);
            if install {
                debian::install(&missing)?;
            } else if !missing.is_empty() {
                bail!(
                    "bpf-linker needs Debian's LLVM: run `{}`, or add --install",
                    debian::install_command(&missing)
                );
            }
        }
        toolchain.make_linker()?;
        Ok(toolchain)
    }

    /// Debian's compiler comes first: it is the same on every machine that has it.
    fn search() -> Result<Self> {
        let candidates: Vec<PathBuf> = std::iter::once(PathBuf::from("/usr/bin/rustc"))
            .filter(|rustc| rustc.exists())
            .chain(rustup_compilers())
            .collect();
        let mut refused = String::new();
        for rustc in &candidates {
            match Self::look_at(rustc) {
                Ok(toolchain) => return Ok(toolchain),
                Err(error) => refused.push_str(&format!("\n  {error:#}")),
            }
        }
        let names = DEBIAN_COMPILER.map(|package| package.name);
        bail!(
            "no Rust compiler here can build for eBPF: it needs Rust's own sources and LLVM {LLVM_MAJOR}. \
             On Debian run `{}` or add --install; with rustup run `rustup component add rust-src` \
             for Rust 1.95 or 1.96.{refused}",
            debian::install_command(&names)
        )
    }

    fn look_at(rustc: &Path) -> Result<Self> {
        let shown = rustc.display();
        // `cargo run` sets a library path, on which another release of this compiler would find
        // the parts of the one that compiled us, and take that one's folder for its own.
        let ask = |args: &[&str]| {
            let mut command = Command::new(rustc);
            command::text(command.args(args).env_remove("LD_LIBRARY_PATH"))
        };
        let version = ask(&["-vV"])?;
        let fact = |key: &str| {
            let value = version.lines().find_map(|line| line.strip_prefix(key));
            value.map(|value| value.trim().to_owned())
        };
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        let llvm = fact("LLVM version:").with_context(|| format!("{shown} has no LLVM"))?;
        let release = fact("release:").with_context(|| format!("{shown} is no rustc"))?;
        if llvm.split('.').next() != Some(LLVM_MAJOR) {
            bail!("{shown} ({release}) has LLVM {llvm}, not {LLVM_MAJOR}");
        }
        let sources = sysroot.join("lib/rustlib/src/rust/library/core");
        if !sources.exists() {
            bail!(
                "{shown} ({release}) has no sources in {}",
                sources.display()
            );
        }
        let linker = if has_own_llvm(&sysroot) {
            &RUSTUP_LINKER
        } else {
            &SYSTEM_LINKER
        };
        Ok(Self {
            rustc: rustc.to_owned(),
            host: fact("host:").with_context(|| format!("{shown} names no host"))?,
            sysroot,
            release,
            llvm,
            linker,
        })
    }

    /// Versions of everything that shapes the object.
    pub fn versions(&self) -> String {
        format!(
            "rustc {}, LLVM {}, bpf-linker {}",
            self.release, self.llvm, self.linker.version
        )
    }

    /// Cargo with this compiler, this linker and the unstable options it takes to build `core`.
    pub fn cargo(&self) -> Result<Command> {
        let mut cargo = workspace::cargo();
        // `bpf-linker` is found through the PATH: in a flag, its folder would change the names
        // of functions. Wrappers and flags are for other targets than this one.
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.linker_folder()?.join("bin"));
        cargo
            .env(
                "PATH",
                env::join_paths(folders.chain(env::split_paths(&path)))?,
            )
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        self.set_compiler(&mut cargo);
        Ok(cargo)
    }

    /// Makes `cargo` compile with this compiler, and bpf-linker find this compiler's LLVM.
    fn set_compiler(&self, cargo: &mut Command) {
        cargo.env("RUSTC", &self.rustc);
        if self.uses_debian_llvm() {
            cargo.env_remove("LD_LIBRARY_PATH");
        } else {
            cargo.env("LD_LIBRARY_PATH", self.sysroot.join("lib"));
        }
    }

    /// LLVM's objcopy; the one of GNU does not know eBPF.
    pub fn objcopy(&self) -> Result<Command> {
        let path = if self.uses_debian_llvm() {
            Path::new(DEBIAN_LLVM).join("bin/llvm-objcopy")
        } else {
            let tools = self.sysroot.join("lib/rustlib").join(&self.host);
            tools.join("bin/rust-objcopy")
        };
        if !path.exists() {
            bail!("{} is not installed", path.display());
        }
        Ok(Command::new(path))
    }

    fn uses_debian_llvm(&self) -> bool {
        std::ptr::eq(self.linker, &SYSTEM_LINKER)
    }

    fn linker_folder(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join(self.linker.folder))
    }

    /// Builds bpf-linker into the cache, once.
    fn make_linker(&self) -> Result<()> {
        let Linker {
            version, feature, ..
        } = *self.linker;
        workspace::make_once(&self.linker_folder()?, "bin/bpf-linker", |fresh| {
            eprintln!("building bpf-linker {version}, which takes a minute");
            let mut cargo = workspace::cargo();
            cargo
                .args(["install", "bpf-linker", "--locked", "--quiet"])
                .args(["--version", version])
                .args(["--no-default-features", "--features", feature])
                .arg("--root")
                .arg(fresh)
                .env_remove("RUSTFLAGS");
            if self.uses_debian_llvm() {
                cargo.env("LLVM_PREFIX", DEBIAN_LLVM);
            } else {
                self.set_compiler(&mut cargo);
            }
            command::output(&mut cargo).map(drop)
        })?;
        Ok(())
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.versions())
    }
}

/// The compilers that rustup has installed, by name.
fn rustup_compilers() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| Some(env::home_dir()?.join(".rustup"))) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(home.join("toolchains")) else {
        return Vec::new();
    };
    let mut compilers: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path().join("bin/rustc"))
        .filter(|rustc| rustc.exists())
        .collect();
    compilers.sort();
    compilers
}

/// Whether the compiler brings its own LLVM: rustup's do, as `lib/libLLVM…-rust-VERSION…`.
fn has_own_llvm(sysroot: &Path) -> bool {
    let Ok(entries) = fs::read_dir(sysroot.join("lib")) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libLLVM") && name.contains("-rust-")
    })
}
