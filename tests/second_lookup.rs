//! C1, C8. A writer is sent round to a node of its own by ESTALE, which the kernel takes once and
//! hands on the second time. Programs must never meet it: not when threads take a shared temporary
//! name away from each other, not when processes do, and not when the daemon stands still meanwhile.

mod common;

use std::time::Duration;

use common::{Actor, Live, Mount, times};

/// Threads, or processes of some threads, open and truncate three names so often in every way that is common, rename and
/// remove them in between, and count the ESTALEs.
const STORM: &str = "
import errno, os, random, sys, threading
threads, rounds, seed = map(int, sys.argv[1:4])
names = ['tmp', 'plain', 'doc.json']
stale, done = [], [0] * threads

def one(me, choose):
    name = choose.choice(names)
    how = choose.randrange(9)
    done[me] += how >= 2
    if how == 0:
        os.rename('tmp', choose.choice(['plain', 'doc.json']))
    elif how == 1:
        os.unlink(name)
    elif how == 2:
        os.truncate(name, choose.randrange(4))
    else:
        flags = [os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                 os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                 os.O_WRONLY | os.O_TRUNC, os.O_RDONLY][how - 3]
        fd = os.open(name, flags | os.O_NONBLOCK, 0o644)
        try:
            if flags & os.O_ACCMODE and choose.random() < 0.8:
                os.write(fd, b'{\"by\": %d}\\n' % me)
        finally:
            os.close(fd)

def work(me):
    choose = random.Random(seed * 1000 + me)
    while done[me] < rounds:
        try:
            one(me, choose)
        except OSError as e:
            if e.errno == errno.ESTALE:
                stale.append(str(e))

all = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
for t in all: t.start()
for t in all: t.join()
print(sum(done), 'opens', len(stale), 'stale', *stale[:3], flush=True)
";

fn storm(m: &Mount, threads: usize, rounds: usize, seed: usize) -> Live {
    let numbers = [threads, rounds, seed].map(|n| n.to_string());
    let mut command = std::process::Command::new("python3");
    command.current_dir(m.mountpoint()).args(["-c", STORM]);
    Live::spawn(command.args(numbers))
}

/// How long the calls may take.
fn limit() -> Duration {
    Duration::from_secs(times(50, 5400) as u64)
}

/// A mount that stands that long.
fn lasting() -> common::Options {
    Mount::options().limit(limit() + Duration::from_secs(10))
}

/// Waits for it, however long it takes: the mount's own limit ends it if it hangs.
#[track_caller]
fn met_none(mut storm: Live, opens: usize) {
    common::eventually(limit(), "the calls are made", || {
        !common::alive(storm.pid())
    });
    storm.expect(&format!("{opens} opens 0 stale"));
}

#[test]
fn threads_that_share_a_temporary_name_never_meet_estale() {
    let m = mount!(lasting());
    let rounds = times(120, 25_000);
    met_none(storm(&m, 8, rounds, 1), 8 * rounds);
}

#[test]
fn processes_under_merge_never_meet_estale() {
    let rules = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\n";
    let m = mount!(lasting().rules(rules));
    let rounds = times(80, 20_000);
    let storms: Vec<Live> = (0..5).map(|seed| storm(&m, 2, rounds, seed)).collect();
    for storm in storms {
        met_none(storm, 2 * rounds);
    }
}

#[test]
fn an_open_is_good_however_long_the_daemon_stands_still() {
    need_daemon!();
    let m = mount!(lasting());
    let rounds = times(60, 12_500);
    let storms: Vec<Live> = (0..4).map(|seed| storm(&m, 4, rounds, seed)).collect();
    let run = Duration::from_millis(times(300, 20_000) as u64);
    let stand = Duration::from_secs(times(3, 10) as u64);
    for _ in 0..times(2, 30) {
        std::thread::sleep(run);
        if !storms.iter().any(|storm| common::alive(storm.pid())) {
            break;
        }
        let signal = |signal| {
            // SAFETY: our own child, which the mount waits for only when it is dropped.
            unsafe { libc::kill(m.daemon_pid(), signal) };
        };
        signal(libc::SIGSTOP);
        std::thread::sleep(stand);
        signal(libc::SIGCONT);
    }
    for storm in storms {
        met_none(storm, 4 * rounds);
    }
}

#[test]
fn what_is_removed_while_it_is_opened_does_not_come_back() {
    // Who opens without O_CREAT gets the file that is there, or none; it makes no new one.
    let m = mount!();
    let said = m.python(
        "
import os, threading
def remove():
    for _ in range(150):
        open('f', 'w').close()
        os.unlink('f')
def update():
    while remover.is_alive():
        for flags in (os.O_WRONLY | os.O_TRUNC, os.O_RDWR):
            try:
                fd = os.open('f', flags)
                os.write(fd, b'late')
                os.close(fd)
            except FileNotFoundError:
                pass
remover = threading.Thread(target=remove)
remover.start()
update()
remover.join()
print(os.listdir('.'))
",
    );
    assert_eq!(said.ok().out.trim().replace("'.commitfs'", ""), "[]");
}

/// An open is dealt with so much later than the lookup before it, and is sent round so much later
/// again.
fn slow(delay: Duration) -> common::Options {
    let delay = delay.as_millis() as u64;
    Mount::options().env("COMMITFS_OPEN_DELAY_MS", delay)
}

/// A process that opens `f` without making it, and has got as far as the daemon.
fn begin_open(m: &Mount, flags: &str) -> Actor {
    begin_open_of(m, "f", flags)
}

fn begin_open_of(m: &Mount, path: &str, flags: &str) -> Actor {
    let mut opener = Actor::new();
    let path = m.path(path);
    let path = path.to_str().expect("a path of letters");
    opener.start("open", &[b"f", flags.as_bytes(), path.as_bytes()]);
    let call = format!("/proc/{}/syscall", opener.pid());
    let opening = format!("{} ", libc::SYS_openat);
    common::eventually(Duration::from_secs(5), "it opens", || {
        std::fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&opening))
    });
    opener
}

#[test]
fn a_name_that_is_removed_before_the_second_lookup_does_not_come_back() {
    need_daemon!();
    let delay = Duration::from_millis(700);
    let m = mount!(slow(delay));
    for flags in ["wronly|trunc", "wronly"] {
        m.save("f", "old");
        let mut opener = begin_open(&m, flags);
        std::thread::sleep(delay * 3 / 2);
        Actor::new().unlink(&m.path("f")).unwrap();
        if opener.finish().is_ok() {
            opener.write("f", "late").unwrap();
            opener.close("f").unwrap();
        }
        assert_eq!(m.names("."), [""; 0], "{flags}");
    }
}

#[test]
fn who_finds_a_file_gone_and_then_another_one_is_served_there() {
    need_daemon!();
    let delay = Duration::from_millis(700);
    let m = mount!(slow(delay));
    for flags in ["wronly|trunc", "wronly", "r+"] {
        m.save("f", "old");
        let mut opener = begin_open(&m, flags);
        std::thread::sleep(delay / 2);
        Actor::new().unlink(&m.path("f")).unwrap();
        std::thread::sleep(delay);
        m.save("f", "new");
        opener.finish().unwrap();
        opener.write("f", "NEW").unwrap();
        opener.close("f").unwrap();
        common::assert_content(m.read("f"), b"NEW", flags);
        Actor::new().unlink(&m.path("f")).unwrap();
    }
}

/// A program's threads see each other's new files. What one opens another discards, and what it finds on its second lookup, too.
#[test]
fn who_finds_what_is_discarded_right_then_is_served_what_has_come_after_it() {
    need_daemon!();
    let delay = Duration::from_millis(500);
    let m = mount!(slow(delay).env("COMMITFS_SERVE_DELAY_MS", delay.as_millis()));
    let path = m.path("f");
    for flags in ["r", "wronly", "wronly|trunc"] {
        let mut one = Actor::new();
        let mut other = one.thread();
        one.open("first", "w", &path).unwrap();
        one.write("first", "first").unwrap();
        let begun = std::time::Instant::now();
        let at = |moment: Duration| std::thread::sleep(moment.saturating_sub(begun.elapsed()));
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        other.start("open", &[b"f", flags.as_bytes(), bytes]);
        at(delay / 2);
        one.unlink(&path).unwrap();
        one.close("first").unwrap();
        one.open("second", "w", &path).unwrap();
        // It was sent round, has found that, and hasn't opened it.
        at(delay * 5 / 2);
        one.unlink(&path).unwrap();
        one.close("second").unwrap();
        one.save(&path, "third").unwrap();
        other.finish().unwrap();
        match flags {
            "r" => assert_eq!(other.read_all("f").unwrap(), b"third"),
            _ => other.write("f", "THIRD").unwrap(),
        }
        other.close("f").unwrap();
        let expected: &[u8] = if flags == "r" { b"third" } else { b"THIRD" };
        common::assert_content(m.read("f"), expected, flags);
        one.unlink(&path).unwrap();
    }
}

#[test]
fn a_second_lookup_that_begins_seconds_later_is_served() {
    need_daemon!();
    let m = mount!(slow(Duration::from_millis(2800)));
    m.save("f", "old");
    let mut opener = begin_open(&m, "wronly");
    opener.finish().unwrap();
    opener.write("f", "new").unwrap();
    opener.close("f").unwrap();
    common::assert_content(m.read("f"), b"new", "committed");
}

#[test]
fn who_looks_seconds_later_once_more_is_served_what_has_come_meanwhile() {
    // The kernel asks twice for a name that it knows and that isn't there: a thread that gets no processor between the two
    // is on its second lookup still.
    need_daemon!();
    let (opening, looking) = (Duration::from_millis(700), Duration::from_millis(2800));
    let m = mount!(slow(opening).env("COMMITFS_LOOKUP_DELAY_MS", looking.as_millis() as u64));
    m.save("f", "old");
    let begun = std::time::Instant::now();
    let at = |moment: Duration| std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    let mut opener = begin_open(&m, "wronly");
    opener.patience(Duration::from_secs(40));
    at(opening / 2);
    Actor::new().unlink(&m.path("f")).unwrap();
    // The open has found it gone, and is about to be told to look once more: there it is again.
    at(opening * 3 / 2);
    m.save("f", "between");
    at(opening * 2 + looking / 2);
    Actor::new().unlink(&m.path("f")).unwrap();
    at(opening * 2 + looking * 3 / 2);
    m.save("f", "new");
    opener.finish().unwrap();
    opener.write("f", "NEW").unwrap();
    opener.close("f").unwrap();
    common::assert_content(m.read("f"), b"NEW", "it is saved there");
}

#[test]
fn a_second_lookup_that_a_symlink_leads_elsewhere_is_served_there() {
    need_daemon!();
    let delay = Duration::from_millis(700);
    let m = mount!(slow(delay));
    for (number, flags) in ["wronly|trunc", "r+"].into_iter().enumerate() {
        let name = |name: &str| format!("{name}-{number}");
        m.save(name("one"), "ONE");
        m.save(name("other"), "OTHER");
        let link = |to: &str, from: &str| {
            std::os::unix::fs::symlink(name(to), m.path(name(from))).expect("a symlink");
        };
        link("one", "link");
        link("other", "next");
        let mut opener = begin_open_of(&m, &name("link"), flags);
        std::thread::sleep(delay / 2);
        let (next, path) = (m.path(name("next")), m.path(name("link")));
        Actor::new().rename(&next, &path).unwrap();
        let mut reader = Actor::new();
        reader.open("r", "r", &m.path(name("other"))).unwrap();
        opener.finish().unwrap();
        opener.write("f", "new").unwrap();
        let read = reader.read_all("r").unwrap();
        assert_eq!(read, b"OTHER", "{flags}: it is not saved yet");
        opener.close("f").unwrap();
        common::assert_content(m.read(name("one")), b"ONE", flags);
        let whole: &[u8] = if flags == "wronly|trunc" {
            b"new"
        } else {
            b"newER"
        };
        common::assert_content(m.read(name("other")), whole, flags);
    }
}

#[test]
fn a_truncation_that_a_symlink_leads_elsewhere_is_done_there() {
    need_daemon!();
    let delay = Duration::from_millis(700);
    let m = mount!(slow(delay));
    m.save("one", "ONE");
    m.save("other", "OTHER");
    std::os::unix::fs::symlink("one", m.path("link")).expect("a symlink");
    std::os::unix::fs::symlink("other", m.path("next")).expect("a symlink");
    let mut cutter = Actor::new();
    let path = m.path("link");
    cutter.start(
        "truncate",
        &[path.to_str().expect("letters").as_bytes(), b"2"],
    );
    std::thread::sleep(delay / 2);
    Actor::new()
        .rename(&m.path("next"), &m.path("link"))
        .unwrap();
    cutter.finish().unwrap();
    common::assert_content(m.read("one"), b"ONE", "left alone");
    common::assert_content(m.read("other"), b"OT", "cut");
}

#[test]
fn what_was_opened_in_a_directory_that_is_replaced_is_opened_in_the_new_one() {
    // A file that is empty is opened for who is sent round to it, as it may become a database.
    need_daemon!();
    let delay = Duration::from_millis(700);
    let m = mount!(slow(delay));
    let mut other = Actor::new();
    other.mkdir(&m.path("d")).unwrap();
    m.save("d/f", "");
    let mut opener = begin_open_of(&m, "d/f", "r+");
    std::thread::sleep(delay * 3 / 2);
    other.rename(&m.path("d"), &m.path("before")).unwrap();
    other.mkdir(&m.path("d")).unwrap();
    m.save("d/f", "new");
    opener.finish().unwrap();
    opener.write("f", "NEW").unwrap();
    opener.close("f").unwrap();
    common::assert_content(m.read("d/f"), b"NEW", "where the path leads");
    common::assert_content(m.read("before/f"), b"", "left as it was");
    common::eventually(Duration::from_secs(5), "nothing is left open", || {
        m.status()["transactions"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
}
