//! What all integration tests share: mounts that clean up after themselves (`Mount`), processes
//! driven step by step (`Actor`, `Live`, `Shell`), programs with a time limit (`run`), and disk
//! images (`Disk`).
//!
//! Rules that keep the tests honest:
//! - A test process never writes to its mount itself, it lets an `Actor` do so: a descriptor of a
//!   process with threads can leak into a child that another thread is just starting, and would
//!   hold the transaction open. Reading in the test process is fine.
//! - The test process is nobody's descendant here, so it sees what strangers see.
//! - Nothing waits without a limit. When a test's time is up, its daemon is killed, which frees
//!   whatever hangs on the mount.
//!
//! `COMMITFS_TEST_PLAIN=1` runs every test on the plain directory, with no file system of ours in
//! between: whatever passes then proves nothing about commitfs. `COMMITFS_LONG=1` asks for the
//! full numbers of repetitions, `COMMITFS_TEST_DIR` says where temporary directories go,
//! `COMMITFS_SEED` repeats a random choice.

#![allow(dead_code, unused_imports)]

mod actor;
mod disk;
mod mount;
pub mod rounds;
pub mod run;
#[path = "../helper/stamp.rs"]
pub mod stamp;
pub mod watching;
#[path = "../helper/wire.rs"]
mod wire;

pub use actor::{Actor, Answer, Failure, Remote, Stat, surveyed_stat};
pub use disk::Disk;
pub use mount::{Mount, Options, Rejected, detach, is_mounted};
pub use run::{Live, Run, Shell, alive, bash, binary, commitfs, python, run, sh, shell};
pub use stamp::{stamped, version_of};

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// `let m = mount!();` or `mount!(Mount::options()…)`: a mounted commitfs, or the end of a test
/// that cannot run here.
#[macro_export]
macro_rules! mount {
    () => {
        $crate::mount!($crate::common::Mount::options())
    };
    ($options:expr) => {
        match $options.mount() {
            Some(mount) => mount,
            None => return,
        }
    };
}

/// Ends a test that only root can run.
#[macro_export]
macro_rules! need_root {
    () => {
        if !$crate::common::can_run_as_root() {
            return;
        }
    };
}

/// Ends a test that means nothing without a daemon.
#[macro_export]
macro_rules! need_daemon {
    () => {
        if $crate::common::plain() || !$crate::common::can_mount() {
            return;
        }
    };
}

/// Ends a test of something that rests on kernel features which this run leaves out.
#[macro_export]
macro_rules! need_features {
    ($($name:literal),+) => {
        if !$crate::common::has_features(&[$($name),+]) {
            return;
        }
    };
}

pub fn has_features(names: &[&str]) -> bool {
    let without = std::env::var("COMMITFS_WITHOUT").unwrap_or_default();
    let missing = without.split(',').find(|off| names.contains(off));
    if let Some(name) = missing {
        eprintln!("SKIPPED, and it proves nothing: this test is about what needs {name}");
    }
    missing.is_none()
}

pub fn plain() -> bool {
    std::env::var_os("COMMITFS_TEST_PLAIN").is_some()
}

/// The number of repetitions: the first normally, the second with `COMMITFS_LONG=1`.
pub fn times(short: usize, long: usize) -> usize {
    if std::env::var_os("COMMITFS_LONG").is_some() {
        long
    } else {
        short
    }
}

pub fn is_root() -> bool {
    // SAFETY: reads this process's credentials.
    unsafe { libc::geteuid() == 0 }
}

/// Whether a FUSE file system can be mounted here. In CI it must be possible.
pub fn can_mount() -> bool {
    let usable = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    match usable {
        Ok(_) => true,
        Err(error) => cannot_run(&format!("/dev/fuse cannot be opened ({error})")),
    }
}

pub fn can_run_as_root() -> bool {
    // An ordinary user's run is a second run beside root's, so this is no failure in CI.
    is_root() || {
        eprintln!("SKIPPED, and it proves nothing: this test needs root");
        false
    }
}

pub fn cannot_run(why: &str) -> bool {
    assert!(
        std::env::var_os("CI").is_none(),
        "this test must run in CI, but {why}"
    );
    eprintln!("SKIPPED, and it proves nothing: {why}");
    false
}

/// A new, empty directory for one test, with a short name (Unix sockets live in it).
pub fn temporary_directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::env::var_os("COMMITFS_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&base).expect("the directory for temporary files");
    let base = base
        .canonicalize()
        .expect("the directory for temporary files");
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("cfs-{}-{number}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return path,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(error) => panic!("cannot create {}: {error}", path.display()),
        }
    }
}

/// Waits for something that may take a moment, such as a line in status.
#[track_caller]
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
pub fn assert_errno<T: std::fmt::Debug>(result: Result<T, Failure>, errno: &str) {
    match result {
        Ok(value) => panic!("expected {errno}, but it worked: {value:?}"),
        Err(failure) => assert_eq!(failure.errno, errno, "at {}", failure.stage),
    }
}

/// Compares file contents without flooding the terminal.
#[track_caller]
pub fn assert_content(found: Option<Vec<u8>>, expected: &[u8], what: &str) {
    let Some(found) = found else {
        panic!("{what}: there is no such file")
    };
    if found != expected {
        let show = |bytes: &[u8]| {
            let short = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            format!("{} bytes {short:?}", bytes.len())
        };
        panic!(
            "{what}: found {}, expected {}",
            show(&found),
            show(expected)
        );
    }
}

/// That of a choice which is to be repeated.
pub fn seed() -> Option<u64> {
    std::env::var("COMMITFS_SEED").ok()?.parse().ok()
}

pub fn any_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64
}

/// Random numbers that can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new() -> Random {
        let seed = seed().unwrap_or_else(any_seed);
        println!("COMMITFS_SEED={seed}");
        Random::of(seed)
    }

    pub fn of(seed: u64) -> Random {
        Random(seed | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}
