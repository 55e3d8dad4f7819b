//! C11. Careful programs write a temporary file and rename it over the target, some of them before
//! closing it, some with one fixed temporary name for everybody. On a plain directory the first
//! exposes bytes that are still being written, the second mixes two writers in one file.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Actor, assert_content, assert_errno, eventually, stamped, times, version_of};

#[test]
fn a_rename_before_close_commits_what_was_written_so_far() {
    let m = mount!();
    m.save("target", "old");
    let mut program = m.live_python(
        "import os, sys, tempfile\n\
         with tempfile.NamedTemporaryFile('w', dir='.', delete=False) as f:\n\
         \x20   f.write('first '); f.flush()\n\
         \x20   os.replace(f.name, 'target')\n\
         \x20   print('replaced'); sys.stdin.readline()\n\
         \x20   f.write('second'); f.flush()\n\
         \x20   print('more'); sys.stdin.readline()\n\
         print('closed'); sys.stdin.readline()\n",
    );
    program.expect("replaced");
    assert_content(m.read("target"), b"first ", "after os.replace");
    assert_eq!(m.names("."), ["target"], "the temporary name is gone");
    program.send("");
    program.expect("more");
    // Plain: the later bytes show as they are written.
    assert_content(
        m.read("target"),
        b"first ",
        "later writes are a second transaction",
    );
    program.send("");
    program.expect("closed");
    assert_content(m.read("target"), b"first second", "after close");
    program.send("");
    assert!(program.finish().success());
}

#[test]
fn a_writer_killed_after_its_rename_leaves_the_renamed_content() {
    let m = mount!();
    m.save("target", "old");
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("temporary")).unwrap();
    writer.write("f", "whole").unwrap();
    writer
        .rename(&m.path("temporary"), &m.path("target"))
        .unwrap();
    writer.write("f", " and half of the next").unwrap();
    writer.kill(libc::SIGKILL);
    assert_content(m.read("target"), b"whole", "after the kill");
    assert!(!m.exists("temporary"));
}

#[test]
fn a_link_before_close_commits_what_was_written_so_far() {
    let m = mount!();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("temporary")).unwrap();
    writer.write("f", "first").unwrap();
    writer
        .link(&m.path("temporary"), &m.path("target"))
        .unwrap();
    assert_content(m.read("target"), b"first", "after link");
    writer.unlink(&m.path("temporary")).unwrap();
    assert_eq!(m.names("."), ["target"]);
    writer.close("f").unwrap();
    assert_content(m.read("target"), b"first", "after close");
}

#[test]
fn writers_that_share_one_temporary_name_never_mix() {
    let m = mount!();
    m.save("target", stamped(0, 100));
    let temporary = m.path("target.tmp");
    // Step by step: both open the same name before either is done.
    let (mut one, mut two) = (Actor::new(), Actor::new());
    let (first, second) = (stamped(1, 60_000), stamped(2, 40_000));
    one.open("f", "w", &temporary).unwrap();
    two.open("f", "w", &temporary).unwrap();
    one.write("f", &first[..30_000]).unwrap();
    two.write("f", &second[..20_000]).unwrap();
    one.write("f", &first[30_000..]).unwrap();
    one.close("f").unwrap();
    one.rename(&temporary, &m.path("target")).unwrap();
    assert_content(m.read("target"), &first, "after the first rename");
    two.write("f", &second[20_000..]).unwrap();
    two.close("f").unwrap();
    let renamed = two.rename(&temporary, &m.path("target"));
    let version = version_of(&m.read("target").unwrap()).expect("whole");
    assert!(
        version == 2 || (version == 1 && renamed.is_err()),
        "{version} after {renamed:?}"
    );

    // And at full speed.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let content = m.read("target").expect("the target never vanishes");
                version_of(&content).unwrap_or_else(|why| panic!("torn: {why}"));
            }
        });
        let writers: Vec<_> = (0..3u64)
            .map(|number| {
                let m = &m;
                scope.spawn(move || {
                    let mut writer = Actor::new();
                    for round in 0..times(150, 5_000) as u64 {
                        let version = 3 + round * 3 + number;
                        let len = 20_000 + (version as usize * 7919) % 30_000;
                        let path = m.path("target");
                        let path = path.as_os_str().as_encoded_bytes();
                        let result = writer.ask("replace", &[path, &stamped(version, len)]);
                        // Another one may have renamed the shared name away, as on the plain
                        // directory.
                        if let Err(failure) = result {
                            assert_eq!(failure.errno, "ENOENT", "{failure:?}");
                        }
                    }
                })
            })
            .collect();
        let ends: Vec<_> = writers.into_iter().map(|one| one.join()).collect();
        done.store(true, Ordering::Relaxed);
        reader.join().expect("no torn read");
        ends.into_iter().for_each(|end| end.expect("a writer"));
    });
    version_of(&m.read("target").unwrap()).expect("whole at the end");
}

#[test]
fn unlinking_a_file_with_an_open_transaction_discards_it_without_resurrecting_the_name() {
    // The plain directory passes the first half.
    let m = mount!();
    m.save("f", "old");
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "discarded").unwrap();
    other.unlink(&m.path("f")).unwrap();
    assert!(!m.exists("f"));
    writer.close("f").unwrap();
    assert!(!m.exists("f"), "the name came back at close");
    assert!(m.names(".").is_empty());

    // A file that takes the name meanwhile is another file.
    m.save("f", "old");
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "discarded").unwrap();
    other.unlink(&m.path("f")).unwrap();
    m.save("f", "another file");
    writer.close("f").unwrap();
    assert_content(
        m.read("f"),
        b"another file",
        "after the close of the unlinked one",
    );
    if !common::plain() {
        assert_eq!(m.aborts("discarded"), 2);
    }
}

#[test]
fn temp_and_rename_replaces_in_one_step_and_is_a_commit() {
    let m = mount!();
    m.save("f", stamped(0, 1_000));
    let mut reader = Actor::new();
    reader.open("r", "r", &m.path("f")).unwrap();
    let before = m.version("f");
    m.save("g", stamped(1, 2_000));
    let mut writer = Actor::new();
    writer.rename(&m.path("g"), &m.path("f")).unwrap();
    assert_eq!(version_of(&m.read("f").unwrap()), Ok(1));
    assert_eq!(
        version_of(&reader.read_all("r").unwrap()),
        Ok(0),
        "an open reader"
    );
    assert!(!m.exists("g"));
    // Plain: there are no version numbers.
    assert_eq!(
        m.version("f").unwrap(),
        before.unwrap() + 1,
        "the path's version number"
    );
}

#[test]
fn noreplace_and_exchange_do_what_they_say() {
    // The plain directory passes.
    let m = mount!();
    m.save("a", "of a");
    m.save("b", "of b");
    let mut actor = Actor::new();
    assert_errno(actor.rename_noreplace(&m.path("a"), &m.path("b")), "EEXIST");
    actor.exchange(&m.path("a"), &m.path("b")).unwrap();
    assert_content(m.read("a"), b"of b", "exchanged");
    assert_content(m.read("b"), b"of a", "exchanged");
    actor.rename_noreplace(&m.path("a"), &m.path("c")).unwrap();
    assert_content(m.read("c"), b"of b", "renamed");
    assert!(!m.exists("a"));
    assert_errno(actor.rename(&m.path("a"), &m.path("d")), "ENOENT");
    assert_errno(actor.exchange(&m.path("b"), &m.path("d")), "ENOENT");
}

#[test]
fn a_rename_by_a_stranger_does_not_lose_the_writers_save() {
    // The plain directory passes: the open file follows its new name.
    let m = mount!();
    m.save("f", "old");
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "new content").unwrap();
    other.rename(&m.path("f"), &m.path("moved")).unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("moved"), b"new content", "under the new name");
    assert!(!m.exists("f"), "the old name came back");
}

#[test]
fn editors_and_tools_that_rename_work() {
    // The plain directory passes.
    let m = mount!();
    m.save("f", "one\ntwo\n");
    m.sh("sed -i s/one/uno/ f && cp f g && mv g h && sort -o h h && ln h i && rm i")
        .ok();
    assert_content(m.read("f"), b"uno\ntwo\n", "sed -i");
    assert_content(m.read("h"), b"two\nuno\n", "sort -o");
    m.python(
        "import os\n\
         for i in range(50):\n\
         \x20   with open('f.tmp', 'w') as f:\n\
         \x20       f.write(str(i)); f.flush(); os.fsync(f.fileno())\n\
         \x20   os.replace('f.tmp', 'f')\n\
         \x20   assert open('f').read() == str(i)\n",
    )
    .ok();
    assert_eq!(m.names("."), ["f", "h"]);
}

#[test]
fn a_link_to_a_file_that_is_rewritten_all_the_time_always_succeeds() {
    // The plain directory passes, but for the contents. Between the lookup of link(2) and the link
    // itself, the version that was found may have been replaced.
    let m = mount!();
    m.sh("mkdir cache mirror").ok();
    m.save("cache/f", stamped(0, 3_000));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|number| {
                let (m, stop) = (&m, &stop);
                scope.spawn(move || {
                    let mut writer = Actor::new();
                    for version in 1u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let content = stamped(number * 1_000_000 + version, 3_000);
                        writer.save(&m.path("cache/f"), content).unwrap();
                    }
                })
            })
            .collect();
        let mut linker = Actor::new();
        for round in 0..times(100, 2_000) {
            let path = m.path(format!("mirror/{round}"));
            linker.link(&m.path("cache/f"), &path).unwrap();
            let found = m.read(format!("mirror/{round}")).unwrap();
            version_of(&found).expect("a whole version");
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().for_each(|w| w.join().unwrap());
    });
}

#[test]
fn an_editor_that_has_linked_its_file_starts_from_a_shorter_version_when_it_locks_it() {
    need_features!("flock_locks");
    let m = mount!();
    let (f, g) = (m.path("f"), m.path("g"));
    m.save("f", "a long line that was there first");
    let mut editor = Actor::new();
    editor.open("f", "r+", &f).unwrap();
    m.save("f", "short");
    editor.link(&f, &g).unwrap();
    editor.ask("flock", &[b"f"]).unwrap();
    editor.pwrite("f", 0, b"S").unwrap();
    editor.close("f").unwrap();
    assert_content(m.read("f"), b"Short", "nothing of the longer one");
}

#[test]
fn what_was_fsynced_before_a_link_survives_its_writers_kill_and_the_daemons() {
    for kills_daemon in [false, true] {
        let mut m = mount!();
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("f")).unwrap();
        writer.write("f", "synced").unwrap();
        writer.fsync("f").unwrap();
        writer.link(&m.path("f"), &m.path("g")).unwrap();
        if kills_daemon && !common::plain() {
            m.kill_daemon();
            drop(writer);
            m.remount();
        } else {
            writer.kill(libc::SIGKILL);
        }
        eventually(Duration::from_secs(2), "it is there", || {
            m.read("f").as_deref() == Some(b"synced")
        });
        assert_content(m.read("g"), b"synced", "the other name");
    }
}

#[test]
fn files_that_are_open_go_with_their_names_as_on_the_plain_directory() {
    need_daemon!();
    let m = mount!(common::Mount::options().limit(Duration::from_secs(300)));
    m.same_as_plain(&format!(
        "import sys; sys.path.insert(0, {:?}); import open_names; open_names.main()",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables")
    ));
}

#[test]
fn an_exchange_shows_others_what_its_program_has_written_so_far() {
    let m = mount!();
    m.save("a", "old");
    m.save("b", "other");
    let mut program = Actor::new();
    program.open("f", "w", &m.path("a")).unwrap();
    program.write("f", "new").unwrap();
    program.exchange(&m.path("a"), &m.path("b")).unwrap();
    assert_content(m.read("a"), b"other", "the other file");
    assert_content(m.read("b"), b"new", "as after a rename before the close");
    program.write("f", ", more").unwrap();
    program.kill(libc::SIGKILL);
    assert_content(m.read("a"), b"other", "the other file");
}

#[test]
fn an_exchange_that_is_refused_leaves_all_names_as_they_were() {
    need_daemon!();
    let m = mount!();
    m.save("a.json", "{}");
    m.save("plain", "[1]");
    let mut program = Actor::new();
    // Nothing replaces a document, and half of one is none.
    program.open("new", "w", &m.path("new")).unwrap();
    program.open("half", "w", &m.path("half.json")).unwrap();
    program.write("half", "[1, ").unwrap();
    for (one, other) in [
        ("new", "a.json"),
        ("half.json", "plain"),
        ("new", "half.json"),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            let said = program.exchange(&m.path(one), &m.path(other));
            assert_errno(said, "EBADMSG");
            assert_eq!(m.names("."), ["a.json", "plain"], "{one}, {other}");
        }
    }
    assert_content(m.read("a.json"), b"{}", "as before");
    program.write("new", "[2]").unwrap();
    program.exchange(&m.path("new"), &m.path("a.json")).unwrap();
    assert_content(m.read("a.json"), b"[2]", "a whole one");
    assert_content(m.read("new"), b"{}", "the other");
}

#[test]
fn a_link_follows_who_has_the_file_open_until_somebody_puts_something_else_there() {
    need_daemon!();
    let m = mount!();
    let (mut writer, mut linker) = (Actor::new(), Actor::new());
    m.save("f", "old");
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "new").unwrap();
    for name in ["followed", "replaced", "renamed", "removed"] {
        linker.link(&m.path("f"), &m.path(name)).unwrap();
        assert_content(m.read(name), b"old", "what others see");
    }
    m.save("replaced", "by others");
    linker
        .rename(&m.path("renamed"), &m.path("elsewhere"))
        .unwrap();
    linker.unlink(&m.path("removed")).unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("followed"), b"new", "what the close commits");
    assert_content(m.read("elsewhere"), b"new", "under its new name");
    assert_content(m.read("replaced"), b"by others", "not the file any more");
    assert_eq!(m.names("."), ["elsewhere", "f", "followed", "replaced"]);
    // A commit splits links that were made before (C8).
    m.save("f", "newer");
    assert_content(m.read("followed"), b"new", "a file of its own");
    // What is never committed reaches no link either.
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "half").unwrap();
    linker.link(&m.path("f"), &m.path("g")).unwrap();
    writer.kill(libc::SIGKILL);
    assert_content(m.read("f"), b"newer", "its writer was killed");
    assert_content(m.read("g"), b"newer", "nor here");
}
