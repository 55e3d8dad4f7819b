//! `.commitfs/daemon.log`: what a daemon in the background says.

use std::fs::File;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{DAEMON_LOG, OLD_LOG, Store};
use crate::sys::at;

/// A log of more bytes makes way for a new one.
pub const LOG_LIMIT: u64 = 4 << 20;

impl Store {
    /// Opens it for reading.
    ///
    /// # Errors
    /// What the system says; ENOENT if no daemon has logged there yet.
    pub fn open_log(&self) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.state, DAEMON_LOG, flags, Mode::empty()).map(File::from)
    }

    /// Begins a new one in the place of this process's standard error, if that has become too large. The old
    /// one is kept until the next time.
    ///
    /// # Errors
    /// What the system says; the log goes on where it was then.
    pub fn turn_log_over(&self) -> Result<(), Errno> {
        if rustix::fs::fstat(std::io::stderr())?.st_size as u64 <= LOG_LIMIT || !self.logs_here() {
            return Ok(());
        }
        rustix::fs::renameat(&self.state, DAEMON_LOG, &self.state, OLD_LOG)?;
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let new = rustix::fs::openat(&self.state, DAEMON_LOG, flags, mode)?;
        rustix::stdio::dup2_stderr(new)
    }

    /// Whether it is what this process's standard error goes to.
    pub fn logs_here(&self) -> bool {
        let log = self.open_log().and_then(|log| at::stat(&log));
        let stderr = rustix::fs::fstat(std::io::stderr());
        matches!((log, stderr), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }
}
