//! Operations on names look at what is there, and then wait: for the disk, for a copy, for their turn.
//! What others do meanwhile they must neither undo nor pass by: a save that was acknowledged is not
//! replaced by a link, nothing gets a guarded name that its guard has not seen, what is written under a
//! lock is committed wherever the file has gone, and a link follows it to the end.

mod common;

use std::time::Duration;

use common::{Actor, Mount, Options, assert_content, assert_errno, eventually};

const WHOLE: &str = "{\"whole\": true}";
const HALF: &str = "{\"half\":";

/// Time for the daemon to come to the place where it waits.
fn by_then() {
    std::thread::sleep(Duration::from_millis(300));
}

fn slowly(variable: &str) -> Options {
    Mount::options().env(variable, 1000)
}

#[test]
fn neither_a_link_nor_a_rename_without_replacing_takes_a_name_that_was_saved_meanwhile() {
    need_daemon!();
    let merging = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\n";
    for (operation, name) in [
        ("link", "final"),
        ("rename-noreplace", "final"),
        ("rename-noreplace", "final.json"),
    ] {
        let m = mount!(slowly("COMMITFS_PUBLISH_DELAY_MS").rules(merging));
        let (mut one, mut other) = (Actor::new(), Actor::new());
        // Nobody else sees a new file yet.
        let mut mover = one.thread();
        one.open("f", "w", &m.path("temporary")).unwrap();
        one.write("f", "{\"by\": 1}").unwrap();
        other.open("f", "w", &m.path(name)).unwrap();
        other.write("f", "{\"by\": 2}").unwrap();
        let (from, to) = (m.path("temporary"), m.path(name));
        let paths = [&from, &to].map(|p| p.as_os_str().as_encoded_bytes());
        mover.start(operation, &paths);
        by_then();
        other.close("f").unwrap();
        assert!(!mover.has_answered(), "{operation} was quicker");
        assert_errno(mover.finish(), "EEXIST");
        let what = format!("{operation} to {name}");
        assert_content(m.read(name), b"{\"by\": 2}", &what);
        one.close("f").unwrap();
        assert_content(m.read("temporary"), b"{\"by\": 1}", &what);
    }
}

#[test]
fn a_link_to_a_file_that_is_saved_again_and_again_meanwhile_has_one_of_these_saves() {
    need_daemon!();
    let m = mount!(slowly("COMMITFS_LINK_DELAY_MS").seed("f", "first"));
    // Who makes a link holds its directory.
    m.sh("mkdir mirror").ok();
    let mut writer = Actor::new();
    std::thread::scope(|scope| {
        // What it has found is replaced already, and what has replaced that is so meanwhile.
        let linker = scope.spawn(|| {
            m.python(
                "import os, time\n\
                 f = open('f')\n\
                 open('opened', 'w').close()\n\
                 while open('f').read() != 'second': time.sleep(0.01)\n\
                 os.link(f'/proc/self/fd/{f.fileno()}', 'mirror/f', src_dir_fd=0, follow_symlinks=True)\n",
            )
        });
        eventually(Duration::from_secs(10), "it has opened", || {
            m.exists("opened")
        });
        writer.save(&m.path("f"), "second").unwrap();
        by_then();
        writer.save(&m.path("f"), "third").unwrap();
        std::thread::sleep(Duration::from_secs(1));
        writer.save(&m.path("f"), "fourth").unwrap();
        linker.join().unwrap().ok();
    });
    assert_content(m.read("mirror/f"), b"fourth", "the newest");
}

#[test]
fn what_a_guard_has_judged_is_what_gets_the_name() {
    need_daemon!();
    let merging = "[[rule]]\nglob = \"merged.json\"\non_conflict = \"merge\"\n";
    for (operation, name) in [
        ("rename", "final.json"),
        ("rename", "merged.json"),
        ("exchange", "final.json"),
        ("link", "new.json"),
    ] {
        let m = mount!(
            slowly("COMMITFS_ROUND_DELAY_MS")
                .rules(merging)
                .seed("x.tmp", WHOLE)
                .seed("final.json", "{}")
                .seed("merged.json", "{}")
        );
        let (mut one, mut other) = (Actor::new(), Actor::new());
        other.open("f", "w", &m.path("x.tmp")).unwrap();
        other.write("f", HALF).unwrap();
        one.cat(&m.path("merged.json")).unwrap();
        // The rename waits until this is in place.
        m.save("another", "text");
        let (from, to) = (m.path("x.tmp"), m.path(name));
        let paths = [&from, &to].map(|p| p.as_os_str().as_encoded_bytes());
        one.start(operation, &paths);
        by_then();
        other.close("f").unwrap();
        assert!(!one.has_answered(), "{operation} was quicker");
        assert_errno(one.finish(), "EBADMSG");
        let what = format!("{operation} to {name}");
        match operation {
            "link" => assert!(!m.exists(name), "{what}"),
            _ => assert_content(m.read(name), b"{}", &what),
        }
        assert_content(m.read("x.tmp"), HALF.as_bytes(), &what);
    }
}

#[test]
fn what_is_unlocked_is_committed_wherever_its_file_goes_meanwhile() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for exchanged in [false, true] {
        let m = mount!(
            slowly("COMMITFS_PUBLISH_DELAY_MS")
                .seed("f", "1")
                .seed("g", "another")
        );
        let (mut holder, mut next) = (Actor::new(), Actor::new());
        holder.open("f", "r+", &m.path("f")).unwrap();
        holder.ask("flock", &[b"f"]).unwrap();
        holder.write("f", "2").unwrap();
        holder.start("funlock", &[b"f"]);
        by_then();
        match exchanged {
            true => next.exchange(&m.path("f"), &m.path("g")).unwrap(),
            false => next.rename(&m.path("f"), &m.path("g")).unwrap(),
        }
        assert!(!holder.has_answered(), "the unlock was quicker");
        next.open("f", "r+", &m.path("g")).unwrap();
        next.ask("flock-wait", &[b"f"]).unwrap();
        assert_eq!(next.read_all("f").unwrap(), b"2", "under the lock");
        assert!(holder.finish().is_ok());
        next.write("f", "3").unwrap();
        next.close("f").unwrap();
        holder.close("f").unwrap();
        assert_content(m.read("g"), b"23", "nothing is written over");
    }
}

/// `old` is open for writing, and linked.
fn linked(m: &Mount, flags: &str) -> Actor {
    let mut writer = Actor::new();
    writer.open("f", flags, &m.path("f")).unwrap();
    writer
}

#[test]
fn a_link_that_is_renamed_while_its_copy_is_made_follows_to_the_end() {
    need_daemon!();
    let m = mount!(
        Mount::options()
            .env("COMMITFS_ROUND_DELAY_MS", 1000)
            .env("COMMITFS_COPY_DELAY_MS", 2000)
            .seed("f", "old")
    );
    let (mut writer, mut mover) = (linked(&m, "w"), Actor::new());
    writer.write("f", "new").unwrap();
    mover.link(&m.path("f"), &m.path("g")).unwrap();
    // The rename waits until this is in place.
    m.save("another", "text");
    let paths = [m.path("g"), m.path("h")];
    let paths = [0, 1].map(|n| paths[n].as_os_str().as_encoded_bytes());
    mover.start("rename", &paths);
    by_then();
    writer.close("f").unwrap();
    assert!(!mover.has_answered(), "the rename was quicker");
    assert!(mover.finish().is_ok());
    assert_content(m.read("f"), b"new", "what the close commits");
    assert_content(m.read("h"), b"new", "the link");
}

#[test]
fn a_link_has_what_the_last_of_two_closes_commits() {
    need_daemon!();
    let m = mount!(
        Mount::options()
            .env("COMMITFS_COPY_DELAY_MS", 500)
            .seed("f", "old")
    );
    let (mut large, mut small) = (linked(&m, "w"), linked(&m, "w"));
    large.fill("f", 12 << 20, 1 << 20, b'x').unwrap();
    small.write("f", "small").unwrap();
    Actor::new().link(&m.path("f"), &m.path("g")).unwrap();
    large.close("f").unwrap();
    small.close("f").unwrap();
    eventually(Duration::from_secs(20), "both are decided", || {
        m.transactions().is_empty()
    });
    assert!(m.read("f") == m.read("g"), "the link stays behind");
}

#[test]
fn a_link_follows_what_is_unlocked_while_it_is_renamed_or_others_close() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for renamed in [true, false] {
        let m = mount!(
            Mount::options()
                .env("COMMITFS_COPY_DELAY_MS", 1000)
                .seed("f", "old")
        );
        let (mut holder, mut other) = (linked(&m, "r+"), linked(&m, "w"));
        let mut mover = Actor::new();
        mover.link(&m.path("f"), &m.path("g")).unwrap();
        holder.ask("flock", &[b"f"]).unwrap();
        holder.write("f", "new").unwrap();
        holder.start("funlock", &[b"f"]);
        eventually(Duration::from_secs(5), "it is published", || {
            m.text("f").as_deref() == Some("new")
        });
        if renamed {
            mover.rename(&m.path("g"), &m.path("h")).unwrap();
        } else {
            other.write("f", "newer").unwrap();
            other.close("f").unwrap();
        }
        assert!(!holder.has_answered(), "the unlock was quicker");
        assert!(holder.finish().is_ok());
        holder.close("f").unwrap();
        eventually(Duration::from_secs(20), "all is decided", || {
            m.transactions().len() == usize::from(renamed)
        });
        let (link, text) = match renamed {
            true => ("h", "new"),
            false => ("g", "newer"),
        };
        assert_content(m.read("f"), text.as_bytes(), "the file");
        assert_content(m.read(link), text.as_bytes(), "the link");
    }
}

#[test]
fn an_open_file_that_is_closed_while_it_gets_a_name_gets_it() {
    need_daemon!();
    for (operation, name) in [
        ("rename", "claim"),
        ("link", "claim"),
        ("exchange", "claim"),
        ("link", "stream.txt"),
    ] {
        let m = mount!(slowly("COMMITFS_CHOSEN_DELAY_MS").seed("g", "old"));
        let mut writer = Actor::new();
        let mut mover = writer.thread();
        let flags = if name == "claim" { "x" } else { "w" };
        writer.open("f", flags, &m.path(name)).unwrap();
        writer.write("f", "text").unwrap();
        let to = if operation == "link" { "h" } else { "g" };
        let (from, target) = (m.path(name), m.path(to));
        let paths = [&from, &target].map(|p| p.as_os_str().as_encoded_bytes());
        mover.start(operation, &paths);
        by_then();
        writer.close("f").unwrap();
        assert!(!mover.has_answered(), "{operation} was quicker");
        assert!(mover.finish().is_ok(), "{operation} of {name}");
        assert_content(m.read(to), b"text", operation);
        assert_eq!(m.exists(name), operation != "rename", "{operation}");
    }
}

#[test]
fn what_was_fsynced_under_a_name_outlives_a_kill_while_an_unlink_waits() {
    need_daemon!();
    let mut m = mount!(slowly("COMMITFS_ROUND_DELAY_MS").seed("f", "old"));
    let (mut writer, mut other) = (Actor::new(), Actor::new());
    writer.open("f", "r+", &m.path("f")).unwrap();
    writer.write("f", "new").unwrap();
    writer.fsync("f").unwrap();
    // The unlink waits until this is in place.
    m.save("another", "text");
    let path = m.path("f");
    other.start("unlink", &[path.as_os_str().as_encoded_bytes()]);
    by_then();
    assert!(!other.has_answered(), "the unlink was quicker");
    m.kill_daemon();
    drop((writer, other));
    m.remount();
    assert_content(m.read("f"), b"new", "fsync'd, and not removed");
}
