//! C8. A program may watch a file itself: a dashboard its metrics, a server its configuration. Its
//! watch stays with the version it was placed on, which a commit replaces; it has to hear of that
//! commit and of every later one, and those who watch the directory must not hear of anything else.
//! Telling them must cost nobody anything: no hang when the daemon is killed, no version kept on
//! disk, no change to those who have the old version open.
//!
//! On the plain directory the tests of events pass: programs rewrite in place there.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Actor, Mount, Random, alive, assert_content, eventually, stamped, times};

/// An inotify watch. It only looks, so it may be in the test process.
struct Watch(File);

impl Watch {
    #[track_caller]
    fn on(path: &Path, mask: u32) -> Watch {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the path is NUL-terminated, and the descriptor is nobody else's.
        unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            assert!(fd >= 0, "inotify_init1");
            let file = File::from_raw_fd(fd);
            let added = libc::inotify_add_watch(file.as_raw_fd(), path.as_ptr(), mask);
            assert!(added > 0, "{path:?} can't be watched");
            Watch(file)
        }
    }

    /// What has happened since the last call.
    fn events(&mut self) -> Vec<u32> {
        let mut buffer = [0; 16 << 10];
        let mut masks = Vec::new();
        while let Ok(length) = self.0.read(&mut buffer) {
            let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("four"));
            let mut at = 0;
            while at < length {
                masks.push(word(at + 4));
                at += 16 + word(at + 12) as usize;
            }
        }
        masks
    }

    #[track_caller]
    fn hears(&mut self, what: &str) {
        eventually(Duration::from_secs(2), what, || !self.events().is_empty());
    }
}

const ALL: u32 = libc::IN_ALL_EVENTS;

/// The daemon's watch helper.
#[track_caller]
fn watch_helper(m: &Mount) -> i32 {
    let mut found = Vec::new();
    eventually(
        Duration::from_secs(5),
        "the daemon has a watch helper",
        || {
            found = watch_helpers(m);
            !found.is_empty()
        },
    );
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn watch_helpers(m: &Mount) -> Vec<i32> {
    let daemon = m.daemon_pid();
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).expect("a daemon");
    let children = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("children")).ok()?;
        let pids = text.split_whitespace().map(|pid| pid.parse().ok());
        pids.collect::<Option<Vec<i32>>>()
    });
    // An ordinary user's daemon may have fusermount3 still beside it.
    let is_watch_helper = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"commitfs-watch"))
    };
    children.flatten().filter(is_watch_helper).collect()
}

fn feature(m: &Mount) -> (bool, String) {
    let status = m.status();
    let features = status["features"].as_array().expect("a list");
    let ours = features.iter().find(|f| f["name"] == "supersession_events");
    let ours = ours.expect("it is listed");
    (
        ours["on"].as_bool().expect("a bool"),
        ours["why"].as_str().expect("a text").to_owned(),
    )
}

#[test]
fn a_watcher_of_a_file_hears_of_every_commit() {
    need_features!("supersession_events");
    let m = mount!();
    m.save("f", "0");
    let masks = [ALL, libc::IN_MODIFY, libc::IN_CLOSE_WRITE];
    let mut watches = masks.map(|mask| (mask, Watch::on(&m.path("f"), mask)));
    for round in 1..=5 {
        m.save("f", format!("{round}"));
        for (mask, watch) in &mut watches {
            watch.hears(&format!("mask {mask:#x}, commit {round}"));
        }
        assert_content(m.read("f"), format!("{round}").as_bytes(), "once told");
        std::thread::sleep(Duration::from_millis(50));
        for (_, watch) in &mut watches {
            watch.events();
        }
    }
}

#[test]
fn a_watcher_of_a_document_hears_of_every_patch_though_nobody_reads_it() {
    need_features!("supersession_events");
    let m = mount!();
    m.save("s.json", r#"{"n": 0}"#);
    let patch = || {
        m.python(
            "import os\n\
             patch = b'[{\"op\": \"increment\", \"path\": \"/n\", \"value\": 1}]'\n\
             os.setxattr('s.json', 'user.commitfs.json.patch', patch)",
        )
        .ok();
    };
    patch();
    let masks = [libc::IN_MODIFY, libc::IN_CLOSE_WRITE];
    let mut watches = masks.map(|mask| (mask, Watch::on(&m.path("s.json"), mask)));
    for round in 1..=3 {
        patch();
        for (mask, watch) in &mut watches {
            watch.hears(&format!("mask {mask:#x}, patch {round}"));
        }
        std::thread::sleep(Duration::from_millis(50));
        for (_, watch) in &mut watches {
            watch.events();
        }
    }
}

#[test]
fn a_watcher_of_an_older_version_hears_of_appended_records() {
    need_features!("supersession_events");
    let m = mount!();
    m.save("f.jsonl", "0\n");
    let mut watch = Watch::on(&m.path("f.jsonl"), ALL);
    m.save("f.jsonl", "1\n");
    watch.hears("the commit");
    let mut appender = Actor::new();
    appender.open("f", "a", &m.path("f.jsonl")).unwrap();
    for round in 2..=4 {
        std::thread::sleep(Duration::from_millis(50));
        watch.events();
        appender.write("f", format!("{round}\n")).unwrap();
        watch.hears("a record");
    }
}

#[test]
fn a_watcher_of_a_program_hears_of_every_commit() {
    need_features!("supersession_events");
    use std::os::unix::fs::PermissionsExt;
    let m = mount!(Mount::options().seed("script", "#!/bin/sh\n"));
    std::fs::set_permissions(m.path("script"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut watch = Watch::on(&m.path("script"), ALL);
    for round in 1..=3 {
        m.save("script", format!("#!/bin/sh\nexit {round}\n"));
        watch.hears("a program's commit");
        let run = std::process::Command::new(m.path("script")).status();
        assert_eq!(run.expect("it can be run").code(), Some(round));
        std::thread::sleep(Duration::from_millis(50));
        watch.events();
    }
}

#[test]
fn a_watcher_of_a_file_hears_of_its_replacement_by_rename() {
    let m = mount!();
    m.save("f", "0");
    let mut actor = Actor::new();
    for round in 1..=3 {
        let mut watch = Watch::on(&m.path("f"), ALL);
        let path = m.path("f");
        let text = format!("{round}");
        actor
            .ask("replace", &[path.as_os_str().as_bytes(), text.as_bytes()])
            .unwrap();
        watch.hears("a replacement");
    }
}

#[test]
fn a_watcher_of_the_directory_hears_of_each_commit_once_and_of_nothing_else() {
    need_features!("supersession_events");
    let m = mount!();
    m.save("f", "0");
    let mut file = Watch::on(&m.path("f"), ALL);
    let mut directory = Watch::on(m.mountpoint(), ALL);
    for round in 1..=5 {
        m.save("f", format!("{round}"));
        file.hears("a commit");
        std::thread::sleep(Duration::from_millis(50));
    }
    let heard = directory.events();
    let count = |mask: u32| heard.iter().filter(|m| **m & mask != 0).count();
    assert_eq!(count(libc::IN_CLOSE_WRITE), 5, "{heard:x?}");
    let moved = libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
    let gone = libc::IN_DELETE | libc::IN_DELETE_SELF | libc::IN_IGNORED;
    assert_eq!(count(moved | gone | libc::IN_CREATE), 0, "{heard:x?}");
    assert_eq!(count(libc::IN_ATTRIB), 0, "{heard:x?}");
}

#[test]
fn an_open_version_stays_as_it_was_while_its_watchers_are_told() {
    need_features!("supersession_events");
    need_daemon!();
    let m = mount!();
    m.save("f", stamped(1, 5_000));
    let mut reader = File::open(m.path("f")).unwrap();
    let describe = |file: &File| {
        let s = file.metadata().unwrap();
        (s.ino(), s.len(), s.mode(), s.mtime(), s.mtime_nsec())
    };
    let before = describe(&reader);
    let mut watch = Watch::on(&m.path("f"), ALL);
    for round in 2..=4 {
        m.save("f", stamped(round, 500));
        watch.hears("a commit");
        std::thread::sleep(Duration::from_millis(50));
        watch.events();
        assert_eq!(describe(&reader), before);
    }
    let mut content = Vec::new();
    reader.read_to_end(&mut content).unwrap();
    assert_content(Some(content), &stamped(1, 5_000), "the old version");
}

#[test]
fn versions_that_were_told_of_are_forgotten() {
    need_features!("supersession_events");
    need_daemon!();
    let m = mount!();
    m.save("f", "0");
    let held = || {
        let held = std::fs::read_dir(format!("/proc/{}/fd", m.daemon_pid()));
        held.expect("a daemon").count()
    };
    let before = held();
    for round in 1..=40 {
        let reader = File::open(m.path("f")).unwrap();
        m.save("f", format!("{round}"));
        std::thread::sleep(Duration::from_millis(30));
        drop(reader);
    }
    eventually(Duration::from_secs(5), "no version is held", || {
        held() < before + 10
    });
}

#[test]
fn a_daemon_killed_among_creators_writers_and_watchers_leaves_nobody_hanging() {
    need_features!("supersession_events");
    need_daemon!();
    let mut random = Random::new();
    let mut m = mount!(Mount::options().limit(Duration::from_secs(3000)));
    let ways = ["rewrite", "rewrite", "new", "replace"];
    for round in 0..times(30, 300) {
        for number in 0..ways.len() {
            m.save(format!("file-{number}"), stamped(1, 2_000));
        }
        let mut writers: Vec<Actor> = ways.iter().map(|_| Actor::new()).collect();
        for (number, writer) in writers.iter_mut().enumerate() {
            let path = m.path(format!("file-{number}"));
            let seed = random.below(1 << 40).to_string();
            let args: [&[u8]; 5] = [
                ways[number].as_bytes(),
                path.as_os_str().as_bytes(),
                b"2",
                b"2000",
                seed.as_bytes(),
            ];
            writer.start("churn", &args);
        }
        let mut watches = Vec::new();
        for _ in 0..5 {
            watches.push(Watch::on(&m.path("file-0"), ALL));
            watches.push(Watch::on(&m.path("file-1"), ALL));
            std::thread::sleep(Duration::from_micros(random.below(15_000)));
        }
        let told = watch_helper(&m);
        let struck = Instant::now();
        m.strike_daemon();
        for writer in &mut writers {
            writer.patience(Duration::from_secs(2));
            while writer.finish().is_ok() {}
        }
        eventually(Duration::from_secs(2), "the watch helper has ended", || {
            !alive(told)
        });
        let took = struck.elapsed();
        assert!(took < Duration::from_secs(3), "kill {round}: {took:?}");
        drop(watches);
        m.kill_daemon();
        m.remount();
    }
}

#[test]
fn the_watch_helper_ends_with_its_daemon() {
    need_features!("supersession_events");
    need_daemon!();
    let mut m = mount!();
    for killed in [false, true] {
        let pid = watch_helper(&m);
        assert!(alive(pid));
        if killed {
            m.kill_daemon();
        } else {
            m.unmount();
        }
        eventually(Duration::from_secs(2), "the watch helper has ended", || {
            !alive(pid)
        });
        m.remount();
    }
}

#[test]
fn without_its_watch_helper_a_daemon_goes_on_and_says_so() {
    need_features!("supersession_events");
    need_daemon!();
    let mut m = mount!();
    assert_eq!(feature(&m), (true, String::new()));
    m.save("f", "0");
    // SAFETY: sends a signal to a process that its parent has not waited for.
    unsafe { libc::kill(watch_helper(&m), libc::SIGKILL) };
    let _watch = Watch::on(&m.path("f"), ALL);
    for round in 1..=10 {
        m.save("f", format!("{round}"));
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_content(m.read("f"), b"10", "saving goes on");
    let (on, why) = feature(&m);
    assert!(!on && why.contains("watch helper is gone"), "{why}");
    assert_eq!(m.log().matches("the watch helper is gone").count(), 1);
    m.unmount();
}

#[test]
fn the_names_for_the_watch_helper_are_for_nobody_else() {
    need_daemon!();
    let m = mount!();
    m.save("f", "0");
    let reader = File::open(m.path("f")).unwrap();
    let name = format!(
        ".commitfs/version-{:x}-ffff",
        reader.metadata().unwrap().ino()
    );
    assert!(!m.exists(name));
}
