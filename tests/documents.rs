//! C15 and C16: JSON documents are edited through attributes, one edit after the other, and what
//! an edit doesn't touch stays as it was.

mod common;

use std::time::Duration;

use common::{Actor, Mount, assert_content, assert_errno, eventually, times};

const PATCH: &str = "user.commitfs.json.patch";
const MERGE: &str = "user.commitfs.json.merge";
const INCREMENT: &[u8] = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;

fn number(m: &Mount, name: &str, member: &str) -> i64 {
    let document: serde_json::Value =
        serde_json::from_slice(&m.read(name).expect("the document")).expect("JSON");
    document[member].as_i64().expect("a number")
}

#[test]
fn no_increment_of_ten_processes_is_lost() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let each = times(100, 2000);
    let before = m.commits();
    let mut actors: Vec<Actor> = (0..10).map(|_| Actor::new()).collect();
    std::thread::scope(|scope| {
        for actor in &mut actors {
            let path = m.path("s.json");
            scope.spawn(move || {
                for _ in 0..each {
                    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
                }
            });
        }
    });
    assert_eq!(number(&m, "s.json", "n"), 10 * each as i64);
    assert_eq!(m.version("s.json").unwrap(), 1 + 10 * each as u64);
    assert_eq!(m.commits() - before, 10 * each as u64);
    assert_eq!(m.status()["counters"]["patches"], 10 * each);
}

#[test]
fn patches_and_whole_saves_never_mix() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0, "of": "nobody"}"#);
    let (mut patcher, mut saver) = (Actor::new(), Actor::new());
    let rounds = times(200, 5000);
    std::thread::scope(|scope| {
        let path = m.path("s.json");
        scope.spawn(move || {
            for _ in 0..rounds {
                patcher.setxattr(&path, PATCH, INCREMENT).unwrap();
            }
        });
        let path = m.path("s.json");
        scope.spawn(move || {
            for _ in 0..rounds / 10 {
                saver
                    .save(&path, br#"{"n": 0, "of": "the saver"}"#)
                    .unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
    // Each save begins anew, each patch counts on from what is there.
    let left = number(&m, "s.json", "n");
    assert!(left >= 0 && left <= rounds as i64, "{left}");
    let versions = m.version("s.json").unwrap();
    assert_eq!(versions, 1 + rounds as u64 + rounds as u64 / 10);
}

#[test]
fn all_operations_of_a_patch_apply_or_none_does() {
    need_daemon!();
    let m = mount!();
    let text = "{\n  \"b\": 1,\n  \"a\": [1, 2]\n}\n";
    m.save("s.json", text);
    let mut actor = Actor::new();
    let path = m.path("s.json");
    let patch = br#"[{"op": "replace", "path": "/b", "value": 2},
                     {"op": "remove", "path": "/a/0"},
                     {"op": "test", "path": "/a/0", "value": 1}]"#;
    assert_errno(actor.setxattr(&path, PATCH, patch), "ECANCELED");
    assert_content(m.read("s.json"), text.as_bytes(), "after a failed patch");
    assert_eq!(m.version("s.json").unwrap(), 1, "no commit");
    let said = actor.getxattr(&path, "user.commitfs.json.error").unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said),
        "operation 3: test failed at /a/0: expected 1, found 2"
    );
}

#[test]
fn what_is_not_touched_stays_as_it_was_written() {
    need_daemon!();
    let m = mount!();
    let text = "{\n    \"z\": 1.10,\n    \"big\": 12345678901234567890123,\n    \
                \"s\": \"\\u00e9\",\n    \"nan\": NaN,\n    \"n\": 1,\n    \"row\": [1, 2, 3]\n}";
    m.save("s.json", text);
    let mut actor = Actor::new();
    let path = m.path("s.json");
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    let expected = text.replace("\"n\": 1,", "\"n\": 2,");
    assert_content(m.read("s.json"), expected.as_bytes(), "after a patch");
    actor
        .setxattr(&path, MERGE, br#"{"big": null, "new": {"x": true}}"#)
        .unwrap();
    let expected = expected.replace("    \"big\": 12345678901234567890123,\n", "");
    let found = m.text("s.json").unwrap();
    let kept = &expected[..expected.len() - 2];
    assert!(found.starts_with(kept), "{found}");
    assert!(found.contains("\"new\": {"), "{found}");
}

#[test]
fn a_patch_of_a_version_applies_to_that_one_alone() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let mut actor = Actor::new();
    let path = m.path("s.json");
    let at = |version: u64| format!("{PATCH}@{version}");
    actor.setxattr(&path, &at(1), INCREMENT).unwrap();
    assert_errno(actor.setxattr(&path, &at(1), INCREMENT), "ESTALE");
    let said = actor.getxattr(&path, "user.commitfs.json.error").unwrap();
    assert_eq!(said, b"the current version is 2");
    actor.setxattr(&path, &at(2), INCREMENT).unwrap();
    assert_eq!(number(&m, "s.json", "n"), 2);
    assert_eq!(m.status()["counters"]["stale_patches"], 1);
}

#[test]
fn compare_and_set_by_many_processes_loses_nothing() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let each = times(20, 100);
    let mut actors: Vec<Actor> = (0..5).map(|_| Actor::new()).collect();
    std::thread::scope(|scope| {
        for actor in &mut actors {
            let path = m.path("s.json");
            scope.spawn(move || {
                for _ in 0..each {
                    loop {
                        let version = actor.getxattr(&path, "user.commitfs.version").unwrap();
                        let version = String::from_utf8(version).unwrap();
                        let text = actor.getxattr(&path, "user.commitfs.json:/n").unwrap();
                        let n: i64 = String::from_utf8(text).unwrap().parse().unwrap();
                        let patch =
                            format!(r#"[{{"op": "replace", "path": "/n", "value": {}}}]"#, n + 1);
                        let name = format!("{PATCH}@{version}");
                        match actor.setxattr(&path, &name, patch.as_bytes()) {
                            Ok(()) => break,
                            Err(e) => assert_eq!(e.errno, "ESTALE"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(number(&m, "s.json", "n"), 5 * each as i64);
}

#[test]
fn each_thread_is_told_the_version_and_value_of_its_own_patch() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 41}"#);
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let path = m.path("s.json");
    one.setxattr(&path, PATCH, INCREMENT).unwrap();
    two.setxattr(&path, MERGE, br#"{"other": [1]}"#).unwrap();
    let result = "user.commitfs.json.result";
    let told = |actor: &mut Actor| -> serde_json::Value {
        serde_json::from_slice(&actor.getxattr(&path, result).unwrap()).unwrap()
    };
    assert_eq!(
        told(&mut one),
        serde_json::json!({"version": 2, "value": 42})
    );
    assert_eq!(told(&mut two), serde_json::json!({"version": 3}));
    assert_errno(Actor::new().getxattr(&path, result), "ENODATA");
}

#[test]
fn pointers_read_single_values() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"a": {"b/c": [10, {"d": "é"}]}, "": 0}"#);
    let mut actor = Actor::new();
    let path = m.path("s.json");
    for (pointer, value) in [
        ("/a/b~1c/0", "10"),
        ("/a/b~1c/1", "{\"d\": \"é\"}"),
        ("/", "0"),
    ] {
        let found = actor
            .getxattr(&path, &format!("user.commitfs.json:{pointer}"))
            .unwrap();
        let found: serde_json::Value = serde_json::from_slice(&found).unwrap();
        let value: serde_json::Value = serde_json::from_str(value).unwrap();
        assert_eq!(found, value, "{pointer}");
    }
    for (pointer, errno) in [
        ("/q", "ENODATA"),
        ("/a/b~1c/01", "ENODATA"),
        ("a", "EINVAL"),
    ] {
        let name = format!("user.commitfs.json:{pointer}");
        assert_errno(actor.getxattr(&path, &name), errno);
    }
}

#[test]
fn bad_edits_change_nothing_and_say_why() {
    need_daemon!();
    let m = mount!();
    m.save(
        "s.json",
        r#"{"n": 1, "text": "x", "max": 18446744073709551615}"#,
    );
    m.save("lines.json", "{}\n{}\n");
    m.save("twice.json", r#"{"a": 1, "a": 2}"#);
    m.save("bytes.bin", [0xff, 0xfe]);
    m.save("direct.pid", "{}");
    m.mkdir("d");
    let deep = format!(
        r#"[{{"op": "add", "path": "/x", "value": {}1{}}}]"#,
        "[".repeat(600),
        "]".repeat(600)
    );
    let increment =
        |member: &str| format!(r#"[{{"op": "increment", "path": "/{member}", "value": 1}}]"#);
    let cases: &[(&str, &str, &str, &str, &str)] = &[
        ("s.json", PATCH, "{", "EINVAL", "not JSON"),
        ("s.json", PATCH, "{}", "EINVAL", "array of operations"),
        ("s.json", PATCH, r#"[{"op": "grow"}]"#, "EINVAL", "grow"),
        (
            "s.json",
            PATCH,
            r#"[{"op": "remove", "path": "/q"}]"#,
            "ENOENT",
            "/q",
        ),
        ("s.json", PATCH, &increment("text"), "EINVAL", "/text"),
        (
            "s.json",
            PATCH,
            &increment("max"),
            "ERANGE",
            "18446744073709551616",
        ),
        ("s.json", PATCH, &deep, "EINVAL", "nested"),
        ("s.json", MERGE, "nonsense", "EINVAL", "not JSON"),
        ("lines.json", PATCH, "[]", "EBADMSG", "second value"),
        ("twice.json", MERGE, r#"{"b": 1}"#, "EBADMSG", "\"a\""),
        ("bytes.bin", PATCH, "[]", "EBADMSG", "UTF-8"),
        ("direct.pid", PATCH, "[]", "EOPNOTSUPP", "direct mode"),
        (
            "s.json",
            "user.commitfs.json.patch@x",
            "[]",
            "EOPNOTSUPP",
            "",
        ),
        ("s.json", "user.commitfs.nonsense", "1", "EOPNOTSUPP", ""),
    ];
    assert_errno(
        Actor::new().setxattr(&m.path("d"), PATCH, b"[]"),
        "EOPNOTSUPP",
    );
    for (name, attribute, value, errno, reason) in cases {
        let mut actor = Actor::new();
        let path = m.path(name);
        let before = m.read(name);
        assert_errno(actor.setxattr(&path, attribute, value.as_bytes()), errno);
        assert_eq!(m.read(name), before, "{name} {attribute} {value}");
        if reason.is_empty() {
            continue;
        }
        let said = actor.getxattr(&path, "user.commitfs.json.error").unwrap();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(reason), "{value}: {said:?} lacks {reason:?}");
    }
}

#[test]
fn an_empty_file_counts_as_an_empty_object() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", "");
    let mut actor = Actor::new();
    let path = m.path("s.json");
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    assert_eq!(number(&m, "s.json", "n"), 1);
    assert_errno(
        actor.setxattr(&m.path("none.json"), PATCH, INCREMENT),
        "ENOENT",
    );
}

#[test]
fn the_names_are_listed_nowhere_and_copied_by_nobody() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let mut actor = Actor::new();
    let path = m.path("s.json");
    actor.setxattr(&path, "user.mine", b"kept").unwrap();
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    m.sh("cp -a s.json copy.json").ok();
    for name in ["s.json", "copy.json"] {
        let listed = m.python(&format!("import os; print(os.listxattr('{name}'))"));
        assert_eq!(listed.ok().out.trim(), "['user.mine']", "{name}");
    }
}

#[test]
fn readers_and_attributes_are_those_of_any_commit() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    m.sh("chmod 640 s.json").ok();
    let mut reader = Actor::new();
    let path = m.path("s.json");
    reader.open("f", "r", &path).unwrap();
    let mut actor = Actor::new();
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    // An open reader keeps its version, and a patch through its descriptor's path is of the file.
    assert_content(
        reader.read_all("f").ok(),
        br#"{"n": 0}"#,
        "what was open before",
    );
    assert_content(m.read("s.json"), br#"{"n": 1}"#, "the patch");
    assert_eq!(m.sh("stat -c %a s.json").ok().out.trim(), "640");
    // A writer's unfinished content is not what is patched.
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", r#"{"n": 100"#).unwrap();
    writer.setxattr(&path, PATCH, INCREMENT).unwrap();
    assert_content(m.read("s.json"), br#"{"n": 2}"#, "the second patch");
    writer.write("f", "}").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("s.json"), br#"{"n": 100}"#, "the last close wins");
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    assert_content(m.read("s.json"), br#"{"n": 101}"#, "on what was saved");
}

#[test]
fn a_renamed_or_replaced_document_is_patched_as_it_is_then() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let mut actor = Actor::new();
    actor.setxattr(&m.path("s.json"), PATCH, INCREMENT).unwrap();
    actor.rename(&m.path("s.json"), &m.path("t.json")).unwrap();
    actor.setxattr(&m.path("t.json"), PATCH, INCREMENT).unwrap();
    m.save("s.json", r#"{"n": 10}"#);
    actor.setxattr(&m.path("s.json"), PATCH, INCREMENT).unwrap();
    actor.rename(&m.path("s.json"), &m.path("t.json")).unwrap();
    actor.setxattr(&m.path("t.json"), PATCH, INCREMENT).unwrap();
    assert_content(m.read("t.json"), br#"{"n": 12}"#, "after the renames");
    actor.unlink(&m.path("t.json")).unwrap();
    m.save("t.json", r#"{"n": 5}"#);
    actor.setxattr(&m.path("t.json"), PATCH, INCREMENT).unwrap();
    assert_content(m.read("t.json"), br#"{"n": 6}"#, "after the unlink");
}

#[test]
fn an_acknowledged_patch_survives_the_kill_of_the_daemon() {
    need_daemon!();
    for durability in [false, true] {
        // Over its own directory, a dead mount would leave plain files, which take any attribute.
        let options = Mount::options().separate().limit(Duration::from_secs(600));
        let mut m = mount!(if durability { options.sync() } else { options });
        m.save("s.json", r#"{"n": 0}"#);
        let mut done = 0;
        for round in 0..times(10, 150) {
            let mut actor = Actor::new();
            let path = m.path("s.json");
            let patcher = std::thread::spawn(move || {
                let mut acknowledged = 0;
                while actor.setxattr(&path, PATCH, INCREMENT).is_ok() {
                    acknowledged += 1;
                }
                acknowledged
            });
            std::thread::sleep(Duration::from_millis(5 + 7 * (round as u64 % 5)));
            m.kill_daemon();
            done += patcher.join().expect("the patcher");
            m.remount();
            let found = number(&m, "s.json", "n");
            assert!(
                found == done || found == done + 1,
                "round {round}: {found} of {done}"
            );
            done = found;
        }
    }
}

#[test]
fn an_open_that_fails_for_a_text_which_cannot_be_written_leaves_nothing_open() {
    need_daemon!();
    // The mount's own look at the text, when it is put in place, comes later and finds it well.
    let failing = format!("text:{}:1", libc::EIO);
    let mut m = mount!(
        Mount::options()
            .args(["--bound", "60000"])
            .env("COMMITFS_FAIL_AT", failing)
    );
    m.save("s.json", r#"{"n": 0}"#);
    let (mut actor, path) = (Actor::new(), m.path("s.json"));
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    assert_errno(actor.open("f", "r+", &path), "EIO");
    assert_eq!(m.transactions().len(), 0, "{:?}", m.transactions());
    actor.open("f", "r+", &path).unwrap();
    assert_content(actor.pread("f", 0, 9).ok(), br#"{"n": 1}"#, "now");
    actor.close("f").unwrap();
    m.unmount();
    let left = std::fs::read(m.backing().join("s.json")).ok();
    assert_content(left, br#"{"n": 1}"#, "what was patched");
}

#[test]
fn a_patched_document_shows_the_attributes_of_its_text_before_that_is_written() {
    need_daemon!();
    let m = mount!(Mount::options().args(["--bound", "60000"]));
    m.save("s.json", "{\n  \"n\": 0,\n  \"l\": []\n}\n");
    let (mut actor, path) = (Actor::new(), m.path("s.json"));
    let patches = [
        br#"[{"op": "add", "path": "/l/-", "value": {"a": [1, "\u00e9"]}}]"#.as_slice(),
        br#"[{"op": "increment", "path": "/n", "value": 1000000}]"#,
        br#"[{"op": "remove", "path": "/l/0"}]"#,
        br#"[{"op": "add", "path": "/l/-", "value": []}, {"op": "add", "path": "/l/0/-", "value": 2}]"#,
    ];
    let mut before = actor.stat(&path).unwrap();
    for patch in patches {
        actor.setxattr(&path, PATCH, patch).unwrap();
        let told = actor.stat(&path).unwrap();
        assert_ne!(told.ino, before.ino, "another version, another number");
        assert!(told.mtime_ns > before.mtime_ns, "the time grows");
        let listed = actor.ask(
            "inode-in-listing",
            &[m.mountpoint().as_os_str().as_encoded_bytes(), b"s.json"],
        );
        assert_eq!(listed.unwrap()[0], told.ino.to_string().as_bytes());
        let text = m.read("s.json").unwrap();
        assert_eq!(
            told.size,
            text.len() as u64,
            "{}",
            String::from_utf8_lossy(&text)
        );
        let read = actor.stat(&path).unwrap();
        assert_eq!(
            (read.ino, read.mtime_ns),
            (told.ino, told.mtime_ns),
            "reading changes nothing"
        );
        before = read;
    }
}

#[test]
fn check_recover_brings_acknowledged_patches_into_the_plain_file() {
    need_daemon!();
    let mut m = mount!(Mount::options().separate().args(["--bound", "60000"]));
    m.save("s.json", "{\"n\": 0}\n");
    let (mut actor, path) = (Actor::new(), m.path("s.json"));
    for _ in 0..5 {
        actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    }
    m.kill_daemon();
    let backing = m.backing().to_owned();
    let found = common::commitfs(["check".as_ref(), backing.as_path()]).ok();
    assert!(
        found.out.contains("commits a mount would put in place: 6"),
        "{found:#?}"
    );
    assert!(
        !backing.join("s.json").exists(),
        "nothing was changed by looking"
    );
    common::commitfs(["check".as_ref(), "--recover".as_ref(), backing.as_path()]).ok();
    assert_eq!(
        std::fs::read_to_string(backing.join("s.json")).unwrap(),
        "{\"n\": 5}\n"
    );
    // The next mount goes on from there.
    m.remount();
    assert_eq!(m.version("s.json").unwrap(), 6);
    assert_eq!(number(&m, "s.json", "n"), 5);
}

#[test]
fn patches_of_a_document_that_was_changed_while_unmounted_are_applied_to_it_or_kept() {
    need_daemon!();
    for (changed, after) in [
        (r#"{"n": 10, "by": "hand"}"#, Some(13)),
        ("no document", None),
    ] {
        let mut m = mount!(Mount::options().separate().args(["--bound", "60000"]));
        m.save("s.json", r#"{"n": 0}"#);
        m.unmount();
        m.remount();
        let (mut actor, path) = (Actor::new(), m.path("s.json"));
        for _ in 0..3 {
            actor.setxattr(&path, PATCH, INCREMENT).unwrap();
        }
        m.kill_daemon();
        std::fs::write(m.backing().join("s.json"), changed).unwrap();
        m.remount();
        match after {
            Some(after) => {
                assert_eq!(number(&m, "s.json", "n"), after);
                assert!(
                    m.text("s.json").unwrap().contains("by"),
                    "the change by hand stays"
                );
                assert!(m.rejected().is_empty());
            }
            None => {
                assert_content(
                    m.read("s.json"),
                    changed.as_bytes(),
                    "the change by hand stays",
                );
                let kept = [INCREMENT, b"\n"].concat().repeat(3);
                m.await_rejected("s.json", &kept);
            }
        }
    }
}

#[test]
fn large_patches_and_small_ones_and_saves_follow_each_other() {
    need_daemon!();
    let mut m = mount!(Mount::options().separate().limit(Duration::from_secs(120)));
    m.save("s.json", r#"{"n": 0, "text": ""}"#);
    let mut script = String::from("import json, os, subprocess, sys\nn = 0\n");
    script += &format!("commitfs = {:?}\n", env!("CARGO_BIN_EXE_commitfs"));
    script += r#"
def patch(value):
    os.setxattr("s.json", "user.commitfs.json.patch", json.dumps(value).encode())
add = {"op": "increment", "path": "/n", "value": 1}
for round in range(12):
    patch([add]); n += 1
    if round % 3 != 2:
        text = "x" * (400_000 + round)
        large = json.dumps([add, {"op": "replace", "path": "/text", "value": text}])
        subprocess.run([commitfs, "json", "patch", "-q", "s.json", "-"], input=large.encode(), check=True); n += 1
    for _ in range(3):
        patch([add]); n += 1
    if round % 4 == 1:
        seen = json.load(open("s.json"))
        assert seen["n"] == n, (seen["n"], n)
        assert seen["text"] == text, len(seen["text"])
        json.dump(seen | {"n": n}, open("s.json", "w"))
    if round % 5 == 2:
        os.rename("s.json", "t.json")
        os.rename("t.json", "s.json")
print(n)
"#;
    let expected: i64 = m.python(&script).ok().out.trim().parse().unwrap();
    m.kill_daemon();
    m.remount();
    assert_eq!(number(&m, "s.json", "n"), expected);
}

#[test]
fn who_opens_a_document_while_it_is_patched_finds_it_whole() {
    need_daemon!();
    let m = mount!(Mount::options().limit(Duration::from_secs(120)));
    m.save(
        "s.json",
        format!(r#"{{"n": 0, "text": "{}"}}"#, "x".repeat(3000)),
    );
    let mut patching = m.live_python(
        "import itertools, os\n\
         patch = b'[{\"op\": \"increment\", \"path\": \"/n\", \"value\": 1}]'\n\
         for i in itertools.count():\n    \
             os.setxattr('s.json', 'user.commitfs.json.patch', patch)\n    \
             i == 100 and print('patching')\n",
    );
    patching.expect("patching");
    let looked = m.python(&format!(
        "import json, os\n\
         for i in range({}):\n    \
             for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):\n        \
                 fd = os.open('s.json', flags)\n        \
                 text = os.read(fd, 100000)\n        \
                 assert len(json.loads(text)['text']) == 3000, (flags, text[:50])\n        \
                 assert os.fstat(fd).st_size == len(text), (flags, os.fstat(fd), len(text))\n        \
                 os.close(fd)\n    \
             os.link('s.json', f'link-{{i}}.json')\n    \
             for name in (f'link-{{i}}.json', 's.json'):\n        \
                 text = open(name).read()\n        \
                 assert len(json.loads(text)['text']) == 3000, (name, text[:50])\n    \
             os.unlink(f'link-{{i}}.json')\n",
        times(100, 2000)
    ));
    patching.kill(libc::SIGKILL);
    looked.ok();
}

#[test]
fn what_was_written_in_place_is_what_is_patched() {
    need_daemon!();
    let m = mount!(Mount::options().rules(
        r#"
            [[rule]]
            glob = "*.part"
            mode = "direct"
            [[rule]]
            glob = "s.json"
            guard = "none"
        "#
    ));
    let script = r#"
import os
def patch():
    value = b'[{"op": "increment", "path": "/n", "value": 1}]'
    os.setxattr('s.json', 'user.commitfs.json.patch', value)
open('s.json', 'w').write('{"n": 0}')
patch()
open('s.json').read()
os.rename('s.json', 's.part')
with open('s.part', 'r+') as f:
    f.write('{"n": 7}')
os.rename('s.part', 's.json')
patch()
assert open('s.json').read() == '{"n": 8}', open('s.json').read()
with open('s.json', 'a') as f:
    f.write('no JSON\n')
try:
    patch()
    raise SystemExit('a line is gone')
except OSError as e:
    assert e.errno == 74, e
"#;
    m.python(script).ok();
    assert_content(m.read("s.json"), b"{\"n\": 8}no JSON\n", "the line");
}

#[test]
fn a_save_that_began_between_two_patches_has_overwritten_the_second() {
    need_daemon!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let script = r#"
import os
patch = b'[{"op": "increment", "path": "/n", "value": 1}]'
os.setxattr('s.json', 'user.commitfs.json.patch', patch)
with open('s.json', 'w') as f:
    f.write('{"n": 7}')
    if not os.fork():
        os.setxattr('s.json', 'user.commitfs.json.patch', patch)
        os._exit(0)
    os.wait()
"#;
    // The patch is of the current version, and not of what the program is about to save.
    m.python(script).ok();
    assert_eq!(number(&m, "s.json", "n"), 7);
    assert_eq!(m.status()["counters"]["overwritten_updates"], 1);
}

#[test]
fn who_opens_a_large_document_while_it_grows_and_shrinks_finds_it_whole() {
    need_daemon!();
    let m = mount!(Mount::options().limit(Duration::from_secs(120)));
    m.save(
        "s.json",
        format!(r#"{{"text": "", "ballast": "{}"}}"#, "x".repeat(100_000)),
    );
    let mut patching = m.live_python(
        "import itertools, json, os\n\
         for i in itertools.count():\n    \
             patch = json.dumps({'text': 'y' * (i % 7 * 1000)}).encode()\n    \
             os.setxattr('s.json', 'user.commitfs.json.merge', patch)\n    \
             i == 100 and print('patching')\n",
    );
    patching.expect("patching");
    let looked = m.python(&format!(
        "import json, mmap, os\n\
         for i in range({}):\n    \
             with open('s.json') as f:\n        \
                 text = f.read()\n        \
                 assert os.fstat(f.fileno()).st_size == len(text), len(text)\n        \
                 assert mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE)[:] == text.encode(), 'mapped'\n    \
             fd, pieces = os.open('s.json', os.O_RDONLY), []\n    \
             while not pieces or pieces[-1]:\n        \
                 pieces.append(os.read(fd, 1000))\n    \
             os.close(fd)\n    \
             assert json.loads(text).keys() == json.loads(b''.join(pieces)).keys()\n",
        times(200, 2000)
    ));
    patching.kill(libc::SIGKILL);
    looked.ok();
}

#[test]
fn a_patch_succeeds_though_its_document_is_put_in_place_meanwhile() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_EDIT_DELAY_MS", 20));
    m.save("s.json", r#"{"n": 0}"#);
    // By descriptor: nobody looks the name up, and what was put in place is forgotten.
    let script = r#"
import os
fd = os.open('s.json', os.O_RDONLY)
for _ in range(150):
    os.setxattr(fd, 'user.commitfs.json.patch', b'[{"op": "increment", "path": "/n", "value": 1}]')
    assert os.getxattr(fd, 'user.commitfs.json:/n')
"#;
    m.python(script).ok();
    assert_eq!(number(&m, "s.json", "n"), 150);
}

#[test]
fn a_daemon_that_has_written_out_a_patched_document_rests() {
    need_daemon!();
    for durability in ["async", "sync"] {
        let options = Mount::options().args(["--durability", durability]);
        let m = mount!(options);
        m.save("s.json", r#"{"n": 0}"#);
        m.save("log.txt", "a line\n");
        Actor::new()
            .setxattr(&m.path("s.json"), PATCH, INCREMENT)
            .unwrap();
        let stat = format!("/proc/{}/stat", m.daemon_pid());
        let used = || -> u64 {
            let stat = std::fs::read_to_string(&stat).expect("its times");
            let (_, after) = stat.rsplit_once(')').expect("its name");
            let times = after.split_whitespace().skip(11).take(2);
            times
                .map(|ticks| ticks.parse::<u64>().expect("a number"))
                .sum()
        };
        std::thread::sleep(Duration::from_secs(2));
        let before = used();
        std::thread::sleep(Duration::from_secs(2));
        // Of 200, if it had a processor for itself.
        let ticks = used() - before;
        assert!(
            ticks < 40,
            "{ticks} ticks in two seconds, with {durability}"
        );
    }
}

#[test]
fn a_save_whose_file_is_given_back_after_a_patch_is_later_than_that() {
    need_daemon!();
    let m = mount!();
    let path = m.path("s.json");
    m.save("s.json", r#"{"n": 0}"#);
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "w+", &path).unwrap();
    writer.write("f", r#"{"n": 10}"#).unwrap();
    // Closed, and ready to be committed, but not given back.
    writer.mmap("f", "map", 9, "r").unwrap();
    writer.close("f").unwrap();
    let mut patched = 0;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(30));
        other.setxattr(&path, PATCH, INCREMENT).unwrap();
        patched = other.stat(&path).unwrap().mtime_ns;
    }
    writer.munmap("map").unwrap();
    eventually(Duration::from_secs(5), "the save", || {
        m.read("s.json").is_some_and(|text| text == br#"{"n": 10}"#)
    });
    let saved = other.stat(&path).unwrap().mtime_ns;
    assert!(saved > patched, "{} ns earlier", patched - saved);
}

#[test]
fn a_descriptor_older_than_the_mode_is_no_way_to_edit_or_read() {
    need_root!();
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let script = r#"
import os
os.chmod('s.json', 0o666)
fd = os.open('s.json', os.O_RDONLY)
open('s.json', 'w').write('{"n": 1}')
patch = b'[{"op": "increment", "path": "/n", "value": 1}]'
child = os.fork()
if not child:
    os.setuid(65534)
    os.setxattr(fd, 'user.commitfs.json.patch', patch)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "the mode allowed it"
os.chmod('s.json', 0o600)
child = os.fork()
if not child:
    os.setuid(65534)
    for attempt in (lambda: os.setxattr(fd, 'user.commitfs.json.patch', patch),
                    lambda: os.getxattr(fd, 'user.commitfs.json:')):
        try:
            attempt()
            os._exit(1)
        except OSError as e:
            assert e.errno == 116, e
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0, "it was edited or read"
"#;
    m.python(script).ok();
    assert_eq!(number(&m, "s.json", "n"), 2);
}

#[test]
fn patches_that_were_put_in_place_are_not_found_unfit_after_a_kill() {
    need_daemon!();
    let mut m = mount!(Mount::options().separate());
    m.save("s.json", r#"{"n": 0, "gone": 1}"#);
    let (mut actor, path) = (Actor::new(), m.path("s.json"));
    let remove = br#"[{"op": "remove", "path": "/gone"}]"#;
    actor.setxattr(&path, PATCH, remove).unwrap();
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    m.command(&["status"]);
    actor.open("d", "r|directory", m.mountpoint()).unwrap();
    actor.fsync("d").unwrap();
    actor.setxattr(&path, PATCH, INCREMENT).unwrap();
    m.kill_daemon();
    m.remount();
    assert_content(m.read("s.json"), br#"{"n": 2}"#, "the document");
    assert!(m.rejected().is_empty(), "{:?}", m.rejected().len());
}

#[test]
fn who_stops_appending_to_a_document_goes_on_from_its_patched_text() {
    need_daemon!();
    let m = mount!();
    // No guard, and it ends in a newline: it is appended to in place.
    m.save("state", "{\"n\": 0, \"text\": \"\"}\n");
    let script = r#"
import os
fd = os.open('state', os.O_RDWR | os.O_APPEND)
patch = b'[{"op": "replace", "path": "/text", "value": "abc"}]'
for n in range(3):
    os.setxattr('state', 'user.commitfs.json.patch', patch.replace(b'abc', b'abc' * n))
os.ftruncate(fd, 1000)
os.ftruncate(fd, 27)
os.close(fd)
"#;
    m.python(script).ok();
    assert_content(
        m.read("state"),
        b"{\"n\": 0, \"text\": \"abcabc\"}\n",
        "what was patched",
    );
}

#[test]
fn who_creates_a_file_that_was_committed_and_patched_meanwhile_edits_the_patched_text() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_CREATE_DELAY_MS", 500));
    let script = r#"
import os, time
begun, begin = os.pipe()
# Not the other way round: a child sees what its parent has staged.
creator = os.fork()
if not creator:
    first = os.open('s.json', os.O_WRONLY | os.O_CREAT)
    same = os.open('s.json', os.O_RDONLY)
    os.write(first, b'{"n": 0}')
    os.write(begin, b'.')
    time.sleep(0.2)
    # The editor has found no such file by now, and is about to create it.
    os.close(first)
    for _ in range(3):
        os.setxattr(same, 'user.commitfs.json.patch', b'[{"op": "increment", "path": "/n", "value": 1}]')
    os._exit(0)
os.read(begun, 1)
editor = os.open('s.json', os.O_RDWR | os.O_CREAT)
assert os.fstat(editor).st_size == 8, os.fstat(editor)
text = os.read(editor, 100)
assert text == b'{"n": 3}', text
os.pwrite(editor, b'{"m"', 0)
os.close(editor)
assert os.waitpid(creator, 0)[1] == 0
"#;
    m.python(script).ok();
    assert_content(m.read("s.json"), br#"{"m": 3}"#, "the document");
}

#[test]
fn whatever_is_done_to_a_name_while_it_is_patched_no_patch_is_lost_and_no_old_text_comes_back() {
    need_daemon!();
    for name in ["s.json", "state"] {
        let m = mount!(Mount::options().limit(Duration::from_secs(120)));
        let mut patching = m.live_python(&format!(
            "import itertools, os\n\
             patch = b'[{{\"op\": \"increment\", \"path\": \"/others\", \"value\": 1}}]'\n\
             print('patching')\n\
             while True:\n    \
                 try: os.setxattr({name:?}, 'user.commitfs.json.patch', patch)\n    \
                 except OSError: pass\n"
        ));
        patching.expect("patching");
        let script = r#"
import json, os, random
generation = mine = 0
def save(flags):
    global generation, mine
    generation, mine = generation + 1, 0
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | flags)
    os.write(fd, json.dumps({"generation": generation, "mine": 0, "others": 0, "text": "x" * random.randrange(9000)}).encode())
    os.close(fd)
def patch(at, times):
    global mine
    for _ in range(times):
        os.setxattr(at, 'user.commitfs.json.patch', b'[{"op": "increment", "path": "/mine", "value": 1}]')
        mine += 1
def check(how, at, flags=os.O_RDONLY):
    fd = os.open(at, flags)
    text = os.read(fd, 100000)
    os.close(fd)
    found = json.loads(text)
    assert (found["generation"], found["mine"]) == (generation, mine), (how, text[:60], generation, mine)
save(os.O_EXCL)
for _ in range(rounds):
    patch(name, random.randrange(4))
    how = random.choice(["read", "edit", "create", "append", "link", "rename", "truncate", "replace", "unlink"])
    if how == "read":
        check(how, name)
    elif how == "edit":
        check(how, name, os.O_RDWR)
    elif how == "create":
        check(how, name, os.O_RDWR | os.O_CREAT)
    elif how == "append":
        check(how, name, os.O_RDWR | os.O_APPEND)
    elif how == "link":
        os.link(name, "link")
        check(how, "link")
        os.unlink("link")
    elif how == "rename":
        os.rename(name, "elsewhere")
        check(how, "elsewhere")
        patch("elsewhere", random.randrange(3))
        os.rename("elsewhere", name)
    elif how == "truncate":
        save(os.O_TRUNC)
    elif how == "replace":
        os.rename(name, "old")
        save(os.O_EXCL)
        os.unlink("old")
    else:
        os.unlink(name)
        assert not os.path.exists(name)
        save(os.O_EXCL)
    check("after " + how, name)
"#;
        let rounds = times(150, 2000);
        let done = m.python(&format!("name, rounds = {name:?}, {rounds}\n{script}"));
        patching.kill(libc::SIGKILL);
        done.ok();
    }
}
