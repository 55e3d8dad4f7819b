//! Who waits for a lock or a writer slot; and who waits for what else (`wakeups`).

use std::collections::HashMap;
use std::time::Instant;

use super::wakeups::Wakeups;
use crate::locks::{FileId, Lock};

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
}
