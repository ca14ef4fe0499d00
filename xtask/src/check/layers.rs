//! The architecture of `agent/src`, as tables, and the check that holds the code to them.
//!
//! Changing a table is a design decision: say why in the commit.

mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;
use source::Source;

/// Each module of the agent, in the order data flows, and the modules it may use of the others.
/// Tests are held to this table too, but not to those below: they may run a server of their own.
#[rustfmt::skip]
const LAYERS: &[(&str, &[&str])] = &[
    ("model",     &[]),
    ("config",    &["model"]),
    ("telemetry", &["model"]),
    ("audit",     &["model"]),
    ("capture",   &["model"]),
    ("decode",    &["model"]),
    ("process",   &["model", "capture", "decode"]),
    ("unwind",    &["model", "process"]),
    ("context",   &["model", "decode", "process"]),
    ("protocol",  &["model", "decode"]),
    // Names come late, once for each distinct frame, so this stage reads what was aggregated.
    ("symbolize", &["model", "decode", "process", "aggregate"]),
    // A container is told by the same rules wherever its name comes from.
    ("resource",  &["model", "decode", "process"]),
    ("aggregate", &["model"]),
    ("export",    &["model"]),
    ("pipeline",  &["model", "config", "telemetry", "audit", "capture", "decode", "process", "unwind", "context",
                    "protocol", "symbolize", "resource", "aggregate", "export"]),
    ("cli",       &["model", "config", "telemetry", "audit", "capture", "decode", "process", "unwind", "symbolize", "resource",
                    "aggregate", "export", "pipeline"]),
];

/// Crates that have one home, so that replacing one is a change of that home alone.
#[rustfmt::skip]
const HOMES: &[(&str, &[&str])] = &[
    ("aya",                 &["capture"]),
    ("aya_log",             &["capture"]),
    ("aya_obj",             &["capture"]),
    ("blazesym",            &["symbolize"]),
    ("clap",                &["cli"]),
    ("flate2",              &["process", "unwind", "export"]),
    ("hotspan_abi",         &["model", "capture", "decode", "unwind", "symbolize", "aggregate", "pipeline"]),
    ("hotspan_ebpf",        &["capture", "unwind"]),
    ("hotspan_proto",       &["export"]),
    ("hyper",               &["export"]),
    ("hyper_rustls",        &["export"]),
    ("hyper_util",          &["export"]),
    ("indicatif",           &["cli"]),
    ("inferno",             &["export"]),
    ("prost",               &["export"]),
    ("syscall_numbers",     &["decode"]),
    ("tonic",               &["export"]),
    ("tracing_subscriber",  &["telemetry", "cli"]),
    ("xz2",                 &["symbolize"]),
    ("zstd",                &["process"]),
];

/// What starts something that runs beside us, or connects such things.
const CONCURRENCY: &[&str] = &[
    "broadcast::",
    "mpsc::",
    "oneshot::",
    "watch::",
    "select!",
    "join!",
    "JoinSet",
    "LocalSet",
    "spawn_blocking",
    "spawn_local",
    "task::spawn",
    "tokio::spawn",
    "thread::Builder",
    "thread::scope",
    "thread::spawn",
];

/// The modules that may use [`CONCURRENCY`]; the others are plain structs with `push` and `take`.
const CONCURRENT: &[&str] = &["pipeline", "cli"];

/// Checks every file of the agent.
pub fn check() -> Result<String> {
    let folder = workspace::root().join("agent/src");
    let mut files = Vec::new();
    find_sources(&folder, &mut files)?;
    let mut complaints = Vec::new();
    for file in &files {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = file.strip_prefix(&folder).unwrap_or(file);
        complaints.extend(complaints_about(path, &text));
    }
    if !complaints.is_empty() {
        bail!(
            "{}\nThe tables are in xtask/src/check/layers.rs.",
            complaints.join("\n")
        );
    }
    Ok(format!("{} files", files.len()))
}

fn find_sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Every breach in one file; `path` is relative to `agent/src`.
fn complaints_about(path: &Path, text: &str) -> Vec<String> {
    let source = Source::new(path, text);
    // The two roots only name the modules and call the command line.
    let Some(layer) = source.layer() else {
        return Vec::new();
    };
    let at = |line: usize| format!("agent/src/{}:{line}:", path.display());
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{} {layer} is no layer", at(1))];
    };
    let mut complaints = Vec::new();
    for (line, used) in source.crate_modules() {
        if used != layer && !allowed.contains(&used) {
            complaints.push(format!("{} {layer} may not use crate::{used}", at(line)));
        }
    }
    for (name, homes) in HOMES.iter().filter(|(_, homes)| !homes.contains(&layer)) {
        for line in source.uses_of_crate(name) {
            let homes = homes.join(", ");
            complaints.push(format!("{} {name} may be used in {homes} alone", at(line)));
        }
    }
    for pattern in CONCURRENCY.iter().filter(|_| !CONCURRENT.contains(&layer)) {
        for line in source.occurrences(pattern) {
            let homes = CONCURRENT.join(", ");
            complaints.push(format!(
                "{} {pattern} may be used in {homes} alone",
                at(line)
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        assert_eq!(complaints_about(Path::new(path), text), expected, "{text}");
    }

    #[test]
    fn every_layer_in_a_table_exists() {
        let layers: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
        let used = LAYERS.iter().chain(HOMES).flat_map(|(_, layers)| *layers);
        for layer in used.chain(CONCURRENT) {
            assert!(layers.contains(layer), "{layer}");
        }
    }

    #[test]
    fn a_layer_may_use_what_its_row_names_and_itself() {
        check(
            "export/folded.rs",
            "use crate::model::Profile;\nuse crate::export::Options;",
            &[],
        );
        check(
            "pipeline.rs",
            "use crate::{capture, decode::{self, Event}};",
            &[],
        );
    }

    #[test]
    fn a_layer_may_not_use_another() {
        check(
            "export/folded.rs",
            "\nuse crate::capture::Ring;",
            &["agent/src/export/folded.rs:2: export may not use crate::capture"],
        );
        check(
            "model/profile.rs",
            "fn f() { crate::export::g() }",
            &["agent/src/model/profile.rs:1: model may not use crate::export"],
        );
        check(
            "model.rs",
            "use crate::{\n    model,\n    cli::{a, b},\n};",
            &["agent/src/model.rs:3: model may not use crate::cli"],
        );
    }

    #[test]
    fn going_up_to_the_root_is_the_same_as_naming_it() {
        check(
            "model/profile.rs",
            "use super::super::cli::X;",
            &["agent/src/model/profile.rs:1: model may not use crate::cli"],
        );
        check(
            "model/mod.rs",
            "mod tests { use super::*; use super::address::A; }",
            &[],
        );
        check(
            "model/mod.rs",
            "mod tests { use super::super::{cli, model}; }",
            &["agent/src/model/mod.rs:1: model may not use crate::cli"],
        );
    }

    #[test]
    fn a_crate_is_used_in_its_home_alone() {
        check("capture/load.rs", "use aya::Ebpf;", &[]);
        for text in [
            "use aya::Ebpf;",
            "fn f(_: &aya::Ebpf) {}",
            "use aya;",
            "use ::aya::Ebpf;",
        ] {
            let expected = "agent/src/decode/mod.rs:1: aya may be used in capture alone";
            check("decode/mod.rs", text, &[expected]);
        }
        check("decode/mod.rs", "fn f(x: X) { x.aya(); y::aya::z(); }", &[]);
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "//! [`crate::cli`] aya::Ebpf\n/* /* crate::cli */ tokio::spawn */\n\
                    const A: &str = \"crate::cli \\\" aya::Ebpf\";\n\
                    const B: &str = r#\"crate::cli \" \"#; const C: char = '\"'; fn f<'a>() {}";
        check("model.rs", text, &[]);
    }

    #[test]
    fn tasks_and_channels_live_in_the_pipeline() {
        check("pipeline.rs", "tokio::spawn(async {});", &[]);
        check(
            "export/otlp_send.rs",
            "\n\ntokio::spawn(async {});",
            &["agent/src/export/otlp_send.rs:3: tokio::spawn may be used in pipeline, cli alone"],
        );
        check("process/run.rs", "Command::new(x).spawn()", &[]);
    }

    #[test]
    fn tests_may_run_a_server_of_their_own() {
        let text = "mod tests { use aya::Ebpf; fn f() { thread::spawn(g) } }";
        check("export/otlp_send.rs", text, &[]);
        check("export/otlp_send/tests.rs", "use aya::Ebpf;", &[]);
    }

    #[test]
    fn an_unknown_module_is_no_layer() {
        check("util.rs", "", &["agent/src/util.rs:1: util is no layer"]);
        check("main.rs", "fn main() { hotspan::cli::main() }", &[]);
    }
}
