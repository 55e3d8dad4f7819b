//! Opens to write: a transaction of its own, or one that is there.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::opening::{Goal, OpenStep, Opened, Pass, PendingOpen, Way, writes};
use crate::engine::base::{current, lines, setid};
use crate::engine::descriptions::kinds::StagedFile;
use crate::engine::descriptions::open::joining;
use crate::engine::descriptions::{retries, slots};
use crate::engine::meaning::{group_locks, ledger, seeing};
use crate::engine::versions::beginning;
use crate::engine::versions::beginning::Beginning;
use crate::engine::versions::shared;
use crate::engine::versions::shared::is_outsider;
use crate::engine::{Engine, State};
use crate::file::Opening;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Stream};
use crate::sys::{at, proc};
use crate::txn::Begun;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId};

/// An open that arrives at a transaction's private node.
pub fn open_private(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: TxnId,
    (flags, note): (OFlags, Option<PendingOpen>),
    walked: Option<&Dentry>,
) -> OpResult<OpenStep> {
    let prepared = note.as_ref().and_then(PendingOpen::own);
    let fresh = prepared == Some(id);
    match note.map(|n| n.way) {
        Some(Way::Own { empties, .. }) if fresh => {
            seeing::has_walked(state, id, walked);
            if let Some(emptied) = empties.and_then(|own| state.txns.get_mut(&own)) {
                emptied.note_emptied(id);
            }
        }
        _ => prepared
            .into_iter()
            .for_each(|prepared| beginning::drop_unopened(engine, state, prepared)),
    }
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    if let Some(dentry) = walked.cloned()
        && !fresh
        && is_outsider(state, txn, caller)
    {
        // It was everybody's when it was looked up: the next lookup finds what is.
        let node = txn.node;
        if writes(flags) {
            return open_for_writing(engine, state, caller, node, dentry, flags, false);
        }
        return Err(retries::retry_anew(
            engine,
            state,
            caller.tid,
            (dentry, node),
            Goal::Open(flags),
        ));
    }
    let (dentry, node) = (txn.dentry().clone(), txn.node);
    if !writes(flags) {
        return read_staged(engine, state, caller, id, flags).map(OpenStep::Done);
    }
    // Emptying a name through its path is a transaction of its own; through /proc/self/fd it
    // is the same file description's.
    if !fresh && flags.contains(OFlags::TRUNC) && walked.is_some() {
        return open_for_writing(engine, state, caller, node, dentry, flags, false);
    }
    if !fresh && flags.contains(OFlags::TRUNC) {
        return joining::empty_and_join(engine, state, caller, id, flags);
    }
    joining::join(engine, state, caller, id, flags).map(OpenStep::Done)
}

/// Who reads what a transaction has written.
fn read_staged(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: TxnId,
    flags: OFlags,
) -> OpResult<Opened> {
    ledger::note_staged_read(state, caller, id);
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    // What others write into the file beside an editor becomes part of what it has.
    let keep_cache = !txn.purpose.edits();
    let common = txn.visibility.is_common();
    let opener = proc::tgid(caller.tid).unwrap_or(caller.tid);
    let handle = Arc::new(StagedFile {
        txn: id,
        shown: txn.purpose.shown(),
        staging: txn.staging.clone(),
        writes: false,
        opening: Opening::with(flags & proc::HOW, (opener, caller.tid)),
    });
    Ok(Opened {
        handle: state.add_handle(handle),
        keep_cache,
        // What its writers write goes by the kernel's pages.
        direct_io: engine.kernel.uncached(),
        // It may become a database's, whose locks go with any close.
        no_flush: !common,
        pass: Pass::Beside,
    })
}

/// A transaction for who opens to write. It takes the writer slot, if it is to (`slot`: beside a silent holder), or is common (`shares`).
fn begin_to_write(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    beginning: Beginning,
    (flags, slot, shares): (OFlags, Option<bool>, bool),
) -> OpResult<TxnId> {
    let txn = beginning::begin(engine, state, beginning)?;
    if let Some(t) = state.txns.get_mut(&txn) {
        if let Some(beside) = slot {
            t.slot.take(beside);
        }
        t.participants.expect(proc::tgid(caller.tid).unwrap_or(0));
        let how = (flags.contains(OFlags::TRUNC), flags.contains(OFlags::RDWR));
        let streams = lines::is_stream_by_rule(&t.policy, how);
        let stream = streams.then_some(Stream::Lines);
        t.purpose.note_lines(false, stream);
        if shares {
            t.visibility.make_common();
        }
    }
    ledger::note_begin(engine, state, caller.tid, txn);
    if flags.contains(OFlags::TRUNC) {
        drop_set_id(state, caller, txn)?;
    }
    Ok(txn)
}

/// The transaction at whose node an open has come, if it is the caller's.
fn own_at(state: &State, caller: Caller, node: NodeId) -> Option<TxnId> {
    let own = match state.nodes.get(node).map(|n| n.kind) {
        Some(NodeKind::Private(own)) => state.txns.get(&own),
        _ => None,
    };
    let own = own.filter(|txn| !is_outsider(state, txn, caller));
    own.map(|txn| txn.id)
}

/// A writer at a node that isn't its own: sends it round to a private one. `waited`: it has
/// waited for the writer slot, or given up doing so.
pub fn open_for_writing(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    dentry: Dentry,
    flags: OFlags,
    waited: bool,
) -> OpResult<OpenStep> {
    if state.unmount.is_forced() {
        return Err(Errno::ROFS);
    }
    // Not the node the caller came by: another version may have been committed since.
    let base = current::current_if_any(engine, state, &dentry)?;
    let edits = base.is_some() && !flags.intersects(OFlags::TRUNC | OFlags::APPEND);
    let takes_slot = edits && !is_empty_file(state, base);
    let beside = takes_slot && slots::slot_holders(state, &dentry).next().is_some();
    if takes_slot && !waited && must_wait(state, caller, &dentry) {
        if flags.contains(OFlags::NONBLOCK) {
            return Err(Errno::AGAIN);
        }
        return Ok(OpenStep::Wait(dentry));
    }
    let own = own_at(state, caller, id);
    if base.is_none() && own.is_none() && caller.tid != 0 {
        // It is gone. Whether it is to be made anew, the kernel knows.
        return Err(retries::retry_anew(
            engine,
            state,
            caller.tid,
            (dentry, id),
            Goal::Open(flags),
        ));
    }
    let policy = group_locks::policy_for(engine, state, caller, &dentry, Creation::default());
    let shares = edits && !takes_slot && caller.tid != 0 && shared::shares(engine, &policy, flags);
    if let Some(common) = shared::common_at(state, &dentry, base).filter(|_| shares) {
        return Err(retries::retry_to_common(
            engine,
            state,
            caller,
            (dentry, id),
            common,
            flags,
        )?);
    }
    let slot = takes_slot.then_some(waited && beside);
    let begun = Begun::by_open(base, false, flags.contains(OFlags::TRUNC));
    // Nothing is committed yet: it is the file that the caller has just created.
    let like = base.is_none().then_some(id);
    let beginning = Beginning {
        reading: engine.reading(flags),
        dentry: dentry.clone(),
        begun,
        policy,
        fresh: None,
        like,
    };
    let txn = begin_to_write(engine, state, caller, beginning, (flags, slot, shares))?;
    if caller.tid == 0 {
        return retries::open_shared(engine, state, caller, txn, flags).map(OpenStep::Done);
    }
    if shares {
        return Err(retries::retry_to_common(
            engine,
            state,
            caller,
            (dentry, id),
            txn,
            flags,
        )?);
    }
    let way = Way::Own { txn, empties: own };
    let note = PendingOpen::new(dentry, id, Goal::Open(flags), way);
    state.walks.pending_opens.insert(caller.tid, note);
    Err(Errno::STALE)
}

/// Whoever need not wait for the holder waits for no others who do: the holder may be waiting
/// for its child.
pub fn must_wait(state: &State, caller: Caller, dentry: &Dentry) -> bool {
    let queued = state.names.has_queue(dentry);
    let held = slots::slot_holders(state, dentry).next().is_some();
    slots::slot_holder(state, caller, dentry, None).is_some() || (queued && !held)
}

pub fn is_empty_file(state: &State, node: Option<NodeId>) -> bool {
    node.and_then(|n| state.nodes.fd(n).ok())
        .and_then(|fd| at::stat(&*fd).ok())
        .is_none_or(|s| s.st_size == 0)
        && node
            .and_then(|n| state.nodes.get(n))
            .is_none_or(|n| n.unwritten.is_none())
}

/// A change of the content by a process without CAP_FSETID clears the set-id bits; the daemon,
/// who makes the change on its behalf, has the capability.
pub fn drop_set_id(state: &State, caller: Caller, id: TxnId) -> OpResult<()> {
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    let fd = state.nodes.fd(txn.node)?;
    setid::drop_set_id(&*fd, caller, Some(&txn.staging))
}

/// Waits for the writer slot, then opens.
pub fn open_waiting(
    engine: &Engine,
    caller: Caller,
    node: NodeId,
    dentry: &Dentry,
    flags: OFlags,
) -> OpResult<Opened> {
    let mut state = slots::wait_for_slot(engine, caller, dentry)?;
    let result = match current::current_if_any(engine, &mut state, dentry)? {
        Some(_) => open_for_writing(
            engine,
            &mut state,
            caller,
            node,
            dentry.clone(),
            flags,
            true,
        ),
        // It was removed or renamed meanwhile: the next lookup says so.
        None => {
            let goal = Goal::Open(flags);
            Err(retries::retry_anew(
                engine,
                &mut state,
                caller.tid,
                (dentry.clone(), node),
                goal,
            ))
        }
    };
    drop(state);
    match result? {
        OpenStep::Done(opened) => Ok(opened),
        OpenStep::Wait(_) | OpenStep::Undecided(_) | OpenStep::InUse(_) => Err(Errno::AGAIN),
    }
}
