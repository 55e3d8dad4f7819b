//! C10: what several processes append is whole lines, none lost, each visible when its write()
//! has returned. The failure it prevents: a metrics file to which ten workers append keeps the lines
//! of the one that closed last, or a reader that parses it while it grows meets half a line.
//!
//! Files named `*.log` are direct, so these are not.

mod common;

use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{
    Actor, Failure, Mount, Random, assert_content, assert_errno, eventually, stamp, times,
};

/// Lines of each appender.
fn lines() -> u64 {
    times(150, 10_000) as u64
}

fn start_appending(path: &Path, name: &str, from: u64, count: u64, pieces: &str) -> Actor {
    let mut actor = Actor::new();
    actor.patience(Duration::from_secs(60));
    let path = path.to_string_lossy();
    let (from, count) = (from.to_string(), count.to_string());
    let words = [&*path, name, &from, &count, pieces];
    actor.start("append-lines", &words.map(str::as_bytes));
    actor
}

/// What one appender knows of its lines, over all its lives.
#[derive(Default)]
struct Log {
    /// Those whose last write() has returned.
    done: Vec<u64>,
    /// Those under way when it ended: each may be there or not.
    doubtful: Vec<u64>,
    next: u64,
    /// The living appender, as long as nobody has waited for it.
    pid: Option<i32>,
}

impl Log {
    fn finished(&self) -> bool {
        self.next >= lines()
    }
}

/// One life of an appender, from where it stands; its answers are taken as they come, or it would
/// stop when the socket is full. What ended it, unless it has come to its end.
fn live(log: &Mutex<Log>, path: &Path, number: usize) -> Option<Failure> {
    let (name, from) = (format!("w{number}"), log.lock().unwrap().next);
    // Half of them write their lines in pieces.
    let pieces = if number.is_multiple_of(2) { "1" } else { "3" };
    let mut actor = start_appending(path, &name, from, lines() - from, pieces);
    log.lock().unwrap().pid = Some(actor.pid());
    let ended = loop {
        let answer = actor.finish();
        let mut log = log.lock().unwrap();
        match answer {
            Ok(words) if words.is_empty() => break None,
            Ok(words) => {
                let number = String::from_utf8_lossy(&words[0]).parse().unwrap();
                log.done.push(number);
                log.next = number + 1;
            }
            Err(failure) => {
                let next = log.next;
                log.doubtful.push(next);
                log.next += 1;
                break Some(failure);
            }
        }
    };
    log.lock().unwrap().pid = None;
    ended
}

/// Every line is whole, those of each appender are in their order, and none is lost.
#[track_caller]
fn check_lines(content: &str, logs: &[Mutex<Log>]) {
    let mut found: Vec<Vec<u64>> = vec![Vec::new(); logs.len()];
    for line in content.split_inclusive('\n') {
        let (name, number) = check_line(line);
        found[name[1..].parse::<usize>().unwrap()].push(number);
    }
    for (worker, (log, mut found)) in logs.iter().zip(found).enumerate() {
        let log = log.lock().unwrap();
        found.retain(|n| log.doubtful.binary_search(n).is_err());
        let lost = log.done.iter().find(|n| found.binary_search(n).is_err());
        assert_eq!(lost, None, "a line of w{worker} is lost");
        assert_eq!(found, log.done, "w{worker}: in its order, each once");
    }
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
    let m = mount!(Mount::options().limit(Duration::from_secs(1800)));
    let path = m.path("f");
    let logs: Vec<Mutex<Log>> = (0..10).map(|_| Mutex::default()).collect();
    let mut random = Random::new();
    let mut kills = 0;
    std::thread::scope(|scope| {
        for (number, log) in logs.iter().enumerate() {
            let path = &path;
            scope.spawn(move || {
                while !log.lock().unwrap().finished() {
                    if let Some(failure) = live(log, path, number) {
                        assert_eq!(failure.errno, "GONE", "no write fails");
                    }
                }
            });
        }
        // A killed one goes on, in another process, where it stood.
        while !logs.iter().all(|log| log.lock().unwrap().finished()) {
            std::thread::sleep(Duration::from_millis(random.below(times(40, 200) as u64)));
            let victim = logs[random.below(10) as usize].lock().unwrap();
            if let Some(pid) = victim.pid {
                // SAFETY: a child that has not been waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                kills += 1;
            }
        }
    });
    println!("{kills} kills");
    check_lines(&m.text("f").expect("the file"), &logs);
}

#[test]
fn ten_appenders_lose_and_tear_nothing_when_the_daemon_is_killed() {
    need_daemon!();
    let options = Mount::options().limit(Duration::from_secs(1800));
    // Whoever is held up in the middle of a line for longer than a second lets others in.
    let mut m = mount!(options.env("COMMITFS_LINE_PATIENCE_MS", 60_000));
    let logs: Vec<Mutex<Log>> = (0..10).map(|_| Mutex::default()).collect();
    let mut random = Random::new();
    for left in (0..times(3, 12)).rev() {
        let path = m.path("f");
        std::thread::scope(|scope| {
            for (number, log) in logs.iter().enumerate() {
                let path = &path;
                scope.spawn(move || {
                    if log.lock().unwrap().finished() {
                        return;
                    }
                    if let Some(failure) = live(log, path, number) {
                        assert!(left > 0, "nothing was killed: {failure:?}");
                    }
                });
            }
            if left > 0 {
                std::thread::sleep(Duration::from_millis(random.below(times(150, 4000) as u64)));
                // The dead mount stays until all have noticed: they must not go on below it.
                m.strike_daemon();
            }
        });
        if left > 0 {
            m.kill_daemon();
            m.remount();
        }
        check_lines(&m.text("f").unwrap_or_default(), &logs);
    }
    assert!(logs.iter().all(|log| log.lock().unwrap().finished()));
}

#[test]
fn of_several_that_create_the_file_at_once_everyone_appends_visibly() {
    need_daemon!();
    let m = mount!(Mount::options().limit(Duration::from_secs(300)));
    let mut actors: Vec<Actor> = (0..8).map(|_| Actor::new()).collect();
    for round in 0..times(60, 1000) {
        let path = m.path(format!("f{round}"));
        for actor in &mut actors {
            let path = path.to_string_lossy();
            let line = format!("{}\n", actor.pid());
            actor.start("open", &[b"f", b"a", path.as_bytes()]);
            actor.start("write", &[b"f", line.as_bytes()]);
        }
        let mut expected: Vec<String> = Vec::new();
        for actor in &mut actors {
            actor.finish().expect("opened");
            actor.finish().expect("written");
            expected.push(actor.pid().to_string());
        }
        let text = m.text(format!("f{round}")).unwrap_or_default();
        let mut found: Vec<&str> = text.lines().collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "round {round}, before anybody has closed");
        for actor in &mut actors {
            actor.close("f").unwrap();
        }
        assert_eq!(m.text(format!("f{round}")), Some(text), "after the closes");
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
fn a_carriage_return_ends_a_line_too() {
    need_daemon!();
    let m = mount!();
    let mut actor = Actor::new();
    actor.open("f", "w", &m.path("bar.txt")).unwrap();
    let mut shown = String::new();
    for percent in [10, 20, 30] {
        let bar = format!("{percent} %\r");
        actor.write("f", &bar).unwrap();
        shown += &bar;
        assert_content(m.read("bar.txt"), shown.as_bytes(), "a progress bar");
    }
    actor.write("f", "\r40 %").unwrap();
    shown += "\r";
    assert_content(
        m.read("bar.txt"),
        shown.as_bytes(),
        "one that returns first",
    );
    actor.kill(libc::SIGKILL);
    assert_content(m.read("bar.txt"), shown.as_bytes(), "after the kill");
}

/// Rows of a table, as many as make at least `len` bytes.
fn rows(len: usize) -> String {
    let row = |n| format!("{n},{}\n", n * 7);
    let mut rows = String::new();
    while rows.len() < len {
        rows += &row(rows.len());
    }
    rows
}

#[test]
fn a_table_in_blocks_is_whole_at_its_close_and_gone_with_its_writer() {
    need_daemon!();
    let m = mount!();
    let table = rows(20_000);
    let (block, rest) = table.split_at(8191);
    assert!(!block.ends_with('\n'));
    let mut writer = Actor::new();
    for name in ["t.csv", "t.tsv"] {
        writer.open("f", "w", &m.path(name)).unwrap();
        writer.write("f", block).unwrap();
        assert!(!m.exists(name), "half a table");
        writer.write("f", rest).unwrap();
        assert!(!m.exists(name), "a table that is not closed");
        writer.close("f").unwrap();
        assert_content(m.read(name), table.as_bytes(), name);
    }
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("killed.csv")).unwrap();
    writer.write("f", block).unwrap();
    writer.kill(libc::SIGKILL);
    assert!(!m.exists("killed.csv"));
    m.await_rejected("killed.csv", block.as_bytes());

    // One whose first lines were written alone.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("header.csv")).unwrap();
    writer.write("f", "a,b\n").unwrap();
    assert_content(m.read("header.csv"), b"a,b\n", "a line");
    writer.write("f", block).unwrap();
    assert_content(m.read("header.csv"), b"a,b\n", "and half a table");
    let mut copy = writer.fork();
    copy.write("f", rest).unwrap();
    copy.close("f").unwrap();
    assert_content(m.read("header.csv"), b"a,b\n", "still open");
    writer.close("f").unwrap();
    let all = format!("a,b\n{table}");
    assert_content(m.read("header.csv"), all.as_bytes(), "whole");

    // Lines, however many at once, are lines.
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("lines.csv")).unwrap();
    writer.write("f", &table).unwrap();
    assert_content(m.read("lines.csv"), table.as_bytes(), "whole lines");
    writer.write("f", "1,2\n3,").unwrap();
    writer.kill(libc::SIGKILL);
    let all = format!("{table}1,2\n");
    assert_content(
        m.read("lines.csv"),
        all.as_bytes(),
        "lines of a killed writer",
    );
}

#[test]
fn lines_of_json_are_seen_as_they_come_and_survive_a_kill() {
    need_daemon!();
    let m = mount!();
    let line = |n: u32| format!("{{\"iter\": {n}, \"loss\": {}}}\n", f64::from(n) / 3.0);
    for (how, flags, reopens) in [
        ("keep", "a", false),
        ("new", "w", false),
        ("each", "a", true),
    ] {
        let name = format!("{how}.json");
        let mut writer = Actor::new();
        let mut expected = String::new();
        for n in 0..20 {
            if n == 0 || reopens {
                writer.open("f", flags, &m.path(&name)).unwrap();
            }
            writer.write("f", line(n)).unwrap();
            expected += &line(n);
            // One line alone is a document.
            if n >= 2 {
                assert_content(m.read(&name), expected.as_bytes(), how);
            } else if n == 0 {
                assert!(!m.exists(&name), "{how}: a document that is not closed");
            }
            if reopens {
                writer.close("f").unwrap();
                assert_content(m.read(&name), expected.as_bytes(), how);
            }
        }
        if reopens {
            writer.open("f", flags, &m.path(&name)).unwrap();
        }
        writer.write("f", "{\"iter\": ").unwrap();
        assert_content(m.read(&name), expected.as_bytes(), "half a line");
        writer.kill(libc::SIGKILL);
        assert_content(m.read(&name), expected.as_bytes(), "after the kill");
    }
    assert_eq!(m.aborts("guard"), 0);
}

#[test]
fn what_is_no_json_behind_lines_of_json_is_refused_at_the_close() {
    need_daemon!();
    let m = mount!();
    let lines = "{\"a\": 1}\n{\"a\": 2}\n";
    m.save("m.json", lines);
    let mut writer = Actor::new();
    for (bad, cut_off) in [("{\"a\": ", true), ("[1, 2\n", true), ("no JSON\n", false)] {
        writer.open("f", "a", &m.path("m.json")).unwrap();
        writer.write("f", bad).unwrap();
        assert_content(m.read("m.json"), lines.as_bytes(), bad);
        assert_errno(writer.close("f"), "EBADMSG");
        assert_content(m.read("m.json"), lines.as_bytes(), bad);
        let all = format!("{lines}{bad}");
        m.await_rejected("m.json", all.as_bytes());
        // As a whole it is somebody's will, unless it was cut off.
        let whole = writer.save(&m.path("new.json"), &all);
        assert_eq!(whole.is_err(), cut_off, "{bad}");
    }
    // A value without a line feed is whole; so is one that goes over several lines.
    writer.open("f", "a", &m.path("m.json")).unwrap();
    writer.write("f", "[3]").unwrap();
    writer.close("f").unwrap();
    let all = format!("{lines}[3]");
    assert_content(m.read("m.json"), all.as_bytes(), "without a line feed");
    m.save("n.json", lines);
    writer.open("f", "a", &m.path("n.json")).unwrap();
    writer.write("f", "{\n  \"a\": 3\n").unwrap();
    assert_content(m.read("n.json"), lines.as_bytes(), "half of it");
    writer.write("f", "}\n").unwrap();
    writer.close("f").unwrap();
    let all = format!("{lines}{{\n  \"a\": 3\n}}\n");
    assert_content(m.read("n.json"), all.as_bytes(), "whole");
}

#[test]
fn a_json_document_is_seen_at_its_close_however_its_lines_are_written() {
    need_daemon!();
    let m = mount!();
    let mut writer = Actor::new();
    let document = ["{\n", "  \"a\": 1,\n", "  \"b\": 2\n", "}\n"];
    for flags in ["w", "a"] {
        let name = format!("{flags}.json");
        writer.open("f", flags, &m.path(&name)).unwrap();
        for part in document {
            writer.write("f", part).unwrap();
            assert!(!m.exists(&name), "{part:?}");
        }
        writer.close("f").unwrap();
        assert_content(m.read(&name), document.concat().as_bytes(), flags);
    }
}

#[test]
fn several_that_append_lines_of_json_keep_each_others_beside_an_editor() {
    let m = mount!();
    let mut lines = "{\"n\": 0}\n{\"n\": 1}\n".to_owned();
    m.save("m.json", &lines);
    let mut actors: Vec<Actor> = (0..4).map(|_| Actor::new()).collect();
    for actor in &mut actors {
        actor.open("f", "a", &m.path("m.json")).unwrap();
    }
    for n in 2..40 {
        let line = format!("{{\"n\": {n}}}\n");
        actors[n % 4].write("f", &line).unwrap();
        lines += &line;
    }
    assert_content(m.read("m.json"), lines.as_bytes(), "lines of four");
    let mut editor = Actor::new();
    editor.open("f", "r+", &m.path("m.json")).unwrap();
    editor.pwrite("f", 0, b"{\"n\": 7}").unwrap();
    actors[0].write("f", "{\"n\": 40}\n").unwrap();
    editor.close("f").unwrap();
    let all = format!("{{\"n\": 7}}{}{{\"n\": 40}}\n", &lines[8..]);
    assert_content(m.read("m.json"), all.as_bytes(), "beside an editor");
}

#[test]
fn by_rule_each_run_takes_the_place_of_the_one_before_by_its_first_line() {
    need_daemon!();
    let rule = "[[rule]]\nglob = \"*.progress\"\nrecord = \"stream\"\n";
    let m = mount!(Mount::options().rules(rule));
    for run in 0..3 {
        let before = m.read("x.progress");
        let mut writer = Actor::new();
        writer.open("f", "w", &m.path("x.progress")).unwrap();
        writer.write("f", format!("run {run}")).unwrap();
        assert_eq!(m.read("x.progress"), before, "before its first line");
        writer.write("f", ": begun\n").unwrap();
        let first = format!("run {run}: begun\n");
        assert_content(m.read("x.progress"), first.as_bytes(), "the first line");
        writer.write("f", "more\nha").unwrap();
        writer.kill(libc::SIGKILL);
        let all = format!("{first}more\n");
        assert_content(m.read("x.progress"), all.as_bytes(), "after the kill");
    }
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("x.progress")).unwrap();
    writer.write("f", "no line").unwrap();
    writer.kill(libc::SIGKILL);
    assert_content(
        m.read("x.progress"),
        b"run 2: begun\nmore\n",
        "killed before a line",
    );
}

#[test]
fn what_a_mapping_of_an_appended_file_changes_is_changed_in_place() {
    // Without it nothing is mapped that isn't cached.
    need_features!("direct_io_allow_mmap");
    let m = mount!();
    let mut long = "first line\n".repeat(2000).into_bytes();
    m.save("g", &long);
    let mut mapper = Actor::new();
    mapper.open("g", "a+", &m.path("g")).unwrap();
    mapper.mmap("g", "map", long.len(), "rw").unwrap();
    for page in [0, 3, 5] {
        mapper.map_write("map", page * 4096, b"PAGE").unwrap();
        long[page * 4096..page * 4096 + 4].copy_from_slice(b"PAGE");
    }
    mapper.munmap("map").unwrap();
    mapper.close("g").unwrap();
    eventually(Duration::from_secs(2), "all pages are committed", || {
        m.read("g").as_deref() == Some(long.as_slice())
    });
    for among_others in [false, true] {
        m.save("f", "first line\n");
        let (mut mapper, mut other) = (Actor::new(), Actor::new());
        if among_others {
            other.open("f", "a", &m.path("f")).unwrap();
        }
        mapper.open("f", "a+", &m.path("f")).unwrap();
        mapper.mmap("f", "map", 11, "rw").unwrap();
        mapper.map_write("map", 0, b"FIRST").unwrap();
        mapper.munmap("map").unwrap();
        mapper.close("f").unwrap();
        if among_others {
            other.close("f").unwrap();
        }
        eventually(Duration::from_secs(2), "it is committed", || {
            m.text("f").as_deref() == Some("FIRST line\n")
        });
    }
}

#[test]
fn appenders_whose_numbers_the_daemon_cannot_know_keep_each_others_lines() {
    need_root!();
    need_daemon!();
    // The daemon is in a pid namespace that they are not in.
    let m = mount!();
    let dir = m.scratch("inner");
    std::fs::create_dir(&dir).unwrap();
    let script = r#"
        timeout 30 unshare --pid --fork --kill-child "$0" mount -f "$1" > /dev/null 2>&1 &
        for n in $(seq 100); do mountpoint -q "$1" && break; sleep 0.05; done
        cd "$1" || exit 1
        echo 0 > f
        exec 8>> f 9>> f
        echo 1 >&8; echo 2 >&9; echo 3 >> f; cat f
        exec 8>&- 9>&-
        echo then; cat f
        cd / && umount "$1" || umount -l "$1"
    "#;
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", script, common::run::binary()]).arg(&dir);
    let seen = common::run(&mut bash, Duration::from_secs(60));
    assert_eq!(seen.out, "0\n1\n2\n3\nthen\n0\n1\n2\n3\n", "{seen:?}");
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
    // Hole H3: without it, reads come from pages that may show zeros, as those of a mapping may.
    need_features!("direct_io_allow_mmap");
    watch_it_grow(1000);
}

/// Three appenders, and a reader who has the file open all the time.
fn watch_it_grow(lines_before: u64) {
    let before: String = (0..lines_before).map(|n| stamp::line("w", n)).collect();
    let options = Mount::options().limit(Duration::from_secs(600));
    // Whoever is held up in the middle of a line for longer than a second lets others in.
    let options = options.env("COMMITFS_LINE_PATIENCE_MS", 60_000);
    let m = mount!(options.seed("f", &before));
    let count = times(600, 2000);
    let path = m.path("f");
    let mut reader = Actor::new();
    reader.open("f", "r", &path).unwrap();
    std::thread::scope(|scope| {
        for n in 0..3 {
            let mut worker = start_appending(&path, &format!("w{n}"), 0, count as u64, "4");
            scope.spawn(move || while worker.finish().is_ok_and(|words| !words.is_empty()) {});
        }
        let mut last = before.into_bytes();
        let mut grown = 0;
        let whole = lines_before as usize + 3 * count;
        let deadline = Instant::now() + Duration::from_secs(times(20, 120) as u64);
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
    });
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

/// The close of another descriptor finds a file that has no version yet, as the write does; only one of them gives it one.
#[test]
fn a_new_log_of_which_a_descriptor_is_closed_while_its_first_line_is_written_loses_nothing() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_FIRST_VERSION_DELAY_MS", 200));
    let mut one = Actor::new();
    one.open("log", "a", &m.path("log")).unwrap();
    one.dup("log", "copy").unwrap();
    let mut two = one.thread();
    one.start("write", &[b"log", b"first\n"]);
    std::thread::sleep(Duration::from_millis(50));
    two.close("copy").expect("a close");
    one.finish().expect("a line");
    one.write("log", "second\n").unwrap();
    assert_content(m.read("log"), b"first\nsecond\n", "both lines");
}

#[test]
fn a_newline_that_a_new_log_gets_through_a_mapping_stays_where_it_was_put() {
    need_daemon!();
    need_features!("direct_io_allow_mmap");
    let m = mount!();
    for (flags, name) in [("a+", "log"), ("w+", "log.txt"), ("a+", "direct.log")] {
        let mut writer = Actor::new();
        writer.open("f", flags, &m.path(name)).unwrap();
        writer.write("f", "one two").unwrap();
        writer.mmap("f", "m", 4096, "rw").unwrap();
        writer.map_write("m", 3, b"\n").unwrap();
        writer.munmap("m").unwrap();
        writer.close("f").unwrap();
        assert_content(m.read(name), b"one\ntwo", name);
    }
}

/// The kernel writes pages through any description of the file that is mapped to be written.
#[test]
fn pages_of_a_direct_file_have_their_places_though_others_append_to_it_and_map_it() {
    need_daemon!();
    let m = mount!();
    let path = m.path("direct.log");
    let (mut appender, mut other) = (Actor::new(), Actor::new());
    other.open("f", "w+", &path).unwrap();
    other.write("f", "one two\n").unwrap();
    appender.open("f", "a+", &path).unwrap();
    appender.write("f", "three\n").unwrap();
    other.mmap("f", "m", 4096, "rw").unwrap();
    appender.mmap("f", "m", 4096, "rw").unwrap();
    other.map_write("m", 0, b"O").unwrap();
    other.munmap("m").unwrap();
    other.close("f").unwrap();
    appender.close("f").unwrap();
    assert_content(m.read("direct.log"), b"One two\nthree\n", "in place");
}

#[test]
fn lines_that_the_program_of_a_new_text_appends_by_its_name_show_at_once_and_survive_its_kill() {
    need_daemon!();
    let m = mount!();
    let path = m.path("out.txt");
    let mut writer = Actor::new();
    writer.open("f", "w", &path).unwrap();
    writer.write("f", "begun, ").unwrap();
    let mut step = writer.fork();
    step.open("a", "a", &path).unwrap();
    assert!(!m.exists("out.txt"), "no line yet");
    step.write("a", "and ended\nhalf").unwrap();
    assert_content(m.read("out.txt"), b"begun, and ended\n", "the step's line");
    step.write("a", " a line\n").unwrap();
    step.close("a").unwrap();
    writer.kill(libc::SIGKILL);
    step.kill(libc::SIGKILL);
    assert_content(
        m.read("out.txt"),
        b"begun, and ended\nhalf a line\n",
        "after the kill",
    );
}

/// A commit that waited for others' lines would stand behind what programs begin after the close.
#[test]
fn an_edit_that_is_closed_while_lines_are_added_to_another_file_is_committed_at_once() {
    need_daemon!();
    let m = mount!(Mount::options().env("COMMITFS_APPEND_DELAY_MS", 1500));
    m.save("grid", "rows");
    m.save("log", "0\n");
    let (mut editor, mut logger) = (Actor::new(), Actor::new());
    editor.open("f", "r+", &m.path("grid")).unwrap();
    editor.pwrite("f", 0, b"ROWS").unwrap();
    logger.open("f", "a", &m.path("log")).unwrap();
    logger.start("write", &[b"f", b"1\n"]);
    std::thread::sleep(Duration::from_millis(300));
    editor.close("f").unwrap();
    let version = m.version("grid").unwrap();
    assert!(!logger.has_answered(), "the line was quicker");
    assert_content(m.read("grid"), b"ROWS", &format!("version {version}"));
    logger.finish().unwrap();
    assert_content(m.read("log"), b"0\n1\n", "the line");
}

/// The close of another descriptor gives a log its first version, or has it go on on a copy.
#[test]
fn what_is_written_while_another_descriptor_is_closed_is_not_overwritten() {
    need_daemon!();
    for (name, before, parts) in [
        ("log", "", ["fir", "st\n"]),
        ("log", "", ["one", "two"]),
        ("log.json", "1\n2\n", ["{\"a\": ", "3}\n"]),
    ] {
        let mut options = Mount::options().env("COMMITFS_FIRST_LINE_DELAY_MS", 500);
        if !before.is_empty() {
            options = options.seed(name, before);
        }
        let m = mount!(options);
        let mut one = Actor::new();
        one.open("log", "a", &m.path(name)).unwrap();
        one.dup("log", "copy").unwrap();
        one.write("log", parts[0]).unwrap();
        let mut two = one.thread();
        two.start("close", &[b"copy"]);
        std::thread::sleep(Duration::from_millis(150));
        one.write("log", parts[1]).unwrap();
        two.finish().expect("a close");
        one.close("log").unwrap();
        let whole = [before, parts[0], parts[1]].concat();
        assert_content(m.read(name), whole.as_bytes(), name);
    }
}

#[test]
fn what_is_cut_or_set_aside_while_a_log_gets_its_first_version_is_a_version_of_its_own() {
    need_daemon!();
    for (operation, numbers, whole) in [
        ("ftruncate", &[3][..], &b"fir"[..]),
        ("fallocate", &[0, 0, 8], b"first\0\0\0"),
    ] {
        let m = mount!(Mount::options().env("COMMITFS_FIRST_VERSION_DELAY_MS", 500));
        let mut one = Actor::new();
        one.open("log", "a", &m.path("log")).unwrap();
        one.dup("log", "copy").unwrap();
        one.write("log", "first").unwrap();
        let mut two = one.thread();
        two.start("close", &[b"copy"]);
        std::thread::sleep(Duration::from_millis(150));
        one.on_slot(operation, "log", numbers).unwrap();
        two.finish().expect("a close");
        assert_content(m.read("log"), b"first", operation);
        one.close("log").unwrap();
        assert_content(m.read("log"), whole, operation);
    }
}

/// The kernel tells a description of the log from another that is opened in the same way by nothing; but who has just been
/// started by the one who cut it can have inherited no other.
#[test]
fn a_child_of_who_has_cut_a_log_sees_what_its_parent_has_there_also_beside_others_who_log() {
    need_daemon!();
    let m = mount!();
    m.save("log", "one\n");
    let mut one = Actor::new();
    one.open("f", "a+", &m.path("log")).unwrap();
    one.write("f", "two\n").unwrap();
    one.ftruncate("f", 12).unwrap();
    one.write("f", "three\n").unwrap();
    let mut other = Actor::new();
    other.open("f", "a+", &m.path("log")).unwrap();
    let mut child = one.fork();
    let cut = b"one\ntwo\n\0\0\0\0three\n";
    assert_content(child.cat(&m.path("log")).ok(), cut, "the child");
    assert_content(other.cat(&m.path("log")).ok(), b"one\ntwo\n", "the other");
}

#[test]
fn appenders_that_are_seen_at_their_close_keep_each_others_lines() {
    let rules = "[[rule]]\nglob = \"*.o\"\nrecord = \"close\"\n";
    let m = mount!(Mount::options().rules(rules).seed("f.o", "1\n"));
    let (mut one, mut other) = (Actor::new(), Actor::new());
    for (name, actor, lines) in [
        ("one", &mut one, "2\n3\n"),
        ("other", &mut other, "another\n"),
    ] {
        actor.open(name, "a", &m.path("f.o")).unwrap();
        actor.write(name, lines).unwrap();
    }
    m.sh("echo third >> f.o").ok();
    other.close("other").unwrap();
    one.close("one").unwrap();
    assert_content(m.read("f.o"), b"1\n2\n3\nanother\nthird\n", "all of them");
}
