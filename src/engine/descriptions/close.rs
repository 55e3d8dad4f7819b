//! Closing: FLUSH prepares, RELEASE commits.
//!
//! close() waits for FLUSH and reports its error, so everything that can fail happens there.
//! RELEASE comes once, after the last reference, and close() doesn't wait for it; it is queued
//! before close() returns, and since requests are handled in order, whatever the program asks
//! next finds the commit done. So RELEASE commits without anything that could fail.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;

use crate::engine::base::ended::told_of_ended;
use crate::engine::base::handle::{
    Asked, Closing, FlushRest, OpenFile, Progress, Unlock, Worked, close_unwritten,
};
use crate::engine::base::{current, state};
use crate::engine::deciding::copies::RENEWALS;
use crate::engine::deciding::{copies, finishing, judging, merging, prepare, rounds};
use crate::engine::descriptions::append::streams;
use crate::engine::descriptions::locking::end_unchanged;
use crate::engine::descriptions::{commit_points, locking};
use crate::engine::meaning::deciding::DECISION_LIMIT;
use crate::engine::meaning::{deciding, group_locks, probe};
use crate::engine::versions::{aborting, durability, growing};
use crate::engine::{Durability, Engine, State};
use crate::locks::FileId;
use crate::sys::failpoint;
use crate::txn::{Abort, GrownBase, Phase, Staging};
use crate::types::{Caller, HandleId, NodeId, OpResult, Seq, TxnId};

impl Engine {
    /// A descriptor of the description is closed.
    pub fn flush(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        handle: HandleId,
        owner: u64,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let mut state = self.lock();
        state.locks.learn_posix(owner);
        let file = state.file_of(node);
        group_locks::note_close(&mut state, file, caller);
        let close = Closing {
            by: Asked { caller, handle },
            file,
            owner,
            locked: state.locks.holds(file, owner),
        };
        let open = state.handles.get(handle).cloned();
        let progress = match &open {
            Some(open) => open.flush(self, state, &close),
            None => close_unwritten(state, &close),
        };
        let rest = match progress {
            Progress::Done(result) => return done(result),
            Progress::Again => return self.flush(caller, node, handle, owner, done),
            Progress::Rest(rest) => rest,
        };
        let at_once = |open: &Arc<dyn OpenFile>| open.flush_at_once(self, &close, rest);
        if let Some(result) = open.as_ref().and_then(at_once) {
            done(result);
            return failpoint::crash_point("flush-replied");
        }
        self.on_worker(move |engine| {
            let worked = match (open, rest) {
                (Some(open), FlushRest::Tail { .. } | FlushRest::Content { .. }) => {
                    open.flush_rest(engine, &close, rest)
                }
                _ => Some(end_unchanged(engine, &close, rest)),
            };
            let Some(result) = worked else {
                return engine.flush(caller, node, handle, owner, done);
            };
            done(result);
            if let FlushRest::Content { .. } = rest {
                failpoint::crash_point("flush-replied");
            }
        });
    }
}

/// A writing description of a transaction is closed. Called under the state's lock, which it gives back.
pub fn flush_writer(
    engine: &Engine,
    mut guard: MutexGuard<'_, State>,
    id: TxnId,
    staging: &Staging,
    close: &Closing,
) -> Progress<FlushRest> {
    let state = &mut *guard;
    let staged = state.txns.get_mut(&id).and_then(|txn| {
        txn.preparation.begin();
        txn.note_passed();
        // Read at once: the closing task waits for this answer, so it can't be gone yet.
        if !close.locked
            && txn.participants.closes_further(close.by.caller)
            && txn.preparation.note_further_flush()
        {
            return None;
        }
        let closer = txn.participants.close(close.by.caller);
        let nothing = txn.purpose.holds_nothing();
        let nothing = nothing.then(|| (txn.dentry().clone(), txn.purpose.base()));
        Some((closer, txn.would_commit(), nothing))
    });
    let staged = staged.map(|(closer, commits, nothing)| {
        // A failed write is told all the same (C5).
        let failed = staging.try_lock().is_some_and(|c| c.failed.is_some());
        let no_op = !failed
            && nothing.is_some_and(|(dentry, base)| {
                current::is_another_file(engine, state, &dentry, base)
            });
        (closer, commits && !no_op)
    });
    rounds::note_flush(state, id);
    if let Some((closer, true)) = staged {
        return Progress::Rest(FlushRest::Content { closer });
    }
    let owed = staged.map_or(Seq::default(), |_| guard.close_without_commit(id));
    let ended = ended_before(&guard, id);
    drop(guard);
    if !close.locked && owed == Seq::default() {
        return Progress::Done(ended);
    }
    Progress::Rest(FlushRest::Unchanged { owed, ended })
}

/// What is staged is prepared, or committed where nothing is to be waited for. On a worker.
pub fn flush_content(
    engine: &Engine,
    id: TxnId,
    staging: &Arc<Staging>,
    close: &Closing,
    closer: (u32, u32),
) -> Worked {
    let Asked { caller, handle } = close.by;
    probe::look_for_mapping(engine, id, caller.tid, closer);
    commit_points::commit_written(engine, caller, close.locked_file(), Some(id));
    let shows =
        streams::unpublished_stream(engine, id).is_some() && commit_points::is_changed(engine, id);
    // A killed child that inherited it shows nothing of what it was about to write.
    let result = if shows && streams::killed_flusher(caller).is_none() {
        match streams::publish_first(engine, id, handle, closer.0, b"") {
            Ok(None) => return None,
            Ok(Some(last)) => acknowledge(engine, last),
            Err(errno) => Err(errno),
        }
    } else {
        prepare::prepare(engine, id, staging, closer.0)
    };
    if close.locked {
        unlock_at_close(engine, caller, id, close.file, close.owner);
    }
    Some(result)
}

/// Where closes promise it, a commit is on the medium when its close returns (C19).
pub fn acknowledge(engine: &Engine, seq: Seq) -> OpResult<()> {
    match engine.config.durability {
        Durability::Sync if !failpoint::mutant("C19-sync-appender") => {
            durability::await_durable(engine, seq)
        }
        _ => Ok(()),
    }
}

/// A close gives the closing process's fcntl locks back, but only once what was written under
/// them is committed: by RELEASE if that follows, else now.
fn unlock_at_close(engine: &Engine, caller: Caller, id: TxnId, file: FileId, owner: u64) {
    // Nobody is to wait for them until an idle child ends.
    let by_release = probe::is_surely_last(engine, id) && {
        let mut state = engine.lock();
        let txn = state.txns.get_mut(&id);
        txn.map(|t| t.releases.push(owner)).is_some()
    };
    if by_release {
        return;
    }
    commit_points::commit_by_close(engine, caller, id);
    locking::release_posix(engine, file, owner);
}

/// The last reference of a writing description is gone: its transaction ends with its last. Called under the state's
/// lock, which it gives back.
pub fn release_writer(
    engine: &Arc<Engine>,
    mut guard: MutexGuard<'_, State>,
    id: TxnId,
    staging: &Arc<Staging>,
    unlock: Unlock,
) {
    let state = &mut *guard;
    let Some(t) = state.txns.get_mut(&id) else {
        return state::give_back(engine, state, &unlock);
    };
    if !t.phase.release() {
        return state::give_back(engine, state, &unlock);
    }
    if failpoint::mutant("C2") {
        t.phase = Phase::Reserved;
        drop(guard);
        return finish_late(engine, id, staging.clone(), unlock);
    }
    t.participants.note_dead_mapping();
    let rescue = t.promise.has_fsynced()
        && !t.is_unlinked()
        && (t.death().is_some() || matches!(t.preparation.refusal(), Some(Abort::Guard(_))));
    // Or one of the kernel's own.
    let written = staging.is_written() && !t.is_unlinked();
    let refused = t.preparation.refusal().is_some() || !t.would_commit();
    let certain = t.is_unlinked() || refused && !written;
    // A write may have been under way when the last FLUSH looked (a mapping's pages).
    let prepared =
        t.preparation.is_prepared() && !written && staging.try_lock().is_some_and(|c| !c.dirty);
    let ready = certain
        || (prepared
            && !state.names.is_followed(id)
            && merging::still_fits(engine, state, id)
            && growing::has_all_added(engine, grown_of(state, id)));
    // FLUSH has prepared nothing, and there is nothing to wait for.
    if (ready || current::is_no_op(engine, state, id)) && !rescue {
        let aborted = finishing::finish(engine, state, id);
        state::give_back(engine, state, &unlock);
        drop(guard);
        if let Some(aborted) = aborted {
            engine.on_worker(move |engine| aborting::finish_aborted(engine, [aborted]));
        }
        return;
    }
    drop(guard);
    finish_later(engine, id, staging.clone(), unlock);
}

/// Content that changed after its last FLUSH (a mapping) is prepared now, on a worker;
/// lookups of the name wait meanwhile.
fn finish_later(engine: &Arc<Engine>, id: TxnId, staging: Arc<Staging>, unlock: Unlock) {
    engine.on_worker(move |engine| {
        let (pid, rescue) = {
            let state = engine.lock();
            let txn = state.txns.get(&id);
            (
                txn.map_or(0, |t| t.participants.opener()),
                txn.is_some_and(|t| t.promise.has_fsynced()),
            )
        };
        // Others may commit while it is being merged into what they had committed before, or
        // publish it under another name.
        let mut tries = 0;
        let (mut state, nobody_adds, copies) = loop {
            tries += 1;
            failpoint::delay("COMMITFS_DECIDE_DELAY_MS");
            prepare::prepare(engine, id, &staging, pid).ok();
            failpoint::delay("COMMITFS_DECIDE_DELAY_MS");
            if rescue {
                judging::rescue(engine, id, &staging);
            }
            let copies = copies::copies_of_prepared(engine, id);
            let grows = grown_of(&engine.lock(), id).is_some();
            let nobody_adds = grows.then(|| engine.appends.lock());
            let mut state = engine.lock();
            let grown = grown_of(&state, id);
            let fits = merging::still_fits(engine, &mut state, id);
            let is_final = !state.is_unprepared(id) || failpoint::mutant("C9-deciding");
            let follows = copies.fit(&state, id) || tries > RENEWALS;
            if is_final && fits && follows && grown.is_none_or(|g| g.is_complete()) {
                break (state, nobody_adds, copies);
            }
            drop(state);
            copies.remove(&engine.store);
        };
        let aborted = finishing::finish_with(engine, &mut state, id, copies);
        state::give_back(engine, &mut state, &unlock);
        drop(state);
        // Before what aborts is locked: its owner may wait for this.
        drop(nobody_adds);
        aborting::finish_aborted(engine, aborted);
    });
}

/// What becomes of close-to-open consistency when a commit just comes some time after close().
fn finish_late(engine: &Arc<Engine>, id: TxnId, staging: Arc<Staging>, unlock: Unlock) {
    engine.on_worker(move |engine| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        finish_later(engine, id, staging, unlock);
    });
}

/// Commits a transaction that never had a description (truncate(2)), or says why not.
pub fn commit_alone(
    engine: &Arc<Engine>,
    id: TxnId,
    staging: &Arc<Staging>,
    result: OpResult<()>,
) -> OpResult<()> {
    let pid = engine.lock().txns.get_mut(&id).map_or(0, |t| {
        t.preparation.begin();
        t.participants.opener()
    });
    let mut result = result.and_then(|()| prepare::prepare(engine, id, staging, pid));
    let mut state = engine.lock();
    // Nobody else has it open, whatever the last look at descriptors came to.
    if let Some(abort) = state.txns.get(&id).and_then(|t| t.preparation.refusal()) {
        result = result.and(Err(abort.errno()));
    }
    if let (Err(errno), Some(t)) = (result, state.txns.get_mut(&id))
        && t.preparation.refusal().is_none()
    {
        let what = "truncate";
        t.preparation.refuse(Abort::FailedWrite { what, errno });
    }
    let aborted = finishing::finish(engine, &mut state, id);
    drop(state);
    aborting::finish_aborted(engine, aborted);
    result?;
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// What a close is told if its transaction has ended before it.
fn ended_before(state: &State, id: TxnId) -> OpResult<()> {
    match state.txns.contains_key(&id) {
        true => Ok(()),
        false => told_of_ended(state, id),
    }
}

/// The file from which an editor that is to commit still has to take over what others add.
fn grown_of(state: &State, id: TxnId) -> Option<GrownBase> {
    let txn = state.txns.get(&id)?;
    let commits = !txn.is_unlinked() && !txn.is_doomed();
    let ready = txn.preparation.ready().filter(|_| commits)?;
    ready.grown.clone()
}

impl Engine {
    /// Sends every open transaction to rejected (C20, `umount --force`).
    pub fn abort_all(&self) {
        streams::leave_halves(self);
        // Their close() has returned 0.
        let state = deciding::await_all_decisions(self, Instant::now() + DECISION_LIMIT);
        crate::sys::interrupt::stop_all();
        let ids: Vec<TxnId> = state.txns.keys().copied().collect();
        finishing::abort_by_force(self, state, &ids);
    }
}
