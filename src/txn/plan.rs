//! What recovery is going to do.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::journal::Edit;
use crate::txn::leftover::Leftover;
use crate::types::{Seq, TxnId};

/// What would be recovered: the result of reading, before anything is changed.
#[derive(Debug, Default)]
pub struct Plan {
    /// Commits that count, in order.
    pub accepted: Vec<(Seq, Vec<Edit>)>,
    /// Contents that don't, with what is known of them.
    pub leftovers: Vec<Leftover>,
    /// Files that grew in place by appends that don't count, and their length without them.
    pub cuts: BTreeMap<PathBuf, u64>,
    /// Something may be among what is cut off that nobody would find elsewhere.
    pub(super) keeps_cuts: bool,
    /// Staging files that stood for edits of documents which something later has replaced.
    pub(super) superfluous: Vec<TxnId>,
    /// Staging files of transactions that had not ended.
    pub(super) unended: Vec<TxnId>,
    pub(super) last_id: TxnId,
    pub(super) last_seq: Seq,
}

impl Plan {
    /// Whether there are texts to be written.
    pub(super) fn edits_documents(&self) -> bool {
        let mut edits = self.accepted.iter().flat_map(|(_, edits)| edits);
        edits.any(|edit| matches!(edit, Edit::Patch { .. }))
    }

    /// An append that counts lies where one that failed was to lie, which couldn't be withdrawn.
    pub(super) fn spare_accepted(&mut self, edits: &[Edit]) {
        for edit in edits {
            if let Edit::Append {
                path, from, len, ..
            } = edit
                && let Some(cut) = self.cuts.get_mut(path)
            {
                *cut = (*cut).max(from + len);
            }
        }
    }

    pub(super) fn take_back(&mut self, edits: Vec<Edit>) {
        for edit in edits {
            if let Edit::Append { path, from, .. } = edit {
                // Appends of one file are in order: the first that doesn't count says it.
                self.cuts.entry(path).or_insert(from);
            }
        }
    }
}
