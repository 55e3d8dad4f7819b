//! Lock files: what becomes of a claim when the process that has created it has ended.

use rustix::fs::OFlags;

use crate::engine::meaning::group_locks;
use crate::engine::{Engine, State};
use crate::file::Claimant;
use crate::rules::Policy;
use crate::sys::proc;
use crate::types::{Caller, Dentry, NodeId};

pub fn is_open(state: &State, dentry: &Dentry, node: NodeId) -> bool {
    state.txns.at(dentry).any(|t| t.node == node)
        || state.nodes.get(node).is_some_and(|n| n.direct > 0)
}

/// A file was created with O_EXCL.
pub fn note_claim(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
    node: NodeId,
    policy: &Policy,
) {
    group_locks::claimed(engine, state, caller.tid, dentry, node);
    if let Some(stale) = policy.stale {
        let claimant = || Some(Claimant::new(node, proc::tgid(caller.tid)?, stale));
        state.names.claim(dentry, claimant);
    }
}

/// A lock file is there, and somebody has looked its name up: if to create it, it was found taken. The kernel answers that by itself.
pub fn note_taken(engine: &Engine, caller: Caller, dentry: &Dentry) {
    if !engine.lock().names.is_claimed(dentry) {
        return;
    }
    let exclusive = OFlags::CREATE | OFlags::EXCL;
    let creates = |flags: i32| OFlags::from_bits_retain(flags.cast_unsigned()).contains(exclusive);
    if matches!(proc::call_of(caller.tid), Some(proc::Call::Open(flags)) if creates(flags)) {
        let mut state = engine.lock();
        let path = engine.show(&state, dentry);
        state.tally.lock_stats.note(&path, |t| t.taken += 1);
    }
}
