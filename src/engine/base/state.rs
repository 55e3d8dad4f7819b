//! All that a living mount knows, in one place.
//!
//! A successor that took over the mount would need exactly this: nodes, open descriptions,
//! transactions, names committed but not applied, and the numbers to go on counting from.
//!
//! Order of locks: a transaction's content (`Staging`) or an appender's tail, then the append lock,
//! then [`State`], then the sequencer's. Nothing
//! that may wait for the disk's data is done under `State`: only lookups, renames and creations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, MutexGuard};
use rustix::io::Errno;

use crate::commit::{CheckpointRequest, Growing, Unsynced};
use crate::conflict::{Ledger, Overwrites, Registry};
use crate::engine::Engine;
use crate::engine::base::errors::ErrorLog;
use crate::engine::base::files::Files;
use crate::engine::base::handle::{Handles, OpenFile, Unlock};
use crate::engine::base::opening::PendingOpen;
use crate::engine::base::savers::{lets_go_by_ending, wake_watch};
use crate::file::{KeptOpen, NameTable, Overlaid, Unnamed};
use crate::locks::{FileId, LockTable};
use crate::namespace::{Node, NodeKind, Nodes, PendingSet};
use crate::runtime::{Awaited, Counters, LockStats, Metrics, Unmount, Waits, wakeups};
use crate::txn::{Transaction, Transactions};
use crate::types::{Dentry, HandleId, NodeId, TxnId};

/// See the module.
#[derive(Debug)]
pub struct State {
    /// Nodes.
    pub nodes: Nodes,
    /// Names committed but not applied.
    pub pending: PendingSet,
    /// Open transactions.
    pub txns: Transactions,
    /// Open descriptions.
    pub(in crate::engine) handles: Handles,
    /// What is known of single files, by their names.
    pub names: NameTable,
    /// How threads have come to where they are.
    pub(in crate::engine) walks: Walks,
    /// What is still to be brought to the medium, besides pending names.
    pub backlog: Backlog,
    /// What status tells.
    pub(in crate::engine) tally: Tally,
    /// Advisory locks.
    pub locks: LockTable,
    /// Versions of a file that locks know by an earlier one.
    pub files: Files,
    /// Who waits for a lock or a writer slot.
    pub waits: Waits,
    /// Whether an unmount is under way.
    pub unmount: Unmount,
    /// What saves build on, and overwrite.
    pub(in crate::engine) conflicts: Conflicts,
    /// Files that their writers keep open and rewrite.
    pub(in crate::engine) kept_open: KeptOpen,
}

/// The last lookups of threads.
#[derive(Debug, Default)]
pub struct Walks {
    /// Who is on a second lookup, by thread.
    pub(in crate::engine) pending_opens: HashMap<u32, PendingOpen>,
    /// The name each thread looked up last.
    pub lookups: HashMap<u32, (Dentry, NodeId)>,
}

/// What a round of the checkpoint is about, besides pending names.
#[derive(Debug, Default)]
pub struct Backlog {
    /// What the next round brings to the medium.
    pub unsynced: Unsynced,
    /// Files to which records are added in place, as the journal knows of them.
    pub growing: Growing,
    /// The checkpoint's orders.
    pub checkpoint: CheckpointRequest,
    /// Versions of which bytes were overwritten, and that are to be kept.
    pub(in crate::engine) overlaid: Vec<Overlaid>,
}

/// What is counted and remembered for people.
#[derive(Debug, Default)]
pub struct Tally {
    /// Counters for status.
    pub counters: Counters,
    /// Errors that nobody may have seen.
    pub(in crate::engine) errors: ErrorLog,
    /// How long was waited for locks, and how long they were held.
    pub lock_stats: LockStats,
    /// How long commits take.
    pub(in crate::engine) metrics: Metrics,
}

/// Reads and saves of names with a rule for conflicts, or that are watched for lost updates.
#[derive(Debug, Default)]
pub struct Conflicts {
    /// What saves build on.
    pub(in crate::engine) ledger: Ledger,
    /// Who reads and saves.
    pub(in crate::engine) registry: Registry,
    /// What threads have seen, and overwritten without having seen it.
    pub(in crate::engine) overwrites: Overwrites,
}

impl State {
    /// What can't be written now can't be at all: those who wait for a round are told.
    pub(in crate::engine) fn fail_checkpoint(&mut self, errno: Errno) {
        self.backlog.checkpoint.failed = Some(errno);
        self.wake(Awaited::Round);
    }

    /// Number for a new description.
    pub(in crate::engine) fn add_handle(&mut self, file: Arc<dyn OpenFile>) -> HandleId {
        self.handles.add(file)
    }

    /// Whether somebody has it open to add lines to it.
    pub fn has_appenders(&self, node: &Node) -> bool {
        let Some(dentry) = &node.at else { return false };
        let mut all = self.names.appenders(dentry).iter();
        all.any(|appender| appender.node == node.id)
    }

    /// What a name means to those who add to it, if there are any: for [`NameTable::unname`].
    pub(in crate::engine) fn added_to(
        &self,
        dentry: &Dentry,
        node: Option<NodeId>,
    ) -> Option<Unnamed> {
        let node = self.nodes.get(node?)?;
        if self.names.appenders(dentry).is_empty() {
            return None;
        }
        Some(Unnamed {
            fd: self.nodes.fd(node.id).ok()?,
            ends: node.ends(),
            gone: Arc::default(),
        })
    }

    /// The inode number that a node shows. An in-place editor finds the number it has looked at
    /// before the open, as on the plain directory (vim refuses to write otherwise); a new version
    /// shows its own from its commit on.
    pub fn shown_number(&self, id: NodeId) -> NodeId {
        let txn = match self.nodes.get(id).map(|n| n.kind) {
            Some(NodeKind::Private(txn)) => self.txns.get(&txn),
            _ => None,
        };
        txn.and_then(|txn| txn.purpose.shown())
            .or_else(|| self.nodes.shown_as(id))
            .unwrap_or(id)
    }
}

impl State {
    /// This has happened: those who wait for it look.
    pub(in crate::engine) fn wake(&mut self, event: Awaited) {
        self.waits.wakeups.wake(&event);
    }

    /// A transaction is to end here.
    pub(in crate::engine) fn remove_transaction(&mut self, id: TxnId) -> Option<Transaction> {
        let txn = self.txns.remove(id)?;
        self.leave_round(&txn);
        self.wake(Awaited::Transaction(id));
        self.wake(Awaited::AnyTransaction);
        self.wake_for(id, txn.dentry());
        self.names.end_following(id);
        Some(txn)
    }

    /// A transaction ends, or goes on otherwise: it is none of its round any more.
    pub(in crate::engine) fn leave_round(&mut self, txn: &Transaction) {
        if let Some(round) = txn.round() {
            let freed = self.txns.rounds.leave(round, txn.dentry(), txn.id);
            self.txns.rounds.freed += freed;
        }
    }

    /// It goes on under another name.
    pub(in crate::engine) fn move_transaction(&mut self, id: TxnId, to: &Dentry) {
        if let Some(from) = self.txns.get(&id).map(|txn| txn.dentry().clone()) {
            self.txns.move_to(id, to.clone());
            self.wake_for(id, &from);
            self.wake(Awaited::Name(to.clone()));
        }
    }

    /// Something has become of a transaction of this name.
    pub(in crate::engine) fn wake_for(&mut self, id: TxnId, dentry: &Dentry) {
        if self.waits.wakeups.is_empty() {
            return;
        }
        self.wake(Awaited::Name(dentry.clone()));
        self.wake(Awaited::Creation(dentry.dir));
        for follower in self.names.followers(id).into_keys() {
            self.wake(Awaited::Name(follower));
        }
    }

    /// Counts a wait that has ended.
    pub(in crate::engine) fn note_waited(&mut self, path: &str, since: Instant, in_vain: bool) {
        let waited = since.elapsed();
        self.tally.lock_stats.note(path, |totals| {
            totals.waits.observe(waited);
            totals.given_up += u64::from(in_vain);
        });
    }

    /// The file that a node is a version of, for the lock table.
    pub(in crate::engine) fn file_of(&self, node: NodeId) -> FileId {
        self.files.of(node)
    }

    /// `node` is the next version of the file that `old` is one of.
    pub(in crate::engine) fn same_file(&mut self, node: NodeId, old: NodeId) {
        let before = self.file_of(node);
        self.files.follow(node, old);
        self.wake(Awaited::Locks(before));
    }
}

/// Waits until one of these happens, or some time has passed: what is waited for has to be looked at again.
pub fn sleep(state: &mut MutexGuard<'_, State>, events: &[Awaited]) {
    sleep_until(state, events, Instant::now() + wakeups::look());
}

/// Waits until one of these happens, but not beyond `until`. Gives whether one has.
pub fn sleep_until(state: &mut MutexGuard<'_, State>, events: &[Awaited], until: Instant) -> bool {
    let sleeper = Arc::new(Condvar::new());
    state.waits.wakeups.add(events, &sleeper);
    let timed_out = sleeper.wait_until(state, until).timed_out();
    state.waits.wakeups.remove(events, &sleeper);
    !timed_out
}

/// Locks of a file were given back: counts them, and wakes who waits for that.
pub fn note_ended(engine: &Engine, state: &mut State, file: FileId) {
    if !state.txns.rounds.holdings.is_empty() {
        let State { txns, locks, .. } = state;
        txns.rounds.note_given_back(file, locks, lets_go_by_ending);
        if txns.rounds.holdings.is_any_let_go() {
            wake_watch(state);
        }
    }
    state.wake(Awaited::Locks(file));
    for ended in state.locks.take_ended() {
        let path = match &ended.at {
            Some(dentry) => engine.show(state, dentry),
            None => engine.show_node(state, ended.node),
        };
        state
            .tally
            .lock_stats
            .note(&path, |t| t.holds.observe(ended.held));
    }
}

/// Locks that end with a description.
pub fn give_back(engine: &Engine, state: &mut State, unlock: &Unlock) {
    state.locks.forget_handle(unlock.handle);
    let mut released = state.locks.release_handle(unlock.file, unlock.handle);
    if let Some(owner) = unlock.owner {
        released |= state.locks.release_flock(unlock.file, owner);
        state.locks.forget_flock(owner);
    }
    if released {
        note_ended(engine, state, unlock.file);
    }
}
