//! C6, C8, C10, C11. What a program asks in passing has the answer of the plain directory: close() of a file whose directory is gone,
//! the length of a file with an unfinished line, link counts, access times, set-id bits. Each is compared with a plain directory.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use common::{Mount, eventually};

/// Runs a part of tests/tables/small_answers.py on a mount and on a plain directory.
fn compare(m: &Mount, part: &str) {
    m.same_as_plain(&format!(
        "import sys; sys.path.insert(0, {:?}); sys.argv[1:] = [{part:?}]; import small_answers; small_answers.main()",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tables")
    ));
}

#[test]
fn a_file_that_was_removed_with_its_directory_is_closed_without_an_error() {
    need_daemon!();
    let m = mount!(Mount::options().limit(Duration::from_secs(200)));
    compare(&m, "closes");
    assert!(m.rejected().is_empty(), "{:?}", m.rejected());
}

#[test]
fn who_adds_an_unfinished_line_is_told_one_length_by_every_call() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_LINE_PATIENCE_MS", 60_000));
    compare(&m, "appended");
}

#[test]
fn others_are_told_the_length_that_they_read() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_LINE_PATIENCE_MS", 60_000));
    m.save("f", "0123456789\n");
    let mut writer = common::Actor::new();
    writer.open("f", "a+", &m.path("f")).unwrap();
    writer.write("f", "abc").unwrap();
    assert_eq!(writer.fstat("f").unwrap().size, 14);
    let size = || std::fs::metadata(m.path("f")).unwrap().len();
    assert_eq!((size(), m.read("f").unwrap().len()), (11, 11));
    assert_eq!(writer.fstat("f").unwrap().size, 14);
    writer.write("f", "\n").unwrap();
    assert_eq!(size(), 15);
}

#[test]
fn o_noatime_leaves_the_access_time_alone() {
    need_daemon!();
    compare(&mount!(), "atimes");
}

#[test]
fn on_a_mount_with_noatime_nobody_changes_access_times() {
    need_daemon!();
    for (option, file, directory) in [
        ("noatime", 1000, 1000),
        ("nodiratime", 0, 1000),
        ("relatime", 0, 0),
    ] {
        let m = mount!(Mount::options().args(["-o", option]));
        m.mkdir("d");
        for name in ["f", "f.log", "d/f"] {
            m.save(name, "content");
        }
        m.bash("sync .").ok();
        let set = "import os\nfor name in ('f', 'f.log', 'd'): os.utime(name, (1000, 2000))";
        m.python(set).ok();
        let read = m.bash("cat f f.log; ls d; cat f");
        assert_eq!(read.ok().out, "contentcontentf\ncontent");
        let kept = |name: &str| std::fs::metadata(m.path(name)).unwrap().atime() == 1000;
        assert_eq!(kept("f"), file == 1000, "{option}");
        assert_eq!(kept("f.log"), file == 1000, "{option}");
        assert_eq!(kept("d"), directory == 1000, "{option}");
    }
}

#[test]
fn a_file_that_was_replaced_or_removed_has_no_link_left() {
    need_daemon!();
    compare(&mount!(), "links");
}

#[test]
fn the_set_id_bits_that_go_are_those_of_the_plain_directory() {
    need_root!();
    need_daemon!();
    compare(
        &mount!(Mount::options().limit(Duration::from_secs(200))),
        "set_ids",
    );
}

#[test]
fn ctime_survives_a_remount() {
    need_daemon!();
    let mut m = mount!();
    let ctimes = |m: &Mount| {
        let stat = |name| std::fs::metadata(m.path(name)).unwrap();
        ["f", "g", "h"].map(|name| (stat(name).ctime(), stat(name).ctime_nsec()))
    };
    m.save("f", "one");
    m.save("g", "one");
    m.save("h", "one");
    std::thread::sleep(Duration::from_millis(30));
    m.save("f", "two");
    std::fs::rename(m.path("g"), m.path("g2")).unwrap();
    std::fs::rename(m.path("g2"), m.path("g")).unwrap();
    let told = ctimes(&m);
    m.unmount();
    m.remount();
    assert_eq!(ctimes(&m), told, "(seconds, nanoseconds) of f, g, h");
    // A change is one, also if nobody was mounted when it was made.
    m.unmount();
    // So long after the last version was put in place a change of ctime is taken for that.
    std::thread::sleep(Duration::from_millis(300));
    std::fs::set_permissions(m.backing().join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    m.remount();
    assert!(ctimes(&m)[0] > told[0]);
    assert_eq!(ctimes(&m)[2], told[2]);
    m.bash("chmod 640 h").ok();
    let changed = ctimes(&m);
    assert!(changed[2] > told[2]);
    m.unmount();
    m.remount();
    eventually(Duration::from_secs(1), "it stays", || ctimes(&m) == changed);
}
