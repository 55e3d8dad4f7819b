//! What the next round of the checkpoint brings to the medium besides pending names, and what goes once
//! it has.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use crate::types::{NodeId, Seq, TxnId};

/// Directories, by their nodes.
pub type Directories = HashMap<NodeId, Arc<File>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Unsynced {
    /// Versions that grew in place since they were last made durable, with their last append.
    appended: HashMap<NodeId, (Seq, Arc<File>)>,
    /// Directories changed in place since they were last made durable.
    dirs: Directories,
    /// Staging files of dropped versions, to be removed when the commit that dropped them is durable.
    deletes: Vec<(Seq, TxnId)>,
}

impl Unsynced {
    /// Whether there is nothing of all that.
    pub fn is_empty(&self) -> bool {
        self.appended.is_empty() && self.dirs.is_empty() && self.deletes.is_empty()
    }

    /// A version has grown by this commit.
    pub fn note_append(&mut self, node: NodeId, seq: Seq, file: Arc<File>) {
        self.appended.insert(node, (seq, file));
    }

    /// Whether some version has grown.
    pub fn has_appended(&self) -> bool {
        !self.appended.is_empty()
    }

    /// Versions that have grown, with their last append and their file.
    pub fn appended(&self) -> Vec<(NodeId, Seq, Arc<File>)> {
        let all = self.appended.iter();
        all.map(|(node, (seq, file))| (*node, *seq, file.clone()))
            .collect()
    }

    /// A version's lines are on the medium up to this append. Gives whether there are no later ones.
    pub fn end_append(&mut self, node: NodeId, seq: Seq) -> bool {
        let known = self.appended.get(&node);
        let is_last = known.is_some_and(|(last, _)| *last == seq);
        if is_last {
            self.appended.remove(&node);
        }
        is_last
    }

    /// A directory has changed.
    pub fn note_dir(&mut self, id: NodeId, fd: Arc<File>) {
        self.dirs.insert(id, fd);
    }

    /// A directory is gone.
    pub fn forget_dir(&mut self, id: NodeId) {
        self.dirs.remove(&id);
    }

    /// Whether some directory has changed.
    pub fn has_dirs(&self) -> bool {
        !self.dirs.is_empty()
    }

    /// Those that have, for a round: it puts back what it could not sync.
    pub fn take_dirs(&mut self) -> Directories {
        std::mem::take(&mut self.dirs)
    }

    /// Directories could not be synced, or are to be once more.
    pub fn put_back_dirs(&mut self, dirs: impl IntoIterator<Item = (NodeId, Arc<File>)>) {
        self.dirs.extend(dirs);
    }

    /// A staging file is not needed any more once this commit is on the medium.
    pub fn delete_after(&mut self, seq: Seq, staging: TxnId) {
        self.deletes.push((seq, staging));
    }

    /// Whether some staging file will be removed.
    pub fn has_deletes(&self) -> bool {
        !self.deletes.is_empty()
    }

    /// Those files.
    pub fn deletes(&self) -> impl Iterator<Item = TxnId> + '_ {
        self.deletes.iter().map(|(_, id)| *id)
    }

    /// All commits up to this one are on the medium: takes out the staging files that are to go.
    pub fn take_deletes(&mut self, upto: Seq) -> Vec<TxnId> {
        let all = std::mem::take(&mut self.deletes);
        let (due, later) = all.into_iter().partition(|(seq, _)| *seq <= upto);
        self.deletes = later;
        let due: Vec<(Seq, TxnId)> = due;
        due.into_iter().map(|(_, id)| id).collect()
    }
}
