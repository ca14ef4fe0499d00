//! `hotspan show-unwind`: the rules by which a file's stack frames are unwound.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use object::ReadCache;

use super::UsageError;
use super::output::Output;
use crate::{
    process::TargetRoot,
    unwind::{Found, Reason, Rows, TableRule, debug_file, eh_frame, show::Shown, table},
};

/// Prints the rules by which a file's stack frames are unwound.
#[derive(clap::Args)]
pub struct Args {
    /// Executable or shared library.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only the row for this address, hexadecimal, as `nm` and `objdump` print it.
    #[arg(value_name = "ADDR")]
    addr: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let addr = args.addr.as_deref().map(parse_addr).transpose()?;
    let cannot = || format!("cannot read {}", args.file.display());
    let file = Arc::new(File::open(&args.file).with_context(cannot)?);
    let path = args.file.canonicalize().with_context(cannot)?;
    let root = TargetRoot::open("/".as_ref()).with_context(cannot)?;
    let debug_file = debug_file::find(&file, &path, &root)
        .map(|(path, file)| (path, ReadCache::new(Arc::new(file))));
    let file = ReadCache::new(file);
    let found = eh_frame::rows(&file, debug_file.as_ref().map(|(_, file)| file));
    let found = found.with_context(cannot)?;
    Output::prepare("-")?.write(|out| {
        writeln!(out, "{:16} {:18} {:10} ra", "LOC", "CFA", "fp")?;
        for (addr, rule) in shown(&found.rows, addr) {
            let (arch, wide) = (found.arch, &found.rows.wide[..]);
            writeln!(out, "{addr:016x} {}", Shown { arch, rule, wide })?;
        }
        if let (Some((path, _)), None) = (&debug_file, addr) {
            writeln!(out, "\nmore rows from /{}", path.display())?;
        }
        match addr {
            Some(_) => Ok(()),
            None => summarize(&found, out),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn parse_addr(text: &str) -> Result<u64, UsageError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| {
        UsageError(format!(
            "`{text}` is no address; write it in hexadecimal, as `nm` prints it"
        ))
    })
}

/// The rows to print: all, or the one for an address.
fn shown(rows: &Rows, addr: Option<u64>) -> Vec<(u64, TableRule)> {
    let Some(addr) = addr else {
        return rows.rows.clone();
    };
    let behind = rows.rows.partition_point(|row| row.0 <= addr);
    let row = behind.checked_sub(1).map(|index| rows.rows[index]);
    vec![row.unwrap_or((0, TableRule::NONE))]
}

/// How large the table is, and what is lacking.
fn summarize(found: &Found, out: &mut dyn Write) -> io::Result<()> {
    let report = &found.report;
    let pieces = report.text.iter().cloned();
    let pieces = pieces.flat_map(|text| table::pieces(&found.rows, text));
    let (mut rows, mut bytes) = (0, 0);
    for table in pieces.filter_map(|piece| table::build(&found.rows, piece)) {
        rows += table.row_count();
        bytes += 4 * table.words.len();
    }
    writeln!(
        out,
        "\n{rows} rows, {} wide rules, {bytes} bytes of tables, {:.1} bytes per row",
        found.rows.wide.len(),
        bytes as f64 / rows.max(1) as f64
    )?;
    let text: u64 = report.text.iter().map(|text| text.end - text.start).sum();
    writeln!(
        out,
        "{text} bytes of text, {:.1} % of it without unwind information",
        100.0 * report.bare_bytes as f64 / text.max(1) as f64
    )?;
    for (reason, name) in Reason::ALL {
        let count = report.refused(reason);
        if count > 0 {
            writeln!(out, "refused: {name}: {count}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal() {
        assert_eq!(parse_addr("0x1f").unwrap(), 0x1f);
        assert_eq!(parse_addr("000000000010ea2b").unwrap(), 0x10_ea2b);
        for text in ["", "main", "0x", "-1", "10000000000000000"] {
            assert!(parse_addr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_by_the_row_that_covers_it() {
        let rule = TableRule::Wide(0);
        let rows = Rows {
            rows: vec![(16, rule), (32, TableRule::NONE)],
            wide: Vec::new(),
        };
        assert_eq!(shown(&rows, None).len(), 2);
        assert_eq!(shown(&rows, Some(31)), [(16, rule)]);
        assert_eq!(shown(&rows, Some(32)), [(32, TableRule::NONE)]);
        assert_eq!(shown(&rows, Some(15)), [(0, TableRule::NONE)]);
    }
}
