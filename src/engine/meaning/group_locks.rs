//! Locks of groups (C23): who holds one, and what is saved under it.
//!
//! A holding begins as a lock that stands alone is granted, or as a lock file is made with O_EXCL. What its holder saves, and what
//! those save that it has started, joins the holding's round. As the lock is given back it stays taken, by nobody, until it is
//! decided of the round: the next holder finds all of it, or nothing.

use std::path::Path;
use std::sync::Arc;

use crate::engine::base::lock_files::{named_process, still_claims};
use crate::engine::{Engine, State};
use crate::group::{Binding, Group, GroupRound, HeldLock, LockHold, Membership, RoundLock};
use crate::locks::{FileId, Lock, Mode};
use crate::rules::{Creation, Mode as RuleMode, Policy, Publish, Record};
use crate::runtime::Awaited;
use crate::sys::proc::Death;
use crate::sys::process::WaitStatus;
use crate::sys::{failpoint, proc};
use crate::types::{Caller, Dentry, NodeId};

/// A lock is granted: if a group has it, and nobody shares it, what its holder saves is of one round.
pub fn granted(engine: &Engine, state: &mut State, file: FileId, lock: &Lock) {
    if lock.mode != Mode::Exclusive || lock.pid == 0 {
        return;
    }
    let Some(dentry) = lock.at.clone() else {
        return;
    };
    let hold = || HeldLock::Advisory(file, Box::new(lock.clone()));
    hold_by(engine, state, (&dentry, lock.pid), hold);
}

/// A file is made with O_EXCL: if it is a group's lock, its maker holds that.
pub fn claimed(engine: &Engine, state: &mut State, tid: u32, dentry: &Dentry, node: NodeId) {
    if let Some(pid) = proc::tgid(tid) {
        let hold = || HeldLock::File(dentry.clone(), node);
        hold_by(engine, state, (dentry, pid), hold);
    }
}

fn hold_by(
    engine: &Engine,
    state: &mut State,
    (dentry, pid): (&Dentry, u32),
    held: impl Fn() -> HeldLock,
) {
    let Some(path) = state.nodes.path(dentry) else {
        return;
    };
    let groups: Vec<(Arc<Group>, Arc<Binding>)> = engine.rules.read().rules.locks_of(&path);
    for (group, binding) in groups {
        let process = state.txns.rounds.processes.get(pid);
        state.txns.rounds.holdings.add(LockHold {
            id: 0,
            group,
            binding,
            held: held(),
            path: path.clone(),
            pid,
            process,
            parent: proc::parent(pid).unwrap_or(0),
            round: None,
            let_go: None,
            failed: None,
            closed_alive: false,
        });
    }
}

/// Who has taken a lock by a descriptor that it has inherited, or has made a lock file that names another process, and has ended
/// well, leaves it to that: `flock 9` of a shell, and `( set -o noclobber; echo $$ > f )`.
fn pass_on(state: &mut State) {
    let State { txns, nodes, .. } = state;
    let rounds = &mut txns.rounds;
    for holding in rounds.holdings.iter_mut() {
        let ended = holding.process.as_ref().and_then(|process| process.ask());
        let has_ended_well = ended.is_some_and(|WaitStatus(status)| status.unwrap_or(0) == 0);
        if !has_ended_well || holding.let_go.is_some() {
            continue;
        }
        let next = match &holding.held {
            HeldLock::Advisory(..) => Some(holding.parent),
            HeldLock::File(_, node) => named_process(nodes.fd(*node).ok().as_deref()),
        };
        let next = next.filter(|pid| *pid > 1 && !proc::is_ending(*pid));
        if let Some(pid) = next {
            (holding.pid, holding.process) = (pid, rounds.processes.get(pid));
            holding.parent = 0;
        }
    }
}

/// What a name is of a group for a process: by its files, or by the lock that this holds.
pub fn membership(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    policy: &Policy,
    pid: u32,
) -> Option<(Membership, Option<RoundLock>)> {
    if let Some(membership) = policy.group.clone() {
        return Some((membership, None));
    }
    let is_any_held = !state.txns.rounds.holdings.is_empty() && policy.mode == RuleMode::Atomic;
    if !is_any_held || pid == 0 || failpoint::mutant("C23-lock") {
        return None;
    }
    let path = state.nodes.path(dentry)?;
    pass_on(state);
    let (id, membership) = find(state, &path, pid)?;
    let holding = state.txns.rounds.holdings.get(id)?;
    let lock = RoundLock {
        holding: id,
        let_go: None,
        failed: holding.failed.clone(),
    };
    if let HeldLock::File(name, node) = &holding.held {
        // Who has moved it away, or has replaced it, holds it no more.
        let (name, node) = (name.clone(), *node);
        if !still_claims(engine, state, &name, node) {
            return None;
        }
    }
    Some((membership, Some(lock)))
}

/// What a name is to who brings it back from rejected. What was saved under a lock is one, though nobody holds that any more.
pub fn restored(
    engine: &Engine,
    state: &State,
    dentry: &Dentry,
    policy: &Policy,
) -> Option<(Membership, Option<RoundLock>)> {
    let path = state.nodes.path(dentry)?;
    let by_lock = || engine.rules.read().rules.saved_under_lock(&path, policy);
    let membership = policy.group.clone().or_else(by_lock)?;
    Some((membership, None))
}

fn find(state: &State, path: &Path, pid: u32) -> Option<(u64, Membership)> {
    let holdings = &state.txns.rounds.holdings;
    holdings.find(path, pid, proc::is_self_or_descendant)
}

/// How a file is to be treated for who opens it: what the holder of a lock saves is staged to its close, also what it appends.
pub fn policy_for(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
    creation: Creation,
) -> Policy {
    let mut policy = engine.policy(state, dentry, creation);
    if state.txns.rounds.holdings.is_empty() || policy.mode == RuleMode::Direct {
        return policy;
    }
    let pid = proc::tgid(caller.tid).unwrap_or(0);
    if !creation.exclusive && membership(engine, state, dentry, &policy, pid).is_some() {
        (policy.record, policy.publish) = (Some(Record::Close), Publish::Close);
    }
    policy
}

/// A descriptor of a locked file is closed by a process: if that goes on, how it ends is no matter of what it has saved.
pub fn note_close(state: &mut State, file: FileId, caller: Caller) {
    let of_file = |h: &&mut LockHold| matches!(&h.held, HeldLock::Advisory(of, _) if *of == file);
    for holding in state.txns.rounds.holdings.iter_mut().filter(of_file) {
        if proc::tgid(caller.tid) == Some(holding.pid) {
            let death = proc::death_of_flusher(caller.tid, holding.pid);
            holding.closed_alive = death == Death::Alive;
        }
    }
}

/// It is decided of a round: the lock under which it was saved is free, if it was given back. `why` nothing of it is published.
pub fn decided(state: &mut State, round: &GroupRound, why: Option<&str>) {
    let Some(lock) = &round.lock else {
        return;
    };
    let State { txns, locks, .. } = state;
    if let Some(file) = txns.rounds.note_decided(lock.holding, why, locks) {
        locks.take_ended();
        state.wake(Awaited::Locks(file));
    }
}

/// Locks that were given back, and whose rounds have lost all their members, are free.
pub fn free_undecided(state: &mut State) {
    let State { txns, locks, .. } = state;
    for file in txns.rounds.free_undecided(locks) {
        state.wake(Awaited::Locks(file));
    }
}
