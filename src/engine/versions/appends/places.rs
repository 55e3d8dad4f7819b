//! Where lines go, and what they have to wait for.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::file::Unnamed;
use crate::journal::FileKey;
use crate::namespace::Ends;
use crate::types::{Dentry, NodeId};

/// Where a line goes.
pub struct AppendTarget {
    pub node: NodeId,
    /// The file's name, if it has kept that.
    pub dentry: Option<Dentry>,
    pub ends: Ends,
    pub file: Arc<File>,
    pub from: u64,
    /// What the journal is told of the append; nothing where it doesn't matter.
    pub told: Option<(FileKey, PathBuf)>,
}

/// What an append waits for.
pub enum Hold {
    /// An editor's commit of the file.
    Turn(Dentry),
    /// The version that is to grow has to be in place.
    Checkpoint,
    /// Whether it is lines of JSON has to be looked at.
    Unread(Dentry),
    /// That the file grows has to be on the medium.
    Announced(FileKey),
    /// That the file has lost its last name has to be.
    Gone(Unnamed),
}
