//! Where rounds are found: by what they are of, without a look at the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{Binding, GroupRound, Membership};
use crate::types::{NodeId, TxnId};

/// Numbers of rounds, the oldest first.
type Numbers = BTreeSet<TxnId>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By the group's number and what its names stand for. After a change of rules the number may be another group's.
    files: HashMap<(u32, Arc<Binding>), Numbers>,
    /// Those of directories, by node.
    directories: HashMap<NodeId, Numbers>,
}

impl Index {
    pub(super) fn insert(&mut self, round: &GroupRound) {
        match &round.directory {
            Some(directory) => self.directories.entry(directory.top).or_default(),
            None => self.files.entry(key(round)).or_default(),
        }
        .insert(round.id);
    }

    pub(super) fn remove(&mut self, round: &GroupRound) {
        let without = |numbers: &mut Numbers| {
            numbers.remove(&round.id);
            numbers.is_empty()
        };
        if let Some(directory) = &round.directory {
            let numbers = self.directories.get_mut(&directory.top);
            if numbers.is_some_and(without) {
                self.directories.remove(&directory.top);
            }
        } else if self.files.get_mut(&key(round)).is_some_and(without) {
            self.files.remove(&key(round));
        }
    }

    /// Those that may be of the group that a path belongs to.
    pub(super) fn of(&self, membership: &Membership) -> impl Iterator<Item = TxnId> {
        let key = (membership.group.number, membership.binding.clone());
        self.files.get(&key).into_iter().flatten().copied()
    }

    /// Others of the same names as one.
    pub(super) fn beside(&self, round: &GroupRound) -> Vec<TxnId> {
        let ids = self.files.get(&key(round)).into_iter().flatten().copied();
        let is_other = |id: &TxnId| round.directory.is_none() && *id != round.id;
        ids.filter(is_other).collect()
    }

    /// Those of a directory.
    pub(super) fn of_directory(&self, top: NodeId) -> impl Iterator<Item = TxnId> {
        self.directories.get(&top).into_iter().flatten().copied()
    }

    /// Those of all directories.
    pub(super) fn of_directories(&self) -> impl Iterator<Item = TxnId> {
        self.directories.values().flatten().copied()
    }
}

fn key(round: &GroupRound) -> (u32, Arc<Binding>) {
    (round.group.number, round.binding.clone())
}
