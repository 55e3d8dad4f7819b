//! Room for what the kernel writes by itself, and whether it had that.

use rustix::io::Errno;

use crate::store::Store;
use crate::sys::failpoint;
use crate::txn::Content;
use crate::types::OpResult;

/// What the kernel has written by itself is looked at. Where there may have been no room its program was told, and may not have minded.
/// But it is not taken for failed for good: most likely no write was, and what is closed last, with room by then, is what the plain
/// directory would have.
pub fn look_at_passed(store: &Store, content: &mut Content) -> OpResult<()> {
    content.look()?;
    if content.passes() && !had_room(store) {
        return Err(Errno::NOSPC);
    }
    Ok(())
}

/// Whether no write of the kernel's can have failed for want of space.
pub fn had_room(store: &Store) -> bool {
    let enough = failpoint::number("COMMITFS_ENOUGH_MIB", ENOUGH >> 20) << 20;
    free(store) >= enough || failpoint::mutant("C5-passed")
}

/// Whether the disk has room for what the kernel is to write by itself, whose likely length is `expected` bytes, and no quota.
pub fn has_ample_room(store: &Store, expected: u64) -> bool {
    let ample = failpoint::number("COMMITFS_AMPLE_MIB", AMPLE >> 20) << 20;
    free(store) >= ample.saturating_add(expected.saturating_mul(2)) && !store.has_quota()
}

/// Bytes that root may still write.
pub fn free(store: &Store) -> u64 {
    rustix::fs::fstatvfs(&store.root).map_or(0, |disk| disk.f_bfree.saturating_mul(disk.f_frsize))
}

/// And so much when what was written is judged: else a write may have failed meanwhile.
pub const ENOUGH: u64 = 64 << 20;

/// So much is free on the disk besides twice what is expected where the kernel writes by itself: nobody tells us of a write that fails.
pub const AMPLE: u64 = 1 << 30;
