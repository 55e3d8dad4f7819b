//! Who answers what is asked about processes: `/proc` and pidfds, or in a test a table of processes that there aren't.
//!
//! In a program that is not built for tests [`in_place_of_proc`] is a constant, and nothing of this is left: a question costs
//! what reading `/proc` costs.

use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

use super::Call;

/// To whom a thread belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// Its process.
    pub tgid: u32,
    /// That one's parent.
    pub parent: u32,
}

/// What the engine knows of the processes around it. Numbers of threads and processes are of one kind, as in `/proc`.
pub trait Processes: Send + Sync {
    /// To whom a thread belongs; `None`: there is no such thread.
    fn ids(&self, tid: u32) -> Option<Ids>;

    /// Whether a thread has ended but for what it still has to close; `None`: there is no such thread.
    fn memory_is_gone(&self, tid: u32) -> Option<bool>;

    /// Wait status of a process that is ending or has ended.
    fn exit_code(&self, pid: u32) -> Option<i32>;

    /// The children that a thread has started.
    fn children_of(&self, tid: u32) -> Vec<u32>;

    /// The threads of a process; `None`: there is no such process.
    fn threads(&self, pid: u32) -> Option<Vec<u32>>;

    /// The number handed out last.
    fn last_pid(&self) -> u32;

    /// All processes.
    fn all(&self) -> Vec<u32>;

    /// In hundredths of a second since the machine was started, when a process was; and whether it has called no execve since its fork.
    fn start(&self, pid: u32) -> Option<(u64, bool)>;

    /// The inode number and the flags of open(2) of each descriptor that is open to be written; `None`: there is no such process.
    fn written(&self, pid: u32) -> Option<Vec<(u64, OFlags)>>;

    /// Inode numbers of the files that a process has mapped as shared.
    fn mapped(&self, pid: u32) -> Vec<u64>;

    /// A process's short name.
    fn comm(&self, pid: u32) -> Option<String>;

    /// Signals that a thread has to take, as bits from SIGHUP on; `None`: there is no such thread. None is caught.
    fn signals(&self, tid: u32) -> Option<u64>;

    /// The system call that a thread is in, and whether that opens or truncates a file by its path.
    fn call(&self, tid: u32) -> Option<(Call, bool)>;

    /// A descriptor that becomes readable when a process ends.
    fn pidfd(&self, pid: u32) -> Option<OwnedFd>;
}

#[cfg(feature = "testing")]
static IN_PLACE: std::sync::OnceLock<&'static dyn Processes> = std::sync::OnceLock::new();

/// From now on this is asked, for as long as this process lives; what was put in place first stays.
#[cfg(feature = "testing")]
pub fn put_in_place_of_proc(processes: &'static dyn Processes) {
    IN_PLACE.get_or_init(|| processes);
}

/// What a test has put in the place of `/proc`.
#[cfg(feature = "testing")]
pub(in crate::sys) fn in_place_of_proc() -> Option<&'static dyn Processes> {
    IN_PLACE.get().copied()
}

/// See the version with the feature `testing`.
#[cfg(not(feature = "testing"))]
#[inline(always)]
pub(in crate::sys) fn in_place_of_proc() -> Option<&'static dyn Processes> {
    None
}
