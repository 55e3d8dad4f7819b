//! Opens at what a lookup has found, on the first lookup or the second.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::opening::{Goal, OpenRequest, OpenStep, Opened, PendingOpen, Way, writes};
use crate::engine::base::{current, lines, strangers};
use crate::engine::deciding::rounds;
use crate::engine::descriptions::append::writing;
use crate::engine::descriptions::open::{joining, writers};
use crate::engine::descriptions::retries;
use crate::engine::descriptions::retries::Arrival;
use crate::engine::documents::texts;
use crate::engine::meaning::pins::Arriving;
use crate::engine::meaning::resolve::name_now;
use crate::engine::meaning::{deciding, group_locks, ledger, pins, seeing};
use crate::engine::versions::shared::{is_database, is_edit};
use crate::engine::versions::{beginning, direct};
use crate::engine::versions::{durability, growing, shared};
use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode, Stream};
use crate::sys::failpoint;
use crate::txn::Begun;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId};

/// A truncate(2) at a version's node: like an open for writing, it is sent round.
pub fn begin_truncate(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    dentry: Dentry,
) -> OpResult<TxnId> {
    // Not the node the caller came by: another version may have been committed since.
    let base = current::current_if_any(engine, state, &dentry)?.ok_or(Errno::NOENT)?;
    let txn = beginning::begin_on(engine, state, dentry.clone(), Begun::Edit(base))?;
    if let Some(txn) = state.txns.get_mut(&txn) {
        txn.participants.expect_thread(caller.tid);
    }
    ledger::note_begin(engine, state, caller.tid, txn);
    if caller.tid == 0 {
        return Ok(txn);
    }
    let way = Way::Own { txn, empties: None };
    let note = PendingOpen::new(dentry, id, Goal::Truncate, way);
    state.walks.pending_opens.insert(caller.tid, note);
    Err(Errno::STALE)
}

pub fn open_looked_up(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    request: OpenRequest,
    done: impl FnOnce(OpResult<Opened>) + Send + 'static,
) {
    match retries::arrive(engine, caller, node, Goal::Open(request.flags)) {
        Arrival::Opened(opened) => done(Ok(opened)),
        _ => open_arrived(engine, caller, node, request, done),
    }
}

pub fn open_arrived(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    request: OpenRequest,
    done: impl FnOnce(OpResult<Opened>) + Send + 'static,
) {
    strangers::meet(engine, caller, request.flags);
    if texts::is_dirty(engine, node) {
        return engine.on_worker(move |engine| match texts::materialize(engine, node) {
            Ok(()) => open_looked_up(engine, caller, node, request, done),
            Err(errno) => done(Err(errno)),
        });
    }
    let unwritten = pins::unwritten_beside(engine, node);
    if !unwritten.is_empty() {
        return engine.on_worker(move |engine| {
            // Who pins a generation may read these later.
            for dentry in unwritten {
                texts::write_out(engine, &dentry).ok();
            }
            open_materialized(engine, caller, node, request, done);
        });
    }
    let adds = request.flags.contains(OFlags::APPEND) && !request.flags.contains(OFlags::TRUNC);
    if adds && lines::has_json_lines_to_learn(engine, node) {
        return engine.on_worker(move |engine| {
            // What can't be read is opened as a document.
            lines::learn_json_lines(engine, node).ok();
            open_materialized(engine, caller, node, request, done);
        });
    }
    if has_to_come_out(engine, caller, node, request.flags) {
        return engine.on_worker(move |engine| {
            // Should the disk fail, the version that is there is opened as any other.
            durability::checkpoint_all(engine).ok();
            open_materialized(engine, caller, node, request, done);
        });
    }
    open_materialized(engine, caller, node, request, done);
}

pub fn open_materialized(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    request: OpenRequest,
    done: impl FnOnce(OpResult<Opened>) + Send + 'static,
) {
    match open_now(engine, caller, node, request.flags) {
        Ok(OpenStep::Done(opened)) if texts::dirty_editor(engine, opened.handle).is_some() => {
            engine.on_worker(move |engine| done(materialize_editor(engine, opened)));
        }
        Ok(OpenStep::Done(opened)) => match growing::grown_in_place(engine, opened.handle) {
            Some(file) => {
                engine.on_worker(move |engine| {
                    done(growing::end_growing(engine, file).map(|()| opened))
                });
            }
            None => done(Ok(opened)),
        },
        Ok(OpenStep::Wait(dentry)) => {
            engine.on_worker(move |engine| {
                let opened = writers::open_waiting(engine, caller, node, &dentry, request.flags);
                done(opened.and_then(|opened| materialize_editor(engine, opened)));
            });
        }
        Ok(OpenStep::Undecided(txn)) => {
            engine.on_worker(move |engine| {
                deciding::await_decision(engine, txn);
                open_looked_up(engine, caller, node, request, done);
            });
        }
        Ok(OpenStep::InUse(txn)) => {
            engine.on_worker(move |engine| {
                match joining::join_emptied(engine, caller, txn, request.flags) {
                    Err(Errno::STALE) => open_looked_up(engine, caller, node, request, done),
                    opened => done(opened),
                }
            });
        }
        Err(e) => done(Err(e)),
    }
}

/// Whether what was committed under a direct name is still to be brought into the backing
/// directory: it was renamed to it, say. Only there it is shared.
pub fn has_to_come_out(engine: &Engine, caller: Caller, id: NodeId, flags: OFlags) -> bool {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let Some(node) = state.nodes.get(id).filter(|n| n.kind == NodeKind::File) else {
        return false;
    };
    let looked_up = seeing::looked_up(state, caller.tid, id);
    let Some(dentry) = looked_up.or(node.at.as_ref()) else {
        return false;
    };
    let is_pending = state.pending.get(dentry.dir, &dentry.name).is_some();
    if !is_pending || node.direct > 0 || failpoint::mutant("C14") {
        return false;
    }
    let dentry = dentry.clone();
    engine.policy(state, &dentry, Creation::default()).mode == RuleMode::Direct
        || shared::is_companion(engine, state, &dentry, flags)
        || is_edit(flags)
            && is_database(state, id) == Ok(true)
            && !failpoint::mutant("C14-in-place")
}

/// See `texts::materialize_base`.
pub fn materialize_editor(engine: &Arc<Engine>, opened: Opened) -> OpResult<Opened> {
    let Some(txn) = texts::dirty_editor(engine, opened.handle) else {
        return Ok(opened);
    };
    let settled = texts::materialize_base(engine, txn);
    settled.map(|()| opened).inspect_err(|_| {
        // The kernel closes nothing that it was not given.
        let node = engine.lock().txns.get(&txn).map(|t| t.node);
        if let Some(node) = node {
            engine.release(node, opened.handle, None);
        }
    })
}

pub fn open_now(engine: &Engine, caller: Caller, id: NodeId, flags: OFlags) -> OpResult<OpenStep> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if let Some(txn) = state.deciding_at(id) {
        return Ok(OpenStep::Undecided(txn));
    }
    // An open through a path is looked up right before; one through a magic link is not.
    let looked_up = seeing::looked_up(state, caller.tid, id).cloned();
    state.walks.lookups.remove(&caller.tid);
    let note = retries::take_pending_open(engine, state, caller.tid, Goal::Open(flags));
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    let unwalked = note.as_ref().filter(|n| n.old == id && !n.looked_up);
    let is_read = !writes(flags) && node.kind == NodeKind::File && !node.dead;
    if let Some(note) = unwalked.filter(|_| !is_read) {
        return retries::open_unwalked(engine, state, caller, note, flags);
    }
    let by_name = unwalked.is_none() && (looked_up.is_some() || state.nodes.kept_names.is_kept(id));
    let waited = note.is_some();
    if let NodeKind::Private(txn) = node.kind
        && state.txns.contains_key(&txn)
    {
        let walked = looked_up;
        let opened =
            writers::open_private(engine, state, caller, txn, (flags, note), walked.as_ref());
        // It may have another name by now than the one that its opener looks up once more.
        if let Some(note) = state.walks.pending_opens.get_mut(&caller.tid)
            && let Some(walked) = walked
        {
            note.dentry = walked;
        }
        return opened;
    }
    if let Some(prepared) = note.and_then(|n| n.own()) {
        beginning::drop_unopened(engine, state, prepared);
    }
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    if node.dead {
        let dentry = looked_up.or_else(|| node.at.clone());
        return open_gone(engine, state, caller, id, dentry, flags);
    }
    match node.kind {
        NodeKind::Dir => return Err(Errno::ISDIR),
        NodeKind::Special => return Err(Errno::NXIO),
        NodeKind::Private(_) | NodeKind::File => {}
    }
    let dentry = looked_up.or_else(|| node.at.clone());
    leave_pinned(engine, state, caller, (id, dentry.as_ref()), flags)?;
    let is_direct = shared::opens_direct(engine, state, id, dentry.as_ref(), flags)?;
    // h5py opens what it is about to save anew for a moment as it is: who reads it then goes from one generation to the next, as ever.
    if is_direct && (writes(flags) || failpoint::mutant("C23-pin-direct")) {
        return direct::open_direct(engine, state, caller, id, flags).map(OpenStep::Done);
    }
    if !writes(flags) {
        let found = (id, dentry.as_ref(), (by_name, waited));
        return open_to_read(engine, state, caller, found, (flags, is_direct));
    }
    let dentry = dentry.ok_or(Errno::STALE)?;
    if let Some(stream) = stream_to_add_to(engine, state, caller, (id, &dentry), flags) {
        return writing::open_appender(engine, state, caller, id, dentry, (flags, stream))
            .map(OpenStep::Done);
    }
    writers::open_for_writing(engine, state, caller, id, dentry, flags, false)
}

/// At the node of a transaction that has committed nothing and ended since it was looked up. The
/// kernel looks it up once more only: whoever it is has to be served then.
pub fn open_gone(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    dentry: Option<Dentry>,
    flags: OFlags,
) -> OpResult<OpenStep> {
    let dentry = dentry.ok_or(Errno::STALE)?;
    let policy = group_locks::policy_for(engine, state, caller, &dentry, Creation::default());
    let adds = flags.contains(OFlags::APPEND) && lines::by_lines(&policy);
    if !writes(flags) || policy.mode == RuleMode::Direct || adds {
        return Err(retries::retry_anew(
            engine,
            state,
            caller.tid,
            (dentry, id),
            Goal::Open(flags),
        ));
    }
    writers::open_for_writing(engine, state, caller, id, dentry, flags, false)
}

/// An open for reading of a version that was found `by_name`, or of one that a description leads to. `waited`: it is the end of a
/// second lookup.
fn open_to_read(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (id, dentry, (by_name, waited)): (NodeId, Option<&Dentry>, (bool, bool)),
    (flags, is_direct): (OFlags, bool),
) -> OpResult<OpenStep> {
    let found = (dentry.filter(|_| by_name), id, waited);
    let now = |engine: &Engine, state: &mut State, dentry: &Dentry| {
        rounds::decide_left_of(engine, state, dentry);
        name_now(engine, state, dentry)
    };
    match pins::arrive(engine, state, caller, found, now) {
        Arriving::Lost => Err(Errno::STALE),
        Arriving::Anew => {
            let found = (dentry.cloned().ok_or(Errno::STALE)?, id);
            Err(retries::retry_anew(
                engine,
                state,
                caller.tid,
                found,
                Goal::Open(flags),
            ))
        }
        Arriving::Here(pinned) => {
            let opened = match is_direct {
                true => direct::open_direct(engine, state, caller, id, flags)?,
                false => joining::open_version(engine, state, caller, id, dentry, flags)?,
            };
            pins::note_opened(state, caller.tid, pinned.as_ref(), opened.handle);
            Ok(OpenStep::Done(opened))
        }
    }
}

/// How lines are added to a version by who opens it so.
fn stream_to_add_to(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (id, dentry): (NodeId, &Dentry),
    flags: OFlags,
) -> Option<Stream> {
    let adds = flags.contains(OFlags::APPEND) && !flags.contains(OFlags::TRUNC);
    let none = Creation::default();
    let policy = adds.then(|| group_locks::policy_for(engine, state, caller, dentry, none))?;
    let stream = lines::adds_lines(state, id, &policy);
    stream.filter(|_| !state.unmount.is_forced())
}

/// Who has pinned an older version, and writes, goes on from the current one.
fn leave_pinned(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    (id, dentry): (NodeId, Option<&Dentry>),
    flags: OFlags,
) -> OpResult<()> {
    let Some(dentry) = dentry.filter(|_| writes(flags)) else {
        return Ok(());
    };
    let had = pins::leave(engine, state, caller.tid, dentry);
    match had && current::current_if_any(engine, state, dentry)? != Some(id) {
        true => {
            let found = (dentry.clone(), id);
            Err(retries::retry_anew(
                engine,
                state,
                caller.tid,
                found,
                Goal::Open(flags),
            ))
        }
        false => Ok(()),
    }
}
