//! What has happened since the mount, in numbers.

use std::collections::HashMap;

/// What happened since the mount.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Versions published.
    pub commits: u64,
    /// Appends of whole records.
    pub appends: u64,
    /// Transactions that ended otherwise, by reason.
    pub aborts: HashMap<&'static str, u64>,
    /// Rewrites based on a version that wasn't current any more.
    pub overwritten: u64,
    /// Contents moved to rejected.
    pub rejected: u64,
    /// Waits for a writer slot that were given up after the lock timeout.
    pub lock_timeouts: u64,
    /// JSON documents edited through attributes.
    pub patches: u64,
    /// Such edits of a version that wasn't current any more.
    pub stale_patches: u64,
    /// Such edits begun again, as somebody had committed meanwhile.
    pub patch_retries: u64,
    /// Saves merged into the version that others had committed meanwhile.
    pub merges: u64,
    /// Places in them where both had changed the same, and the later won.
    pub merge_conflicts: u64,
    /// Saves that should have been merged, but it was not certain what they build on.
    pub uncertain_bases: u64,
    /// Saves that should have been merged, but something was no JSON document.
    pub unmerged: u64,
    /// Claims whose creators have ended.
    pub stale_claims: u64,
    /// Contents published though they go wrong in their middle, by their guards.
    pub malformed: u64,
}

impl Counters {
    /// Counts a transaction that ended otherwise.
    pub fn note_abort(&mut self, reason: &'static str) {
        *self.aborts.entry(reason).or_default() += 1;
    }
}
