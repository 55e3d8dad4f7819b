//! Whether what was written so far may be published still, and what that owes to fsync.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::engine::base::publication::Publication;
use crate::engine::base::rest::{AT_REST, may_commit_so_far};
use crate::engine::base::target::check_target;
use crate::engine::meaning::deciding;
use crate::engine::{Durability, Engine, State};
use crate::sys::failpoint;
use crate::txn::{Content, Transaction};
use crate::types::{Dentry, OpResult, Seq, TxnId};

/// Whether what was written of an open file may be published now. It has been copied, merged and judged since that was asked last: somebody
/// may have saved under a name that is not to be replaced, or removed the directory.
pub fn check_due(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    how: Publication,
    to: &Dentry,
) -> OpResult<()> {
    check_target(engine, state, to)?;
    let replaces = match how {
        Publication::Rename(flags) => !flags.contains(RenameFlags::NOREPLACE),
        Publication::Link => false,
        Publication::Stay | Publication::Rest => true,
    };
    if !replaces && deciding::exists(engine, state, to)? && !failpoint::mutant("C11-noreplace") {
        return Err(Errno::EXIST);
    }
    let txn = state.txns.get(&id).filter(|t| is_still_due(t, how, to));
    txn.map(drop).ok_or(Errno::NOENT)
}

/// Whether what is published under its own name has that still, and may: it may have been unlinked or
/// renamed while its content was looked at, and is not to come back.
pub fn is_still_due(txn: &Transaction, how: Publication, to: &Dentry) -> bool {
    let stays =
        matches!(how, Publication::Stay | Publication::Rest) && !failpoint::mutant("C11-meanwhile");
    !stays || (txn.dentry() == to && may_commit_so_far(txn))
}

/// Whether what is written so far may be published so, for who has the content.
pub fn may_be_published(content: &mut Content, how: Publication) -> OpResult<()> {
    if let Some(failure) = &content.failed {
        return Err(failure.errno);
    }
    if how == Publication::Rest {
        let rests = content.changed && content.rests_for(AT_REST);
        if !rests || !(failpoint::mutant("C21-rest") || content.is_whole()?) {
            return Err(Errno::NODATA);
        }
    }
    failpoint::delay("COMMITFS_PUBLISH_DELAY_MS");
    Ok(())
}

/// What was published of an open file its close acknowledges, as it does what it commits itself: where
/// closes are durable, and where the program has called fsync before that (C7).
pub fn owe(engine: &Engine, txn: &Transaction, how: Publication, seq: Seq) {
    let has_synced = how == Publication::Rest && txn.has_synced();
    let stays = matches!(how, Publication::Stay | Publication::Rest);
    if stays && (has_synced || engine.config.durability == Durability::Sync) {
        txn.staging.owe(seq);
    }
}
