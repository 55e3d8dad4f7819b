//! All transactions of a mount, and the names that they will commit under.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Index;

use super::Transaction;
use crate::group::Rounds;
use crate::journal::Record;
use crate::types::{Dentry, NodeId, TxnId};

/// See the module.
#[derive(Debug)]
pub struct Transactions {
    open: HashMap<TxnId, Transaction>,
    /// Those by the name they will commit under, oldest first.
    names: BTreeMap<Dentry, Vec<TxnId>>,
    /// Those that may make a name appear, by its directory.
    creating: HashMap<NodeId, HashSet<TxnId>>,
    /// Those on their way to rejected, as a new journal begins them.
    aborting: BTreeMap<TxnId, Vec<Record>>,
    /// Last number given.
    last: TxnId,
    /// Rounds of groups: those of a round are committed together.
    pub rounds: Rounds,
}

impl Transactions {
    /// None yet; `last` is the last number that was given before.
    pub fn new(last: TxnId) -> Transactions {
        Transactions {
            open: HashMap::new(),
            names: BTreeMap::new(),
            creating: HashMap::new(),
            aborting: BTreeMap::new(),
            last,
            rounds: Rounds::default(),
        }
    }

    /// Number for a new one, or for a staging file.
    pub fn new_id(&mut self) -> TxnId {
        self.last = self.last.next();
        self.last
    }

    /// Last number given.
    pub fn last_id(&self) -> TxnId {
        self.last
    }

    /// One begins.
    pub fn insert(&mut self, txn: Transaction) {
        self.list(&txn);
        self.open.insert(txn.id, txn);
    }

    /// One ends.
    pub fn remove(&mut self, id: TxnId) -> Option<Transaction> {
        let txn = self.open.remove(&id)?;
        self.unlist(txn.dentry(), id);
        Some(txn)
    }

    /// One goes on under another name.
    pub fn move_to(&mut self, id: TxnId, to: Dentry) {
        if let Some(mut txn) = self.open.remove(&id) {
            let from = txn.move_to(to);
            self.unlist(&from, id);
            self.insert(txn);
        }
    }

    fn list(&mut self, txn: &Transaction) {
        let dentry = txn.dentry();
        if txn.purpose.creates() {
            self.creating.entry(dentry.dir).or_default().insert(txn.id);
        }
        self.names.entry(dentry.clone()).or_default().push(txn.id);
    }

    fn unlist(&mut self, dentry: &Dentry, id: TxnId) {
        if let Some(ids) = self.creating.get_mut(&dentry.dir) {
            ids.remove(&id);
            if ids.is_empty() {
                self.creating.remove(&dentry.dir);
            }
        }
        if let Some(ids) = self.names.get_mut(dentry) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.names.remove(dentry);
            }
        }
    }

    /// One of them.
    pub fn get(&self, id: &TxnId) -> Option<&Transaction> {
        self.open.get(id)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, id: &TxnId) -> Option<&mut Transaction> {
        self.open.get_mut(id)
    }

    /// Whether it hasn't ended.
    pub fn contains_key(&self, id: &TxnId) -> bool {
        self.open.contains_key(id)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Numbers of all.
    pub fn keys(&self) -> impl Iterator<Item = &TxnId> {
        self.open.keys()
    }

    /// All of them.
    pub fn values(&self) -> impl Iterator<Item = &Transaction> {
        self.open.values()
    }

    /// All of a name, oldest first: also one that nobody has opened yet, or whose name was unlinked.
    pub fn all_at<'a>(
        &'a self,
        dentry: &Dentry,
    ) -> impl DoubleEndedIterator<Item = &'a Transaction> + use<'a> {
        let ids = self.names.get(dentry).into_iter().flatten();
        ids.filter_map(|id| self.open.get(id))
    }

    /// Open transactions of a name whose content may still be committed, newest first.
    pub fn at<'a>(&'a self, dentry: &Dentry) -> impl Iterator<Item = &'a Transaction> + use<'a> {
        let all = self.all_at(dentry).rev();
        all.filter(|t| !t.is_unlinked() && !t.phase.is_reserved())
    }

    /// Those of them that everybody sees, newest first.
    pub fn seen_by_all_at<'a>(
        &'a self,
        dentry: &Dentry,
    ) -> impl Iterator<Item = &'a Transaction> + use<'a> {
        let open = self.at(dentry);
        open.filter(|t| t.visibility.is_seen_by_all())
    }

    /// Whether a close may make a name appear in a directory.
    pub fn creates_in(&self, dir: NodeId) -> bool {
        let ids = self.creating.get(&dir).into_iter().flatten();
        let mut open = ids.filter_map(|id| self.open.get(id));
        open.any(|t| t.purpose.creates())
    }

    /// One that has ended is on its way to rejected: a new journal begins it so, with what the journal alone may have of it.
    pub fn begin_abort(&mut self, id: TxnId, begun: Vec<Record>) {
        self.aborting.insert(id, begun);
    }

    /// It is there, or needs not be.
    pub fn end_abort(&mut self, id: TxnId) {
        self.aborting.remove(&id);
    }

    /// Whether it is on its way there.
    pub fn is_aborting(&self, id: TxnId) -> bool {
        self.aborting.contains_key(&id)
    }

    /// What a new journal says of those that are.
    pub fn aborting(&self) -> impl Iterator<Item = &Record> {
        self.aborting.values().flatten()
    }
}

impl Index<&TxnId> for Transactions {
    type Output = Transaction;

    fn index(&self, id: &TxnId) -> &Transaction {
        &self.open[id]
    }
}
