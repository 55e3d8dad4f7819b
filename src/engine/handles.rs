//! Open descriptions, found by their number, by their transaction and by the node that /proc shows of
//! them: a program may have ten thousand files open to write, and each of its opens and closes asks who
//! else has that one file (`Looks`).

use std::collections::HashMap;
use std::hash::Hash;

use super::state::Handle;
use crate::types::{HandleId, NodeId, TxnId};

/// See the module. What a description belongs to never changes while it is in here: it is taken out
/// and put in again.
#[derive(Debug, Default)]
pub struct Handles {
    all: HashMap<HandleId, Handle>,
    of_txn: HashMap<TxnId, Vec<HandleId>>,
    showing: HashMap<NodeId, Vec<HandleId>>,
}

impl Handles {
    /// The description of a number.
    pub fn get(&self, id: HandleId) -> Option<&Handle> {
        self.all.get(&id)
    }

    /// The description of a number, to change what it reads.
    pub fn get_mut(&mut self, id: HandleId) -> Option<&mut Handle> {
        self.all.get_mut(&id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&HandleId, &Handle)> {
        self.all.iter()
    }

    /// All of them, to change what they read.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Handle> {
        self.all.values_mut()
    }

    /// Puts one in, in the place of what had its number.
    pub fn insert(&mut self, id: HandleId, handle: Handle) {
        self.remove(id);
        let (txn, node) = places(&handle);
        if let Some(txn) = txn {
            self.of_txn.entry(txn).or_default().push(id);
        }
        if let Some(node) = node {
            self.showing.entry(node).or_default().push(id);
        }
        self.all.insert(id, handle);
    }

    /// Takes one out.
    pub fn remove(&mut self, id: HandleId) -> Option<Handle> {
        let handle = self.all.remove(&id)?;
        let (txn, node) = places(&handle);
        strike(&mut self.of_txn, txn, id);
        strike(&mut self.showing, node, id);
        Some(handle)
    }

    /// The descriptions of a transaction.
    pub fn of(&self, txn: TxnId) -> impl Iterator<Item = (HandleId, &Handle)> {
        let ids = self.of_txn.get(&txn).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.all.get(id)?)))
    }

    /// The descriptions open to write that show a node which is not of a transaction of theirs: a
    /// base's, or that of a file to which they add.
    pub fn showing(&self, node: NodeId) -> Vec<&Handle> {
        let ids = self.showing.get(&node).into_iter().flatten();
        ids.filter_map(|id| self.all.get(id)).collect()
    }
}

/// Its transaction, and the node that it shows.
fn places(handle: &Handle) -> (Option<TxnId>, Option<NodeId>) {
    match handle {
        Handle::Staged { txn, shown, .. } => (Some(*txn), *shown),
        Handle::Append(appender) => (None, Some(appender.node)),
        _ => (None, None),
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
