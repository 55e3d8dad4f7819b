//! What programs do next with a file that they have just closed, while it is still being decided what
//! becomes of that close: it is later, and nothing of either is lost (C2, C9). The failure it prevents:
//! a program counts up in a file, again and again; one count of a thousand, acknowledged by fsync and
//! close, is missing. And with one that they have open, and have emptied by its name.

mod common;

use std::time::{Duration, Instant};

use common::{Actor, Live, Mount, assert_content, times};

/// Edits `abcd` to `Abcd`, the letter through a mapping that outlives the descriptor: the last close
/// is decided upon after its end.
fn edit_by_mapping(actor: &mut Actor, m: &Mount) {
    actor.open("f", "r+", &m.path("f")).unwrap();
    actor.open("node", "path", &m.path("f")).unwrap();
    actor.mmap("f", "map", 4, "rw").unwrap();
    actor.close("f").unwrap();
    actor.map_write("map", 0, b"A").unwrap();
    actor.munmap("map").unwrap();
}

fn edit_again(actor: &mut Actor, path: &std::path::Path) {
    // Each step in another stretch of the decision, should that go on meanwhile.
    actor.open("f", "r+", path).unwrap();
    actor.pwrite("f", 2, b"X").unwrap();
    for letter in [b"Y", b"C"] {
        actor.ask("sleep", &[b"130"]).unwrap();
        actor.pwrite("f", 2, letter).unwrap();
        actor.fsync("f").unwrap();
    }
    actor.close("f").unwrap();
}

#[test]
fn what_a_program_does_next_with_a_file_that_it_has_closed_is_later() {
    type Next = fn(&mut Actor, &Mount);
    let next: [(&str, Next, &[u8]); 9] = [
        ("edit", |a, m| edit_again(a, &m.path("f")), b"AbCd"),
        (
            "edit, by a node that was looked up before",
            |a, _| {
                let path = a.ask("fdpath", &[b"node"]).unwrap();
                let path = std::path::PathBuf::from(String::from_utf8(path[0].clone()).unwrap());
                edit_again(a, &path);
            },
            b"AbCd",
        ),
        ("cut", |a, m| a.truncate(&m.path("f"), 2).unwrap(), b"Ab"),
        (
            "cut, by a node that was looked up before",
            |a, _| {
                let path = a.ask("fdpath", &[b"node"]).unwrap();
                let path = std::path::PathBuf::from(String::from_utf8(path[0].clone()).unwrap());
                a.truncate(&path, 2).unwrap();
            },
            b"Ab",
        ),
        ("save", |a, m| a.save(&m.path("f"), b"new").unwrap(), b"new"),
        (
            "replace",
            |a, m| {
                a.save(&m.path("g"), b"other").unwrap();
                a.rename(&m.path("g"), &m.path("f")).unwrap();
            },
            b"other",
        ),
        (
            "rename, and edit there",
            |a, m| {
                a.rename(&m.path("f"), &m.path("g")).unwrap();
                edit_again(a, &m.path("g"));
                a.rename(&m.path("g"), &m.path("f")).unwrap();
            },
            b"AbCd",
        ),
        (
            "unlink, and create",
            |a, m| {
                a.unlink(&m.path("f")).unwrap();
                a.save(&m.path("f"), b"new").unwrap();
            },
            b"new",
        ),
        (
            "link",
            |a, m| {
                a.link(&m.path("f"), &m.path("g")).unwrap();
                a.unlink(&m.path("f")).unwrap();
                a.rename(&m.path("g"), &m.path("f")).unwrap();
            },
            b"Abcd",
        ),
    ];
    let m = mount!(Mount::options().env("COMMITFS_DECIDE_DELAY_MS", 100));
    for (what, next, expected) in next {
        m.save("f", "abcd");
        let mut actor = Actor::new();
        edit_by_mapping(&mut actor, &m);
        next(&mut actor, &m);
        assert_content(m.read("f"), expected, what);
        actor.exit(0);
        assert_content(m.read("f"), expected, what);
    }
    if !common::plain() {
        assert_eq!(m.rejected().len(), 0, "{:?}", m.rejected());
    }
}

/// Each of several processes, in several ways, edits a row of its own, and knows what it must find
/// there: what it wrote last, fsync'd or closed.
const EDITORS: &str = "
import fcntl, mmap, os, random, sys, time
me, until, seed = int(sys.argv[1]), time.time() + float(sys.argv[2]), int(sys.argv[3])
ROW, rng = 32, random.Random(seed * 100 + me)
own = 0
def text(n): return (b'%d:%d.' % (me, n)).ljust(ROW, b'.')
def lock(fd, how): fcntl.lockf(fd, how, ROW, me * ROW)
def check(found, where):
    if found != text(own):
        print('row', me, where, found, 'should be', own, flush=True)
        os._exit(1)
def edit():
    # Own row locked: nobody waits for the writer slot, and closes meet.
    global own
    fd = os.open('rows', os.O_RDWR)
    if rng.random() < .9: lock(fd, fcntl.LOCK_EX)
    check(os.pread(fd, ROW, me * ROW), 'opened')
    way = rng.choice(['plain', 'sync', 'twice', 'unlock', 'map', 'dup', 'child'])
    if way == 'map':
        m = mmap.mmap(fd, 8 * ROW)
        if rng.random() < .5: os.close(fd); fd = None
        own += 1
        m[me * ROW:me * ROW + ROW] = text(own)
        m.close()
    else:
        own += 1
        os.pwrite(fd, text(own), me * ROW)
    if fd is None: return
    if way == 'sync': os.fsync(fd)
    if way == 'unlock':
        lock(fd, fcntl.LOCK_UN)
        check(os.pread(fd, ROW, me * ROW), 'unlocked')
    if way == 'child' and os.fork() == 0:
        # The last reference goes some time after its parent's close.
        time.sleep(rng.random() * .004)
        os._exit(0)
    if way == 'dup':
        other = os.dup(fd)
        os.close(fd)
        fd = other
    if way == 'twice':
        os.fsync(fd)
        own += 1
        os.pwrite(fd, text(own), me * ROW)
    os.close(fd)
fd = os.open('rows', os.O_RDWR)
lock(fd, fcntl.LOCK_EX)
os.pwrite(fd, text(0), me * ROW)
os.close(fd)
edits = 0
while time.time() < until:
    edit()
    edits += 1
    if rng.random() < .3:
        with open('rows', 'rb') as f: check(os.pread(f.fileno(), ROW, me * ROW), 'read')
print('row', me, 'ends with', own, edits, flush=True)
";

#[test]
fn no_acknowledged_edit_is_lost_among_many_editors() {
    need_features!("posix_locks");
    let seconds = times(8, 3600) as u64;
    let limit = Duration::from_secs(seconds + 60);
    // Decisions that take a moment, as on a slow disk.
    let options = Mount::options().limit(limit);
    let m = mount!(options.env("COMMITFS_DECIDE_DELAY_MS", 2));
    m.save("rows", [b'-'; 8 * 32]);
    let seed = std::process::id();
    let begun = Instant::now();
    let mut all: Vec<Live> = (0..6)
        .map(|me| {
            let mut python = std::process::Command::new("python3");
            let args = [
                "-c",
                EDITORS,
                &me.to_string(),
                &seconds.to_string(),
                &seed.to_string(),
            ];
            Live::spawn(python.current_dir(m.mountpoint()).args(args))
        })
        .collect();
    // Their output is waited for no longer than a line may take.
    let mut ended = false;
    while !ended && begun.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(100));
        ended = all.iter_mut().any(Live::has_ended);
    }
    let mut last = Vec::new();
    for one in &mut all {
        let said = one.line();
        assert!(said.contains("ends with"), "seed {seed}: {said}");
        let mut words = said.split(' ');
        last.push((
            words.nth(1).unwrap().to_owned(),
            words.nth(2).unwrap().to_owned(),
        ));
        assert!(one.finish().success());
    }
    let rows = m.text("rows").unwrap();
    for (me, own) in last {
        assert!(
            rows.contains(&format!("{me}:{own}.")),
            "seed {seed}: {me}:{own} in {rows}"
        );
    }
    if !common::plain() {
        assert_eq!(m.rejected().len(), 0, "{:?}", m.rejected());
    }
}

/// The ways in which programs empty a file that they have open, and what comes of it.
const EMPTIED: &str = "
import fcntl, mailbox, os, subprocess
def descriptor(p): os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))
def python(p): open(p, 'w').close()
def cut(p): os.truncate(p, 0)
def child(p): subprocess.check_call(['sh', '-c', ': > \"$0\"', p])
def child_writes(p): subprocess.check_call(['sh', '-c', 'echo x > \"$0\"', p])
for empty in descriptor, python, cut, child, child_writes:
    for mode in 'r+', 'w', 'w+':
        for locked in False, True:
            for before in '', 'ab':
                with open('f', 'w') as f: f.write('an old, longer message')
                f = open('f', mode)
                if locked: fcntl.lockf(f, fcntl.LOCK_EX)
                f.write(before); f.flush()
                empty('f')
                f.write('new'); f.flush()
                if locked: fcntl.lockf(f, fcntl.LOCK_UN)
                f.close()
                print(empty.__name__, mode, locked, repr(before), repr(open('f').read()))
box = mailbox.MH('mh')
key = box.add('From: a\\n\\nlong, long body\\n')
box[key] = 'From: a\\n\\nshort\\n'
print(repr(box.get_string(key)))
box.set_sequences({'replied': [1], 'unseen': [1]})
box.set_sequences({'unseen': [1]})
print(box.get_sequences())
";

#[test]
fn what_a_program_writes_after_it_has_emptied_the_file_by_name_stands_alone() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!();
    m.same_as_plain(EMPTIED);
}

#[test]
fn a_line_that_a_program_adds_to_its_new_log_after_its_own_save_comes_behind_that() {
    let m = mount!();
    let mut program = Actor::new();
    program.open("log", "a", &m.path("notes")).unwrap();
    program.save(&m.path("notes"), "head\n").unwrap();
    program.write("log", "li").unwrap();
    program.write("log", "ne\n").unwrap();
    assert_content(m.read("notes"), b"head\nline\n", "at once");
    program.kill(libc::SIGKILL);
    assert_content(m.read("notes"), b"head\nline\n", "after the kill");
}

#[test]
fn an_unmount_waits_for_what_becomes_of_a_close() {
    need_daemon!();
    let mut m = mount!(Mount::options().env("COMMITFS_DECIDE_DELAY_MS", 300));
    m.save("f", "abcd");
    let mut actor = Actor::new();
    edit_by_mapping(&mut actor, &m);
    actor.close("node").unwrap();
    m.command(&["umount"]).ok();
    m.reap_daemon(Duration::from_secs(10));
    let left = std::fs::read(m.backing().join("f")).ok();
    assert_content(left, b"Abcd", "in the backing directory");
}

#[test]
fn an_unmount_by_force_waits_for_what_becomes_of_a_close() {
    need_daemon!();
    let mut m = mount!(Mount::options().env("COMMITFS_DECIDE_DELAY_MS", 300));
    m.save("f", "abcd");
    let mut actor = Actor::new();
    edit_by_mapping(&mut actor, &m);
    m.command(&["umount", "--force"]).ok();
    m.reap_daemon(Duration::from_secs(10));
    drop(actor);
    let left = std::fs::read(m.backing().join("f")).ok();
    assert_content(left, b"Abcd", "in the backing directory");
}
