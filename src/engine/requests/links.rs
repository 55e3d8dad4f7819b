//! link(2), and links to files that are still being written (C6). On the plain directory such a link is the very file,
//! and has in the end what the writer's close leaves. Here the link is a version of its own, made of
//! what was written so far, or of what was committed: it *follows* those who have the file open, and gets
//! a copy of what they commit, unless somebody has put something else there meanwhile.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::current;
use crate::engine::base::publication::Publication;
use crate::engine::deciding::names::refuse_state_dir;
use crate::engine::deciding::{copies, judging, publishing};
use crate::engine::documents::texts;
use crate::engine::meaning::deciding::is_promised;
use crate::engine::meaning::{deciding, pins, resolve};
use crate::engine::versions::barrier::{Barrier, Step};
use crate::engine::versions::replaced;
use crate::engine::versions::{barrier, durability, publish};
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode};
use crate::sys::{at, failpoint};
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, Seq, TxnId};

/// So many versions in a row may be replaced before they are linked.
const TRIES: u32 = 100;

impl Engine {
    /// link(2).
    pub fn link(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        dir: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(Err(Errno::PERM));
        }
        if let Err(e) = refuse_state_dir(dir, name) {
            return done(Err(e));
        }
        {
            // It looks the name up again when told so: by which of several names somebody comes, only lookups tell.
            let mut state = self.lock();
            if state.nodes.kept_names.is_kept(node) {
                state.nodes.drop_name(node);
                return done(Err(Errno::STALE));
            }
        }
        let to = Dentry {
            dir,
            name: name.to_owned(),
        };
        pins::leave_names(self, caller.tid, &[&to]);
        self.on_worker(move |engine| done(link_now(engine, caller, node, &to)));
    }
}

/// What it has found may be replaced at any moment, and be gone then: it begins again. The kernel would only do so once.
fn link_now(engine: &Engine, caller: Caller, node: NodeId, to: &Dentry) -> OpResult<Attr> {
    let is_there = || engine.lock().nodes.get(node).is_some_and(|n| !n.dead);
    for _ in 1..TRIES {
        match link_found(engine, caller, node, to) {
            Err(Errno::STALE) if is_there() && !failpoint::mutant("C6-link-again") => {}
            linked => return linked,
        }
    }
    link_found(engine, caller, node, to)
}

fn link_found(engine: &Engine, caller: Caller, node: NodeId, to: &Dentry) -> OpResult<Attr> {
    let closed = engine.lock().deciding_at(node);
    if let Some(closed) = closed {
        deciding::await_decision(engine, closed);
    }
    let (node, open) = {
        let mut state = engine.lock();
        if deciding::exists(engine, &mut state, to)? {
            return Err(Errno::EXIST);
        }
        match state.nodes.get(node).ok_or(Errno::STALE)?.kind {
            NodeKind::Private(id) if state.txns.contains_key(&id) => {
                match untouched_base(engine, &mut state, id)? {
                    Some(base) => (base, None),
                    None => (node, Some(id)),
                }
            }
            NodeKind::Dir => return Err(Errno::PERM),
            _ => (node, None),
        }
    };
    if let Some(id) = open {
        return match publishing::publish_open(engine, caller.tid, id, to, Publication::Link) {
            Ok(published) => resolve::attr_after_lookup(engine, published.version),
            Err(Errno::NOENT) if engine.lock().has_ended(id) => {
                link_found(engine, caller, node, to)
            }
            Err(e) => Err(e),
        };
    }
    let linked = barrier::checkpoint_judged(
        engine,
        || check_linked(engine, caller, node, to),
        |judged, barrier| link_step(engine, (node, judged), to, barrier),
    )?;
    // What is kept of a name goes by the one that it was found under.
    Ok(Attr {
        name_ttl: crate::engine::VOLATILE,
        ..resolve::attr(engine, linked)?
    })
}

/// The version that a transaction still is, having written nothing.
fn untouched_base(engine: &Engine, state: &mut State, id: TxnId) -> OpResult<Option<NodeId>> {
    let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
    let (dentry, base, touched) = (txn.dentry().clone(), txn.purpose.base(), txn.would_commit());
    let current = current::current_if_any(engine, state, &dentry)?;
    Ok(base.filter(|base| !touched && current == Some(*base)))
}

/// A new name for existing content commits that name, so its guard has a say. Gives the version that
/// it has to be, if any guard judges.
fn check_linked(
    engine: &Engine,
    caller: Caller,
    node: NodeId,
    to: &Dentry,
) -> OpResult<Option<NodeId>> {
    let node = newest(engine, &mut engine.lock(), node)?;
    texts::materialize(engine, node)?;
    failpoint::delay("COMMITFS_LINK_DELAY_MS");
    let (fd, policy, is_file) = {
        let state = engine.lock();
        let n = state.nodes.get(node).ok_or(Errno::STALE)?;
        (
            state.nodes.fd(node)?,
            engine.policy(&state, to, Creation::default()),
            n.kind == NodeKind::File,
        )
    };
    if !is_file || policy.guard == Guard::None || policy.mode == Mode::Direct {
        return Ok(None);
    }
    let file = at::reopen_quietly(&*fd)?;
    judging::check_named(engine, caller.tid, &file, (to, &policy), false)?;
    Ok(Some(node))
}

/// Gives the node that has got the name; `None` if it isn't the one that was judged.
fn link_step(
    engine: &Engine,
    (node, judged): (NodeId, Option<NodeId>),
    to: &Dentry,
    barrier: &mut Barrier,
) -> OpResult<Step<Option<NodeId>>> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if deciding::exists(engine, state, to)? {
        return Err(Errno::EXIST);
    }
    if barrier::must_checkpoint(engine, state, barrier) {
        return Ok(Step::CheckpointFirst);
    }
    let node = newest(engine, state, node)?;
    if judged.is_some_and(|judged| judged != node) {
        return Ok(Step::Done(None));
    }
    if state.nodes.get(node).is_some_and(|n| n.pending) {
        // A patch has come since; what is linked lies in its place.
        return Ok(Step::CheckpointFirst);
    }
    let dir = engine.dir_fd(state, to.dir)?;
    if is_promised(state, to)
        && let Some(path) = state.nodes.path(to)
    {
        let inode = state.nodes.get(node).ok_or(Errno::STALE)?.key.1;
        let along = [Vec::new(), Vec::new()];
        replaced::announce_moved(engine, state, (&path, &path), inode, false, along)?;
    }
    engine.sequencer.barrier()?;
    pins::note_change(engine, state, to, None);
    at::link(&*state.nodes.fd(node)?, &*dir, &to.name)?;
    let n = state.nodes.get_mut(node).ok_or(Errno::STALE)?;
    n.lookups += 1;
    let linked = n.at.clone();
    durability::mark_dirty(engine, state, to.dir);
    publish::overtake(engine, state, to, Seq::default());
    if let Some(linked) = linked {
        copies::follow_writers(state, &linked, to, node);
    }
    Ok(Step::Done(Some(node)))
}

/// The version that has taken a node's place since it was looked up.
fn newest(engine: &Engine, state: &mut State, node: NodeId) -> OpResult<NodeId> {
    let n = state.nodes.get(node).ok_or(Errno::STALE)?;
    match (&n.at, n.superseded) {
        (Some(dentry), true) => {
            let dentry = dentry.clone();
            current::current(engine, state, &dentry)
        }
        _ => Ok(node),
    }
}
