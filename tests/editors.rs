//! C9: programs that edit a file in place take turns. The failure it prevents: two programs open the
//! same counter r+, both read 7, both write 8.
//!
//! Who waits is told by `commitfs locks`; how long, by the clock.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Actor, Live, Mount, Options, alive, assert_content, assert_errno, eventually, run, times,
};
use serde_json::Value;

/// Processes that wait for a writer slot, in the order in which they came.
fn waiting(m: &Mount) -> Vec<i32> {
    let waits = |e: &&Value| e["state"] == "waiting" && e["kind"] == "writer slot";
    m.locks()
        .iter()
        .filter(waits)
        .filter_map(|e| Some(e["pid"].as_i64()? as i32))
        .collect()
}

#[track_caller]
fn await_waiting(m: &Mount, pids: &[i32]) {
    eventually(Duration::from_secs(5), &format!("{pids:?} wait"), || {
        waiting(m) == pids
    });
}

/// Holders that do nothing for long, as tests do, are waited for all the same.
fn patient() -> Options {
    Mount::options().env("COMMITFS_SILENCE_MS", 60_000)
}

fn editor(path: &Path) -> Actor {
    let mut editor = Actor::new();
    editor.open("f", "r+", path).unwrap();
    editor
}

/// Starts to open a file r+, without waiting for the end of that.
fn come(path: &Path) -> Actor {
    let mut next = Actor::new();
    let path = path.to_string_lossy();
    next.start("open", &[b"f", b"r+", path.as_bytes()]);
    next
}

#[test]
fn the_next_editor_waits_and_starts_from_what_the_first_has_left() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut second = come(&m.path("f"));
    await_waiting(&m, &[second.pid()]);
    first.pwrite("f", 0, b"2").unwrap();
    // Not at a write, nor at the close of a duplicate: at the last close.
    first.dup("f", "g").unwrap();
    first.close("f").unwrap();
    await_waiting(&m, &[second.pid()]);
    first.close("g").unwrap();
    second.finish().expect("its turn has come");
    assert_eq!(second.read_all("f").unwrap(), b"2");
    second.pwrite("f", 0, b"3").unwrap();
    second.close("f").unwrap();
    assert_content(m.read("f"), b"3", "both edits");
}

#[test]
fn first_come_first_served() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut pids = Vec::new();
    let mut queue: Vec<Actor> = Vec::new();
    for _ in 0..3 {
        let next = come(&m.path("f"));
        pids.push(next.pid());
        await_waiting(&m, &pids);
        queue.push(next);
    }
    first.close("f").unwrap();
    for (place, mut next) in queue.into_iter().enumerate() {
        next.finish().expect("its turn has come");
        await_waiting(&m, &pids[place + 1..]);
        next.close("f").unwrap();
    }
}

#[test]
fn programs_that_load_modify_and_save_in_place_lose_no_update() {
    need_daemon!();
    let m = mount!(patient());
    m.save("counter", "0000");
    let script = "
for _ in range(15):
    with open('counter', 'r+') as f:
        n = int(f.read())
        f.seek(0)
        f.write('%04d' % (n + 1))
";
    let mut all: Vec<Live> = (0..6).map(|_| m.live_python(script)).collect();
    for one in &mut all {
        assert!(one.finish().success());
    }
    assert_content(m.read("counter"), b"0090", "six times fifteen");
}

#[test]
fn a_killed_waiter_is_gone_at_once_and_nobody_waits_for_it() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let mut waiter = come(&m.path("f"));
        await_waiting(&m, &[waiter.pid()]);
        quickest = quickest.min(waiter.kill_at_once());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    await_waiting(&m, &[]);
    first.close("f").unwrap();
    editor(&m.path("f")).close("f").unwrap();
}

#[test]
fn a_time_limit_ends_the_wait() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let begun = Instant::now();
    let limited = run(
        Command::new("timeout").current_dir(m.mountpoint()).args([
            "1",
            "sh",
            "-c",
            "exec 3<>f; echo in",
        ]),
        Duration::from_secs(20),
    );
    let took = begun.elapsed();
    assert_eq!((limited.code, limited.out.as_str()), (Some(124), ""));
    assert!(took <= Duration::from_millis(1200), "{took:?}");
    first.close("f").unwrap();
}

#[test]
fn a_signal_that_the_program_handles_ends_the_wait_with_eintr() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let begun = Instant::now();
    m.python(
        "
import os, signal
class Enough(Exception): pass
def stop(*_): raise Enough
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.3)
try:
    os.open('f', os.O_RDWR)
except Enough:
    raise SystemExit(0)
raise SystemExit('opened')
",
    )
    .ok();
    assert!(begun.elapsed() < Duration::from_secs(2));
    first.close("f").unwrap();
}

#[test]
fn an_open_that_must_not_block_gets_eagain() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut other = Actor::new();
    assert_errno(other.open("f", "r+|nonblock", &m.path("f")), "EAGAIN");
    first.close("f").unwrap();
    other.open("f", "r+|nonblock", &m.path("f")).unwrap();
}

#[test]
fn past_the_time_limit_it_goes_on_and_the_log_names_the_holder() {
    need_daemon!();
    let m = mount!(Mount::options().rules("[[rule]]\nglob = \"f\"\nlock_timeout = \"300ms\"\n"));
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    first.pwrite("f", 0, b"2").unwrap();
    let begun = Instant::now();
    let mut second = editor(&m.path("f"));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let line = format!(
        "{} goes on without the writer slot, which {}",
        second.pid(),
        first.pid()
    );
    assert!(m.log().contains(&line), "{line}: {}", m.log());
    assert_eq!(second.read_all("f").unwrap(), b"1", "what is committed");
    second.pwrite("f", 0, b"3").unwrap();
    second.close("f").unwrap();
    first.close("f").unwrap();
    assert_content(m.read("f"), b"2", "the last close wins");
}

#[test]
fn an_editor_that_writes_nothing_commits_nothing() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut actor = Actor::new();
    let before = (actor.stat(&m.path("f")).unwrap(), m.commits());
    let version = m.version("f").unwrap();
    actor.open("f", "r+", &m.path("f")).unwrap();
    assert_eq!(actor.read_all("f").unwrap(), b"1");
    actor.close("f").unwrap();
    let after = (actor.stat(&m.path("f")).unwrap(), m.commits());
    assert_eq!(before, after, "inode, times and all");
    assert_eq!(m.version("f").unwrap(), version);
    assert!(m.rejected().is_empty());
}

#[test]
fn who_replaces_the_file_or_adds_to_it_never_waits() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1\n");
    let mut first = editor(&m.path("f"));
    let begun = Instant::now();
    let mut other = Actor::new();
    other.open("a", "a", &m.path("f")).unwrap();
    other.write("a", "2\n").unwrap();
    other.close("a").unwrap();
    assert_content(m.read("f"), b"1\n2\n", "the appended line");
    other.save(&m.path("f"), "new").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_content(m.read("f"), b"new", "the new content");
    first.close("f").unwrap();
    assert_content(m.read("f"), b"new", "the editor has written nothing");
}

#[test]
fn its_own_process_and_its_children_do_not_wait() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    first.open("again", "r+", &m.path("f")).unwrap();
    let mut child = first.fork();
    child.open("third", "r+", &m.path("f")).unwrap();
    child.exit(0);
}

#[test]
fn an_empty_file_makes_nobody_wait() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "");
    let _first = editor(&m.path("f"));
    let begun = Instant::now();
    let _second = editor(&m.path("f"));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_holder_that_locks_the_file_lets_the_others_in() {
    need_features!("posix_locks", "flock_locks");
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut second = come(&m.path("f"));
    await_waiting(&m, &[second.pid()]);
    first.ask("flock", &[b"f"]).unwrap();
    second.finish().expect("the lock keeps them apart");
    assert_errno(second.ask("flock", &[b"f"]), "EAGAIN");
    first.pwrite("f", 0, b"2").unwrap();
    first.close("f").unwrap();
    second.ask("flock-wait", &[b"f"]).unwrap();
    assert_eq!(second.pread("f", 0, 10).unwrap(), b"2");
}

#[test]
fn a_killed_holder_makes_way_and_the_next_starts_from_the_old_version() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    first.pwrite("f", 0, b"half").unwrap();
    let mut second = come(&m.path("f"));
    await_waiting(&m, &[second.pid()]);
    first.kill(libc::SIGKILL);
    second.finish().expect("its turn has come");
    assert_eq!(second.read_all("f").unwrap(), b"1");
    assert!(alive(second.pid()));
}

#[test]
fn who_would_wait_for_one_who_waits_for_it_goes_on() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    m.save("g", "1");
    let mut one = editor(&m.path("f"));
    let mut two = Actor::new();
    two.open("g", "r+", &m.path("g")).unwrap();
    let path = m.path("f");
    two.start("open", &[b"f", b"r+", path.to_string_lossy().as_bytes()]);
    await_waiting(&m, &[two.pid()]);
    let begun = Instant::now();
    one.open("g", "r+", &m.path("g")).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    let line = format!("g: {} goes on without the writer slot", one.pid());
    assert!(m.log().contains(&line), "{line}: {}", m.log());
    one.close("f").unwrap();
    two.finish().expect("its turn has come");
}

#[test]
fn who_waits_for_a_file_that_is_unlinked_meanwhile_does_not_bring_it_back() {
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "1");
    let mut first = editor(&m.path("f"));
    let mut second = come(&m.path("f"));
    await_waiting(&m, &[second.pid()]);
    first.unlink(&m.path("f")).unwrap();
    assert_errno(second.finish(), "ENOENT");
    first.close("f").unwrap();
    assert!(!m.exists("f"));
}

#[test]
fn an_editors_copy_has_only_whole_appends() {
    let m = mount!(patient());
    let path = m.path("log");
    let line = format!("{}\n", "x".repeat(900_000));
    for _ in 0..times(40, 400) {
        m.save("log", "begun\n");
        let (mut appender, mut editor) = (Actor::new(), Actor::new());
        appender.open("f", "a", &path).unwrap();
        editor.open("f", "r+", &path).unwrap();
        appender.start("write", &[b"f", line.as_bytes()]);
        while !appender.has_answered() {
            // The first write copies; the second time it is another editor's.
            editor.pwrite("f", 0, b"B").unwrap();
            let seen = editor.pread("f", 0, 1_000_000).unwrap();
            let whole = [6, 6 + line.len()].contains(&seen.len());
            assert!(whole && seen.ends_with(b"\n"), "{} bytes", seen.len());
            editor.close("f").unwrap();
            editor.open("f", "r+", &path).unwrap();
        }
        appender.finish().unwrap();
    }
}

#[test]
fn lines_that_others_add_while_a_file_is_edited_stay() {
    need_daemon!();
    let m = mount!(patient());
    let path = m.path("log");
    let added = b"added\n";
    type Edit = fn(&mut Actor);
    let edits: [(&str, Edit, &[u8]); 4] = [
        (
            "in place",
            |e| e.pwrite("f", 0, b"B").unwrap(),
            b"Begun\nadded\n",
        ),
        ("cut", |e| e.ftruncate("f", 2).unwrap(), b"beadded\n"),
        (
            "written anew",
            |e| {
                e.ftruncate("f", 0).unwrap();
                e.pwrite("f", 0, b"new\n").unwrap();
            },
            b"new\nadded\n",
        ),
        (
            "grown",
            |e| e.pwrite("f", 6, b"more\n").unwrap(),
            b"begun\nmore\nadded\n",
        ),
    ];
    for (what, edit, expected) in edits {
        m.save("log", "begun\n");
        let (mut appender, mut editor) = (Actor::new(), Actor::new());
        appender.open("f", "a", &path).unwrap();
        editor.open("f", "r+", &path).unwrap();
        edit(&mut editor);
        appender.write("f", added).unwrap();
        assert_content(m.read("log"), b"begun\nadded\n", what);
        editor.close("f").unwrap();
        assert_content(m.read("log"), expected, what);
        appender.write("f", added).unwrap();
        let both = [expected, added].concat();
        assert_content(m.read("log"), &both, "added after the commit");
    }
}

#[test]
fn no_line_is_lost_among_editors_and_appenders() {
    need_daemon!();
    let mut m = mount!(patient());
    m.save("log", "0");
    m.save("log", "begun\n");
    let load = "
import os, sys, multiprocessing
def append(me):
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    for n in range(300):
        os.write(fd, b'%d %d\\n' % (me, n))
def edit(me):
    for n in range(100):
        fd = os.open(sys.argv[1], os.O_RDWR)
        os.pwrite(fd, b'B', 0)
        os.close(fd)
if __name__ == '__main__':
    all = [multiprocessing.Process(target=f, args=(n,)) for n, f in enumerate([append, edit, append, edit])]
    for one in all: one.start()
    for one in all: one.join()
";
    let path = m.path("log").to_string_lossy().into_owned();
    let script = load.replace("sys.argv[1]", &format!("{path:?}"));
    m.python(&script).ok();
    for remounted in [false, true] {
        if remounted {
            m.unmount();
            m.remount();
        }
        let text = m.text("log").unwrap();
        for me in [0, 2] {
            let of = format!("{me} ");
            let lines: Vec<_> = text.lines().filter(|l| l.starts_with(&of)).collect();
            let expected: Vec<_> = (0..300).map(|n| format!("{me} {n}")).collect();
            assert_eq!(lines, expected, "{me}, {remounted}");
        }
        assert!(text.starts_with("Begun\n") && text.lines().count() == 601);
    }
}

/// Two who have locked a part each, and have written it: `one` the first letter, `two` the third.
fn two_editors(m: &Mount, name: &str) -> (Actor, Actor) {
    let (mut one, mut two) = (Actor::new(), Actor::new());
    for (editor, at, letter) in [(&mut one, 0, b"A"), (&mut two, 2, b"C")] {
        editor.open("f", "r+", &m.path(name)).unwrap();
        let from = at.to_string();
        let part: &[&[u8]] = &[b"f", b"set", b"write", from.as_bytes(), b"1"];
        editor.ask("fcntl", part).unwrap();
        editor.pwrite("f", at, letter).unwrap();
    }
    (one, two)
}

#[test]
fn what_two_editors_write_to_different_parts_of_a_file_stays() {
    need_features!("posix_locks");
    let m = mount!(patient());
    // The last to close or unlock doesn't take back what the other has written.
    type End = fn(&mut Actor, u64);
    let closes: End = |editor, _| editor.close("f").unwrap();
    let unlocks: End = |editor, at| {
        let from = at.to_string();
        let part: &[&[u8]] = &[b"f", b"set", b"unlock", from.as_bytes(), b"1"];
        editor.ask("fcntl", part).map(drop).unwrap();
    };
    let syncs_and_closes: End = |editor, _| {
        editor.fsync("f").unwrap();
        editor.close("f").unwrap();
    };
    for first in [closes, unlocks, syncs_and_closes] {
        for second in [closes, unlocks, syncs_and_closes] {
            m.save("f", "abcd");
            let (mut one, mut two) = two_editors(&m, "f");
            second(&mut two, 2);
            first(&mut one, 0);
            assert_content(m.read("f"), b"AbCd", "both");
        }
    }
    // A lock that is granted shows what the other has committed, though one has written before.
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    two.close("f").unwrap();
    one.ask("fcntl", &[b"f", b"set", b"write", b"0", b"4"])
        .unwrap();
    assert_eq!(one.pread("f", 0, 4).unwrap(), b"AbCd");
    one.close("f").unwrap();
    // What both have written is the last one's, and an update is told to be lost.
    m.save("f", "abcd");
    let overwritten = || {
        m.status()["counters"]["overwritten_updates"]
            .as_u64()
            .unwrap()
    };
    let before = if common::plain() { 0 } else { overwritten() };
    let (mut one, mut two) = two_editors(&m, "f");
    two.pwrite("f", 0, b"Z").unwrap();
    two.close("f").unwrap();
    one.close("f").unwrap();
    assert_content(
        m.read("f"),
        b"AbCd",
        "the last close wins where both have written",
    );
    if !common::plain() {
        assert_eq!(overwritten(), before + 1);
    }
}

#[test]
fn what_two_editors_write_behind_the_end_of_a_file_stays() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    // Each at its place, where the other has nothing.
    two.pwrite("f", 8, b"two").unwrap();
    two.close("f").unwrap();
    one.pwrite("f", 4, b"one").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"AbCdone\0two", "apart");
    // Records that others append don't have a place of their own: they come behind.
    m.save("f", "abc\n");
    let (mut one, mut two) = two_editors(&m, "f");
    one.pwrite("f", 4, b"one\n").unwrap();
    two.close("f").unwrap();
    let mut appender = Actor::new();
    appender.open("f", "a", &m.path("f")).unwrap();
    appender.write("f", b"line\n").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"AbC\none\nline\n", "what was appended");
    appender.write("f", b"more\n").unwrap();
    assert_content(
        m.read("f"),
        b"AbC\none\nline\nmore\n",
        "and what is appended",
    );
    // So do those that the other has taken over.
    m.save("f", "abc\n");
    let (mut one, mut two) = two_editors(&m, "f");
    one.pwrite("f", 4, b"one\n").unwrap();
    let mut appender = Actor::new();
    appender.open("f", "a", &m.path("f")).unwrap();
    appender.write("f", b"line\n").unwrap();
    two.close("f").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"AbC\none\nline\n", "appended before");
    // Without appends each byte has its place, and the last one wins where both have written.
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    two.pwrite("f", 4, b"22222222").unwrap();
    two.close("f").unwrap();
    one.pwrite("f", 4, b"11").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"AbCd11222222", "one over the other");
}

#[test]
fn a_text_that_is_written_anew_in_place_has_nothing_of_a_longer_one_behind_it() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!(patient());
    for text in ["count: 8\n", "count: 123\n", "1\n"] {
        m.save("f", "count: 9\n");
        let (mut one, mut two) = two_editors(&m, "f");
        two.pwrite("f", 0, b"count: one thousand\n").unwrap();
        two.close("f").unwrap();
        one.pwrite("f", 0, text.as_bytes()).unwrap();
        one.ftruncate("f", text.len() as u64).unwrap();
        one.close("f").unwrap();
        assert_content(m.read("f"), text.as_bytes(), "as a whole");
    }
}

#[test]
fn a_guard_judges_what_an_editors_rename_publishes() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "[1]     ");
    let (mut one, mut two) = two_editors(&m, "f");
    two.pwrite("f", 4, b"[3, 4").unwrap();
    two.close("f").unwrap();
    one.pwrite("f", 0, b"[2]").unwrap();
    let renamed = one.rename(&m.path("f"), &m.path("f.json"));
    assert_errno(renamed, "EBADMSG");
    assert!(!m.exists("f.json"), "no document");
}

#[test]
fn a_file_that_was_written_anew_meanwhile_is_the_last_ones_as_a_whole() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!(patient());
    // Parts of two documents are none.
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    two.ftruncate("f", 0).unwrap();
    two.pwrite("f", 0, b"xyz").unwrap();
    two.close("f").unwrap();
    one.close("f").unwrap();
    assert_content(m.read("f"), b"Abcd", "cut off, and written anew");
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    m.save("f", "new");
    one.close("f").unwrap();
    assert_content(m.read("f"), b"Abcd", "saved");
    // The first of them is no edit of what the second builds on.
    two.close("f").unwrap();
    assert_content(m.read("f"), b"abCd", "the last one's");
}

#[test]
fn a_killed_editor_of_one_part_takes_nothing_back_and_nobody_waits_for_it() {
    need_features!("posix_locks");
    need_daemon!();
    let m = mount!(patient());
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    two.close("f").unwrap();
    one.kill(libc::SIGKILL);
    assert_content(m.read("f"), b"abCd", "the other's");
    // What it has fsync'd is kept, in what the other has committed.
    m.save("f", "abcd");
    let (mut one, mut two) = two_editors(&m, "f");
    one.fsync("f").unwrap();
    two.close("f").unwrap();
    one.kill(libc::SIGKILL);
    assert_content(m.read("f"), b"AbCd", "both");
}

#[test]
fn counters_in_one_file_under_locks_of_their_own_lose_no_update() {
    need_features!("posix_locks");
    let m = mount!(patient());
    let script = "
import os, fcntl, multiprocessing
def count(me, way):
    fd = os.open('counters', os.O_RDWR)
    def lock(how):
        fcntl.lockf(fd, how, 8, me * 8)
    if way == 'hold':
        lock(fcntl.LOCK_EX)
    for _ in range(50):
        if way == 'reopen':
            os.close(fd)
            fd = os.open('counters', os.O_RDWR)
        if way != 'hold':
            lock(fcntl.LOCK_EX)
        n = int(os.pread(fd, 8, me * 8))
        os.pwrite(fd, b'%08d' % (n + 1), me * 8)
        if way != 'hold':
            lock(fcntl.LOCK_UN)
    os.close(fd)
if __name__ == '__main__':
    for way in ['cycle', 'reopen', 'hold']:
        with open('counters', 'w') as f:
            f.write('0' * 32)
        all = [multiprocessing.Process(target=count, args=(n, way)) for n in range(4)]
        for one in all: one.start()
        for one in all: one.join()
        found = open('counters').read()
        assert found == '00000050' * 4, (way, found)
";
    m.python(script).ok();
}
