//! C10: what several processes append is whole lines, none lost, each visible when its write()
//! has returned. The failure it prevents: a metrics file to which ten workers append keeps the lines
//! of the one that closed last, or a reader that parses it while it grows meets half a line.
//!
//! Files named `*.log` are direct, so these are not.

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{Actor, Mount, Random, assert_content, eventually, stamp, times};

fn start_appending(path: &std::path::Path, name: &str, from: u64, pieces: &[u8]) -> Actor {
    let mut actor = Actor::new();
    let path = path.to_string_lossy();
    let (from, count) = (from.to_string(), times(150, 2000).to_string());
    let args = [
        path.as_bytes(),
        name.as_bytes(),
        from.as_bytes(),
        count.as_bytes(),
        pieces,
    ];
    actor.start("append-lines", &args);
    actor
}

/// The number of a line, which must be whole.
#[track_caller]
fn check_line(line: &str) -> (String, u64) {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default().to_owned();
    let number = words.next().and_then(|n| n.parse().ok());
    let number = number.unwrap_or_else(|| panic!("no line of anybody's: {line:?}"));
    assert_eq!(line, stamp::line(&name, number), "torn");
    (name, number)
}

#[test]
fn ten_appenders_of_whom_some_are_killed_tear_and_lose_nothing() {
    need_daemon!();
    let m = mount!();
    let mut random = Random::new();
    // Half of them write their lines in pieces.
    let pieces = |worker: usize| if worker.is_multiple_of(2) { b"1" } else { b"3" };
    let mut workers: Vec<(Actor, String, Vec<u64>)> = (0..10)
        .map(|worker| {
            let name = format!("w{worker}");
            let actor = start_appending(&m.path("f"), &name, 0, pieces(worker));
            (actor, name, Vec::new())
        })
        .collect();
    for (worker, _, _) in workers.iter().take(4) {
        std::thread::sleep(Duration::from_millis(random.below(60)));
        // SAFETY: a child that has not been waited for.
        unsafe { libc::kill(worker.pid(), libc::SIGKILL) };
    }
    for (actor, _, done) in &mut workers {
        while let Ok(words) = actor.finish() {
            let Some(number) = words.first() else { break };
            done.push(String::from_utf8_lossy(number).parse().unwrap());
        }
    }
    for (number, (actor, name, done)) in workers.iter_mut().enumerate() {
        if number < 4 {
            actor.await_end();
        } else {
            assert_eq!(done.len(), times(150, 2000), "{name} has failed");
        }
    }
    let content = m.text("f").expect("the file");
    let mut found: Vec<Vec<u64>> = vec![Vec::new(); workers.len()];
    for line in content.split_inclusive('\n') {
        let (name, number) = check_line(line);
        let worker: usize = name[1..].parse().unwrap();
        found[worker].push(number);
    }
    for ((_, name, done), mut found) in workers.iter().zip(found) {
        // A killed one may have had one more line whose write it didn't live to see return.
        if found.len() == done.len() + 1 {
            found.pop();
        }
        assert_eq!(&found, done, "{name}: in its order, each once");
    }
}

#[test]
fn a_complete_line_is_visible_when_write_has_returned() {
    need_daemon!();
    let m = mount!();
    m.save("old", "0\n");
    let mut actor = Actor::new();
    for name in ["old", "new"] {
        let mut expected = m.text(name).unwrap_or_default();
        actor.open(name, "a", &m.path(name)).unwrap();
        for number in 1..20 {
            let line = format!("{number}\n");
            actor.write(name, &line).unwrap();
            expected += &line;
            assert_content(m.read(name), expected.as_bytes(), name);
        }
    }
}

#[test]
fn an_unfinished_line_waits_for_its_newline() {
    need_daemon!();
    let m = mount!();
    m.save("f", "0\n");
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("f")).unwrap();
    let begun = Instant::now();
    actor.write("f", "1\nha").unwrap();
    let seen = m.read("f");
    // A machine that stood still for a second has shown it, and rightly so.
    if begun.elapsed() < Duration::from_secs(1) {
        assert_content(seen, b"0\n1\n", "half a line is kept back");
    }
    actor.write("f", "lf\n").unwrap();
    assert_content(m.read("f"), b"0\n1\nhalf\n", "the whole line");
}

#[test]
fn fsync_and_close_show_an_unfinished_line_at_once_and_time_does_within_two_seconds() {
    need_daemon!();
    let m = mount!();
    m.save("f", "0\n");
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("f")).unwrap();
    actor.write("f", "synced").unwrap();
    actor.fsync("f").unwrap();
    assert_content(m.read("f"), b"0\nsynced", "after fsync");
    actor.write("f", " waited").unwrap();
    eventually(Duration::from_millis(2500), "it is shown", || {
        m.text("f").as_deref() == Some("0\nsynced waited")
    });
    actor.write("f", " closed").unwrap();
    actor.close("f").unwrap();
    assert_content(m.read("f"), b"0\nsynced waited closed", "after close");
}

#[test]
fn an_open_reader_sees_the_file_grow_by_whole_lines_only() {
    need_daemon!();
    // A small file is read past the kernel's cache, where the kernel allows that.
    need_features!("direct_io_allow_mmap");
    watch_it_grow(0);
}

#[test]
fn a_large_file_grows_by_whole_lines_too() {
    need_daemon!();
    watch_it_grow(1000);
}

/// Three appenders, and a reader who has the file open all the time.
fn watch_it_grow(lines_before: u64) {
    let before: String = (0..lines_before).map(|n| stamp::line("w", n)).collect();
    let m = mount!(Mount::options().seed("f", &before));
    let workers: Vec<Actor> = (0..3)
        .map(|n| start_appending(&m.path("f"), &format!("w{n}"), 0, b"4"))
        .collect();
    let mut reader = Actor::new();
    reader.open("f", "r", &m.path("f")).unwrap();
    let mut last = before.clone().into_bytes();
    let mut grown = 0;
    let whole = lines_before as usize + 3 * times(150, 2000);
    let deadline = Instant::now() + Duration::from_secs(20);
    while last.iter().filter(|b| **b == b'\n').count() < whole {
        assert!(Instant::now() < deadline, "{} bytes", last.len());
        let now = reader.pread("f", 0, 16 << 20).unwrap();
        assert!(now.starts_with(&last), "what was there stays");
        grown += usize::from(now.len() > last.len());
        for line in String::from_utf8_lossy(&now[last.len()..]).split_inclusive('\n') {
            check_line(line);
        }
        last = now;
    }
    assert!(grown > 3, "seen to grow {grown} times");
    drop(workers);
}

#[test]
fn an_append_costs_the_line_and_not_the_file() {
    need_daemon!();
    let m = Mount::options().seed("small", "0\n");
    let m = mount!(m.seed("large", vec![b'\n'; 96 << 20]));
    let mut actor = Actor::new();
    let before = actor.stat(&m.path("large")).unwrap();
    let mut medians = Vec::new();
    for name in ["small", "large"] {
        let mut took = Vec::new();
        for _ in 0..15 {
            let begun = Instant::now();
            actor.open("f", "a", &m.path(name)).unwrap();
            actor.write("f", "a line\n").unwrap();
            actor.close("f").unwrap();
            took.push(begun.elapsed());
        }
        took.sort();
        medians.push(took[took.len() / 2]);
    }
    let most = medians[0] * 5 + Duration::from_millis(5);
    assert!(medians[1] < most, "small and large: {medians:?}");
    let after = actor.stat(&m.path("large")).unwrap();
    assert_eq!(after.size, before.size + 15 * 7);
    assert_eq!(after.ino, before.ino, "the same version, grown");
}

#[test]
fn lines_survive_the_kill_of_the_daemon() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "0\n");
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("f")).unwrap();
    actor.open("g", "a", &m.path("new")).unwrap();
    for slot in ["f", "g"] {
        actor.write(slot, "1\n").unwrap();
        actor.write(slot, "2\n").unwrap();
    }
    m.kill_daemon();
    drop(actor);
    m.remount();
    assert_content(m.read("f"), b"0\n1\n2\n", "acknowledged lines");
    assert_content(m.read("new"), b"1\n2\n", "acknowledged lines");
}

#[test]
fn a_line_of_which_only_a_part_is_on_the_disk_is_taken_back() {
    need_daemon!();
    let mut m = mount!();
    m.save("f", "0\n");
    let mut actor = Actor::new();
    actor.open("f", "a", &m.path("f")).unwrap();
    actor.write("f", "1\n").unwrap();
    actor.close("f").unwrap();
    m.unmount();
    m.set_env("COMMITFS_CRASH_AT", "append-journalled");
    m.remount();
    actor.open("f", "a", &m.path("f")).unwrap();
    actor
        .write("f", "a whole line\n")
        .expect_err("the daemon is gone");
    m.reap_daemon(Duration::from_secs(5));
    drop(actor);
    // As far as the daemon might have come.
    let mut file = std::fs::File::options()
        .append(true)
        .open(m.backing().join("f"))
        .unwrap();
    file.write_all(b"a who").unwrap();
    drop(file);
    m.clear_env();
    m.remount();
    assert_content(m.read("f"), b"0\n1\n", "whole lines");
}
