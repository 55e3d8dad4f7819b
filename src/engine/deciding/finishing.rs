//! What is decided when a transaction has lost its last description: a commit, a place in a round of its group, or an abort.

use parking_lot::MutexGuard;

use crate::engine::base::state;
use crate::engine::deciding::copies::Copies;
use crate::engine::deciding::{copies, rounds};
use crate::engine::meaning::turns;
use crate::engine::versions::aborting::{Aborted, ending, leave};
use crate::engine::versions::{aborting, publish};
use crate::engine::{Engine, State};
use crate::journal::Record;
use crate::sys::failpoint;
use crate::txn::Abort;
use crate::types::TxnId;

/// Decides: commits, or gives what is left of a transaction that doesn't.
pub fn finish(engine: &Engine, state: &mut State, id: TxnId) -> Option<Aborted> {
    let ending = ending(engine, state, id)?;
    match &ending {
        Ok(()) if rounds::hold(engine, state, id) => return None,
        Err(Some(abort)) => rounds::refuse(state, id, abort),
        _ => {}
    }
    let txn = state.remove_transaction(id)?;
    let save = state.conflicts.registry.saves.get(&id).cloned();
    turns::end_turn(state, txn.dentry(), id);
    let file = state.file_of(txn.node);
    if txn.slot.is_held() {
        let (path, held) = (engine.show(state, txn.dentry()), txn.started.elapsed());
        state
            .tally
            .lock_stats
            .note(&path, |t| t.holds.observe(held));
    }
    let releases = txn.releases.clone();
    let committed = txn.preparation.ready().map(|c| c.id);
    let aborted = match ending {
        Ok(()) => {
            publish::commit(engine, state, txn, save.as_ref());
            None
        }
        Err(abort) => Some(aborting::abort(engine, state, txn, abort)),
    };
    let committed = committed.filter(|_| aborted.is_none());
    leave(engine, state, (id, committed), save);
    for owner in releases {
        state.locks.release_posix(file, owner);
    }
    state::note_ended(engine, state, file);
    aborted
}

/// Decides, also about the links that follow it.
pub fn finish_with(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    copies: Copies,
) -> Option<Aborted> {
    let aborted = finish(engine, state, id);
    // What waits for its round is no version yet.
    let waits = state.txns.contains_key(&id) && !failpoint::mutant("C23-linked");
    match aborted {
        None if !waits => copies::publish_copies(engine, state, copies),
        _ => copies.remove(&engine.store),
    }
    aborted
}

/// Sends some open transactions to rejected.
pub fn abort_by_force(engine: &Engine, mut state: MutexGuard<'_, State>, ids: &[TxnId]) {
    let mut all = Vec::new();
    for &id in ids {
        if let Some(txn) = state.txns.get_mut(&id) {
            if let Some(ready) = txn.preparation.refuse(Abort::Forced) {
                engine
                    .sequencer
                    .append(&Record::Unprepared { id: ready.id })
                    .ok();
            }
            txn.participants.leave();
            all.extend(finish(engine, &mut state, id));
        }
    }
    drop(state);
    aborting::finish_aborted(engine, all);
}
