//! `hotspan use`: the USE checklist of this host, once or live.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{self, MissedTickBehavior};

use super::palette::Palette;
use super::{UsageError, duration, tell};
use crate::capture::features;
use crate::model::{Check, Contributor, Measure, Verdict};
use crate::pipeline::events::EventMeter;
use crate::resource::{self, Reading, Root, Unread};

/// The kernel counts CPU time in steps of 10 ms: over less than ten of them no share is right.
const SHORTEST: Duration = Duration::from_millis(100);

/// Moves to the upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Arguments of `hotspan use`.
#[derive(clap::Args)]
pub struct Args {
    /// How long to look: what happens in this time is reported
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: String,
    /// Go on until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Report so many times, one interval after the other
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Write JSON, one object on a line for each report
    #[arg(long)]
    json: bool,
}

/// One report, as `--json` writes it.
#[derive(Serialize)]
struct Report<'a> {
    resources: &'a [Check],
}

/// Compares readings of the kernel's counters, and writes what happened between them.
///
/// # Errors
/// When the arguments are wrong or standard output cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interval = duration::parse(&args.interval)?;
    if interval < SHORTEST {
        return Err(UsageError(format!(
            "the interval {} is too short for the kernel's clock of 10 ms; make it 100ms or more",
            args.interval
        ))
        .into());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(report(args, interval))
}

async fn report(args: &Args, interval: Duration) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let root = Root::host();
    let reports = args.count.unwrap_or(if args.watch { u64::MAX } else { 1 });
    // Files need no rights, the kernel side does.
    let events = match features::why_not_record() {
        Ok(()) => EventMeter::start(),
        Err(missing) => Err(missing.into()),
    };
    let (mut events, lack) = match events {
        Ok(events) => {
            let missing = events.missing().join(", ");
            let lack = format!("This kernel does not let these be counted: {missing}.");
            (Some(events), Some(lack).filter(|_| !missing.is_empty()))
        }
        Err(error) => (
            None,
            Some(format!(
                "How long threads and disks wait is not counted: {error:#}."
            )),
        ),
    };
    let mut before = Reading::read(&root);
    if let Some(events) = &mut events {
        events.changes(&before)?;
    }
    let mut ticks = time::interval_at(time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..reports {
        tokio::select! {
            _ = ticks.tick() => {}
            // To end a watch so is to end it well; without a report it is to end early.
            _ = interrupt.recv() => return Ok(ExitCode::from(if args.watch { 0 } else { 130 })),
            _ = terminate.recv() => return Ok(ExitCode::from(if args.watch { 0 } else { 143 })),
        }
        let now = Reading::read(&root);
        let changes = events
            .as_mut()
            .map(|events| events.changes(&now))
            .transpose()?;
        let checks = resource::checks(&before, &now, changes.as_deref());
        let text = if args.json {
            json(&checks, &notes(now.unread, lack.as_deref()), number == 0)?
        } else {
            {
                let notes = notes(now.unread, lack.as_deref());
                on_screen(render(checks, &notes, Palette::of_stdout()), number)
            }
        };
        match io::stdout().write_all(text.as_bytes()) {
            // `hotspan use | head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            result => result?,
        }
        io::stdout().flush()?;
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line; what the report lacks is told beside, once.
fn json(checks: &[Check], notes: &[String], is_first: bool) -> anyhow::Result<String> {
    if is_first && !notes.is_empty() {
        tell(format_args!("hotspan: {}", notes.join(" ")));
    }
    Ok(serde_json::to_string(&Report { resources: checks })? + "\n")
}

/// On a terminal a report takes the place of the one before; elsewhere it follows it.
fn on_screen(report: String, number: u64) -> String {
    match (number, io::stdout().is_terminal()) {
        (0, _) => report,
        (_, true) => format!("{CLEAR}{report}"),
        (_, false) => format!("\n{report}"),
    }
}

/// The table, worst first. Cgroups that are well are only counted: there may be thousands.
fn render(checks: Vec<Check>, notes: &[String], palette: Palette) -> String {
    let is_shown =
        |check: &Check| !check.resource.starts_with("cgroup") || check.verdict > Verdict::Ok;
    let (mut shown, hidden): (Vec<_>, Vec<_>) = checks.into_iter().partition(is_shown);
    shown.sort_by_key(|check| std::cmp::Reverse(check.verdict));
    let rows: Vec<[String; 7]> = shown
        .iter()
        .map(|check| {
            [
                check.resource.to_owned(),
                printable(&check.instance),
                measure(check.utilization),
                measure(check.saturation),
                measure(check.errors),
                check
                    .latency
                    .map_or_else(|| "-".to_owned(), |latency| seconds(latency.p99)),
                top(&check.top),
            ]
        })
        .collect();
    let heads = [
        "resource", "instance", "used", "waiting", "errors", "p99", "top",
    ];
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let Palette { bold, reset, .. } = palette;
    let mut text = String::new();
    let head = row("verdict", &heads.map(str::to_owned), widths);
    line(&mut text, format_args!("{bold}{head}{reset}"));
    for (check, cells) in shown.iter().zip(&rows) {
        let (word, colour) = word_of(palette, check.verdict);
        let cells = row(word, cells, widths);
        let rest = &cells[word.len()..];
        line(&mut text, format_args!("{colour}{word}{reset}{rest}"));
    }
    if !hidden.is_empty() {
        let count = hidden.len();
        line(
            &mut text,
            format_args!("{count} more checks of cgroups show no trouble; --json has them."),
        );
    }
    for note in notes {
        line(&mut text, format_args!("{note}"));
    }
    text
}

fn row(verdict: &str, cells: &[String; 7], widths: [usize; 6]) -> String {
    let [resource, instance, used, waiting, errors, latency, top] = cells;
    let [a, b, c, d, e, f] = widths;
    let row = format!(
        "{verdict:<9}  {resource:<a$}  {instance:<b$}  {used:>c$}  {waiting:>d$}  {errors:>e$}  {latency:>f$}  {top}"
    );
    row.trim_end().to_owned()
}

fn word_of(palette: Palette, verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Unknown => ("unknown", ""),
        Verdict::Ok => ("ok", palette.green),
        Verdict::Busy => ("busy", palette.yellow),
        Verdict::Saturated => ("saturated", palette.red),
        Verdict::Errors => ("errors", palette.red),
    }
}

/// A ratio in percent, a rate with what it counts; a hyphen where the kernel does not tell.
fn measure(measure: Option<Measure>) -> String {
    let Some(Measure { value, unit }) = measure else {
        return "-".to_owned();
    };
    if unit == "1" {
        return format!("{:.1} %", value * 100.0);
    }
    let unit = unit.replace(['{', '}'], "");
    match value {
        0.0 => format!("0 {unit}"),
        100.0.. => format!("{value:.0} {unit}"),
        _ => format!("{value:.2} {unit}"),
    }
}

/// A time in the unit that suits it.
fn seconds(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{seconds:.2} s"),
        1e-3.. => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

fn top(top: &[Contributor]) -> String {
    // As much as has room in a line, and says something.
    let named: Vec<_> = top
        .iter()
        .filter(|one| one.share >= 0.005)
        .take(3)
        .map(|one| format!("{} {:.0} %", printable(&one.who), one.share * 100.0))
        .collect();
    named.join(", ")
}

/// Names come from processes, mounts and cgroups: none of them may command the terminal.
fn printable(name: &str) -> String {
    name.replace(char::is_control, "?")
}

/// What the report lacks, a sentence each.
fn notes(unread: Unread, lack: Option<&str>) -> Vec<String> {
    let lack = lack.map(str::to_owned);
    what_is_unread(unread).into_iter().chain(lack).collect()
}

fn what_is_unread(unread: Unread) -> Option<String> {
    let Unread {
        denied,
        malformed,
        failed,
        left_out,
    } = unread;
    let reasons = [
        (
            denied,
            "denied (who does the I/O, for one, is for root that may trace any process)",
        ),
        (malformed, "malformed"),
        (failed, "failed"),
        (left_out, "beyond the limit of what is looked at"),
    ];
    let parts: Vec<_> = reasons
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
    (!parts.is_empty()).then(|| format!("Not read, of the kernel's files: {}.", parts.join(", ")))
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    writeln!(text, "{content}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Latency;

    fn checks() -> Vec<Check> {
        let measure = |value, unit| Some(Measure { value, unit });
        let check = |resource, instance: &str, verdict| Check {
            resource,
            instance: instance.to_owned(),
            utilization: None,
            saturation: None,
            errors: None,
            latency: None,
            verdict,
            top: Vec::new(),
        };
        vec![
            Check {
                utilization: measure(0.5, "1"),
                ..check("filesystem", "/a\x1b[2J", Verdict::Ok)
            },
            check("cgroup-io", "/quiet", Verdict::Ok),
            Check {
                utilization: measure(1.0, "1"),
                saturation: measure(1.25, "{thread}"),
                errors: measure(0.0, "{throttle}/s"),
                latency: Some(Latency {
                    p50: 25e-6,
                    p99: 0.0125,
                    unit: "s",
                }),
                top: vec![Contributor {
                    who: "busy[7]".to_owned(),
                    share: 0.98,
                }],
                ..check("cpu", "cpu0", Verdict::Saturated)
            },
        ]
    }

    #[test]
    fn worst_comes_first_and_names_do_not_command_the_terminal() {
        let unread = Unread {
            denied: 3,
            ..Unread::default()
        };
        let expected = "\
verdict    resource    instance     used      waiting        errors       p99  top
saturated  cpu         cpu0      100.0 %  1.25 thread  0 throttle/s  12.50 ms  busy[7] 98 %
ok         filesystem  /a?[2J     50.0 %            -             -         -
1 more checks of cgroups show no trouble; --json has them.
Not read, of the kernel's files: 3 denied (who does the I/O, for one, is for root that may trace any process).
";
        assert_eq!(
            render(checks(), &notes(unread, None), Palette::PLAIN),
            expected
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut text = render(checks(), &[], Palette::ANSI);
        for escape in ["\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"] {
            text = text.replace(escape, "");
        }
        let plain = render(checks(), &[], Palette::PLAIN);
        assert_eq!(text, plain);
    }

    #[test]
    fn json_has_the_fields_that_programs_read() {
        let text = json(&checks()[2..], &[], true).unwrap();
        let expected = serde_json::json!({"resources": [{
            "name": "cpu",
            "instance": "cpu0",
            "utilization": {"value": 1.0, "unit": "1"},
            "saturation": {"value": 1.25, "unit": "{thread}"},
            "errors": {"value": 0.0, "unit": "{throttle}/s"},
            "latency": {"p50": 25e-6, "p99": 0.0125, "unit": "s"},
            "verdict": "saturated",
            "top": [{"who": "busy[7]", "share": 0.98}],
        }]});
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found, expected);
        assert_eq!(text.lines().count(), 1);
        let text = json(&checks()[..1], &[], true).unwrap();
        assert!(text.contains(r#""saturation":null"#));
    }
}
