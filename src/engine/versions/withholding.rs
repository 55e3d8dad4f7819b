//! What was promised to be on the medium (C7), and isn't to be committed: a write of it has failed (C5), or its close was told that it is
//! refused. The journal is told before the program is, since a recovery would take all that is staged for "as of the fsync, or newer".

use crate::engine::Engine;
use crate::engine::versions::durability;
use crate::journal::Record;
use crate::sys::failpoint;
use crate::txn::{Staging, Transaction, Withheld};
use crate::types::TxnId;

/// A call of this transaction is about to be told that it has failed. On a worker: this waits for the disk if something was promised before.
pub fn tell_failed(engine: &Engine, id: TxnId, staging: &Staging) {
    let told_by = {
        let content = staging.lock();
        let mut state = engine.lock();
        let Some(txn) = state.txns.get_mut(&id) else {
            return;
        };
        // What fails again, or was refused meanwhile, is told already.
        if content.failed.is_some() && txn.promise.withheld().is_none() {
            withhold(engine, txn, true);
        }
        txn.promise.withheld().map(|withheld| withheld.told_by)
    };
    if let Some(appends) = told_by.filter(|_| !failpoint::mutant("C5-synced")) {
        // If that fails, the journal is lost, and nothing is committed any more.
        durability::sync_journal_to(engine, appends).ok();
    }
}

/// Of a transaction that was promised something, the journal is told that it isn't committed for that.
pub fn withhold(engine: &Engine, txn: &mut Transaction, as_fsynced: bool) {
    let is_told = |withheld: Withheld| withheld.as_fsynced == as_fsynced;
    if txn.promise.told().is_none()
        || txn.promise.withheld().is_some_and(is_told)
        || failpoint::mutant("C5-told")
    {
        return;
    }
    let told = engine
        .sequencer
        .append_all(&[record(txn.staging_id, as_fsynced)]);
    match told {
        Ok(appends) => note(txn, as_fsynced, appends),
        Err(errno) => log::error!(
            "the journal can't be told that {} isn't to be committed: {errno}",
            crate::store::id_name(txn.staging_id)
        ),
    }
}

/// What the journal is told.
pub fn record(id: TxnId, as_fsynced: bool) -> Record {
    Record::Withheld { id, as_fsynced }
}

/// The journal is told so by its first `appends`.
pub fn note(txn: &mut Transaction, as_fsynced: bool, appends: u64) {
    txn.promise.withhold(Withheld {
        as_fsynced,
        told_by: appends,
    });
}
