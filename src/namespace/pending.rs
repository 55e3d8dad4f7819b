//! Names that are committed but not yet in the backing directory.
//!
//! A commit is visible as soon as it stands here and in the journal. The file itself moves to its
//! name when its data is durable (`engine::deciding::checkpoint`), so that the backing directory never holds
//! anything a power cut could tear. The set overlays the backing directory and only ever adds or
//! replaces names; removals wait until the name is out of here.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::sync::Arc;

use crate::types::{Dentry, NodeId, Seq, TxnId, Version};

/// A committed version whose file still lies in staging.
#[derive(Debug)]
pub struct Pending {
    /// Its staging file's number.
    pub id: TxnId,
    /// The staging file.
    pub file: Arc<File>,
    /// Its node.
    pub node: NodeId,
    /// The commit's place in the order of commits.
    pub seq: Seq,
    /// Version number of the file.
    pub version: Version,
    /// Versions of this name that it replaced before they were applied, oldest first.
    pub superseded: Vec<Superseded>,
    /// The data is known to be on the medium, in its file.
    pub synced: bool,
    /// Or in the journal.
    pub journalled: bool,
    /// A document whose text is in memory and in the journal only.
    pub unwritten: Option<Unwritten>,
}

/// A document was edited, and its text has not been written to the staging file since.
#[derive(Clone, Copy, Debug)]
pub struct Unwritten {
    /// The first of these edits' place in the order of commits.
    pub first_seq: Seq,
    /// Bytes of space that the staging file has been given.
    pub allocated: u64,
}

/// A version that was replaced before it was applied. Kept until its successor is durable: a
/// power cut may still take the successor back.
#[derive(Clone, Debug)]
pub struct Superseded {
    /// Its staging file's number.
    pub id: TxnId,
    /// The staging file.
    pub file: Arc<File>,
    /// Its commit.
    pub seq: Seq,
}

impl Pending {
    /// Takes out the versions that version `id` of this name makes superfluous once it is in
    /// place: those it had replaced, and its own entry if it was itself replaced since.
    pub fn outdated_by(&mut self, id: TxnId) -> Vec<TxnId> {
        let upto = match self.superseded.iter().position(|s| s.id == id) {
            Some(at) => at + 1,
            None => self.superseded.len(),
        };
        self.superseded
            .drain(..upto)
            .map(|s| s.id)
            .filter(|s| *s != id)
            .collect()
    }
}

/// All of them, by directory and name.
#[derive(Debug, Default)]
pub struct PendingSet {
    dirs: HashMap<NodeId, BTreeMap<OsString, Pending>>,
    len: usize,
}

impl PendingSet {
    /// The pending version of a name.
    pub fn get(&self, dir: NodeId, name: &OsStr) -> Option<&Pending> {
        self.dirs.get(&dir)?.get(name)
    }

    /// The pending version of a name.
    pub fn get_mut(&mut self, dir: NodeId, name: &OsStr) -> Option<&mut Pending> {
        self.dirs.get_mut(&dir)?.get_mut(name)
    }

    /// Publishes a version under a name; a version it replaces becomes superseded.
    pub fn put(&mut self, dentry: &Dentry, mut version: Pending) -> Option<NodeId> {
        let names = self.dirs.entry(dentry.dir).or_default();
        let old = names.remove(&dentry.name);
        let replaced = old.as_ref().map(|o| o.node);
        if let Some(old) = old {
            self.len -= 1;
            let mut superseded = old.superseded;
            superseded.push(Superseded {
                id: old.id,
                file: old.file,
                seq: old.seq,
            });
            superseded.append(&mut version.superseded);
            version.superseded = superseded;
        }
        names.insert(dentry.name.clone(), version);
        self.len += 1;
        replaced
    }

    /// Takes a name out.
    pub fn remove(&mut self, dir: NodeId, name: &OsStr) -> Option<Pending> {
        let names = self.dirs.get_mut(&dir)?;
        let pending = names.remove(name)?;
        if names.is_empty() {
            self.dirs.remove(&dir);
        }
        self.len -= 1;
        Some(pending)
    }

    /// Names pending in a directory.
    pub fn in_dir(&self, dir: NodeId) -> impl Iterator<Item = (&OsString, &Pending)> {
        self.dirs.get(&dir).into_iter().flatten()
    }

    /// Names whose documents have not been written out.
    pub fn unwritten(&self) -> impl Iterator<Item = (Dentry, &Unwritten)> {
        self.iter()
            .filter_map(|(dentry, p)| Some((dentry, p.unwritten.as_ref()?)))
    }

    /// Every pending name.
    pub fn iter(&self) -> impl Iterator<Item = (Dentry, &Pending)> {
        self.dirs.iter().flat_map(|(dir, names)| {
            names.iter().map(|(name, p)| {
                let dentry = Dentry {
                    dir: *dir,
                    name: name.clone(),
                };
                (dentry, p)
            })
        })
    }

    /// How many names are pending.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
