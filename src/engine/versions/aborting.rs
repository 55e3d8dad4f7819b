//! Transactions that don't commit: why, and what becomes of their content.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use crate::conflict::Save;
use crate::engine::base::ended::overtaken_rescue;
use crate::engine::base::target::check_target;
use crate::engine::base::{current, errors};
use crate::engine::versions::{durability, room, withholding};
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::journal::Record;
use crate::namespace::NodeKind;
use crate::store::{Rejected, id_name};
use crate::sys::{at, failpoint, proc};
use crate::txn::{Abort, Transaction};
use crate::types::{Dentry, TxnId, now_ns, path_hex};

/// So many contents go to rejected at a time: those of other transactions wait for the disk meanwhile.
const TOGETHER: usize = 256;

/// A transaction that won't commit, on its way out.
pub struct Aborted {
    txn: Transaction,
    path: PathBuf,
    abort: Option<Abort>,
}

/// What is to become of a transaction whose last reference is gone: an error where it doesn't commit, and why if that is one.
/// `None`: it has ended.
pub fn ending(engine: &Engine, state: &mut State, id: TxnId) -> Option<Result<(), Option<Abort>>> {
    let adds_nothing = current::is_no_op(engine, state, id);
    let overtaken = overtaken_rescue(engine, state, id);
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
        (None, None) => overtaken.or_else(|| {
            check_target(engine, state, txn.dentry())
                .err()
                .map(|errno| Abort::VanishedTarget { errno })
        }),
    };
    Some(abort.map_or(Ok(()), |abort| Err(Some(abort))))
}

/// What a new journal is told of what is on its way to rejected.
fn told_of(state: &State, txn: &Transaction) -> Vec<Record> {
    let mut told = vec![durability::begin_record(state, txn, false)];
    let id = txn.staging_id;
    told.extend(txn.round().map(|round| Record::Grouped { id, round }));
    if !failpoint::mutant("C7-aborting") {
        told.extend(txn.promise.records(id));
    }
    told
}

/// Takes a transaction's node out of the way; what becomes of the content is done on a worker.
pub fn abort(
    engine: &Engine,
    state: &mut State,
    mut txn: Transaction,
    abort: Option<Abort>,
) -> Aborted {
    // What its FLUSH has promised holds no more, and everybody sees that from now on: whoever left a mapping was killed, say.
    let promised = txn.preparation.withdraw();
    if let Some(ready) = promised.filter(|_| !failpoint::mutant("C4-withdrawn")) {
        engine
            .sequencer
            .append(&Record::Unprepared { id: ready.id })
            .ok();
    }
    if abort.is_some() {
        withholding::withhold(engine, &mut txn, false);
        let begun = told_of(state, &txn);
        state.txns.begin_abort(txn.id, begun);
    }
    if let Some(node) = state.nodes.get_mut(txn.node) {
        node.kind = NodeKind::File;
        node.unlinked = true;
    }
    let read = state.handles.of(txn.id).next().is_some();
    // Who reads the staged content goes on reading it, be it the base's.
    if !read {
        engine.let_go(state, txn.node);
    } else if let Some(content) = txn.staging.try_lock()
        && content.must_copy()
        && let Ok(base) = at::reopen(&*content.readable().file, rustix::fs::OFlags::PATH)
        && let Some(node) = state.nodes.get_mut(txn.node)
    {
        node.forwarded = Some(Arc::new(base));
    }
    if let Some(abort) = &abort {
        state.tally.counters.note_abort(abort.counter());
        let kept = txn.staging.try_lock();
        let is_kept = !txn.purpose.is_restore() && kept.is_none_or(|c| c.size() != Ok(0));
        let kept = is_kept.then_some(txn.staging_id);
        let path = engine.show(state, txn.dentry());
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
            errors::remember_error(engine, state, txn.dentry(), abort, (pid, command), listed);
        }
        let is_new = txn.purpose.creates();
        let is_killed = matches!(abort, Abort::Killed { .. });
        if is_new && is_killed && txn.policy.guard == Guard::None {
            state.offer_what_there_is(txn.dentry());
        }
    } else if txn.is_unlinked() {
        state.tally.counters.note_abort(Abort::Discarded.counter());
    }
    let path = engine.path_of(state, txn.dentry());
    engine.reaper.closes().begin();
    Aborted { txn, path, abort }
}

/// Moves aborted contents to rejected, or removes what held nothing.
pub fn finish_aborted(engine: &Engine, aborted: impl IntoIterator<Item = Aborted>) {
    let mut aborted = aborted.into_iter().peekable();
    if aborted.peek().is_none() {
        return;
    }
    failpoint::delay("COMMITFS_REJECT_DELAY_MS");
    let mut kept = 0;
    loop {
        let together: Vec<Aborted> = aborted.by_ref().take(TOGETHER).collect();
        if together.is_empty() {
            break;
        }
        kept += finish_together(engine, together);
    }
    if kept > 0 {
        room::bound_rejected(engine);
    }
}

/// Gives how many of them are kept.
fn finish_together(engine: &Engine, aborted: Vec<Aborted>) -> usize {
    let (mut metas, mut ids) = (Vec::new(), Vec::new());
    for aborted in &aborted {
        let content = aborted.txn.staging.lock();
        // Where nothing was copied, nothing was written.
        let untouched = content.must_copy();
        let len = content.size().ok().filter(|_| !untouched).unwrap_or(0);
        let id = content.id;
        ids.push(id);
        drop(content);
        match aborted.meta(id, len) {
            Some(meta) => metas.push(meta),
            None => drop(engine.store.remove_staging(id)),
        }
    }
    room::keep_rejected(engine, &metas);
    for id in ids {
        engine.sequencer.append(&Record::Abort { id }).ok();
    }
    let mut state = engine.lock();
    for aborted in &aborted {
        state.txns.end_abort(aborted.txn.id);
    }
    state.tally.counters.rejected += metas.len() as u64;
    drop(state);
    for aborted in aborted {
        // Its space is free only when nobody has it open.
        drop(aborted);
        engine.reaper.closes().end();
    }
    metas.len()
}

impl Aborted {
    /// What rejected is told of it, if it is kept there.
    fn meta(&self, id: TxnId, len: u64) -> Option<Rejected> {
        let abort = self.abort.as_ref()?;
        if len == 0 || self.txn.purpose.is_restore() {
            return None;
        }
        let (pid, command) = self.txn.participants.to_who();
        Some(Rejected {
            id,
            path: self.path.to_string_lossy().into_owned(),
            path_hex: path_hex(&self.path),
            reason: abort.to_string(),
            time_ns: now_ns(),
            pid,
            command,
            len,
            round: self.txn.round().map(id_name),
        })
    }
}

/// A guard's refusal of a rename or link: told, counted and remembered.
/// The thread of that number (0: the daemon itself) doesn't get what it has asked for. On a worker.
pub fn refuse(engine: &Engine, dentry: &Dentry, abort: Abort, by: u32) -> Errno {
    let by = proc::tgid(by).filter(|_| !failpoint::mutant("C22-who"));
    let pid = by.unwrap_or(0);
    let command = proc::comm(pid).unwrap_or_default();
    let mut state = engine.lock();
    let errno = abort.errno();
    state.tally.counters.note_abort(abort.counter());
    log::warn!(
        "{}: not put under this name: {abort}; asked for by {pid} ({command})",
        engine.show(&state, dentry)
    );
    errors::remember_error(engine, &mut state, dentry, &abort, (pid, &command), None);
    errno
}

/// A transaction has ended, by a commit of this content if by any.
pub fn leave(
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
