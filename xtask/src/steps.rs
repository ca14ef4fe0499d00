//! The steps of a long run: one line each, with the time it took.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Result, bail};

/// Runs steps one after another, also after a failure, so that one run tells everything.
#[derive(Default)]
pub struct Steps {
    count: usize,
    failed: Vec<&'static str>,
}

impl Steps {
    /// Runs a step. It returns a remark for its line, which may be empty; its error is printed
    /// in full.
    pub fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<String>) {
        print!("{name:<14}");
        // A line that is not shown yet is no reason to stop.
        let _ = io::stdout().flush();
        let start = Instant::now();
        let result = step();
        let seconds = start.elapsed().as_secs_f64();
        self.count += 1;
        match result {
            Ok(remark) => println!("ok     {seconds:6.1} s  {remark}"),
            Err(error) => {
                self.failed.push(name);
                println!(
                    "FAILED {seconds:6.1} s\n{}\n",
                    format!("{error:#}").trim_end()
                );
            }
        }
    }

    /// Fails when a step has failed.
    pub fn finish(&self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!(
                "{} of {} steps failed: {}",
                self.failed.len(),
                self.count,
                self.failed.join(", ")
            );
        }
        Ok(())
    }
}
