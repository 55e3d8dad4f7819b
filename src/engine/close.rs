//! Closing: FLUSH prepares, RELEASE commits.
//!
//! close() waits for FLUSH and reports its error, so everything that can fail happens there.
//! RELEASE comes once, after the last reference, and close() doesn't wait for it; it is queued
//! before close() returns, and since requests are handled in order, whatever the program asks
//! next finds the commit done. So RELEASE commits without anything that could fail.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::io::Errno;

use super::copies::{Copies, RENEWALS};
use super::handle::{
    Asked, Closing, FlushRest, OpenFile, Progress, Unlock, Worked, close_unwritten,
};
use super::locking::end_unchanged;
use super::prepare::{check_target, told_of_ended};
use super::{Durability, Engine, State, rounds};
use crate::conflict::Save;
use crate::guard::Guard;
use crate::journal::Record;
use crate::locks::FileId;
use crate::namespace::NodeKind;
use crate::store::{Rejected, id_name};
use crate::sys::{at, failpoint, proc};
use crate::txn::{Abort, GrownBase, Phase, Staging, Transaction};
use crate::types::{Caller, Dentry, HandleId, NodeId, OpResult, Seq, TxnId, now_ns, path_hex};

/// Transactions that are being decided upon hold up an unmount no longer than this.
pub(super) const DECISION_LIMIT: Duration = Duration::from_secs(5);

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
        let engine = self.clone();
        self.pool.run(move || {
            let worked = match (open, rest) {
                (Some(open), FlushRest::Tail { .. } | FlushRest::Content { .. }) => {
                    open.flush_rest(&engine, &close, rest)
                }
                _ => Some(end_unchanged(&engine, &close, rest)),
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

    /// A writing description of a transaction is closed. Called under the state's lock, which it gives back.
    pub(super) fn flush_writer(
        &self,
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
                && nothing.is_some_and(|(dentry, base)| self.is_another_file(state, &dentry, base));
            (closer, commits && !no_op)
        });
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
    pub(super) fn flush_content(
        &self,
        id: TxnId,
        staging: &Arc<Staging>,
        close: &Closing,
        closer: (u32, u32),
    ) -> Worked {
        let Asked { caller, handle } = close.by;
        self.look_for_mapping(id, caller.tid, closer);
        self.commit_written(caller, close.locked_file(), Some(id));
        let shows = self.unpublished_stream(id).is_some() && self.is_changed(id);
        // A killed child that inherited it shows nothing of what it was about to write.
        let result = if shows && Engine::killed_flusher(caller).is_none() {
            match self.publish_first(id, handle, closer.0, b"") {
                Ok(None) => return None,
                Ok(Some(last)) => self.acknowledge(last),
                Err(errno) => Err(errno),
            }
        } else {
            self.prepare(id, staging, closer.0)
        };
        if close.locked {
            self.unlock_at_close(caller, id, close.file, close.owner);
        }
        Some(result)
    }

    /// Where closes promise it, a commit is on the medium when its close returns (C19).
    pub(super) fn acknowledge(&self, seq: Seq) -> OpResult<()> {
        match self.config.durability {
            Durability::Sync if !failpoint::mutant("C19-sync-appender") => self.await_durable(seq),
            _ => Ok(()),
        }
    }

    pub(super) fn is_changed(&self, id: TxnId) -> bool {
        self.lock().txns.get(&id).is_some_and(|t| t.is_changed())
    }

    /// A close gives the closing process's fcntl locks back, but only once what was written under
    /// them is committed: by RELEASE if that follows, else now.
    fn unlock_at_close(&self, caller: Caller, id: TxnId, file: FileId, owner: u64) {
        // Nobody is to wait for them until an idle child ends.
        let by_release = self.is_surely_last(id) && {
            let mut state = self.lock();
            let txn = state.txns.get_mut(&id);
            txn.map(|t| t.releases.push(owner)).is_some()
        };
        if by_release {
            return;
        }
        self.commit_by_close(caller, id);
        self.release_posix(file, owner);
    }

    /// What a killed writer leaves is no commit, though another process may hold it open; nor does
    /// one commit that is killed and has merely inherited it.
    pub(super) fn commit_by_close(&self, caller: Caller, id: TxnId) {
        let killed = Engine::killed_flusher(caller).is_some();
        let commits = |t: &Transaction| !t.has_lost_a_writer() && (!killed || t.is_exempt());
        if self.lock().txns.get(&id).is_some_and(commits) {
            self.commit_point(id, caller.tid);
        }
    }

    /// The last reference of a description is gone. `owner` is that of its flock locks.
    pub fn release(self: &Arc<Self>, node: NodeId, handle: HandleId, owner: Option<u64>) {
        let half = self.lock().handles.get(handle).cloned();
        if let Some(file) = half.filter(|file| file.may_hold_half()) {
            let engine = self.clone();
            return self.pool.run(move || {
                file.leave_half(&engine, handle);
                drop(file);
                engine.release(node, handle, owner);
            });
        }
        let mut state = self.lock();
        let unlock = Unlock {
            file: state.file_of(node),
            handle,
            owner,
        };
        match state.handles.remove(handle) {
            Some(file) => file.release(self, state, unlock),
            None => self.give_back(&mut state, &unlock),
        }
    }

    /// The last reference of a writing description is gone: its transaction ends with its last. Called under the state's
    /// lock, which it gives back.
    pub(super) fn release_writer(
        self: &Arc<Self>,
        mut guard: MutexGuard<'_, State>,
        id: TxnId,
        staging: &Arc<Staging>,
        unlock: Unlock,
    ) {
        let state = &mut *guard;
        let Some(t) = state.txns.get_mut(&id) else {
            return self.give_back(state, &unlock);
        };
        if !t.phase.release() {
            return self.give_back(state, &unlock);
        }
        if failpoint::mutant("C2") {
            t.phase = Phase::Reserved;
            drop(guard);
            return self.finish_late(id, staging.clone(), unlock);
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
                && self.still_fits(state, id)
                && self.has_all_added(grown_of(state, id)));
        // FLUSH has prepared nothing, and there is nothing to wait for.
        if (ready || self.is_no_op(state, id)) && !rescue {
            let aborted = self.finish(state, id);
            self.give_back(state, &unlock);
            drop(guard);
            if let Some(aborted) = aborted {
                let engine = self.clone();
                self.pool.run(move || engine.finish_aborted(aborted));
            }
            return;
        }
        drop(guard);
        self.finish_later(id, staging.clone(), unlock);
    }

    /// See [`Appends::are_all_in`](super::append::Appends::are_all_in).
    pub(super) fn has_all_added(&self, grown: Option<GrownBase>) -> bool {
        grown.is_none_or(|g| self.appends.are_all_in(&g))
    }

    /// Content that changed after its last FLUSH (a mapping) is prepared now, on a worker;
    /// lookups of the name wait meanwhile.
    fn finish_later(self: &Arc<Self>, id: TxnId, staging: Arc<Staging>, unlock: Unlock) {
        let engine = self.clone();
        self.pool.run(move || {
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
                engine.prepare(id, &staging, pid).ok();
                failpoint::delay("COMMITFS_DECIDE_DELAY_MS");
                if rescue {
                    engine.rescue(id, &staging);
                }
                let copies = engine.copies_of_prepared(id);
                let grows = grown_of(&engine.lock(), id).is_some();
                let nobody_adds = grows.then(|| engine.appends.lock());
                let mut state = engine.lock();
                let grown = grown_of(&state, id);
                let fits = engine.still_fits(&mut state, id);
                let is_final = !state.is_unprepared(id) || failpoint::mutant("C9-deciding");
                let follows = copies.fit(&state, id) || tries > RENEWALS;
                if is_final && fits && follows && grown.is_none_or(|g| g.is_complete()) {
                    break (state, nobody_adds, copies);
                }
                drop(state);
                copies.remove(&engine.store);
            };
            let aborted = engine.finish_with(&mut state, id, copies);
            engine.give_back(&mut state, &unlock);
            drop(state);
            // Before what aborts is locked: its owner may wait for this.
            drop(nobody_adds);
            if let Some(aborted) = aborted {
                engine.finish_aborted(aborted);
            }
        });
    }

    /// What becomes of close-to-open consistency when a commit just comes some time after close().
    fn finish_late(self: &Arc<Self>, id: TxnId, staging: Arc<Staging>, unlock: Unlock) {
        let engine = self.clone();
        self.pool.run(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            engine.finish_later(id, staging, unlock);
        });
    }

    /// Commits a transaction that never had a description (truncate(2)), or says why not.
    pub(super) fn commit_alone(
        self: &Arc<Self>,
        id: TxnId,
        staging: &Arc<Staging>,
        result: OpResult<()>,
    ) -> OpResult<()> {
        let pid = self.lock().txns.get_mut(&id).map_or(0, |t| {
            t.preparation.begin();
            t.participants.opener()
        });
        let mut result = result.and_then(|()| self.prepare(id, staging, pid));
        let mut state = self.lock();
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
        let aborted = self.finish(&mut state, id);
        drop(state);
        if let Some(aborted) = aborted {
            self.finish_aborted(aborted);
        }
        result?;
        if self.config.durability == Durability::Sync {
            self.checkpoint_all()?;
        }
        Ok(())
    }
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
        self.leave_halves();
        // Their close() has returned 0.
        let state = self.await_all_decisions(Instant::now() + DECISION_LIMIT);
        crate::sys::interrupt::stop_all();
        let ids: Vec<TxnId> = state.txns.keys().copied().collect();
        self.abort_by_force(state, &ids);
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
}

/// What is to become of a transaction whose last reference is gone: an error where it doesn't commit, and why if that is one.
/// `None`: it has ended.
fn ending(engine: &Engine, state: &mut State, id: TxnId) -> Option<Result<(), Option<Abort>>> {
    let adds_nothing = engine.is_no_op(state, id);
    let txn = state.txns.get(&id)?;
    if txn.is_unlinked() || !txn.would_commit() || adds_nothing {
        return Some(Err(None));
    }
    let death = txn.death().filter(|_| txn.is_doomed());
    let abort = match (death, txn.preparation.refusal()) {
        (Some(death), _) => Some(death),
        (None, Some(verdict)) => Some(verdict.clone()),
        // Nothing is dropped that way: what it holds goes to rejected.
        (None, None) if txn.preparation.ready().is_none() => Some(Abort::FailedWrite {
            what: "prepare",
            errno: Errno::IO,
        }),
        (None, None) => check_target(engine, state, txn.dentry())
            .err()
            .map(|errno| Abort::VanishedTarget { errno }),
    };
    Some(abort.map_or(Ok(()), |abort| Err(Some(abort))))
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

/// A transaction that won't commit, on its way out.
pub(super) struct Aborted {
    txn: Transaction,
    path: PathBuf,
    abort: Option<Abort>,
}

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

    /// Whether a transaction that is still listed would replace what somebody else has committed by nothing of its own.
    pub(super) fn is_no_op(&self, state: &mut State, id: TxnId) -> bool {
        let nothing = state
            .txns
            .get(&id)
            .filter(|t| t.purpose.holds_nothing())
            .map(|t| (t.dentry().clone(), t.purpose.base()));
        nothing.is_some_and(|(dentry, base)| self.is_another_file(state, &dentry, base))
    }

    fn is_another_file(&self, state: &mut State, dentry: &Dentry, base: Option<NodeId>) -> bool {
        matches!(self.current_if_any(state, dentry), Ok(Some(current))
            if Some(current) != base
                && state.nodes.get(current).is_some_and(|n| n.kind == NodeKind::File))
    }

    /// Takes a transaction's node out of the way; what becomes of the content is done on a worker.
    fn abort(&self, state: &mut State, mut txn: Transaction, abort: Option<Abort>) -> Aborted {
        // What its FLUSH has promised holds no more, and everybody sees that from now on: whoever left a mapping was killed, say.
        let promised = txn.preparation.withdraw();
        if let Some(ready) = promised.filter(|_| !failpoint::mutant("C4-withdrawn")) {
            self.sequencer
                .append(&Record::Unprepared { id: ready.id })
                .ok();
        }
        if abort.is_some() {
            let begun = Engine::begin_record(state, &txn, false);
            state.txns.begin_abort(txn.id, begun);
        }
        if let Some(node) = state.nodes.get_mut(txn.node) {
            node.kind = NodeKind::File;
            node.unlinked = true;
        }
        let read = state.handles.of(txn.id).next().is_some();
        // Who reads the staged content goes on reading it, be it the base's.
        if !read {
            self.let_go(state, txn.node);
        } else if let Some(content) = txn.staging.try_lock()
            && content.must_copy()
            && let Ok(base) = at::reopen(&*content.readable().file, rustix::fs::OFlags::PATH)
            && let Some(node) = state.nodes.get_mut(txn.node)
        {
            node.forwarded = Some(Arc::new(base));
        }
        if let Some(abort) = &abort {
            *state.counters.aborts.entry(abort.counter()).or_default() += 1;
            let kept = txn.staging.try_lock();
            let is_kept = !txn.purpose.is_restore() && kept.is_none_or(|c| c.size() != Ok(0));
            let kept = is_kept.then_some(txn.staging_id);
            let path = self.show(state, txn.dentry());
            let (pid, command) = txn.participants.who();
            log::warn!(
                "{path}: not committed: {abort}; opened by {pid} ({command}){}",
                kept.map_or(String::new(), |id| format!(
                    "; content kept as rejected/{}",
                    id_name(id)
                ))
            );
            // Who restores content is told by its close, and the content is there already.
            if !txn.purpose.is_restore() {
                // Listed with the others of its round.
                let listed = kept.map(|kept| txn.round().unwrap_or(kept));
                self.remember_error(state, txn.dentry(), abort, (pid, command), listed);
            }
            let is_new = txn.purpose.creates();
            let is_killed = matches!(abort, Abort::Killed { .. });
            if is_new && is_killed && txn.policy.guard == Guard::None {
                state.offer_what_there_is(txn.dentry());
            }
        } else if txn.is_unlinked() {
            *state
                .counters
                .aborts
                .entry(Abort::Discarded.counter())
                .or_default() += 1;
        }
        let path = self.path_of(state, txn.dentry());
        self.reaper.closes().begin();
        Aborted { txn, path, abort }
    }

    /// Moves aborted content to rejected, or removes what held nothing.
    pub(super) fn finish_aborted(&self, aborted: Aborted) {
        failpoint::delay("COMMITFS_REJECT_DELAY_MS");
        let content = aborted.txn.staging.lock();
        let id = content.id;
        // Where nothing was copied, nothing was written.
        let untouched = content.must_copy();
        let len = content.size().ok().filter(|_| !untouched).unwrap_or(0);
        drop(content);
        let kept = match &aborted.abort {
            Some(abort) if len > 0 && !aborted.txn.purpose.is_restore() => {
                let (pid, command) = aborted.txn.participants.to_who();
                let meta = Rejected {
                    id,
                    path: aborted.path.to_string_lossy().into_owned(),
                    path_hex: path_hex(&aborted.path),
                    reason: abort.to_string(),
                    time_ns: now_ns(),
                    pid,
                    command,
                    len,
                    round: aborted.txn.round().map(id_name),
                };
                self.keep_rejected(&meta);
                true
            }
            _ => {
                self.store.remove_staging(id).ok();
                false
            }
        };
        self.sequencer.append(&Record::Abort { id }).ok();
        let mut state = self.lock();
        state.txns.end_abort(aborted.txn.id);
        state.counters.rejected += u64::from(kept);
        drop(state);
        // Its space is free only when nobody has it open.
        drop(aborted);
        self.reaper.closes().end();
    }

    /// A guard's refusal of a rename or link: told, counted and remembered.
    /// The thread of that number (0: the daemon itself) doesn't get what it has asked for. On a worker.
    pub(super) fn refuse(&self, dentry: &Dentry, abort: Abort, by: u32) -> Errno {
        let by = proc::tgid(by).filter(|_| !failpoint::mutant("C22-who"));
        let pid = by.unwrap_or(0);
        let command = proc::comm(pid).unwrap_or_default();
        let mut state = self.lock();
        let errno = abort.errno();
        *state.counters.aborts.entry(abort.counter()).or_default() += 1;
        log::warn!(
            "{}: not put under this name: {abort}; asked for by {pid} ({command})",
            self.show(&state, dentry)
        );
        self.remember_error(&mut state, dentry, &abort, (pid, &command), None);
        errno
    }
}
