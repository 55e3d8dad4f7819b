//! A program empties a file by its name, and goes on writing through the descriptor that it has had open
//! before (`mailbox.MH`: open r+, lock, `os.close(os.open(path, O_WRONLY | O_TRUNC))`, write). On the
//! plain directory both are one file. Here the emptying is a transaction of its own; who has written
//! nothing since takes over what it has made of the name.

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::descriptions::locking;
use crate::engine::documents::texts;
use crate::engine::meaning::{ledger, metadata};
use crate::engine::{Engine, State};
use crate::namespace::Shown;
use crate::sys::failpoint;
use crate::txn::Staging;
use crate::types::{NodeId, OpResult, TxnId};

/// Whether its own program has emptied the name since a transaction was written.
pub fn is_emptied(engine: &Engine, id: TxnId) -> bool {
    let state = engine.lock();
    let emptied = state.txns.get(&id).is_some_and(|t| t.purpose.is_emptied());
    emptied && !failpoint::mutant("C9-emptied")
}

/// Goes on from what the name means now. `adds`: a new log that has nothing yet goes on as one, and
/// its first line comes behind that. On a worker.
pub fn take_over_emptied(
    engine: &Engine,
    id: TxnId,
    staging: &Arc<Staging>,
    adds: bool,
) -> OpResult<()> {
    let dentry = engine.lock().txns.get(&id).map(|t| t.dentry().clone());
    let mut content = staging.lock();
    let mut guard = texts::lock_materialized(engine, &dentry.ok_or(Errno::IO)?)?;
    let state = &mut *guard;
    let Some(txn) = state.txns.get_mut(&id) else {
        return Ok(());
    };
    let Some(by) = txn.purpose.take_emptied() else {
        return Ok(());
    };
    let (dentry, node) = (txn.dentry().clone(), txn.node);
    let is_log = txn.purpose.is_log();
    let stays = adds && is_log && !failpoint::mutant("C10-own-save");
    if stays || state.txns.contains_key(&by) {
        // Nothing is committed of it yet, and nothing was left.
        drop(guard);
        return content.truncate(0);
    }
    let Some(current) = current::current_if_any(engine, state, &dentry)? else {
        return Ok(());
    };
    let fd = state.nodes.fd(current)?;
    content.take_over(Shown::growing(&state.nodes, current)?);
    metadata::refresh_metadata(engine, &content.file, staging, &fd)?;
    goes_on_from(state, id, current);
    drop(guard);
    drop(content);
    locking::tell_moved(engine, node);
    Ok(())
}

/// A transaction has nothing of its own, and a version of its name for a base.
fn goes_on_from(state: &mut State, id: TxnId, current: NodeId) {
    let body = state.files.body(current);
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.purpose.start_anew_from(current, body);
        txn.visibility.end_claim();
    }
    ledger::note_rebased(state, id, current);
}
