//! A host with many processes: real programs, as many different ones as any Debian has that wait
//! when nobody talks to them.
//!
//! Most of them read input that never comes. A quarter are interpreters that wake up now and then
//! and work a little, so that a profiler sees something of their libraries too.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kernel;

/// Programs that read standard input to its end, with the arguments they need for that.
const READERS: [(&str, &[&str]); 40] = [
    ("b2sum", &[]),
    ("base32", &[]),
    ("base64", &[]),
    ("bash", &[]),
    ("cat", &[]),
    ("cksum", &[]),
    ("cut", &["-c1"]),
    ("dash", &[]),
    ("dd", &["status=none"]),
    ("diff", &["-", "/dev/null"]),
    ("expand", &[]),
    ("factor", &[]),
    ("fmt", &[]),
    ("fold", &[]),
    ("grep", &["x"]),
    ("gzip", &["-c"]),
    ("head", &["-n", "1"]),
    ("md5sum", &[]),
    ("nl", &[]),
    ("numfmt", &[]),
    ("od", &[]),
    ("paste", &["-"]),
    ("pr", &[]),
    ("ptx", &[]),
    ("sed", &["p"]),
    ("sha1sum", &[]),
    ("sha256sum", &[]),
    ("sha512sum", &[]),
    ("shuf", &[]),
    ("sort", &[]),
    ("sum", &[]),
    ("tac", &[]),
    ("tail", &[]),
    ("tee", &[]),
    ("tr", &["a", "b"]),
    ("tsort", &[]),
    ("unexpand", &[]),
    ("uniq", &[]),
    ("wc", &[]),
    ("xargs", &["true"]),
];

/// Interpreters and what they do.
const WORKERS: [(&str, &[&str]); 4] = [
    (
        "/usr/bin/python3",
        &[
            "-c",
            "import json, time\nwhile True: json.dumps(list(range(999))); time.sleep(0.1)",
        ],
    ),
    (
        "perl",
        &[
            "-e",
            "while (1) { my %h = map { $_ => 1 } 1..999; select undef, undef, undef, 0.1 }",
        ],
    ),
    (
        "node",
        &[
            "-e",
            "setInterval(() => JSON.stringify(Array(999).fill(1)), 100)",
        ],
    ),
    (
        "bash",
        &[
            "-c",
            "while true; do read -t 0.1; for i in {1..99}; do x=$i; done; done",
        ],
    ),
];

/// The processes; they end when this is dropped.
pub struct Crowd {
    children: Vec<Child>,
    programs: BTreeSet<&'static str>,
}

impl Crowd {
    /// Starts `count` processes and waits until they wait.
    pub fn gather(count: usize) -> Result<Self> {
        let mut crowd = Self {
            children: Vec::new(),
            programs: BTreeSet::new(),
        };
        for place in 0..count {
            let workers = place / 4;
            let (program, args) = match place % 4 {
                0 => WORKERS[workers % WORKERS.len()],
                _ => READERS[(place - workers - 1) % READERS.len()],
            };
            let child = kernel::run_first(&mut Command::new(program))
                .args(args)
                // Held until the end: nothing comes, and it is not over either.
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {program}"))?;
            crowd.children.push(child);
            crowd.programs.insert(program);
        }
        sleep(Duration::from_secs(3));
        for child in &mut crowd.children {
            if let Some(status) = child.try_wait()? {
                bail!("one of the many processes does not wait, but ended with {status}");
            }
        }
        Ok(crowd)
    }

    /// How many processes.
    pub fn processes(&self) -> usize {
        self.children.len()
    }

    /// How many different programs they run.
    pub fn programs(&self) -> usize {
        self.programs.len()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only when it has ended, which is what they are for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
