//! C8. A commit makes a new file, but programs must find the old one's owner, mode, ACLs and
//! attributes on it, and times and numbers that tell versions apart. Savers that go by way of a
//! temporary file lose them; then a web server or another user cannot read the file any more.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Actor, Mount, assert_content};

#[test]
fn a_commit_keeps_mode_owner_and_extended_attributes() {
    // The plain directory passes.
    let m = mount!();
    m.save("f", "old");
    m.sh("chmod 640 f && setfattr -n user.colour -v blue f")
        .ok();
    if common::is_root() {
        m.sh("chown 1234:2345 f").ok();
    }
    let before = std::fs::metadata(m.path("f")).unwrap();
    m.save("f", "new");
    let after = std::fs::metadata(m.path("f")).unwrap();
    assert_content(m.read("f"), b"new", "saved");
    assert_eq!(after.permissions().mode() & 0o7777, 0o640);
    assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
    let colour = Actor::new().getxattr(&m.path("f"), "user.colour");
    assert_eq!(colour, Ok(b"blue".to_vec()));
}

#[test]
fn attributes_set_through_an_open_file_that_is_not_written_take_effect() {
    // The plain directory passes.
    let m = mount!();
    m.save("f", "content");
    m.sh("chmod 600 f && touch -d @1000000000 f").ok();
    let stat = Actor::new().stat(&m.path("f")).unwrap();
    assert_eq!(stat.mtime_ns, 1_000_000_000_000_000_000);
    m.python("import os; f = open('f', 'r+'); os.fchmod(f.fileno(), 0o604)")
        .ok();
    let stat = Actor::new().stat(&m.path("f")).unwrap();
    assert_eq!(stat.mode & 0o7777, 0o604);
    assert_content(m.read("f"), b"content", "untouched");
}

#[test]
fn a_new_file_gets_the_callers_mode_under_its_umask() {
    // The plain directory passes.
    let m = mount!();
    m.sh("umask 027 && echo text > f && umask 000 && echo text > g")
        .ok();
    let mode = |name: &str| {
        let metadata = std::fs::metadata(m.path(name)).unwrap();
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!((mode("f"), mode("g")), (0o640, 0o666));
}

#[test]
fn the_modification_time_grows_strictly_and_the_inode_number_changes_with_every_commit() {
    let m = mount!();
    m.save("f", "0");
    let mut reader = Actor::new();
    let mut last = reader.stat(&m.path("f")).unwrap();
    for n in 1..200 {
        m.save("f", n.to_string());
        let now = reader.stat(&m.path("f")).unwrap();
        assert!(now.mtime_ns > last.mtime_ns, "commit {n}: {last:?} {now:?}");
        // Plain: it is the same file.
        assert_ne!(now.ino, last.ino, "commit {n}");
        reader.open("r", "r", &m.path("f")).unwrap();
        assert_eq!(reader.fstat("r").unwrap().ino, now.ino, "fstat, commit {n}");
        reader.close("r").unwrap();
        last = now;
    }
}

#[test]
fn the_time_grows_although_somebody_has_committed_since_the_last_descriptor_was_closed() {
    let m = mount!();
    m.save("f", "old content");
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path("f")).unwrap();
    editor.mmap("f", "m", 4096, "rw").unwrap();
    editor.map_write("m", 0, b"new").unwrap();
    editor.close("f").unwrap();
    m.save("f", "another");
    let before = Actor::new().stat(&m.path("f")).unwrap();
    editor.munmap("m").unwrap();
    let is_there = || m.read("f").as_deref() == Some(b"new content");
    common::eventually(std::time::Duration::from_secs(5), "committed", is_there);
    let after = Actor::new().stat(&m.path("f")).unwrap();
    assert!(after.mtime_ns > before.mtime_ns, "{before:?} {after:?}");
}

#[test]
fn a_time_in_the_future_does_not_keep_the_next_one_from_being_later() {
    let m: Mount = mount!();
    m.save("f", "0");
    m.sh("touch -d '2040-01-01' f").ok();
    let before = Actor::new().stat(&m.path("f")).unwrap().mtime_ns;
    m.save("f", "1");
    assert!(Actor::new().stat(&m.path("f")).unwrap().mtime_ns > before);
}
