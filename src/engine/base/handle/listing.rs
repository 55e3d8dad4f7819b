//! What a directory lists.

use std::sync::Arc;

use crate::types::NodeId;

/// What a directory's description lists.
pub type Listing = Arc<Vec<DirEntry>>;

/// One name in a listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The name.
    pub name: std::ffi::OsString,
    /// Its node number.
    pub ino: NodeId,
    /// What it is.
    pub kind: rustix::fs::FileType,
}
