//! C2, C6 to C9, C20: what others do in the middle of a close or an fsync. By a hook of the daemon
//! each test is in the very moment that it is about.

mod common;

use std::time::Duration;

use common::{Actor, Mount, assert_content};

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
