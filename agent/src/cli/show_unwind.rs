//! `hotspan show-unwind`: the rules by which a file's stack frames are unwound.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Arc,
};

use anyhow::{Context, ensure};
use object::ReadCache;

use super::UsageError;
use super::output::Output;
use crate::{
    process::TargetRoot,
    unwind::{
        Arch, Found, Reason, debug_file, eh_frame, go,
        readelf::{self, Agreement},
        show, table,
    },
};

/// Prints the rules by which a file's stack frames are unwound, beside what readelf says.
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
    // To open a pipe would wait for whoever writes to it.
    ensure!(
        fs::metadata(&args.file).with_context(cannot)?.is_file(),
        "{} is no regular file: name a program or a library",
        args.file.display()
    );
    let file = Arc::new(File::open(&args.file).with_context(cannot)?);
    let path = args.file.canonicalize().with_context(cannot)?;
    let root = TargetRoot::open("/".as_ref()).with_context(cannot)?;
    let debug_file = debug_file::find(&file, &path, &root)
        .map(|(path, file)| (path, ReadCache::new(Arc::new(file))));
    let file = ReadCache::new(file);
    let found = eh_frame::rows(&file, debug_file.as_ref().map(|(_, file)| file));
    let mut found = found.with_context(cannot)?;
    let go = go::rows(&file);
    if let Some(go) = &go {
        found.rows = go::merge(go, &found.rows);
    }
    ensure!(
        !found.report.text.is_empty() || !found.rows.rows.is_empty(),
        "{} has no code: it is cut off, or no program and no library",
        args.file.display()
    );
    let mut paths = vec![path];
    paths.extend(
        debug_file
            .as_ref()
            .map(|(path, _)| Path::new("/").join(path)),
    );
    let readelf = readelf_rows(&paths, found.arch)?;
    Output::prepare("-")?.write(|out| {
        let agreements = show::write_rows(&found, readelf.as_deref(), addr, out)?;
        if readelf.is_none() {
            writeln!(
                out,
                "\nreadelf is not installed (in Debian it is in the package binutils): nothing to compare with"
            )?;
        }
        if addr.is_some() {
            return Ok(());
        }
        if let Some((path, _)) = &debug_file {
            writeln!(out, "\nmore rows from /{}", path.display())?;
        }
        if let Some(go) = &go {
            let count = go.rows.len();
            writeln!(out, "\n{count} rows from the table of Go's runtime, which comes before others")?;
        }
        summarize(&found, out)?;
        summarize_agreements(&agreements, out)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What readelf says of these files; `None` when there is no readelf.
fn readelf_rows(paths: &[PathBuf], arch: Arch) -> anyhow::Result<Option<Vec<readelf::Row>>> {
    let mut rows = Vec::new();
    for path in paths {
        let mut command = Command::new("readelf");
        command.args(readelf::ARGUMENTS).arg(path);
        // What it complains about is its own affair.
        let output = match command.stdin(Stdio::null()).stderr(Stdio::null()).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            output => output.context("cannot run readelf")?,
        };
        let text = String::from_utf8_lossy(&output.stdout);
        rows.extend(readelf::parse(&text, arch.frame_pointer_name()));
    }
    rows.retain(|row| row.start < row.end);
    rows.sort_by_key(|row| row.start);
    Ok(Some(rows))
}

/// How far readelf agrees.
fn summarize_agreements(
    agreements: &BTreeMap<Agreement, u64>,
    out: &mut dyn Write,
) -> io::Result<()> {
    for (agreement, count) in agreements {
        let mark = agreement.mark();
        let what = if mark.is_empty() {
            "as readelf has them"
        } else {
            mark
        };
        writeln!(out, "{count} places {what}")?;
    }
    Ok(())
}

fn parse_addr(text: &str) -> Result<u64, UsageError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| {
        UsageError(format!(
            "`{text}` is no address; write it in hexadecimal, as `nm` prints it"
        ))
    })
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
    writeln!(
        out,
        "{} bytes of code, {:.1} % of it without unwind information",
        report.code_bytes,
        100.0 * report.bare_bytes as f64 / report.code_bytes.max(1) as f64
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
}
