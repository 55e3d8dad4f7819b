//! Large files, which the kernel had better read by itself (passthrough).

use crate::engine::lines::may_be_added_to;
use crate::namespace::Shown;
use crate::rules::{Mode, Policy};
use crate::sys::failpoint;
use crate::types::OpResult;

/// From this size on, in bytes, it is better to give the kernel the file than to read it for it.
const LARGE: u64 = 1 << 20;

/// Whether the kernel may serve a description from its backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// What it reads and writes is for us to see.
    Never,
    /// It may, where it does so already for another of the same node.
    Beside,
    /// It had better: there is much to read.
    Wanted,
}

/// For who reads a version: not where others may open this very node to write, to add records or in place as a database.
pub(super) fn of_version(
    read: &Shown,
    policy: &Policy,
    is_database: impl FnOnce() -> OpResult<bool>,
) -> OpResult<Pass> {
    let grows = may_be_added_to(policy) && !failpoint::mutant("C10-passed");
    let stays = read.is_whole() && policy.mode != Mode::Direct && !grows;
    Ok(match stays && read.length()? >= LARGE {
        true if !is_database()? => Pass::Wanted,
        _ => Pass::Beside,
    })
}
