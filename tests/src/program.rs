//! Compiles the workloads, once per source, compiler and options.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// How a C workload is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// With frame pointers in every function, as all but one of these are.
    FramePointers,
    /// As compilers do it unless told otherwise.
    NoFramePointers,
    /// One file without libraries that is loaded at a random address.
    StaticPie,
    /// One file without libraries that is loaded where it says.
    StaticFixed,
    /// Without symbols.
    Stripped,
}

impl Build {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::FramePointers | Self::NoFramePointers => &[],
            Self::StaticPie => &["-static-pie", "-fPIE"],
            Self::StaticFixed => &["-static", "-no-pie"],
            Self::Stripped => &["-s"],
        }
    }
}

const WITH_FRAME_POINTERS: [&str; 3] = [
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-DWITH_FRAME_POINTERS",
];

/// The program of `workloads/c/NAME.c`.
///
/// # Errors
/// When it does not compile.
pub fn c(name: &str, build: Build) -> Result<PathBuf> {
    let mut flags = vec!["-O2", "-g"];
    if build != Build::NoFramePointers {
        flags.extend(WITH_FRAME_POINTERS);
    }
    flags.extend(build.flags());
    let source = sources().join(format!("c/{name}.c"));
    let libraries = ["-lpthread", "-ldl"].map(OsStr::new);
    compile("gcc", &flags, &source, name, libraries)
}

/// The shared library of `workloads/c/NAME.c`.
///
/// # Errors
/// When it does not compile.
pub fn c_library(name: &str) -> Result<PathBuf> {
    let mut flags = vec!["-O2", "-g", "-shared", "-fPIC"];
    flags.extend(WITH_FRAME_POINTERS);
    let source = sources().join(format!("c/{name}.c"));
    compile("gcc", &flags, &source, &format!("{name}.so"), [])
}

/// The program of `workloads/cpp/NAME.cpp`.
///
/// # Errors
/// When it does not compile.
pub fn cpp(name: &str) -> Result<PathBuf> {
    let mut flags = vec!["-O2", "-g"];
    flags.extend(WITH_FRAME_POINTERS);
    let source = sources().join(format!("cpp/{name}.cpp"));
    compile("g++", &flags, &source, &format!("{name}_cpp"), [])
}

/// The program of `workloads/rust/NAME.rs`.
///
/// # Errors
/// When it does not compile.
pub fn rust(name: &str) -> Result<PathBuf> {
    let flags = ["--edition=2024", "-O", "-g", "-Cforce-frame-pointers=yes"];
    let source = sources().join(format!("rust/{name}.rs"));
    compile("rustc", &flags, &source, &format!("{name}_rust"), [])
}

/// The program of `workloads/go`.
///
/// # Errors
/// When it does not compile.
pub fn go() -> Result<PathBuf> {
    compile(
        "go",
        &["build"],
        &sources().join("go/main.go"),
        "shares_go",
        [],
    )
}

/// How a workload is built when it matters in every detail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recipe<'a> {
    /// The compiler.
    pub compiler: &'a str,
    /// Its options, all of them.
    pub flags: &'a [&'a str],
    /// The source, below `workloads`.
    pub source: &'a str,
    /// What the program is called, and its process. Empty: as the source.
    pub product: &'a str,
    /// A library that it is linked with.
    pub library: Option<&'a Path>,
}

impl Recipe<'_> {
    /// Follows it.
    ///
    /// # Errors
    /// When the workload does not compile.
    pub fn make(&self) -> Result<PathBuf> {
        let source = sources().join(self.source);
        let product = match self.product {
            "" => source
                .file_stem()
                .and_then(OsStr::to_str)
                .context("no source")?,
            product => product,
        };
        let libraries = self.library.into_iter().map(Path::as_os_str);
        compile(self.compiler, self.flags, &source, product, libraries)
    }
}

/// The folder with the classes of `workloads/java/NAME.java`, and of what all of them share.
///
/// # Errors
/// When it does not compile.
pub fn java(name: &str) -> Result<PathBuf> {
    let sources = sources().join("java");
    let source = sources.join(format!("{name}.java"));
    let shared = sources.join("Workload.java");
    let key = key("javac", &[], &source, &[])?;
    let folder = cache()?.join(format!("workloads/{name}-{key:016x}"));
    process::output(
        Command::new("javac")
            .arg("-d")
            .arg(&folder)
            .args([source, shared]),
    )?;
    Ok(folder)
}

/// A binary of a part that `cargo xtask VERB` builds; built when it is not in the cache yet, which takes
/// minutes.
///
/// # Errors
/// When it cannot be built.
pub fn go_part(verb: &str, folder: &str, binary: &str) -> Result<PathBuf> {
    let cached = cache()?.join(folder).join(binary);
    if !cached.exists() {
        let xtask = ["run", "--quiet", "--package=xtask", "--", verb];
        process::output(process::cargo().args(xtask))?;
    }
    Ok(cached)
}

/// The Go compiler of a version like `1.20.14`.
///
/// # Errors
/// When it cannot be fetched.
pub fn go_compiler(version: &str) -> Result<String> {
    let xtask = ["run", "--quiet", "--package=xtask", "--", "go", version];
    Ok(process::output(process::cargo().args(xtask))?
        .trim()
        .to_owned())
}

/// A script that needs no compiler.
#[must_use]
pub fn script(path: &str) -> PathBuf {
    sources().join(path)
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads")
}

/// Where built parts are kept: `$HOTSPAN_CACHE`, or `~/.cache/hotspan`.
///
/// # Errors
/// When there is no home directory either.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HOTSPAN_CACHE").filter(|path| !path.is_empty()) {
        return std::path::absolute(path).context("HOTSPAN_CACHE");
    }
    let home = env::home_dir().context("HOME is not set: set it, or HOTSPAN_CACHE")?;
    Ok(home.join(".cache/hotspan"))
}

fn compile<'a>(
    compiler: &str,
    flags: &[&str],
    source: &Path,
    product: &str,
    libraries: impl IntoIterator<Item = &'a OsStr>,
) -> Result<PathBuf> {
    let libraries: Vec<_> = libraries.into_iter().collect();
    let key = key(compiler, flags, source, &libraries)?;
    let folder = cache()?
        .join("workloads")
        .join(format!("{product}-{key:016x}"));
    let path = folder.join(product);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&folder)?;
    // Made under another name, so that whoever finds the program finds all of it.
    let fresh = folder.join(format!("{product}.{}", std::process::id()));
    let mut command = Command::new(compiler);
    command
        .args(flags)
        .args([OsString::from("-o"), fresh.clone().into()])
        .arg(source)
        .args(libraries);
    process::output(&mut command)?;
    fs::rename(&fresh, &path)?;
    Ok(path)
}

/// Changes when the program may: with the compiler, its options and the sources.
fn key(compiler: &str, flags: &[&str], source: &Path, libraries: &[&OsStr]) -> Result<u64> {
    let mut hash = DefaultHasher::new();
    let version = if Path::new(compiler).ends_with("go") {
        "version"
    } else {
        "--version"
    };
    process::output(Command::new(compiler).arg(version))?.hash(&mut hash);
    flags.hash(&mut hash);
    libraries.hash(&mut hash);
    fs::read(source)?.hash(&mut hash);
    for header in ["c/workload.h", "c/seeded.h"] {
        fs::read(sources().join(header))?.hash(&mut hash);
    }
    Ok(hash.finish())
}
