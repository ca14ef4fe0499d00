//! `hotspan doctor` as scripts and ordinary users meet it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::Value;

const NOBODY: u32 = 65_534;

fn output(command: &mut Command) -> Output {
    command.output().expect("hotspan starts")
}

fn checks(output: &Output) -> (bool, Vec<Value>) {
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let checks = report["checks"].as_array().expect("a list").clone();
    (report["can_record"].as_bool().expect("a bool"), checks)
}

#[test]
fn exit_code_verdict_and_checks_agree() {
    let output = output(Command::new(env!("CARGO_BIN_EXE_hotspan")).args(["doctor", "--json"]));
    let (can_record, checks) = checks(&output);
    let has_failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(can_record, !has_failed);
    assert_eq!(output.status.code(), Some(i32::from(has_failed)));
    assert!(output.stderr.is_empty());
    for check in &checks {
        let is_ok = check["status"] == "ok";
        assert_eq!(check["costs"].is_null(), is_ok, "{check}");
        assert_eq!(check["fix"].is_null(), is_ok, "{check}");
    }
}

#[test]
fn an_ordinary_user_reads_what_is_missing() {
    // In a directory that nobody may enter, because the build's may be closed to others. `cp` and
    // not `fs::copy`: a child that another test starts meanwhile would inherit the handle that
    // writes the binary, and a binary that is being written cannot be run.
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("opened");
    let binary = directory.path().join("hotspan");
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_hotspan")).arg(&binary);
    assert!(copy.status().expect("cp starts").success());

    let mut command = Command::new(&binary);
    command.args(["doctor", "--json"]).current_dir("/");
    if fs::metadata("/proc/self").expect("/proc").uid() == 0 {
        command.gid(NOBODY).uid(NOBODY);
    }
    let output = output(&mut command);
    assert_eq!(output.status.code(), Some(1));
    let (can_record, checks) = checks(&output);
    assert!(!can_record);
    for id in ["cap_bpf", "cap_perfmon", "program_perf_event"] {
        let check = checks.iter().find(|check| check["id"] == id);
        let check = check.expect("there");
        assert_eq!(check["status"], "fail");
        assert!(check["fix"].as_str().expect("a fix").contains("root"));
    }
}

#[test]
fn text_in_a_pipe_has_no_colours() {
    let output = output(Command::new(env!("CARGO_BIN_EXE_hotspan")).arg("doctor"));
    assert!(output.stdout.starts_with(b"kernel\n"));
    assert!(!output.stdout.contains(&0x1b));
}

#[test]
fn capacity_of_the_unwinder_is_told() {
    let output = output(Command::new(env!("CARGO_BIN_EXE_hotspan")).args(["doctor", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let unwinder = &report["unwinder"];
    assert_eq!(unwinder["architecture"], std::env::consts::ARCH);
    let number = |name: &str| unwinder[name].as_u64().expect("a number");
    assert!(number("user_frames") >= 512 && number("kernel_frames") >= 127);
    assert_eq!(number("table_bytes"), 64 << 20);
    assert!(number("table_bytes_max") >= number("table_bytes"));
    assert!(number("processes") >= 10_000 && number("mappings_per_process") >= 1000);
    assert!(number("wide_rules") > 0);
    let (_, checks) = checks(&output);
    let ids = [
        "unwind_tables",
        "unwind_architecture",
        "unwind_frames",
        "unwind_memory",
        "unwind_processes",
        "unwind_mappings",
        "unwind_wide_rules",
    ];
    for id in ids {
        let check = checks.iter().find(|check| check["id"] == id);
        assert!(check.is_some_and(|check| check["value"] != ""), "{id}");
    }
}
