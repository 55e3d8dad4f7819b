//! What commands print: into pipes that nobody reads, onto full disks, for terminals and for
//! programs. Nothing here means anything on the plain directory.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use common::{Actor, Mount, commitfs};

/// Commands that print something of a mount `m`, which holds `f.json` and one rejected content.
fn printing(m: &Mount) -> Vec<Vec<String>> {
    let dir = m.mountpoint().to_str().unwrap().to_owned();
    let document = m.path("f.json").to_str().unwrap().to_owned();
    let rejected = m.rejected();
    let id = rejected[0].id.clone();
    [
        vec!["status", &dir],
        vec!["status", "--json", &dir],
        vec!["locks", &dir],
        vec!["locks", "--json", &dir],
        vec!["rejected", "list", &dir],
        vec!["rejected", "list", "--json", &dir],
        vec!["rejected", "show", &dir, &id],
        vec!["json", "get", &document],
        vec!["json", "incr", &document, "/n"],
        vec!["--help"],
    ]
    .iter()
    .map(|line| line.iter().map(|&word| word.to_owned()).collect())
    .collect()
}

fn prepare(m: &Mount) -> Actor {
    m.save("f.json", "{\"n\": 1}");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("lost")).unwrap();
    writer.write("f", "half").unwrap();
    writer.kill(libc::SIGKILL);
    m.await_rejected("lost", b"half");
    // So that `locks` has a line to print.
    let mut holder = Actor::new();
    holder.open("f", "r+", &m.path("f.json")).unwrap();
    holder.ask("flock", &[b"f"]).unwrap();
    holder
}

fn run_into(line: &[String], stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_commitfs"));
    command.args(line).stdin(Stdio::null()).stdout(stdout);
    command.output().expect("the program runs")
}

/// A pipe that nobody reads.
fn abandoned_pipe() -> OwnedFd {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_command_whose_reader_has_left_ends_by_sigpipe_and_says_nothing() {
    need_daemon!();
    let m = mount!();
    let _holder = prepare(&m);
    for line in printing(&m) {
        let output = run_into(&line, abandoned_pipe());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "", "{line:?}");
        let by = output.status.signal();
        // Help is printed by the parser of the command line, which leaves quietly.
        assert!(
            by == Some(libc::SIGPIPE) || line == ["--help"],
            "{line:?}: {:?}",
            output.status
        );
    }
}

#[test]
fn a_command_whose_output_finds_no_space_says_so_and_fails() {
    need_daemon!();
    let m = mount!();
    let _holder = prepare(&m);
    for line in printing(&m) {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = run_into(&line, full);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{line:?}: {said}");
        if line == ["--help"] {
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{line:?}: {said}");
        assert!(said.contains("standard output"), "{line:?}: {said}");
    }
}

#[test]
fn names_cannot_steer_a_terminal_and_are_whole_for_programs() {
    need_daemon!();
    let m = mount!();
    let name = "a\u{1b}[2J\nb";
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path(name)).unwrap();
    writer.write("f", "half").unwrap();
    let dir = m.mountpoint().to_str().unwrap();
    let open = commitfs(["status", dir]);
    assert!(open.out.contains("open: a\\u{1b}[2J\\nb"), "{open:?}");
    writer.kill(libc::SIGKILL);
    m.await_rejected(name, b"half");
    for command in [&["status", dir][..], &["rejected", "list", dir]] {
        let run = commitfs(command);
        assert!(run.out.contains("a\\u{1b}[2J\\nb"), "{command:?}: {run:?}");
        assert!(!run.out.contains('\u{1b}'), "{command:?}: {run:?}");
    }
    let json = commitfs(["rejected", "list", "--json", dir]).ok();
    let all: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(all[0]["path"], name, "{all}");
}

#[test]
fn check_ends_in_a_verdict_and_says_the_same_to_programs() {
    need_daemon!();
    let mut m = mount!();
    m.save("a.json", "{\"a\": 1}");
    m.unmount();
    let backing = m.backing().to_str().unwrap().to_owned();
    let verdict = |options: &[&str]| {
        let mut line = vec!["check"];
        line.extend(options);
        line.push(&backing);
        let text = commitfs(&line);
        line.push("--json");
        let json = commitfs(&line);
        assert_eq!(text.code, json.code, "{text:?} {json:?}");
        let found: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
        let last = text.out.lines().last().unwrap_or_default().to_owned();
        (text.code, last, found)
    };
    let (code, last, found) = verdict(&["--content"]);
    assert_eq!((code, last.as_str()), (Some(0), "verdict: clean"));
    assert_eq!(found["verdict"], "clean", "{found}");
    assert_eq!(found["wrong"], serde_json::json!([]), "{found}");

    std::fs::write(m.backing().join("a.json"), "{\"a\": ").unwrap();
    let (code, last, found) = verdict(&["--content"]);
    assert_eq!(code, Some(1), "{found}");
    assert!(last.starts_with("verdict: trouble: 1 "), "{last}");
    assert_eq!(found["wrong"][0]["path"], "a.json", "{found}");

    std::fs::write(m.backing().join("a.json"), "{}").unwrap();
    m.remount();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("b")).unwrap();
    writer.write("f", "half").unwrap();
    m.kill_daemon();
    drop(writer);
    let (code, last, found) = verdict(&[]);
    assert_eq!(code, Some(0), "{found}");
    assert!(last.contains("commitfs check --recover"), "{last}");
    assert_eq!(found["verdict"], "to_recover", "{found}");
    assert_eq!(found["unfinished"][0]["path"], "b", "{found}");
    let (code, last, _) = verdict(&["--recover"]);
    assert_eq!((code, last.as_str()), (Some(0), "verdict: clean"));
}

/// What a command prints into a terminal of 80 columns.
fn in_a_terminal(line: &[&str]) -> String {
    let words: Vec<String> = line.iter().map(|w| format!("'{w}'")).collect();
    let script = format!("stty cols 80; {} {}", common::binary(), words.join(" "));
    let mut command = Command::new("script");
    command.args(["-qec", &script, "/dev/null"]);
    common::run(&mut command, std::time::Duration::from_secs(20))
        .out
        .replace("\r\n", "\n")
}

#[test]
fn a_list_of_rejected_content_fits_a_terminal_and_is_whole_in_a_pipe() {
    need_daemon!();
    if !std::path::Path::new("/usr/bin/script").exists() {
        eprintln!("SKIPPED, and it proves nothing: there is no program `script`");
        return;
    }
    let m = mount!();
    m.mkdir("d".repeat(70));
    let name = format!("{}/{}.json", "d".repeat(70), "f".repeat(70));
    Actor::new()
        .save(&m.path(&name), "{\"half\": ")
        .expect_err("half a document");
    let rejected = m.await_rejected(&name, b"{\"half\": ");
    let dir = m.mountpoint().to_str().unwrap();
    let shown = in_a_terminal(&["rejected", "list", dir]);
    assert!(shown.starts_with("ID "), "{shown}");
    assert!(shown.contains(&rejected.id), "{shown}");
    assert!(shown.lines().count() == 4, "{shown}");
    assert!(shown.lines().all(|l| l.chars().count() <= 80), "{shown}");
    let piped = commitfs(["rejected", "list", dir]).ok().out;
    assert!(
        piped.contains(&name) && piped.contains(&rejected.reason),
        "{piped}"
    );
}
