//! What one collection of all resource metrics takes, on a host with many processes: scrapes of the agent
//! and of Prometheus' node exporter, in turns.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::bench::{Bench, Load};
use super::crowd::Crowd;
use super::proc_files::cpu_time;
use super::report::{Bound, Row, Unit, Values};

const PROCESSES: usize = 500;
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures both in turns.
pub fn measure(bench: &Bench) -> Result<Vec<Row>> {
    let _crowd = Crowd::gather(PROCESSES)?;
    let (port, their_port) = (free_port()?, free_port()?);
    let mut agent = Command::new(&bench.hotspan);
    let address = format!("127.0.0.1:{port}");
    agent.args(["agent", "--syscalls", "false", "--prometheus", &address]);
    let agent = start(bench, &mut agent, port)?;
    let mut exporter = Command::new("prometheus-node-exporter");
    exporter.arg(format!("--web.listen-address=127.0.0.1:{their_port}"));
    let exporter = start(bench, &mut exporter, their_port)?;
    let scrapes = if bench.quick { 3 } else { 30 };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scrapes {
        ours.push(cost_us(&agent, port)?);
        theirs.push(cost_us(&exporter, their_port)?);
    }
    let [ours, theirs] = [ours, theirs].map(|us| Values::new(Unit::Microseconds, us));
    Ok(vec![
        Row::no_more_than(
            format!("CPU for a collection of all resource metrics, {PROCESSES} processes"),
            Values::new(Unit::Microseconds, [ours.median()]),
            "node exporter",
            &Values::new(Unit::Microseconds, [theirs.median()]),
        ),
        Row::promise("– and in itself", ours, Bound::AtMost(10_000.0)),
        Row::fact("– the node exporter's", theirs),
    ])
}

/// CPU time of one scrape.
fn cost_us(server: &Load, port: u16) -> Result<f64> {
    let before = cpu_time(server.pid())?;
    let page = get(port)?;
    ensure!(page.contains("cpu_"), "a page without CPUs");
    sleep(Duration::from_millis(100));
    Ok((cpu_time(server.pid())? - before).as_secs_f64() * 1e6)
}

/// Starts a server and waits until it answers.
pub fn start(bench: &Bench, command: &mut Command, port: u16) -> Result<Load> {
    let server = bench.serve(command)?;
    let since = Instant::now();
    while get(port).is_err() {
        if since.elapsed() > PATIENCE {
            bail!("{} does not answer", command.get_program().display());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// Fetches its page.
pub fn get(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("no page")?;
    Ok(page)
}

/// A port that was free just now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
