//! C2, C19. A close that has nothing to wait for is answered by the thread that takes requests; one that has, by another, and
//! nobody waits with it.

mod common;

use std::time::{Duration, Instant};

use common::{Actor, Mount, assert_content, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Saves until closes are answered at once: until the kernel knows that nothing here can be polled.
fn prepare(m: &Mount) {
    m.save("first", "first");
    std::thread::sleep(Duration::from_millis(300));
}

/// How often a worker of the daemon has slept.
fn worked(m: &Mount) -> u64 {
    let tasks = format!("/proc/{}/task", m.daemon_pid());
    let mut slept = 0;
    for task in std::fs::read_dir(tasks).expect("threads").flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or("", str::trim)
        };
        if of("Name:") == "worker" {
            slept += of("voluntary_ctxt_switches:").parse().unwrap_or(0);
        }
    }
    slept
}

#[test]
fn small_saves_wake_no_worker() {
    need_daemon!();
    need_features!("inline_flush", "supersession_events");
    let m = mount!();
    prepare(&m);
    let mut saver = Actor::new();
    for (name, others) in [("f", "new"), ("f.json", "renamed")] {
        saver.save(&m.path(name), "{\"n\": 0}").unwrap();
        let before = worked(&m);
        for n in 0..50 {
            saver
                .save(&m.path(name), format!("{{\"n\": {n}}}"))
                .unwrap();
            saver.save(&m.path(format!("{others}-{n}")), "{}").unwrap();
        }
        let times = worked(&m) - before;
        assert!(times < 20, "{name}: {times} for a hundred saves");
        assert_content(m.read(name), b"{\"n\": 49}", name);
    }
}

/// Another thread's fsync has the content, and waits for the disk.
#[test]
fn who_closes_what_is_being_synced_keeps_nobody_waiting() {
    need_daemon!();
    need_features!("inline_flush", "supersession_events");
    let m = mount!(Mount::options().env("COMMITFS_FSYNC_DELAY_MS", 3000));
    prepare(&m);
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f")).unwrap();
    writer.write("f", "text").unwrap();
    writer.dup("f", "g").unwrap();
    let mut other = writer.thread();
    writer.start("fsync", &[b"f"]);
    std::thread::sleep(Duration::from_millis(300));
    other.start("close", &[b"g"]);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    assert_content(m.read("first"), b"first", "of somebody else");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!writer.has_answered(), "the fsync was quicker");
    writer.finish().unwrap();
    other.finish().unwrap();
    writer.close("f").unwrap();
    assert_content(m.read("f"), b"text", "closed");
}

/// `epoll_ctl` asks the file whether it is ready, and holds meanwhile what a look at the descriptor waits for.
#[test]
fn a_program_that_polls_a_file_while_it_closes_another_hangs_nobody() {
    need_daemon!();
    need_features!("inline_flush", "supersession_events");
    let m = mount!(Mount::options().env("COMMITFS_FLUSH_DELAY_MS", 1000));
    prepare(&m);
    let mut program = m.live_python(
        "import os, select, sys, threading, time\n\
         poll = select.epoll()\n\
         os.write(1, b'begin\\n'); sys.stdin.readline()\n\
         read = os.open('first', os.O_RDONLY)\n\
         fd = os.open('f', os.O_WRONLY | os.O_CREAT)\n\
         os.write(fd, b'text')\n\
         thread = threading.Thread(target=os.close, args=(fd,))\n\
         thread.start(); time.sleep(0.3)\n\
         poll.register(read); thread.join()\n\
         os.write(1, b'done\\n'); sys.stdin.readline()\n",
    );
    program.expect("begin");
    program.send("");
    program.expect("done");
    eventually(SOON, "it is there", || {
        m.read("f").as_deref() == Some(b"text")
    });
    program.send("");
}

/// Of two closes the one that has begun first is answered last. Its text was half a document, or is another one by then.
#[test]
fn a_slow_close_takes_nothing_back_of_one_that_came_later() {
    need_daemon!();
    need_features!("inline_flush", "supersession_events");
    let mut m = mount!(Mount::options().env("COMMITFS_UNSURE_DELAY_MS", 1000));
    prepare(&m);
    let mut writer = Actor::new();
    writer.open("f", "w", &m.path("f.json")).unwrap();
    writer.write("f", "{\"n\": ").unwrap();
    writer.dup("f", "g").unwrap();
    let mut other = writer.thread();
    other.start("close", &[b"f"]);
    std::thread::sleep(Duration::from_millis(300));
    writer.write("g", "12}").unwrap();
    writer.close("g").unwrap();
    assert!(!other.has_answered(), "the first close was quicker");
    other.finish().unwrap();
    eventually(SOON, "it is there", || {
        m.read("f.json").as_deref() == Some(b"{\"n\": 12}")
    });
    m.kill_daemon();
    m.remount();
    assert_content(m.read("f.json"), b"{\"n\": 12}", "the daemon was killed");
    assert!(m.rejected().is_empty());
}

#[test]
fn what_is_written_in_no_order_wakes_no_worker_either() {
    need_daemon!();
    need_features!("inline_flush", "supersession_events");
    let m = mount!();
    prepare(&m);
    let mut saver = Actor::new();
    let mut save = |name: &str| {
        saver.open("f", "w", &m.path(name)).unwrap();
        saver.pwrite("f", 5, b"end").unwrap();
        saver.pwrite("f", 0, b"begin").unwrap();
        saver.close("f").unwrap();
    };
    save("f");
    let before = worked(&m);
    for n in 0..50 {
        save(&format!("f-{n}"));
    }
    let times = worked(&m) - before;
    assert!(times < 10, "{times} for fifty saves");
    assert_content(m.read("f-49"), b"beginend", "the last");
}
