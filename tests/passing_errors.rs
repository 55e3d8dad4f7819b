//! C7, C19. Being short of descriptors or memory when something is opened passes, and nothing is lost by
//! it. A checkpoint that took it for a failed fdatasync would refuse every later save until a forced
//! unmount, and a shell would not even say so. What an fdatasync says never passes.

mod common;

use std::time::Duration;

use common::{Actor, Mount, assert_content, eventually};

const SYNCS: [&str; 7] = [
    "C19-sync-dirs-before",
    "C19-sync-appends",
    "C19-sync-data",
    "C19-sync-staging",
    "C19-sync-journal",
    "C19-sync-dirs-after",
    "C19-sync-staging-after",
];

/// What needs each of the steps of a checkpoint.
fn work(m: &Mount, actor: &mut Actor) {
    actor.mkdir(&m.path("made")).unwrap();
    for n in 0..4 {
        actor
            .save(&m.path(format!("f{n}")), format!("{n}"))
            .unwrap();
    }
    append(m, actor).unwrap();
}

fn append(m: &Mount, actor: &mut Actor) -> Result<(), common::Failure> {
    actor.open("log", "a", &m.path("log"))?;
    actor.write("log", "a line\n")?;
    actor.close("log")
}

/// The same, where a sync fails on the way.
fn work_as_far_as_it_goes(m: &Mount, actor: &mut Actor) {
    actor.mkdir(&m.path("made")).ok();
    for n in 0..4 {
        actor.save(&m.path(format!("f{n}")), format!("{n}")).ok();
    }
    append(m, actor).ok();
}

#[test]
fn what_was_short_for_a_moment_in_a_checkpoint_is_tried_again() {
    need_daemon!();
    // More often than there are descriptors in reserve.
    for (errno, count, after) in [
        (libc::EMFILE, 20, 0),
        (libc::ENFILE, 20, 1),
        (libc::ENOMEM, 1, 0),
        (libc::ENOMEM, 1, 1),
    ] {
        let name = format!("C19-open-dir:{errno}:{count}:{after}");
        let m = mount!(
            Mount::options()
                .seed("log", "begun\n")
                .env("COMMITFS_FAIL_AT", &name)
        );
        let mut actor = Actor::new();
        work(&m, &mut actor);
        eventually(
            Duration::from_secs(10),
            &format!("{name}: all is in place"),
            || {
                let status = m.status();
                assert!(status["failed"].is_null(), "{name}: {status}");
                status["pending"] == 0 && status["stuck"].is_null()
            },
        );
        actor.save(&m.path("later"), "saved").unwrap();
        actor.open("d", "r|directory", m.mountpoint()).unwrap();
        actor.fsync("d").unwrap();
        assert_content(m.read("later"), b"saved", &name);
        assert!(m.log().contains("tried again"), "{name}: {}", m.log());
    }
}

#[test]
fn what_a_sync_says_is_believed_for_good_also_if_it_is_short_of_memory() {
    // A write that failed in the kernel may be told as ENOMEM, and once: the pages are clean then.
    need_daemon!();
    for (name, errno) in SYNCS.iter().zip([libc::ENOMEM, libc::EAGAIN].repeat(4)) {
        let m = mount!(
            Mount::options()
                .seed("log", "begun\n")
                .env("COMMITFS_FAIL_AT", format!("{name}:{errno}:1"))
        );
        let mut actor = Actor::new();
        work_as_far_as_it_goes(&m, &mut actor);
        eventually(Duration::from_secs(10), &format!("{name} stands"), || {
            !m.status()["failed"].is_null()
        });
        actor.open("d", "r|directory", m.mountpoint()).unwrap();
        actor
            .fsync("d")
            .expect_err("a second fsync would be told a lie");
    }
}

#[test]
fn a_disk_that_turns_out_to_be_full_when_data_is_written_back_is_believed_for_good() {
    need_daemon!();
    let at = format!("C19-sync-data:{}:1", libc::ENOSPC);
    let m = mount!(Mount::options().env("COMMITFS_FAIL_AT", at));
    let mut actor = Actor::new();
    actor.save(&m.path("f"), "content").unwrap();
    eventually(Duration::from_secs(10), "the failure stands", || {
        !m.status()["failed"].is_null()
    });
    actor.open("d", "r|directory", m.mountpoint()).unwrap();
    actor
        .fsync("d")
        .expect_err("a second fsync would be told a lie");
}

#[test]
fn what_was_acknowledged_comes_into_place_when_there_are_no_descriptors_left() {
    need_daemon!();
    let options = Mount::options().args(["--bound", "20000"]);
    let m = mount!(options.env("COMMITFS_DESCRIPTORS", 150));
    let mut actor = Actor::new();
    for n in 0..3 {
        m.mkdir(format!("d{n}"));
    }
    // The directories' own checkpoint is over.
    actor.open("d", "r|directory", m.mountpoint()).unwrap();
    actor.fsync("d").unwrap();
    for n in 0..3 {
        actor
            .save(&m.path(format!("d{n}/f")), format!("{n}"))
            .unwrap();
    }
    // Not one more can be opened.
    let mut open = |n: i32| {
        actor
            .open(&format!("{n}"), "w", &m.path(format!("w{n}")))
            .err()
    };
    let refused = (0..300).find_map(&mut open);
    assert_eq!(refused.map(|f| f.errno).as_deref(), Some("EMFILE"));
    assert_ne!(m.status()["pending"], 0, "too late");
    eventually(Duration::from_secs(20), "all is in place", || {
        let status = m.status();
        assert!(status["failed"].is_null(), "{status}");
        status["pending"] == 0
    });
    assert!(!m.log().contains("tried again"), "{}", m.log());
    actor.exit(0);
    for n in 0..3 {
        assert_content(
            m.read(format!("d{n}/f")),
            n.to_string().as_bytes(),
            "in place",
        );
    }
}
