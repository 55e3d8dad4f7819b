//! The files of which something is known, by their names.
//!
//! A rename moves what belongs to the file: who adds lines to it, and whom it follows. The rest belongs to the name, and stays: a
//! claim is made by creating a name, and is given up when that means another file; a turn and a place in line are for whatever is
//! saved under the name next; and what went wrong was to be the version of that name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::{AppendPlace, Appender, Claimant, Unnamed};
use crate::store::Unseen;
use crate::types::{Dentry, NodeId, TxnId};

/// So many claims are watched; later ones are not.
const MOST_CLAIMS: usize = 1000;

/// What is known of one file.
#[derive(Debug, Default)]
pub struct NameEntry {
    /// Descriptions that add lines to it.
    appenders: Vec<Arc<Appender>>,
    /// It is a link of a file that is still being written.
    follower: Option<Follower>,
    /// Who holds it by having created it with O_EXCL, as far as the rules care.
    claimant: Option<Box<Claimant>>,
    /// Whose save is between its merge and its commit, and until when at most.
    turn: Option<(TxnId, Instant)>,
    /// Who waits for its writer slot, in order.
    line: VecDeque<u64>,
    /// The last error, for the attribute `user.commitfs.error`: since the version that it has.
    error: Option<Box<Unseen>>,
}

/// A link made to a file that is being written.
#[derive(Debug)]
pub struct Follower {
    /// The version that it has; another one is somebody else's.
    pub version: NodeId,
    /// The transactions that it gets the commits of.
    pub writers: Vec<TxnId>,
}

impl NameEntry {
    fn is_empty(&self) -> bool {
        self.appenders.is_empty()
            && self.follower.is_none()
            && self.claimant.is_none()
            && self.turn.is_none()
            && self.line.is_empty()
            && self.error.is_none()
    }
}

/// Names whose last errors are kept.
const MOST_ERRORS: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct NameTable {
    names: HashMap<Dentry, NameEntry>,
    /// The names that follow each transaction.
    following: HashMap<TxnId, HashSet<Dentry>>,
    claims: usize,
    /// The names with errors and when these were, in nanoseconds since the epoch, the oldest first; some are forgotten by now.
    with_errors: VecDeque<(Dentry, i64)>,
}

impl NameTable {
    /// Does something to an entry, which ends when nothing is left in it.
    fn change<T>(&mut self, dentry: &Dentry, what: impl FnOnce(&mut NameEntry) -> T) -> T {
        let Some(entry) = self.names.get_mut(dentry) else {
            let mut entry = NameEntry::default();
            let done = what(&mut entry);
            if !entry.is_empty() {
                self.names.insert(dentry.clone(), entry);
            }
            return done;
        };
        let done = what(entry);
        if entry.is_empty() {
            self.names.remove(dentry);
            // Many of one moment don't keep their memory for good.
            if self.names.capacity() > 1024 && self.names.len() < self.names.capacity() / 8 {
                self.names.shrink_to_fit();
            }
        }
        done
    }

    /// How many names have anything.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// A file has another name now, and what belongs to it goes along. What had that name before has lost it
    /// (see [`NameTable::unname`]).
    pub fn rename(&mut self, from: &Dentry, to: &Dentry) {
        self.move_appenders(from, to);
        let follower = self.take_follower(from);
        self.set_follower(to, follower);
    }

    /// Two files have changed names.
    pub fn exchange(&mut self, one: &Dentry, other: &Dentry) {
        let aside = self.change(other, |entry| std::mem::take(&mut entry.appenders));
        self.move_appenders(one, other);
        for appender in aside {
            appender.move_to(one);
            self.enlist(one, &appender);
        }
        let (first, second) = (self.take_follower(one), self.take_follower(other));
        self.set_follower(other, first);
        self.set_follower(one, second);
    }
}

/// Who adds lines.
impl NameTable {
    /// The descriptions that add to a file.
    pub fn appenders(&self, dentry: &Dentry) -> &[Arc<Appender>] {
        self.names.get(dentry).map_or(&[], |e| &e.appenders)
    }

    /// A description adds to a file.
    pub fn enlist(&mut self, dentry: &Dentry, appender: &Arc<Appender>) {
        self.change(dentry, |entry| entry.appenders.push(appender.clone()));
    }

    /// A description adds no more lines.
    pub fn delist(&mut self, appender: &Appender) {
        if let AppendPlace::At(dentry) = &*appender.place.lock() {
            self.change(dentry, |entry| {
                entry.appenders.retain(|a| !std::ptr::eq(&**a, appender));
            });
        }
    }

    /// A file has lost its name to another, or for good: who adds to it goes on with it.
    pub fn unname(&mut self, dentry: &Dentry, file: Option<Unnamed>) {
        let Some(file) = file else { return };
        for appender in self.change(dentry, |entry| std::mem::take(&mut entry.appenders)) {
            *appender.place.lock() = AppendPlace::Nameless(file.clone());
        }
    }

    /// Who adds to a file goes on under another name: what was written of it so far has that.
    pub fn move_appenders(&mut self, from: &Dentry, to: &Dentry) {
        let moved = self.change(from, |entry| std::mem::take(&mut entry.appenders));
        for appender in &moved {
            appender.move_to(to);
        }
        self.change(to, |entry| entry.appenders.extend(moved));
    }
}

/// Links of files that are being written.
impl NameTable {
    /// Whether any name follows a transaction.
    pub fn is_followed(&self, id: TxnId) -> bool {
        self.following.contains_key(&id)
    }

    /// Whom a name follows.
    pub fn leaders(&self, dentry: &Dentry) -> &[TxnId] {
        let follower = self.names.get(dentry).and_then(|e| e.follower.as_ref());
        follower.map_or(&[], |f| &f.writers)
    }

    /// The names that follow a transaction, with the versions that they have.
    pub fn followers(&self, id: TxnId) -> HashMap<Dentry, NodeId> {
        let names = self.following.get(&id).into_iter().flatten();
        let version =
            |dentry: &Dentry| self.names.get(dentry)?.follower.as_ref().map(|f| f.version);
        names
            .filter_map(|dentry| Some((dentry.clone(), version(dentry)?)))
            .collect()
    }

    /// A name follows some transactions from now on, or none; with this version.
    pub fn follow(&mut self, dentry: &Dentry, version: NodeId, writers: Vec<TxnId>) {
        let follower = (!writers.is_empty()).then_some(Follower { version, writers });
        self.set_follower(dentry, follower);
    }

    /// A name that follows has been given another version.
    pub fn renew_follower(&mut self, dentry: &Dentry, version: NodeId) {
        let entry = self.names.get_mut(dentry);
        if let Some(follower) = entry.and_then(|e| e.follower.as_mut()) {
            follower.version = version;
        }
    }

    /// A transaction has ended: nobody follows it.
    pub fn end_following(&mut self, id: TxnId) {
        for dentry in self.following.remove(&id).into_iter().flatten() {
            self.change(&dentry, |entry| {
                if let Some(follower) = &mut entry.follower {
                    follower.writers.retain(|writer| *writer != id);
                    if follower.writers.is_empty() {
                        entry.follower = None;
                    }
                }
            });
        }
    }

    fn take_follower(&mut self, dentry: &Dentry) -> Option<Follower> {
        self.names.get(dentry)?.follower.as_ref()?;
        let taken = self.change(dentry, |entry| entry.follower.take())?;
        for id in &taken.writers {
            if let Some(names) = self.following.get_mut(id) {
                names.remove(dentry);
                if names.is_empty() {
                    self.following.remove(id);
                }
            }
        }
        Some(taken)
    }

    fn set_follower(&mut self, dentry: &Dentry, follower: Option<Follower>) {
        self.take_follower(dentry);
        let Some(follower) = follower else { return };
        for id in &follower.writers {
            let names = self.following.entry(*id).or_default();
            names.insert(dentry.clone());
        }
        self.change(dentry, |entry| entry.follower = Some(follower));
    }
}

/// Claims.
impl NameTable {
    /// A file is held by who has created it; not watched if too many are.
    pub fn claim(&mut self, dentry: &Dentry, claimant: impl FnOnce() -> Option<Claimant>) {
        if self.claims >= MOST_CLAIMS {
            return;
        }
        let Some(claimant) = claimant() else { return };
        let before = self.change(dentry, |entry| entry.claimant.replace(Box::new(claimant)));
        self.claims += usize::from(before.is_none());
    }

    /// Whether a file is held so.
    pub fn is_claimed(&self, dentry: &Dentry) -> bool {
        let entry = self.names.get(dentry);
        entry.is_some_and(|e| e.claimant.is_some())
    }

    /// All that are, with who holds them.
    pub fn claims(&self) -> impl Iterator<Item = (&Dentry, &Claimant)> {
        // Of ten thousand logs none may be a claim.
        let names = (self.claims > 0)
            .then_some(&self.names)
            .into_iter()
            .flatten();
        names.filter_map(|(dentry, entry)| Some((dentry, entry.claimant.as_deref()?)))
    }

    /// Who holds a file.
    pub fn claimant_mut(&mut self, dentry: &Dentry) -> Option<&mut Claimant> {
        self.names.get_mut(dentry)?.claimant.as_deref_mut()
    }

    /// A claim was given up.
    pub fn end_claim(&mut self, dentry: &Dentry) {
        let ended = self.change(dentry, |entry| entry.claimant.take());
        self.claims -= usize::from(ended.is_some());
    }

    /// Names that lines are added to or that are claimed: they are to be found by their names for that.
    pub fn in_use(&self) -> impl Iterator<Item = &Dentry> {
        let names = self.names.iter();
        let is_used = |e: &NameEntry| !e.appenders.is_empty() || e.claimant.is_some();
        names.filter_map(move |(dentry, entry)| is_used(entry).then_some(dentry))
    }
}

/// Turns, the line for the writer slot, errors.
impl NameTable {
    /// Whose save is between its merge and its commit, and until when at most, be it that this is over.
    pub fn turn(&self, dentry: &Dentry) -> Option<(TxnId, Instant)> {
        self.names.get(dentry)?.turn
    }

    /// Whether some save is.
    pub fn is_turn_taken(&self, dentry: &Dentry) -> bool {
        let turn = self.turn(dentry);
        turn.is_some_and(|(_, until)| until > Instant::now())
    }

    /// A save is, until then at most.
    pub fn take_turn(&mut self, dentry: &Dentry, id: TxnId, until: Instant) {
        self.change(dentry, |entry| entry.turn = Some((id, until)));
    }

    /// Its turn ends, or lasts until another time. Gives whether it had it.
    pub fn change_turn(&mut self, dentry: &Dentry, id: TxnId, until: Option<Instant>) -> bool {
        let had = self.turn(dentry).is_some_and(|(of, _)| of == id);
        if had {
            self.change(dentry, |entry| entry.turn = until.map(|until| (id, until)));
        }
        had
    }

    /// Forgets turns that are over, though nobody has said so.
    pub fn forget_turns(&mut self, now: Instant) {
        let is_over = |e: &NameEntry| e.turn.is_some_and(|(_, until)| until <= now);
        let over = self.names.iter().filter(|(_, entry)| is_over(entry));
        let over: Vec<Dentry> = over.map(|(dentry, _)| dentry.clone()).collect();
        for dentry in over {
            self.change(&dentry, |entry| entry.turn = None);
        }
    }

    /// One gets in line for the writer slot.
    pub fn queue(&mut self, dentry: &Dentry, ticket: u64) {
        self.change(dentry, |entry| entry.line.push_back(ticket));
    }

    /// One leaves the line.
    pub fn leave_queue(&mut self, dentry: &Dentry, ticket: u64) {
        self.change(dentry, |entry| entry.line.retain(|t| *t != ticket));
    }

    /// Whether one is the first in line.
    pub fn is_first(&self, dentry: &Dentry, ticket: u64) -> bool {
        let entry = self.names.get(dentry);
        entry.and_then(|e| e.line.front()) == Some(&ticket)
    }

    /// Whether somebody is in line.
    pub fn has_queue(&self, dentry: &Dentry) -> bool {
        let entry = self.names.get(dentry);
        entry.is_some_and(|e| !e.line.is_empty())
    }

    /// What went wrong last.
    pub fn error(&self, dentry: &Dentry) -> Option<&Unseen> {
        self.names.get(dentry)?.error.as_deref()
    }

    /// What went wrong last, to add to it.
    pub fn error_mut(&mut self, dentry: &Dentry) -> Option<&mut Unseen> {
        self.names.get_mut(dentry)?.error.as_deref_mut()
    }

    /// Something went wrong. Of very many names the oldest errors are forgotten.
    pub fn note_error(&mut self, dentry: &Dentry, error: Unseen) {
        self.with_errors.push_back((dentry.clone(), error.time_ns));
        self.change(dentry, |entry| entry.error = Some(Box::new(error)));
        while self.with_errors.len() > MOST_ERRORS {
            let Some((oldest, time)) = self.with_errors.pop_front() else {
                return;
            };
            if self.error(&oldest).is_some_and(|e| e.time_ns == time) {
                self.forget_error(&oldest);
            }
        }
    }

    /// A name has got a version, or is gone: what went wrong before was not the last.
    pub fn forget_error(&mut self, dentry: &Dentry) {
        if self.error(dentry).is_some() {
            self.change(dentry, |entry| entry.error = None);
        }
    }
}

#[cfg(test)]
mod tests;
