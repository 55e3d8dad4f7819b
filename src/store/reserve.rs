//! Space kept back for what has been acknowledged: a name that is put in place may need a new block
//! in its directory, recovery a new journal, rejected content a few lines that say what it is. On a
//! full disk the reserve is given up for that, and until it is there again nothing new is committed.

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::Store;
use crate::sys::{at, failpoint};

/// Its size in bytes: a new journal takes half of it.
const SIZE: u64 = 2 << 20;
const NAME: &str = "reserve";

/// Whether it is there. Locked while it comes and goes.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    kept: Mutex<bool>,
}

impl Store {
    /// Keeps the space back, unless it is kept already.
    ///
    /// # Errors
    /// The disk is too full for it.
    pub fn keep_reserve(&self) -> Result<(), Errno> {
        let mut kept = self.reserve.kept.lock();
        if *kept || failpoint::mutant("C18-reserve") {
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
                *kept = true;
                Ok(())
            }
            Err(e) => {
                rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()).ok();
                Err(e)
            }
        }
    }

    /// Whether it is kept back, and nobody is at it.
    pub fn has_reserve(&self) -> bool {
        let kept = self.reserve.kept.try_lock();
        kept.is_some_and(|kept| *kept) || failpoint::mutant("C18-reserve")
    }

    /// Gives the space up for what can't wait. Gives whether there was any.
    pub fn release_reserve(&self) -> bool {
        let kept = self.reserve.kept.lock();
        if rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()).is_err() {
            return false;
        }
        drop(kept);
        self.reuse_freed();
        *self.reserve.kept.lock() = false;
        true
    }

    /// ext4 gives blocks away again once the transaction that freed them is on the medium: one more
    /// change in the running transaction, and a wait for that.
    pub fn reuse_freed(&self) {
        at::touch(&self.state).ok();
        rustix::fs::fsync(&self.state).ok();
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
