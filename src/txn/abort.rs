//! Why a transaction doesn't commit.

use rustix::io::Errno;

/// Why a transaction doesn't commit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Abort {
    /// C4
    #[error("its writer {pid} was ended by signal {signal}")]
    Killed {
        /// Process that was ended.
        pid: u32,
        /// By this signal.
        signal: i32,
    },
    /// C5
    #[error("a {what} failed: {errno}")]
    FailedWrite {
        /// Which call.
        what: &'static str,
        /// What it was told.
        errno: Errno,
    },
    /// C21
    #[error("{0}")]
    Guard(String),
    /// C17, by rule: it builds on a version that is not current any more.
    #[error("the file was changed by others since it was read")]
    Conflict,
    /// C6: the name is a directory by now, or its parent is gone.
    #[error("its target vanished: {errno}")]
    VanishedTarget {
        /// EISDIR or ENOENT.
        errno: Errno,
    },
    /// C11: the name was unlinked; dropped, not rejected.
    #[error("its name was unlinked")]
    Discarded,
    /// C23: the round that it is a member of.
    #[error("its group was not published: {0}")]
    Round(String),
    /// C20: unmounted by force.
    #[error("the file system was unmounted by force")]
    Forced,
    /// The daemon died before the close.
    #[error("the daemon or the machine ended before the close")]
    Crashed,
}

impl Abort {
    /// That of a process which was ended by a signal.
    pub fn killed((pid, signal): (u32, i32)) -> Abort {
        Abort::Killed { pid, signal }
    }

    /// What close() says.
    pub fn errno(&self) -> Errno {
        match self {
            Abort::Killed { .. } | Abort::Discarded => Errno::INTR,
            Abort::FailedWrite { errno, .. } | Abort::VanishedTarget { errno } => *errno,
            Abort::Guard(_) => Errno::BADMSG,
            Abort::Conflict => Errno::STALE,
            Abort::Round(_) | Abort::Forced | Abort::Crashed => Errno::IO,
        }
    }

    /// Name of its counter in status.
    pub fn counter(&self) -> &'static str {
        match self {
            Abort::Killed { .. } => "killed",
            Abort::FailedWrite { .. } => "failed_write",
            Abort::Guard(_) => "guard",
            Abort::Conflict => "conflict",
            Abort::VanishedTarget { .. } => "vanished_target",
            Abort::Discarded => "discarded",
            Abort::Round(_) => "group",
            Abort::Forced => "forced",
            Abort::Crashed => "crashed",
        }
    }
}
