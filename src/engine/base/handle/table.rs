//! Open descriptions, found by their number, by their transaction and by the node that /proc shows of
//! them: a program may have ten thousand files open to write, and each of its opens and closes asks who
//! else has that one file (`Looks`).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::engine::base::handle::OpenFile;
use crate::file::Opening;
use crate::types::{HandleId, NodeId, TxnId};

/// See the module. What a description belongs to never changes while it is in here: it is taken out
/// and put in again.
#[derive(Debug, Default)]
pub struct Handles {
    all: HashMap<HandleId, Arc<dyn OpenFile>>,
    of_txn: HashMap<TxnId, Vec<HandleId>>,
    showing: HashMap<NodeId, Vec<HandleId>>,
    /// Last number given.
    last: HandleId,
}

impl Handles {
    /// The description of a number.
    pub fn get(&self, id: HandleId) -> Option<&Arc<dyn OpenFile>> {
        self.all.get(&id)
    }

    /// The description of a number, to put another in its place that belongs to the same.
    pub fn get_mut(&mut self, id: HandleId) -> Option<&mut Arc<dyn OpenFile>> {
        self.all.get_mut(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&HandleId, &Arc<dyn OpenFile>)> {
        self.all.iter()
    }

    /// All of them, to put others in their places that belong to the same.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Arc<dyn OpenFile>> {
        self.all.values_mut()
    }

    /// Puts a new one in, and gives its number.
    pub fn add(&mut self, handle: Arc<dyn OpenFile>) -> HandleId {
        self.last = self.last.next();
        self.insert(self.last, handle);
        self.last
    }

    /// Puts one in, in the place of what had its number.
    pub fn insert(&mut self, id: HandleId, handle: Arc<dyn OpenFile>) {
        self.remove(id);
        let (txn, node) = (handle.transaction(), handle.shown());
        if let Some(txn) = txn {
            self.of_txn.entry(txn).or_default().push(id);
        }
        if let Some(node) = node {
            self.showing.entry(node).or_default().push(id);
        }
        self.all.insert(id, handle);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: HandleId) -> Option<Arc<dyn OpenFile>> {
        let handle = self.all.remove(&id)?;
        let (txn, node) = (handle.transaction(), handle.shown());
        strike(&mut self.of_txn, txn, id);
        strike(&mut self.showing, node, id);
        Some(handle)
    }

    /// The descriptions of a transaction.
    pub fn of(&self, txn: TxnId) -> impl Iterator<Item = (HandleId, &Arc<dyn OpenFile>)> {
        let ids = self.of_txn.get(&txn).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.all.get(id)?)))
    }

    /// The descriptions open to write that show a node which is not of a transaction of theirs: a
    /// base's, or that of a file to which they add.
    pub fn showing(&self, node: NodeId) -> Vec<&Arc<dyn OpenFile>> {
        let ids = self.showing.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.all.get(id)).collect()
    }

    /// The writing descriptions of a transaction, and how they were opened.
    pub fn writers(&self, id: TxnId) -> impl Iterator<Item = (HandleId, Opening)> {
        let writing = self
            .of(id)
            .filter(move |(_, file)| file.writes_in() == Some(id));
        writing.map(|(handle, file)| (handle, file.opening()))
    }

    /// How many descriptions write a transaction where they please.
    pub fn others_than_appenders(&self, id: TxnId) -> usize {
        let appends = |opening: &Opening| opening.how.contains(OFlags::APPEND);
        self.writers(id)
            .filter(|(_, opening)| !appends(opening))
            .count()
    }
}

fn strike<K: Eq + Hash>(index: &mut HashMap<K, Vec<HandleId>>, key: Option<K>, id: HandleId) {
    let Some(key) = key else { return };
    if let Some(ids) = index.get_mut(&key) {
        ids.retain(|i| *i != id);
        if ids.is_empty() {
            index.remove(&key);
        }
    }
}
