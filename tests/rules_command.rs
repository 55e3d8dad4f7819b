//! `commitfs rules`: which rule holds, and changes of them while programs write (C14, C17).

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Actor, Mount, Run, assert_content, binary, commitfs, run};
use serde_json::Value;

const COUNTER: &str = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";

fn rules(m: &Mount, action: &str, words: &[&str]) -> Run {
    let mut line = vec!["rules", action, m.mountpoint().to_str().unwrap()];
    line.extend(words);
    commitfs(line)
}

/// Value and reason of a key for a path.
fn explained(path: &Path, key: &str) -> (String, String) {
    let line = [
        "rules".as_ref(),
        "explain".as_ref(),
        "--json".as_ref(),
        path.as_os_str(),
    ];
    let told = commitfs(line).ok().out;
    let told: Value = serde_json::from_str(&told).unwrap();
    let of_key = told.as_array().unwrap().iter().find(|e| e["key"] == key);
    let of_key = of_key.unwrap_or_else(|| panic!("no {key}: {told}"));
    let text = |field: &str| of_key[field].as_str().unwrap().to_owned();
    (text("value"), text("why"))
}

fn set(m: &Mount, text: &str) -> Run {
    let file = m.scratch("new rules.toml");
    std::fs::write(&file, text).unwrap();
    rules(m, "set", &[file.to_str().unwrap()])
}

/// Programs that load, change and save, as many at a time as are given; gives what they count to.
fn count(m: &Mount, processes: usize) -> u64 {
    m.save("c.json", r#"{"n": 0}"#);
    let program = format!(
        "import json, multiprocessing
def count(_):
    for _ in range(20):
        with open('c.json') as f: state = json.load(f)
        state['n'] += 1
        with open('c.json', 'w') as f: json.dump(state, f)
with multiprocessing.Pool({processes}) as pool: pool.map(count, range({processes}), 1)
print(json.load(open('c.json'))['n'])"
    );
    m.python(&program).ok().out.trim().parse().unwrap()
}

fn number(m: &Mount) -> String {
    m.text("c.json").unwrap()
}

#[test]
fn what_status_proposes_is_put_in_force_by_the_command_that_it_prints() {
    need_daemon!();
    let m = mount!();
    let mut lost = false;
    for _ in 0..5 {
        lost = lost || count(&m, 4) < 80;
        let proposed = m.status()["overwritten"][0]["rule"].to_string();
        if lost && proposed.contains("/n") {
            break;
        }
    }
    assert!(lost, "four programs at a time lose updates without a rule");
    let told = m.command(&["status"]).out;
    let command = told.lines().find(|l| l.contains("commitfs rules add"));
    let command = command.unwrap_or_else(|| panic!("{told}"));
    assert_eq!(
        m.status()["overwritten"][0]["command_to_add"],
        command.trim(),
        "{told}"
    );
    m.sh(&command.replace("commitfs ", &format!("{} ", binary())))
        .ok();
    assert_eq!(count(&m, 4), 80);
    // It is there for later mounts.
    let (value, why) = explained(&m.path("c.json"), "on_conflict");
    assert_eq!(value, "\"merge\"");
    assert!(why.contains(".commitfs/rules.toml:1, rule 1"), "{why}");
}

#[test]
fn a_rule_for_other_files_costs_nobody_an_update() {
    need_daemon!();
    let m = mount!();
    rules(&m, "add", &["*.json", "on_conflict=merge", "counters=/n"]).ok();
    m.save("c.json", r#"{"n": 1}"#);
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.cat(&m.path("c.json")).unwrap();
    other.cat(&m.path("c.json")).unwrap();
    rules(&m, "add", &["scratch/**", "mode=direct"]).ok();
    other.save(&m.path("c.json"), r#"{"n": 2}"#).unwrap();
    one.save(&m.path("c.json"), r#"{"n": 2}"#).unwrap();
    assert_eq!(number(&m), r#"{"n": 3}"#);
}

#[test]
fn what_was_read_while_no_rule_was_about_it_is_no_base() {
    need_daemon!();
    let m = mount!();
    set(&m, COUNTER).ok();
    m.save("c.json", r#"{"n": 1}"#);
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.cat(&m.path("c.json")).unwrap();
    set(&m, "").ok();
    other.cat(&m.path("c.json")).unwrap();
    other.save(&m.path("c.json"), r#"{"n": 2}"#).unwrap();
    one.cat(&m.path("c.json")).unwrap();
    set(&m, COUNTER).ok();
    other.cat(&m.path("c.json")).unwrap();
    other.save(&m.path("c.json"), r#"{"n": 3}"#).unwrap();
    // It goes on from 2, which nobody has noted: nothing is counted twice.
    one.save(&m.path("c.json"), r#"{"n": 3}"#).unwrap();
    assert_eq!(number(&m), r#"{"n": 3}"#);
    // From the next time on it counts.
    one.cat(&m.path("c.json")).unwrap();
    other.cat(&m.path("c.json")).unwrap();
    for who in [&mut one, &mut other] {
        who.save(&m.path("c.json"), r#"{"n": 4}"#).unwrap();
    }
    assert_eq!(number(&m), r#"{"n": 5}"#);
}

#[test]
fn what_is_open_keeps_the_rule_that_it_was_opened_with() {
    need_daemon!();
    let m = mount!();
    m.save("f", "old");
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.open("f", "w", &m.path("f")).unwrap();
    one.write("f", "one").unwrap();
    rules(&m, "add", &["f", "mode=direct"]).ok();
    one.write("f", " more").unwrap();
    assert_content(m.read("f"), b"old", "it is still staged");
    // Direct, it would write to a file that the other's close replaces.
    other.open("f", "w", &m.path("f")).unwrap();
    other.write("f", "the other").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"one more", "committed");
    other.close("f").unwrap();
    assert_content(m.read("f"), b"the other", "closed last");
    one.open("f", "w", &m.path("f")).unwrap();
    one.write("f", "seen at once").unwrap();
    assert_content(m.read("f"), b"seen at once", "direct by now");
    // And back: as long as one has it open directly, all do.
    set(&m, "").ok();
    other.open("f", "r+", &m.path("f")).unwrap();
    other.write("f", "SEEN").unwrap();
    assert_content(m.read("f"), b"SEEN at once", "still shared");
    one.close("f").unwrap();
    other.close("f").unwrap();
    one.open("f", "w", &m.path("f")).unwrap();
    one.write("f", "staged").unwrap();
    assert_content(m.read("f"), b"SEEN at once", "atomic again");
    one.close("f").unwrap();
    assert_content(m.read("f"), b"staged", "committed");
}

#[test]
fn a_broken_file_leaves_the_rules_in_force_and_is_named_with_its_line() {
    need_daemon!();
    let mut m = mount!();
    set(&m, COUNTER).ok();
    let broken = "[[rule]]\nglob = \"a\"\n\nmode = \"dirct\"\n";
    let said = set(&m, broken);
    assert_eq!(said.code, Some(3), "{said:#?}");
    for word in [
        "new rules.toml:4, rule 1, key mode",
        "\"direct\"",
        "in force stay",
    ] {
        assert!(said.err.contains(word), "{said:#?}");
    }
    assert_eq!(rules(&m, "show", &[]).ok().out, COUNTER);
    let (value, _) = explained(&m.path("c.json"), "on_conflict");
    assert_eq!(value, "\"merge\"");
    let said = rules(&m, "add", &["x", "mode=dirct"]);
    assert_eq!(said.code, Some(3), "{said:#?}");
    assert_eq!(rules(&m, "add", &["x", "mode"]).code, Some(2));
    assert_eq!(rules(&m, "add", &["[x", "mode=direct"]).code, Some(3));
    assert_eq!(rules(&m, "show", &[]).ok().out, COUNTER);
    // Somebody's editor has left it so.
    m.unmount();
    std::fs::write(m.backing().join(".commitfs/rules.toml"), broken).unwrap();
    let checked = rules(&m, "check", &[]);
    assert_eq!(checked.code, Some(3), "{checked:#?}");
    assert!(checked.err.contains("rules.toml:4"), "{checked:#?}");
}

#[test]
fn a_file_that_was_named_at_the_mount_is_read_again() {
    need_daemon!();
    let m = mount!(Mount::options().rules(COUNTER));
    let file = m.scratch("rules.toml");
    let in_force = || rules(&m, "check", &[]).ok().out;
    assert!(
        in_force().contains("1 rule, nothing wrong"),
        "{}",
        in_force()
    );
    std::fs::write(&file, "[[rule]]\nglob = \"*.x\"\nmode = \"direct\"\n").unwrap();
    assert!(in_force().contains("not in force"), "{}", in_force());
    assert_eq!(explained(&m.path("a.x"), "mode").0, "\"atomic\"");
    rules(&m, "reload", &[]).ok();
    assert!(!in_force().contains("not in force"), "{}", in_force());
    assert_eq!(explained(&m.path("a.x"), "mode").0, "\"direct\"");
    std::fs::write(&file, "[[rule]]\nglob = 1\n").unwrap();
    let said = rules(&m, "reload", &[]);
    assert_eq!(said.code, Some(3), "{said:#?}");
    assert!(
        said.err.contains("rules.toml:2, rule 1, key glob"),
        "{said:#?}"
    );
    assert_eq!(explained(&m.path("a.x"), "mode").0, "\"direct\"");
    std::fs::write(&file, COUNTER).unwrap();
    rules(&m, "add", &["y", "guard=json"]).ok();
    let kept = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        kept,
        format!("{COUNTER}\n[[rule]]\nglob = \"y\"\nguard = \"json\"\n")
    );
    assert_eq!(explained(&m.path("y"), "guard").0, "\"json\"");
}

#[test]
fn a_rule_that_would_change_nothing_is_refused() {
    need_daemon!();
    let m = mount!();
    set(&m, COUNTER).ok();
    let refused = |words: &[&str], said: &str| {
        let run = rules(&m, "add", words);
        assert_eq!(run.code, Some(3), "{run:#?}");
        assert!(run.err.contains("rules.toml:1, rule 1"), "{run:#?}");
        assert!(run.err.contains(said), "{run:#?}");
        assert_eq!(rules(&m, "show", &[]).ok().out, COUNTER);
    };
    refused(
        &["*.json", "on_conflict=merge", "counters=/n"],
        "says so already",
    );
    refused(&["*.json", "on_conflict=fail"], "--first");
    refused(
        &["*.json", "on_conflict=merge", "counters=/m"],
        "counters = [\"/n\"]",
    );
    rules(&m, "add", &["*.json", "on_conflict=fail", "--first"]).ok();
    assert_eq!(explained(&m.path("c.json"), "on_conflict").0, "\"fail\"");
    rules(&m, "add", &["*.json", "allow_empty=true"]).ok();
    assert_eq!(explained(&m.path("c.json"), "allow_empty").0, "true");
}

#[test]
fn rules_added_at_the_same_time_are_all_there() {
    need_daemon!();
    let m = mount!();
    std::thread::scope(|scope| {
        for who in 0..6 {
            let m = &m;
            scope.spawn(move || rules(m, "add", &[&format!("f{who}"), "mode=direct"]).ok());
        }
    });
    let shown = rules(&m, "show", &[]).ok().out;
    for who in 0..6 {
        assert!(shown.contains(&format!("\"f{who}\"")), "{shown}");
        assert_eq!(
            explained(&m.path(format!("f{who}")), "mode").0,
            "\"direct\""
        );
    }
}

#[test]
fn a_path_is_explained_by_its_rules_mounted_or_not() {
    need_daemon!();
    let mut m = mount!();
    set(
        &m,
        "# ours\n\n[[rule]]\nglob = \"runs/**/*.bin\"\nmode = \"direct\"\n",
    )
    .ok();
    m.mkdir("runs");
    m.save("a.lock", "");
    for mounted in [true, false] {
        let told = |path: &str, key: &str| explained(&m.path(path), key);
        let (value, why) = told("runs/1/no/such.bin", "mode");
        assert_eq!(value, "\"direct\"");
        assert!(
            why.contains(".commitfs/rules.toml:3, rule 1, \"runs/**/*.bin\""),
            "{why}"
        );
        assert_eq!(
            told("x.bin", "mode"),
            ("\"atomic\"".into(), "default".into())
        );
        assert_eq!(
            told("a.json", "guard"),
            ("\"json\"".into(), "built-in, \"*.json\"".into())
        );
        assert_eq!(told("a.lock", "mode").0, "\"direct\"", "it is empty");
        let (_, why) = told("new.csv", "record");
        assert!(why.contains("new table"), "{why}");
        // As a person asks: from inside, by a relative path.
        let mut command = Command::new(binary());
        command
            .current_dir(m.path("runs"))
            .args(["rules", "explain", "1/x.bin"]);
        let text = run(&mut command, Duration::from_secs(20)).ok().out;
        let line = text.lines().find(|l| l.starts_with("mode"));
        assert!(line.unwrap().contains("rules.toml:3, rule 1"), "{text}");
        assert!(
            text.lines().skip(2).all(|l| l.chars().count() <= 80),
            "{text}"
        );
        if mounted {
            m.unmount();
        }
    }
}
