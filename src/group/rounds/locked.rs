//! Rounds of what is saved under a lock: decided when that is given back.

use std::time::{Duration, Instant};

use super::{GroupRound, Rounds, Verdict};
use crate::types::{Dentry, TxnId};

/// The lock under which a round is saved.
#[derive(Clone, Debug)]
pub struct RoundLock {
    /// The number of its holding.
    pub holding: u64,
    /// When it was given back.
    pub let_go: Option<Instant>,
    /// Why nothing that is saved under it is published.
    pub failed: Option<String>,
}

/// How long who gives a lock back by ending may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);

impl Rounds {
    /// The process that holds the lock under which a round is saved.
    pub fn holder_of(&self, id: TxnId) -> Option<u32> {
        let lock = self.open.get(&id)?.lock.as_ref()?;
        Some(self.holdings.get(lock.holding)?.pid)
    }

    /// A round is one of what is saved under a lock.
    pub(super) fn note_lock(&mut self, id: TxnId, lock: &RoundLock) {
        if let Some(holding) = self.holdings.get_mut(lock.holding) {
            holding.round = Some(id);
        }
        if let Some(round) = self.open.get_mut(&id) {
            round.lock.get_or_insert_with(|| lock.clone());
        }
    }
}

impl GroupRound {
    /// Whether it is what is saved under this lock.
    pub(super) fn is_under(&self, lock: &RoundLock) -> bool {
        let own = self.lock.as_ref();
        own.is_some_and(|own| own.holding == lock.holding)
    }

    /// The lock under which it is saved is given back.
    pub fn note_let_go(&mut self, now: Instant) {
        if let Some(lock) = &mut self.lock {
            lock.let_go = Some(now);
        }
    }

    /// When that was.
    pub fn let_go(&self) -> Option<Instant> {
        self.lock.as_ref()?.let_go
    }

    /// What is being written of it, with the transactions that do.
    pub fn writing(&self) -> impl Iterator<Item = (&Dentry, TxnId)> {
        let members = self.members.iter();
        members.flat_map(|(dentry, m)| m.writing.iter().map(move |txn| (dentry, *txn)))
    }

    /// Whether it is what was saved under a lock, and is brought back: nothing says when it is complete but its saver's end.
    pub(super) fn is_brought_back(&self) -> bool {
        self.group.lock.is_some() && self.lock.is_none()
    }

    /// Whether it waits for a lock to be given back, or can't be published after that.
    pub(super) fn is_under_lock(&self) -> bool {
        let is_free = |lock: &RoundLock| lock.let_go.is_some() && lock.failed.is_none();
        let is_held = |lock: &RoundLock| !is_free(lock) || self.is_awaiting_end();
        self.lock.as_ref().is_some_and(is_held)
    }

    /// What is to become of what was saved under a lock, if that can be said.
    pub(super) fn verdict_of_lock(&self, lock: &RoundLock, now: Instant) -> Option<Verdict> {
        let is_late = now.saturating_duration_since(self.active) >= self.group.timeout;
        match lock.let_go {
            None if self.is_left() => {}
            None if is_late => {
                let why = "nothing of it was saved, and its lock was not given back";
                return Some(self.failed(format!("for {:?} {why}", self.group.timeout)));
            }
            None => return None,
            Some(at) if self.is_awaiting_end() => {
                let is_overdue = now.saturating_duration_since(at) >= END_LIMIT;
                let why = "the holder of its lock is ending, and doesn't end".to_owned();
                return is_overdue.then(|| self.failed(why));
            }
            Some(_) => {}
        }
        let failed = lock.failed.clone().or_else(|| self.failure());
        Some(match failed {
            Some(why) => self.failed(why),
            None => Verdict::Publish { incomplete: None },
        })
    }
}
