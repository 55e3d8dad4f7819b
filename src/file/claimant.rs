//! Lock files: who created a file with O_EXCL under a name that the rules call a claim. A process is known by its descriptor:
//! its number may be another's by then.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::rules::Stale;
use crate::sys::{pidfd, proc};
use crate::types::NodeId;

/// Who holds a name by having created it.
#[derive(Debug)]
pub struct Claimant {
    /// The file, at its creation.
    pub node: NodeId,
    /// The process.
    pub pid: u32,
    /// Its command.
    pub command: String,
    process: Option<OwnedFd>,
    /// Since when.
    pub since: Instant,
    /// What becomes of the file if it is left behind.
    pub stale: Stale,
    /// It was told that it is.
    pub reported: bool,
}

impl Claimant {
    /// Of a file that a process has just created.
    pub fn new(node: NodeId, pid: u32, stale: Stale) -> Claimant {
        Claimant {
            node,
            pid,
            command: proc::comm(pid).unwrap_or_default(),
            process: pidfd::pidfd(pid),
            since: Instant::now(),
            stale,
            reported: false,
        }
    }

    /// Whether its process has ended.
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(pidfd::has_ended)
    }
}
