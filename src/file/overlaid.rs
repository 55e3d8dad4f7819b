//! Versions that are to be kept though nobody has them any more.

use crate::namespace::Shown;
use crate::types::Dentry;

/// A version, some bytes of which a commit has overwritten.
#[derive(Debug)]
pub struct Overlaid {
    /// Its name.
    pub dentry: Dentry,
    /// It.
    pub version: Shown,
    /// Who has.
    pub by: u32,
    /// That process's command.
    pub command: String,
}
