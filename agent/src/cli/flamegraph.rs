//! `hotspan flamegraph`: draws a saved profile, or turns it into folded stacks.

use std::io;
use std::process::ExitCode;

use anyhow::bail;
use regex::Regex;

use super::UsageError;
use super::output::Output;
use crate::export::flamegraph::{Picture, draw};
use crate::export::folded::{ElementKind, Folded};
use crate::export::saved::{self, Saved, Unit};

/// Draws a saved profile as a flame graph.
#[derive(clap::Args)]
pub struct Args {
    /// pprof, folded stacks, OTLP profiles or speedscope; `-` is standard input.
    #[arg(value_name = "IN")]
    input: String,
    /// Picture (.svg) or folded stacks (.folded, .txt); `-` is the picture on standard output.
    #[arg(short, long, value_name = "OUT", default_value = "hotspan.svg")]
    output: String,
    /// Merge stacks from the leaf: who calls the hot functions.
    #[arg(long)]
    reverse: bool,
    /// Root at the top.
    #[arg(long)]
    icicle: bool,
    /// Keep the stacks with a frame that matches.
    #[arg(long, value_name = "REGEX")]
    filter: Option<String>,
    /// Headline of the picture [default: name of the file].
    #[arg(long)]
    title: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let is_picture = is_picture(&args.output)?;
    let filter = args.filter.as_deref().map(parse_filter).transpose()?;
    let mut output = Output::prepare(&args.output)?;
    let mut saved = read_profile(&args.input)?;
    let mut subtitle = saved.facts();
    if let Some(filter) = filter {
        let all = saved.folded.total();
        keep_matching(&mut saved.folded, &filter);
        if saved.folded.stacks.is_empty() {
            bail!(
                "no stack in {} has a frame that matches `{filter}`; try a shorter pattern, or \
                 (?i) before it to ignore case",
                args.input
            );
        }
        let share = 100.0 * saved.folded.total() as f64 / all as f64;
        subtitle.push_str(&format!(" · {share:.1} % of them with {filter}"));
    }
    let mut bytes = Vec::new();
    if is_picture {
        let title = args.title.as_deref().unwrap_or(base_name(&args.input));
        let picture = Picture {
            is_icicle: args.icicle,
            is_reversed: args.reverse,
            ..picture(title, subtitle, &saved.unit)
        };
        draw(&saved.folded, &picture, &mut bytes)?;
    } else {
        saved.folded.write_text(&mut bytes)?;
    }
    output.write(|out| out.write_all(&bytes))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the output is a picture, by its name; folded text if not.
fn is_picture(output: &str) -> Result<bool, UsageError> {
    let format = match output {
        "-" => Some("svg"),
        path => crate::export::format_of_path(path).map(|format| format.name),
    };
    match format {
        Some("svg") => Ok(true),
        Some("folded") => Ok(false),
        _ => Err(UsageError(format!(
            "`{output}` names no format; end it in .svg for a flame graph, or in .folded for text"
        ))),
    }
}

fn parse_filter(pattern: &str) -> Result<Regex, UsageError> {
    Regex::new(pattern).map_err(|error| {
        // The last line says what is wrong, those above point at where.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ");
        UsageError(format!(
            "--filter `{pattern}` is no regular expression ({reason}); put a backslash before \
             each of ()[]{{}}*+?.| that stands for itself"
        ))
    })
}

/// Keeps the stacks in which an element matches, with its mark or without.
fn keep_matching(folded: &mut Folded, filter: &Regex) {
    folded.stacks.retain(|stack, _| {
        stack
            .split(';')
            .any(|e| filter.is_match(e) || filter.is_match(ElementKind::split_mark(e).0))
    });
    let stacks = folded.stacks.keys();
    let left: std::collections::HashSet<&str> = stacks.flat_map(|s| s.split(';')).collect();
    folded
        .kinds
        .retain(|element, _| left.contains(element.as_str()));
}

/// Reads a saved profile.
pub(super) fn read_profile(path: &str) -> anyhow::Result<Saved> {
    saved::read(path).map_err(|error| match error {
        saved::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            anyhow::anyhow!("there is no file {path}; check the path")
        }
        error => anyhow::anyhow!("cannot read {}: {error}", shown(path)),
    })
}

fn shown(path: &str) -> &str {
    match path {
        "-" => "standard input",
        path => path,
    }
}

/// The last part of a path, for titles.
pub(super) fn base_name(path: &str) -> &str {
    shown(path).rsplit('/').next().unwrap_or(path)
}

/// A picture of weights in `unit`.
pub(super) fn picture(title: &str, subtitle: String, unit: &Unit) -> Picture {
    let (unit, factor) = match unit {
        Unit::Samples => ("samples", 1.0),
        Unit::Nanoseconds => ("ms", 1e-6),
        Unit::Other(unit) => (unit.as_str(), 1.0),
    };
    Picture {
        title: title.to_owned(),
        subtitle,
        unit: unit.to_owned(),
        factor,
        ..Picture::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn args(input: &str, output: &str) -> Args {
        Args {
            input: input.to_owned(),
            output: output.to_owned(),
            reverse: false,
            icicle: false,
            filter: None,
            title: None,
        }
    }

    /// Runs the command on folded text and returns what it wrote.
    fn converted(text: &str, output: &str, change: impl Fn(&mut Args)) -> anyhow::Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("in.folded"), text).unwrap();
        let mut args = args(&path("in.folded"), &path(output));
        change(&mut args);
        run(&args)?;
        Ok(fs::read_to_string(path(output)).unwrap())
    }

    #[test]
    fn a_filter_keeps_matching_stacks_with_all_their_frames() {
        let text = "a;f;read_[k] 2\na;g 3\na;h 1\n";
        let filtered = |pattern: &str| {
            converted(text, "out.folded", |args| {
                args.filter = Some(pattern.to_owned())
            })
        };
        assert_eq!(filtered("^g$").unwrap(), "a;g 3\n");
        assert_eq!(filtered("^read$").unwrap(), "a;f;read_[k] 2\n");
        assert_eq!(filtered(r"_\[k\]$").unwrap(), "a;f;read_[k] 2\n");
        let error = filtered("nothing").unwrap_err();
        assert!(!error.is::<UsageError>() && error.to_string().contains("`nothing`"));
        let error = filtered("(").unwrap_err();
        assert!(
            error.is::<UsageError>() && !error.to_string().contains('\n'),
            "{error}"
        );
    }

    #[test]
    fn a_picture_has_a_title_and_facts() {
        let svg = converted("a;f 1200\na;g 800\n", "out.SVG", |args| {
            args.title = Some("before lunch".to_owned());
            args.filter = Some("f".to_owned());
        })
        .unwrap();
        assert!(svg.contains(">before lunch</text>"), "{svg}");
        assert!(
            svg.contains("2,000 samples · 60.0 % of them with f"),
            "{svg}"
        );
    }

    #[test]
    fn mistakes_are_told_before_anything_is_read() {
        let error = run(&args("/no/such/file", "out.png")).unwrap_err();
        assert!(error.is::<UsageError>() && error.to_string().contains("out.png"));
        let error = run(&args("/no/such/file", "out.svg")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no file /no/such/file; check the path"
        );
        assert!(!error.is::<UsageError>());
        assert!(run(&args("/", "out.svg")).is_err());
    }

    #[test]
    fn an_output_that_cannot_be_written_is_named() {
        let error = converted("a 1\n", "no/folder.svg", |_| ()).unwrap_err();
        assert!(error.to_string().contains("no/folder.svg"), "{error}");
    }
}
