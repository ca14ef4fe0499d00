//! The real OpenTelemetry Collector, which receives profiles and metrics and writes them to files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hotspan_proto::otlp::profiles_service::ExportProfilesServiceRequest;
use serde_json::Value;

use crate::otlp_json;
use crate::place;
use crate::process::{Guard, wait_for};
use crate::program::go_part;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running collector. It is killed when it goes out of scope.
#[derive(Debug)]
pub struct Collector {
    _guard: Guard,
    received: PathBuf,
    /// Where it takes gRPC.
    pub grpc_port: u16,
    /// Where it takes HTTP.
    pub http_port: u16,
}

impl Collector {
    /// Starts one that keeps its files in `folder`, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be built, or is not ready in time.
    pub fn start(folder: &Path) -> Result<Self> {
        let received = folder.join("received.jsonl");
        let config = folder.join("collector.yaml");
        let (grpc_port, http_port) = (place::free_port()?, place::free_port()?);
        fs::write(&config, configuration(&received, grpc_port, http_port))?;
        let mut command = Command::new(go_part("collector", "otelcol-0.161.0", "otelcol")?);
        command
            .arg("--config")
            .arg(&config)
            .arg("--feature-gates=service.profilesSupport")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut guard = Guard::start(&mut command)?;
        // Its own word that it is ready: a port that answers may be somebody else's.
        let lines = guard.stderr_lines();
        let mut said = Vec::new();
        loop {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                bail!("the collector did not get ready: {said:#?}");
            };
            if line.contains("Everything is ready") {
                break;
            }
            said.push(line);
        }
        Ok(Self {
            _guard: guard,
            received,
            grpc_port,
            http_port,
        })
    }

    /// Waits until `count` requests have arrived, and returns them.
    ///
    /// # Errors
    /// When they do not arrive in time or cannot be read.
    pub fn wait_for_requests(&self, count: usize) -> Result<Vec<ExportProfilesServiceRequest>> {
        let what = format!("the arrival of {count} requests");
        let text = wait_for(&what, PATIENCE, || {
            let text = fs::read_to_string(&self.received).unwrap_or_default();
            // The last line may be half written.
            Ok((text.matches('\n').count() >= count).then_some(text))
        })?;
        let lines = text.lines().map(otlp_json::parse);
        lines
            .collect::<Result<_>>()
            .context("what the collector wrote")
    }
}

impl Collector {
    /// Waits until `count` requests of metrics have arrived, and returns them as the Collector wrote
    /// them.
    ///
    /// # Errors
    /// When they do not arrive in time or cannot be read.
    pub fn wait_for_metrics(&self, count: usize) -> Result<Vec<Value>> {
        let what = format!("the arrival of {count} requests of metrics");
        let mut path = self.received.clone().into_os_string();
        path.push(".metrics");
        let text = wait_for(&what, PATIENCE, || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            Ok((text.matches('\n').count() >= count).then_some(text))
        })?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(serde_json::from_str);
        lines
            .collect::<Result<_, _>>()
            .context("what the collector wrote")
    }
}

fn configuration(received: &Path, grpc_port: u16, http_port: u16) -> String {
    let received = received.display();
    format!(
        "\
receivers:
  otlp:
    protocols:
      grpc: {{endpoint: 127.0.0.1:{grpc_port}}}
      http: {{endpoint: 127.0.0.1:{http_port}}}
exporters:
  file: {{path: {received}, flush_interval: 50ms}}
  file/metrics: {{path: {received}.metrics, flush_interval: 50ms}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines:
    profiles: {{receivers: [otlp], exporters: [file]}}
    metrics: {{receivers: [otlp], exporters: [file/metrics]}}
"
    )
}
