//! Pending opens: who was answered ESTALE looks its path up once more, and no third time.
//!
//! So whoever is sent round must be served where the second lookup leads, whatever becomes of the name
//! meanwhile and however long it takes: a [`PendingOpen`] says what was asked for, and is good for as
//! long as its thread lives and asks for nothing else. Most lead to the private node of a
//! transaction that was begun for this very caller, and that nobody else can take away. Where there
//! was nothing to begin on (the file was removed, or what the caller had looked up has ended), the
//! lookup of the second lookup does what the open is going to ask for, and the open gets the result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::open::{OpenRequest, Opened, writes};
use super::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::{failpoint, proc};
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, TxnId};

/// After that long it is asked whether the thread of a note still lives, and is still the same.
pub(super) const FRESH: Duration = Duration::from_secs(2);

/// What a thread was about to do when it was sent round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// open(2) with these flags.
    Open(OFlags),
    /// truncate(2).
    Truncate,
}

/// Where a second lookup leads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// To the private node of a transaction that was begun for it.
    Own {
        /// The transaction; nobody else opens it.
        txn: TxnId,
        /// The caller's own open transaction that this open empties through its path.
        empties: Option<TxnId>,
    },
    /// To a node that was opened for it when it looked the name up.
    Opened {
        /// The node.
        node: NodeId,
        /// What its open gets.
        opened: Opened,
    },
    /// To what the name means by then.
    Anew {
        /// When it first found nothing there, or an error.
        failed: Option<Instant>,
    },
}

/// A thread was told to look its path up again.
#[derive(Clone, Debug)]
pub struct PendingOpen {
    /// The path's last step.
    pub(super) dentry: Dentry,
    /// Node whose open was refused.
    pub(super) old: NodeId,
    pub(super) goal: Goal,
    pub(super) way: Way,
    /// The lookup has come by.
    pub(super) looked_up: bool,
    /// Since when.
    at: Instant,
}

impl PendingOpen {
    /// One made now; the lookup hasn't come by yet.
    pub(super) fn new(dentry: Dentry, old: NodeId, goal: Goal, way: Way) -> PendingOpen {
        PendingOpen {
            dentry,
            old,
            goal,
            way,
            looked_up: false,
            at: Instant::now(),
        }
    }

    /// The transaction that was begun for its thread.
    pub(super) fn own(&self) -> Option<TxnId> {
        match self.way {
            Way::Own { txn, .. } => Some(txn),
            _ => None,
        }
    }

    /// Whether a thread of this number is the one that it was made for: numbers come round again.
    fn is_of(&self, tid: u32) -> bool {
        let passed = self.at.elapsed();
        // The kernel tells starts in steps of 10 ms.
        passed < FRESH
            || proc::Start::of_caller(tid)
                .is_none_or(|start| !start.is_after(&proc::Moment::ago(passed - FRESH / 2)))
    }

    /// Whether nobody will come back for it.
    fn is_over(&self, tid: u32) -> bool {
        if failpoint::mutant("C1-walk-life") {
            return self.at.elapsed() > FRESH;
        }
        match self.way {
            Way::Anew { failed: Some(at) } => at.elapsed() > FRESH,
            _ => self.at.elapsed() > FRESH && !proc::lives(tid),
        }
    }
}

impl State {
    /// Whether the open that a transaction was begun for is still to come.
    pub(super) fn is_awaited(&self, id: TxnId) -> bool {
        self.pending_opens
            .values()
            .any(|note| note.own() == Some(id))
    }

    /// A name is unlinked: what is still on its way to its node has been opened before that.
    pub(super) fn discard_prepared(&mut self, dentry: &Dentry) {
        let ids = self.open_names.get(dentry).into_iter().flatten();
        for id in ids {
            if let Some(txn) = self
                .txns
                .get_mut(id)
                .filter(|t| t.handles == 0 && !t.closing)
            {
                txn.discarded = !failpoint::mutant("C11-walk");
            }
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

    /// What a lookup has led to has ended: its thread finds what the name means now.
    pub(super) fn end_retry_at(&mut self, tid: u32, node: NodeId) -> Option<PendingOpen> {
        let leads_there = |note: &&mut PendingOpen| match note.way {
            Way::Own { txn, .. } => self.txns.get(&txn).is_none_or(|txn| txn.node == node),
            Way::Opened { node: at, .. } => at == node,
            Way::Anew { .. } => false,
        };
        self.pending_opens.get_mut(&tid).filter(leads_there)?;
        self.pending_opens.remove(&tid)
    }
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
    pub(super) fn leave_retry_at(&self, tid: u32, node: NodeId) {
        let mut state = self.lock();
        if let Some(note) = state.end_retry_at(tid, node) {
            self.drop_way(&mut state, note.way);
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

    /// What was opened for a thread when it came by on its second lookup, if that is what it wants. It
    /// is closed otherwise.
    pub(super) fn take_opened(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        goal: Goal,
    ) -> Option<Opened> {
        let mut state = self.lock();
        let note = state.pending_opens.get(&caller.tid)?;
        let Way::Opened { node: at, opened } = note.way else {
            return None;
        };
        let wanted = at == node && note.goal == goal && note.is_of(caller.tid);
        state.pending_opens.remove(&caller.tid);
        drop(state);
        if !wanted {
            self.release(at, opened.handle, None);
        }
        wanted.then_some(opened)
    }

    /// A thread creates a file: whatever it was sent round for before is over.
    pub(super) fn end_retry(self: &Arc<Self>, tid: u32) {
        let mut guard = self.lock();
        let Some(note) = guard.pending_opens.remove(&tid) else {
            return;
        };
        match note.way {
            Way::Opened { node, opened } => {
                drop(guard);
                self.release(node, opened.handle, None);
            }
            way => self.drop_way(&mut guard, way),
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
            let state = self.lock();
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
    pub(super) fn unbound_goal(&self, tid: u32, dentry: &Dentry) -> Option<Goal> {
        let state = self.lock();
        let note = state.pending_opens.get(&tid)?;
        let is_open = match note.way {
            Way::Anew { .. } => note.dentry.name == dentry.name,
            Way::Own { .. } => note.dentry.name == dentry.name && note.dentry.dir != dentry.dir,
            Way::Opened { .. } => false,
        };
        (is_open && note.is_of(tid)).then_some(note.goal)
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
        let found = match self.lookup_waiting(caller, &dentry) {
            Ok(found) => found,
            Err(errno) => {
                self.note_failed(caller.tid, &dentry);
                return done(Err(errno));
            }
        };
        let node = found.ino;
        if !self.has_to_be_served(caller, &dentry, node, goal) {
            return done(Ok(found));
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
            failed.get_or_insert_with(Instant::now);
        }
    }

    /// Whether an open or truncation of what a lookup has found may be refused again. If so, the thread
    /// is at the end of its lookup here: what it was sent round for before is dropped.
    fn has_to_be_served(&self, caller: Caller, dentry: &Dentry, node: NodeId, goal: Goal) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(kind) = state.nodes.get(node).map(|n| n.kind) else {
            return false;
        };
        let has = match (kind, goal) {
            (NodeKind::Dir | NodeKind::Special, _) => return false,
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
        has
    }
}
