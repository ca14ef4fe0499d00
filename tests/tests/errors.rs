//! Every mistake and every lack is one sentence, at once, with the right exit code: 2 when hotspan
//! was called wrongly, 1 when something failed.

use std::ffi::OsString;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hotspan_tests::place;
use hotspan_tests::process::Guard;
use hotspan_tests::program::{self, Build};
use hotspan_tests::recorder::{self, Hotspan, read_folded};
use hotspan_tests::workload::Workload;

/// A mistake is told at once. On a machine that builds something else beside, that takes a while.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Runs hotspan in an empty folder, which must be empty afterwards.
fn run_in_vain(verb: &str, arguments: &str) -> Result<recorder::Finished> {
    let folder = place::folder()?;
    let run = Hotspan::verb(verb)?
        .args(arguments)
        .current_dir(folder.path())
        .patience(AT_ONCE)
        .run()?;
    let left: Vec<_> = fs::read_dir(folder.path())?
        .flatten()
        .map(|file| file.file_name())
        .collect();
    ensure!(left.is_empty(), "it left {left:?} behind");
    Ok(run)
}

fn check(verb: &str, arguments: &str, code: i32, mentions: &[&str]) -> Result<()> {
    run_in_vain(verb, arguments)?
        .check_failure(code, mentions)
        .with_context(|| format!("hotspan {verb} {arguments}"))
}

#[test]
fn wrong_words_are_usage_errors() -> Result<()> {
    for (arguments, mentions) in [
        ("-F 0 -d 50s", &["rate", "0"][..]),
        ("-F -5 -d 50s", &["rate", "-5"]),
        ("-F many -d 50s", &["many", "whole number"]),
        ("-F 20001 -d 50s", &["rate", "20000"]),
        ("-d 0", &["duration", "10s"]),
        ("-d 0s", &["duration"]),
        ("-d -3s", &["duration", "-3s"]),
        ("-d soon", &["soon", "10s"]),
        ("-d 50s -o out.png", &["out.png", ".svg"]),
        ("-d 50s -o out", &["out", ".svg"]),
        ("-d 50s -o out.svg --format png", &["png", "svg"]),
        ("-d 50s --comm (", &["--comm"]),
        ("-d 50s --otlp collector:4317", &["http://"]),
        ("-d 50s --otlp ftp://localhost", &["http://"]),
        ("-d 50s -p x", &["x"]),
        ("-d 50s --no-such-option", &["--no-such-option"]),
        ("-p 1 -- true", &["command", "pid"]),
        ("-a -p 1", &["--all"]),
    ] {
        check("record", arguments, 2, mentions)?;
    }
    Ok(())
}

#[test]
fn what_is_not_there_is_named() -> Result<()> {
    // The highest pid there can be is 2^22.
    for (arguments, mentions) in [
        ("-p 4194999 -d 50s", &["4194999", "process"][..]),
        ("-- /no/such/program", &["/no/such/program", "program"]),
        ("-- /etc/passwd", &["/etc/passwd"]),
        (
            "--cgroup /no/such/cgroup -d 50s",
            &["/no/such/cgroup", "cgroup"],
        ),
        ("--cgroup /tmp -d 50s", &["/tmp", "cgroup"]),
        ("-d 50s -o /no/such/folder/out.svg", &["/no/such/folder"]),
        ("-d 50s -o /proc/out.svg", &["/proc/out.svg"]),
    ] {
        check("record", arguments, 1, mentions)?;
    }
    Ok(())
}

#[test]
fn output_that_cannot_be_written_is_found_before_the_command_runs() -> Result<()> {
    let folder = place::folder()?;
    let trace = folder.path().join("trace");
    let run = Hotspan::record()?
        .args("-o /no/such/folder/out.svg -- touch")
        .arg(&trace)
        .patience(AT_ONCE)
        .run()?;
    run.check_failure(1, &["/no/such/folder"])?;
    ensure!(!trace.exists(), "the command ran");
    Ok(())
}

#[test]
fn nothing_captured_is_told_with_its_reason() -> Result<()> {
    let sleeper = Guard::start(Command::new("sleep").arg("60").stdout(Stdio::null()))?;
    check(
        "record",
        &format!("-p {} -d 500ms", sleeper.pid()),
        1,
        &["no sample", "CPU"],
    )?;
    check(
        "record",
        "-a --comm ^no-such-name$ -d 500ms",
        1,
        &["no sample", "--comm"],
    )
}

#[test]
fn collector_that_is_not_there_does_not_cost_the_files() -> Result<()> {
    let folder = place::folder()?;
    let file = folder.path().join("out.folded");
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    let port = place::free_port()?;
    for scheme in ["http", "grpc"] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let run = Hotspan::record()?
            .args(&format!("-p {} -d 500ms --otlp {url}", workload.pid()))
            .output(&file)
            .patience(Duration::from_secs(30))
            .run()?;
        ensure!(
            run.code == Some(1),
            "exit code {:?}: {}",
            run.code,
            run.stderr
        );
        let said = run
            .stderr
            .lines()
            .filter(|line| line.starts_with("hotspan: "));
        let said: Vec<_> = said.collect();
        ensure!(
            said.len() == 1 && said[0].contains(&port.to_string()),
            "{said:?}"
        );
        ensure!(read_folded(&file)?.with("heavy") > 0, "the file is empty");
        fs::remove_file(&file)?;
    }
    Ok(())
}

#[test]
fn files_that_are_no_profiles_are_refused() -> Result<()> {
    let folder = place::folder()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(at("good.folded"), "a;b 1\n")?;
    fs::write(at("text"), "This is no profile.\n")?;
    fs::write(at("binary"), [0_u8, 159, 146, 150, 31, 139, 8, 0])?;
    fs::write(
        at("packed.pb.gz"),
        [31_u8, 139, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3],
    )?;
    fs::write(at("empty"), "")?;
    let [good, out] = ["good.folded", "out.svg"].map(at);
    for bad in ["text", "binary", "packed.pb.gz", "empty", "not-there"] {
        let path = at(bad);
        for arguments in [
            ("flamegraph", format!("{path} -o {out}")),
            ("diff", format!("{path} {good} -o {out}")),
            ("diff", format!("{good} {path} -o {out}")),
        ] {
            check(arguments.0, &arguments.1, 1, &[bad])?;
            ensure!(!fs::exists(&out)?, "{arguments:?} wrote a picture");
        }
    }
    Ok(())
}

/// Runs `record` under a program that takes something away. The binary is where everybody can run
/// it.
fn check_under(prefix: &[&str], mentions: &[&str]) -> Result<()> {
    recorder::check_host()?;
    let folder = place::folder()?;
    let copy = folder.path().join("hotspan");
    fs::copy(recorder::binary()?, &copy)?;
    let words = prefix.iter().map(OsString::from);
    let words: Vec<_> = words.chain([copy.into(), "record".into()]).collect();
    let output = folder.path().join("no.svg");
    // Where nobody may write, the first thing that is missing would be the folder's permission.
    fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )?;
    let run = Hotspan::of_words(&words)
        .args("-a -d 50s")
        .output(&output)
        .patience(AT_ONCE)
        .run()?;
    ensure!(!output.exists(), "it wrote a file");
    run.check_failure(1, mentions)
        .with_context(|| format!("{prefix:?}"))
}

#[test]
fn without_root_it_says_how_to_get_the_rights() -> Result<()> {
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    check_under(&nobody, &["sudo"])
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let lacking = [
        "setpriv",
        "--bounding-set=-bpf,-sys_admin",
        "--inh-caps=-bpf,-sys_admin",
    ];
    check_under(&lacking, &["cap_bpf"])?;
    let lacking = [
        "setpriv",
        "--bounding-set=-perfmon,-sys_admin",
        "--inh-caps=-perfmon,-sys_admin",
    ];
    check_under(&lacking, &["cap_perfmon"])
}

#[test]
fn without_btf_it_says_which_kernel_is_needed() -> Result<()> {
    let hide = "mount -t tmpfs hotspan-test /sys/kernel/btf && exec \"$0\" \"$@\"";
    check_under(
        &["unshare", "--mount", "sh", "-c", hide],
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    )
}

#[test]
fn a_closed_standard_output_is_no_disaster() -> Result<()> {
    let workload = Workload::start(&program::c("shares", Build::FramePointers)?)?;
    let script = "\"$0\" record -p \"$1\" -d 500ms -o - 2>\"$2\" | true; cat \"$2\"";
    let folder = place::folder()?;
    let run = Hotspan::of_words(&["sh", "-c", script].map(OsString::from))
        .arg(recorder::binary()?)
        .arg(workload.pid().to_string())
        .arg(folder.path().join("stderr"))
        .run()?;
    ensure!(
        run.stdout.contains("expected"),
        "no summary: {}",
        run.stdout
    );
    ensure!(!run.stdout.contains("panicked"), "{}", run.stdout);
    Ok(())
}
