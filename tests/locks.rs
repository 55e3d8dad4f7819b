//! C12: flock and fcntl locks belong to the file, however many versions come and go. The failures it
//! prevents: two programs that both hold "the" lock, each on a version of its own; a program that gets
//! the lock and reads what was current before; a waiter that no signal can end.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Actor, Live, Mount, Random, assert_content, assert_errno, eventually, run};
use serde_json::Value;

/// A whole-file lock by one of the three calls, without waiting.
const CALLS: [(&str, &[&[u8]]); 3] = [
    ("flock", &[b"f"]),
    ("fcntl", &[b"f", b"set", b"write", b"0", b"0"]),
    ("fcntl", &[b"f", b"ofd-set", b"write", b"0", b"0"]),
];

fn editor(m: &Mount) -> Actor {
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path("f")).unwrap();
    editor
}

/// Gives back what one of [`CALLS`] has locked.
fn unlock(holder: &mut Actor, locked: &[&[u8]]) {
    let (call, args): (_, &[&[u8]]) = match locked {
        [_] => ("funlock", &[b"f"]),
        [_, b"set", ..] => ("fcntl", &[b"f", b"set", b"unlock", b"0", b"0"]),
        _ => ("fcntl", &[b"f", b"ofd-set", b"unlock", b"0", b"0"]),
    };
    holder.ask(call, args).unwrap();
}

/// How many wait for a lock.
fn waiting(m: &Mount) -> usize {
    let waits = |e: &&Value| e["state"] == "waiting" && e["kind"] == "lock";
    m.locks().iter().filter(waits).count()
}

#[track_caller]
fn await_waiting(m: &Mount, count: usize) {
    eventually(Duration::from_secs(5), &format!("{count} wait"), || {
        waiting(m) == count
    });
}

#[test]
fn a_lock_on_one_version_stands_against_the_same_lock_on_another() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for (call, args) in CALLS {
        let m = mount!();
        m.save("f", "1");
        let mut holder = editor(&m);
        holder.ask(call, args).unwrap();
        for version in 2..5 {
            m.save("f", version.to_string());
        }
        let mut other = editor(&m);
        assert_eq!(other.read_all("f").unwrap(), b"4");
        assert_errno(other.ask(call, args), "EAGAIN");
        holder.close("f").unwrap();
        other.ask(call, args).expect("the close gave it back");
        m.save("f", "5");
        holder.open("f", "r+", &m.path("f")).unwrap();
        assert_errno(holder.ask(call, args), "EAGAIN");
    }
}

#[test]
fn shared_locks_stand_together_across_versions() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut one = editor(&m);
    one.ask("flock-shared", &[b"f"]).unwrap();
    m.save("f", "2");
    let mut two = editor(&m);
    two.ask("flock-shared", &[b"f"]).unwrap();
    m.save("f", "3");
    let mut three = editor(&m);
    assert_errno(three.ask("flock", &[b"f"]), "EAGAIN");
    one.close("f").unwrap();
    assert_errno(three.ask("flock", &[b"f"]), "EAGAIN");
    two.ask("funlock", &[b"f"]).unwrap();
    three.ask("flock", &[b"f"]).unwrap();
}

#[test]
fn a_granted_lock_shows_a_reader_the_current_version() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("f")).unwrap();
    assert_eq!(reader.read_all("f").unwrap(), b"1");
    m.save("f", "2");
    assert_eq!(reader.pread("f", 0, 1).unwrap(), b"1", "its own version");
    reader.ask("flock-shared", &[b"f"]).unwrap();
    assert_eq!(reader.pread("f", 0, 1).unwrap(), b"2");
    assert_eq!(reader.fstat("f").unwrap().size, 1);
}

#[test]
fn a_lock_is_never_granted_over_pages_of_a_superseded_version() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    let (path, old, new) = (m.path("f"), vec![b'1'; 100_000], vec![b'2'; 100_000]);
    m.save("f", &old);
    let (mut reader, mut other) = (Actor::new(), Actor::new());
    reader.open("f", "r", &path).unwrap();
    other.open("f", "r", &path).unwrap();
    assert_content(Some(reader.read_all("f").unwrap()), &old, "not locked");
    m.save("f", &new);
    // No other way to see the current version than to open the file again: the old one is in the kernel's pages.
    match reader.ask("flock-shared", &[b"f"]) {
        Ok(_) => assert_eq!(reader.pread("f", 0, 1).unwrap(), b"2", "under the lock"),
        refused => assert_errno(refused, "ESTALE"),
    }
    reader.close("f").unwrap();
    other.close("f").unwrap();
    // What was refused is not held, and from now on this file is one that is locked.
    other.open("f", "r", &path).unwrap();
    other.ask("flock", &[b"f"]).expect("nobody holds it");
    assert_content(Some(other.read_all("f").unwrap()), &new, "under the lock");
    other.ask("funlock", &[b"f"]).unwrap();
    m.save("f", &old);
    other.ask("flock", &[b"f"]).expect("it moves");
    assert_eq!(other.pread("f", 0, 1).unwrap(), b"1");
}

#[test]
fn a_waiter_that_gets_the_lock_starts_from_what_the_holder_has_left() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let waits: [(&str, &[&[u8]]); 3] = [
        ("flock-wait", &[b"f"]),
        ("fcntl", &[b"f", b"wait", b"write", b"0", b"0"]),
        ("fcntl", &[b"f", b"ofd-wait", b"write", b"0", b"0"]),
    ];
    for ((call, args), (wait_call, wait_args)) in CALLS.into_iter().zip(waits) {
        let m = mount!();
        m.save("f", "1");
        let mut holder = editor(&m);
        holder.ask(call, args).unwrap();
        let mut next = editor(&m);
        next.start(wait_call, wait_args);
        await_waiting(&m, 1);
        holder.pwrite("f", 0, b"2").unwrap();
        holder.close("f").unwrap();
        next.finish().expect("the lock is free");
        assert_eq!(next.pread("f", 0, 9).unwrap(), b"2", "{call} {args:?}");
        next.pwrite("f", 0, b"3").unwrap();
        next.close("f").unwrap();
        assert_content(m.read("f"), b"3", "both updates");
    }
}

#[test]
fn unlocking_commits_what_was_written_and_the_file_stays_open() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let unlocks: [(&str, &[&[u8]]); 3] = [
        ("funlock", &[b"f"]),
        ("fcntl", &[b"f", b"set", b"unlock", b"0", b"0"]),
        ("fcntl", &[b"f", b"ofd-set", b"unlock", b"0", b"0"]),
    ];
    for ((call, args), (unlock_call, unlock_args)) in CALLS.into_iter().zip(unlocks) {
        let m = mount!();
        m.save("f", "1");
        let mut actor = editor(&m);
        for content in ["2", "3"] {
            actor.ask(call, args).unwrap();
            actor.pwrite("f", 0, content.as_bytes()).unwrap();
            actor.ask(unlock_call, unlock_args).unwrap();
            let seen = m.read("f");
            assert_content(seen, content.as_bytes(), unlock_call);
        }
        // Written without a lock: that is for the close.
        actor.pwrite("f", 0, b"4").unwrap();
        assert_content(m.read("f"), b"3", "not yet");
        actor.close("f").unwrap();
        assert_content(m.read("f"), b"4", "closed");
    }
}

#[test]
fn who_has_created_a_file_and_unlocked_it_shares_its_locks_with_those_who_open_it_since() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for (call, args) in CALLS {
        let m = mount!();
        let mut creator = Actor::new();
        creator.open("f", "w+", &m.path("f")).unwrap();
        creator.ask(call, args).unwrap();
        creator.write("f", "1").unwrap();
        unlock(&mut creator, args);
        let mut other = editor(&m);
        other.ask(call, args).unwrap();
        assert_errno(creator.ask(call, args), "EAGAIN");
        unlock(&mut other, args);
        creator.ask(call, args).unwrap();
        assert_errno(other.ask(call, args), "EAGAIN");
    }
}

#[test]
fn who_has_rewritten_a_file_and_unlocked_it_reads_what_is_there_when_it_locks_it_again() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for (call, args) in CALLS {
        let m = mount!();
        m.save("f", "0");
        let mut writer = Actor::new();
        writer.open("f", "w+", &m.path("f")).unwrap();
        writer.ask(call, args).unwrap();
        writer.write("f", "1").unwrap();
        assert_content(writer.pread("f", 0, 9).ok(), b"1", "its own");
        unlock(&mut writer, args);
        m.save("f", "2");
        writer.ask(call, args).unwrap();
        assert_content(writer.pread("f", 0, 1).ok(), b"2", "the other's");
    }
}

#[test]
fn to_share_a_lock_that_was_held_alone_commits_what_was_written_under_it() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    for (call, args) in CALLS {
        let m = mount!();
        m.save("f", "1");
        let mut writer = editor(&m);
        writer.ask(call, args).unwrap();
        writer.pwrite("f", 0, b"2").unwrap();
        match args {
            [file] => writer.ask("flock-shared", &[*file]),
            [file, set, ..] => writer.ask("fcntl", &[*file, *set, b"read", b"0", b"0"]),
            [] => unreachable!("a lock of nothing"),
        }
        .unwrap();
        assert_content(m.read("f"), b"2", call);
        // It goes on from there.
        writer.pwrite("f", 1, b"3").unwrap();
        assert_content(m.read("f"), b"2", "shared");
        writer.close("f").unwrap();
        assert_content(m.read("f"), b"23", "closed");
    }
}

#[test]
fn ranges_exclude_where_they_overlap_and_nowhere_else() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "0123456789");
    let mut one = editor(&m);
    let mut two = Actor::new();
    one.ask("fcntl", &[b"f", b"set", b"write", b"0", b"4"])
        .unwrap();
    m.save("f", "abcdefghij");
    two.open("f", "r+", &m.path("f")).unwrap();
    two.ask("fcntl", &[b"f", b"set", b"write", b"4", b"4"])
        .unwrap();
    assert_errno(
        two.ask("fcntl", &[b"f", b"set", b"read", b"3", b"1"]),
        "EAGAIN",
    );
}

#[test]
fn closing_any_descriptor_of_a_file_gives_its_readers_fcntl_locks_up() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let (mut reader, mut other) = (Actor::new(), editor(&m));
    reader.open("f", "r", &m.path("f")).unwrap();
    reader
        .ask("fcntl", &[b"f", b"set", b"read", b"0", b"0"])
        .unwrap();
    let wanted: &[&[u8]] = &[b"f", b"set", b"write", b"0", b"0"];
    assert_errno(other.ask("fcntl", wanted), "EAGAIN");
    reader.open("g", "r", &m.path("f")).unwrap();
    reader.close("g").unwrap();
    other.ask("fcntl", wanted).unwrap();
}

#[test]
fn an_open_description_lock_belongs_to_the_description_not_to_the_process() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut actor = editor(&m);
    actor.open("g", "r+", &m.path("f")).unwrap();
    actor
        .ask("fcntl", &[b"f", b"ofd-set", b"write", b"0", b"0"])
        .unwrap();
    let other: &[&[u8]] = &[b"g", b"ofd-set", b"write", b"0", b"0"];
    assert_errno(actor.ask("fcntl", other), "EAGAIN");
    // A duplicate is the same description; the lock goes with the last of them.
    actor.dup("f", "h").unwrap();
    actor.close("f").unwrap();
    assert_errno(actor.ask("fcntl", other), "EAGAIN");
    actor.close("h").unwrap();
    actor.ask("fcntl", other).unwrap();
}

#[test]
fn a_cycle_of_fcntl_locks_is_edeadlk() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "0123456789");
    let (mut one, mut two) = (editor(&m), Actor::new());
    one.ask("fcntl", &[b"f", b"set", b"write", b"0", b"1"])
        .unwrap();
    two.open("f", "r+", &m.path("f")).unwrap();
    two.ask("fcntl", &[b"f", b"set", b"write", b"5", b"1"])
        .unwrap();
    one.start("fcntl", &[b"f", b"wait", b"write", b"5", b"1"]);
    await_waiting(&m, 1);
    assert_errno(
        two.ask("fcntl", &[b"f", b"wait", b"write", b"0", b"1"]),
        "EDEADLK",
    );
    two.close("f").unwrap();
    one.finish().expect("the other has given way");
}

#[test]
fn of_two_that_share_a_flock_and_both_want_it_alone_each_gets_its_turn() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let (mut one, mut two) = (editor(&m), Actor::new());
    one.ask("flock-shared", &[b"f"]).unwrap();
    two.open("f", "r", &m.path("f")).unwrap();
    two.ask("flock-shared", &[b"f"]).unwrap();
    one.start("flock-wait", &[b"f"]);
    await_waiting(&m, 1);
    // flock(2): what is held is given up first, so this one lets the other in.
    two.start("flock-wait", &[b"f"]);
    one.finish().expect("the second has made way");
    one.pwrite("f", 0, b"2").unwrap();
    one.close("f").unwrap();
    two.finish().expect("the first has closed");
    assert_eq!(two.pread("f", 0, 9).unwrap(), b"2");
}

#[test]
fn a_killed_waiter_is_gone_at_once() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut holder = editor(&m);
    holder.ask("flock", &[b"f"]).unwrap();
    let mut quickest = Duration::MAX;
    for round in 0..6 {
        let mut waiter = editor(&m);
        match round % 2 {
            0 => waiter.start("flock-wait", &[b"f"]),
            _ => waiter.start("fcntl", &[b"f", b"ofd-wait", b"write", b"0", b"0"]),
        }
        if round % 2 == 0 {
            await_waiting(&m, 1);
        } else {
            // Whether it has to wait depends on whether the two kinds can be told apart.
            std::thread::sleep(Duration::from_millis(60));
        }
        quickest = quickest.min(waiter.kill_at_once());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    await_waiting(&m, 0);
}

#[test]
fn a_time_limit_ends_the_wait_for_a_lock() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut holder = editor(&m);
    holder.ask("flock", &[b"f"]).unwrap();
    let begun = Instant::now();
    let limited = run(
        Command::new("timeout")
            .current_dir(m.mountpoint())
            .args(["1", "flock", "f", "true"]),
        Duration::from_secs(20),
    );
    let took = begun.elapsed();
    assert_eq!(limited.code, Some(124), "{limited:#?}");
    assert!(took <= Duration::from_millis(1200), "{took:?}");
    // flock(1) has a limit of its own, by a signal it handles.
    let own = m.sh("flock -w 0.3 f true");
    assert_eq!(own.code, Some(1), "{own:#?}");
}

#[test]
fn of_a_hundred_waiters_killed_at_random_none_is_stuck_and_the_rest_get_their_turn() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "1");
    let mut random = Random::new();
    let mut holder = editor(&m);
    holder.ask("flock", &[b"f"]).unwrap();
    let start = |n: usize| {
        let mut waiter = Command::new("flock");
        waiter.current_dir(m.mountpoint()).stdin(Stdio::null());
        // With or without a child that inherits the lock.
        let how: &[&str] = if n.is_multiple_of(2) {
            &["f"]
        } else {
            &["-o", "f"]
        };
        waiter.args(how).args(["sleep", "0.01"]);
        waiter.spawn().expect("flock of util-linux")
    };
    let mut waiters: Vec<Child> = (0..100).map(start).collect();
    await_waiting(&m, 100);
    let mut killed = Vec::new();
    for number in 0..60 {
        let chosen = random.below(waiters.len() as u64) as usize;
        let mut waiter = waiters.swap_remove(chosen);
        waiter.kill().expect("a child");
        killed.push(waiter);
        if number == 30 {
            holder.close("f").unwrap();
        }
        std::thread::sleep(Duration::from_micros(random.below(3000)));
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    for waiter in &mut killed {
        while waiter.try_wait().expect("a child").is_none() {
            assert!(
                Instant::now() < deadline,
                "a second after SIGKILL {} is still there: {}",
                waiter.id(),
                std::fs::read_to_string(format!("/proc/{}/stat", waiter.id())).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    for waiter in &mut waiters {
        let status = loop {
            if let Some(status) = waiter.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "one never got the lock");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}");
    }
}

#[test]
fn load_modify_save_under_a_lock_loses_no_update() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!();
    m.save("f", "0");
    // Half lock the file that they edit, half lock it by a reader and then rewrite it.
    let script = |open: &str| {
        format!(
            "
import fcntl
for _ in range(12):
    {open}
        fcntl.flock(lock, fcntl.LOCK_EX)
        n = int(lock.read())
        with open('f', 'w') as f:
            f.write(str(n + 1))
"
        )
    };
    let mut all: Vec<Live> = ["with open('f') as lock:", "with open('f', 'r+') as lock:"]
        .iter()
        .cycle()
        .take(6)
        .map(|open| m.live_python(&script(open)))
        .collect();
    for one in &mut all {
        assert!(one.finish().success());
    }
    assert_content(m.read("f"), b"72", "six times twelve");
}

/// The claims that `commitfs locks` lists, with whether their holders live.
fn claims(m: &Mount) -> Vec<(String, bool)> {
    m.locks()
        .iter()
        .filter(|l| l["kind"] == "claim")
        .map(|l| {
            let path = l["path"].as_str().unwrap_or_default().to_owned();
            (path, l["alive"] == true)
        })
        .collect()
}

#[test]
fn lock_files_are_listed_with_their_creators_until_they_are_removed() {
    need_daemon!();
    let m = mount!();
    let mut holder = Actor::new();
    for name in ["run.lock", "run.pid"] {
        holder.open("f", "x", &m.path(name)).unwrap();
        holder.write("f", "claimed").unwrap();
        holder.close("f").unwrap();
    }
    // Not the name of a claim.
    holder.open("f", "x", &m.path("data.bin")).unwrap();
    holder.close("f").unwrap();
    let mut listed = claims(&m);
    listed.sort();
    let held = |name: &str, alive| (name.to_owned(), alive);
    assert_eq!(listed, [held("run.lock", true), held("run.pid", true)]);
    holder.unlink(&m.path("run.pid")).unwrap();
    holder.kill(libc::SIGKILL);
    eventually(Duration::from_secs(5), "the death is noticed", || {
        claims(&m) == [held("run.lock", false)]
    });
    eventually(Duration::from_secs(5), "a line in the log", || {
        m.log().contains("run.lock: created with O_EXCL by")
    });
    assert!(m.exists("run.lock"), "without a rule it stays");
    assert_eq!(m.status()["counters"]["stale_claims"], 1);
}

#[test]
fn a_rule_removes_lock_files_whose_creators_have_ended() {
    need_daemon!();
    let options = Mount::options().rules("[[rule]]\nglob = \"*.claim\"\nstale = \"remove\"\n");
    let m = mount!(options);
    let (mut killed, mut ended, mut alive) = (Actor::new(), Actor::new(), Actor::new());
    for (holder, name) in [
        (&mut killed, "killed.claim"),
        (&mut ended, "ended.claim"),
        (&mut alive, "alive.claim"),
    ] {
        holder.open("f", "x", &m.path(name)).unwrap();
        holder.write("f", "claimed").unwrap();
        holder.close("f").unwrap();
    }
    // Who inherited a descriptor may be the holder now.
    let mut parent = Actor::new();
    parent.open("f", "x", &m.path("inherited.claim")).unwrap();
    let child = parent.fork();
    // Another's file by then.
    let mut replaced = Actor::new();
    replaced.open("f", "x", &m.path("replaced.claim")).unwrap();
    replaced.close("f").unwrap();
    alive.unlink(&m.path("replaced.claim")).unwrap();
    m.save("replaced.claim", "not a claim");
    for mut gone in [killed, parent, replaced] {
        gone.kill(libc::SIGKILL);
    }
    ended.exit(0);
    eventually(Duration::from_secs(5), "those of the dead go", || {
        !m.exists("killed.claim") && !m.exists("ended.claim")
    });
    std::thread::sleep(Duration::from_millis(600));
    for name in ["alive.claim", "inherited.claim", "replaced.claim"] {
        assert!(m.exists(name), "{name} is gone");
    }
    drop(child);
    eventually(Duration::from_secs(5), "the last holder's goes", || {
        !m.exists("inherited.claim")
    });
}

#[test]
fn the_locks_of_a_killed_writer_go_with_what_it_has_written_where_a_rule_commits_that() {
    need_daemon!();
    need_features!("posix_locks");
    // Its child has inherited the description, which therefore stays open.
    let rule = "[[rule]]\nglob = \"scratch-*\"\non_signal = \"commit\"\n";
    let m = mount!(Mount::options().rules(rule));
    for (name, expected) in [("scratch-1", "New"), ("f", "old")] {
        m.save(name, "old");
        let (mut writer, mut next) = (Actor::new(), Actor::new());
        writer.open("f", "r+", &m.path(name)).unwrap();
        let alone: &[&[u8]] = &[b"f", b"set", b"write", b"0", b"0"];
        writer.ask("fcntl", alone).unwrap();
        writer.pwrite("f", 0, b"New").unwrap();
        let child = writer.fork();
        next.open("f", "r", &m.path(name)).unwrap();
        writer.kill(libc::SIGKILL);
        next.ask("fcntl", &[b"f", b"wait", b"read", b"0", b"0"])
            .unwrap();
        assert_eq!(next.read_all("f").unwrap(), expected.as_bytes(), "{name}");
        drop(child);
    }
}
