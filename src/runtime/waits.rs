//! Who waits for a lock or a writer slot, and who comes first; and who waits for what else (`wakeups`).

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::wakeups::Wakeups;
use crate::locks::{FileId, Lock};
use crate::types::Dentry;

/// Somebody who waits, for `commitfs locks`.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Process.
    pub pid: u32,
    /// Path it waits for.
    pub path: String,
    /// `lock` or `writer slot`.
    pub what: &'static str,
    /// The lock.
    pub lock: Option<(FileId, Lock)>,
    /// Since when.
    pub since: Instant,
    /// Those it waits for.
    pub blockers: Vec<u32>,
}

/// All who wait, each by the ticket that it was given.
#[derive(Debug, Default)]
pub struct Waits {
    waiting: HashMap<u64, Waiting>,
    /// Order of those who wait for a writer slot.
    slots: HashMap<Dentry, VecDeque<u64>>,
    last: u64,
    /// Threads that sleep, by what wakes them.
    pub wakeups: Wakeups,
}

impl Waits {
    /// Number for one who begins to wait.
    pub fn new_ticket(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What one waits for, or still waits for.
    pub fn note(&mut self, ticket: u64, waiting: Waiting) {
        self.waiting.insert(ticket, waiting);
    }

    /// One waits no longer. Gives what it has waited for, if it had to.
    pub fn end(&mut self, ticket: u64) -> Option<Waiting> {
        self.waiting.remove(&ticket)
    }

    /// All who wait.
    pub fn all(&self) -> impl Iterator<Item = &Waiting> + Clone {
        self.waiting.values()
    }

    /// Who waits for whom, by process.
    pub fn graph(&self) -> HashMap<u32, Vec<u32>> {
        let mut graph: HashMap<u32, Vec<u32>> = HashMap::new();
        for waiting in self.all() {
            let of = graph.entry(waiting.pid).or_default();
            of.extend(&waiting.blockers);
        }
        graph
    }

    /// One gets in line for the writer slot of a name.
    pub fn queue(&mut self, dentry: &Dentry, ticket: u64) {
        let queue = self.slots.entry(dentry.clone()).or_default();
        queue.push_back(ticket);
    }

    /// One leaves the line.
    pub fn leave_queue(&mut self, dentry: &Dentry, ticket: u64) {
        if let Some(queue) = self.slots.get_mut(dentry) {
            queue.retain(|t| *t != ticket);
            if queue.is_empty() {
                self.slots.remove(dentry);
            }
        }
    }

    /// Whether one is the first in line.
    pub fn is_first(&self, dentry: &Dentry, ticket: u64) -> bool {
        let queue = self.slots.get(dentry);
        queue.and_then(|queue| queue.front()) == Some(&ticket)
    }

    /// Whether somebody is in line for the writer slot of a name.
    pub fn has_queue(&self, dentry: &Dentry) -> bool {
        self.slots.contains_key(dentry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    #[test]
    fn who_leaves_makes_the_next_the_first() {
        let dentry = Dentry {
            dir: NodeId(1),
            name: "f".into(),
        };
        let mut waits = Waits::default();
        let (a, b) = (waits.new_ticket(), waits.new_ticket());
        waits.queue(&dentry, a);
        waits.queue(&dentry, b);
        assert!(waits.is_first(&dentry, a) && !waits.is_first(&dentry, b));
        waits.leave_queue(&dentry, a);
        assert!(waits.is_first(&dentry, b));
        waits.leave_queue(&dentry, b);
        assert!(!waits.has_queue(&dentry));
    }
}
