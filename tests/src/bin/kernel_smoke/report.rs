//! What was found, as lines that `xtask/src/kernels/console.rs` reads:
//!
//! ```text
//! R|process|OK|203 samples, 203 rooted
//! R|doctor.helper_loop|SKIP|the kernel does not know it
//! P|sample|41210
//! END|17
//! ```
//!
//! `R` is a check: `OK`, `FAIL`, or `SKIP` for what this kernel lacks. `P` is an eBPF program with the
//! instructions that the verifier looked at, or `-` where the kernel does not tell. `END` says how
//! many lines came before: without it nothing counts.

/// Writes the lines as they come.
#[derive(Default)]
pub struct Report {
    lines: usize,
    failures: usize,
}

impl Report {
    /// A check that went well, or whose error is a failure.
    pub fn check(&mut self, name: &str, outcome: &anyhow::Result<String>) {
        match outcome {
            Ok(detail) => self.result(name, "OK", detail),
            Err(error) => {
                self.failures += 1;
                self.result(name, "FAIL", &format!("{error:#}"));
            }
        }
    }

    /// Something that this kernel lacks.
    pub fn skip(&mut self, name: &str, detail: &str) {
        self.result(name, "SKIP", detail);
    }

    /// A program that the kernel took.
    pub fn program(&mut self, name: &str, verified_instructions: Option<u32>) {
        let shown = verified_instructions.map_or("-".to_owned(), |count| count.to_string());
        self.line(&format!("P|{name}|{shown}"));
    }

    /// Writes the last line; whether nothing failed.
    pub fn finish(&mut self) -> bool {
        println!("END|{}", self.lines);
        self.failures == 0
    }

    fn result(&mut self, name: &str, result: &str, detail: &str) {
        self.line(&format!("R|{name}|{result}|{detail}"));
    }

    fn line(&mut self, text: &str) {
        self.lines += 1;
        println!("{}", text.replace('\n', " / "));
    }
}
