//! C9, C12, C17, C19: who waits is woken by what he waits for. By hooks nobody looks of his own accord, so that a wake-up that is
//! missing is not made up for.

mod common;

use std::time::{Duration, Instant};

use std::os::unix::ffi::OsStrExt;

use common::{Actor, Mount, Options, assert_content, assert_errno, eventually};

const SOON: Duration = Duration::from_secs(5);

/// Nobody looks within the time of a test, neither for what is told of nor for signals.
fn nobody_looks() -> Options {
    let looks = Mount::options().env("COMMITFS_LOOK_MS", 60_000);
    let glances = looks.env("COMMITFS_SIGNAL_LOOK_MS", 60_000);
    glances.env("COMMITFS_SILENCE_MS", 60_000)
}

/// Somebody has begun to wait by then.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(300));
}

#[track_caller]
fn assert_waits(actor: &Actor) {
    a_moment();
    assert!(!actor.has_answered(), "it didn't wait");
}

#[track_caller]
fn finishes(actor: &mut Actor) {
    let begun = Instant::now();
    actor.finish().unwrap();
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
}

fn start_editing(actor: &mut Actor, m: &Mount) {
    let path = m.path("f");
    actor.start("open", &[b"f", b"r+", path.as_os_str().as_bytes()]);
}

#[test]
fn a_lock_goes_to_who_waits_for_it_when_it_is_given_back() {
    need_daemon!();
    need_features!("flock_locks", "posix_locks");
    let m = mount!(nobody_looks());
    m.save("f", "text");
    let slot: &[&[u8]] = &[b"f"];
    let set: &[&[u8]] = &[b"f", b"set", b"write", b"0", b"0"];
    let wait: &[&[u8]] = &[b"f", b"wait", b"write", b"0", b"0"];
    let unset: &[&[u8]] = &[b"f", b"set", b"unlock", b"0", b"0"];
    let flock = [("flock", slot), ("flock-wait", slot)];
    let fcntl = [("fcntl", set), ("fcntl", wait)];
    for ([lock, wait], (unlock, args)) in [
        (flock, ("funlock", slot)),
        (flock, ("close", slot)),
        (flock, ("exit", slot)),
        (fcntl, ("fcntl", unset)),
        (fcntl, ("close", slot)),
        (fcntl, ("exit", slot)),
    ] {
        let (mut one, mut two, mut three) = (Actor::new(), Actor::new(), Actor::new());
        for actor in [&mut one, &mut two, &mut three] {
            actor.open("f", "a+", &m.path("f")).unwrap();
        }
        one.ask(lock.0, lock.1).unwrap();
        two.start(wait.0, wait.1);
        three.start(wait.0, wait.1);
        assert_waits(&two);
        match unlock {
            "exit" => one.exit(0),
            call => _ = one.ask(call, args).unwrap(),
        }
        let has_it = || two.has_answered() || three.has_answered();
        eventually(SOON, "one of them has it", has_it);
        let (mut first, mut second) = match two.has_answered() {
            true => (two, three),
            false => (three, two),
        };
        first.finish().unwrap();
        assert_waits(&second);
        first.kill(libc::SIGKILL);
        finishes(&mut second);
    }
}

#[test]
fn the_writer_slot_goes_on_to_who_is_next_in_line() {
    need_daemon!();
    let m = mount!(nobody_looks());
    std::fs::write(m.backing().join("f"), "0000").unwrap();
    let editor = |at: u64| {
        let mut editor = Actor::new();
        editor.open("f", "r+", &m.path("f")).unwrap();
        editor.pwrite("f", at, b"1").unwrap();
        editor
    };
    let mut one = editor(0);
    let (mut two, mut three) = (Actor::new(), Actor::new());
    for waiting in [&mut two, &mut three] {
        start_editing(waiting, &m);
        assert_waits(waiting);
    }
    one.close("f").unwrap();
    finishes(&mut two);
    assert_waits(&three);
    // Nobody waits for an editor of what was removed.
    Actor::new().unlink(&m.path("f")).unwrap();
    let begun = Instant::now();
    assert_errno(three.finish(), "ENOENT");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn an_editor_that_locks_is_not_waited_for() {
    need_daemon!();
    need_features!("flock_locks");
    let m = mount!(nobody_looks());
    std::fs::write(m.backing().join("f"), "0000").unwrap();
    let (mut one, mut two) = (Actor::new(), Actor::new());
    one.open("f", "r+", &m.path("f")).unwrap();
    start_editing(&mut two, &m);
    assert_waits(&two);
    one.ask("flock", &[b"f"]).unwrap();
    finishes(&mut two);
}

#[test]
fn what_is_done_to_a_name_goes_on_once_it_is_decided_what_was_closed_there() {
    need_daemon!();
    let m = mount!(nobody_looks().env("COMMITFS_DECIDE_DELAY_MS", 500));
    for what in ["rename", "unlink", "open", "stat"] {
        m.save("f", "abcd");
        let (mut editor, mut other) = (Actor::new(), Actor::new());
        editor.open("f", "r+", &m.path("f")).unwrap();
        editor.mmap("f", "map", 4, "rw").unwrap();
        editor.close("f").unwrap();
        editor.map_write("map", 0, b"A").unwrap();
        editor.munmap("map").unwrap();
        let begun = Instant::now();
        match what {
            "rename" => other.rename(&m.path("f"), &m.path("g")).unwrap(),
            "unlink" => other.unlink(&m.path("f")).unwrap(),
            "open" => other.open("f", "r+", &m.path("f")).unwrap(),
            _ => _ = other.stat(&m.path("f")).unwrap(),
        }
        let took = begun.elapsed();
        assert!(took < SOON, "{what}: {took:?}");
        let name = if what == "rename" { "g" } else { "f" };
        let expected = (what != "unlink").then(|| b"Abcd".to_vec());
        assert_eq!(m.read(name), expected, "{what}");
        other.exit(0);
    }
}

#[test]
fn who_merges_next_goes_on_when_the_one_before_has_committed() {
    need_daemon!();
    let rules = "[[rule]]\nglob = '*.json'\non_conflict = 'merge'\n";
    let options = nobody_looks().rules(rules);
    let m = mount!(options.env("COMMITFS_RELEASE_DELAY_MS", 500));
    m.save("f.json", "{}");
    let mut savers: Vec<Actor> = (0..3).map(|_| Actor::new()).collect();
    for (n, saver) in savers.iter_mut().enumerate() {
        saver.cat(&m.path("f.json")).unwrap();
        saver.open("f", "w", &m.path("f.json")).unwrap();
        saver
            .pwrite("f", 0, format!("{{\"k{n}\": {n}}}").as_bytes())
            .unwrap();
    }
    for saver in &mut savers {
        saver.start("close", &[b"f"]);
    }
    savers.iter_mut().for_each(finishes);
    eventually(SOON, "all are there", || {
        let text = m.text("f.json").unwrap_or_default();
        (0..3).all(|n| text.contains(&format!("\"k{n}\"")))
    });
}

/// A close that seems to be the last has its turn for long while it is prepared, and for a moment after that.
#[test]
fn who_waits_for_a_turn_hears_that_it_ends_earlier() {
    need_daemon!();
    let m = mount!(nobody_looks().env("COMMITFS_PROMISE_DELAY_MS", 1000));
    std::fs::write(m.backing().join("f"), "0000").unwrap();
    let mut one = Actor::new();
    one.open("f", "r+", &m.path("f")).unwrap();
    one.pwrite("f", 0, b"1").unwrap();
    // Nobody sees that it is still held.
    one.ask("pair", &[b"here", b"there"]).unwrap();
    one.ask("sendfd", &[b"here", b"f"]).unwrap();
    let mut two = Actor::new();
    two.open("f", "a+", &m.path("f")).unwrap();
    one.start("close", &[b"f"]);
    a_moment();
    two.start("write", &[b"f", b"2\n"]);
    assert_waits(&two);
    one.finish().unwrap();
    finishes(&mut two);
}

#[test]
fn who_waits_for_the_disk_goes_on_when_a_round_has_ended() {
    need_daemon!();
    let m = mount!(nobody_looks().sync().env("COMMITFS_ROUND_DELAY_MS", 100));
    let mut actor = Actor::new();
    for n in 0..5 {
        let (f, g) = (m.path(format!("f{n}")), m.path(format!("g{n}")));
        let begun = Instant::now();
        actor.save(&f, "text").unwrap();
        actor.save(&f, "text, again").unwrap();
        actor.open("f", "w", &f).unwrap();
        actor.write("f", "synced").unwrap();
        actor.fsync("f").unwrap();
        actor.close("f").unwrap();
        actor.rename(&f, &g).unwrap();
        actor.unlink(&g).unwrap();
        let took = begun.elapsed();
        assert!(took < 2 * SOON, "{took:?}");
    }
    drop(actor);
    m.save("f", "left");
    let begun = Instant::now();
    m.command(&["umount", "--wait"]).ok();
    assert!(begun.elapsed() < 2 * SOON);
    assert_content(
        std::fs::read(m.backing().join("f")).ok(),
        b"left",
        "in place",
    );
}

#[test]
fn who_closes_when_the_disk_is_lost_is_told_at_once() {
    need_daemon!();
    let m = mount!(
        nobody_looks()
            .sync()
            .env(
                "COMMITFS_FAIL_AT",
                format!("C19-sync-appends:{}", libc::EIO)
            )
            .seed("log", "first\n")
    );
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for actor in [&mut one, &mut two] {
        actor.open("f", "a", &m.path("log")).unwrap();
        actor.write("f", "line\n").unwrap();
    }
    assert_errno(one.close("f"), "EIO");
    let begun = Instant::now();
    assert_errno(two.close("f"), "EIO");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}
