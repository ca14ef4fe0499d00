//! `hotspan agent`: runs until it is told to end, and sends what it sees.

use std::fs::File as FsFile;
use std::io::{self, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::{UsageError, duration, record};
use crate::aggregate::DEFAULT_BUDGET;
use crate::capture::{Settings, features};
use crate::config::{File, MAX_FILE_BYTES};
use crate::export::otlp_profiles::Host;
use crate::export::otlp_send::{self, MetricsRequest, ProfilesRequest, Target};
use crate::model::Resource;
use crate::pipeline::{Plan as RecordingPlan, agent};
use crate::{process, telemetry};

/// Arguments of `hotspan agent`. Each but --config can be in the file too; the command line stands above it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Read settings from this YAML file: the long options are its keys, with _ for -
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Send profiles and metrics to this OpenTelemetry collector: http://HOST:4317 (gRPC) or :4318 (HTTP)
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Serve metrics to Prometheus at HOST:PORT/metrics
    #[arg(long, value_name = "HOST:PORT")]
    prometheus: Option<String>,
    /// Samples per second on each CPU [default: 19]
    #[arg(short = 'F', long, value_name = "HZ", allow_negative_numbers = true)]
    rate: Option<i64>,
    /// Length of a window of profiles [default: 10s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    window: Option<String>,
    /// How often metrics are sent [default: 10s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    metrics_interval: Option<String>,
    /// Whether to take profiles [default: true]
    #[arg(long, value_name = "BOOL")]
    profiles: Option<bool>,
    /// Whether to count system calls, which adds to each of them [default: true]
    #[arg(long, value_name = "BOOL")]
    syscalls: Option<bool>,
    /// Whether to count waits for CPUs and disks, retransmits and the like in the kernel, which adds to each
    /// switch of threads [default: true]
    #[arg(long, value_name = "BOOL")]
    events: Option<bool>,
    /// Series of each metric; what is more goes into one with otel.metric.overflow=true [default: 2000]
    #[arg(long, value_name = "N")]
    series_budget: Option<usize>,
    /// Memory for unwind tables, between 1M and 256M [default: 64M]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    unwind_memory: Option<String>,
}

/// Runs the agent.
///
/// # Errors
/// One sentence that says what is wrong and how to mend it.
pub fn run(args: &Args, verbose: u8) -> Result<ExitCode> {
    let host = Host::this_one();
    let level = match verbose {
        0 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    let plan = plan(args, &host)?;
    features::why_not_record()?;
    telemetry::start(level, &plan.resource.service_instance);
    process::share_heap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(agent::run(plan))?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &Args, host: &Host) -> Result<agent::Plan> {
    let file = args
        .config
        .as_deref()
        .map(read_file)
        .transpose()?
        .unwrap_or_default();
    let lookup = |name: &str| std::env::var(name).ok();
    let url = args.otlp.as_deref().or(file.otlp.as_deref());
    let wrong = |error: otlp_send::BadTarget| UsageError(error.to_string());
    let metrics_to = Target::find::<MetricsRequest>(url, lookup).map_err(wrong)?;
    let takes_profiles = args.profiles.or(file.profiles).unwrap_or(true);
    let profiles_to = match takes_profiles {
        true => Target::find::<ProfilesRequest>(url, lookup).map_err(wrong)?,
        false => None,
    };
    let address = args.prometheus.as_deref().or(file.prometheus.as_deref());
    if metrics_to.is_none() && profiles_to.is_none() && address.is_none() {
        return Err(UsageError(
            "there is nowhere to send to; give --otlp URL, OTEL_EXPORTER_OTLP_ENDPOINT, or --prometheus HOST:PORT".into(),
        )
        .into());
    }
    let time = |own: &Option<String>, file: &Option<String>| {
        let text = own.as_deref().or(file.as_deref()).unwrap_or("10s");
        match duration::parse(text)? {
            time if time < Duration::from_secs(1) => Err(UsageError(format!(
                "{text} is too short for a window; make it 1s or more"
            ))),
            time => Ok(time),
        }
    };
    let memory = args
        .unwind_memory
        .as_deref()
        .or(file.unwind_memory.as_deref());
    let recording = RecordingPlan {
        settings: Settings {
            rate_hz: record::rate(args.rate.or(file.rate).unwrap_or(19))?,
            ..Settings::default()
        },
        pids: Vec::new(),
        follow_children: false,
        name_filter: None,
        with_lines: false,
        table_bytes: record::table_bytes(memory)?,
        table_cache: None,
    };
    let series_budget = args.series_budget.or(file.series_budget);
    let series_budget = series_budget.unwrap_or(DEFAULT_BUDGET);
    if series_budget == 0 {
        let why = "a series budget of 0 leaves no series to tell; give 1 or more";
        return Err(UsageError(why.to_owned()).into());
    }
    // Profiles that nobody gets are not taken.
    let recording = profiles_to.is_some().then_some(recording);
    Ok(agent::Plan {
        recording,
        window: time(&args.window, &file.window)?,
        counts_syscalls: args.syscalls.or(file.syscalls).unwrap_or(true),
        counts_events: args.events.or(file.events).unwrap_or(true),
        profiles_to,
        metrics_to,
        metrics_every: time(&args.metrics_interval, &file.metrics_interval)?,
        wants_deltas: otlp_send::delta_is_preferred(lookup).map_err(wrong)?,
        scraped_at: address.map(listen).transpose()?,
        series_budget,
        resource: resource(host),
    })
}

fn read_file(path: &Path) -> Result<File> {
    let read = || -> Result<String> {
        let mut text = String::new();
        let mut file = FsFile::open(path)?.take(MAX_FILE_BYTES + 1);
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(UsageError(format!("{} is too long for settings", path.display())).into());
    }
    File::parse(&text).map_err(|error| UsageError(format!("{}: {error}", path.display())).into())
}

fn listen(address: &str) -> Result<TcpListener> {
    const FIX: &str = "give a free HOST:PORT, like 127.0.0.1:9464";
    TcpListener::bind(address).map_err(|error| {
        let text = format!("cannot serve metrics at {address}: {error}; {FIX}");
        match error.kind() {
            io::ErrorKind::InvalidInput => UsageError(text).into(),
            _ => anyhow!(text),
        }
    })
}

/// The agent is a service of its own, one on each host.
fn resource(host: &Host) -> Resource {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let instance = match id.trim() {
        "" => &host.name,
        id => id,
    };
    Resource {
        service_name: "hotspan".into(),
        service_instance: instance.into(),
        attributes: Vec::new(),
    }
}
