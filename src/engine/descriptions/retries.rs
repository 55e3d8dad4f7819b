//! Pending opens: who was answered ESTALE looks its path up once more, and no third time.
//!
//! So whoever is sent round must be served where the second lookup leads, whatever becomes of the name
//! meanwhile and however long it takes: a [`PendingOpen`] says what was asked for, and is good for as
//! long as its thread lives and asks for nothing else. Most lead to the private node of a
//! transaction that was begun for this very caller, and that nobody else can take away. Where there
//! was nothing to begin on (the file was removed, or what the caller had looked up has ended), the
//! lookup of the second lookup does what the open is going to ask for, and the open gets the result.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::opening::{Goal, OpenStep, Opened, Pass, PendingOpen, Way, writes};
use crate::engine::descriptions::open::joining;
use crate::engine::versions::beginning;
use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::failpoint;
use crate::txn::Begun;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId};

/// Sends a thread round; its second lookup finds what the name means by then, and is served there.
pub fn retry_anew(
    engine: &Engine,
    state: &mut State,
    tid: u32,
    (dentry, old): (Dentry, NodeId),
    goal: Goal,
) -> Errno {
    let way = Way::Anew { failed: None };
    if tid != 0 && !failpoint::mutant("C1-walk-anew") {
        let note = PendingOpen::new(dentry, old, goal, way);
        if let Some(before) = state.walks.pending_opens.insert(tid, note) {
            drop_way(engine, state, before.way);
        }
    }
    Errno::STALE
}

/// A lookup has found nothing but what has ended: it would find that for ever.
pub fn leave_retry_at(engine: &Arc<Engine>, tid: u32, node: NodeId) {
    let way = engine.lock().leave_way_to(tid, node);
    if let Some(way) = way {
        leave(engine, way);
    }
}

/// The note of a thread that does what it was about to do when it was sent round; any other is over.
pub fn take_pending_open(
    engine: &Engine,
    state: &mut State,
    tid: u32,
    goal: Goal,
) -> Option<PendingOpen> {
    let note = state.walks.pending_opens.remove(&tid)?;
    if note.goal == goal && note.is_of(tid) {
        return Some(note);
    }
    drop_way(engine, state, note.way);
    None
}

/// A thread creates a file: whatever it was sent round for before is over.
pub fn end_retry(engine: &Arc<Engine>, tid: u32) {
    let mut guard = engine.lock();
    let note = guard.walks.pending_opens.remove(&tid);
    drop(guard);
    if let Some(note) = note {
        leave(engine, note.way);
    }
}

pub fn drop_way(engine: &Engine, state: &mut State, way: Way) {
    if let Way::Own { txn, .. } = way {
        beginning::drop_unopened(engine, state, txn);
    }
}

/// Drops notes that nobody comes back for.
pub fn sweep_retries(engine: &Arc<Engine>) {
    let over: Vec<u32> = {
        let mut state = engine.lock();
        for note in state.walks.pending_opens.values_mut() {
            if let Way::Anew {
                failed: Some(looks),
            } = &mut note.way
            {
                *looks += 1;
            }
        }
        let over = state
            .walks
            .pending_opens
            .iter()
            .filter(|(tid, note)| note.is_over(**tid));
        over.map(|(tid, _)| *tid).collect()
    };
    for tid in over {
        end_retry(engine, tid);
    }
}

/// The second lookup didn't come by: a magic link, an O_PATH handle, a bind mount.
pub fn open_unwalked(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    note: &PendingOpen,
    flags: OFlags,
) -> OpResult<OpenStep> {
    let prepared = note.own();
    if let Some(NodeKind::Private(own)) = state.nodes.get(note.old).map(|n| n.kind)
        && state.txns.contains_key(&own)
    {
        if let Some(prepared) = prepared {
            beginning::drop_unopened(engine, state, prepared);
        }
        if flags.contains(OFlags::TRUNC) {
            return joining::empty_and_join(engine, state, caller, own, flags);
        }
        return joining::join(engine, state, caller, own, flags).map(OpenStep::Done);
    }
    let opened = match prepared {
        Some(prepared) => open_shared(engine, state, caller, prepared, flags),
        None => open_unlinked(engine, state, caller, note, flags),
    };
    opened.map(OpenStep::Done)
}

/// An open of a file that has lost its name, through a description of it.
pub fn open_unlinked(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    note: &PendingOpen,
    flags: OFlags,
) -> OpResult<Opened> {
    if !writes(flags) {
        return Err(Errno::STALE);
    }
    // What somebody has staged is not the caller's to go on from.
    let is_version = state
        .nodes
        .get(note.old)
        .is_some_and(|n| n.kind == NodeKind::File);
    let empties = flags.contains(OFlags::TRUNC) || !is_version;
    let remains = state.nodes.get(note.old).is_some_and(|n| !n.dead);
    let begun = Begun::by_open(remains.then_some(note.old), false, empties);
    let id = beginning::begin_on(engine, state, note.dentry.clone(), begun)?;
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.unlink();
    }
    open_shared(engine, state, caller, id, flags)
}

/// Serves a writer on the readers' node, its pages uncached. With O_TRUNC the kernel drops the node's
/// pages and takes it for empty until it asks for the attributes, as every read and stat does then.
/// Only in a mapping that is touched meanwhile there is nothing (SIGBUS), as on the plain directory
/// always. To refuse would lose what the program saves.
pub fn open_shared(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    txn: TxnId,
    flags: OFlags,
) -> OpResult<Opened> {
    let opened = joining::join(engine, state, caller, txn, flags)?;
    Ok(as_shared(engine, state, txn, opened, flags))
}

/// Sends a thread round to a common transaction, which is opened for it at once: others may write
/// and close it before the lookup is over.
pub fn retry_to_common(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (dentry, old): (Dentry, NodeId),
    txn: TxnId,
    flags: OFlags,
) -> OpResult<Errno> {
    let opened = joining::join(engine, state, caller, txn, flags)?;
    let node = state.txns.get(&txn).ok_or(Errno::STALE)?.node;
    let note = PendingOpen::new(dentry, old, Goal::Open(flags), Way::Opened { node, opened });
    state.walks.pending_opens.insert(caller.tid, note);
    Ok(Errno::STALE)
}

/// See [`open_shared`]: what was opened on a transaction.
pub fn as_shared(
    engine: &Engine,
    state: &mut State,
    txn: TxnId,
    opened: Opened,
    flags: OFlags,
) -> Opened {
    if let Some(txn) = state.txns.get_mut(&txn) {
        txn.participants.share_node();
        if flags.contains(OFlags::TRUNC) {
            engine.strangers.note_emptied(txn.dentry());
        }
    }
    as_other(opened)
}

/// Its file is not the node's.
pub fn as_other(opened: Opened) -> Opened {
    Opened {
        keep_cache: false,
        direct_io: true,
        pass: Pass::Never,
        ..opened
    }
}

pub fn leave(engine: &Arc<Engine>, way: Way) {
    match way {
        Way::Opened { node, opened } => engine.release(node, opened.handle, None),
        way => drop_way(engine, &mut engine.lock(), way),
    }
}

/// How an open arrives.
pub enum Arrival {
    /// At what was opened for it when it came by on its second lookup.
    Opened(Opened),
    /// At the end of its second lookup, but not where that was to lead.
    Elsewhere,
    /// On its first lookup, or where its second was to lead.
    Plain,
}

/// What was opened for a thread when it came by on its second lookup, if that is what it wants. It
/// is closed otherwise.
pub fn arrive(engine: &Arc<Engine>, caller: Caller, node: NodeId, goal: Goal) -> Arrival {
    let mut state = engine.lock();
    let Some(note) = state.walks.pending_opens.get(&caller.tid) else {
        return Arrival::Plain;
    };
    let found = state.walks.lookups.get(&caller.tid);
    let found = found
        .filter(|(_, at)| *at == node)
        .map(|(dentry, _)| dentry);
    let at_the_end = note.is_at_the_end(caller.tid, (node, goal), found);
    let otherwise = match at_the_end {
        true => Arrival::Elsewhere,
        false => Arrival::Plain,
    };
    let Way::Opened { node: at, opened } = note.way else {
        let leads_here = note.own().is_some_and(|own| {
            let kind = state.nodes.get(node).map(|n| n.kind);
            kind == Some(NodeKind::Private(own))
        });
        return if leads_here {
            Arrival::Plain
        } else {
            otherwise
        };
    };
    let wanted = at == node && note.goal == goal && note.is_of(caller.tid);
    state.walks.pending_opens.remove(&caller.tid);
    drop(state);
    if wanted {
        return Arrival::Opened(opened);
    }
    engine.release(at, opened.handle, None);
    otherwise
}
