//! C8. Every version is a file of its own, and nobody may notice but by its number: a rewrite that
//! lost the owner of `config.json`, made it readable for all, or left an old time on new content
//! would break backups, web servers and caches in ways that show weeks later.

mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use common::{Actor, Mount, Stat, assert_content, assert_errno, eventually};

/// Longer than it takes to bring a version into the backing directory.
const APPLIED: Duration = Duration::from_millis(1300);
const NOBODY: (u32, u32) = (65534, 65534);

fn user() -> Actor {
    let mut user = Actor::new();
    user.become_user(NOBODY.0, NOBODY.1);
    user
}

fn mode(stat: &Stat) -> u32 {
    stat.mode & 0o7777
}

/// An ACL as the kernel has it in an attribute: owner, user 1, group, mask, others.
fn acl(bits: [u16; 5]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (0x01u16, bits[0], u32::MAX),
        (0x02, bits[1], 1),
        (0x04, bits[2], u32::MAX),
        (0x10, bits[3], u32::MAX),
        (0x20, bits[4], u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn owner_mode_acl_and_xattrs_are_kept_when_another_user_rewrites_the_file() {
    need_root!();
    let m = mount!();
    m.save("config", "one");
    let path = m.path("config");
    let mut root = Actor::new();
    root.chmod(&path, 0o666);
    root.chown(&path, 1, 2);
    root.setxattr(&path, "user.note", b"kept").unwrap();
    root.setxattr(&path, "system.posix_acl_access", &acl([6, 4, 6, 6, 6]))
        .unwrap();
    let before = root.stat(&path).unwrap();
    let mut other = user();
    for (round, how) in ["w", "r+", "w"].into_iter().enumerate() {
        other.open("f", how, &path).unwrap();
        other.write("f", format!("round {round}")).unwrap();
        other.close("f").unwrap();
        let after = root.stat(&path).unwrap();
        assert_ne!(after.ino, before.ino, "not a new version");
        assert_eq!(
            (after.uid, after.gid, after.mode),
            (before.uid, before.gid, before.mode)
        );
        assert_eq!(root.getxattr(&path, "user.note").unwrap(), b"kept");
        let kept = root.getxattr(&path, "system.posix_acl_access").unwrap();
        assert_eq!(kept, acl([6, 4, 6, 6, 6]));
    }
}

#[test]
fn changes_of_attributes_while_a_writer_is_open_are_not_lost() {
    let m = mount!();
    m.save("secret", "old");
    let path = m.path("secret");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "new").unwrap();
    let mut other = Actor::new();
    other.chmod(&path, 0o600);
    other.setxattr(&path, "user.label", b"x").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("secret"), b"new", "the commit");
    assert_eq!(mode(&other.stat(&path).unwrap()), 0o600);
    assert_eq!(other.getxattr(&path, "user.label").unwrap(), b"x");
}

#[test]
fn the_writers_own_chmod_outlasts_a_commit_that_came_between() {
    let m = mount!();
    m.save("secret", "old");
    let path = m.path("secret");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.on_slot("fchmod", "f", &[0o600]).unwrap();
    m.save("secret", "between");
    writer.write("f", "mine").unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("secret"), b"mine", "the last close");
    assert_eq!(mode(&writer.stat(&path).unwrap()), 0o600);
}

#[test]
fn an_attribute_that_is_set_through_an_open_file_stays_though_nothing_is_written() {
    let m = mount!();
    m.save("notes", "text");
    let path = m.path("notes");
    let (mut editor, mut other) = (Actor::new(), Actor::new());
    editor.open("f", "r+", &path).unwrap();
    editor.setxattr(&path, "user.label", b"x").unwrap();
    editor.close("f").unwrap();
    assert_eq!(other.getxattr(&path, "user.label").unwrap(), b"x");
    assert_content(m.read("notes"), b"text", "its content");
}

#[test]
fn a_private_file_opened_again_by_name_before_its_first_version_stays_private() {
    let m = mount!();
    let out = m
        .python(
            "import os, tempfile\n\
             os.umask(0o022)\n\
             def show(): print(oct(os.stat(path).st_mode & 0o777), open(path).read())\n\
             for _ in range(20):\n\
             \x20   fd, path = tempfile.mkstemp(dir='.')\n\
             \x20   with open(path, 'w') as f: f.write('kept')\n\
             \x20   show()\n\
             \x20   os.close(fd)\n\
             \x20   show()\n\
             fd, path = tempfile.mkstemp(dir='.')\n\
             with open(path, 'w') as f: f.write('kept')\n\
             os.rename(path, 'target')\n\
             os.close(fd)\n\
             print(os.path.exists(path), open('target').read())\n",
        )
        .ok()
        .out;
    assert_eq!(out, "0o600 kept\n".repeat(40) + "False kept\n");
}

#[test]
fn new_files_get_the_callers_ids_and_umask_and_a_setgid_directorys_group() {
    need_root!();
    let m = mount!();
    let mut root = Actor::new();
    m.mkdir("open");
    root.chmod(&m.path("open"), 0o777);
    m.mkdir("team");
    root.chown(&m.path("team"), 0, 2);
    root.chmod(&m.path("team"), 0o2777);
    let mut other = user();
    for (umask, expected) in [(0o022, 0o644), (0o077, 0o600), (0o000, 0o666)] {
        other
            .ask("umask", &[umask.to_string().as_bytes()])
            .expect("umask");
        for (dir, gid) in [("open", NOBODY.1), ("team", 2)] {
            let path = m.path(dir).join(format!("f{umask:o}"));
            other.save(&path, "x").unwrap();
            let made = root.stat(&path).unwrap();
            assert_eq!(
                (made.uid, made.gid, mode(&made)),
                (NOBODY.0, gid, expected),
                "{}",
                path.display()
            );
        }
    }
    other.mkdir(&m.path("team/below")).unwrap();
    let made = root.stat(&m.path("team/below")).unwrap();
    assert_eq!((made.gid, made.mode & 0o2000), (2, 0o2000));
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    need_features!("dont_mask", "posix_acl");
    need_root!();
    let m = mount!();
    m.mkdir("shared");
    let mut root = Actor::new();
    let default = acl([7, 6, 5, 6, 0]);
    root.setxattr(&m.path("shared"), "system.posix_acl_default", &default)
        .unwrap();
    root.ask("umask", &[0o077.to_string().as_bytes()]).unwrap();
    let path = m.path("shared/f");
    root.save(&path, "x").unwrap();
    // 0666 asked for: what the ACL allows of it, the mask in the group's place.
    assert_eq!(mode(&root.stat(&path).unwrap()), 0o660);
    let given = root.getxattr(&path, "system.posix_acl_access").unwrap();
    assert_eq!(given, acl([6, 6, 5, 6, 0]));
    root.save(&path, "y").unwrap();
    let kept = root.getxattr(&path, "system.posix_acl_access").unwrap();
    assert_eq!(kept, acl([6, 6, 5, 6, 0]), "after a rewrite");
    root.mkdir(&m.path("shared/d")).unwrap();
    let inherited = root.getxattr(&m.path("shared/d"), "system.posix_acl_default");
    assert_eq!(inherited.unwrap(), default);
}

/// Each way to change a file's content.
const CHANGES: [&str; 7] = [
    "w",
    "empty",
    "r+",
    "truncate",
    "ftruncate",
    "fallocate",
    "copy",
];

fn change(actor: &mut Actor, how: &str, m: &Mount, path: &Path) {
    match how {
        "w" | "r+" => {
            actor.open("f", how, path).unwrap();
            actor.write("f", "changed").unwrap();
        }
        "empty" => actor.open("f", "wronly|trunc", path).unwrap(),
        "truncate" => return actor.truncate(path, 3).unwrap(),
        "ftruncate" => {
            actor.open("f", "r+", path).unwrap();
            actor.ftruncate("f", 3).unwrap();
        }
        "fallocate" => {
            actor.open("f", "r+", path).unwrap();
            actor.on_slot("fallocate", "f", &[0, 0, 5000]).unwrap();
        }
        _ => {
            actor.open("f", "r+", path).unwrap();
            actor.open("source", "r", &m.path("source")).unwrap();
            let args: [&[u8]; 5] = [b"source", b"0", b"f", b"0", b"4"];
            actor.ask("copy-range", &args).unwrap();
            actor.close("source").unwrap();
        }
    }
    actor.close("f").unwrap();
}

#[test]
fn set_id_bits_go_when_an_ordinary_user_changes_the_content_and_stay_when_root_does() {
    need_root!();
    let m = mount!(Mount::options().args(["-o", "allow_suid"]));
    m.save("source", "source");
    let (mut root, mut other) = (Actor::new(), user());
    for how in CHANGES {
        let path = m.path(format!("program-{how}"));
        root.save(&path, "something").unwrap();
        root.chmod(&path, 0o6777);
        change(&mut root, how, &m, &path);
        assert_eq!(mode(&root.stat(&path).unwrap()), 0o6777, "{how} by root");
        change(&mut other, how, &m, &path);
        assert_eq!(mode(&root.stat(&path).unwrap()), 0o777, "{how}");
    }
    let path = m.path("given-away");
    root.save(&path, "x").unwrap();
    root.chmod(&path, 0o6755);
    root.chown(&path, 1, 1);
    assert_eq!(mode(&root.stat(&path).unwrap()), 0o755, "chown");
}

#[test]
fn file_capabilities_go_with_any_change_of_the_content() {
    need_root!();
    let m = mount!();
    m.save("source", "source");
    let mut root = Actor::new();
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for how in CHANGES {
        let path = m.path(format!("program-{how}"));
        root.save(&path, "something").unwrap();
        root.setxattr(&path, "security.capability", &capability)
            .unwrap();
        root.open("f", "r+", &path).unwrap();
        root.close("f").unwrap();
        root.getxattr(&path, "security.capability")
            .expect("kept by an open that changes nothing");
        change(&mut root, how, &m, &path);
        assert_errno(root.getxattr(&path, "security.capability"), "ENODATA");
    }
}

#[test]
fn st_ino_changes_with_every_commit_and_agrees_between_stat_fstat_and_readdir() {
    let m = mount!();
    let path = m.path("state");
    let mut actor = Actor::new();
    let mut seen = Vec::new();
    for version in 0..5 {
        actor.open("w", "w", &path).unwrap();
        actor.write("w", format!("version {version}")).unwrap();
        actor.close("w").unwrap();
        for when in ["at once", "when it lies in the backing directory"] {
            actor.open("r", "r", &path).unwrap();
            let (stat, fstat) = (actor.stat(&path).unwrap(), actor.fstat("r").unwrap());
            let dir = m.mountpoint().as_os_str().as_bytes();
            let listed = actor.ask("inode-in-listing", &[dir, b"state"]).unwrap();
            assert_eq!(stat.ino, fstat.ino, "fstat, {when}");
            assert_eq!(
                listed[0],
                stat.ino.to_string().into_bytes(),
                "readdir, {when}"
            );
            actor.close("r").unwrap();
            if when == "at once" {
                assert!(!seen.contains(&stat.ino), "a number came back");
                seen.push(stat.ino);
                if version == 4 {
                    std::thread::sleep(APPLIED);
                }
            } else {
                assert_eq!(seen.last(), Some(&stat.ino), "{when}");
            }
        }
    }
}

#[test]
fn mtime_grows_with_every_commit_and_is_final_at_close() {
    let m = mount!();
    let path = m.path("state");
    let mut actor = Actor::new();
    let mut last = i64::MIN;
    for version in 0..300 {
        actor.save(&path, format!("{version}")).unwrap();
        let now = actor.stat(&path).unwrap().mtime_ns;
        assert!(now > last, "commit {version}: {now} after {last}");
        last = now;
    }
    std::thread::sleep(APPLIED);
    assert_eq!(actor.stat(&path).unwrap().mtime_ns, last);
    // A clock that went back, or a file from the future.
    let future = last + 3_600_000_000_000;
    actor.with_numbers("utimens", &path, &[future]).unwrap();
    actor.save(&path, "later").unwrap();
    assert!(actor.stat(&path).unwrap().mtime_ns > future);
}

#[test]
fn mtime_is_kept_when_the_program_sets_it() {
    let m = mount!();
    let path = m.path("restored");
    let then = 1_234_567_890_123_456_789;
    let mut actor = Actor::new();
    for how in ["w", "w", "r+"] {
        actor.open("f", how, &path).unwrap();
        actor.write("f", "from a backup").unwrap();
        actor.on_slot("futimens", "f", &[then]).unwrap();
        actor.close("f").unwrap();
        assert_eq!(actor.stat(&path).unwrap().mtime_ns, then, "{how}");
        std::thread::sleep(APPLIED);
        assert_eq!(actor.stat(&path).unwrap().mtime_ns, then, "{how}, later");
    }
    actor.with_numbers("utimens", &path, &[then + 5]).unwrap();
    assert_eq!(actor.stat(&path).unwrap().mtime_ns, then + 5);
}

#[test]
fn ctime_is_steady_while_the_version_is_brought_into_the_backing_directory() {
    let m = mount!();
    m.mkdir("dir");
    let (path, dir) = (m.path("dir/state"), m.path("dir"));
    let mut actor = Actor::new();
    for version in ["first", "second"] {
        actor.save(&path, version).unwrap();
        let told = actor.stat(&path).unwrap();
        std::thread::sleep(APPLIED);
        assert_eq!(actor.stat(&path).unwrap(), told, "the {version} version");
    }
    let before = actor.stat(&dir).unwrap();
    actor.save(&path, "third").unwrap();
    std::thread::sleep(APPLIED);
    assert_eq!(
        actor.stat(&dir).unwrap(),
        before,
        "a rewrite changed its directory"
    );
}

#[test]
fn a_directorys_times_change_when_a_name_appears_and_not_later() {
    let m = mount!();
    m.mkdir("dir");
    let dir = m.path("dir");
    let mut actor = Actor::new();
    let mut last = actor.stat(&dir).unwrap();
    for (step, how) in ["w", "x"].into_iter().enumerate() {
        let path = dir.join(step.to_string());
        std::thread::sleep(Duration::from_millis(20));
        actor.open("f", how, &path).unwrap();
        actor.write("f", "x").unwrap();
        actor.close("f").unwrap();
        let now = actor.stat(&dir).unwrap();
        assert!(
            now.mtime_ns > last.mtime_ns && now.ctime_ns > last.ctime_ns,
            "{how}"
        );
        std::thread::sleep(APPLIED);
        assert_eq!(actor.stat(&dir).unwrap(), now, "{how}, later");
        last = now;
    }
    // Committed, not applied, and gone again.
    std::thread::sleep(Duration::from_millis(20));
    actor.save(&dir.join("brief"), "x").unwrap();
    let with = actor.stat(&dir).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    actor.unlink(&dir.join("brief")).unwrap();
    assert!(actor.stat(&dir).unwrap().mtime_ns > with.mtime_ns, "unlink");
}

#[test]
fn a_directory_watcher_gets_close_write_and_no_delete() {
    let m = mount!();
    m.save("state", "first");
    let mut watcher = Actor::new();
    let all = libc::IN_ALL_EVENTS.to_string();
    let dir = m.mountpoint().as_os_str().as_bytes().to_vec();
    watcher
        .ask("inotify", &[b"watch", all.as_bytes(), &dir])
        .unwrap();
    for version in 0..5 {
        m.save("state", format!("version {version}"));
    }
    let events = watcher.ask("events", &[b"watch", b"1500"]).unwrap();
    let of = |mask: u32| {
        let count = |event: &&Vec<u8>| {
            let text = String::from_utf8_lossy(event);
            let (bits, name) = text.split_once(' ').unwrap_or((&text, ""));
            name == "state" && bits.parse::<u32>().unwrap_or(0) & mask != 0
        };
        events.iter().filter(count).count()
    };
    assert!(of(libc::IN_CLOSE_WRITE) > 0, "no IN_CLOSE_WRITE");
    let spurious = libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO | libc::IN_CREATE;
    assert_eq!(of(spurious), 0, "the file was never away: {events:?}");
}

#[test]
fn a_file_watcher_learns_of_a_commit() {
    need_features!("supersession_events");
    let m = mount!();
    m.save("state", "first");
    let mut watcher = Actor::new();
    let all = (libc::IN_ALL_EVENTS & !libc::IN_OPEN & !libc::IN_ACCESS).to_string();
    let path = m.path("state").as_os_str().as_bytes().to_vec();
    watcher
        .ask("inotify", &[b"watch", all.as_bytes(), &path])
        .unwrap();
    m.save("state", "second");
    let events = watcher.ask("events", &[b"watch", b"1500"]).unwrap();
    assert!(!events.is_empty(), "nobody told the watcher");
}

#[test]
fn hard_links_are_split_by_a_commit() {
    let m = mount!();
    m.save("one", "old");
    let (one, two) = (m.path("one"), m.path("two"));
    let mut actor = Actor::new();
    actor.link(&one, &two).unwrap();
    assert_eq!(actor.stat(&two).unwrap().nlink, 2);
    let ino = actor.stat(&two).unwrap().ino;
    actor.save(&one, "new").unwrap();
    for when in ["at once", "later"] {
        assert_content(m.read("one"), b"new", when);
        assert_content(m.read("two"), b"old", when);
        let (first, second) = (actor.stat(&one).unwrap(), actor.stat(&two).unwrap());
        assert_eq!((first.nlink, second.nlink), (1, 1), "{when}");
        assert_eq!(second.ino, ino, "{when}: the old file is what it was");
        std::thread::sleep(APPLIED);
    }
    eventually(
        Duration::from_secs(2),
        "both lie in the backing directory",
        || m.names("") == ["one", "two"],
    );
}

#[test]
fn an_editor_finds_the_file_it_has_looked_at_before_opening_it() {
    // The plain directory passes. vim refuses to write when the numbers differ.
    let m = mount!();
    m.save("f", "content");
    m.python(
        "import os\n\
         before = os.stat('f').st_ino\n\
         fd = os.open('f', os.O_WRONLY | os.O_CREAT, 0o644)\n\
         assert os.fstat(fd).st_ino == before\n\
         assert os.stat('f').st_ino == before\n\
         assert [e.inode() for e in os.scandir('.')] == [before]\n\
         os.ftruncate(fd, 0); os.write(fd, b'edited')\n\
         assert os.fstat(fd).st_ino == os.stat('f').st_ino\n\
         os.close(fd)\n\
         assert os.stat('f').st_ino != before\n\
         assert [e.inode() for e in os.scandir('.')] == [os.stat('f').st_ino]\n",
    )
    .ok();
    assert_content(m.read("f"), b"edited", "after close");
}

#[test]
fn an_open_file_keeps_its_number_while_it_commits_at_every_unlock() {
    // The plain directory passes. sqlite3 takes a database whose number has changed for another.
    let m = mount!();
    m.save("f", "content");
    m.python(
        "import fcntl, os\n\
         fd = os.open('f', os.O_RDWR)\n\
         before = os.fstat(fd).st_ino\n\
         for n in range(3):\n\
         \x20   fcntl.flock(fd, fcntl.LOCK_EX)\n\
         \x20   os.pwrite(fd, b'%d' % n, 0)\n\
         \x20   fcntl.flock(fd, fcntl.LOCK_UN)\n\
         \x20   assert os.fstat(fd).st_ino == os.stat('f').st_ino == before\n",
    )
    .ok();
    assert_content(m.read("f"), b"2ontent", "after close");
}
