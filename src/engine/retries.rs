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

use super::opening::{
    FRESH, Goal, LOOKS, OpenRequest, OpenStep, Opened, Pass, PendingOpen, Way, writes,
};
use super::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::{failpoint, proc};
use crate::txn::Begun;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, TxnId};

impl State {
    /// Whether what a thread finds under a name on its second lookup isn't certain yet, if it is on one.
    pub(super) fn may_be_unbound(&self, tid: u32, dentry: &Dentry) -> bool {
        let note = self.pending_opens.get(&tid);
        note.is_some_and(|note| match note.way {
            Way::Anew { .. } => note.dentry.name == dentry.name,
            Way::Own { .. } => note.dentry.name == dentry.name && note.dentry.dir != dentry.dir,
            Way::Opened { .. } => false,
        })
    }

    /// A name is unlinked: what is still on its way to its node has been opened before that.
    pub(super) fn discard_prepared(&mut self, dentry: &Dentry) {
        let reserved = self.txns.all_at(dentry).filter(|t| t.phase.is_reserved());
        let reserved: Vec<TxnId> = reserved.map(|t| t.id).collect();
        for id in reserved {
            if let Some(txn) = self.txns.get_mut(&id)
                && !failpoint::mutant("C11-walk")
            {
                txn.unlink();
            }
            self.wake_for(id, dentry);
        }
    }

    /// The node that the second lookup of a thread finds under a name, if that is certain.
    pub(super) fn end_of_retry(&mut self, tid: u32, dentry: &Dentry) -> Option<NodeId> {
        let note = self
            .pending_opens
            .get_mut(&tid)
            .filter(|n| n.dentry == *dentry)?;
        if failpoint::mutant("C1-walk-life") && note.at.elapsed() > FRESH || !note.is_of(tid) {
            return None;
        }
        note.looked_up = true;
        match note.way {
            Way::Own { txn, .. } => self.txns.get(&txn).map(|txn| txn.node),
            Way::Opened { node, .. } => self.nodes.get(node).filter(|n| !n.dead).map(|n| n.id),
            Way::Anew { .. } => None,
        }
    }

    /// What a lookup has led to has ended: its thread finds what the name means now. Gives where it led.
    fn leave_way_to(&mut self, tid: u32, node: NodeId) -> Option<Way> {
        let note = self.pending_opens.get_mut(&tid)?;
        let leads_there = match note.way {
            Way::Own { txn, .. } => self.txns.get(&txn).is_none_or(|txn| txn.node == node),
            Way::Opened { node: at, .. } => at == node,
            Way::Anew { .. } => false,
        };
        leads_there.then(|| std::mem::replace(&mut note.way, Way::Anew { failed: None }))
    }
}

/// Where a thread at the end of its second lookup gets what it wants.
enum Serving {
    /// At this node, by the lookup.
    Here,
    /// By the open or truncation that comes to it.
    ByItsOpen,
    /// Nowhere but where the name leads now: what was found has ended.
    NotHere,
}

/// How an open arrives.
pub(super) enum Arrival {
    /// At what was opened for it when it came by on its second lookup.
    Opened(Opened),
    /// At the end of its second lookup, but not where that was to lead.
    Elsewhere,
    /// On its first lookup, or where its second was to lead.
    Plain,
}

impl Engine {
    /// Sends a thread round; its second lookup finds what the name means by then, and is served there.
    pub(super) fn retry_anew(
        &self,
        state: &mut State,
        tid: u32,
        (dentry, old): (Dentry, NodeId),
        goal: Goal,
    ) -> Errno {
        let way = Way::Anew { failed: None };
        if tid != 0 && !failpoint::mutant("C1-walk-anew") {
            let note = PendingOpen::new(dentry, old, goal, way);
            if let Some(before) = state.pending_opens.insert(tid, note) {
                self.drop_way(state, before.way);
            }
        }
        Errno::STALE
    }

    /// Sends a thread round to a common transaction, which is opened for it at once: others may write
    /// and close it before the lookup is over.
    pub(super) fn retry_to_common(
        &self,
        state: &mut State,
        caller: Caller,
        (dentry, old): (Dentry, NodeId),
        txn: TxnId,
        flags: OFlags,
    ) -> OpResult<Errno> {
        let opened = self.join(state, caller, txn, flags)?;
        let node = state.txns.get(&txn).ok_or(Errno::STALE)?.node;
        let note = PendingOpen::new(dentry, old, Goal::Open(flags), Way::Opened { node, opened });
        state.pending_opens.insert(caller.tid, note);
        Ok(Errno::STALE)
    }

    /// A lookup has found nothing but what has ended: it would find that for ever.
    pub(super) fn leave_retry_at(self: &Arc<Self>, tid: u32, node: NodeId) {
        let way = self.lock().leave_way_to(tid, node);
        if let Some(way) = way {
            leave(self, way);
        }
    }

    /// The note of a thread that does what it was about to do when it was sent round; any other is over.
    pub(super) fn take_pending_open(
        &self,
        state: &mut State,
        tid: u32,
        goal: Goal,
    ) -> Option<PendingOpen> {
        let note = state.pending_opens.remove(&tid)?;
        if note.goal == goal && note.is_of(tid) {
            return Some(note);
        }
        self.drop_way(state, note.way);
        None
    }

    /// A thread creates a file: whatever it was sent round for before is over.
    pub(super) fn end_retry(self: &Arc<Self>, tid: u32) {
        let mut guard = self.lock();
        let note = guard.pending_opens.remove(&tid);
        drop(guard);
        if let Some(note) = note {
            leave(self, note.way);
        }
    }

    fn drop_way(&self, state: &mut State, way: Way) {
        if let Way::Own { txn, .. } = way {
            self.drop_unopened(state, txn);
        }
    }

    /// Drops notes that nobody comes back for.
    pub(super) fn sweep_retries(self: &Arc<Self>) {
        let over: Vec<u32> = {
            let mut state = self.lock();
            for note in state.pending_opens.values_mut() {
                if let Way::Anew {
                    failed: Some(looks),
                } = &mut note.way
                {
                    *looks += 1;
                }
            }
            let over = state
                .pending_opens
                .iter()
                .filter(|(tid, note)| note.is_over(**tid));
            over.map(|(tid, _)| *tid).collect()
        };
        for tid in over {
            self.end_retry(tid);
        }
    }

    /// What a thread on its second lookup is about to do under a name that it looks up, if what it finds
    /// there isn't certain yet: there was nothing to begin on when it was sent round, or its path
    /// leads into another directory by now.
    pub(super) fn unbound_goal(self: &Arc<Self>, tid: u32, dentry: &Dentry) -> Option<Goal> {
        let state = self.lock();
        let note = state.pending_opens.get(&tid)?;
        if !state.may_be_unbound(tid, dentry) || !note.is_of(tid) {
            return None;
        }
        let goal = note.goal;
        let has_long_failed =
            matches!(note.way, Way::Anew { failed: Some(looks) } if looks > LOOKS);
        drop(state);
        // A thread that has given up looks at the name in another call.
        if has_long_failed && proc::is_opening(tid) != Some(true) {
            self.end_retry(tid);
            return None;
        }
        Some(goal)
    }

    /// A lookup of a thread's second lookup: finds what the name means now, and serves the thread there
    /// already. On a worker.
    pub(super) fn lookup_and_serve(
        self: &Arc<Self>,
        caller: Caller,
        dentry: Dentry,
        goal: Goal,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        failpoint::delay("COMMITFS_LOOKUP_DELAY_MS");
        let found = match self.lookup_waiting(caller, &dentry) {
            Ok(found) => found,
            Err(errno) => {
                self.note_failed(caller.tid, &dentry);
                // It asks once more so much later.
                failpoint::delay("COMMITFS_LOOKUP_DELAY_MS");
                return done(Err(errno));
            }
        };
        let node = found.ino;
        failpoint::delay("COMMITFS_SERVE_DELAY_MS");
        match self.has_to_be_served(caller, &dentry, node, goal) {
            Serving::Here => {}
            Serving::ByItsOpen => return done(Ok(found)),
            Serving::NotHere => {
                self.forget(node, 1);
                return self.lookup_and_serve(caller, dentry, goal, done);
            }
        }
        let flags = match goal {
            Goal::Open(flags) => flags,
            Goal::Truncate => {
                self.forget(node, 1);
                let begun = self.begin_truncate(&mut self.lock(), caller, node, dentry.clone());
                return match begun {
                    // It has a transaction of its own now.
                    Ok(_) | Err(Errno::STALE) => done(self.lookup_waiting(caller, &dentry)),
                    Err(errno) => done(Err(errno)),
                };
            }
        };
        let engine = self.clone();
        self.open_looked_up(caller, node, OpenRequest { flags }, move |opened| {
            engine
                .clone()
                .served(caller, dentry, node, goal, opened, done);
        });
    }

    /// How the open went that a lookup has made for its thread.
    fn served(
        self: &Arc<Self>,
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
                self.lock().pending_opens.insert(caller.tid, note);
                done(self.attr(node));
            }
            // It has a transaction of its own now, or has to look once more.
            Err(Errno::STALE) => {
                self.forget(node, 1);
                let engine = self.clone();
                self.pool
                    .run(move || match engine.unbound_goal(caller.tid, &dentry) {
                        Some(goal) => engine.lookup_and_serve(caller, dentry, goal, done),
                        None => done(engine.lookup_waiting(caller, &dentry)),
                    });
            }
            Err(errno) => {
                self.forget(node, 1);
                {
                    let mut state = self.lock();
                    self.retry_anew(&mut state, caller.tid, (dentry.clone(), node), goal);
                }
                self.note_failed(caller.tid, &dentry);
                done(Err(errno));
            }
        }
    }

    /// Nothing was found on a second lookup. The kernel asks twice; after that the open may have failed,
    /// and what the thread does next is something else.
    fn note_failed(&self, tid: u32, dentry: &Dentry) {
        let mut state = self.lock();
        if let Some(note) = state
            .pending_opens
            .get_mut(&tid)
            .filter(|n| n.dentry == *dentry)
            && let Way::Anew { failed } = &mut note.way
        {
            note.looked_up = true;
            failed.get_or_insert(0);
        }
    }

    /// Whether an open or truncation of what a lookup has found may be refused again. If so, the thread
    /// is at the end of its lookup here: what it was sent round for before is dropped.
    fn has_to_be_served(
        &self,
        caller: Caller,
        dentry: &Dentry,
        node: NodeId,
        goal: Goal,
    ) -> Serving {
        let mut guard = self.lock();
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
                let direct = self.opens_direct(state, node, Some(dentry), flags);
                writes(flags) && direct == Ok(false)
            }
            (NodeKind::File, Goal::Truncate) => {
                self.is_direct(state, node, Some(dentry)) == Ok(false)
            }
            (NodeKind::Private(_), Goal::Open(_)) => true,
            // Its own; it means the content it writes.
            (NodeKind::Private(_), Goal::Truncate) => false,
        };
        let mut note = PendingOpen::new(dentry.clone(), node, goal, Way::Anew { failed: None });
        note.looked_up = true;
        if let Some(before) = state.pending_opens.insert(caller.tid, note) {
            self.drop_way(state, before.way);
        }
        match has {
            true => Serving::Here,
            false => Serving::ByItsOpen,
        }
    }

    /// The second lookup didn't come by: a magic link, an O_PATH handle, a bind mount.
    pub(super) fn open_unwalked(
        &self,
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
                self.drop_unopened(state, prepared);
            }
            if flags.contains(OFlags::TRUNC) {
                return self.empty_and_join(state, caller, own, flags);
            }
            return self.join(state, caller, own, flags).map(OpenStep::Done);
        }
        let opened = match prepared {
            Some(prepared) => self.open_shared(state, caller, prepared, flags),
            None => self.open_unlinked(state, caller, note, flags),
        };
        opened.map(OpenStep::Done)
    }

    /// An open of a file that has lost its name, through a description of it.
    fn open_unlinked(
        &self,
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
        let id = self.begin_on(state, note.dentry.clone(), begun)?;
        if let Some(txn) = state.txns.get_mut(&id) {
            txn.unlink();
        }
        self.open_shared(state, caller, id, flags)
    }

    /// Serves a writer on the readers' node, its pages uncached. With O_TRUNC the kernel drops the node's
    /// pages and takes it for empty until it asks for the attributes, as every read and stat does then.
    /// Only in a mapping that is touched meanwhile there is nothing (SIGBUS), as on the plain directory
    /// always. To refuse would lose what the program saves.
    pub(super) fn open_shared(
        &self,
        state: &mut State,
        caller: Caller,
        txn: TxnId,
        flags: OFlags,
    ) -> OpResult<Opened> {
        let opened = self.join(state, caller, txn, flags)?;
        Ok(as_shared(self, state, txn, opened, flags))
    }
}

fn leave(engine: &Arc<Engine>, way: Way) {
    match way {
        Way::Opened { node, opened } => engine.release(node, opened.handle, None),
        way => engine.drop_way(&mut engine.lock(), way),
    }
}

/// What was opened for a thread when it came by on its second lookup, if that is what it wants. It
/// is closed otherwise.
pub(super) fn arrive(engine: &Arc<Engine>, caller: Caller, node: NodeId, goal: Goal) -> Arrival {
    let mut state = engine.lock();
    let Some(note) = state.pending_opens.get(&caller.tid) else {
        return Arrival::Plain;
    };
    let found = state.lookups.get(&caller.tid);
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
    state.pending_opens.remove(&caller.tid);
    drop(state);
    if wanted {
        return Arrival::Opened(opened);
    }
    engine.release(at, opened.handle, None);
    otherwise
}

/// Opens what a lookup has found; whoever is at the end of its second lookup is not sent round once more, wherever that
/// has led it.
pub(super) fn open_at_last(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    request: OpenRequest,
    done: impl FnOnce(OpResult<Opened>) + Send + 'static,
) {
    match arrive(engine, caller, node, Goal::Open(request.flags)) {
        Arrival::Opened(opened) => done(Ok(opened)),
        Arrival::Plain => engine.open_arrived(caller, node, request, done),
        Arrival::Elsewhere => {
            let at_last = engine.clone();
            engine.open_arrived(caller, node, request, move |opened| match opened {
                Err(Errno::STALE) => done(open_on_the_spot(&at_last, caller, node, request.flags)),
                opened => done(opened),
            });
        }
    }
}

/// Instead of a third lookup: as where the path can't be walked again (see `open_unwalked`).
fn open_on_the_spot(
    engine: &Engine,
    caller: Caller,
    node: NodeId,
    flags: OFlags,
) -> OpResult<Opened> {
    let mut state = engine.lock();
    let note = state.pending_opens.remove(&caller.tid);
    let note = note.filter(|n| n.old == node).ok_or(Errno::STALE)?;
    match note.way {
        Way::Own { txn, .. } => engine.open_shared(&mut state, caller, txn, flags),
        Way::Opened { node, opened } => match state.nodes.get(node).map(|n| n.kind) {
            Some(NodeKind::Private(txn)) => Ok(as_shared(engine, &mut state, txn, opened, flags)),
            _ => Ok(opened),
        },
        Way::Anew { .. } if !writes(flags) && !failpoint::mutant("C1-walk-dead") => {
            // What it was about to read is gone.
            let current = engine.current_if_any(&mut state, &note.dentry)?;
            let current = current.ok_or(Errno::NOENT)?;
            let dentry = Some(&note.dentry);
            let opened = engine.open_version(&mut state, caller, current, dentry, flags)?;
            Ok(as_other(opened))
        }
        Way::Anew { .. } => engine.open_unlinked(&mut state, caller, &note, flags),
    }
}

/// See [`Engine::open_shared`]: what was opened on a transaction.
fn as_shared(
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
fn as_other(opened: Opened) -> Opened {
    Opened {
        keep_cache: false,
        direct_io: true,
        pass: Pass::Never,
        ..opened
    }
}
