//! One append after the other, and which file it goes to.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::sys::{at, failpoint};
use crate::txn::GrownBase;

/// Where it can't be told to which file bytes are added.
const ANY: u64 = u64::MAX;

/// The appends of a mount.
#[derive(Default)]
pub struct Appends {
    one_at_a_time: Mutex<()>,
    /// Inode number of the file that bytes are being added to right now, 0 when there is none.
    to: AtomicU64,
}

impl Appends {
    /// Nobody adds anything meanwhile. Taken after a content, and before `State`.
    pub fn lock(&self) -> MutexGuard<'_, ()> {
        Mutex::lock(&self.one_at_a_time)
    }

    /// Bytes are going to be added to a file, until this is dropped. For who holds this lock and `State`.
    pub(in crate::engine) fn begin(&self, file: &File) -> Adding<'_> {
        let inode = at::stat(file).map_or(ANY, |stat| stat.st_ino);
        self.to.store(inode, Ordering::Release);
        Adding(&self.to)
    }

    /// Whether a content has all that was added to what it was copied from, and nothing is being added
    /// there: for who holds `State`, so that nobody can begin to, or who asks once more at the commit. What is being added to other files
    /// delays nothing: a commit that came after it would stand behind what others begin later.
    pub fn are_all_in(&self, grown: &GrownBase) -> bool {
        let is_added_to = match self.to.load(Ordering::Acquire) {
            0 => false,
            _ if failpoint::mutant("C19-adding") => true,
            ANY => true,
            inode => grown.inode().is_none_or(|own| own == inode),
        };
        // Who adds says so before, and shows it afterwards.
        !is_added_to && grown.is_complete()
    }
}

/// As long as bytes are added to a file.
pub struct Adding<'a>(&'a AtomicU64);

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}
