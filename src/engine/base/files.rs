//! Which file a version belongs to: locks are of a file, however many versions it has had (C12). And
//! which versions of it differ only by what was written in place (C9).

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

use crate::locks::FileId;
use crate::namespace::Nodes;
use crate::types::{Dentry, NodeId};

/// Versions that are remembered before the first look for some that can be forgotten.
const FEW: usize = 4096;
/// Kinds of files whose lengths are remembered.
const KINDS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub struct Files {
    /// The file of a version, where that is not its own number.
    of: HashMap<NodeId, FileId>,
    /// The version that a version comes from by in-place edits and appends, where that is another.
    bodies: HashMap<NodeId, NodeId>,
    /// Those to which records were appended.
    appended: HashSet<NodeId>,
    /// Files that somebody has locked since the mount.
    locked: HashSet<FileId>,
    /// How long the last version of a kind was, in bytes: of a directory and an ending.
    lengths: HashMap<(NodeId, OsString), u64>,
    /// Beyond so many versions, those that nobody can reach are looked for.
    most: usize,
}

impl Default for Files {
    fn default() -> Files {
        Files {
            of: HashMap::new(),
            bodies: HashMap::new(),
            appended: HashSet::new(),
            locked: HashSet::new(),
            lengths: HashMap::new(),
            most: FEW,
        }
    }
}

impl Files {
    /// The file that a version belongs to.
    pub fn of(&self, node: NodeId) -> FileId {
        first(&self.of, node)
    }

    /// `node` is the next version of the file that `old` is one of.
    pub fn follow(&mut self, node: NodeId, old: NodeId) {
        follow(&mut self.of, node, old);
    }

    /// The first of the versions that differ from this one by in-place edits and appends.
    pub fn body(&self, node: NodeId) -> NodeId {
        first(&self.bodies, node)
    }

    /// `node` is `old` with something written, or added, in place.
    pub fn edit(&mut self, node: NodeId, old: NodeId) {
        follow(&mut self.bodies, node, old);
    }

    /// Records are appended to a version.
    pub fn append_to(&mut self, node: NodeId) {
        self.appended.insert(self.body(node));
    }

    /// Whether any were to one that differs from it by edits only.
    pub fn was_appended_to(&self, node: NodeId) -> bool {
        self.appended.contains(&self.body(node))
    }

    /// Somebody locks a file.
    pub fn note_locked(&mut self, file: FileId) {
        self.locked.insert(file);
    }

    /// Whether somebody has locked a file since the mount.
    pub fn was_locked(&self, file: FileId) -> bool {
        self.locked.contains(&file)
    }

    /// A version has so many bytes: the next file of its kind in its directory may have as many.
    pub fn note_length(&mut self, dentry: &Dentry, len: u64) {
        if self.lengths.len() >= KINDS {
            self.lengths.clear();
        }
        if let Some(kind) = kind_of(dentry) {
            self.lengths.insert(kind, len);
        }
    }

    /// How many bytes a new file may come to have, by the last one of its kind; 0 if there was none.
    pub fn likely_length(&self, dentry: &Dentry) -> u64 {
        let known = kind_of(dentry).and_then(|kind| self.lengths.get(&kind));
        known.copied().unwrap_or(0)
    }

    /// Forgets versions that nobody can reach any more, once there are many: their numbers don't
    /// come back, so whoever holds a lock on their file is found by the versions that are left.
    pub fn tidy(&mut self, nodes: &Nodes) {
        let most = |files: &Files| {
            let counts = [files.of.len(), files.bodies.len(), files.appended.len()];
            counts.into_iter().max().unwrap_or(0)
        };
        if most(self) <= self.most {
            return;
        }
        let reachable = nodes.numbers();
        self.of.retain(|node, _| reachable.contains(node));
        self.bodies.retain(|node, _| reachable.contains(node));
        let bodies: HashSet<NodeId> = self.bodies.values().copied().collect();
        self.appended
            .retain(|body| bodies.contains(body) || reachable.contains(body));
        let files: HashSet<FileId> = self.of.values().copied().collect();
        self.locked
            .retain(|file| files.contains(file) || reachable.contains(file));
        self.most = FEW.max(2 * most(self));
    }
}

fn kind_of(dentry: &Dentry) -> Option<(NodeId, OsString)> {
    let ending = Path::new(&dentry.name).extension()?;
    Some((dentry.dir, ending.to_owned()))
}

/// The first version of those that follow each other.
fn first(firsts: &HashMap<NodeId, NodeId>, node: NodeId) -> NodeId {
    firsts.get(&node).copied().unwrap_or(node)
}

fn follow(firsts: &mut HashMap<NodeId, NodeId>, node: NodeId, old: NodeId) {
    let first = first(firsts, old);
    if first != node {
        firsts.insert(node, first);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;
    use crate::namespace::NodeKind;
    use crate::types::{Dentry, ROOT};

    fn descriptor() -> Arc<File> {
        Arc::new(File::open("/dev/null").unwrap())
    }

    fn start() -> (Dentry, Nodes, Files) {
        let dentry = Dentry {
            dir: ROOT,
            name: "f".into(),
        };
        let nodes = Nodes::new(descriptor(), (0, 0), NodeId(100), 1000);
        (dentry, nodes, Files::default())
    }

    #[test]
    fn versions_that_nobody_can_reach_are_forgotten_and_the_lock_stays_on_the_file() {
        let (dentry, mut nodes, mut files) = start();
        let new = |nodes: &mut Nodes, inode: u64| {
            let id = nodes.create(NodeKind::File, descriptor(), (0, inode), dentry.clone());
            nodes.get_mut(id).unwrap().lookups = 1;
            id
        };
        let first = new(&mut nodes, 1);
        files.note_locked(files.of(first));
        let mut current = first;
        for inode in 2..20_000 {
            let next = new(&mut nodes, inode);
            files.follow(next, current);
            let old = nodes.get_mut(current).unwrap();
            (old.superseded, old.unlinked) = (true, true);
            drop(nodes.forget(current, 1));
            files.tidy(&nodes);
            assert!(files.of.len() <= 2 * FEW, "{}", files.of.len());
            current = next;
        }
        assert_eq!(files.of(current), first);
        assert!(files.was_locked(files.of(current)));
    }

    #[test]
    fn a_version_whose_number_can_come_back_is_remembered() {
        let (dentry, mut nodes, mut files) = start();
        let first = nodes.number((0, 1));
        let second = nodes.create(NodeKind::File, descriptor(), (0, 2), dentry);
        files.follow(second, first);
        // The kernel forgets it; its name leads to the same number again.
        drop(nodes.forget(second, 1));
        files.most = 0;
        files.tidy(&nodes);
        assert!(nodes.get(second).is_none());
        assert_eq!(nodes.known((0, 2)), Some(second));
        assert_eq!(files.of(second), first);
    }
}
