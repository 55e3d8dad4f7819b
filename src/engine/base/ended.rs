//! What is known of a transaction that has ended, or is to end otherwise than it was prepared to.

use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::{Engine, State};
use crate::sys::failpoint;
use crate::txn::Abort;
use crate::types::{OpResult, TxnId};

/// What a close is told whose transaction has ended before it. By force (C20), if an unmount by force is under way: then what it
/// held is in rejected.
pub fn told_of_ended(state: &State, id: TxnId) -> OpResult<()> {
    match state.unmount.is_forced() || state.txns.is_aborting(id) {
        true => Err(Errno::IO),
        false => Ok(()),
    }
}

/// What keeps a rescued text from being committed: others have closed the file since (C18).
pub fn overtaken_rescue(engine: &Engine, state: &mut State, id: TxnId) -> Option<Abort> {
    let txn = state.txns.get(&id)?;
    let by_parts = txn.preparation.ready().is_some_and(|r| r.by_parts);
    let rescue = txn.promise.rescue()?.clone();
    if by_parts || *txn.dentry() != rescue.dentry || failpoint::mutant("C18-rescued") {
        return None;
    }
    let current = current::current_if_any(engine, state, &rescue.dentry);
    (current != Ok(rescue.over)).then_some(rescue.abort)
}
