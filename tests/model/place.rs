//! Where programs run: on a mount, or on a simulated one.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use super::common::{Actor, Mount, eventually};
use super::simulated::{self, Simulated};

/// A file system under test.
pub trait Place {
    /// A process that begins.
    fn actor(&self) -> Actor;

    fn path(&self, name: &str) -> PathBuf;

    /// The daemon is killed.
    fn kill(&mut self);

    fn unmount(&mut self);

    fn mount(&mut self);

    /// Whether a process waits for a lock or a writer slot.
    fn is_waiting(&self, pid: i32) -> bool;

    /// All rejected contents.
    fn rejected(&self) -> Result<Vec<Vec<u8>>, String>;

    /// Whether files can be mapped there.
    fn maps_files(&self) -> bool;

    /// What need not happen has happened by then.
    fn takes_at_most(&self) -> Duration;

    /// How many processes look at everything after a step besides the stranger, if not all.
    fn looks(&self) -> Option<usize>;
}

/// An unfinished line waits for what the program does, and not for the clock; the kernel keeps names of files as soon as it may.
const VARIABLES: [(&str, &str); 3] = [
    ("COMMITFS_KEEP_AFTER_MS", "0"),
    ("COMMITFS_LINE_PATIENCE_MS", "3600000"),
    ("COMMITFS_SILENCE_MS", "3600000"),
];

fn contents(directory: &Path) -> Result<Vec<Vec<u8>>, String> {
    let mut contents = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        contents.extend(std::fs::read(&path));
    }
    Ok(contents)
}

/// A mount that there is.
pub struct Mounted(Mount);

impl Mounted {
    pub fn new(limit: Duration) -> Option<Mounted> {
        simulated::limit_files(false);
        let options = Mount::options().args(["--lock-timeout", "3600"]);
        let options = VARIABLES
            .iter()
            .fold(options, |options, (name, value)| options.env(name, value));
        Some(Mounted(options.limit(limit).mount()?))
    }
}

impl Place for Mounted {
    fn actor(&self) -> Actor {
        Actor::new()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn kill(&mut self) {
        self.0.kill_daemon();
    }

    fn unmount(&mut self) {
        // Whoever looks around on the machine may be in the way for a moment.
        let limit = Duration::from_secs(10);
        let mut said = String::new();
        eventually(limit, "unmounted", || {
            let run = self.0.command(&["umount"]);
            if said != run.err {
                eprintln!("umount: {}", run.err);
                said.clone_from(&run.err);
            }
            run.code == Some(0)
        });
        self.0.reap_daemon(limit);
    }

    fn mount(&mut self) {
        self.0.remount();
    }

    fn is_waiting(&self, pid: i32) -> bool {
        let waits = |entry: &serde_json::Value| entry["state"] == "waiting" && entry["pid"] == pid;
        self.0.locks().iter().any(waits)
    }

    fn rejected(&self) -> Result<Vec<Vec<u8>>, String> {
        contents(&self.0.path(".commitfs/rejected"))
    }

    fn maps_files(&self) -> bool {
        true
    }

    fn takes_at_most(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn looks(&self) -> Option<usize> {
        None
    }
}

/// To be called before any simulated mount is made.
pub fn set_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| simulated::set_up(&VARIABLES));
}

pub fn simulated() -> Box<dyn Place> {
    Box::new(Simulated::mount())
}

impl Place for Simulated {
    fn actor(&self) -> Actor {
        Simulated::actor(self)
    }

    fn path(&self, name: &str) -> PathBuf {
        Simulated::path(self, name)
    }

    fn kill(&mut self) {
        Simulated::kill(self);
    }

    fn unmount(&mut self) {
        Simulated::unmount(self);
    }

    fn mount(&mut self) {
        self.begin();
    }

    fn is_waiting(&self, pid: i32) -> bool {
        Simulated::is_waiting(self, pid)
    }

    fn rejected(&self) -> Result<Vec<Vec<u8>>, String> {
        contents(&self.backing().join(".commitfs/rejected"))
    }

    fn maps_files(&self) -> bool {
        false
    }

    fn takes_at_most(&self) -> Duration {
        Duration::from_millis(4)
    }

    fn looks(&self) -> Option<usize> {
        Some(1)
    }
}
