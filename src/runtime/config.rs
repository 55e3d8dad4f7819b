//! How a mount is to work, as it was asked for.

use std::path::PathBuf;
use std::time::Duration;

/// When an acknowledged commit survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Within the bound (1 s).
    Async,
    /// Before close() returns.
    Sync,
}

/// Where the daemon's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTo {
    /// `.commitfs/daemon.log`.
    File,
    /// The journal of systemd.
    Journal,
    /// Wherever the daemon's standard error goes.
    Stderr,
}

/// How the engine is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// When commits are durable.
    pub durability: Durability,
    /// With `Async`: the longest time an acknowledged commit may be lost by a power cut.
    pub bound: Duration,
    /// The daemon may give files away: it keeps the caller's owner and group.
    pub privileged: bool,
    /// Reading leaves the access times of files alone.
    pub noatime: bool,
    /// And of directories.
    pub nodiratime: bool,
    /// A lock held for longer is told in the log.
    pub lock_warn: Option<Duration>,
    /// Descriptors that the process may have open.
    pub descriptors: u64,
    /// How long an editor waits for the writer slot of a file (C9).
    pub lock_timeout: Duration,
    /// Where it is mounted, for messages.
    pub mountpoint: PathBuf,
    /// The rules file that was named when it was mounted; without one it is `.commitfs/rules.toml`.
    pub rules_file: Option<PathBuf>,
    /// Where the daemon's log goes.
    pub log: LogTo,
    /// Why the manner of a writer's death can't be told, if it can't (C4).
    pub no_killed_writer_detection: Option<String>,
}
