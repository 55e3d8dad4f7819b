//! Operations on names look at what is there, and then wait: for the disk, for a copy, for their turn.
//! What others do meanwhile they must neither undo nor pass by: a save that was acknowledged is not
//! replaced by a link, nothing gets a guarded name that its guard has not seen, what is written under a
//! lock is committed wherever the file has gone, and a link follows it to the end.

mod common;

use std::time::Duration;

use common::{Actor, Mount, Options, assert_content, assert_errno};

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
