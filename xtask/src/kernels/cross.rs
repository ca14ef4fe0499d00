//! Compilers for arm64 on an x86-64 host: Debian's Rust, whose standard library is there for both,
//! and its C compiler. They are unpacked into the cache, beside one another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::{self, Apt};
use crate::build_ebpf::Arch;
use crate::{debian, workspace};

/// What they compile for.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Debian's name of the target.
const TRIPLET: &str = "aarch64-linux-gnu";

/// The compilers.
pub struct Cross {
    folder: PathBuf,
}

impl Cross {
    /// Finds them in the cache, or fetches and unpacks them.
    pub fn find() -> Result<Self> {
        let release = debian::codename().context("the compilers for arm64 come from Debian")?;
        let cache = workspace::cache()?;
        let folder = cache.join(format!("cross-{release}"));
        workspace::make_once(&folder, "bin/cc", |fresh| {
            eprintln!("fetching compilers for arm64");
            fetch(fresh, &cache.join("cross-apt"), &release)?;
            fs::create_dir_all(fresh.join("bin"))?;
            for (name, program, arguments) in [
                ("rustc", "rustc".to_owned(), ""),
                ("ar", format!("{TRIPLET}-ar"), ""),
                // The linker's scripts name their libraries from the root on.
                ("cc", format!("{TRIPLET}-gcc"), "--sysroot=\"$root\""),
            ] {
                write_wrapper(&fresh.join("bin").join(name), &program, arguments)?;
            }
            Ok(())
        })
        .context("cannot fetch compilers for arm64")?;
        Ok(Self { folder })
    }

    /// The C compiler.
    pub fn cc(&self) -> PathBuf {
        self.folder.join("bin/cc")
    }

    /// Where the libraries for arm64 are.
    pub fn library_folder(&self) -> PathBuf {
        self.folder.join("root/usr").join(TRIPLET).join("lib")
    }

    /// Cargo with these compilers, and a target folder in which it builds for nobody else.
    pub fn cargo(&self, target_folder: &Path) -> Command {
        let variable = TARGET.to_uppercase().replace('-', "_");
        let mut cargo = workspace::cargo();
        cargo
            .env("RUSTC", self.folder.join("bin/rustc"))
            .env("CARGO_TARGET_DIR", target_folder)
            .env(format!("CARGO_TARGET_{variable}_LINKER"), self.cc())
            .env(format!("CC_{}", TARGET.replace('-', "_")), self.cc())
            .env(
                format!("AR_{}", TARGET.replace('-', "_")),
                self.folder.join("bin/ar"),
            )
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        cargo
    }
}

/// Unpacks the compilers into `folder/root`.
fn fetch(folder: &Path, scratch: &Path, release: &str) -> Result<()> {
    let root = folder.join("root");
    let ours = Apt::update(
        scratch.to_owned(),
        Arch::host().debian(),
        debian::suites(release),
    )?;
    let runtime = ours.newest("libstd-rust-web-*")?.name;
    let names = ["rustc-web", "libstd-rust-web-dev", &runtime];
    let c = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
    ours.unpack_with_dependencies(&[&names[..], &c].concat(), &root)?;
    drop(ours);
    let theirs = Apt::update(
        scratch.to_owned(),
        Arch::Aarch64.debian(),
        debian::suites(release),
    )?;
    let library = theirs.download("libstd-rust-web-dev", folder)?;
    apt::unpack(&library, &root)?;
    Ok(fs::remove_file(library)?)
}

/// Writes a script that runs an unpacked program with the libraries beside it. It finds them from its
/// own place, because the folder is moved once.
fn write_wrapper(path: &Path, program: &str, arguments: &str) -> Result<()> {
    let libraries = format!("$root/usr/lib/{}-linux-gnu", Arch::host().name());
    let text = format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(dirname \"$0\")\")/root\n\
         LD_LIBRARY_PATH=\"{libraries}\" exec \"$root/usr/bin/{program}\" {arguments} \"$@\"\n"
    );
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}
