//! `hotspan diff`: what changed between two saved profiles, as a flame graph.

use std::process::ExitCode;

use anyhow::bail;

use super::UsageError;
use super::flamegraph::{base_name, picture, read_profile};
use super::output::Output;
use crate::export::flamegraph::draw_difference;
use crate::export::folded::Folded;

/// Draws what changed between two saved profiles: red frames got more, blue ones less.
#[derive(clap::Args)]
pub struct Args {
    /// Profile from before: pprof, folded stacks, OTLP profiles or speedscope; `-` is standard
    /// input.
    #[arg(value_name = "A")]
    before: String,
    /// Profile from after; its numbers are the widths.
    #[arg(value_name = "B")]
    after: String,
    /// Picture (.svg); `-` is standard output.
    #[arg(short, long, value_name = "OUT", default_value = "diff.svg")]
    output: String,
    /// Scale A to the sum of B, to compare shares and not amounts.
    #[arg(long)]
    normalize: bool,
    /// Headline of the picture [default: names of the files].
    #[arg(long)]
    title: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check(args)?;
    let mut output = Output::prepare(&args.output)?;
    let before = read_profile(&args.before)?;
    let after = read_profile(&args.after)?;
    if before.unit != after.unit && !args.normalize {
        bail!(
            "{} holds {} and {} holds {}, which cannot be subtracted; compare their shares with \
             --normalize",
            args.before,
            before.amount(),
            args.after,
            after.amount()
        );
    }
    let mut subtitle = format!("{} before, {} after", before.amount(), after.amount());
    let gone = gone_share(&before.folded, &after.folded);
    if gone >= 0.001 {
        subtitle.push_str(&format!(", {:.1} % of before gone", 100.0 * gone));
    }
    let mut counted = before.folded;
    if args.normalize {
        counted = counted.scaled_to(after.folded.total());
        subtitle.push_str(" · normalized");
    }
    subtitle.push_str(" · widths are after");
    let names = format!("{} → {}", base_name(&args.before), base_name(&args.after));
    let title = args.title.as_deref().unwrap_or(&names);
    let mut svg = Vec::new();
    draw_difference(
        &counted,
        &after.folded,
        &picture(title, subtitle, &after.unit),
        &mut svg,
    )?;
    output.write(|out| out.write_all(&svg))?;
    Ok(ExitCode::SUCCESS)
}

fn check(args: &Args) -> Result<(), UsageError> {
    if args.before == "-" && args.after == "-" {
        return Err(UsageError(
            "A and B cannot both come from standard input; name a file for one of them".to_owned(),
        ));
    }
    let is_picture = args.output == "-" || args.output.to_ascii_lowercase().ends_with(".svg");
    if !is_picture {
        return Err(UsageError(format!(
            "`{}` names no format; a difference is a picture, end the name in .svg",
            args.output
        )));
    }
    Ok(())
}

/// Which part of `before` is in stacks that `after` does not have: they have no width in the
/// picture.
fn gone_share(before: &Folded, after: &Folded) -> f64 {
    let stacks = before.stacks.iter();
    let gone = stacks.filter(|(stack, _)| !after.stacks.contains_key(*stack));
    let weights = gone.map(|(_, weight)| *weight);
    weights.sum::<u64>() as f64 / before.total().max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Compares two folded texts and returns the picture.
    fn difference(before: &str, after: &str, normalize: bool) -> anyhow::Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("a.folded"), before).unwrap();
        fs::write(path("b.folded"), after).unwrap();
        run(&Args {
            before: path("a.folded"),
            after: path("b.folded"),
            output: path("diff.svg"),
            normalize,
            title: None,
        })?;
        Ok(fs::read_to_string(path("diff.svg")).unwrap())
    }

    #[test]
    fn the_picture_says_what_was_compared() {
        let svg = difference("a;f 10\na;gone 10\n", "a;f 15\n", false).unwrap();
        assert!(svg.contains(">a.folded → b.folded</text>"), "{svg}");
        assert!(
            svg.contains("20 samples before, 15 samples after, 50.0 % of before gone"),
            "{svg}"
        );
        assert!(svg.contains("f (15 samples, 100.00%; +33.33%)"), "{svg}");
    }

    #[test]
    fn normalized_profiles_of_equal_shares_do_not_differ() {
        let svg = difference(
            "a;f 301\na;g 100\na;h 1\n",
            "a;f 903\na;g 300\na;h 3\n",
            true,
        );
        let svg = svg.unwrap();
        assert!(svg.contains("f (903 samples, 74.88%; 0.00%)"), "{svg}");
        assert!(svg.contains("h (3 samples, 0.25%; 0.00%)"), "{svg}");
        assert!(svg.contains("normalized"), "{svg}");
    }

    #[test]
    fn different_units_need_normalizing() {
        let speedscope = r#"{"shared": {"frames": [{"name": "f"}]},
            "profiles": [{"type": "sampled", "unit": "seconds", "samples": [[0]], "weights": [2]}]}"#;
        let error = difference("f 1\n", speedscope, false).unwrap_err();
        assert!(error.to_string().contains("--normalize"), "{error}");
        assert!(difference("f 1\n", speedscope, true).is_ok());
    }

    #[test]
    fn mistakes_are_usage_errors() {
        let args = |before: &str, output: &str| Args {
            before: before.to_owned(),
            after: "-".to_owned(),
            output: output.to_owned(),
            normalize: false,
            title: None,
        };
        for args in [args("-", "diff.svg"), args("a", "diff.folded")] {
            assert!(run(&args).unwrap_err().is::<UsageError>());
        }
    }
}
