//! Programs that know nothing of hotspan read what it writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hotspan_tests::browser::{self, Found};
use hotspan_tests::place;
use hotspan_tests::process;
use hotspan_tests::program::{self, Build};
use hotspan_tests::python;
use hotspan_tests::recorder::{Hotspan, read_folded};
use hotspan_tests::stacks::Stacks;
use hotspan_tests::workload::Workload;
use serde_json::{Value, json};

/// Records `shares` into `folder`: `out.folded`, `out.pb.gz`, `out.otlp` and `out.svg`.
fn record(folder: &Path, options: &str) -> Result<Stacks> {
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    let mut hotspan = Hotspan::record()?.args(&format!("-p {} -d 2s {options}", workload.pid()));
    for name in ["out.folded", "out.pb.gz", "out.otlp", "out.svg"] {
        hotspan = hotspan.output(folder.join(name));
    }
    hotspan.run()?.succeeded()?;
    read_folded(&folder.join("out.folded"))
}

fn go_pprof(file: &Path, options: &[&str]) -> Result<String> {
    process::output(
        Command::new("go")
            .args(["tool", "pprof"])
            .args(options)
            .arg(file),
    )
}

/// What `-top` says about a function and what it calls: the fourth column.
fn cumulative(top: &str, function: &str) -> Result<f64> {
    let lines = top
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut lines = lines.filter(|words| words.len() == 6 && words[5] == function);
    let words = lines
        .next()
        .with_context(|| format!("no {function}: {top}"))?;
    Ok(words[3].trim_end_matches("ms").parse()?)
}

#[test]
fn go_tool_pprof_shows_functions_callers_and_lines() -> Result<()> {
    let folder = place::folder()?;
    let stacks = record(folder.path(), "--inline")?;
    let file = folder.path().join("out.pb.gz");
    let counts = go_pprof(&file, &["-top", "-sample_index=samples"])?;
    let times = go_pprof(&file, &["-top", "-unit=ms"])?;
    for function in ["heavy", "light", "heavy_caller", "run"] {
        let samples = stacks.with(function) as f64;
        let found = cumulative(&counts, function)?;
        ensure!(
            (found - samples).abs() < 0.5,
            "{samples} samples of {function}: {counts}"
        );
        let found_ms = cumulative(&times, function)?;
        let expected_ms = samples * 1000.0 / 99.0;
        ensure!(
            (found_ms - expected_ms).abs() < 1.0,
            "{expected_ms} ms of {function}: {times}"
        );
    }
    let peek = go_pprof(&file, &["-peek", "^heavy$"])?;
    ensure!(
        peek.contains("|   heavy_caller"),
        "heavy_caller is no caller: {peek}"
    );
    ensure!(!peek.contains("light"), "{peek}");
    let lines = go_pprof(&file, &["-top", "-lines"])?;
    let source = program::script("c/shares.c");
    let source = std::fs::read_to_string(source)?;
    let call = source
        .lines()
        .position(|line| line.trim() == "heavy_caller(rounds_of_ms(70));");
    let call = format!(
        "shares.c:{}",
        call.context("the call is not in the source")? + 1
    );
    let is_of_run = |line: &str| line.contains(" run ") && line.ends_with(&call);
    ensure!(
        lines.lines().any(is_of_run),
        "no line of run with {call}: {lines}"
    );
    Ok(())
}

#[test]
fn chromium_shows_the_graph_and_finds_a_function() -> Result<()> {
    let folder = place::folder()?;
    let stacks = record(folder.path(), "")?;
    let picture = folder.path().join("out.svg");
    for (function, term) in [("heavy", "heavy"), ("light_caller", "light_caller")] {
        let Found {
            matched,
            marked,
            rectangles,
        } = browser::search(&picture, term)?;
        let percent = 100.0 * stacks.share(function)?;
        ensure!(
            matched == format!("Matched: {percent:.1}%"),
            "{matched} of {percent} % {function}"
        );
        ensure!(
            marked > 0 && marked < rectangles,
            "{marked} of {rectangles} rectangles are marked"
        );
    }
    let Found {
        matched,
        marked,
        rectangles,
    } = browser::search(&picture, "no_such_function")?;
    ensure!(
        marked == 0 && rectangles > 5,
        "{matched}: {marked} of {rectangles} are marked"
    );
    let percent = 100.0 * stacks.share("light")?;
    let matched = browser::open_at_search(&picture, "light")?;
    ensure!(
        matched == format!("Matched: {percent:.1}%"),
        "{matched} of {percent} % light"
    );
    Ok(())
}

#[test]
fn python_reads_pprof_and_otlp() -> Result<()> {
    let folder = place::folder()?;
    let stacks = record(folder.path(), "")?;
    let stacks: BTreeMap<_, _> = stacks
        .without_marks()
        .0
        .into_iter()
        .map(|(s, n)| (s.join(";"), n))
        .collect();
    let pprof = python::read(&folder.path().join("out.pb.gz"))?;
    ensure!(pprof["stacks"] == json!(stacks), "{pprof:#}\n{stacks:#?}");
    ensure!(
        pprof["types"] == json!(["samples/count", "cpu/nanoseconds"]),
        "{pprof:#}"
    );
    let labels = pprof["labels"].as_array().context("no labels")?;
    for label in ["pid", "tid", "comm"] {
        ensure!(labels.contains(&json!(label)), "{labels:?}");
    }
    let samples: u64 = stacks.values().sum();
    let used_ms = samples as f64 * 1000.0 / 99.0;
    let found_ms = pprof["nanoseconds"].as_f64().unwrap_or_default() / 1e6;
    ensure!(
        (used_ms - found_ms).abs() < 1.0,
        "{found_ms} ms, not {used_ms}"
    );
    let otlp = python::read(&folder.path().join("out.otlp"))?;
    ensure!(otlp["stacks"] == json!(stacks), "{otlp:#}\n{stacks:#?}");
    let id = |profile: &Value| {
        let ids = profile["build_ids"].as_object()?;
        let found = ids.iter().find(|(path, _)| path.ends_with("shares"))?;
        found.1.as_str().map(str::to_owned)
    };
    ensure!(id(&pprof).is_some_and(|id| id.len() == 40), "{pprof:#}");
    ensure!(id(&pprof) == id(&otlp), "{pprof:#}\n{otlp:#}");
    Ok(())
}
