//! Lookups of who is on its second lookup, and has nowhere to go but where this one leads: they do what the open is going to do.

use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::opening::{Goal, LOOKS, OpenRequest, Opened, PendingOpen, Way, writes};
use crate::engine::descriptions::open::arriving;
use crate::engine::descriptions::retries;
use crate::engine::meaning::{pins, resolve};
use crate::engine::requests::finding;
use crate::engine::versions::shared;
use crate::namespace::NodeKind;
use crate::sys::{failpoint, proc};
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult};

/// A lookup of a thread's second lookup: finds what the name means now, and serves the thread there
/// already. On a worker.
pub fn lookup_and_serve(
    engine: &Arc<Engine>,
    caller: Caller,
    dentry: Dentry,
    goal: Goal,
    done: impl FnOnce(OpResult<Attr>) + Send + 'static,
) {
    failpoint::delay("COMMITFS_LOOKUP_DELAY_MS");
    pins::note_walked(engine, caller, &dentry);
    let found = match finding::lookup_waiting(engine, caller, &dentry) {
        Ok(found) => found,
        Err(errno) => {
            note_failed(engine, caller.tid, &dentry);
            // It asks once more so much later.
            failpoint::delay("COMMITFS_LOOKUP_DELAY_MS");
            return done(Err(errno));
        }
    };
    let node = found.ino;
    failpoint::delay("COMMITFS_SERVE_DELAY_MS");
    match has_to_be_served(engine, caller, &dentry, node, goal) {
        Serving::Here => {}
        Serving::ByItsOpen => return done(Ok(found)),
        Serving::NotHere => {
            engine.forget(node, 1);
            return lookup_and_serve(engine, caller, dentry, goal, done);
        }
    }
    let flags = match goal {
        Goal::Open(flags) => flags,
        Goal::Truncate => {
            engine.forget(node, 1);
            let begun =
                arriving::begin_truncate(engine, &mut engine.lock(), caller, node, dentry.clone());
            return match begun {
                // It has a transaction of its own now.
                Ok(_) | Err(Errno::STALE) => done(finding::lookup_waiting(engine, caller, &dentry)),
                Err(errno) => done(Err(errno)),
            };
        }
    };
    let then = engine.clone();
    arriving::open_looked_up(engine, caller, node, OpenRequest { flags }, move |opened| {
        served(&then, caller, dentry, node, goal, opened, done);
    });
}

/// How the open went that a lookup has made for its thread.
pub fn served(
    engine: &Arc<Engine>,
    caller: Caller,
    dentry: Dentry,
    node: NodeId,
    goal: Goal,
    opened: OpResult<Opened>,
    done: impl FnOnce(OpResult<Attr>) + Send + 'static,
) {
    match opened {
        Ok(opened) => {
            let way = Way::Opened { node, opened };
            let note = PendingOpen::new(dentry, node, goal, way);
            engine.lock().walks.pending_opens.insert(caller.tid, note);
            done(resolve::attr(engine, node));
        }
        // It has a transaction of its own now, or has to look once more.
        Err(Errno::STALE) => {
            engine.forget(node, 1);
            engine.on_worker(
                move |engine| match unbound_goal(engine, caller.tid, &dentry) {
                    Some(goal) => lookup_and_serve(engine, caller, dentry, goal, done),
                    None => done(finding::lookup_waiting(engine, caller, &dentry)),
                },
            );
        }
        Err(errno) => {
            engine.forget(node, 1);
            {
                let mut state = engine.lock();
                retries::retry_anew(engine, &mut state, caller.tid, (dentry.clone(), node), goal);
            }
            note_failed(engine, caller.tid, &dentry);
            done(Err(errno));
        }
    }
}

/// What a thread on its second lookup is about to do under a name that it looks up, if what it finds
/// there isn't certain yet: there was nothing to begin on when it was sent round, or its path
/// leads into another directory by now.
pub fn unbound_goal(engine: &Arc<Engine>, tid: u32, dentry: &Dentry) -> Option<Goal> {
    let state = engine.lock();
    let note = state.walks.pending_opens.get(&tid)?;
    if !state.may_be_unbound(tid, dentry) || !note.is_of(tid) {
        return None;
    }
    let goal = note.goal;
    let has_long_failed = matches!(note.way, Way::Anew { failed: Some(looks) } if looks > LOOKS);
    drop(state);
    // A thread that has given up looks at the name in another call.
    if has_long_failed && proc::is_opening(tid) != Some(true) {
        retries::end_retry(engine, tid);
        return None;
    }
    Some(goal)
}

/// Whether an open or truncation of what a lookup has found may be refused again. If so, the thread
/// is at the end of its lookup here: what it was sent round for before is dropped.
pub fn has_to_be_served(
    engine: &Engine,
    caller: Caller,
    dentry: &Dentry,
    node: NodeId,
    goal: Goal,
) -> Serving {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let Some(found) = state.nodes.get(node) else {
        return Serving::ByItsOpen;
    };
    if found.dead && !failpoint::mutant("C1-walk-dead") {
        // It was discarded after it was found: its open would have to be sent round once more.
        return Serving::NotHere;
    }
    let has = match (found.kind, goal) {
        (NodeKind::Dir | NodeKind::Special, _) => return Serving::ByItsOpen,
        (NodeKind::File, Goal::Open(flags)) => {
            let direct = shared::opens_direct(engine, state, node, Some(dentry), flags);
            direct == Ok(false) && (writes(flags) || pins::is_pinned(engine, state, dentry))
        }
        (NodeKind::File, Goal::Truncate) => {
            shared::is_direct(engine, state, node, Some(dentry)) == Ok(false)
        }
        (NodeKind::Private(_), Goal::Open(_)) => true,
        // Its own; it means the content it writes.
        (NodeKind::Private(_), Goal::Truncate) => false,
    };
    let mut note = PendingOpen::new(dentry.clone(), node, goal, Way::Anew { failed: None });
    note.looked_up = true;
    if let Some(before) = state.walks.pending_opens.insert(caller.tid, note) {
        retries::drop_way(engine, state, before.way);
    }
    match has {
        true => Serving::Here,
        false => Serving::ByItsOpen,
    }
}

/// Nothing was found on a second lookup. The kernel asks twice; after that the open may have failed,
/// and what the thread does next is something else.
pub fn note_failed(engine: &Engine, tid: u32, dentry: &Dentry) {
    let mut state = engine.lock();
    if let Some(note) = state
        .walks
        .pending_opens
        .get_mut(&tid)
        .filter(|n| n.dentry == *dentry)
        && let Way::Anew { failed } = &mut note.way
    {
        note.looked_up = true;
        failed.get_or_insert(0);
    }
}

/// Where a thread at the end of its second lookup gets what it wants.
pub enum Serving {
    /// At this node, by the lookup.
    Here,
    /// By the open or truncation that comes to it.
    ByItsOpen,
    /// Nowhere but where the name leads now: what was found has ended.
    NotHere,
}
