//! The disk under test: a file system on a loop device over `medium.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Disk, run, temporary_directory};
use crate::served::Served;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fs {
    Ext4,
    Xfs,
    Btrfs,
}

impl Fs {
    pub const ALL: [Fs; 3] = [Fs::Ext4, Fs::Xfs, Fs::Btrfs];

    /// mkfs.xfs takes no less than 300 MB; what isn't written takes no room.
    fn mebibytes(self) -> u64 {
        match self {
            Fs::Xfs => 320,
            Fs::Ext4 | Fs::Btrfs => 192,
        }
    }

    fn make(self, image: &Path) {
        let args: &[&str] = match self {
            Fs::Ext4 => &["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard"],
            Fs::Xfs => &["mkfs.xfs", "-q", "-f", "-K"],
            Fs::Btrfs => &["mkfs.btrfs", "-q", "-f", "-K", "-m", "single"],
        };
        let make = || run(Command::new(args[0]).args(&args[1..]).arg(image), LIMIT);
        // mkfs.btrfs looks at all mounts, and gives up at one whose daemon another test has killed just now.
        let is_away = |made: &run::Run| made.err.contains("endpoint is not connected");
        let deadline = std::time::Instant::now() + LIMIT;
        let mut made = make();
        while is_away(&made) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            made = make();
        }
        made.ok();
    }

    /// What of a write arrives whole or not at all, in bytes. Recovery of an XFS takes a block of its metadata for
    /// as new as the log sequence number in its head says, leaves out what the log has of it up to there, and refuses
    /// the mount if the block's checksum doesn't fit; so a block that is torn behind its head is lost, whatever
    /// `mkfs.xfs -s` has been told: that is the unit of the log and of the heads of allocation groups alone. The journal of
    /// an ext4 has whole blocks, and a btrfs writes to free places, so these bear it.
    fn sector(self) -> usize {
        match self {
            Fs::Xfs => 4096,
            Fs::Ext4 | Fs::Btrfs => 512,
        }
    }

    pub fn options(self) -> &'static str {
        match self {
            Fs::Xfs => "loop,nouuid,nodiscard",
            Fs::Ext4 | Fs::Btrfs => "loop,nodiscard",
        }
    }
}

/// Where disks lie: in memory, if there is such a place.
pub fn scratch() -> PathBuf {
    let directory = Path::new("/dev/shm");
    if std::env::var_os("COMMITFS_TEST_DIR").is_none() && directory.is_dir() {
        let path = directory.join(format!("cfs-cuts-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory in memory");
        return path;
    }
    temporary_directory()
}

/// Which snapshot, and how many writes were in the cache then.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    number: usize,
    pub cached: usize,
}

/// The disk's process.
pub struct Medium(Served);

impl Medium {
    pub fn new(directory: PathBuf, fs: Fs, image: Option<&Path>) -> Medium {
        let mut args = vec![(fs.mebibytes() << 20).to_string(), fs.sector().to_string()];
        args.extend(image.map(|image| image.display().to_string()));
        let medium = Medium(Served::new(directory, "disk", &args));
        if image.is_none() {
            fs.make(&medium.image());
        }
        medium
    }

    pub fn image(&self) -> PathBuf {
        self.0.directory().join("disk")
    }

    pub fn snapshot(&mut self) -> Snapshot {
        let answer = self.0.ask("snap");
        let mut numbers = answer
            .split(' ')
            .map(|word| word.parse().expect("a number"));
        let mut next = || numbers.next().expect("two numbers");
        Snapshot {
            number: next(),
            cached: next(),
        }
    }

    /// Writes the disk as a cut at that instant leaves it; `loss` is nothing, everything or some of what the
    /// cache held.
    pub fn dump(&mut self, snapshot: Snapshot, path: &Path, loss: &str, seed: u64) {
        let order = format!("dump {} {} {loss} {seed}", snapshot.number, path.display());
        assert_eq!(self.0.ask(&order), "ok");
    }
}

pub fn mounted(image: &Path, fs: Fs) -> Disk {
    Disk::existing(image, fs.options())
}
