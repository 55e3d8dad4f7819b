//! Files that their writers keep open are published as they come to rest (C12).

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::base::publication::Publication;
use crate::engine::base::rest::{AT_REST, FOR_GOOD, PATHS, may_commit_so_far};
use crate::engine::deciding::publishing;
use crate::engine::meaning::probe::Looks;
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::rules::Creation;
use crate::sys::{failpoint, proc};
use crate::txn::{Staging, Transaction};
use crate::types::{OpResult, TxnId, now_ns};

/// Publishes what is written so far of an open file under the name that it has, also if that becomes another one
/// meanwhile: a lock must not be given back without the commit that it stood for because somebody renames the
/// file. NODATA if there is nothing to publish.
pub fn publish_in_place(engine: &Engine, tid: u32, id: TxnId) -> OpResult<()> {
    let dentry_of = |state: &State| {
        let txn = state.txns.get(&id).filter(|txn| may_commit_so_far(txn));
        txn.map(|txn| txn.dentry().clone())
    };
    // Whoever renames it again and again keeps nobody waiting for ever.
    for _ in 0..16 {
        let dentry = dentry_of(&engine.lock()).ok_or(Errno::NODATA)?;
        let published = publishing::publish_open(engine, tid, id, &dentry, Publication::Stay);
        let is_renamed = published.as_ref().is_err_and(|e| *e == Errno::NOENT)
            && dentry_of(&engine.lock()).is_none_or(|now| now != dentry);
        if !is_renamed || failpoint::mutant("C12-renamed") {
            return published.map(drop);
        }
    }
    Err(Errno::NOENT)
}

/// Whether a transaction is one that the watch looks at: somebody has it open and has written.
pub fn may_rest(txn: &Transaction) -> bool {
    txn.phase.is_open()
        && !txn.preparation.is_promised()
        && txn.policy.guard != Guard::None
        && txn.purpose.stream().is_none()
        && !txn.purpose.is_emptied()
        // What the kernel writes by itself is never known to rest.
        && txn.staging.passed().is_none()
        && txn.staging.has_changes()
        && may_commit_so_far(txn)
}

pub fn publish_at_rest(engine: &Engine, id: TxnId) {
    if is_mapped_by_writers(engine, id) {
        return;
    }
    let (dentry, by) = match engine.lock().txns.get(&id) {
        Some(txn) if may_rest(txn) => (txn.dentry().clone(), txn.participants.opener_tid()),
        _ => return,
    };
    match publishing::publish_open(engine, by, id, &dentry, Publication::Rest) {
        // Or it isn't whole, or was written, unlinked or renamed meanwhile.
        Ok(_) | Err(Errno::NODATA | Errno::NOENT) => {}
        Err(e) => {
            let path = engine.show(&engine.lock(), &dentry);
            log::warn!("{path}: whole and at rest, but not committed: {e}");
        }
    }
}

/// The watch: publishes what is whole and at rest, and notes what a rule would publish.
pub fn look_after_rest(engine: &Arc<Engine>) {
    let rules = engine.rules.read().rules.checksum();
    for (id, staging) in writers_at_rest(engine) {
        // Whoever has it is writing, or is being published.
        let Some(mut content) = staging.try_lock() else {
            continue;
        };
        if !content.rests_for(AT_REST) || content.is_judged(rules) {
            continue;
        }
        let publishes = is_published_at_rest(engine, id);
        if !publishes && !content.rests_for(FOR_GOOD) {
            continue;
        }
        content.note_judged(rules);
        let is_rewritten = content.is_rewritten();
        drop(content);
        match publishes {
            true => engine.on_worker(move |engine| publish_at_rest(engine, id)),
            false if is_rewritten => {
                engine.on_worker(move |engine| note_kept_open(engine, id, &staging));
            }
            false => {}
        }
    }
}

pub fn writers_at_rest(engine: &Engine) -> Vec<(TxnId, Arc<Staging>)> {
    let state = engine.lock();
    let open = state.txns.values().filter(|txn| may_rest(txn));
    open.map(|txn| (txn.id, txn.staging.clone())).collect()
}

/// By the rules as they are now: a file that is never closed would never come under a new one.
pub fn is_published_at_rest(engine: &Engine, id: TxnId) -> bool {
    let state = engine.lock();
    let dentry = state.txns.get(&id).map(|txn| txn.dentry());
    dentry.is_some_and(|dentry| {
        engine
            .policy(&state, dentry, Creation::default())
            .publishes_at_rest()
    })
}

/// Stores into a mapping are not told, so what is mapped is never known to be at rest.
pub fn is_mapped_by_writers(engine: &Engine, id: TxnId) -> bool {
    let (looks, writers) = {
        let state = engine.lock();
        let Some(txn) = state
            .txns
            .get(&id)
            .filter(|txn| txn.participants.is_mappable())
        else {
            return false;
        };
        let writers: Vec<u32> = txn.participants.pids().collect();
        (Looks::of(&state, txn), writers)
    };
    let wanted = |ino| looks.may_map(ino);
    let has_mapped = |pid: u32| proc::has_mapped(pid, &wanted) == Some(true);
    writers.into_iter().any(has_mapped)
}

/// A file is kept open that others would like to read: remembered for status, told once.
pub fn note_kept_open(engine: &Engine, id: TxnId, staging: &Staging) {
    let is_whole = {
        let mut content = staging.lock();
        content.rests_for(FOR_GOOD) && content.is_whole() == Ok(true)
    };
    let mut guard = engine.lock();
    let state = &mut *guard;
    let Some(txn) = state.txns.get(&id).filter(|txn| is_whole && may_rest(txn)) else {
        return;
    };
    let path = engine.show(state, txn.dentry());
    let (pid, command) = txn.participants.to_who();
    let paths = &mut state.kept_open.paths;
    if !paths.contains_key(&path) {
        log::info!(
            "{path}: {pid} ({command}) keeps it open and rewrites it; others see that when it closes it, or with a rule \
                 publish = \"whole\""
        );
        let oldest = paths.values().min_by_key(|held| held.time_ns);
        if let (PATHS.., Some(oldest)) = (paths.len(), oldest.map(|held| held.path.clone())) {
            paths.remove(&oldest);
        }
    }
    let held = paths.entry(path.clone()).or_default();
    held.count += 1;
    (held.path, held.pid, held.command, held.time_ns) = (path, pid, command, now_ns());
}
