//! `commitfs status --openmetrics`: counts that are true, in a form that is accepted.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Actor, Mount, assert_errno, cannot_run, commitfs, eventually};

/// What is printed, read as strictly as it is written.
struct Metrics {
    text: String,
    /// Families by name, with their kinds.
    kinds: BTreeMap<String, String>,
    /// Values by name and labels without the mount's.
    values: BTreeMap<String, f64>,
}

impl Metrics {
    fn of(m: &Mount, option: &str) -> Metrics {
        let directory = m.mountpoint().to_str().unwrap();
        let text = commitfs(["status", option, directory]).ok().out;
        let mut metrics = Metrics {
            text: text.clone(),
            kinds: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        let mut helped = BTreeSet::new();
        let (body, end) = text.split_at(text.len() - "# EOF\n".len());
        assert_eq!(end, "# EOF\n");
        for line in body.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, _) = help.split_once(' ').expect("a text");
                assert!(helped.insert(name.to_owned()), "twice: {line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                assert!(helped.contains(name), "no help: {line}");
                metrics.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with("# UNIT ") {
                let (name, value) = line.rsplit_once(' ').expect("a value");
                let mount = format!("mountpoint=\"{directory}\"");
                let name = name.replace(&format!("{mount},"), "").replace(&mount, "");
                let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
                let before = metrics.values.insert(name.replace("{}", ""), value);
                assert_eq!(before, None, "twice: {line}");
            }
        }
        metrics
    }

    #[track_caller]
    fn value(&self, name: &str) -> f64 {
        let value = self.values.get(name);
        *value.unwrap_or_else(|| panic!("no {name}: {}", self.text))
    }
}

fn fail(m: &Mount, name: &str) {
    assert_errno(Actor::new().save(&m.path(name), "{\"half\": "), "EBADMSG");
    m.await_rejected(name, b"{\"half\": ");
}

#[test]
fn what_has_happened_is_counted() {
    need_daemon!();
    let m = mount!();
    let before = Metrics::of(&m, "--openmetrics");
    for name in ["commitfs_commits_total", "commitfs_commit_seconds_count"] {
        assert_eq!(before.value(name), 0.0);
    }
    for n in 0..5 {
        m.save("f.json", format!("{{\"n\": {n}}}"));
    }
    fail(&m, "f.json");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("new")).unwrap();
    writer.write("f", "four").unwrap();
    let open = Metrics::of(&m, "--openmetrics").value("commitfs_open_transactions");
    assert_eq!(open, 1.0);
    writer.kill(libc::SIGKILL);
    m.await_rejected("new", b"four");
    // A lock that is waited for.
    let (mut holder, mut waiter) = (Actor::new(), Actor::new());
    holder.open("f", "r+", &m.path("f.json")).unwrap();
    holder.ask("flock", &[b"f"]).unwrap();
    waiter.open("f", "r", &m.path("f.json")).unwrap();
    waiter.start("flock-wait", &[b"f"]);
    std::thread::sleep(Duration::from_millis(200));
    holder.close("f").unwrap();
    waiter.finish().unwrap();
    waiter.close("f").unwrap();
    let now = Metrics::of(&m, "--openmetrics");
    for (name, expected) in [
        ("commitfs_commits_total", 5.0),
        ("commitfs_commit_seconds_count", 5.0),
        ("commitfs_aborts_total{reason=\"guard\"}", 1.0),
        ("commitfs_aborts_total{reason=\"killed\"}", 1.0),
        ("commitfs_aborts_total{reason=\"conflict\"}", 0.0),
        ("commitfs_rejected_contents_total", 2.0),
        ("commitfs_rejected_files", 2.0),
        ("commitfs_rejected_bytes", 13.0),
        ("commitfs_unread_errors", 2.0),
        ("commitfs_failed", 0.0),
        ("commitfs_lock_wait_seconds_count", 1.0),
    ] {
        assert_eq!(now.value(name), expected, "{name}: {}", now.text);
    }
    let waited = now.value("commitfs_lock_wait_seconds_sum");
    assert!((0.1..60.0).contains(&waited), "{waited}");
    assert!(now.value("commitfs_lock_hold_seconds_count") >= 2.0);
    assert!(now.value("commitfs_commit_seconds_sum") > 0.0);
    // Errors that a job has seen are not read.
    assert_eq!(m.command(&["status"]).code, Some(1));
}

#[test]
fn buckets_grow_up_to_all() {
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let metrics = Metrics::of(&m, "--openmetrics");
    let histograms = metrics
        .kinds
        .iter()
        .filter(|(_, kind)| *kind == "histogram");
    let mut seen = 0;
    for (name, _) in histograms {
        let bucket = format!("{name}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = metrics
            .values
            .iter()
            .filter_map(|(key, value)| {
                let bound = key.strip_prefix(&bucket)?.strip_suffix("\"}")?;
                let bound = bound.replace("+Inf", "inf").parse().expect("a bound");
                Some((bound, *value))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.is_sorted_by(|a, b| a.1 <= b.1),
            "{name}: {buckets:?}"
        );
        let last = buckets.last().expect("buckets");
        assert_eq!(
            *last,
            (f64::INFINITY, metrics.value(&format!("{name}_count")))
        );
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn commits_that_wait_for_the_medium_are_told_by_their_age() {
    need_daemon!();
    let m = mount!(Mount::options().args(["--bound", "60000"]));
    m.save("f", "1");
    std::thread::sleep(Duration::from_millis(300));
    m.save("g", "2");
    let waiting = Metrics::of(&m, "--openmetrics");
    let lag = waiting.value("commitfs_checkpoint_lag_seconds");
    assert!((0.3..30.0).contains(&lag), "{lag}");
    assert_eq!(waiting.value("commitfs_checkpoint_pending_versions"), 2.0);
    assert_eq!(waiting.value("commitfs_checkpoint_seconds_count"), 0.0);
    // What an fsync of the directory asks for is a round.
    m.python("import os; os.fsync(os.open('.', os.O_RDONLY))")
        .ok();
    eventually(Duration::from_secs(10), "nothing waits", || {
        Metrics::of(&m, "--openmetrics").value("commitfs_checkpoint_lag_seconds") == 0.0
    });
    let done = Metrics::of(&m, "--openmetrics");
    assert_eq!(done.value("commitfs_checkpoint_pending_versions"), 0.0);
    assert!(done.value("commitfs_checkpoint_seconds_sum") >= 0.3);
}

#[test]
fn every_metric_is_documented_and_no_other() {
    need_daemon!();
    let m = mount!();
    let printed: BTreeSet<String> = Metrics::of(&m, "--openmetrics").kinds.into_keys().collect();
    let manual = std::fs::read_to_string("docs/metrics.md").unwrap();
    let documented: BTreeSet<String> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `commitfs_"))
        .map(|rest| format!("commitfs_{}", rest.split(['`', '{']).next().unwrap()))
        .collect();
    assert_eq!(printed, documented);
}

#[test]
fn promtool_has_nothing_to_say_against_it() {
    need_daemon!();
    let Some(promtool) = program("promtool", &["target/tools/bin"]) else {
        cannot_run("there is no promtool; scripts/install-deps gets it");
        return;
    };
    let m = mount!();
    m.save("f.json", "{}");
    fail(&m, "f.json");
    let text = Metrics::of(&m, "--openmetrics").text;
    let said = fed(Command::new(promtool).args(["check", "metrics"]), &text);
    assert_eq!(said, (Some(0), String::new()));
}

#[test]
fn the_strict_form_is_openmetrics_to_the_letter() {
    need_daemon!();
    let python = Path::new("target/venv/bin/python");
    let has_parser = || {
        let mut asked = Command::new(python);
        asked
            .args(["-c", "import prometheus_client"])
            .stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    };
    if !has_parser() {
        cannot_run("there is no prometheus_client in target/venv; scripts/install-deps gets it");
        return;
    }
    let m = mount!();
    m.save("f.json", "{}");
    fail(&m, "f.json");
    let text = Metrics::of(&m, "--openmetrics=strict").text;
    let parse = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
families = {f.name: f.type for f in parse(sys.stdin.read())}
assert families['commitfs_commits'] == 'counter', families
assert families['commitfs_lock_wait_seconds'] == 'histogram', families";
    let said = fed(Command::new(python).args(["-c", parse]), &text);
    assert_eq!(said, (Some(0), String::new()), "{text}");
}

/// A program in one of these directories, or in the PATH.
fn program(name: &str, directories: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = directories.iter().map(PathBuf::from);
    let found = own
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name));
    found.into_iter().find(|path| path.exists())
}

/// The exit code of a program that reads a text, and what it says.
fn fed(command: &mut Command, text: &str) -> (Option<i32>, String) {
    use std::io::Write;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}
