//! Space kept back for what has been acknowledged: a name that is put in place may need a new block
//! in its directory, recovery a new journal, rejected content a few lines that say what it is. On a
//! full disk the reserve is given up for that, and until it is there again nothing new is committed.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Store;
use crate::sys::failpoint;

/// Its size in bytes: a new journal takes half of it.
const SIZE: u64 = 2 << 20;
const NAME: &str = "reserve";

/// Whether it is there.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    kept: AtomicBool,
}

impl Store {
    /// Keeps the space back, unless it is kept already.
    ///
    /// # Errors
    /// The disk is too full for it.
    pub fn keep_reserve(&self) -> Result<(), Errno> {
        if self.reserve.kept.load(Ordering::Acquire) || failpoint::mutant("C18-reserve") {
            return Ok(());
        }
        let file = rustix::fs::openat(
            &self.state,
            NAME,
            OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )?;
        failpoint::fail_point("reserve")?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE) {
            // A file system that can't promise space goes without.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.reserve.kept.store(true, Ordering::Release);
                Ok(())
            }
            Err(e) => {
                rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()).ok();
                Err(e)
            }
        }
    }

    /// Gives the space up for what can't wait. Gives whether there was any.
    pub fn release_reserve(&self) -> bool {
        if rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()).is_err() {
            return false;
        }
        // ext4 gives blocks away again once the transaction that freed them is on the medium.
        rustix::fs::fsync(&self.state).ok();
        self.reserve.kept.store(false, Ordering::Release);
        true
    }

    /// What only the want of space keeps from happening is tried once more without the reserve.
    ///
    /// # Errors
    /// Those of `what`.
    pub fn with_reserve<T>(&self, what: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match what() {
            Err(Errno::NOSPC | Errno::DQUOT) if self.release_reserve() => what(),
            other => other,
        }
    }
}
