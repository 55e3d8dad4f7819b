//! C1, C8. A writer is sent round to a node of its own by ESTALE, which the kernel takes once and
//! hands on the second time. Programs must never meet it: not when threads take a shared temporary
//! name away from each other, not when processes do, and not when the daemon stands still meanwhile.

mod common;

use std::time::Duration;

use common::{Actor, Live, Mount, times};

/// Threads, or processes of some threads, open, truncate, rename and remove three names in every way
/// that is common, and count the ESTALEs.
const STORM: &str = "
import errno, os, random, sys, threading
threads, rounds, seed = map(int, sys.argv[1:4])
names = ['tmp', 'plain', 'doc.json']
stale, done = [], [0] * threads

def one(me, choose):
    name = choose.choice(names)
    how = choose.randrange(9)
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
        done[me] += 1

all = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
for t in all: t.start()
for t in all: t.join()
print(sum(done), 'calls', len(stale), 'stale', *stale[:3], flush=True)
";

fn storm(m: &Mount, threads: usize, rounds: usize, seed: usize) -> Live {
    let numbers = [threads, rounds, seed].map(|n| n.to_string());
    let mut command = std::process::Command::new("python3");
    command.current_dir(m.mountpoint()).args(["-c", STORM]);
    Live::spawn(command.args(numbers))
}

/// Waits for it, however long it takes: the mount's own limit ends it if it hangs.
#[track_caller]
fn met_none(mut storm: Live, calls: usize) {
    let limit = Duration::from_secs(times(50, 1100) as u64);
    common::eventually(limit, "the calls are made", || !common::alive(storm.pid()));
    storm.expect(&format!("{calls} calls 0 stale"));
}

#[test]
fn threads_that_share_a_temporary_name_never_meet_estale() {
    let m = mount!();
    let rounds = times(120, 25_000);
    met_none(storm(&m, 8, rounds, 1), 8 * rounds);
}

#[test]
fn processes_under_merge_never_meet_estale() {
    let rules = "[[rule]]\nglob = \"*.json\"\non_conflict = \"merge\"\n";
    let m = mount!(Mount::options().rules(rules));
    let rounds = times(80, 10_000);
    let storms: Vec<Live> = (0..5).map(|seed| storm(&m, 2, rounds, seed)).collect();
    for storm in storms {
        met_none(storm, 2 * rounds);
    }
}

#[test]
fn an_open_is_good_however_long_the_daemon_stands_still() {
    need_daemon!();
    let m = mount!();
    let rounds = times(60, 4_000);
    let storms: Vec<Live> = (0..4).map(|seed| storm(&m, 4, rounds, seed)).collect();
    for seconds in [3, times(3, 10) as u64] {
        std::thread::sleep(Duration::from_millis(300));
        let signal = |signal| {
            // SAFETY: our own child, which the mount waits for only when it is dropped.
            unsafe { libc::kill(m.daemon_pid(), signal) };
        };
        signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs(seconds));
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
    let mut opener = Actor::new();
    let path = m.path("f");
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
