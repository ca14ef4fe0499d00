//! Prometheus' node exporter, which reads the same kernel files as `hotspan use`.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::place;
use crate::process::{Guard, wait_for};
use crate::scrape;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running node exporter with its default collectors.
#[derive(Debug)]
pub struct NodeExporter {
    _guard: Guard,
    port: u16,
}

impl NodeExporter {
    /// Starts Debian's, on a port of the loopback interface.
    ///
    /// # Errors
    /// When it is not installed or does not answer.
    pub fn start() -> Result<Self> {
        let port = place::free_port()?;
        let guard = Guard::start(
            Command::new("prometheus-node-exporter")
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        wait_for("the port of the node exporter", PATIENCE, || {
            Ok(TcpStream::connect(("127.0.0.1", port)).ok())
        })?;
        Ok(Self {
            _guard: guard,
            port,
        })
    }

    /// All samples of its page, by name and labels as they stand there.
    ///
    /// # Errors
    /// When it does not answer with such a page.
    pub fn scrape(&self) -> Result<BTreeMap<String, f64>> {
        scrape::samples(&scrape::get(self.port, "/metrics", "")?)
    }
}
