//! Who reads and saves files: processes by the numbers that the ledger knows them by, who wrote which version, and open
//! saves.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::Why;
use super::ledger::{Actor, Base, ProcessId};
use crate::sys::{pidfd, proc};
use crate::types::{NodeId, TxnId};

/// Versions of which it is known who wrote them.
const AUTHORS: usize = 4096;

/// Who takes part in saves under a rule with `on_conflict`.
#[derive(Debug, Default)]
pub struct Registry {
    /// By their pids.
    pub by_pid: HashMap<u32, ProcessId>,
    /// All that matter.
    pub known: HashMap<ProcessId, Known>,
    last: ProcessId,
    /// Who wrote versions.
    pub authors: HashMap<NodeId, Author>,
    authored: std::collections::VecDeque<NodeId>,
    /// Who began the open transactions.
    pub writers: HashMap<TxnId, Author>,
    /// The last rename that was refused: by which thread, of which version.
    pub refused: Option<(u32, NodeId)>,
    /// Open transactions under a rule for conflicts.
    pub saves: HashMap<TxnId, Save>,
}

/// A process that takes part.
#[derive(Debug)]
pub struct Known {
    /// Its pid.
    pub pid: u32,
    /// It itself.
    pub descriptor: OwnedFd,
    /// Since when it has ended, as far as that was looked at.
    pub gone: Option<Instant>,
}

/// Who writes a file, asked when it is opened: by the commit the process may be gone.
#[derive(Clone, Copy, Debug)]
pub struct Author {
    /// Its thread.
    pub tid: u32,
    /// Its process.
    pub pid: u32,
    /// The process that it is a step of, if one is known.
    pub step_of: Option<u32>,
    /// The version that was there when it began, if a step of its own had saved that and ended.
    pub after: Option<NodeId>,
    /// Where there are rules for conflicts.
    pub actor: Option<Actor>,
}

/// What is known of an open transaction that a rule for conflicts is for.
#[derive(Clone, Debug, Default)]
pub struct Save {
    /// What it builds on, as far as that is known.
    pub base: Option<Base>,
    /// Whose it is, and when it began.
    pub by: Option<(Actor, u64)>,
    /// Staging files of its merges.
    pub merges: Vec<TxnId>,
    /// Why the last try to merge it failed, if it did.
    pub overwrites: Option<Why>,
    /// Its last close.
    pub closed: Option<proc::Moment>,
}

impl Registry {
    /// Who wrote a version that is about to be renamed.
    pub fn author(&self, version: NodeId) -> Option<Author> {
        self.authors.get(&version).copied()
    }

    /// Who began an open transaction.
    pub fn writer(&self, id: TxnId) -> Option<&Author> {
        self.writers.get(&id)
    }

    /// A transaction has come to its end.
    pub fn forget(&mut self, id: TxnId) {
        self.saves.remove(&id);
        self.writers.remove(&id);
    }

    /// Remembers who has written a version.
    pub fn note_author(&mut self, version: NodeId, author: Author) {
        if self.authors.insert(version, author).is_some() {
            return;
        }
        self.authored.push_back(version);
        if self.authored.len() > AUTHORS
            && let Some(oldest) = self.authored.pop_front()
        {
            self.authors.remove(&oldest);
        }
    }

    /// The number of a living process. `introduced` is told of one that is new, with those that
    /// it descends from.
    pub fn number(
        &mut self,
        pid: u32,
        generations: usize,
        introduced: &mut impl FnMut(ProcessId, Vec<ProcessId>),
    ) -> Option<ProcessId> {
        if let Some(process) = self.by_pid.get(&pid)
            && let Some(known) = self.known.get(process)
            && !pidfd::has_ended(&known.descriptor)
        {
            return Some(*process);
        }
        let descriptor = pidfd::pidfd(pid)?;
        let mut ancestors = Vec::new();
        let mut above = pid;
        for _ in 0..generations {
            match proc::parent(above) {
                Some(parent) if parent > 1 => {
                    ancestors.extend(self.number(parent, 0, introduced));
                    above = parent;
                }
                _ => break,
            }
        }
        self.last += 1;
        self.by_pid.insert(pid, self.last);
        let known = Known {
            pid,
            descriptor,
            gone: None,
        };
        self.known.insert(self.last, known);
        introduced(self.last, ancestors);
        Some(self.last)
    }

    /// Whether a process has ended, or has given up its memory at least: what it has written to a
    /// pipe may be read to its end by then.
    pub fn has_ended(&self, process: ProcessId) -> bool {
        self.known.get(&process).is_none_or(|known| {
            known.gone.is_some() || pidfd::has_ended(&known.descriptor) || !proc::lives(known.pid)
        })
    }
}
