//! C5. A full disk: what is gone for programs gives its space back before a write fails, and what was
//! rejected makes way, the only copy of a name last of all. Nothing is dropped silently.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::{Actor, Disk, Mount, Rejected, assert_content, assert_errno, eventually};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn on_a_disk(mebibytes: u64) -> Option<Mount> {
    let options = Mount::options().on(Disk::ext4(mebibytes));
    options.limit(Duration::from_secs(150)).mount()
}

macro_rules! on_a_disk {
    ($mebibytes:expr) => {
        match on_a_disk($mebibytes) {
            Some(mount) => mount,
            None => return,
        }
    };
}

/// A writer of so many bytes is killed, and they are kept. Gives under which id.
#[track_caller]
fn kill_a_writer(m: &Mount, path: &str, len: u64, byte: u8) -> String {
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path(path)).unwrap();
    assert_eq!(writer.fill("f", len, MIB, byte), Ok(len), "{path}");
    writer.kill(libc::SIGKILL);
    let before = m.aborts("killed");
    let gone =
        || m.rejected().iter().any(|r| is_of(r, path, len, byte)) || m.aborts("killed") > before;
    eventually(Duration::from_secs(10), "the killed writer's end", gone);
    let kept = m.rejected();
    let kept = kept.iter().find(|r| is_of(r, path, len, byte));
    kept.unwrap_or_else(|| panic!("{path} is not kept"))
        .id
        .clone()
}

fn is_of(one: &Rejected, path: &str, len: u64, byte: u8) -> bool {
    one.path == path && one.content.len() as u64 == len && one.content[0] == byte
}

fn kept(m: &Mount) -> Vec<String> {
    let mut ids: Vec<String> = m.rejected().into_iter().map(|r| r.id).collect();
    ids.sort();
    ids
}

/// The bytes of what status says was dropped, by id.
#[track_caller]
fn dropped(m: &Mount) -> Vec<(String, u64)> {
    let status = m.status();
    let errors = status["errors"].as_array().expect("a list of errors");
    let told = |e: &Value| {
        let bytes = e["dropped_bytes"].as_u64()?;
        Some((e["rejected"].as_str()?.to_owned(), bytes))
    };
    errors.iter().filter_map(told).collect()
}

#[test]
fn where_a_quota_is_used_up_other_users_contents_stay() {
    need_root!();
    // The third write and all later ones are told that the quota is used up.
    let failing = format!("write:{}:100000:2", libc::EDQUOT);
    let m = mount!(Mount::options().separate().env("COMMITFS_FAIL_AT", failing));
    let mut ids = Vec::new();
    for name in ["own", "others"] {
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", name).unwrap();
        writer.kill(libc::SIGKILL);
        ids.push(m.await_rejected(name, name.as_bytes()).id);
    }
    let others = m.backing().join(".commitfs/rejected").join(&ids[1]);
    std::os::unix::fs::chown(&others, Some(1001), Some(1001)).unwrap();
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("more")).unwrap();
    assert_errno(writer.write("f", "more"), "EDQUOT");
    assert_eq!(kept(&m), [ids[1].clone()]);
    let told = dropped(&m);
    assert_eq!(told, [(ids[0].clone(), 3)]);
}

#[test]
fn the_only_copies_of_three_killed_writers_are_kept_whatever_the_bound_says() {
    need_root!();
    need_daemon!();
    let m = on_a_disk!(100);
    // The bound is below 5 MB.
    let mut ids: Vec<String> = ["a", "b", "c"]
        .into_iter()
        .map(|name| kill_a_writer(&m, name, 12 * MIB, b'n'))
        .collect();
    // A second try of one of them is kept as well.
    ids.push(kill_a_writer(&m, "a", 12 * MIB, b'm'));
    assert_eq!(kept(&m), ids);
    assert_eq!(dropped(&m), []);
}

#[test]
fn what_the_bound_drops_of_a_name_with_a_version_is_an_error_in_status_with_its_size() {
    need_root!();
    need_daemon!();
    let m = on_a_disk!(100);
    m.save("f", "a version");
    let only = kill_a_writer(&m, "new", 8 * MIB, b'n');
    let first = kill_a_writer(&m, "f", 3 * MIB, b'1');
    assert_eq!(dropped(&m), []);
    let second = kill_a_writer(&m, "f", 2 * MIB, b'2');
    eventually(Duration::from_secs(10), "the bound holds", || {
        kept(&m) == [only.clone(), second.clone()]
    });
    assert_eq!(dropped(&m), [(first.clone(), 3 * MIB)]);
    let told = m.command(&["status"]);
    assert_eq!(told.code, Some(1), "{told:#?}");
    let error = told.out.split("ERROR ").find(|e| e.contains("dropped"));
    let error = error.unwrap_or_else(|| panic!("{told:#?}"));
    for word in [
        " f\n",
        &first,
        "3145728 bytes",
        "next: commitfs rejected list",
    ] {
        assert!(error.contains(word), "{error}");
    }
    assert!(
        m.log()
            .contains(&format!("rejected content {first} was dropped"))
    );
}

#[test]
fn a_full_disk_takes_only_copies_last_and_says_so() {
    need_root!();
    need_daemon!();
    let m = on_a_disk!(40);
    m.save("f", "a version");
    let only = kill_a_writer(&m, "new", 8 * MIB, b'n');
    let of_version = kill_a_writer(&m, "f", MIB, b'f');
    let free = || {
        let disk = rustix::fs::statvfs(m.mountpoint()).expect("a disk");
        disk.f_bavail * disk.f_frsize
    };
    // Half a MiB more than is free: what has a version makes way.
    let mut writer = Actor::new();
    writer.patience(Duration::from_secs(60));
    let len = free() + MIB / 2;
    writer.open("f", "w", &m.path("large")).unwrap();
    assert_eq!(writer.fill("f", len, MIB, b'l'), Ok(len));
    assert_eq!(kept(&m), std::slice::from_ref(&only));
    assert_eq!(dropped(&m), [(of_version.clone(), MIB)]);
    // And four more.
    writer.open("g", "w", &m.path("larger")).unwrap();
    let more = free() + 4 * MIB;
    assert_eq!(writer.fill("g", more, MIB, b'm'), Ok(more));
    writer.close("g").unwrap();
    writer.close("f").unwrap();
    assert_eq!(kept(&m), [] as [String; 0]);
    assert_eq!(dropped(&m), [(of_version, MIB), (only, 8 * MIB)]);
    assert_content(m.read("larger"), &vec![b'm'; more as usize], "saved");
}

#[test]
fn what_could_not_fit_anyhow_takes_nothing_away() {
    need_root!();
    need_daemon!();
    let m = on_a_disk!(40);
    let only = kill_a_writer(&m, "new", 8 * MIB, b'n');
    let script = "import os, errno\n\
                  fd = os.open('huge', os.O_WRONLY | os.O_CREAT)\n\
                  try: os.posix_fallocate(fd, 0, 1 << 30)\n\
                  except OSError as e: print(errno.errorcode[e.errno])\n\
                  os.unlink('huge'); os.close(fd)";
    assert_eq!(m.python(script).ok().out.trim(), "ENOSPC");
    assert_eq!(kept(&m), [only]);
    assert_eq!(dropped(&m), []);
}

/// Makes `f` of 30 MB, in several ways; with `rm`, removes it again.
const MAKE: &str = "
import mmap, os, sys
N = 30 << 20
def whole(name):
    with open(name, 'wb') as f: f.write(b'w' * N)
def blocks(name):
    with open(name, 'wb') as f:
        for i in range(N >> 16): f.write(b'b' * 65536)
def exclusive(name):
    with open(name, 'xb') as f: f.write(b'x' * N)
def synced(name):
    with open(name, 'wb') as f: f.write(b's' * N); f.flush(); os.fsync(f.fileno())
def allocated(name):
    with open(name, 'wb') as f: os.posix_fallocate(f.fileno(), 0, N); f.write(b'a' * N)
def appended(name):
    with open(name, 'ab') as f: f.write(b'a' * N)
def mapped(name):
    with open(name, 'w+b') as f:
        f.truncate(N)
        with mmap.mmap(f.fileno(), N) as m:
            for i in range(0, N, 4096): m[i] = 1
            m.flush()
def renamed(name):
    whole(name + '.tmp'); os.rename(name + '.tmp', name)
def direct(name):
    whole(name + '.part'); os.rename(name + '.part', name)
for way in sys.argv[1:]:
    for n in range(7):
        globals()[way]('f')
        assert os.path.getsize('f') == N
        os.unlink('f')
    print(way, flush=True)
";

#[track_caller]
fn make_and_remove(m: &Mount, ways: &[&str]) {
    let script = m.scratch("make.py");
    std::fs::write(&script, MAKE).expect("a script");
    let line = format!("python3 {} {}", script.display(), ways.join(" "));
    let made = common::sh(m.mountpoint(), &line, Duration::from_secs(140));
    assert_eq!(made.code, Some(0), "{made:#?}");
    assert_eq!(made.out.split_whitespace().collect::<Vec<_>>(), ways);
    assert_eq!(m.status()["errors"], serde_json::json!([]));
}

#[test]
fn what_was_made_and_removed_gives_its_space_back_before_a_write_fails() {
    need_root!();
    let m = on_a_disk!(55);
    make_and_remove(&m, &["allocated", "whole", "exclusive", "blocks", "synced"]);
}

#[test]
fn what_was_mapped_appended_and_renamed_does_so_too() {
    need_root!();
    let m = on_a_disk!(55);
    make_and_remove(&m, &["mapped", "appended", "renamed", "direct"]);
}

#[test]
fn a_file_is_rewritten_again_and_again_in_twice_its_space() {
    need_root!();
    let m = on_a_disk!(55);
    let mut writer = Actor::new();
    writer.patience(Duration::from_secs(30));
    let save = |writer: &mut Actor, path: &Path, byte: u8| {
        writer.open("f", "w", path).unwrap();
        assert_eq!(writer.fill("f", 19 * MIB, MIB, byte), Ok(19 * MIB));
        writer.close("f").unwrap();
    };
    for round in 0..10 {
        save(&mut writer, &m.path("f"), b'a' + round);
    }
    assert_content(m.read("f"), &vec![b'j'; 19 << 20], "the last one");
}

#[test]
fn a_rename_that_finds_no_room_to_promise_it_is_answered_all_the_same() {
    need_daemon!();
    // Room runs out before the save, between the save and the rename, and after both.
    for works in 0..6 {
        let fails = format!("journal-reserve:{}:1000:{works}", libc::ENOSPC);
        let mut m = Mount::options().prepare();
        m.set_env("COMMITFS_FAIL_AT", fails);
        if m.try_remount().is_err() {
            continue;
        }
        let mut saver = Actor::new();
        let (temporary, target) = (m.path("tmp"), m.path("target"));
        if saver.save(&temporary, "new").is_err() {
            continue;
        }
        match saver.rename(&temporary, &target) {
            Ok(_) => assert_content(m.read("target"), b"new", "renamed"),
            Err(e) => assert_eq!(e.errno, "ENOSPC"),
        }
        // And it goes on answering.
        assert!(m.path("no-such-name").symlink_metadata().is_err());
    }
}

/// What was patched can't be written out for want of room, which the removal is about to make.
#[test]
fn a_removal_does_not_wait_for_the_room_that_it_makes() {
    need_daemon!();
    for what in ["unlink", "rmdir"] {
        let full = format!("text:{}", libc::ENOSPC);
        let options = Mount::options().args(["--bound", "60000"]);
        let mut m = mount!(options.env("COMMITFS_FAIL_AT", full));
        std::fs::write(m.backing().join("old"), "large").unwrap();
        std::fs::create_dir(m.backing().join("d")).unwrap();
        m.save("s.json", r#"{"n": 0}"#);
        let mut actor = Actor::new();
        let patch = br#"[{"op": "increment", "path": "/n", "value": 1}]"#;
        actor
            .setxattr(&m.path("s.json"), "user.commitfs.json.patch", patch)
            .unwrap();
        let (name, removed) = match what {
            "unlink" => ("old", actor.unlink(&m.path("old"))),
            _ => ("d", actor.rmdir(&m.path("d"))),
        };
        removed.unwrap();
        assert!(!m.backing().join(name).exists());
        m.kill_daemon();
        m.clear_env();
        m.remount();
        assert_content(m.read("s.json"), br#"{"n": 1}"#, what);
    }
}

/// Writes behind commitfs' back, until nothing more fits.
fn fill_the_disk(dir: &std::path::Path) {
    let mut file = std::fs::File::create(dir.join("filler")).expect("a file");
    for block in [MIB as usize, 4096, 1] {
        while file.write_all(&vec![b'f'; block]).is_ok() {}
    }
    file.sync_all().ok();
}

#[test]
fn recovery_on_a_full_disk_lets_rejected_content_make_way_only_copies_last() {
    need_root!();
    need_daemon!();
    let mut m = on_a_disk!(40);
    m.save("f", "a version");
    let only = kill_a_writer(&m, "new", 8 * MIB, b'n');
    let of_version = kill_a_writer(&m, "f", MIB, b'f');
    m.unmount();
    let dir = m.mountpoint().to_owned();
    fs::remove_file(dir.join(".commitfs/reserve")).expect("a reserve");
    fill_the_disk(&dir);
    m.remount();
    assert_content(m.read("f"), b"a version", "the version");
    assert_eq!(kept(&m), std::slice::from_ref(&only));
    assert_eq!(dropped(&m), [(of_version, MIB)]);
    m.unmount();
    fs::remove_file(dir.join(".commitfs/reserve")).ok();
    fill_the_disk(&dir);
    m.remount();
    assert_content(m.read("f"), b"a version", "the version");
    assert_eq!(kept(&m), [] as [String; 0]);
    assert!(dropped(&m).contains(&(only, 8 * MIB)));
    // Now there is nothing left that may go.
    m.unmount();
    fs::remove_file(dir.join(".commitfs/reserve")).ok();
    fill_the_disk(&dir);
    let refused = m.try_remount().expect_err("it mounts without room");
    assert!(refused.contains("recovery needs room"), "{refused}");
    fs::remove_file(dir.join("filler")).expect("what fills the disk");
    m.remount();
    assert_content(m.read("f"), b"a version", "the version");
}

/// Content whose meta file is missing would count as an only copy, and say nothing of itself.
#[test]
fn what_is_rejected_on_a_full_disk_says_what_it_is() {
    need_root!();
    need_daemon!();
    let options = Mount::options().separate().on(Disk::ext4(40));
    let Some(m) = options.limit(Duration::from_secs(150)).mount() else {
        return;
    };
    m.save("f", "a version");
    m.save("g", "a version");
    let first = kill_a_writer(&m, "f", MIB, b'f');
    let mut writer = Actor::new();
    writer.open("g", "w", &m.path("g")).unwrap();
    assert_eq!(writer.fill("g", MIB / 2, MIB, b'g'), Ok(MIB / 2));
    fs::remove_file(m.backing().join(".commitfs/reserve")).expect("a reserve");
    fill_the_disk(m.backing());
    writer.kill(libc::SIGKILL);
    eventually(
        Duration::from_secs(20),
        "what it had written is kept",
        || m.rejected().iter().any(|r| is_of(r, "g", MIB / 2, b'g')),
    );
    assert_eq!(dropped(&m), [(first, MIB)]);
}
