//! What is decided when a transaction has lost its last description: a commit, a place in a round of its group, or an abort.

use parking_lot::MutexGuard;

use super::aborting::{Aborted, ending};
use super::copies::Copies;
use super::{Engine, State, rounds};
use crate::conflict::Save;
use crate::journal::Record;
use crate::txn::Abort;
use crate::types::TxnId;

impl Engine {
    /// Decides: commits, or gives what is left of a transaction that doesn't.
    pub(super) fn finish(&self, state: &mut State, id: TxnId) -> Option<Aborted> {
        let ending = ending(self, state, id)?;
        match &ending {
            Ok(()) if rounds::hold(self, state, id) => return None,
            Err(Some(abort)) => rounds::refuse(state, id, abort),
            _ => {}
        }
        let txn = state.remove_transaction(id)?;
        let save = state.registry.saves.get(&id).cloned();
        self.end_turn(state, txn.dentry(), id);
        let file = state.file_of(txn.node);
        if txn.slot.is_held() {
            let (path, held) = (self.show(state, txn.dentry()), txn.started.elapsed());
            state.lock_stats.note(&path, |t| t.holds.observe(held));
        }
        let releases = txn.releases.clone();
        let committed = txn.preparation.ready().map(|c| c.id);
        let aborted = match ending {
            Ok(()) => {
                self.commit(state, txn, save.as_ref());
                None
            }
            Err(abort) => Some(self.abort(state, txn, abort)),
        };
        let committed = committed.filter(|_| aborted.is_none());
        leave(self, state, (id, committed), save);
        for owner in releases {
            state.locks.release_posix(file, owner);
        }
        self.note_ended(state, file);
        aborted
    }

    /// Decides, also about the links that follow it.
    pub(super) fn finish_with(
        &self,
        state: &mut State,
        id: TxnId,
        copies: Copies,
    ) -> Option<Aborted> {
        let aborted = self.finish(state, id);
        match aborted {
            None => self.publish_copies(state, copies),
            Some(_) => copies.remove(&self.store),
        }
        aborted
    }

    /// Sends some open transactions to rejected.
    pub(super) fn abort_by_force(&self, mut state: MutexGuard<'_, State>, ids: &[TxnId]) {
        let mut all = Vec::new();
        for &id in ids {
            if let Some(txn) = state.txns.get_mut(&id) {
                if let Some(ready) = txn.preparation.refuse(Abort::Forced) {
                    self.sequencer
                        .append(&Record::Unprepared { id: ready.id })
                        .ok();
                }
                txn.participants.leave();
                all.extend(self.finish(&mut state, id));
            }
        }
        drop(state);
        for aborted in all {
            self.finish_aborted(aborted);
        }
    }
}

/// A transaction has ended, by a commit of this content if by any.
pub(super) fn leave(
    engine: &Engine,
    state: &mut State,
    (id, committed): (TxnId, Option<TxnId>),
    save: Option<Save>,
) {
    state.forget_save(id);
    let merges = save.map(|s| s.merges).unwrap_or_default();
    for merge in merges.into_iter().filter(|merge| committed != Some(*merge)) {
        engine.store.remove_staging(merge).ok();
    }
}
