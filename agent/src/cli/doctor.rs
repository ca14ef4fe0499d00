//! `hotspan doctor`: says what this kernel and these rights allow.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::palette::Palette;
use crate::capture::features::{self, Capacity, Check, Section, Status};

/// Arguments of `hotspan doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Write one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Everything the doctor found, as `--json` writes it.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    can_record: bool,
    checks: Vec<&'a Check>,
    unwinder: Capacity,
}

/// Looks at this host and writes what was found. The exit code is 0 when recording works.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sections = features::check_all();
    let can_record = all(&sections).all(|check| check.status != Status::Fail);
    let text = if args.json {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            can_record,
            checks: all(&sections).collect(),
            unwinder: Capacity::HERE,
        };
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        render(&sections, can_record, Palette::of_stdout())
    };
    match io::stdout().write_all(text.as_bytes()) {
        // `hotspan doctor | head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    Ok(ExitCode::from(u8::from(!can_record)))
}

fn all(sections: &[Section]) -> impl Iterator<Item = &Check> {
    sections.iter().flat_map(|section| &section.checks)
}

fn words_of(palette: Palette, status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Ok => ("ok", palette.green),
        Status::Warn => ("warn", palette.yellow),
        Status::Fail => ("FAIL", palette.red),
    }
}

fn render(sections: &[Section], can_record: bool, palette: Palette) -> String {
    let width = all(sections).map(|check| check.id.len()).max().unwrap_or(0);
    let Palette { bold, reset, .. } = palette;
    let mut text = String::new();
    for section in sections {
        line(&mut text, format_args!("{bold}{}{reset}", section.title));
        for check in &section.checks {
            render_check(&mut text, check, width, palette);
        }
        text.push('\n');
    }
    let count = |status| all(sections).filter(|check| check.status == status).count();
    let (warnings, failures) = (count(Status::Warn), count(Status::Fail));
    let verdict = if can_record {
        "hotspan can record on this host"
    } else {
        "hotspan cannot record on this host"
    };
    line(
        &mut text,
        format_args!("{bold}{verdict}{reset}: {failures} failed, {warnings} warned."),
    );
    text
}

fn render_check(text: &mut String, check: &Check, width: usize, palette: Palette) {
    let reset = palette.reset;
    let (word, colour) = words_of(palette, check.status);
    let Check { id, value, .. } = check;
    line(
        text,
        format_args!("  {colour}{word:<4}{reset}  {id:<width$}  {value}"),
    );
    // Below the value, so that the eye finds the next check in the first columns.
    let indent = width + 10;
    if let Some(costs) = check.costs {
        line(text, format_args!("{:indent$}costs: {costs}", ""));
    }
    if let Some(fix) = &check.fix {
        line(text, format_args!("{:indent$}fix:   {fix}", ""));
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections() -> Vec<Section> {
        let check = |id, status, costs: Option<&'static str>, fix: Option<&str>| Check {
            id,
            status,
            value: "value".to_owned(),
            costs,
            fix: fix.map(str::to_owned),
        };
        vec![
            Section {
                title: "kernel",
                checks: vec![check("btf", Status::Ok, None, None)],
            },
            Section {
                title: "rights",
                checks: vec![check("cap_bpf", Status::Fail, Some("all"), Some("sudo"))],
            },
        ]
    }

    #[test]
    fn text_is_aligned_and_explains_each_lack() {
        let expected = "\
kernel
  ok    btf      value

rights
  FAIL  cap_bpf  value
                 costs: all
                 fix:   sudo

hotspan cannot record on this host: 1 failed, 0 warned.
";
        assert_eq!(render(&sections(), false, Palette::PLAIN), expected);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut text = render(&sections(), false, Palette::ANSI);
        for escape in ["\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"] {
            text = text.replace(escape, "");
        }
        assert_eq!(text, render(&sections(), false, Palette::PLAIN));
    }

    #[test]
    fn json_has_the_fields_that_scripts_read() {
        let sections = sections();
        let report = Report {
            version: "1",
            can_record: false,
            checks: all(&sections).collect(),
            unwinder: Capacity {
                architecture: "x86_64",
                user_frames: 1,
                kernel_frames: 2,
                table_bytes: 3,
                table_bytes_max: 4,
                processes: 5,
                mappings_per_process: 6,
                wide_rules: 7,
            },
        };
        let expected = serde_json::json!({
            "version": "1",
            "can_record": false,
            "checks": [
                {"id": "btf", "status": "ok", "value": "value", "costs": null, "fix": null},
                {"id": "cap_bpf", "status": "fail", "value": "value", "costs": "all", "fix": "sudo"},
            ],
            "unwinder": {
                "architecture": "x86_64", "user_frames": 1, "kernel_frames": 2, "table_bytes": 3,
                "table_bytes_max": 4, "processes": 5, "mappings_per_process": 6, "wide_rules": 7,
            },
        });
        assert_eq!(serde_json::to_value(&report).expect("serializes"), expected);
    }
}
