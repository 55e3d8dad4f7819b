//! How what was written so far of an open file is published.

use rustix::fs::RenameFlags;

/// How what was written so far of an open file is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Under another name, where its transaction follows; only the flag NOREPLACE says anything.
    Rename(RenameFlags),
    /// Under another name as well, and its transaction stays.
    Link,
    /// Under its own name: a lock is given back (C12).
    Stay,
    /// Under its own name, if it is a whole document and at rest.
    Rest,
}

impl Publication {
    /// Whether the file keeps its name, and has no other.
    pub(in crate::engine) fn stays(self) -> bool {
        matches!(self, Publication::Stay | Publication::Rest)
    }

    pub(in crate::engine) fn links(self) -> bool {
        self == Publication::Link
    }

    pub(in crate::engine) fn renames(self) -> bool {
        matches!(self, Publication::Rename(_))
    }
}
