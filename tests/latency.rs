//! A 2 KiB save must not wait for another file: not for a gigabyte that is being committed, not
//! for somebody's slow fsync. The same load on the plain directory is measured beside it, so that
//! what the disk itself costs is not counted; only what we add is. Runs alone.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use common::{Actor, Mount, times};

/// Measurements disturb each other. (nextest gives each test a process, and runs them singly.)
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

const ALLOWED: Duration = Duration::from_millis(5);

/// The 99th percentile of `count` saves of 2 KiB, one every two milliseconds.
fn p99(directory: &Path, count: usize) -> Duration {
    let mut saver = Actor::new();
    saver.patience(Duration::from_secs(120));
    let path = directory.join("small");
    let count = count.to_string();
    let args: [&[u8]; 4] = [
        path.as_os_str().as_encoded_bytes(),
        count.as_bytes(),
        b"2048",
        b"2000",
    ];
    let answer = saver.ask("timed-saves", &args).expect("every save works");
    let mut all: Vec<u64> = answer
        .iter()
        .map(|word| String::from_utf8_lossy(word).parse().expect("a number"))
        .collect();
    all.sort_unstable();
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
