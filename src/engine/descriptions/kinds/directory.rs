//! A description that lists a directory.

use rustix::io::Errno;

use crate::engine::base::handle::{Listing, OpenFile, Source};
use crate::types::{NodeId, OpResult};

/// See the module. What it lists never changes: a new listing puts another in its place.
#[derive(Debug)]
pub struct OpenDirectory {
    /// Its node.
    pub node: NodeId,
    /// What was listed at offset 0.
    pub entries: Option<Listing>,
}

impl OpenFile for OpenDirectory {
    fn source(&self, _offset: u64, _len: u64) -> OpResult<Source> {
        Err(Errno::ISDIR)
    }

    fn listing(&self) -> OpResult<(NodeId, Option<Listing>)> {
        Ok((self.node, self.entries.clone()))
    }
}
