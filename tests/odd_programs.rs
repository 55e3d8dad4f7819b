//! Rules for programs that the defaults don't fit (C2, C21, C22): one that keeps its status file open for
//! as long as it runs and rewrites it, so that nobody would see it; and one whose own handler an error of
//! close() would mask.

mod common;

use std::time::{Duration, Instant};

use common::{Actor, Mount, assert_content, assert_errno, binary, commitfs, eventually};

const WHOLE: &str = "[[rule]]\nglob = \"status*\"\nguard = \"json\"\npublish = \"whole\"\n\
                     [[rule]]\nglob = \"*.npy\"\npublish = \"whole\"\n";
const QUIET: &str = "[[rule]]\nglob = \"*.json\"\nclose_error = false\n";
/// Longer than what is whole has to rest, and the watch takes to look.
const RESTED: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(10);

#[track_caller]
fn await_content(m: &Mount, name: &str, expected: &[u8]) {
    eventually(SOON, &format!("{name} is shown"), || {
        m.read(name).as_deref() == Some(expected)
    });
}

/// Writes a text as programs do that have their file open: from its beginning, then cut to its length.
#[track_caller]
fn rewrite(writer: &mut Actor, text: &str) {
    writer.pwrite("f", 0, text.as_bytes()).unwrap();
    writer.ftruncate("f", text.len() as u64).unwrap();
}

/// An array of bytes in numpy's format.
fn array(fill: u8) -> Vec<u8> {
    let mut header = "{'descr': '|u1', 'fortran_order': False, 'shape': (5000,), }".to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let len = u16::try_from(header.len()).unwrap().to_le_bytes();
    [
        b"\x93NUMPY\x01\x00",
        &len[..],
        header.as_bytes(),
        &[fill; 5000],
    ]
    .concat()
}

#[test]
fn each_whole_text_of_a_file_that_is_held_open_is_shown() {
    need_daemon!();
    for (name, mode) in [
        ("status.json", "w"),
        ("status.json", "r+"),
        ("status", "w+"),
    ] {
        let m = mount!(Mount::options().rules(WHOLE));
        let is_new = mode != "r+";
        if !is_new {
            m.save(
                name,
                "{\"step\": -1, \"and\": \"more of it than there will be\"}",
            );
        }
        let mut program = m.live_python(&format!(
            "import json, sys
f = open('{name}', '{mode}')
for step in range(3):
    f.seek(0)
    f.truncate()
    json.dump({{'step': step, 'pad': 'x' * 20000 * (step % 2)}}, f)
    f.flush()
    print('written', flush=True)
    sys.stdin.readline()
"
        ));
        let (mut inode, mut mtime) = (0, 0.0);
        for step in 0..3 {
            program.expect("written");
            let pad = "x".repeat(20000 * (step % 2));
            let text = format!("{{\"step\": {step}, \"pad\": \"{pad}\"}}");
            await_content(&m, name, text.as_bytes());
            assert_eq!(
                m.version(name).unwrap(),
                step as u64 + 1 + u64::from(!is_new)
            );
            let told = m.sh(&format!("stat -c '%i %.9Y %s' {name}")).ok().out;
            let told: Vec<f64> = told
                .split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect();
            assert!(told[0] as u64 != inode && told[1] > mtime, "{told:?}");
            (inode, mtime) = (told[0] as u64, told[1]);
            program.send("go on");
        }
        assert!(program.finish().success());
        // The close had nothing to add.
        let versions = 3 + u64::from(!is_new);
        assert_eq!(m.version(name).unwrap(), versions, "{name} {mode}");
        assert!(m.rejected().is_empty());
    }
}

#[test]
fn it_is_shown_however_it_is_written_and_under_any_guard() {
    need_daemon!();
    let m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 100000, \"of\": 200000}\n");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    for step in [7, 123, 9] {
        let text = format!("{{\"step\": {step}}}\n");
        rewrite(&mut writer, &text);
        await_content(&m, "status.json", text.as_bytes());
    }
    // The same length: no truncation shows that it is done.
    writer.pwrite("f", 0, b"{\"step\": 8}\n").unwrap();
    await_content(&m, "status.json", b"{\"step\": 8}\n");
    writer.close("f").unwrap();
    // A new file is no stream of lines under such a rule.
    writer.open("f", "w", &m.path("status.new.json")).unwrap();
    for text in ["{\"n\": 1}\n", "{\"n\": 1}\n{\"n\": 2}\n"] {
        rewrite(&mut writer, text);
        await_content(&m, "status.new.json", text.as_bytes());
    }
    writer.close("f").unwrap();
    writer.open("f", "w", &m.path("a.npy")).unwrap();
    for fill in 1..4 {
        let array = array(fill);
        writer.pwrite("f", 0, &array[..2000]).unwrap();
        writer.pwrite("f", 2000, &array[2000..]).unwrap();
        await_content(&m, "a.npy", &array);
    }
}

#[test]
fn half_a_text_at_rest_is_never_shown_and_is_no_error() {
    need_daemon!();
    // Also where an empty file may take a document's place: at its close, that is.
    for more in ["", "[[rule]]\nglob = \"status*\"\nallow_empty = true\n"] {
        let m = mount!(Mount::options().rules(&(WHOLE.to_owned() + more)));
        m.save("status.json", "{\"step\": 1}");
        let version = m.version("status.json").unwrap();
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("status.json")).unwrap();
        for half in ["", "{\"step\": ", "{\"step\": 2}}", "nothing of the kind"] {
            writer.ftruncate("f", 0).unwrap();
            rewrite(&mut writer, half);
            std::thread::sleep(RESTED);
            assert_content(m.read("status.json"), b"{\"step\": 1}", half);
        }
        assert_eq!(m.version("status.json").unwrap(), version);
        assert_eq!(m.aborts("guard"), 0);
        assert_eq!(m.status()["errors"], serde_json::json!([]));
        rewrite(&mut writer, "{\"step\": 2}");
        await_content(&m, "status.json", b"{\"step\": 2}");
    }
}

#[test]
fn nothing_is_shown_that_was_written_less_than_half_a_second_ago() {
    need_daemon!();
    let m = mount!(Mount::options().rules(WHOLE));
    let mut writer = Actor::new();
    // Where the machine stands still for that long, it is at rest.
    for _ in 0..5 {
        m.save("status.json", "{\"step\": 0}");
        writer.open("f", "r+", &m.path("status.json")).unwrap();
        let (mut last, mut longest, mut seen) = (Instant::now(), Duration::ZERO, false);
        for step in 1..20 {
            rewrite(&mut writer, &format!("{{\"step\": {step}}}"));
            seen |= m.text("status.json").as_deref() != Some("{\"step\": 0}");
            longest = longest.max(last.elapsed());
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(150));
        }
        if longest < Duration::from_millis(450) {
            assert!(!seen, "written every {longest:?} at most");
            await_content(&m, "status.json", b"{\"step\": 19}");
            return;
        }
        writer.close("f").unwrap();
    }
    eprintln!("too much is going on here to tell");
}

#[test]
fn a_killed_writer_and_a_killed_daemon_leave_the_last_whole_text() {
    need_daemon!();
    let mut m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 1}");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    await_content(&m, "status.json", b"{\"step\": 2}");
    writer.ftruncate("f", 0).unwrap();
    rewrite(&mut writer, "{\"step\": 3");
    writer.kill(libc::SIGKILL);
    m.await_rejected("status.json", b"{\"step\": 3");
    assert_content(m.read("status.json"), b"{\"step\": 2}", "after the kill");

    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 4}");
    await_content(&m, "status.json", b"{\"step\": 4}");
    rewrite(&mut writer, "{\"step\": 5");
    m.kill_daemon();
    writer.kill(libc::SIGKILL);
    m.remount();
    assert_content(
        m.read("status.json"),
        b"{\"step\": 4}",
        "after the daemon's end",
    );
    assert!(m.rejected().iter().any(|r| r.content == b"{\"step\": 5"));
}

#[test]
fn readers_keep_the_text_that_they_have_opened() {
    need_daemon!();
    let m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 1}");
    let (mut writer, mut early, mut late) = (Actor::new(), Actor::new(), Actor::new());
    early.open("f", "r", &m.path("status.json")).unwrap();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    await_content(&m, "status.json", b"{\"step\": 2}");
    late.open("f", "r", &m.path("status.json")).unwrap();
    late.mmap("f", "map", 11, "r").unwrap();
    rewrite(&mut writer, "{\"step\": 3333}");
    await_content(&m, "status.json", b"{\"step\": 3333}");
    assert_eq!(early.pread("f", 0, 99).unwrap(), b"{\"step\": 1}");
    assert_eq!(late.pread("f", 0, 99).unwrap(), b"{\"step\": 2}");
    assert_eq!(late.map_read("map", 0, 11).unwrap(), b"{\"step\": 2}");
    assert_eq!(writer.pread("f", 0, 99).unwrap(), b"{\"step\": 3333}");
}

#[test]
fn a_watcher_of_the_file_learns_of_each_text() {
    need_daemon!();
    need_features!("supersession_events");
    let m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 1}");
    let (mut writer, mut watcher) = (Actor::new(), Actor::new());
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    let mask = (libc::IN_ALL_EVENTS & !libc::IN_OPEN & !libc::IN_ACCESS).to_string();
    let path = m
        .path("status.json")
        .as_os_str()
        .as_encoded_bytes()
        .to_vec();
    let watch: [&[u8]; 3] = [b"w", mask.as_bytes(), &path];
    watcher.ask("inotify", &watch).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    await_content(&m, "status.json", b"{\"step\": 2}");
    let events = watcher.ask("events", &[b"w", b"1500"]).unwrap();
    assert!(!events.is_empty(), "nobody told the watcher");
}

#[test]
fn an_update_that_is_overwritten_unseen_is_counted() {
    need_daemon!();
    let m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 1}");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    let overwritten = || {
        m.status()["counters"]["overwritten_updates"]
            .as_u64()
            .unwrap()
    };
    for step in 2..4 {
        let text = format!("{{\"step\": {step}}}");
        rewrite(&mut writer, &text);
        await_content(&m, "status.json", text.as_bytes());
        assert_eq!(overwritten(), 0, "its own");
    }
    m.save("status.json", "{\"somebody\": \"else's\"}");
    let before = overwritten();
    rewrite(&mut writer, "{\"step\": 4}");
    await_content(&m, "status.json", b"{\"step\": 4}");
    assert_eq!(overwritten(), before + 1);
}

#[test]
fn what_is_written_while_a_text_is_published_is_not_forgotten() {
    need_daemon!();
    let slow = Mount::options().rules(WHOLE);
    let m = mount!(slow.env("COMMITFS_PUBLISH_DELAY_MS", 2000));
    m.save("status.json", "{\"step\": 1}");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    std::thread::sleep(RESTED);
    assert_content(
        m.read("status.json"),
        b"{\"step\": 1}",
        "it is being published",
    );
    writer.pwrite("f", 9, b"3").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("status.json"), b"{\"step\": 3}", "after the close");
}

#[test]
fn what_is_set_while_a_text_is_published_is_not_forgotten() {
    need_daemon!();
    let slow = Mount::options().rules(WHOLE);
    let m = mount!(slow.env("COMMITFS_MOVE_DELAY_MS", 2000));
    let path = m.path("status.json");
    m.save("status.json", "{\"step\": 1}");
    for (mode, name) in [(0o600, None), (0o644, Some("user.step"))] {
        let mut writer = Actor::new();
        writer.open("f", "r+", &path).unwrap();
        rewrite(&mut writer, "{\"step\": 2}");
        std::thread::sleep(RESTED);
        match name {
            Some(name) => writer.setxattr(&path, name, b"2").unwrap(),
            None => drop(writer.on_slot("fchmod", "f", &[mode.into()]).unwrap()),
        }
        rewrite(&mut writer, "{\"step\": 3}");
        writer.close("f").unwrap();
        assert_content(m.read("status.json"), b"{\"step\": 3}", "after the close");
        let mut reader = Actor::new();
        assert_eq!(reader.stat(&path).unwrap().mode & 0o777, mode);
        if let Some(name) = name {
            assert_eq!(reader.getxattr(&path, name).unwrap(), b"2");
        }
        writer.chmod(&path, 0o644);
    }
}

#[test]
fn what_is_unlinked_while_a_text_is_published_does_not_come_back() {
    need_daemon!();
    let slow = Mount::options().rules(WHOLE);
    let m = mount!(slow.env("COMMITFS_PUBLISH_DELAY_MS", 2000));
    m.save("status.json", "{\"step\": 1}");
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    std::thread::sleep(RESTED);
    other.unlink(&m.path("status.json")).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!m.exists("status.json"), "while it is open");
    writer.close("f").unwrap();
    assert!(!m.exists("status.json"), "after the close");
}

#[test]
fn what_is_written_while_a_lock_is_given_back_is_not_forgotten() {
    need_daemon!();
    need_features!("flock_locks");
    let m = mount!(Mount::options().env("COMMITFS_PUBLISH_DELAY_MS", 1500));
    m.save("f", "one");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.ask("flock", &[b"f"]).unwrap();
    writer.pwrite("f", 0, b"two").unwrap();
    let mut other = writer.thread();
    other.start("funlock", &[b"f"]);
    std::thread::sleep(Duration::from_millis(500));
    writer.pwrite("f", 0, b"six").unwrap();
    other.finish().unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("f"), b"six", "after the close");
}

#[test]
fn a_program_that_keeps_its_file_open_loses_no_update_where_a_rule_merges() {
    need_daemon!();
    let rules = "[[rule]]\nglob = \"status.json\"\npublish = \"whole\"\non_conflict = \"merge\"\ncounters = [\"/n\"]\n";
    let m = mount!(Mount::options().rules(rules));
    m.save("status.json", "{\"n\": 0}");
    let mut program = m.live_python(
        "import json, sys
f = open('status.json', 'r+')
for step in range(3):
    f.seek(0)
    state = json.load(f)
    state['n'] += 1
    f.seek(0)
    f.truncate()
    json.dump(state, f)
    f.flush()
    print('written', flush=True)
    sys.stdin.readline()
",
    );
    for step in 1..4 {
        program.expect("written");
        let text = format!("{{\"n\": {}}}", step * 11 - 10);
        await_content(&m, "status.json", text.as_bytes());
        m.python("import json; s = json.load(open('status.json')); s['n'] += 10; json.dump(s, open('status.json', 'w'))")
            .ok();
        program.send("go on");
    }
    assert!(program.finish().success());
    assert_content(m.read("status.json"), b"{\"n\": 33}", "after the close");
    let counters = m.status()["counters"].clone();
    assert_eq!(
        (&counters["merges"], &counters["overwritten_updates"]),
        (&2.into(), &0.into())
    );
}

#[test]
fn what_is_mapped_is_not_known_to_rest() {
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let m = mount!(Mount::options().rules(WHOLE));
    m.save("status.json", "{\"step\": 1}");
    let mut writer = Actor::new();
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    writer.pwrite("f", 9, b"2").unwrap();
    writer.mmap("f", "map", 11, "rw").unwrap();
    writer.map_write("map", 9, b"3").unwrap();
    std::thread::sleep(RESTED);
    assert_content(
        m.read("status.json"),
        b"{\"step\": 1}",
        "while it is mapped",
    );
    writer.munmap("map").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("status.json"), b"{\"step\": 3}", "after the close");
}

#[test]
fn a_close_acknowledges_what_was_published_before() {
    need_daemon!();
    need_features!("flock_locks");
    // Nothing is brought out of its own accord meanwhile.
    let slow = ["--bound", "60000"];
    let brought = |m: &Mount, writer: &mut Actor, what: &str| {
        assert_ne!(m.status()["pending"], 0, "{what}: as it was published");
        writer.close("f").unwrap();
        let limit = Duration::from_secs(5);
        eventually(limit, &format!("{what}: it is on the medium"), || {
            m.status()["pending"] == 0
        });
    };
    let m = mount!(Mount::options().rules(WHOLE).args(slow).sync());
    let mut writer = Actor::new();
    m.save("status.json", "{\"step\": 1}");
    writer.open("f", "r+", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    await_content(&m, "status.json", b"{\"step\": 2}");
    brought(&m, &mut writer, "at rest");
    m.save("f", "one");
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.ask("flock", &[b"f"]).unwrap();
    writer.pwrite("f", 0, b"two").unwrap();
    writer.ask("funlock", &[b"f"]).unwrap();
    brought(&m, &mut writer, "by an unlock");

    // Who has called fsync once is promised so of all that it had written by its close (C7).
    let m = mount!(Mount::options().rules(WHOLE).args(slow));
    writer.open("f", "w", &m.path("status.json")).unwrap();
    rewrite(&mut writer, "{\"step\": 1}");
    writer.fsync("f").unwrap();
    rewrite(&mut writer, "{\"step\": 2}");
    await_content(&m, "status.json", b"{\"step\": 2}");
    brought(&m, &mut writer, "after an fsync");
}

#[test]
fn status_names_a_file_that_is_kept_open_and_the_command_that_shows_it() {
    need_daemon!();
    let m = mount!();
    let (mut writer, mut once, mut half) = (Actor::new(), Actor::new(), Actor::new());
    m.save("half.json", "{\"step\": 0}");
    half.open("f", "r+", &m.path("half.json")).unwrap();
    half.ftruncate("f", 0).unwrap();
    half.pwrite("f", 0, b"{\"step\": ").unwrap();
    once.open("f", "w", &m.path("once.json")).unwrap();
    once.write("f", "{\"step\": 1}").unwrap();
    writer.open("f", "w", &m.path("s.json")).unwrap();
    for step in 1..3 {
        rewrite(&mut writer, &format!("{{\"step\": {step}}}"));
    }
    let named = || m.status()["kept_open"].as_array().unwrap().clone();
    eventually(SOON, "it is named", || !named().is_empty());
    std::thread::sleep(RESTED);
    let all = named();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(
        (&all[0]["path"], &all[0]["pid"]),
        (&"s.json".into(), &writer.pid().into())
    );
    assert!(m.log().contains("s.json: ") && m.log().contains("keeps it open"));
    assert!(!m.exists("s.json"), "there is no rule yet");
    let told = m.command(&["status"]).ok().out;
    let command = told.lines().find(|l| l.contains("publish=whole"));
    let command = command.unwrap_or_else(|| panic!("{told}")).trim();
    assert_eq!(all[0]["command_to_add"], command);
    m.sh(&command.replace("commitfs ", &format!("{} ", binary())))
        .ok();
    // Also what was open already, as it stands: it may never be written or closed again.
    await_content(&m, "s.json", b"{\"step\": 2}");
    rewrite(&mut writer, "{\"step\": 3}");
    await_content(&m, "s.json", b"{\"step\": 3}");
    assert!(named().is_empty(), "{:?}", named());
}

#[test]
fn a_rule_that_nothing_can_be_whole_by_is_refused() {
    let m = Mount::options().prepare();
    let file = m.scratch("rules.toml");
    std::fs::write(&file, "[[rule]]\nglob = \"status\"\npublish = \"whole\"\n").unwrap();
    let run = commitfs(["rules".as_ref(), "check".as_ref(), file.as_os_str()]).fails();
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(
        run.err
            .contains("rules.toml:1, rule 1, key publish: \"whole\" needs a guard"),
        "{run:?}"
    );
}

#[test]
fn an_exception_of_the_program_is_not_masked_where_a_rule_keeps_close_quiet() {
    let m = mount!(Mount::options().rules(QUIET));
    m.save("state.json", "{\"step\": 1}");
    let run = m.python(
        "import json
try:
    with open('state.json', 'w') as f:
        json.dump({'a': list(range(5000)), 'b': object()}, f)
except TypeError as e:
    print('handled', e.__context__)
",
    );
    assert_eq!(run.ok().out, "handled None\n");
    if common::plain() {
        return;
    }
    // Kept out, kept aside and told all the same.
    assert_content(
        m.read("state.json"),
        b"{\"step\": 1}",
        "after the exception",
    );
    assert_eq!(m.aborts("guard"), 1);
    assert_eq!(m.rejected().len(), 1);
    assert_eq!(m.status()["errors"][0]["path"], "state.json");
    let mut actor = Actor::new();
    let error = actor
        .getxattr(&m.path("state.json"), "commitfs.error")
        .unwrap();
    assert!(String::from_utf8_lossy(&error).contains("incomplete"));
    m.command(&["status"]).fails();
    // A new file, and an empty one in the place of a document.
    actor.save(&m.path("new.json"), "[1, ").unwrap();
    actor.save(&m.path("state.json"), "").unwrap();
    assert!(!m.exists("new.json"));
    assert_content(
        m.read("state.json"),
        b"{\"step\": 1}",
        "after an empty save",
    );
}

#[test]
fn a_quiet_close_is_quiet_of_guards_alone() {
    need_daemon!();
    let rules = format!("{QUIET}on_conflict = \"fail\"\n");
    let m = mount!(Mount::options().rules(&rules));
    m.save("a.json", "{\"n\": 1}");
    let (mut one, mut other) = (Actor::new(), Actor::new());
    one.cat(&m.path("a.json")).unwrap();
    other.cat(&m.path("a.json")).unwrap();
    other.save(&m.path("a.json"), "{\"n\": 2}").unwrap();
    let refused = one
        .save(&m.path("a.json"), "{\"n\": 3}")
        .expect_err("a conflict");
    assert_eq!((&*refused.errno, &*refused.stage), ("ESTALE", "close"));
    // Other calls than close() say what they said: nothing is behind a rename that would not be there.
    one.save(&m.path("half"), "{\"n\": ").unwrap();
    assert_errno(one.rename(&m.path("half"), &m.path("a.json")), "EBADMSG");
    assert_errno(one.link(&m.path("half"), &m.path("b.json")), "EBADMSG");
    assert_errno(one.truncate(&m.path("a.json"), 4), "EBADMSG");
    assert_content(m.read("a.json"), b"{\"n\": 2}", "in the end");

    let at = format!("write:{}:1:1", libc::EIO);
    let m = mount!(Mount::options().rules(QUIET).env("COMMITFS_FAIL_AT", at));
    m.save("a.json", "{\"n\": 1}");
    one.open("f", "w", &m.path("a.json")).unwrap();
    one.write("f", "{\"n\": 2}").ok();
    assert_errno(one.close("f"), "EIO");
    assert_content(m.read("a.json"), b"{\"n\": 1}", "after a failed write");
}
