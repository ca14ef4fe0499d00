//! The real Prometheus, which scrapes a target and answers PromQL.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::place;
use crate::process::{Guard, wait_for};
use crate::program::go_part;
use crate::scrape;

const PATIENCE: Duration = Duration::from_secs(60);
const FOLDER: &str = "prometheus-0.315.0";

/// A running server. It is killed when it goes out of scope.
#[derive(Debug)]
pub struct Prometheus {
    _guard: Guard,
    port: u16,
}

impl Prometheus {
    /// Starts one that scrapes a port every second, keeps its files in `folder`, and is ready.
    ///
    /// # Errors
    /// When it cannot be built, or is not ready in time.
    pub fn start(folder: &Path, target_port: u16) -> Result<Self> {
        let port = place::free_port()?;
        let config = folder.join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: hotspan\n    \
                 static_configs: [{{targets: ['127.0.0.1:{target_port}']}}]\n"
            ),
        )?;
        let mut command = Command::new(go_part("prometheus", FOLDER, "prometheus")?);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let guard = Guard::start(&mut command)?;
        wait_for("Prometheus", PATIENCE, || {
            Ok(scrape::get(port, "/-/ready", "").ok())
        })?;
        Ok(Self {
            _guard: guard,
            port,
        })
    }

    /// The values that an expression has now, in no order; waits until there are some.
    ///
    /// # Errors
    /// When the expression is wrong, or has no value for long.
    pub fn query(&self, expression: &str) -> Result<Vec<f64>> {
        let encoded: String = expression
            .bytes()
            .map(|byte| format!("%{byte:02x}"))
            .collect();
        wait_for(&format!("a value of {expression}"), PATIENCE, || {
            let page = scrape::get(self.port, &format!("/api/v1/query?query={encoded}"), "")?;
            let answer: Value = serde_json::from_str(&page)?;
            let results = answer["data"]["result"].as_array().context("no result")?;
            let values = results.iter().map(|result| {
                let text = result["value"][1].as_str().context("no value")?;
                Ok(text.parse()?)
            });
            let values = values.collect::<Result<Vec<f64>>>()?;
            Ok((!values.is_empty()).then_some(values))
        })
    }
}

/// Lets Prometheus' own checker judge a page in its classic format. The one thing that it may find is that
/// a name ends in `_count`, which the semantic conventions want of some.
///
/// # Errors
/// With what it says, if it finds a fault.
pub fn check_page(page: &str) -> Result<()> {
    let mut promtool = Command::new(go_part("prometheus", FOLDER, "promtool")?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool
        .stdin
        .take()
        .context("no input")?
        .write_all(page.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let faults = said.lines().filter(|line| !line.is_empty());
    ensure!(
        faults
            .clone()
            .all(|line| line.contains("should not have \"_count\" suffix")),
        "{said}"
    );
    ensure!(
        output.status.success() || faults.count() > 0,
        "promtool failed without a word"
    );
    Ok(())
}
