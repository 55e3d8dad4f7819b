//! Locks of groups that are given back: what was saved under them is decided before anybody else is granted them.
//!
//! What is open still keeps the lock taken for a moment: `with open(f, "r+") as f, lock:` closes right after the unlock. After that
//! a file that is edited in place is committed as far as it is written, as an unlock of its own does it (C12), and what is written anew
//! shows when it is closed, by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::base::lock_files::still_claims;
use crate::engine::base::savers::{lets_go_by_ending, wake_watch};
use crate::engine::base::state::sleep_until;
use crate::engine::deciding::rounds::decide_at_once;
use crate::engine::deciding::settling::{decide, finish_later};
use crate::engine::descriptions::commit_points;
use crate::engine::descriptions::locking::LockRequest;
use crate::engine::meaning::group_locks;
use crate::engine::versions::durability;
use crate::engine::{Durability, Engine, State};
use crate::group::{HeldLock, LockHold};
use crate::journal::Record;
use crate::locks::FileId;
use crate::runtime::Awaited;
use crate::types::{Dentry, HandleId, NodeId, TxnId};

/// So long what is open as its lock is given back may take to be closed.
const GRACE: Duration = Duration::from_secs(1);
/// So long who gives a lock back waits for the decision, which others wait for at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was saved under a lock that is about to be given back.
#[derive(Clone, Copy, Debug)]
pub struct LockedRound {
    round: TxnId,
    /// Who gives it back is told only once all of it is on the medium.
    durable: bool,
}

fn saved_in(engine: &Engine, state: &State, holding: &LockHold) -> Option<LockedRound> {
    let round = state.txns.rounds.get(holding.round?)?;
    let has_promised = |id: TxnId| {
        let txn = state.txns.get(&id);
        txn.is_some_and(|txn| txn.promise.has_fsynced())
    };
    let durable = engine.config.durability == Durability::Sync || round.saved().any(has_promised);
    Some(LockedRound {
        round: round.id,
        durable,
    })
}

/// What was saved under the locks that an unlock may give back.
pub fn saved_under(engine: &Engine, unlock: &LockRequest) -> Vec<LockedRound> {
    let state = engine.lock();
    let file = state.file_of(unlock.node);
    let is_its = |h: &&LockHold| match &h.held {
        HeldLock::Advisory(of, lock) => *of == file && lock.owner == unlock.owner,
        HeldLock::File(..) => false,
    };
    let holdings = state.txns.rounds.holdings.iter().filter(is_its);
    holdings
        .filter_map(|h| saved_in(engine, &state, h))
        .collect()
}

/// Locks of a file were given back: decides of what was saved under them, as far as there is nothing to wait for.
pub fn decide_given_back(engine: &Engine, state: &mut State, file: FileId) {
    if state.txns.rounds.holdings.is_empty() {
        return;
    }
    let of_file = |h: &&LockHold| matches!(&h.held, HeldLock::Advisory(of, _) if *of == file);
    let let_go = state.txns.rounds.holdings.iter().filter(of_file);
    let let_go = let_go.filter(|h| h.let_go.is_some());
    let rounds: Vec<TxnId> = let_go.filter_map(|h| h.round).collect();
    for round in rounds {
        decide_at_once(engine, state, round);
    }
    group_locks::free_undecided(state);
    if state.txns.rounds.holdings.is_any_let_go() {
        wake_watch(state);
    }
}

/// RELEASE: the last reference of a description is gone, and the locks that it held.
pub fn release(engine: &Arc<Engine>, node: NodeId, handle: HandleId, owner: Option<u64>) {
    let locked = {
        let state = engine.lock();
        let is_any_held = !state.txns.rounds.holdings.is_empty();
        is_any_held.then(|| state.file_of(node))
    };
    engine.release(node, handle, owner);
    if let Some(file) = locked {
        decide_given_back(engine, &mut engine.lock(), file);
    }
}

/// Waits until it is decided of what was saved under a lock, but not for what is open. On a worker.
pub fn await_decided(engine: &Arc<Engine>, saved: &[LockedRound]) {
    let until = Instant::now() + PATIENCE;
    for saved in saved {
        let id = saved.round;
        loop {
            finish_later(engine, decide(engine, id, false));
            let mut state = engine.lock();
            let Some(round) = state.txns.rounds.get(id) else {
                break;
            };
            let is_open = |id: TxnId| state.txns.get(&id).is_some_and(|t| t.phase.is_open());
            if round.writing().any(|(_, id)| is_open(id)) || Instant::now() >= until {
                break;
            }
            sleep_until(
                &mut state,
                &[Awaited::AnyTransaction],
                Instant::now() + Duration::from_millis(20),
            );
        }
    }
    if saved.iter().any(|saved| saved.durable) {
        let last = engine.sequencer.last();
        if let Err(errno) = durability::await_durable(engine, last) {
            log::error!("what was saved under a lock is not on the disk: {errno}");
        }
    }
}

/// Whether who gives a lock back has to wait for something.
pub fn must_wait(engine: &Engine, saved: &[LockedRound]) -> bool {
    if saved.is_empty() {
        return false;
    }
    let state = engine.lock();
    let is_open = |saved: &LockedRound| state.txns.rounds.get(saved.round).is_some();
    saved.iter().any(|saved| saved.durable || is_open(saved))
}

/// A name is about to be removed, or to mean another file: if it is a lock file, it is given back by that. Gives what has to be
/// decided first.
pub fn let_go_of_name(engine: &Engine, dentry: &Dentry) -> Vec<LockedRound> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let holdings = &state.txns.rounds.holdings;
    if holdings.is_empty() {
        return Vec::new();
    }
    let is_its = |h: &&LockHold| matches!(&h.held, HeldLock::File(name, _) if name == dentry);
    let found = holdings.iter().filter(is_its);
    let found: Vec<(u64, Option<LockedRound>)> =
        found.map(|h| (h.id, saved_in(engine, state, h))).collect();
    for (id, _) in &found {
        let State { txns, locks, .. } = state;
        // Who removes it goes on.
        if let Some(round) = txns.rounds.let_go(*id, locks, |_| false) {
            decide_at_once(engine, state, round);
        }
    }
    group_locks::free_undecided(state);
    let left = found.into_iter().filter_map(|(_, saved)| saved);
    let left: Vec<LockedRound> = left
        .filter(|saved| saved.durable || state.txns.rounds.get(saved.round).is_some())
        .collect();
    if !left.is_empty() {
        wake_watch(state);
    }
    left
}

/// What was saved under a lock file is decided before that is gone. On a worker.
pub fn end_lock_file(engine: &Arc<Engine>, saved: &[LockedRound]) {
    for saved in saved {
        leave_open(engine, saved.round);
    }
    await_decided(engine, saved);
}

/// What is open of a round as its lock is given back is none of it any more. On a worker.
pub fn leave_open(engine: &Engine, round: TxnId) {
    let edited = {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let Some(found) = state.txns.rounds.get(round) else {
            return;
        };
        let writing = found.writing();
        let writing: Vec<(Dentry, TxnId)> = writing.map(|(d, id)| (d.clone(), id)).collect();
        let mut edited = Vec::new();
        for (dentry, id) in writing {
            let Some(txn) = state.txns.get_mut(&id).filter(|t| t.phase.is_open()) else {
                continue;
            };
            txn.purpose.join_round(None);
            let staged = txn.staging_id;
            if txn.purpose.edits() && txn.purpose.is_changed() {
                edited.push((id, txn.participants.opener()));
            }
            let freed = state.txns.rounds.leave(round, &dentry, id);
            state.txns.rounds.freed += freed;
            state.txns.rounds.counts.alone += 1;
            let none = Record::Grouped {
                id: staged,
                round: TxnId::default(),
            };
            engine.sequencer.append(&none).ok();
            log::info!(
                "{}: still open, so not published with what was saved under its lock",
                engine.show(state, &dentry)
            );
        }
        group_locks::free_undecided(state);
        edited
    };
    for (id, pid) in edited {
        commit_points::commit_point(engine, id, pid);
    }
}

/// Ends what has been open for too long, and looks after lock files that are no longer what they were. Gives whether any lock is
/// given back and not free yet.
pub fn look_after(engine: &Arc<Engine>) -> bool {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.txns.rounds.holdings.is_empty() {
        return false;
    }
    group_locks::free_undecided(state);
    let files = state.txns.rounds.holdings.iter();
    let files = files.filter_map(|h| match &h.held {
        HeldLock::File(dentry, node) if h.let_go.is_none() => Some((h.id, dentry.clone(), *node)),
        _ => None,
    });
    for (id, dentry, node) in files.collect::<Vec<_>>() {
        if !still_claims(engine, state, &dentry, node) {
            let State { txns, locks, .. } = state;
            txns.rounds.let_go(id, locks, lets_go_by_ending);
        }
    }
    let rounds = &state.txns.rounds;
    let is_overdue = |h: &&LockHold| h.let_go.is_some_and(|at| at.elapsed() >= GRACE);
    let overdue = rounds.holdings.iter().filter(is_overdue);
    let overdue = overdue.filter_map(|h| rounds.get(h.round?));
    let overdue: Vec<TxnId> = overdue
        .filter(|round| round.is_written())
        .map(|round| round.id)
        .collect();
    let is_any = rounds.holdings.is_any_let_go();
    drop(guard);
    for round in overdue {
        engine.on_worker(move |engine| {
            leave_open(engine, round);
            finish_later(engine, decide(engine, round, false));
        });
    }
    is_any
}
