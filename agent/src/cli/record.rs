//! `hotspan record`: from running processes to files and a collector.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use regex::bytes::Regex;
use tokio::process::{Child, Command};

use super::{UsageError, command, duration, output::Output, size, target::TargetArgs, tell};
use crate::{
    capture::{DEFAULT_TABLE_BYTES, Settings, TABLE_BYTES},
    export::{
        self, Format,
        otlp_profiles::Host,
        otlp_send::{self, Policy, Target as Collector},
        summary::Summary,
    },
    model::Profile,
    pipeline::{EndSignals, Ended, Plan, Recording},
    process,
    unwind::Cache,
};

/// Arguments of `hotspan record`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Samples per second on each CPU
    #[arg(
        short = 'F',
        long = "rate",
        value_name = "HZ",
        default_value_t = 99,
        allow_negative_numbers = true
    )]
    rate_hz: i64,
    /// How long to record, like 10s or 1m30s; without it until Ctrl-C or the command ends
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true)]
    duration: Option<String>,
    /// Leave kernel frames out
    #[arg(long)]
    no_kernel: bool,
    /// Memory for unwind tables, between 1M and 256M [default: 64M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    unwind_memory: Option<String>,
    /// Keep unwind tables in this directory: later recordings start with them
    #[arg(long, value_name = "DIR")]
    unwind_cache: Option<PathBuf>,
    /// Give each thread a tower of its own
    #[arg(long)]
    per_thread: bool,
    /// Keep only processes or threads whose name matches
    #[arg(long, value_name = "REGEX")]
    comm: Option<String>,
    /// Look up source lines and inlined functions (needs debugging information, takes time)
    #[arg(long)]
    inline: bool,
    /// Write this file, format by extension (repeatable); - is folded text on standard output
    #[arg(short, long = "output", value_name = "FILE")]
    outputs: Vec<String>,
    /// Write every output in this format: svg, folded, pprof, otlp, otlp-json, speedscope
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Title of the flame graph
    #[arg(long, default_value = "")]
    title: String,
    /// Send the profile to this OpenTelemetry collector: http://HOST:4317 (gRPC) or :4318 (HTTP)
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Print a summary as JSON on standard output; the command's own output goes to standard error
    #[arg(long)]
    json: bool,
    /// A command to run and sample, with its children, from its first instruction
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

/// How long a collector may take before the user is told that it did not work.
const SEND_PATIENCE: Duration = Duration::from_secs(10);

/// A file to write and how.
struct Destination {
    output: Output,
    format: &'static Format,
}

/// Runs the command.
///
/// # Errors
/// One sentence that says what is wrong and how to mend it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let duration = args.duration.as_deref().map(duration::parse).transpose()?;
    let collector = args
        .otlp
        .as_deref()
        .map(otlp_send::profiles_target)
        .transpose()
        .map_err(|error| UsageError(error.to_string()))?;
    let plan = plan(args)?;
    let mut destinations = destinations(args)?;
    crate::capture::features::why_not_record()?;
    process::share_heap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = EndSignals::listen()?;
        let mut recording = Recording::prepare(plan)?;
        recording.start()?;
        let keep_stdout = args.json || args.outputs.iter().any(|path| path == "-");
        let launch = |command: &mut Command| recording.launch(command);
        let mut child = command::start(&args.command, keep_stdout, &signals, launch)?;
        let progress = progress(duration);
        let ended = recording
            .run(duration, &mut signals, child.as_mut(), |kept| {
                progress.set_message(format!("{kept} samples"))
            })
            .await?;
        progress.finish_and_clear();
        process::write_before_signals(matches!(ended, Ended::Signal(_)));
        let profile = recording.finish()?;
        let outcome = deliver(args, &profile, &mut destinations, collector.as_ref()).await;
        let status = command_status(child, &ended).await?;
        match (outcome, status) {
            (Ok(()), None) => Ok(ExitCode::SUCCESS),
            (Ok(()), Some(status)) => Ok(command::exit_code(status)),
            // What the command says of itself matters more than that there was little to see.
            (Err(error), Some(status)) if !status.success() => {
                tell(format_args!("hotspan: {error:#}"));
                Ok(command::exit_code(status))
            }
            (Err(error), _) => Err(error),
        }
    })
}

fn plan(args: &Args) -> Result<Plan> {
    let target = args.target.target(&args.command)?;
    let name_filter = args
        .comm
        .as_deref()
        .map(Regex::new)
        .transpose()
        .map_err(|error| {
            let reason = error.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            UsageError(format!("--comm is no regular expression: {reason}"))
        })?;
    Ok(Plan {
        settings: Settings {
            target,
            rate_hz: rate(args.rate_hz)?,
            kernel_stacks: !args.no_kernel,
            slowest: None,
        },
        pids: args.target.pids.clone(),
        follow_children: args.target.children,
        name_filter,
        with_lines: args.inline,
        table_bytes: table_bytes(args.unwind_memory.as_deref())?,
        table_cache: table_cache(args.unwind_cache.as_deref())?,
    })
}

/// The highest rate: a sample of a program that has just started may take 20 µs, and more of them would leave it,
/// and us, no time.
const MAX_RATE_HZ: i64 = 20_000;

/// Checks the rate against ours and the kernel's own limit.
pub fn rate(rate_hz: i64) -> Result<u32> {
    const LIMIT: &str = "/proc/sys/kernel/perf_event_max_sample_rate";
    let limit = fs::read_to_string(LIMIT).ok();
    Ok(rate_within(
        rate_hz,
        limit.and_then(|text| text.trim().parse().ok()),
    )?)
}

fn rate_within(rate_hz: i64, kernels_limit: Option<i64>) -> Result<u32, UsageError> {
    let (most, why) = match kernels_limit {
        Some(limit) if limit < MAX_RATE_HZ => {
            let why = ", the kernel's limit (sysctl kernel.perf_event_max_sample_rate)";
            (limit, why)
        }
        _ => (MAX_RATE_HZ, ": more samples would leave programs no time"),
    };
    match u32::try_from(rate_hz) {
        Ok(rate) if rate > 0 && rate_hz <= most => Ok(rate),
        _ => Err(UsageError(format!(
            "the rate {rate_hz} is not between 1 and {most} Hz{why}"
        ))),
    }
}

/// Memory for unwind tables.
pub fn table_bytes(text: Option<&str>) -> Result<usize, UsageError> {
    let Some(text) = text else {
        return Ok(DEFAULT_TABLE_BYTES);
    };
    let bytes = usize::try_from(size::parse(text)?).unwrap_or(usize::MAX);
    if TABLE_BYTES.contains(&bytes) {
        return Ok(bytes);
    }
    let (least, most) = (TABLE_BYTES.start() >> 20, TABLE_BYTES.end() >> 20);
    Err(UsageError(format!(
        "--unwind-memory {text} is not between {least}M and {most}M"
    )))
}

fn table_cache(folder: Option<&Path>) -> Result<Option<Cache>> {
    folder
        .map(|folder| {
            Cache::open(folder)
                .with_context(|| format!("cannot keep unwind tables in {}", folder.display()))
        })
        .transpose()
}

fn destinations(args: &Args) -> Result<Vec<Destination>> {
    let forced = match &args.format {
        Some(name) => Some(export::format_of_name(name).ok_or_else(|| {
            let names: Vec<_> = export::FORMATS.iter().map(|format| format.name).collect();
            UsageError(format!(
                "there is no format {name}; use one of {}",
                names.join(", ")
            ))
        })?),
        None => None,
    };
    let default = ["hotspan.svg".to_owned()];
    // A profile that is sent somewhere, or told about in JSON, needs no file.
    let wants_default = args.outputs.is_empty() && args.otlp.is_none() && !args.json;
    let paths = if wants_default {
        &default[..]
    } else {
        &args.outputs
    };
    if args.json && paths.iter().any(|path| path == "-") {
        return Err(UsageError(
            "--json and -o - both want standard output; write one of them to a file".into(),
        )
        .into());
    }
    let mut places: Vec<_> = paths.iter().map(|path| Output::place(path)).collect();
    places.sort();
    if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(UsageError(format!(
            "two outputs go to {}; give each a name of its own",
            twice[0].display()
        ))
        .into());
    }
    let formats = paths
        .iter()
        .map(|path| forced.map_or_else(|| format_of(path), Ok))
        .collect::<Result<Vec<_>>>()?;
    paths
        .iter()
        .zip(formats)
        .map(|(path, format)| {
            Ok(Destination {
                output: Output::prepare(path)?,
                format,
            })
        })
        .collect()
}

fn format_of(path: &str) -> Result<&'static Format> {
    let name = if path == "-" { "x.folded" } else { path };
    export::format_of_path(name).ok_or_else(|| {
        let known: Vec<_> = export::FORMATS
            .iter()
            .flat_map(|format| format.extensions)
            .copied()
            .collect();
        let known = known.join(", ");
        UsageError(format!(
            "the name {path} tells no format; let it end with one of {known}, or add --format"
        ))
        .into()
    })
}

fn progress(duration: Option<Duration>) -> ProgressBar {
    let (bar, template) = match duration {
        Some(duration) => {
            let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            (
                ProgressBar::new(millis),
                "recording [{bar:30}] {elapsed}, {msg}",
            )
        }
        None => (
            ProgressBar::no_length(),
            "recording {spinner} {elapsed}, {msg}; Ctrl-C ends it",
        ),
    };
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▌ "));
    }
    bar
}

/// Writes every output that can be written, sends the profile, and tells the result. A failure of
/// one does not keep the others from being made.
async fn deliver(
    args: &Args,
    profile: &Profile,
    destinations: &mut [Destination],
    collector: Option<&Collector>,
) -> Result<()> {
    if profile.quality.kept == 0 {
        bail!("no sample was taken: {}", why_nothing(args, profile));
    }
    let options = export::Options {
        per_thread: args.per_thread,
        title: args.title.clone(),
    };
    let mut files = Vec::new();
    let mut failures = Vec::new();
    for Destination { output, format } in destinations.iter_mut() {
        match output.write(|out| (format.write)(profile, &options, out)) {
            Ok(()) => files.push(output.name()),
            Err(error) => failures.push(error),
        }
    }
    if let Some(collector) = collector
        && let Err(error) = send(collector, profile).await
    {
        failures.push(error);
        if destinations.is_empty() {
            files.push(rescue(profile, &options)?);
        }
    }
    report(args, &Summary::new(profile, 10, files))?;
    let Some(first) = failures.pop() else {
        return Ok(());
    };
    for error in failures {
        tell(format_args!("hotspan: {error:#}"));
    }
    Err(first)
}

/// Saves a profile that could not be sent and has no other place.
fn rescue(profile: &Profile, options: &export::Options) -> Result<String> {
    const NAME: &str = "hotspan.otlp";
    let format = format_of(NAME)?;
    let mut output = Output::prepare(NAME)?;
    output.write(|out| (format.write)(profile, options, out))?;
    Ok(output.name())
}

async fn send(collector: &Collector, profile: &Profile) -> Result<()> {
    let requests = export::otlp_profiles::requests(profile, &Host::this_one());
    let policy = Policy::one_shot(SEND_PATIENCE);
    let receipt = otlp_send::send(collector, &requests, &policy).await?;
    if receipt.rejected > 0 {
        bail!(
            "the collector at {} threw {} profiles away: {}",
            collector.endpoint,
            receipt.rejected,
            receipt.message.unwrap_or_default()
        );
    }
    Ok(())
}

fn report(args: &Args, summary: &Summary<'_>) -> Result<()> {
    tell(format_args!("{}", summary.to_text().trim_end()));
    for file in summary.files.iter().filter(|file| *file != "-") {
        tell(format_args!("wrote {file}"));
    }
    if args.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, summary)?;
        writeln!(out).context("cannot write standard output")?;
    }
    Ok(())
}

fn why_nothing(args: &Args, profile: &Profile) -> String {
    let quality = &profile.quality;
    if args.comm.is_some() {
        return "no process or thread with such a name ran; leave --comm out to see who did".into();
    }
    if !quality.lost.is_empty() {
        let lost: Vec<_> = quality
            .lost
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        return format!("all were lost ({}); try a lower --rate", lost.join(", "));
    }
    if !args.command.is_empty() {
        return format!(
            "the command ended after {:.1} s; if it left processes behind, record them with --pid, \
             and if it is short, use a higher --rate",
            profile.duration_ns as f64 / 1e9
        );
    }
    let used_ms = quality.expected * 1000.0 / f64::from(profile.rate_hz.max(1));
    format!(
        "the targets used {used_ms:.0} ms of CPU time in {:.1} s; record for longer, or with a higher --rate",
        profile.duration_ns as f64 / 1e9
    )
}

/// Waits for the command, if there is one; it is told of a SIGTERM that was meant for both.
async fn command_status(child: Option<Child>, ended: &Ended) -> Result<Option<ExitStatus>> {
    let Some(mut child) = child else {
        return Ok(None);
    };
    match ended {
        Ended::CommandExited(status) => return Ok(Some(*status)),
        Ended::Signal(libc::SIGTERM) => process::terminate(&child),
        Ended::Elapsed => tell(format_args!(
            "hotspan: recorded; waiting for the command to end"
        )),
        Ended::Signal(_) | Ended::TargetsGone => {}
    }
    process::restore_signals();
    Ok(Some(child.wait().await.context("lost the command")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_our_limit_and_the_kernels() {
        assert_eq!(rate_within(20_000, Some(100_000)).unwrap(), 20_000);
        assert_eq!(rate_within(99, Some(99)).unwrap(), 99);
        for (rate_hz, limit, word) in [
            (20_001, Some(100_000), "20000"),
            (20_001, None, "20000"),
            (1001, Some(1000), "perf_event_max_sample_rate"),
            (0, Some(1000), "between 1 and 1000"),
            (-5, None, "-5"),
        ] {
            let error = rate_within(rate_hz, limit).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
