//! C7, C18. The daemon itself is killed: by the OOM killer, by an upgrade, by a bug. Whatever it
//! was doing, the next mount finds every file whole and every save whose close() had returned; what
//! was only staged is in rejected, and what was fsync'd is in the file.
//!
//! Run on the plain directory (where nobody is killed) most of these pass; they fail when the
//! journal, its order of writes, or recovery is taken out.

mod common;

use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use commitfs::sys::failpoint::CRASH_POINTS;
use common::{
    Actor, Mount, Options, Random, assert_content, eventually, run, stamped, times, version_of,
};

/// Writers that save until their daemon dies, and what each was told had been saved.
struct Load {
    writers: Vec<(Actor, &'static str, String)>,
    /// The newest version known to be in each file before the load.
    base: Vec<u64>,
}

const WAYS: [&str; 5] = ["rewrite", "replace", "fsync", "new", "patch"];

impl Load {
    fn start(m: &Mount, base: &[u64], random: &mut Random) -> Load {
        let start = |(number, base): (usize, &u64)| {
            let mut writer = Actor::new();
            let name = format!("file-{number}");
            let path = m.path(&name);
            let (from, seed) = ((base + 1).to_string(), random.below(1 << 40).to_string());
            let path = path.as_os_str().as_encoded_bytes();
            let args: [&[u8]; 5] = [
                WAYS[number].as_bytes(),
                path,
                from.as_bytes(),
                b"20000",
                seed.as_bytes(),
            ];
            writer.start("churn", &args);
            (writer, WAYS[number], name)
        };
        let writers = base.iter().enumerate().map(start).collect();
        Load {
            writers,
            base: base.to_vec(),
        }
    }

    /// The last acknowledged version of each writer; each must end by an error, for its daemon is
    /// dead, and its mount not yet taken away.
    fn acknowledged(&mut self) -> Vec<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let last = |((writer, _, _), base): (&mut (Actor, &str, String), &u64)| {
            let mut last = *base;
            while let Ok(words) = writer.finish() {
                last = String::from_utf8_lossy(&words[0]).parse().unwrap();
                assert!(
                    Instant::now() < deadline,
                    "a writer goes on though its daemon is dead"
                );
            }
            last
        };
        self.writers.iter_mut().zip(&self.base).map(last).collect()
    }

    /// Checks every file, and returns what is in it now.
    fn check(&self, m: &Mount, acknowledged: &[u64], when: &str) -> Vec<u64> {
        let check = |(((_, how, name), known), base): ((&(Actor, &str, String), &u64), &u64)| {
            if *how == "new" {
                return newest_of(m, name, *base..=*known, when);
            }
            if *known == 0 && !m.exists(name) {
                return 0;
            }
            let content = m
                .read(name)
                .unwrap_or_else(|| panic!("{when}: {name} is gone"));
            let found = match *how {
                "patch" => number_in(&content),
                _ => version_of(&content),
            };
            let found = found.unwrap_or_else(|why| panic!("{when}: {name} ({how}) is torn: {why}"));
            assert!(
                found == *known || found == known + 1,
                "{when}: {name} ({how}) has version {found}, but {known} was acknowledged"
            );
            found
        };
        self.writers
            .iter()
            .zip(acknowledged)
            .zip(&self.base)
            .map(check)
            .collect()
    }
}

fn number_in(document: &[u8]) -> Result<u64, String> {
    let value: serde_json::Value = serde_json::from_slice(document).map_err(|e| e.to_string())?;
    value["n"].as_u64().ok_or_else(|| value.to_string())
}

/// One name for each version: each acknowledged one is there, whole, and none beyond the next.
/// (Those before this load have been looked at after earlier ones.)
fn newest_of(m: &Mount, name: &str, known: RangeInclusive<u64>, when: &str) -> u64 {
    let prefix = format!("{name}.");
    let mut newest = *known.start();
    for found in m.names(".") {
        let Some(number) = found.strip_prefix(&prefix) else {
            continue;
        };
        let number: u64 = number.parse().expect("a version number");
        if number >= *known.start() {
            let content = m.read(&found).expect("a listed file");
            assert_eq!(version_of(&content), Ok(number), "{when}: {found}");
            newest = newest.max(number);
        }
    }
    let last = *known.end();
    for number in known.skip(1) {
        assert!(
            m.exists(format!("{prefix}{number}")),
            "{when}: {prefix}{number} is lost"
        );
    }
    assert!(
        newest <= last + 1,
        "{when}: {newest} appeared though {last} was the last"
    );
    newest
}

#[test]
fn a_daemon_killed_under_load_loses_nothing_acknowledged_and_tears_nothing() {
    need_daemon!();
    let mut random = Random::new();
    let mut m = mount!(Mount::options().limit(Duration::from_secs(3000)));
    let mut versions = vec![0; WAYS.len()];
    for round in 0..times(20, 300) {
        let when = format!("kill {round}");
        let mut load = Load::start(&m, &versions, &mut random);
        std::thread::sleep(Duration::from_micros(5_000 + random.below(100_000)));
        m.strike_daemon();
        let acknowledged = load.acknowledged();
        m.kill_daemon();
        if round % 5 == 4 {
            // Killed again while it recovers.
            if m.try_remount().is_ok() {
                m.kill_daemon();
            }
        }
        m.remount();
        versions = load.check(&m, &acknowledged, &when);
    }
    m.unmount();
    common::commitfs([Path::new("check"), m.backing()]).ok();
}

#[test]
fn a_daemon_killed_at_every_crash_point_loses_nothing_acknowledged_and_tears_nothing() {
    need_daemon!();
    let mut random = Random::new();
    let mut never_reached = Vec::new();
    for point in CRASH_POINTS.iter().filter(|p| !p.starts_with("recovery")) {
        for count in [1, 7] {
            let when = format!("{point}:{count}");
            let mut m = mount!(Mount::options());
            let base = vec![0; WAYS.len()];
            m.save("kept", stamped(1, 5_000));
            m.unmount();
            m.set_env("COMMITFS_CRASH_AT", &when);
            m.set_env("COMMITFS_JOURNAL_LIMIT", 1);
            // A crash point of recovery ends the daemon before the mount stands.
            if m.try_remount().is_ok() {
                let mut load = Load::start(&m, &base, &mut random);
                // A kill, so that points on the way to rejected are passed, too.
                for _ in 0..count {
                    let mut victim = Actor::new();
                    let _ = victim.open("f", "w", &m.path("kept"));
                    let _ = victim.write("f", "half");
                    victim.kill(libc::SIGKILL);
                }
                // Databases, of names that no rule knows.
                for number in 0..count {
                    let mut database = Actor::new();
                    let path = m.path(format!("database-{number}"));
                    let _ = database.open("f", "rw-create", &path);
                    let _ = database.write("f", "SQLite format 3\0");
                }
                // And lines, which go another way.
                let mut appender = Actor::new();
                for file in 0..count {
                    let _ = appender.open("log", "a", &m.path(format!("lines-{file}.csv")));
                    // The first creates the file.
                    for _ in 0..2 {
                        let _ = appender.write("log", "a line\n");
                    }
                    let _ = appender.close("log");
                }
                let died = || !m.daemon_lives();
                let deadline = Instant::now() + Duration::from_secs(3);
                while !died() && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if !died() {
                    never_reached.push(when.clone());
                }
                m.strike_daemon();
                let acknowledged = load.acknowledged();
                m.kill_daemon();
                m.clear_env();
                m.remount();
                load.check(&m, &acknowledged, &when);
            } else {
                m.clear_env();
                m.remount();
            }
            assert_content(m.read("kept"), &stamped(1, 5_000), &when);
        }
    }
    assert!(never_reached.is_empty(), "never reached: {never_reached:?}");
}

#[test]
fn a_daemon_killed_at_every_crash_point_of_recovery_recovers_the_next_time() {
    need_daemon!();
    let mut random = Random::new();
    // What several editors have promised is filled up: tests/promised_parts.rs.
    let points = CRASH_POINTS.iter().filter(|p| **p != "recovery-filled");
    for point in points.filter(|p| p.starts_with("recovery")) {
        let mut m = mount!(Mount::options());
        let base = vec![0; WAYS.len()];
        m.save("kept", stamped(1, 5_000));
        m.save("log", "begun\n");
        let mut load = Load::start(&m, &base, &mut random);
        std::thread::sleep(Duration::from_millis(50));
        let _editor = edit_and_sync(&m, "log");
        add_line(&m, "log", "added\n");
        m.strike_daemon();
        let acknowledged = load.acknowledged();
        m.kill_daemon();
        m.set_env("COMMITFS_CRASH_AT", point);
        assert!(m.try_remount().is_err(), "{point} was not reached");
        m.clear_env();
        m.remount();
        load.check(&m, &acknowledged, point);
        assert_content(m.read("kept"), &stamped(1, 5_000), point);
        assert_content(m.read("log"), b"Begun\nadded\n", point);
    }
}

/// Opens a file in place, writes its first letter, and calls fsync.
fn edit_and_sync(m: &Mount, name: &str) -> Actor {
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path(name)).unwrap();
    editor.pwrite("f", 0, b"B").unwrap();
    editor.fsync("f").unwrap();
    editor
}

fn add_line(m: &Mount, name: &str, line: &str) {
    let mut appender = Actor::new();
    appender.open("f", "a", &m.path(name)).unwrap();
    appender.write("f", line).unwrap();
    appender.close("f").unwrap();
}

/// What the editor had fsync'd is rolled forward, and the lines come behind it, once.
#[test]
fn lines_that_others_add_to_what_an_editor_has_synced_survive_the_kill_of_the_daemon() {
    // Plain: passes.
    type Then = fn(&mut Actor, &Mount);
    let cases: [(&str, Then, &str); 8] = [
        ("added", |_, m| add_line(m, "f", "1\n"), "Begun\n1\n"),
        (
            "added, and written after the fsync",
            |editor, m| {
                add_line(m, "f", "1\n");
                editor.pwrite("f", 6, b"more").unwrap();
            },
            "Begun\n1\n",
        ),
        (
            "added, and overwritten after the fsync",
            |editor, m| {
                add_line(m, "f", "1\n");
                editor.pwrite("f", 0, b"C").unwrap();
            },
            "Cegun\n1\n",
        ),
        (
            "added before and after a second fsync",
            |editor, m| {
                add_line(m, "f", "1\n");
                editor.pwrite("f", 6, b"two\n").unwrap();
                editor.fsync("f").unwrap();
                add_line(m, "f", "2\n");
            },
            "Begun\ntwo\n1\n2\n",
        ),
        (
            "cut, and synced",
            |editor, m| {
                add_line(m, "f", "1\n");
                editor.ftruncate("f", 0).unwrap();
                editor.fsync("f").unwrap();
            },
            "1\n",
        ),
        (
            "under another name",
            |_, m| {
                add_line(m, "f", "1\n");
                m.mkdir("d");
                m.sh("mv f d/f").ok();
                add_line(m, "d/f", "2\n");
            },
            "Begun\n1\n2\n",
        ),
        (
            "in a new journal",
            |_, m| {
                add_line(m, "f", "1\n");
                for n in 0..50 {
                    m.save("other", format!("{n}"));
                    std::thread::sleep(Duration::from_millis(20));
                }
                add_line(m, "f", "2\n");
            },
            "Begun\n1\n2\n",
        ),
        (
            "closed",
            |editor, m| {
                add_line(m, "f", "1\n");
                editor.close("f").unwrap();
                add_line(m, "f", "2\n");
            },
            "Begun\n1\n2\n",
        ),
    ];
    need_daemon!();
    for (what, then, expected) in cases {
        let mut m = mount!(Mount::options().env("COMMITFS_JOURNAL_LIMIT", 3000));
        m.save("f", "begun\n");
        add_line(&m, "f", "");
        let mut editor = edit_and_sync(&m, "f");
        then(&mut editor, &m);
        m.kill_daemon();
        for failing in ["C19-sync-taken-over", "C19-sync-recovered-dir"] {
            if what == "added" {
                m.set_env("COMMITFS_FAIL_AT", format!("{failing}:{}", libc::EIO));
                assert!(m.try_remount().is_err(), "{failing}: mounted");
            }
        }
        m.clear_env();
        m.remount();
        let found = m.read("f").or_else(|| m.read("d/f"));
        assert_content(found, expected.as_bytes(), what);
    }
}

#[test]
fn more_commits_than_the_daemon_may_have_files_open_are_recovered() {
    need_daemon!();
    let mut m = mount!(Mount::options().args(["--bound", "60000"]));
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("lines")).unwrap();
    let mut lines = String::new();
    for number in 0..300 {
        let line = format!("{number}\n");
        actor.write("f", &line).unwrap();
        lines += &line;
        m.save(format!("new-{number}"), &line);
    }
    m.kill_daemon();
    // Root raises the limit, unless it may not.
    let script = "ulimit -n 150; \
                  [ $(id -u) != 0 ] || set -- \"$1\" setpriv --bounding-set=-sys_resource; \
                  state=$1; shift; exec \"$@\" \"$0\" mount \"$state\"";
    let mut mount = Command::new("sh");
    mount.args(["-c", script, env!("CARGO_BIN_EXE_commitfs")]);
    run(mount.arg(m.backing()), Duration::from_secs(60)).ok();
    let found = m.read("lines");
    let last = m.read("new-299");
    m.command(&["umount", "--wait"]).ok();
    assert_content(found, lines.as_bytes(), "lines");
    assert_content(last, b"299\n", "the last file");
    m.remount();
}

#[test]
fn closes_wait_when_too_many_commits_wait_for_the_disk() {
    need_daemon!();
    let options = Mount::options().args(["--bound", "60000"]);
    let m = mount!(options.env("COMMITFS_BACKLOG", 5));
    for number in 0..40 {
        m.save(format!("new-{number}"), b"1");
        let waiting = m.status()["pending"].as_u64().unwrap();
        assert!(waiting <= 6, "{waiting} wait after {number}");
    }
}

#[test]
fn what_close_acknowledged_survives_a_kill_at_once() {
    need_daemon!();
    let mut m = mount!();
    for round in 0..times(8, 100) as u64 {
        m.save("rewritten", stamped(round, 3_000));
        m.save(format!("new-{round}"), stamped(round, 300));
        let mut actor = Actor::new();
        actor
            .ask(
                "replace",
                &[m.path("replaced").as_os_str().as_encoded_bytes(), b"r"],
            )
            .unwrap();
        actor.unlink(&m.path("replaced")).unwrap();
        m.kill_daemon();
        m.remount();
        assert_content(m.read("rewritten"), &stamped(round, 3_000), "rewritten");
        assert_content(m.read(format!("new-{round}")), &stamped(round, 300), "new");
        assert!(!m.exists("replaced"), "an unlink came undone");
        assert!(!m.exists("replaced.tmp"));
    }
}

#[test]
fn a_large_file_written_out_of_order_survives_a_kill_at_once() {
    // Nothing but the daemon has died, so its word is enough where there is no checksum.
    let mut m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.pwrite("f", 1 << 20, &[b'2'; 1 << 20]).unwrap();
    writer.pwrite("f", 0, &[b'1'; 1 << 20]).unwrap();
    writer.close("f").unwrap();
    m.kill_daemon();
    m.remount();
    let expected = [[b'1'; 1 << 20], [b'2'; 1 << 20]].concat();
    assert_content(m.read("f"), &expected, "after the daemon's death");
}

#[test]
fn staged_leftovers_of_a_dead_daemon_go_to_rejected() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "old");
    let mut writers: Vec<Actor> = (0..3).map(|_| Actor::new()).collect();
    for (number, writer) in writers.iter_mut().enumerate() {
        let name = ["f", "fresh", "sub"][number];
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", format!("half of {name}")).unwrap();
    }
    m.kill_daemon();
    for writer in &mut writers {
        writer.write("f", "more").expect_err("the mount is dead");
    }
    drop(writers);
    m.remount();
    assert_content(m.read("f"), b"old", "the old version");
    assert_eq!(m.names("."), ["f"]);
    // An ordinary user's mount has a write-back cache, and what only the kernel knew is gone.
    for name in ["f", "fresh", "sub"]
        .into_iter()
        .filter(|_| common::is_root())
    {
        m.await_rejected(name, format!("half of {name}").as_bytes());
    }
}

#[test]
fn content_on_its_way_to_rejected_keeps_its_path_over_a_new_journal_and_a_kill() {
    need_features!("death");
    let mut m = mount!(
        Mount::options()
            .separate()
            .env("COMMITFS_REJECT_DELAY_MS", 60_000)
            .env("COMMITFS_JOURNAL_LIMIT", 600)
    );
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "half").unwrap();
    writer.kill(libc::SIGKILL);
    let journal = m.backing().join(".commitfs/journal");
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&journal).unwrap());
    eventually(Duration::from_secs(5), "it is aborted", || {
        m.aborts("killed") == 1
    });
    let before = inode();
    eventually(Duration::from_secs(5), "there is a new journal", || {
        m.save("other", "x");
        inode() != before
    });
    m.kill_daemon();
    m.clear_env();
    m.remount();
    m.await_rejected("f", b"half");
}

#[test]
fn an_early_close_of_a_duplicate_is_no_commit_for_recovery_either() {
    need_daemon!();
    // C3 and C18 together: at the kill, one of two descriptors had been closed, and the file looks
    // just as it does after a last close.
    let mut m = mount!();
    m.save("f", "old");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "one of two lines\n").unwrap();
    writer.dup("f", "copy").unwrap();
    writer.close("f").unwrap();
    let mut shell = m.shell("bash");
    shell.run("exec 3> g; /bin/echo one of two lines >&3");
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f"), b"old", "after dup and close");
    assert!(!m.exists("g"), "after the close by a child's exit");
}

#[test]
fn what_was_synced_survives_the_kill_of_its_writer() {
    // Plain: passes with the bytes that happened to be written.
    let m = mount!();
    m.save("f", "old");
    for (name, flags) in [
        ("f", "w"),
        ("fresh", "w"),
        ("with-o-sync", "w|sync"),
        ("d", "w|dsync"),
    ] {
        let mut writer = Actor::new();
        writer.open("f", flags, &m.path(name)).unwrap();
        writer.write("f", "synced").unwrap();
        if flags == "w" {
            writer.fsync("f").unwrap();
        }
        writer.kill(libc::SIGKILL);
        assert_content(m.read(name), b"synced", name);
    }
    // Later writes may or may not be in it, but never in another order.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "synced again").unwrap();
    writer.ask("fdatasync", &[b"f"]).unwrap();
    writer.write("f", " and more").unwrap();
    writer.kill(libc::SIGKILL);
    let found = m.text("f").unwrap();
    assert!(found.starts_with("synced again"), "{found:?}");
    assert!("synced again and more".starts_with(&found), "{found:?}");
    // Before the kill nobody saw it.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "synced, open").unwrap();
    writer.fsync("f").unwrap();
    assert_content(
        m.read("f"),
        found.as_bytes(),
        "an fsync commits nothing by itself",
    );
}

#[test]
fn what_was_synced_survives_the_kill_of_the_daemon() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "old");
    m.save("g.json", "{\"old\": 1}");
    let mut writers: Vec<Actor> = (0..3).map(|_| Actor::new()).collect();
    for (writer, name) in writers.iter_mut().zip(["f", "fresh", "g.json"]) {
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", "[\"synced\"").unwrap();
        writer.fsync("f").unwrap();
    }
    m.kill_daemon();
    drop(writers);
    m.remount();
    for name in ["f", "fresh"] {
        let found = m.text(name).unwrap_or_else(|| panic!("{name} is lost"));
        assert!(found.starts_with("[\"synced\""), "{name}: {found:?}");
    }
    assert_content(m.read("g.json"), b"{\"old\": 1}", "the guard still holds");
    m.await_rejected("g.json", b"[\"synced\"");
}

#[test]
fn a_new_journal_keeps_which_of_an_fsync_and_a_commit_came_later() {
    need_daemon!();
    let mut m = mount!();
    m.unmount();
    m.set_env("COMMITFS_JOURNAL_LIMIT", 1);
    m.remount();
    let synced = |name: &str| {
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", "synced").unwrap();
        writer.fsync("f").unwrap();
        writer
    };
    let before = synced("saved later");
    m.save("saved later", "saved");
    m.save("synced later", "saved");
    let after = synced("synced later");
    // What a close made durable is in place, and the journal started anew.
    let mut other = synced("other");
    other.close("f").unwrap();
    m.kill_daemon();
    drop((before, after, other));
    m.remount();
    assert_content(m.read("saved later"), b"saved", "the commit was newer");
    assert_content(m.read("synced later"), b"synced", "the fsync was newer");
}

#[test]
fn what_was_promised_by_an_fsync_has_the_number_after_what_it_replaces() {
    need_daemon!();
    let mut m = mount!();
    for version in 1..=3 {
        m.save("f.bin", stamped(version, 100));
    }
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f.bin")).unwrap();
    writer.write("f", stamped(4, 100)).unwrap();
    writer.fsync("f").unwrap();
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f.bin"), &stamped(4, 100), "promised");
    let number = Actor::new().getxattr(&m.path("f.bin"), "user.commitfs.version");
    assert_eq!(number.unwrap(), b"4");
}

#[test]
fn an_fsync_before_the_first_write_is_no_promise_of_an_empty_file() {
    let mut m = mount!();
    m.save("f", "old");
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path("f")).unwrap();
    editor.fsync("f").unwrap();
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f"), b"old", "after the daemon's death");
    // The same for a file that was renamed before its close.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("temporary")).unwrap();
    writer.write("f", "new").unwrap();
    writer.rename(&m.path("temporary"), &m.path("f")).unwrap();
    writer.fsync("f").unwrap();
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f"), b"new", "after the second death");
}

#[test]
fn version_numbers_and_rejected_content_survive_a_kill() {
    need_daemon!();
    let mut m = mount!();
    for round in 0..5 {
        m.save("f", format!("{round}"));
    }
    let version = m.version("f").unwrap();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "half").unwrap();
    writer.kill(libc::SIGKILL);
    m.await_rejected("f", b"half");
    m.kill_daemon();
    m.remount();
    assert_eq!(m.version("f").unwrap(), version);
    m.await_rejected("f", b"half");
    m.save("f", "next");
    assert_eq!(m.version("f").unwrap(), version + 1);
}

/// A close that takes a second, and a RELEASE that comes five later.
fn slowly_promising() -> Options {
    let slow = Mount::options().env("COMMITFS_PROMISE_DELAY_MS", 1000);
    slow.env("COMMITFS_RELEASE_DELAY_MS", 5000)
}

#[test]
fn what_a_close_has_promised_is_found_where_its_directory_has_gone_meanwhile() {
    need_daemon!();
    for is_fsynced in [false, true] {
        let mut m = mount!(slowly_promising());
        m.mkdir("d");
        let (mut writer, mut mover) = (Actor::new(), Actor::new());
        writer.open("f", "w", &m.path("d/f")).unwrap();
        writer.write("f", "whole").unwrap();
        if is_fsynced {
            writer.fsync("f").unwrap();
        }
        writer.start("close", &[b"f"]);
        std::thread::sleep(Duration::from_millis(300));
        mover.rename(&m.path("d"), &m.path("e")).unwrap();
        assert!(!writer.has_answered(), "the close was quicker");
        assert!(writer.finish().is_ok());
        m.kill_daemon();
        m.remount();
        assert_content(m.read("e/f"), b"whole", &format!("fsync'd: {is_fsynced}"));
    }
}

#[test]
fn what_a_close_has_promised_is_found_under_the_name_that_it_got_meanwhile() {
    need_daemon!();
    for old in [None, Some("old")] {
        let mut m = mount!(slowly_promising());
        if let Some(old) = old {
            std::fs::write(m.backing().join("f"), old).unwrap();
        }
        let mut writer = Actor::new();
        // Nobody else sees a new file yet.
        let mut mover = writer.thread();
        writer.open("f", "w", &m.path("f")).unwrap();
        writer.write("f", "whole").unwrap();
        writer.start("close", &[b"f"]);
        std::thread::sleep(Duration::from_millis(300));
        mover.rename(&m.path("f"), &m.path("g")).unwrap();
        assert!(!writer.has_answered(), "the close was quicker");
        assert!(writer.finish().is_ok());
        m.kill_daemon();
        m.remount();
        assert_content(m.read("g"), b"whole", &format!("{old:?}"));
        assert!(!m.exists("f"), "{old:?}");
    }
}

#[test]
fn a_close_is_judged_by_the_name_that_its_file_got_meanwhile() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_PROMISE_DELAY_MS", 1000));
    std::fs::write(m.backing().join("f"), "{}").unwrap();
    let (mut writer, mut mover) = (Actor::new(), Actor::new());
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "[1,").unwrap();
    writer.start("close", &[b"f"]);
    std::thread::sleep(Duration::from_millis(300));
    mover.rename(&m.path("f"), &m.path("g.json")).unwrap();
    assert!(!writer.has_answered(), "the close was quicker");
    assert!(writer.finish().is_err(), "half a document was accepted");
    assert_content(m.read("g.json"), b"{}", "the guard holds");
    m.await_rejected("g.json", b"[1,");
}

#[test]
fn changes_made_while_unmounted_are_accepted() {
    need_daemon!();
    let mut m = mount!();
    for name in ["changed", "removed", "moved", "kept"] {
        m.save(name, stamped(1, 1_000));
    }
    let version = m.version("changed").unwrap();
    m.unmount();
    let real = |name: &str| m.backing().join(name);
    std::fs::write(real("changed"), "by hand").unwrap();
    std::fs::remove_file(real("removed")).unwrap();
    std::fs::rename(real("moved"), real("moved-here")).unwrap();
    std::fs::create_dir(real("d")).unwrap();
    std::fs::write(real("d/added"), "added").unwrap();
    m.remount();
    assert_content(m.read("changed"), b"by hand", "changed");
    // Though it may have been within the same second.
    assert_eq!(m.version("changed").unwrap(), version + 1);
    assert_eq!(m.version("kept").unwrap(), version);
    assert!(!m.exists("removed") && !m.exists("moved"));
    assert_content(m.read("moved-here"), &stamped(1, 1_000), "moved");
    assert_content(m.read("d/added"), b"added", "added");
    assert_content(m.read("kept"), &stamped(1, 1_000), "kept");
    m.save("changed", "by a program");
    assert_content(m.read("changed"), b"by a program", "saved again");
}

#[test]
fn a_dead_mount_ends_programs_with_errors_and_hangs_nobody() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "old");
    let mut actor = Actor::new();
    actor.patience(Duration::from_secs(5));
    actor.open("f", "r", &m.path("f")).unwrap();
    let pid = m.daemon_pid();
    // SAFETY: the daemon, a child that nobody has waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    eventually(Duration::from_secs(5), "the daemon is gone", || {
        !m.daemon_lives()
    });
    for _ in 0..3 {
        let failure = actor.cat(&m.path("f")).expect_err("a dead mount");
        assert!(
            ["ENOTCONN", "ECONNABORTED"].contains(&failure.errno.as_str()),
            "{failure:?}"
        );
    }
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f"), b"old", "after the next mount");
}

#[test]
fn what_is_saved_below_a_directory_that_moves_survives_a_kill() {
    need_daemon!();
    // Nothing is brought into the backing directory but by the move itself.
    let mut m = mount!(Mount::options().separate().args(["--bound", "60000"]));
    m.mkdir("d-0");
    for round in 0..times(10, 100) {
        let start = |saver: u32| {
            m.live_python(&format!(
                "import os\n\
                 below = os.open('d-{round}', os.O_RDONLY)\n\
                 for i in range(100000):\n    \
                     fd = os.open(f'{round}-{saver}-{{i}}', os.O_CREAT | os.O_WRONLY, dir_fd=below)\n    \
                     os.write(fd, b'whole')\n    \
                     os.close(fd)\n    \
                     print(i, flush=True)\n"
            ))
        };
        let mut savers = [0, 1, 2].map(start);
        for saver in &mut savers {
            saver.expect("0");
        }
        let to = format!("d-{}", round + 1);
        let mut mover = Actor::new();
        mover
            .rename(&m.path(format!("d-{round}")), &m.path(&to))
            .unwrap();
        m.strike_daemon();
        let last = savers.map(|mut saver| {
            let mut last = 0;
            while let Ok(number) = saver.line().parse::<u64>() {
                last = number;
            }
            last
        });
        m.kill_daemon();
        m.remount();
        for (saver, last) in last.iter().enumerate() {
            for number in 0..=*last {
                let name = format!("{to}/{round}-{saver}-{number}");
                assert_content(m.read(&name), b"whole", &format!("{name} of {last}"));
            }
        }
    }
}
