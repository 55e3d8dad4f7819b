//! `.commitfs/daemon.log`: what a daemon in the background says.

use std::fs::File;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{DAEMON_LOG, Store};
use crate::sys::at;

impl Store {
    /// Opens it for reading.
    ///
    /// # Errors
    /// What the system says; ENOENT if no daemon has logged there yet.
    pub fn open_log(&self) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.state, DAEMON_LOG, flags, Mode::empty()).map(File::from)
    }

    /// Whether it is what this process's standard error goes to.
    pub fn logs_here(&self) -> bool {
        let log = self.open_log().and_then(|log| at::stat(&log));
        let stderr = rustix::fs::fstat(std::io::stderr());
        matches!((log, stderr), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }
}
