//! C15, the command line: `commitfs json` edits documents, creates what is missing, carries what no
//! attribute can, and says on a plain directory that nothing protects the edit.

mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Actor, Mount, Run, assert_content, assert_errno, commitfs, run, times};

const BINARY: &str = env!("CARGO_BIN_EXE_commitfs");
/// Adds 1 to the only member of `{"n": N}`.
const COUNT: &str = r#"read -r line; n=${line#*: }; echo "{\"n\": $((${n%\}*} + 1))}""#;

/// `commitfs json ARGS…`, in a directory.
#[track_caller]
fn json_in(directory: &Path, args: &[&str]) -> Run {
    let mut command = Command::new(BINARY);
    command.arg("json").args(args).current_dir(directory);
    run(&mut command, Duration::from_secs(60))
}

#[track_caller]
fn json(m: &Mount, args: &[&str]) -> Run {
    json_in(m.mountpoint(), args)
}

/// The same, fed from a file beside the mount.
#[track_caller]
fn json_fed(m: &Mount, args: &str, input: &str) -> Run {
    let file = m.scratch("input");
    std::fs::write(&file, input).expect("a file");
    m.sh(&format!("{BINARY} json {args} < {}", file.display()))
}

#[track_caller]
fn prints(run: Run, line: &str) {
    assert_eq!(run.out.trim_end(), line, "{run:#?}");
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(run.err, "", "{run:#?}");
}

/// It must fail with this code and a message that has all these words.
#[track_caller]
fn refused(run: Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, Some(code), "{run:#?}");
    assert_eq!(run.out, "", "{run:#?}");
    for word in words {
        assert!(run.err.contains(word), "{word:?} is not said: {run:#?}");
    }
    assert!(!run.err.contains("panicked"), "{run:#?}");
}

/// Runs the same shell script in several processes at once; all must succeed.
#[track_caller]
fn all_at_once(m: &Mount, processes: usize, script: &str) {
    let directory = m.mountpoint();
    std::thread::scope(|scope| {
        for _ in 0..processes {
            scope.spawn(|| common::sh(directory, script, Duration::from_secs(500)).ok());
        }
    });
}

/// Does something even if a test fails.
struct AtTheEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtTheEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn patient() -> common::Options {
    Mount::options().limit(Duration::from_secs(600))
}

#[test]
fn edits_print_the_version_they_made_and_the_value() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", "{\"done\": 1,\t\"list\": [1.50,\t2]}\n");
    prints(json(&m, &["incr", "s.json", "/done"]), "2");
    prints(json(&m, &["incr", "s.json", "/done", "-5"]), "-3");
    prints(
        json(&m, &["incr", "s.json", "/new", "0.1", "--with-version"]),
        "4 0.1",
    );
    prints(
        json(&m, &["set", "s.json", "/done", "{\"a\": 1.0}"]),
        "5 {\"a\":1.0}",
    );
    prints(json(&m, &["set", "s.json", "/done", "-1"]), "6 -1");
    prints(
        json(&m, &["set", "s.json", "/text", "-", "--string"]),
        "7 \"-\"",
    );
    prints(json(&m, &["merge", "s.json", r#"{"text": null}"#]), "8");
    let patch =
        r#"[{"op": "remove", "path": "/new"}, {"op": "add", "path": "/list/-", "value": 3}]"#;
    prints(
        json(&m, &["patch", "s.json", patch, "--json"]),
        r#"{"version": 9, "value": 3}"#,
    );
    prints(json(&m, &["incr", "s.json", "/done", "-q"]), "");
    // No change, no commit.
    prints(json(&m, &["patch", "s.json", "[]"]), "10");
    assert_content(
        m.read("s.json"),
        b"{\"done\": 0,\t\"list\": [1.50,\t2,\t3]}\n",
        "what was not touched stayed as it was written",
    );
    assert_eq!(m.version("s.json").unwrap(), 10);
}

#[test]
fn get_prints_a_value_and_nothing_else() {
    need_daemon!();
    let m = mount!();
    let text = "{\n  \"a\": [1.50,   \"\\u00e9\\n\"],\n  \"b\": {\"c/d\": null}\n}\n";
    m.save("s.json", text);
    m.save("empty.json", "");
    assert_eq!(json(&m, &["get", "s.json"]).ok().out, text);
    prints(json(&m, &["get", "s.json", "/a"]), r#"[1.50,"\u00e9\n"]"#);
    prints(json(&m, &["get", "s.json", "/b/c~1d"]), "null");
    prints(json(&m, &["get", "s.json", "/a/1", "--raw"]), "é");
    prints(json(&m, &["get", "s.json", "/a/0", "-r"]), "1.50");
    prints(
        json(&m, &["get", "s.json", "/a/0", "--with-version"]),
        "1 1.50",
    );
    prints(
        json(&m, &["get", "s.json", "--json"]),
        r#"{"version": 1, "value": {"a":[1.50,"\u00e9\n"],"b":{"c/d":null}}}"#,
    );
    prints(json(&m, &["get", "empty.json"]), "{}");
    m.sh(&format!("{BINARY} json get s.json | true")).ok();
}

#[test]
fn an_item_of_an_array_is_set_in_its_place() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"list": [1, 2], "by": {"7": 1}}"#);
    prints(json(&m, &["set", "s.json", "/list/0", "10"]), "2 10");
    prints(json(&m, &["set", "s.json", "/list/2", "30"]), "3 30");
    prints(json(&m, &["set", "s.json", "/list/-", "40"]), "4 40");
    prints(json(&m, &["set", "s.json", "/by/7", "2"]), "5 2");
    prints(
        json(&m, &["set", "s.json", "/by/8", "3", "--if-version", "5"]),
        "6 3",
    );
    assert_content(
        m.read("s.json"),
        br#"{"list": [10, 2, 30, 40], "by": {"7": 2, "8": 3}}"#,
        "after all",
    );
    refused(
        json(&m, &["set", "s.json", "/list/9", "0"]),
        8,
        &["/list/9 can't be set", "array of 4", "appends"],
    );
    refused(
        json(&m, &["set", "s.json", "/by/8", "4", "--if-version", "5"]),
        7,
        &["current version is 6"],
    );
}

#[test]
fn bad_edits_change_nothing_and_say_what_to_do() {
    need_daemon!();
    let m = mount!();
    let text = r#"{"n": 1, "text": "x", "max": 18446744073709551615}"#;
    m.save("s.json", text);
    m.save("half.bin", "{\"a\": ");
    m.save("twice.json", r#"{"a": 1, "a": 2}"#);
    m.save("direct.pid", "{}");
    m.mkdir("d");
    m.sh("ln -s nowhere link.json").ok();
    let no_test = r#"[{"op": "test", "path": "/n", "value": 2}]"#;
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["get", "s.json", "/q"], 8, &["s.json", "no member \"q\""]),
        (&["get", "s.json", "q"], 2, &["begin with '/'"]),
        (&["get", "none.json"], 3, &["none.json", "no such file"]),
        (&["get", "half.bin"], 3, &["half.bin"]),
        (&["get", "d"], 3, &["directory"]),
        (
            &["set", "s.json", "/a/b/c", "1"],
            8,
            &[
                "/a/b/c",
                "no member \"a\"",
                r#"merge FILE '{"a": {"b": {"c": 1}}}'"#,
            ],
        ),
        (&["set", "s.json", "/n/x", "1"], 8, &["/n is a number"]),
        (&["set", "s.json", "/a", "word"], 3, &["word", "--string"]),
        (&["set", "s.json", "/a", ""], 3, &["empty"]),
        (&["set", "s.json", "/a", "1, 2"], 3, &["not JSON"]),
        (&["incr", "s.json", "/text"], 3, &["/text", "no number"]),
        (&["incr", "s.json", "/max"], 3, &["18446744073709551616"]),
        (&["incr", "s.json", "/n", "much"], 3, &["much"]),
        (&["incr", "s.json", "/n", "\"1\""], 3, &["no finite number"]),
        (&["incr", "s.json", "/n", "1}, {"], 3, &["1}, {"]),
        (
            &["incr", "s.json", "/q/r"],
            8,
            &["no member \"q\"", "merge"],
        ),
        (&["patch", "s.json", "{"], 3, &["not JSON"]),
        (&["patch", "s.json", "{}"], 3, &["array of operations"]),
        (&["patch", "s.json", no_test], 9, &["/n", "expected 2"]),
        (&["merge", "s.json", "{,}"], 3, &["not JSON"]),
        (
            &["merge", "none.json", "{}"],
            3,
            &["no such file", "--create"],
        ),
        (&["merge", "nodir/f.json", "{}", "--create"], 3, &["nodir"]),
        (
            &["merge", "link.json", "{}", "--create"],
            3,
            &["symbolic link"],
        ),
        (&["merge", "d", "{}"], 3, &["directory"]),
        (
            &["merge", "half.bin", "{}"],
            3,
            &["half.bin", "not a JSON document"],
        ),
        (&["merge", "twice.json", "{}"], 3, &["\"a\" is there twice"]),
        (&["incr", "direct.pid", "/n"], 3, &["direct mode"]),
        (
            &["incr", "s.json", "/n", "--if-version", "9"],
            7,
            &["version is 1"],
        ),
        (
            &["incr", "s.json", "/n", "--create", "--if-version", "1"],
            2,
            &["--create"],
        ),
    ];
    for (args, code, words) in cases {
        refused(json(&m, args), *code, words);
    }
    assert_content(m.read("s.json"), text.as_bytes(), "after all of it");
    assert_eq!(m.version("s.json").unwrap(), 1, "no commit");
    let names = [
        "d",
        "direct.pid",
        "half.bin",
        "link.json",
        "s.json",
        "twice.json",
    ];
    assert_eq!(m.names("."), names);
}

#[test]
fn what_is_proposed_for_a_pointer_that_leads_nowhere_makes_way_for_the_edit() {
    need_daemon!();
    let m = mount!();
    let plain = m.scratch("plain");
    std::fs::create_dir(&plain).unwrap();
    let text = r#"{"a": {"n": 1}, "l": [{"m": 0}, 5]}"#;
    // An edit, the place where its path ends, and the document once the proposal and it were made.
    let cases = [
        (
            "incr s.json /a/b/c 2",
            "/a has no member \"b\"",
            r#"{"a": {"n": 1, "b": {"c": 2}}, "l": [{"m": 0}, 5]}"#,
        ),
        (
            "incr s.json /x/y/z",
            "the document has no member \"x\"",
            r#"{"a": {"n": 1}, "l": [{"m": 0}, 5], "x": {"y": {"z": 1}}}"#,
        ),
        (
            "incr s.json /l/0/x/y",
            "/l/0 has no member \"x\"",
            r#"{"a": {"n": 1}, "l": [{"m": 0, "x": {"y": 1}}, 5]}"#,
        ),
        (
            "incr s.json /l/2 3",
            "/l is an array of 2 and has no item 2",
            r#"{"a": {"n": 1}, "l": [{"m": 0}, 5, 3]}"#,
        ),
        (
            "set s.json /x/y 7",
            "the document has no member \"x\"",
            r#"{"a": {"n": 1}, "l": [{"m": 0}, 5], "x": {"y": 7}}"#,
        ),
        (
            "set s.json /l/0/x/y 7",
            "/l/0 has no member \"x\"",
            r#"{"a": {"n": 1}, "l": [{"m": 0, "x": {"y": 7}}, 5]}"#,
        ),
    ];
    for (edit, place, result) in cases {
        for directory in [m.mountpoint(), &plain] {
            let sh = |arguments: &str| {
                let script = format!("{BINARY} {arguments}");
                common::sh(directory, &script, Duration::from_secs(20))
            };
            std::fs::write(directory.join("s.json"), text).unwrap();
            let run = sh(&format!("json {edit}"));
            let pointer = edit.split(' ').nth(2).unwrap();
            let proposed = run.err.split('`').nth(1).unwrap_or_default();
            let proposed = proposed.replace("commitfs ", "").replace("FILE", "s.json");
            refused(run, 8, &["s.json", pointer, place]);
            sh(&proposed).ok();
            sh(&format!("json {edit}")).ok();
            let found = std::fs::read(directory.join("s.json")).unwrap();
            assert_content(Some(found), result.as_bytes(), edit);
        }
    }
    m.save("s.json", text);
    for (patch, words) in [
        (
            r#"[{"op": "replace", "path": "/b", "value": 1}]"#,
            ["/b", "no member \"b\"", "`add`"],
        ),
        (
            r#"[{"op": "remove", "path": "/l/7"}]"#,
            ["/l/7", "no item 7", "`add` at -"],
        ),
    ] {
        refused(json(&m, &["patch", "s.json", patch]), 8, &words);
    }
    let path = m.path("s.json");
    let patch = br#"[{"op": "increment", "path": "/x/y", "value": 1}]"#;
    let mut actor = Actor::new();
    let set = actor.setxattr(&path, "user.commitfs.json.patch", patch);
    assert_errno(set, "ENOENT");
    let why = actor.getxattr(&path, "user.commitfs.json.error").unwrap();
    let expected = b"operation 1: increment failed at /x/y: the document has no member \"x\"";
    assert_content(Some(why), expected, "what the attribute says");
}

#[test]
fn a_missing_file_is_created_if_asked_and_only_with_what_was_asked() {
    need_daemon!();
    let m = mount!();
    prints(json(&m, &["incr", "a.json", "/n", "--create"]), "1");
    prints(json(&m, &["incr", "a.json", "/n", "--create"]), "2");
    assert_content(m.read("a.json"), b"{\"n\": 2}\n", "created, then patched");
    prints(json(&m, &["patch", "b.json", "[]", "--create"]), "1");
    assert_content(m.read("b.json"), b"{}\n", "an empty document");
    refused(
        json(&m, &["set", "c.json", "/a/b", "1", "--create"]),
        8,
        &["no member \"a\""],
    );
    m.sh(&format!(
        "umask 027; {BINARY} json set d.json '' '[1]' --create"
    ))
    .ok();
    assert_eq!(m.sh("stat -c %a d.json").ok().out.trim(), "640");
    let long = format!("{}.json", "n".repeat(250));
    prints(json(&m, &["incr", &long, "/n", "--create"]), "1");
    assert_eq!(
        m.names("."),
        ["a.json", "b.json", "d.json", &long],
        "nothing is left over"
    );
    m.save("empty.json", "");
    prints(json(&m, &["incr", "empty.json", "/n", "--create"]), "1");
}

#[test]
fn of_several_who_create_one_file_nobody_is_lost_and_nobody_sees_it_empty() {
    need_daemon!();
    let m = mount!(patient());
    let (processes, files) = (6, times(12, 100));
    let script = format!(
        "for i in $(seq {files}); do {BINARY} json incr f$i.json /n --create -q || exit; done"
    );
    let watched = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while watched.load(Ordering::Relaxed) {
                for i in 1..=files {
                    let Some(text) = m.text(format!("f{i}.json")) else {
                        break;
                    };
                    assert!(
                        text.starts_with("{\"n\": ") && text.ends_with("}\n"),
                        "{text:?}"
                    );
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let _end = AtTheEnd(|| watched.store(false, Ordering::Relaxed));
        all_at_once(&m, processes, &script);
    });
    for i in 1..=files {
        let expected = format!("{{\"n\": {processes}}}\n");
        assert_content(
            m.read(format!("f{i}.json")),
            expected.as_bytes(),
            "all counted",
        );
    }
    assert_eq!(m.names(".").len(), files, "nothing is left over");
}

#[test]
fn patches_of_any_size_arrive_whole() {
    need_daemon!();
    let m = mount!(patient());
    m.save("s.json", r#"{"n": 0}"#);
    for (round, size) in [70_000, 100 << 10, 1 << 20, 8 << 20]
        .into_iter()
        .enumerate()
    {
        let long: String = (0..size / 8).map(|i| format!("{i:07} ")).collect();
        let version = 2 + 4 * round;
        let merge = format!(r#"{{"long": "{long}"}}"#);
        prints(json_fed(&m, "merge s.json -", &merge), &version.to_string());
        let found = json(&m, &["get", "s.json", "/long", "--raw"]).ok().out;
        assert!(found.trim_end_matches('\n') == long, "{size}");
        // Of the kernel's second try, too, it has to be known what was meant.
        refused(
            json_fed(&m, "merge s.json - --if-version 1", &merge),
            7,
            &["version is"],
        );
        let patch = format!(
            r#"[{{"op": "add", "path": "/x", "value": "{long}"}}, {{"op": "increment", "path": "/n", "value": 1}}]"#
        );
        let said = format!("{} {}", version + 1, round + 1);
        let args = format!("patch s.json - --if-version {version}");
        prints(json_fed(&m, &args, &patch), &said);
        // What is too large to tell of is left out.
        let value = format!("\"{long}\"");
        prints(
            json_fed(&m, "set s.json /x -", &value),
            &(version + 2).to_string(),
        );
        let test = format!(r#"[{{"op": "test", "path": "/long", "value": "{long}!"}}]"#);
        refused(json_fed(&m, "patch s.json -", &test), 9, &["/long"]);
        prints(
            json(&m, &["incr", "s.json", "/n", "0", "--with-version"]),
            &format!("{} {}", version + 3, round + 1),
        );
    }
}

#[test]
fn large_patches_of_several_do_not_mix() {
    need_daemon!();
    let m = mount!(patient());
    m.save("s.json", "{}");
    let each = times(5, 50);
    std::thread::scope(|scope| {
        for who in 0..4 {
            let m = &m;
            scope.spawn(move || {
                let file = m.scratch(&format!("patch{who}"));
                let merge = format!(r#"{{"{who}": "{}"}}"#, who.to_string().repeat(300_000));
                std::fs::write(&file, merge).unwrap();
                let patch = format!("{BINARY} json merge s.json - -q < {}", file.display());
                let script = format!("for i in $(seq {each}); do {patch} || exit; done");
                common::sh(m.mountpoint(), &script, Duration::from_secs(300)).ok();
            });
        }
    });
    let document: serde_json::Value = serde_json::from_slice(&m.read("s.json").unwrap()).unwrap();
    for who in 0..4 {
        let found = document[who.to_string()].as_str().expect("a string");
        assert!(found == who.to_string().repeat(300_000), "{who}");
    }
}

#[test]
fn who_may_not_write_the_file_may_not_edit_it() {
    need_daemon!();
    need_root!();
    let m = mount!();
    let text = r#"{"n": 1}"#;
    m.save("s.json", text);
    m.save("ours.json", text);
    m.sh("chmod 644 s.json; chmod 666 ours.json; chmod 755 .")
        .ok();
    let large = m.scratch("large");
    std::fs::write(&large, format!(r#"{{"x": "{}"}}"#, "x".repeat(200_000))).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(m.mountpoint());
        run(command.uid(65534).gid(65534), Duration::from_secs(20))
    };
    let large = format!("merge FILE - < {}", large.display());
    for edit in [
        "incr FILE /n",
        "set FILE /n 5",
        "patch FILE '[]'",
        &large,
        "update FILE -- sed s/1/2/",
    ] {
        let on = |name: &str| format!("{BINARY} json {}", edit.replace("FILE", name));
        refused(as_nobody(&on("s.json")), 3, &["s.json", "ermission denied"]);
        as_nobody(&on("ours.json")).ok();
    }
    refused(
        as_nobody(&format!("{BINARY} json incr new.json /n --create")),
        3,
        &["new.json", "ermission denied"],
    );
    assert_content(m.read("s.json"), text.as_bytes(), "unchanged");
    assert_eq!(m.version("s.json").unwrap(), 1);
    assert_eq!(m.names("."), ["ours.json", "s.json"]);
    prints(as_nobody(&format!("{BINARY} json get s.json /n")), "1");
}

#[test]
fn update_loses_nothing_among_ten_who_update() {
    need_daemon!();
    let m = mount!(patient());
    m.save("s.json", "{\"n\": 0}\n");
    std::fs::write(m.scratch("count"), COUNT).unwrap();
    let each = times(20, 100);
    let count = m.scratch("count");
    let update = format!(
        "{BINARY} json update s.json --retries 1000 -q -- sh {}",
        count.display()
    );
    all_at_once(
        &m,
        10,
        &format!("for i in $(seq {each}); do {update} || exit; done"),
    );
    let expected = format!("{{\"n\": {}}}\n", 10 * each);
    assert_content(m.read("s.json"), expected.as_bytes(), "all counted");
    assert_eq!(m.version("s.json").unwrap(), 1 + 10 * each as u64);
}

#[test]
fn update_and_patches_of_others_are_both_kept() {
    need_daemon!();
    let m = mount!(patient());
    m.save("s.json", "{\"a\": 0, \"b\": 0}\n");
    let each = times(20, 100);
    let update = format!(
        r#"{BINARY} json update s.json -q -- python3 -c 'import json; d = json.load(open(0)); d["a"] += 1; print(json.dumps(d))'"#
    );
    let script = format!("for i in $(seq {each}); do {update} || exit; done");
    std::thread::scope(|scope| {
        scope.spawn(|| all_at_once(&m, 1, &script));
        let incr = format!("{BINARY} json incr s.json /b -q; sleep 0.05");
        let script = format!("for i in $(seq {each}); do {incr} || exit; done");
        all_at_once(&m, 1, &script);
    });
    let expected = format!("{{\"a\": {each}, \"b\": {each}}}\n");
    assert_content(m.read("s.json"), expected.as_bytes(), "both");
}

#[test]
fn update_sets_what_the_command_printed_byte_for_byte() {
    need_daemon!();
    let m = mount!();
    let text = "{ \"n\":1,\n\t\"list\": [1,  2,\n3] }";
    m.save("s.json", text);
    m.sh("chmod 600 s.json").ok();
    prints(
        json(&m, &["update", "s.json", "--", "sed", "s/1,/10,/"]),
        "2",
    );
    let expected = "{ \"n\":10,\n\t\"list\": [10,  2,\n3] }";
    assert_content(m.read("s.json"), expected.as_bytes(), "edited by sed");
    prints(
        json(&m, &["update", "s.json", "--json", "--", "cat"]),
        r#"{"version": 2}"#,
    );
    prints(
        json(&m, &["update", "new.json", "--create", "--", "cat"]),
        "1",
    );
    assert_content(m.read("new.json"), b"{}\n", "begun as an empty document");
    let large = format!("[\"{}\"]", "x".repeat(3 << 20));
    std::fs::write(m.scratch("large"), &large).unwrap();
    let large_file = m.scratch("large");
    prints(
        json(
            &m,
            &[
                "update",
                "s.json",
                "--",
                "cat",
                large_file.to_str().unwrap(),
            ],
        ),
        "3",
    );
    assert_content(
        m.read("s.json"),
        large.as_bytes(),
        "larger than an attribute",
    );
    prints(
        json(&m, &["update", "s.json", "--", "sed", "s/xx*/y/"]),
        "4",
    );
    prints(json(&m, &["incr", "new.json", "/n"]), "1");
    assert_content(m.read("s.json"), b"[\"y\"]", "smaller again");
    assert_eq!(m.sh("stat -c %a s.json").ok().out.trim(), "600");
}

#[test]
fn an_update_whose_command_fails_changes_nothing() {
    need_daemon!();
    let m = mount!();
    let text = "{\"n\": 1}\n";
    m.save("s.json", text);
    m.save("direct.pid", text);
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["false"],
            10,
            &["s.json", "not changed", "false", "exit status: 1"],
        ),
        (&["sh", "-c", "cat; kill -9 $$"], 10, &["signal: 9"]),
        (
            &["no-such-command"],
            10,
            &["no-such-command", "can't be run"],
        ),
        (&["true"], 10, &["printed nothing"]),
        (&["echo", "{\"n\": "], 10, &["printed no JSON"]),
        (&["echo", "{} {}"], 10, &["printed no JSON"]),
    ];
    for (command, code, words) in cases {
        let args = [&["update", "s.json", "--"], *command].concat();
        refused(json(&m, &args), *code, words);
    }
    refused(
        json(&m, &["update", "none.json", "--", "cat"]),
        3,
        &["--create"],
    );
    refused(
        json(&m, &["update", "none.json", "--create", "--", "false"]),
        10,
        &["false"],
    );
    refused(json(&m, &["update", "s.json"]), 2, &["CMD"]);
    refused(
        json(&m, &["update", "direct.pid", "--", "echo", "[]"]),
        3,
        &["direct mode"],
    );
    let other = format!("{BINARY} json incr s.json /n -q; echo 0");
    refused(
        json(
            &m,
            &[
                "update",
                "s.json",
                "--retries",
                "2",
                "--",
                "sh",
                "-c",
                &other,
            ],
        ),
        7,
        &["3 times", "--retries"],
    );
    assert_content(
        m.read("s.json"),
        b"{\"n\": 4}\n",
        "changed by the others alone",
    );
    assert_eq!(m.names("."), ["direct.pid", "s.json"]);
}

#[test]
fn a_text_replaces_the_version_it_was_made_of_and_no_other() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", "{\"n\": 1}");
    let mut actor = Actor::new();
    let path = m.path("s.json");
    let replace = "user.commitfs.json.replace";
    actor
        .setxattr(&path, &format!("{replace}@1"), b"[1,\n 2]")
        .unwrap();
    assert_content(m.read("s.json"), b"[1,\n 2]", "as it was given");
    assert_errno(
        actor.setxattr(&path, &format!("{replace}@1"), b"{}"),
        "ESTALE",
    );
    for bad in ["", " ", "{", "{} {}", "{\"a\": 1, \"a\": 2}"] {
        assert_errno(actor.setxattr(&path, replace, bad.as_bytes()), "EINVAL");
    }
    let patch = br#"[{"op": "add", "path": "/-", "value": 3}]"#;
    actor
        .setxattr(&path, "user.commitfs.json.patch", patch)
        .unwrap();
    assert_content(m.read("s.json"), b"[1, 2, 3]", "patched on");
    assert_eq!(m.version("s.json").unwrap(), 3);
    // Pieces that aren't all there, or not in order.
    let part = "user.commitfs.json.part:t";
    actor.setxattr(&path, &format!("{part}@0"), b"[").unwrap();
    assert_errno(actor.setxattr(&path, &format!("{part}@2"), b"]"), "EINVAL");
    assert_errno(
        actor.setxattr(&path, &format!("{replace}:t"), b"2"),
        "EINVAL",
    );
    assert_errno(
        actor.setxattr(&path, &format!("{replace}:none"), b"0"),
        "EINVAL",
    );
    assert_errno(
        actor.setxattr(&path, &format!("{part}@18446744073709551615"), b"]"),
        "E2BIG",
    );
    assert_eq!(m.version("s.json").unwrap(), 3);
}

#[test]
fn on_a_plain_directory_edits_work_and_say_that_nothing_protects_them() {
    need_daemon!();
    let m = Mount::options().prepare();
    let directory = m.backing();
    let file = directory.join("s.json");
    std::fs::write(&file, "{\n    \"n\": 1.50\n}\n").unwrap();
    common::sh(
        directory,
        "chmod 640 s.json; ln -s s.json link",
        Duration::from_secs(5),
    )
    .ok();
    let warned = |args: &[&str], out: &str| {
        let run = json_in(directory, args).ok();
        assert_eq!(run.out.trim_end(), out, "{run:#?}");
        assert!(run.err.contains("nothing protects this update"), "{run:#?}");
    };
    warned(&["incr", "s.json", "/n"], "2.50");
    warned(&["set", "link", "/m", "[1]"], "- [1]");
    warned(
        &["set", "s.json", "/m/0", "2", "--json"],
        r#"{"version": null, "value": 2}"#,
    );
    warned(&["merge", "s.json", r#"{"m": null}"#, "-q"], "");
    warned(&["update", "s.json", "--", "sed", "s/2/3/"], "-");
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "{\n    \"n\": 3.50\n}\n"
    );
    assert_eq!(
        common::sh(directory, "stat -c %a s.json", Duration::from_secs(5)).out,
        "640\n"
    );
    assert!(directory.join("link").is_symlink());
    warned(&["incr", "new.json", "/n", "--create"], "1");
    prints(json_in(directory, &["get", "new.json", "/n"]), "1");
    let fails = |args: &[&str], code: i32, word: &str| {
        let run = json_in(directory, args);
        assert_eq!(run.code, Some(code), "{run:#?}");
        assert!(run.err.contains(word), "{run:#?}");
    };
    fails(
        &["incr", "s.json", "/n", "--if-version", "1"],
        3,
        "plain directory",
    );
    fails(&["incr", "none.json", "/n"], 3, "--create");
    fails(&["set", "s.json", "/a/b", "1"], 8, "merge");
    fails(&["update", "s.json", "--", "false"], 10, "false");
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["link", "new.json", "s.json"],
        "nothing is left over"
    );
    // Among themselves they do take turns.
    let script =
        format!("for i in $(seq 10); do {BINARY} json incr c.json /n --create || exit; done");
    all_at_once(&m, 4, &script);
    assert_eq!(
        std::fs::read_to_string(directory.join("c.json")).unwrap(),
        "{\"n\": 40}\n"
    );
}

#[test]
fn the_backing_directory_of_a_living_mount_is_left_alone() {
    need_daemon!();
    let mut m = mount!(Mount::options().separate().seed("s.json", "{\"n\": 1}"));
    let below = m.backing().join("s.json");
    let below = below.to_str().unwrap();
    let mountpoint = m.mountpoint().to_str().unwrap().to_owned();
    refused(
        commitfs(["json", "incr", below, "/n"]),
        3,
        &["edit it there", &mountpoint],
    );
    prints(json(&m, &["incr", "s.json", "/n"]), "2");
    m.unmount();
    assert_eq!(commitfs(["json", "incr", below, "/n"]).ok().out, "3\n");
    m.remount();
    prints(json(&m, &["get", "s.json", "/n"]), "3");
    // Who died leaves a mount that says so.
    m.strike_daemon();
    refused(
        json_in(Path::new("/"), &["get", m.path("s.json").to_str().unwrap()]),
        3,
        &["mount again"],
    );
}
