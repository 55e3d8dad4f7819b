//! Who takes part in a round.

use std::sync::Arc;

use crate::sys::process::AskedProcess;

/// How a process has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With status 0.
    Well,
    /// Otherwise: how, for people.
    Badly(String),
}

/// A process that takes part in a round.
#[derive(Debug)]
pub struct Saver {
    /// Its number.
    pub pid: u32,
    /// Its command, for people.
    pub command: String,
    /// The process, to be asked how it has ended.
    pub process: Option<Arc<AskedProcess>>,
    /// How it has ended.
    pub ended: Option<End>,
    /// It has closed a member as it was ending.
    pub is_ending: bool,
    /// Its status counts, not only a signal: children of who holds a lock are its own business.
    pub by_status: bool,
}
