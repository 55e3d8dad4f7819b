//! The engine over a backing directory in memory, driven by a kernel and by processes that there aren't: all of commitfs
//! but the translation of requests (`src/fuse`), without a mount, and without the time that the kernel and other
//! processes take.
//!
//! What it says counts as far as the kernel is right: the programs of `tests/model.rs` that are kept run on both.

mod descriptors;
mod kernel;
mod processes;
mod program;
mod requests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use commitfs::engine::{Config, Durability, Engine, LogTo, abandon, set_dropper};
use commitfs::rules::Rules;
use commitfs::store::Store;
use commitfs::txn::recovery::recover;

use crate::common::Actor;
use kernel::{Kernel, Told};
use program::{Program, Task};

/// Where programs find the mount.
const MOUNTPOINT: &str = "/simulated";
/// Writes beyond it fail with EFBIG, as they do where the backing file system can't address so much.
const LARGEST: u64 = 1 << 44;

/// A mount that is simulated.
pub struct Simulated {
    kernel: Arc<Kernel>,
    backing: PathBuf,
}

/// Variables that the engine reads, for all simulated mounts of this process.
pub fn set_up(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        // SAFETY: no other thread reads the environment yet.
        unsafe { std::env::set_var(name, value) };
    }
    // SAFETY: what this process does when it reaches its limit.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The engines of this process have a limit, which what it starts must not inherit.
pub fn limit_files(limited: bool) {
    let limit = libc::rlimit {
        rlim_cur: if limited {
            LARGEST
        } else {
            libc::RLIM_INFINITY
        },
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: sets a limit of this process.
    unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
}

fn in_memory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("cfs-simulated-{}-{number}", std::process::id());
    let path = Path::new("/dev/shm").join(name);
    std::fs::create_dir(&path).expect("a directory in memory");
    path
}

impl Simulated {
    /// Mounted.
    pub fn mount() -> Simulated {
        processes::table();
        limit_files(true);
        let mut mount = Simulated {
            kernel: Arc::default(),
            backing: in_memory(),
        };
        mount.begin();
        mount
    }

    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(MOUNTPOINT).join(name)
    }

    /// The directory with the real files.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// A program that begins.
    pub fn actor(&self) -> Actor {
        let task = Task::spawn(&self.kernel, MOUNTPOINT);
        Actor::of(Box::new(Program::of(task)))
    }

    /// Recovers what is there, and serves.
    pub fn begin(&mut self) {
        let store = Store::open(&self.backing).expect("a store");
        let rules = Rules::builtin();
        let recovered = recover(&store, &rules).expect("it recovers");
        let config = Config {
            durability: Durability::Async,
            bound: Duration::from_secs(1),
            privileged: true,
            descriptors: 4096,
            lock_timeout: Duration::from_secs(3600),
            lock_warn: None,
            noatime: false,
            nodiratime: false,
            mountpoint: MOUNTPOINT.into(),
            rules_file: None,
            log: LogTo::Stderr,
            no_killed_writer_detection: None,
        };
        let engine = Engine::start(store, rules, config, recovered).expect("an engine");
        engine.kernel.set_uncached(true);
        engine.kernel.set_features(Vec::new());
        engine
            .kernel
            .set_notify(Box::new(Told(Arc::downgrade(&self.kernel))));
        set_dropper(&engine, Arc::new(Told(Arc::downgrade(&self.kernel))));
        self.kernel.begin(engine);
    }

    /// The daemon is gone without a word.
    pub fn kill(&mut self) {
        if let Some(engine) = self.kernel.daemon.end() {
            abandon(engine);
        }
    }

    /// As after the last request of a mount that is unmounted.
    pub fn unmount(&mut self) {
        if let Some(engine) = self.kernel.daemon.end() {
            engine.shut_down();
            abandon(engine);
        }
    }

    /// Whether a process waits for a lock or a writer slot.
    pub fn is_waiting(&self, pid: i32) -> bool {
        let engine = self.kernel.daemon.engine().expect("a daemon");
        let mut entries = engine.lock_entries().into_iter();
        entries.any(|entry| entry.state == "waiting" && i64::from(entry.pid) == i64::from(pid))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.backing).ok();
    }
}
