//! A 2 KiB save must not wait for another file: not for a gigabyte that is being committed, not
//! for somebody's slow fsync. The same load on the plain directory is measured beside it, so that
//! what the disk itself costs is not counted; only what we add is. Runs alone.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use common::{Actor, Mount, eventually, times};

/// Measurements disturb each other. (nextest gives each test a process, and runs them singly.)
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

const ALLOWED: Duration = Duration::from_millis(5);

/// Asks for times, and gives them sorted, in microseconds.
fn timed(operation: &str, path: &Path, words: &[&str]) -> Vec<u64> {
    let mut actor = Actor::new();
    actor.patience(Duration::from_secs(120));
    let mut args = vec![path.as_os_str().as_encoded_bytes()];
    args.extend(words.iter().map(|word| word.as_bytes()));
    let answer = actor.ask(operation, &args).expect("it works");
    let number = |word: &Vec<u8>| String::from_utf8_lossy(word).parse().expect("a number");
    let mut all: Vec<u64> = answer.iter().map(number).collect();
    all.sort_unstable();
    all
}

/// The 99th percentile of `count` saves of 2 KiB, one every two milliseconds.
fn p99(directory: &Path, count: usize) -> Duration {
    let count = count.to_string();
    let all = timed(
        "timed-saves",
        &directory.join("small"),
        &[&count, "2048", "2000"],
    );
    Duration::from_micros(all[all.len() * 99 / 100])
}

/// The same, while another process writes `size` bytes again and again.
fn p99_beside(directory: &Path, size: u64, fsync: bool) -> Duration {
    let (stop, started) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut big = Actor::new();
            big.patience(Duration::from_secs(120));
            while !stop.load(Ordering::Relaxed) {
                big.open("f", "w", &directory.join("big")).unwrap();
                started.store(true, Ordering::Relaxed);
                assert_eq!(big.fill("f", size, 1 << 20, b'x'), Ok(size));
                if fsync {
                    big.fsync("f").unwrap();
                }
                big.close("f").unwrap();
            }
        });
        while !started.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let result = p99(directory, times(800, 4_000));
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn compare(m: &Mount, size: u64, fsync: bool) {
    let plain = m.scratch("plain");
    std::fs::create_dir_all(&plain).unwrap();
    let alone = p99(m.mountpoint(), 300);
    // A loaded machine can spoil one measurement; it cannot spoil three and leave us to blame.
    let mut added = Duration::MAX;
    for _ in 0..3 {
        let without = p99_beside(&plain, size, fsync);
        let with = p99_beside(m.mountpoint(), size, fsync);
        added = with.saturating_sub(without.max(alone));
        println!("p99: alone {alone:?}, beside it {with:?}, on the plain directory {without:?}");
        if added < ALLOWED {
            return;
        }
    }
    panic!("a save beside it waits {added:?} longer than on the plain directory");
}

#[test]
fn a_large_commit_does_not_delay_a_small_save_of_another_file() {
    let _alone = alone();
    let m = mount!(Mount::options().limit(Duration::from_secs(300)));
    compare(&m, times(256, 1024) as u64 * (1 << 20), false);
}

#[test]
fn a_slow_fsync_does_not_delay_a_small_save_of_another_file() {
    let _alone = alone();
    let m = mount!(Mount::options().limit(Duration::from_secs(300)));
    compare(&m, times(64, 512) as u64 * (1 << 20), true);
}

#[test]
fn a_durable_close_is_not_kept_waiting_by_those_who_commit_without_pause() {
    // It needs a moment in which all that was committed before it is on the disk.
    need_daemon!();
    let _alone = alone();
    let m = mount!(Mount::options().limit(Duration::from_secs(120)));
    let mut appending = m.live_python(
        "import os, signal\n\
         parent = os.getpid()\n\
         for name in 'abcdef':\n    \
             if not os.fork():\n        \
                 fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n        \
                 while os.getppid() == parent:\n            \
                     os.write(fd, b'line\\n')\n        \
                 os._exit(0)\n\
         print('appending', flush=True)\n\
         signal.pause()\n",
    );
    appending.expect("appending");
    let mut actor = Actor::new();
    let mut times = Vec::new();
    for _ in 0..30 {
        let begun = std::time::Instant::now();
        actor.open("f", "w", &m.path("f")).unwrap();
        actor.write("f", "x").unwrap();
        actor.fsync("f").unwrap();
        actor.close("f").unwrap();
        times.push(begun.elapsed());
    }
    appending.kill(libc::SIGKILL);
    times.sort_unstable();
    let median = times[15];
    println!("median {median:?}, longest {:?}", times[29]);
    assert!(median < Duration::from_millis(60), "{times:?}");
}

#[test]
fn a_large_durable_commit_does_not_delay_a_small_save_of_another_file_for_its_whole_length() {
    // With durability=sync every commit waits for the disk, and the disk is busy; but a small save
    // must not wait for all the bytes of the large one to be written before its own.
    need_daemon!();
    let _alone = alone();
    let m = mount!(Mount::options().sync().limit(Duration::from_secs(300)));
    let size = times(128, 1024) as u64 * (1 << 20);
    let mut big = Actor::new();
    big.patience(Duration::from_secs(120));
    let start = std::time::Instant::now();
    big.open("f", "w", &m.path("big")).unwrap();
    assert_eq!(big.fill("f", size, 1 << 20, b'x'), Ok(size));
    big.close("f").unwrap();
    let whole = start.elapsed();
    let beside = p99_beside(m.mountpoint(), size, false);
    println!("the large commit takes {whole:?}, a small one beside it at p99 {beside:?}");
    assert!(
        beside < whole / 2 + Duration::from_millis(50),
        "{beside:?} of {whole:?}"
    );
}

#[test]
fn a_line_costs_at_most_twice_as_much_at_the_end_of_a_gigabyte_as_of_a_kilobyte() {
    // C10. With --no-capture it prints the medians.
    need_daemon!();
    let _alone = alone();
    let m = mount!(Mount::options().limit(Duration::from_secs(300)));
    let size = times(256, 1024) as u64 * (1 << 20);
    let mut writer = Actor::new();
    writer.patience(Duration::from_secs(120));
    for (name, size) in [("small", 1024), ("large", size)] {
        writer.open("f", "w", &m.path(name)).unwrap();
        assert_eq!(writer.fill("f", size, 1 << 20, b'x'), Ok(size));
        writer.write("f", "\n").unwrap();
        writer.close("f").unwrap();
    }
    eventually(Duration::from_secs(120), "both are on the disk", || {
        m.status()["pending"] == 0
    });
    let mut ratios = Vec::new();
    for _ in 0..7 {
        let [small, large] = ["small", "large"].map(|name| {
            let all = timed("timed-appends", &m.path(name), &["150", "100"]);
            all[all.len() / 2]
        });
        println!("median of 150 lines: {small} us to the small file, {large} us to the large one");
        ratios.push(large as f64 / small as f64);
    }
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("large to small: {ratio:.2}");
    assert!(ratio <= 2.0, "{ratio:.2} times as much: {ratios:.2?}");
}
