//! What a content was copied from, where others go on adding to that.

use crate::journal;
use crate::namespace::Shown;
use crate::sys::at;
use crate::types::OpResult;

/// The file that a content was copied from, to which others add records in place (C10), and how many
/// bytes of it the content has.
#[derive(Clone, Debug)]
pub struct GrownBase {
    pub(super) from: Shown,
    /// As it was copied, and with what was taken over since.
    pub(super) len: u64,
}

/// What has a place in the file that a content was copied from, and keeps it in what others have made of that.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Others had changed some of what was written, too.
    pub(super) overwrites: bool,
    /// Some of it was appended, and has none.
    pub(super) appended: bool,
    /// What others had added came behind what it has added, and all before that stayed where it was.
    pub(super) come_behind: bool,
}

impl GrownBase {
    /// Whether the content has all that was added.
    pub fn is_complete(&self) -> bool {
        // What nobody adds records to, or was written in place, has none to take over.
        self.from.is_whole() || self.from.length().is_ok_and(|len| len <= self.len)
    }

    /// Inode number of the file that others add to; `None` if it can't be told.
    pub fn inode(&self) -> Option<u64> {
        at::stat(&*self.from.file).ok().map(|stat| stat.st_ino)
    }

    /// What recovery has to know of it.
    pub(super) fn told(&self) -> OpResult<journal::GrownInfo> {
        Ok(journal::GrownInfo {
            inode: at::stat(&*self.from.file)?.st_ino,
            len: self.len,
        })
    }
}
