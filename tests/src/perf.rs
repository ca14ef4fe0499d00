//! `perf` as the other opinion.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Guard};
use crate::stacks::Stacks;

/// A recording under way, in the terms hotspan uses: 99 Hz, CPU clock, frame pointers.
#[derive(Debug)]
pub struct Perf {
    guard: Guard,
    file: PathBuf,
}

impl Perf {
    /// Starts to record a process until that ends, into `folder`.
    ///
    /// # Errors
    /// When perf cannot be started.
    pub fn start(pid: u32, folder: &Path) -> Result<Self> {
        let file = folder.join("perf.data");
        let mut command = Command::new("perf");
        command
            .args([
                "record",
                "-q",
                "-F",
                "99",
                "-e",
                "cpu-clock",
                "-g",
                "-p",
                &pid.to_string(),
            ])
            .arg("-o")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Ok(Self {
            guard: Guard::start(&mut command)?,
            file,
        })
    }

    /// Waits for its end, which comes with that of the process, and returns the stacks it saw.
    ///
    /// # Errors
    /// When perf fails, or what it prints cannot be understood.
    pub fn finish(mut self) -> Result<Stacks> {
        let stderr = self.guard.stderr_lines();
        let status = self.guard.wait(Duration::from_secs(60))?;
        let said: Vec<_> = stderr.iter().collect();
        ensure!(status.success(), "perf record failed: {said:?}");
        let text = process::output(
            Command::new("perf")
                .args(["script", "--no-inline", "-F", "comm,pid,tid,ip,sym", "-i"])
                .arg(&self.file),
        )?;
        parse_script(&text)
    }
}

/// Parses the text of `perf script`: samples are separated by empty lines; first comes `comm
/// pid/tid`, then a line with address and symbol for each frame, leaf first.
fn parse_script(text: &str) -> Result<Stacks> {
    let mut stacks = Stacks::default();
    for sample in text
        .split("\n\n")
        .map(str::trim)
        .filter(|sample| !sample.is_empty())
    {
        let mut lines = sample.lines();
        let head = lines.next().unwrap_or_default().trim();
        let (name, _ids) = head
            .rsplit_once(char::is_whitespace)
            .with_context(|| format!("no process in {head:?}"))?;
        let symbols = lines.map(|line| {
            let line = line.trim();
            line.split_once(' ')
                .map_or(line, |(_, symbol)| symbol)
                .to_owned()
        });
        let mut stack: Vec<_> = symbols.collect();
        stack.push(name.trim().to_owned());
        stack.reverse();
        stacks.add(stack, 1);
    }
    Ok(stacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_is_parsed() {
        let text = "\
shares 12/12 
\t    55d0 heavy
\t    55e0 main

a thread 12/13 
\tffffffff81 a::b(int, c<d>)
\t    55e0 main

";
        let expected = "shares;main;heavy 1\na thread;main;a::b(int, c<d>) 1\n";
        let expected = Stacks::parse_folded(expected).unwrap();
        assert_eq!(parse_script(text).unwrap(), expected);
        assert_eq!(parse_script("").unwrap().total(), 0);
    }
}
