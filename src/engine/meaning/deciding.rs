//! Between a transaction's last RELEASE and the decision what becomes of it, which may take a worker
//! some time: nobody joins it any more, and nothing is done to its content.
//!
//! A program that closes a file and opens it again at once (a counter that is counted up in a loop)
//! would else go on in what has been promised to be committed as it is: the decision would find it
//! changed, or what is written later would go into a version that others read already.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::engine::base::savers::wake_watch;
use crate::engine::base::state::{sleep, sleep_until};
use crate::engine::base::{current, directories};
use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::runtime::Awaited;
use crate::sys::failpoint;
use crate::txn::Transaction;
use crate::types::{Dentry, NodeId, OpResult, TxnId};

impl State {
    /// The transaction that has this node, if it is being decided upon.
    pub(in crate::engine) fn deciding_at(&self, node: NodeId) -> Option<TxnId> {
        match self.nodes.get(node)?.kind {
            NodeKind::Private(id) => self.is_deciding(id).then_some(id),
            _ => None,
        }
    }

    fn is_deciding(&self, id: TxnId) -> bool {
        let txn = self.txns.get(&id);
        txn.is_some_and(|t| t.phase.is_closing()) && !failpoint::mutant("C9-deciding")
    }

    /// A transaction of the name that is being decided upon.
    pub(in crate::engine) fn deciding_under(&self, dentry: &Dentry) -> Option<TxnId> {
        let mut ids = self.txns.all_at(dentry).map(|t| t.id);
        ids.find(|id| self.is_deciding(*id))
    }

    /// Whether an operation on a name that has failed with ENOENT is to be done again: it was to be done to a transaction which
    /// has been closed since, so that the name has a version by now.
    pub(in crate::engine) fn has_ended(&self, id: TxnId) -> bool {
        !self.txns.contains_key(&id) && !failpoint::mutant("C11-ended")
    }

    /// Whether it would be committed, and yet isn't prepared: something has changed it since.
    pub(in crate::engine) fn is_unprepared(&self, id: TxnId) -> bool {
        self.txns
            .get(&id)
            .is_some_and(|t| t.preparation.is_unfinished() && !t.is_unlinked() && t.would_commit())
    }
}

/// Whether to everybody a file is there that is still to be committed: a claim, or one whose last close was told that
/// it is kept, or of which it is being decided. Who removes its directory, or makes another kind of file of its
/// name, would take that back.
pub fn is_as_good_as_there(txn: &Transaction) -> bool {
    let may_be_kept =
        txn.promise.has_fsynced() || txn.preparation.refusal().is_none() && !txn.is_doomed();
    // What waits for its round is nobody's but its saver's.
    let is_told = txn.is_acknowledged() && !txn.phase.is_held();
    let is_closed = txn.phase.is_closing() && txn.would_commit() && may_be_kept || is_told;
    !txn.is_unlinked()
        && (txn.visibility.is_seen_by_all() || is_closed && !failpoint::mutant("C2-taken"))
}

/// Whether recovery may give a name what an open transaction of it has promised.
pub fn is_promised(state: &State, dentry: &Dentry) -> bool {
    let promises = |t: &Transaction| {
        t.promise.told().is_some() || t.preparation.ready().is_some() || t.is_there()
    };
    state.txns.at(dentry).any(promises)
}

/// Waits, on a worker, until it is decided what becomes of a transaction.
pub fn await_decision(engine: &Engine, id: TxnId) {
    let mut state = engine.lock();
    while state.is_deciding(id) {
        sleep(&mut state, &[Awaited::Transaction(id)]);
    }
}

/// Waits until it is decided of all closed transactions, but not for ever. Gives the state before another begins.
pub fn await_all_decisions(engine: &Engine, until: Instant) -> MutexGuard<'_, State> {
    let mut state = engine.lock();
    while state.txns.keys().any(|id| state.is_deciding(*id))
        && Instant::now() < until
        && !failpoint::mutant("C20-decided")
    {
        sleep_until(&mut state, &[Awaited::AnyTransaction], until);
    }
    state
}

/// Waits until it is decided what becomes of new files of a directory.
pub fn await_creations(state: &mut MutexGuard<'_, State>, dir: NodeId) {
    let creates = |state: &State, t: &Transaction| {
        let is_new = t.purpose.creates() && t.dentry().dir == dir && !t.is_unlinked();
        is_new && (t.phase.is_closing() || t.phase.is_held() && is_due(state, t))
    };
    while state.txns.values().any(|t| creates(state, t)) && !failpoint::mutant("C9-deciding") {
        sleep(state, &[Awaited::Creation(dir)]);
    }
}

/// Waits until it is decided of all that were closed under some names: what is done to these names next is later.
pub fn await_decisions(engine: &Engine, slots: &[&Dentry]) {
    let mut state = engine.lock();
    let is_deciding = |state: &State, dentry: &&Dentry| state.deciding_under(dentry).is_some();
    while let Some(dentry) = slots.iter().find(|dentry| is_deciding(&state, dentry)) {
        sleep(&mut state, &[Awaited::Name((*dentry).clone())]);
    }
}

pub fn exists(engine: &Engine, state: &mut State, dentry: &Dentry) -> OpResult<bool> {
    Ok(state.txns.at(dentry).any(is_as_good_as_there)
        || current::current_if_any(engine, state, dentry)?.is_some())
}

/// Whether a saver of it has ended, so that it is about to be decided what becomes of it: who asks for the name waits for that.
pub fn is_due(state: &State, txn: &Transaction) -> bool {
    let round = txn.round().and_then(|round| state.txns.rounds.get(round));
    let is_due = round.is_some_and(directories::is_due);
    if is_due {
        wake_watch(state);
    }
    is_due
}

/// Transactions that are being decided upon hold up an unmount no longer than this.
pub const DECISION_LIMIT: Duration = Duration::from_secs(5);
