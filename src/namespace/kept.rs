//! Names that the kernel goes by without asking, by the nodes that they mean: see `docs/design.md`, section 3.
//!
//! A writer that looks its path up a second time finds another node than others did, and so drops the name for everybody.
//! Whoever writes without a walk (through /proc/self/fd, by an attribute, from another pid namespace) has it dropped by
//! [`DropNames`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Nodes;
use crate::sys::failpoint;
use crate::types::{Dentry, NodeId};

/// So long the name of a file isn't kept after it had to be dropped: what was committed there without a walk once mostly is so
/// again and again.
fn pause() -> Duration {
    Duration::from_millis(failpoint::number("COMMITFS_KEEP_PAUSE_MS", 60_000))
}

/// With more of them than this, those that are over are forgotten.
const MANY: usize = 4096;
/// So long it counts that a rename was told to look its names up again: it comes back at once.
const TOLD: Duration = Duration::from_secs(60);

/// A name that is to be dropped, and the node that the kernel has found there.
#[derive(Clone, Debug)]
pub struct DroppedName {
    /// The name.
    pub dentry: Dentry,
    /// What it meant.
    pub node: NodeId,
}

/// Makes the kernel drop names.
pub trait DropNames: std::fmt::Debug + Send + Sync {
    /// Whether it can.
    fn is_there(&self) -> bool;

    /// The kernel shall drop a name that it keeps. What the daemon is asked meanwhile is answered after that.
    fn drop_name(&self, name: DroppedName);

    /// Whether a name is being dropped, which somebody in the kernel may have in hand.
    fn is_dropping(&self, dentry: &Dentry) -> bool;

    /// A name has moved, and what the kernel has kept of it, if that is being dropped. Gives the nodes that it is dropped from.
    fn move_name(&self, from: &Dentry, to: &Dentry) -> Vec<NodeId>;
}

/// See the module.
#[derive(Debug, Default)]
pub struct KeptNames {
    /// Files that the kernel may go on finding under their names without asking.
    kept: HashSet<NodeId>,
    /// What is looked up each time.
    asked: HashSet<NodeId>,
    /// Since when. Of a file that counts also when the kernel has forgotten it, as it does when its name is dropped: who was told to
    /// look it up again finds it under the same number, and is told so once.
    paused: HashMap<NodeId, Instant>,
    /// With so many of them those that are over are forgotten next.
    crowd: usize,
    /// Threads whose rename was told to look its names up again, these names, and when.
    told: HashMap<u32, (Dentry, Dentry, Instant)>,
    /// Without one no file's name is kept.
    pub dropper: Option<Arc<dyn DropNames>>,
}

impl KeptNames {
    /// The kernel is told that it may go by the name of this file.
    pub fn keep(&mut self, id: NodeId) {
        self.kept.insert(id);
    }

    /// Whether the kernel may go by the name of this file.
    pub fn is_kept(&self, id: NodeId) -> bool {
        self.kept.contains(&id)
    }

    /// Whether names of files can be dropped again.
    pub fn can_drop(&self) -> bool {
        self.dropper
            .as_ref()
            .is_some_and(|dropper| dropper.is_there())
    }

    /// Whether a rename of this name would take along what is being dropped.
    pub fn is_dropping(&self, dentry: &Dentry) -> bool {
        let dropper = self.dropper.as_ref();
        dropper.is_some_and(|dropper| dropper.is_dropping(dentry))
            && !failpoint::mutant("C2-kept-renamed")
    }

    /// The kernel has dropped the name of a file itself. Gives whether it may have kept it.
    pub fn has_dropped(&mut self, id: NodeId) -> bool {
        self.kept.remove(&id)
    }

    /// From now on the kernel is to ask for the name of this node each time. Gives whether that is new.
    pub fn ask_each_time(&mut self, id: NodeId) -> bool {
        if self.paused.len() >= self.crowd.max(MANY) {
            let pause = pause();
            self.paused.retain(|_, at| at.elapsed() < pause);
            self.crowd = self.paused.len() * 2;
        }
        self.paused.insert(id, Instant::now());
        self.asked.insert(id)
    }

    /// Whether the kernel is to ask for the name of this node each time.
    pub fn is_asked_each_time(&self, id: NodeId) -> bool {
        self.asked.contains(&id)
    }

    /// Whether the kernel is to ask for the name of this file each time, for a while.
    pub fn is_paused(&self, id: NodeId) -> bool {
        let since = self.paused.get(&id);
        since.is_some_and(|at| at.elapsed() < pause())
    }

    /// The rename of a thread is told to look these names up again.
    pub fn tell_renamer(&mut self, tid: u32, from: &Dentry, to: &Dentry) {
        if self.told.len() >= MANY {
            self.told.retain(|_, (_, _, at)| at.elapsed() < TOLD);
            // As many in so short a time have come back all.
            if self.told.len() >= MANY {
                self.told.clear();
            }
        }
        let told = (from.clone(), to.clone(), Instant::now());
        self.told.insert(tid, told);
    }

    /// Whether a thread comes back that was told so.
    pub fn was_told(&mut self, tid: u32, from: &Dentry, to: &Dentry) -> bool {
        let told = self.told.remove(&tid);
        told.is_some_and(|(was_from, was_to, at)| {
            (&was_from, &was_to) == (from, to) && at.elapsed() < TOLD
        })
    }

    /// A version has taken another one's name.
    pub fn replace(&mut self, old: Option<NodeId>, new: NodeId) {
        let paused = old.and_then(|old| self.paused.get(&old).copied());
        if let Some(at) = paused.filter(|at| at.elapsed() < pause()) {
            self.paused.insert(new, at);
        }
    }

    /// The kernel has forgotten a node.
    pub fn forget(&mut self, id: NodeId) {
        self.kept.remove(&id);
        self.asked.remove(&id);
    }
}

impl Nodes {
    /// Somebody is about to change what a name means, or has changed it, without having walked there: the kernel drops the name
    /// before that request is answered. Gives whether it may have kept it.
    pub fn drop_name(&mut self, id: NodeId) -> bool {
        if !self.kept_names.has_dropped(id) {
            return false;
        }
        self.kept_names.ask_each_time(id);
        let dentry = self.get(id).and_then(|node| node.at.clone());
        if let (Some(dentry), Some(dropper)) = (dentry, &self.kept_names.dropper)
            && !failpoint::mutant("C2-kept-name")
        {
            dropper.drop_name(DroppedName { dentry, node: id });
        }
        true
    }

    /// A file has got another name, or two have changed theirs. The kernel goes on by what it has kept of a name, though that is
    /// just being dropped.
    pub fn move_name(
        &mut self,
        from: &Dentry,
        to: &Dentry,
        (source, target): (NodeId, Option<NodeId>),
    ) {
        let aside = Dentry {
            dir: NodeId(0),
            ..to.clone()
        };
        let mut moves = vec![(from, to)];
        if target.is_some() {
            moves = vec![(to, &aside), (from, to), (&aside, from)];
        }
        let mut moved = vec![(source, to)];
        moved.extend(target.map(|target| (target, from)));
        let dropper = self.kept_names.dropper.clone();
        if let Some(dropper) = dropper.filter(|_| !failpoint::mutant("C1-kept-moved")) {
            for (from, to) in moves {
                let dropped = dropper.move_name(from, to).into_iter();
                moved.extend(dropped.filter(|_| *to != aside).map(|id| (id, to)));
            }
        }
        for (id, to) in moved {
            if let Some(node) = self.get_mut(id) {
                node.at = Some(to.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dentry(name: &str) -> Dentry {
        Dentry {
            dir: NodeId(1),
            name: name.into(),
        }
    }

    #[test]
    fn a_rename_is_told_once_and_those_that_never_come_back_are_forgotten() {
        let mut names = KeptNames::default();
        let (one, two) = (dentry("one"), dentry("two"));
        for tid in 1..100_000 {
            names.tell_renamer(tid, &one, &two);
        }
        assert!(names.told.len() <= MANY);
        names.tell_renamer(7, &one, &two);
        assert!(!names.was_told(7, &two, &one));
        names.tell_renamer(7, &one, &two);
        assert!(names.was_told(7, &one, &two));
        assert!(!names.was_told(7, &one, &two));
    }
}
