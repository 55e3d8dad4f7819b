//! Who reads and saves files: processes by the numbers that the ledger knows them by, who wrote which version, open saves, and
//! whose turn it is between a merge and its commit.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::super::ledger::{Actor, Base, ProcessId};
use super::super::state::sleep_until;
use super::super::{Engine, State};
use super::Why;
use crate::runtime::Awaited;
use crate::sys::{failpoint, pidfd, proc};
use crate::types::{Dentry, NodeId, TxnId};

/// A turn is over by then at the latest; the disk may be slow.
const TURN: Duration = Duration::from_secs(30);
/// A close that seems to be the last, and has been answered, leads to a commit within this time, or doesn't:
/// something else holds the file.
const RELEASE: Duration = Duration::from_millis(200);
/// How long the commit may take after a close while nobody has another descriptor or a mapping: RELEASE comes as soon as the closing task
/// has a processor again. Until then others' closes wait, so that none which has returned stands behind one that
/// has begun later.
const SURE_RELEASE: Duration = Duration::from_secs(2);
/// Versions of which it is known who wrote them.
const AUTHORS: usize = 4096;

/// Who takes part in saves under a rule with `on_conflict`.
#[derive(Debug, Default)]
pub struct Registry {
    pub(super) by_pid: HashMap<u32, ProcessId>,
    pub(super) known: HashMap<ProcessId, Known>,
    last: ProcessId,
    pub(super) authors: HashMap<NodeId, Author>,
    authored: std::collections::VecDeque<NodeId>,
    /// Who began the open transactions.
    pub(super) writers: HashMap<TxnId, Author>,
    /// Whose save is between its merge and its commit.
    pub(super) turns: HashMap<Dentry, (TxnId, Instant)>,
    /// The last rename that was refused: by which thread, of which version.
    pub(in crate::engine) refused: Option<(u32, NodeId)>,
    /// Open transactions under a rule for conflicts.
    pub(in crate::engine) saves: HashMap<TxnId, Save>,
}

/// A process that takes part.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) pid: u32,
    pub(super) descriptor: OwnedFd,
    /// Since when it has ended, as far as that was looked at.
    pub(super) gone: Option<Instant>,
}

/// Who writes a file, asked when it is opened: by the commit the process may be gone.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Author {
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
pub(in crate::engine) struct Save {
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
    pub(in crate::engine) fn author(&self, version: NodeId) -> Option<Author> {
        self.authors.get(&version).copied()
    }

    /// Who began an open transaction.
    pub(in crate::engine) fn writer(&self, id: TxnId) -> Option<&Author> {
        self.writers.get(&id)
    }

    /// A transaction has come to its end.
    pub(in crate::engine) fn forget(&mut self, id: TxnId) {
        self.saves.remove(&id);
        self.writers.remove(&id);
    }

    pub(super) fn note_author(&mut self, version: NodeId, author: Author) {
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
    pub(super) fn number(
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
    pub(super) fn has_ended(&self, process: ProcessId) -> bool {
        self.known.get(&process).is_none_or(|known| {
            known.gone.is_some() || pidfd::has_ended(&known.descriptor) || !proc::lives(known.pid)
        })
    }

    /// Whether a save is between its merge and its commit.
    pub(in crate::engine) fn is_turn_taken(&self, dentry: &Dentry) -> bool {
        let turn = self.turns.get(dentry);
        turn.is_some_and(|(_, until)| *until > Instant::now())
    }
}

impl State {
    /// What is prepared waits for its RELEASE now, which comes at once if nothing else holds the file.
    pub(in crate::engine) fn await_release(&mut self, dentry: &Dentry, id: TxnId, at_once: bool) {
        if let Some((of, until)) = self.registry.turns.get_mut(dentry)
            && *of == id
        {
            let at_once = at_once && !failpoint::mutant("C9-release");
            *until = Instant::now() + if at_once { SURE_RELEASE } else { RELEASE };
            self.wake(Awaited::Turn(dentry.clone()));
        }
    }
}

impl Engine {
    /// Waits until nobody else is between merge and commit of the name.
    pub(in crate::engine) fn take_turn(&self, dentry: &Dentry, id: TxnId) {
        let mut state = self.lock();
        loop {
            let until = match state.registry.turns.get(dentry) {
                Some((other, until)) if *other != id && *until > Instant::now() => *until,
                _ => break,
            };
            sleep_until(&mut state, &[Awaited::Turn(dentry.clone())], until);
        }
        let until = Instant::now() + TURN;
        state.registry.turns.insert(dentry.clone(), (id, until));
    }

    /// Whether a save is between its merge and its commit.
    pub(in crate::engine) fn is_turn_taken(&self, dentry: &Dentry) -> bool {
        self.lock().registry.is_turn_taken(dentry)
    }

    /// Waits until none is, be it that its turn is over.
    pub(in crate::engine) fn await_turn(&self, dentry: &Dentry) {
        let mut state = self.lock();
        while let Some((_, until)) = state.registry.turns.get(dentry)
            && *until > Instant::now()
        {
            let until = *until;
            sleep_until(&mut state, &[Awaited::Turn(dentry.clone())], until);
        }
    }

    /// The commit has come, or won't.
    pub(in crate::engine) fn end_turn(&self, state: &mut State, dentry: &Dentry, id: TxnId) {
        if state
            .registry
            .turns
            .get(dentry)
            .is_some_and(|(of, _)| *of == id)
        {
            state.registry.turns.remove(dentry);
            state.wake(Awaited::Turn(dentry.clone()));
        }
    }
}
