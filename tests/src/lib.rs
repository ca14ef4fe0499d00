//! What the live tests and contract tests of hotspan share.
//!
//! A live test starts a program with known shares of CPU time in known functions ([`program`],
//! [`workload`]), records it with hotspan ([`recorder`]) and compares. What any source says about
//! stacks is turned into [`stacks::Stacks`]; the other sources are perf ([`perf`]), the formats
//! ([`formats`]), and programs that read them ([`collector`], [`browser`], [`python`]).

pub mod bpf_maps;
pub mod browser;
pub mod chains;
pub mod collector;
pub mod formats;
pub mod hostile;
pub mod node_exporter;
pub mod otlp_json;
pub mod perf;
pub mod place;
pub mod process;
pub mod profcheck;
pub mod program;
pub mod prometheus;
pub mod python;
pub mod recorder;
pub mod scrape;
pub mod shares;
pub mod stacks;
pub mod synthetic;
pub mod workload;
