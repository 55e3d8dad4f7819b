//! C2, C6 to C9, C20: what others do in the middle of a close or an fsync. By a hook of the daemon
//! each test is in the very moment that it is about.

mod common;

use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use common::{Actor, Mount, assert_content, assert_errno, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Some time after another has begun something that the daemon takes a second for.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(300));
}

/// Who has opened a file, and written to it.
#[track_caller]
fn writing(m: &Mount, name: &str, mode: &str, text: &str) -> Actor {
    let mut writer = Actor::new();
    writer.open("f", mode, &m.path(name)).unwrap();
    writer.pwrite("f", 0, text.as_bytes()).unwrap();
    writer
}

#[test]
fn what_is_fsynced_while_another_thread_gives_the_lock_back_is_kept() {
    need_daemon!();
    need_features!("flock_locks");
    for dies in ["the writer", "the daemon"] {
        let options = Mount::options().env("COMMITFS_FSYNC_DELAY_MS", 1000);
        let mut m = mount!(options.env("COMMITFS_JOURNAL_LIMIT", 1));
        m.save("f", "old");
        let mut writer = writing(&m, "f", "r+", "whole");
        writer.ask("flock", &[b"f"]).unwrap();
        let mut other = writer.thread();
        writer.start("fsync", &[b"f"]);
        a_moment();
        other.ask("funlock", &[b"f"]).unwrap();
        writer.finish().unwrap();
        assert_content(m.read("f"), b"whole", "the lock was given back");
        if dies == "the writer" {
            writer.pwrite("f", 0, b"ha").unwrap();
            writer.kill(libc::SIGKILL);
            m.await_rejected("f", b"haole");
        } else {
            // Each round starts the journal anew.
            for n in 0..5 {
                m.save("other", format!("{n}"));
                std::thread::sleep(Duration::from_millis(20));
            }
            m.command(&["umount"]).fails();
            m.kill_daemon();
            m.remount();
        }
        assert_content(m.read("f"), b"whole", dies);
    }
}

#[test]
fn what_is_closed_is_there_for_who_removes_its_directory_or_takes_its_name() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_DECIDE_DELAY_MS", 1000));
    m.mkdir("d");
    m.mkdir("e");
    let mut writer = Actor::new();
    writer.open("f", "w+", &m.path("d/f")).unwrap();
    writer.pwrite("f", 0, b"whole").unwrap();
    // RELEASE is as late as a mapping makes it.
    writer.mmap("f", "map", 5, "rw").unwrap();
    // Somebody may have a hidden file open in it: it goes all the same.
    let hidden = writing(&m, "e/hidden", "w", "half");
    writer.close("f").unwrap();
    let refuses = |what: &str| {
        let mut other = Actor::new();
        assert_errno(other.rmdir(&m.path("d")), "ENOTEMPTY");
        assert_errno(other.rename(&m.path("e"), &m.path("d")), "ENOTEMPTY");
        assert_eq!(m.commits(), 0, "{what}: too late");
        // A lookup waits for what is being decided.
        assert_errno(other.mkdir(&m.path("d/f")), "EEXIST");
    };
    refuses("closed");
    writer.map_write("map", 0, b"W").unwrap();
    writer.munmap("map").unwrap();
    a_moment();
    refuses("being decided upon");
    eventually(SOON, "it is there", || {
        m.read("d/f").as_deref() == Some(b"Whole")
    });
    Actor::new().rmdir(&m.path("e")).unwrap();
    drop(hidden);
}

#[test]
fn a_close_whose_name_goes_while_it_is_prepared_says_so() {
    need_daemon!();
    for errno in ["ENOENT", "EISDIR"] {
        let m = mount!(Mount::options().env("COMMITFS_PROMISE_DELAY_MS", 2000));
        m.mkdir("d");
        let mut other = Actor::new();
        let mut writer = writing(&m, "d/f", "w", "whole");
        writer.start("close", &[b"f"]);
        a_moment();
        let done = match errno {
            "ENOENT" => other.rmdir(&m.path("d")),
            _ => other.mkdir(&m.path("d/f")),
        };
        done.unwrap();
        assert!(!writer.has_answered(), "the close was quicker");
        assert_errno(writer.finish(), errno);
        m.await_rejected("d/f", b"whole");
    }
}

#[test]
fn what_is_set_by_name_while_a_file_is_closed_stays() {
    need_daemon!();
    need_features!("flock_locks");
    type Publish = fn(&mut Actor);
    let close: Publish = |writer| writer.start("close", &[b"f"]);
    let unlock: Publish = |writer| writer.start("funlock", &[b"f"]);
    for (what, publish, durable) in [
        ("unlock", unlock, false),
        ("close", close, false),
        ("durable close", close, true),
    ] {
        let options = Mount::options().env("COMMITFS_COMMIT_DELAY_MS", 1500);
        let m = mount!(if durable { options.sync() } else { options });
        std::fs::write(m.backing().join("f"), "old").unwrap();
        let (mut writer, mut other) = (writing(&m, "f", "r+", "new"), Actor::new());
        if what == "unlock" {
            writer.ask("flock", &[b"f"]).unwrap();
        }
        publish(&mut writer);
        a_moment();
        let path = m.path("f");
        other.chmod(&path, 0o600);
        other.setxattr(&path, "user.note", b"mine").unwrap();
        assert!(!writer.has_answered(), "{what}: it was quicker");
        writer.finish().unwrap();
        eventually(SOON, "it is committed", || {
            m.read("f").as_deref() == Some(b"new")
        });
        assert_eq!(other.stat(&path).unwrap().mode & 0o777, 0o600, "{what}");
        let note = other.getxattr(&path, "user.note");
        assert_eq!(note.unwrap(), b"mine", "{what}");
    }
}

#[test]
fn what_is_set_by_name_while_a_document_is_patched_stays() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_EDIT_DELAY_MS", 1500));
    let path = m.path("f.json");
    std::fs::write(&path, "{}").unwrap();
    let (mut patcher, mut other) = (Actor::new(), Actor::new());
    let name = path.as_os_str().as_bytes();
    patcher.start(
        "setxattr",
        &[name, b"user.commitfs.json.merge", b"{\"n\":1}"],
    );
    a_moment();
    // It waits in the kernel.
    other.chmod(&path, 0o600);
    patcher.finish().unwrap();
    assert_content(m.read("f.json"), b"{\"n\": 1}", "patched");
    assert_eq!(other.stat(&path).unwrap().mode & 0o777, 0o600);
}

#[test]
fn what_is_set_through_the_descriptor_before_a_close_stays_too() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_COMMIT_DELAY_MS", 1500));
    std::fs::write(m.backing().join("f"), "old").unwrap();
    let (mut writer, mut other) = (writing(&m, "f", "r+", "new"), Actor::new());
    writer.on_slot("fchmod", "f", &[0o640]).unwrap();
    writer.start("close", &[b"f"]);
    a_moment();
    other.setxattr(&m.path("f"), "user.note", b"mine").unwrap();
    writer.finish().unwrap();
    assert_eq!(other.stat(&m.path("f")).unwrap().mode & 0o777, 0o640);
    assert!(other.getxattr(&m.path("f"), "user.note").is_ok());
}

#[test]
fn a_close_that_an_unmount_by_force_overtakes_says_so() {
    need_daemon!();
    for delay in ["COMMITFS_PROMISE_DELAY_MS", "COMMITFS_SHUTDOWN_DELAY_MS"] {
        let mut m = mount!(
            Mount::options()
                .env("COMMITFS_SHUTDOWN_DELAY_MS", 2000)
                .env(delay, 2000)
        );
        let mut writer = writing(&m, "f", "w", "whole");
        let closes_before = delay == "COMMITFS_PROMISE_DELAY_MS";
        if closes_before {
            writer.start("close", &[b"f"]);
            a_moment();
        }
        let umount = std::thread::scope(|scope| {
            let umount = scope.spawn(|| m.command(&["umount", "--force"]));
            a_moment();
            if !closes_before {
                writer.start("close", &[b"f"]);
            }
            assert!(
                writer.finish().is_err(),
                "{delay}: close() was told all is well"
            );
            umount.join().unwrap()
        });
        umount.ok();
        m.reap_daemon(SOON);
        m.remount();
        m.await_rejected("f", b"whole");
    }
}

#[test]
fn an_fsync_that_an_unmount_by_force_overtakes_says_so() {
    need_daemon!();
    let mut m = mount!(Mount::options().env("COMMITFS_SHUTDOWN_DELAY_MS", 3000));
    let mut writer = writing(&m, "f", "w", "whole");
    let told = std::thread::scope(|scope| {
        let umount = scope.spawn(|| m.command(&["umount", "--force"]));
        a_moment();
        let told = writer.fsync("f");
        umount.join().unwrap();
        told
    });
    assert!(told.is_err(), "fsync() was told all is well");
    m.reap_daemon(SOON);
    m.remount();
    m.await_rejected("f", b"whole");
}

#[test]
fn what_a_killed_writer_had_fsynced_replaces_nothing_that_others_close_meanwhile() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_RESCUE_DELAY_MS", 1500));
    m.save("f", "old");
    let mut killed = writing(&m, "f", "w", "fsync'd");
    killed.fsync("f").unwrap();
    let mut other = writing(&m, "f", "w", "closed later");
    killed.kill(libc::SIGKILL);
    a_moment();
    other.close("f").unwrap();
    m.await_rejected("f", b"fsync'd");
    assert_content(m.read("f"), b"closed later", "the last close");
}

#[test]
fn nobody_waits_for_an_editor_whose_file_got_another_name() {
    need_daemon!();
    let options = Mount::options().env("COMMITFS_PROMISE_DELAY_MS", 2000);
    let m = mount!(options.env("COMMITFS_SILENCE_MS", 1));
    let mut mover = Actor::new();
    std::fs::write(m.backing().join("f"), "0000").unwrap();
    let mut one = writing(&m, "f", "r+", "1");
    let mut two = Actor::new();
    two.open("f", "r+", &m.path("f")).unwrap();
    two.pwrite("f", 1, b"2").unwrap();
    // Its opener goes on with the file.
    let mut child = two.fork();
    one.start("close", &[b"f"]);
    std::thread::sleep(Duration::from_millis(100));
    child.start("close", &[b"f"]);
    a_moment();
    mover.rename(&m.path("f"), &m.path("g")).unwrap();
    one.finish().unwrap();
    child.finish().unwrap();
    m.save("f", "a new one\n");
    let begun = Instant::now();
    m.sh("echo x >> f").ok();
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
    assert_content(m.read("f"), b"a new one\nx\n", "the new one");
    two.close("f").unwrap();
    eventually(SOON, "both are there", || {
        m.read("g").as_deref() == Some(b"1200")
    });
}
