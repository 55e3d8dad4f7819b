//! Rounds: what one saver saves of a group, from its first open to its end. Each member is being written, saved or refused; a
//! round is complete once those are there that its group says, and nothing of it is being written.

mod locked;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::index::Index;
use super::{
    Binding, End, Group, Husk, LockHolds, Membership, OnIncomplete, Pins, Place, Removal,
    RoundDirectory, Saver,
};
use crate::sys::proc;
use crate::sys::process::SharedProcesses;
use crate::types::{Dentry, NodeId, TxnId};

pub use locked::RoundLock;

/// A file of a round.
#[derive(Debug, Default)]
pub struct RoundMember {
    /// Which of the group's patterns it matches.
    pattern: usize,
    /// Transactions that write it.
    writing: Vec<TxnId>,
    /// What waits to be published.
    saved: Option<SavedMember>,
    /// Why its last save was refused.
    refused: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct SavedMember {
    txn: TxnId,
    /// Bytes of the journal that are kept for it.
    bytes: u64,
    /// Its place in the order in which members were saved.
    place: u64,
}

/// See the module.
#[derive(Debug)]
pub struct GroupRound {
    /// Its number, under which rejected lists it.
    pub id: TxnId,
    /// What it is a round of.
    pub group: Arc<Group>,
    /// What the names in its patterns stand for.
    pub binding: Arc<Binding>,
    /// When its first member was opened.
    pub began: Instant,
    /// When a member was opened or saved last.
    active: Instant,
    /// Those that save it, the first first.
    pub savers: Vec<Saver>,
    members: BTreeMap<Dentry, RoundMember>,
    /// What waits to be published, in the order in which it was saved.
    order: BTreeMap<u64, TxnId>,
    /// By pattern, how many members were saved or refused, and how many were saved.
    there: Vec<(usize, usize)>,
    /// How many are being written.
    writing: usize,
    /// How many were refused.
    refused: usize,
    /// Bytes of the journal that are kept for all.
    bytes: u64,
    /// What is becoming of it: nothing joins it.
    decided: Option<Verdict>,
    /// It is all that is saved in a directory, by whom ever.
    pub directory: Option<RoundDirectory>,
    /// It is what is saved under a lock.
    pub lock: Option<RoundLock>,
}

/// Who opens a member.
#[derive(Debug)]
pub struct Entering<'a> {
    /// What the path is.
    pub membership: &'a Membership,
    /// The name.
    pub dentry: &'a Dentry,
    /// The transaction.
    pub txn: TxnId,
    /// The process.
    pub pid: u32,
    /// The directory, if the group is one.
    pub place: Option<Place>,
    /// The lock under which that is.
    pub lock: Option<RoundLock>,
    /// It was started since what was saved there before was rejected.
    pub is_young: bool,
    /// When.
    pub now: Instant,
}

/// What is to become of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What was saved is published; not complete if there is something that is missing, or a reason.
    Publish {
        /// What is missing, and why it is published all the same.
        incomplete: Option<(Vec<String>, String)>,
    },
    /// Nothing is.
    Reject(String),
}

/// What became of rounds since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounts {
    /// Published, complete or not.
    pub published: u64,
    /// Not published.
    pub rejected: u64,
    /// Published though members were missing.
    pub incomplete: u64,
    /// Members that were saved alone, as their process can't be told.
    pub alone: u64,
}

/// All rounds of a mount.
#[derive(Debug, Default)]
pub struct Rounds {
    open: BTreeMap<TxnId, GroupRound>,
    index: Index,
    /// Those that save them.
    pub processes: SharedProcesses,
    /// Locks of groups that somebody holds.
    pub holdings: LockHolds,
    /// What became of the others.
    pub counts: GroupCounts,
    /// Bytes of the journal that were kept for transactions which have left.
    pub freed: u64,
    /// Transactions whose names were unlinked, or that others of their round have replaced: to be ended.
    pub dropped: Vec<TxnId>,
    /// Directories that were made for rounds that have failed: they go, and aren't listed until then.
    pub husks: Vec<Husk>,
    /// Directories that are being removed.
    pub removals: Vec<Removal>,
    /// The thread that looks after them.
    pub watch: Option<std::thread::Thread>,
    /// Which generations are pinned.
    pub pins: Pins,
}

impl Rounds {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// One of them.
    pub fn get(&self, id: TxnId) -> Option<&GroupRound> {
        self.open.get(&id)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, id: TxnId) -> Option<&mut GroupRound> {
        self.open.get_mut(&id)
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = &GroupRound> {
        self.open.values()
    }

    /// So many of them, to be changed, that come after that one.
    pub fn after(&mut self, id: TxnId, most: usize) -> impl Iterator<Item = &mut GroupRound> {
        let rest = (Bound::Excluded(id), Bound::Unbounded);
        self.open.range_mut(rest).take(most).map(|(_, round)| round)
    }

    /// Those of the group that a path belongs to.
    pub fn of_names(&self, membership: &Membership) -> Vec<TxnId> {
        self.index.of(membership).collect()
    }

    /// Others of the same names: two that save the same files.
    pub fn beside(&self, id: TxnId) -> Option<Vec<TxnId>> {
        self.open.get(&id).map(|r| self.index.beside(r))
    }

    /// Those of directories.
    pub fn of_directories(&self) -> impl Iterator<Item = &GroupRound> {
        let ids = self.index.of_directories();
        ids.filter_map(|id| self.open.get(&id))
    }

    /// It ends: what it has saved is no longer its own.
    pub fn end(&mut self, id: TxnId) -> Option<GroupRound> {
        let round = self.open.remove(&id)?;
        self.index.remove(&round);
        Some(round)
    }

    /// One that has failed goes on, for what its savers still save.
    pub fn go_on(&mut self, round: GroupRound) {
        self.index.insert(&round);
        self.open.insert(round.id, round);
    }

    /// A member is opened: into the round of its process, or of one that this descends from, or into a new one, numbered by
    /// `number`. Gives its number.
    pub fn enter(
        &mut self,
        entering: &Entering<'_>,
        descends: impl Fn(u32, u32) -> bool,
        number: impl FnOnce() -> TxnId,
    ) -> TxnId {
        let (membership, pid) = (entering.membership, entering.pid);
        let is_its = |round: &&GroupRound| {
            let saves = || round.has_saver(pid) || round.has_ancestor_of(pid, &descends);
            !round.is_deciding()
                && round.group == membership.group
                && match &entering.lock {
                    Some(lock) => round.is_under(lock),
                    None => round.lock.is_none() && saves(),
                }
        };
        let id = match entering.place {
            Some(place) => self.of_directory(place.top).map(|round| round.id),
            None => {
                let ids = self.index.of(membership);
                let mut rounds = ids.filter_map(|id| self.open.get(&id));
                rounds.find(is_its).map(|round| round.id)
            }
        };
        let over = id.filter(|id| self.is_over_for(*id, entering));
        let id = id.filter(|_| over.is_none()).unwrap_or_else(number);
        let left = over.and_then(|over| self.end(over)?.directory);
        let now = entering.now;
        let round = self.begin_or_go_on(id, membership, entering.place, now);
        if let Some((directory, left)) = round.directory.as_mut().zip(left) {
            // It is the same directory.
            (directory.is_new, directory.hidden, directory.made) =
                (left.is_new, left.hidden, left.made);
        }
        round.active = entering.now;
        round.change(entering.dentry, |member| {
            member.pattern = membership.pattern;
            if !member.writing.contains(&entering.txn) {
                member.writing.push(entering.txn);
            }
        });
        if let Some(lock) = &entering.lock {
            self.note_lock(id, lock);
        }
        id
    }

    /// The round of a directory that is open.
    pub fn of_directory(&self, top: NodeId) -> Option<&GroupRound> {
        self.all_of_directory(top).find(|r| !r.is_deciding())
    }

    /// The rounds of a directory, and those that are being decided.
    pub fn all_of_directory(&self, top: NodeId) -> impl Iterator<Item = &GroupRound> {
        let ids = self.index.of_directory(top);
        ids.filter_map(|id| self.open.get(&id))
    }

    fn begin_or_go_on(
        &mut self,
        id: TxnId,
        membership: &Membership,
        place: Option<Place>,
        now: Instant,
    ) -> &mut GroupRound {
        self.open.entry(id).or_insert_with(|| {
            let mut round = GroupRound::new(id, membership, now);
            round.directory = place.map(RoundDirectory::new);
            self.index.insert(&round);
            round
        })
    }

    /// A round of a directory begins before any of its members is opened, or goes on.
    pub fn enter_directory(
        &mut self,
        membership: &Membership,
        place: Place,
        number: impl FnOnce() -> TxnId,
        now: Instant,
    ) -> &mut GroupRound {
        let id = self.of_directory(place.top).map(|round| round.id);
        let id = id.unwrap_or_else(number);
        let round = self.begin_or_go_on(id, membership, Some(place), now);
        round.active = now;
        round
    }

    fn is_over_for(&mut self, id: TxnId, entering: &Entering<'_>) -> bool {
        let Some(round) = self.open.get_mut(&id) else {
            return false;
        };
        let rests = entering.now.saturating_duration_since(round.active);
        let has_rested = rests >= round.group.grace();
        let is_bare = round.is_bare();
        let directory = round.directory.as_mut();
        directory.is_some_and(|directory| {
            directory.is_over_for(entering.dentry, entering.is_young, has_rested) && is_bare
        })
    }

    /// A transaction leaves its round: it has another name, was unlinked, or has changed nothing. A round without members ends.
    /// Gives the bytes that were kept for it.
    pub fn leave(&mut self, id: TxnId, dentry: &Dentry, txn: TxnId) -> u64 {
        let Some(round) = self.open.get_mut(&id) else {
            return 0;
        };
        let left = round.change(dentry, |member| {
            member.writing.retain(|t| *t != txn);
            member.saved.take_if(|saved| saved.txn == txn)
        });
        if round.members.is_empty() && round.directory.is_none() {
            self.end(id);
        }
        left.map_or(0, |left| left.bytes)
    }
}

impl GroupRound {
    fn new(id: TxnId, membership: &Membership, now: Instant) -> GroupRound {
        GroupRound {
            id,
            group: membership.group.clone(),
            binding: membership.binding.clone(),
            began: now,
            active: now,
            savers: Vec::new(),
            members: BTreeMap::new(),
            order: BTreeMap::new(),
            there: vec![(0, 0); membership.group.patterns.len()],
            writing: 0,
            refused: 0,
            bytes: 0,
            decided: None,
            directory: None,
            lock: None,
        }
    }

    /// Changes a member, and what is counted of it. One that has nothing any more is none.
    fn change<T>(&mut self, dentry: &Dentry, change: impl FnOnce(&mut RoundMember) -> T) -> T {
        let mut member = self.members.remove(dentry).unwrap_or_default();
        self.count(&member, |counted, of| *counted -= of);
        if let Some(saved) = &member.saved {
            self.order.remove(&saved.place);
            self.bytes -= saved.bytes;
        }
        let result = change(&mut member);
        self.count(&member, |counted, of| *counted += of);
        if let Some(saved) = &member.saved {
            self.order.insert(saved.place, saved.txn);
            self.bytes += saved.bytes;
        }
        if member.state() != NOTHING {
            self.members.insert(dentry.clone(), member);
        }
        result
    }

    fn count(&mut self, member: &RoundMember, add: impl Fn(&mut usize, usize)) {
        add(&mut self.writing, usize::from(!member.writing.is_empty()));
        add(&mut self.refused, usize::from(member.refused.is_some()));
        let is_closed = member.saved.is_some() || member.refused.is_some();
        if let Some((closed, saved)) = self.there.get_mut(member.pattern) {
            add(closed, usize::from(is_closed));
            add(saved, usize::from(member.saved.is_some()));
        }
    }

    /// Whether a process takes part, and lives as far as is known.
    pub fn has_saver(&self, pid: u32) -> bool {
        self.savers
            .iter()
            .any(|s| s.pid == pid && s.ended.is_none())
    }

    /// Whether a process takes part, or descends from one that does.
    pub fn is_of(&self, pid: u32, descends: impl Fn(u32, u32) -> bool) -> bool {
        self.has_saver(pid) || self.has_ancestor_of(pid, descends)
    }

    fn has_ancestor_of(&self, pid: u32, descends: impl Fn(u32, u32) -> bool) -> bool {
        let mut living = self.savers.iter().filter(|s| s.ended.is_none());
        living.any(|s| descends(pid, s.pid))
    }

    /// A process has closed a member, and was to go on: how it has ended since doesn't count for what was complete by that.
    pub fn note_closed(&mut self, pid: u32) {
        for saver in self.savers.iter_mut().filter(|s| s.pid == pid) {
            (saver.ended, saver.is_ending) = (None, false);
        }
    }

    /// Of savers that have ended well nothing more is to be known, as long as others go on.
    pub fn forget_ended(&mut self) {
        let has_left = |s: &Saver| s.ended == Some(End::Well);
        if !self.savers.iter().all(has_left) {
            self.savers.retain(|s| !has_left(s));
        }
    }

    /// A saved member is opened again, and written on. Gives the bytes that were kept for it.
    pub fn reopen(&mut self, dentry: &Dentry, txn: TxnId, now: Instant) -> u64 {
        self.active = now;
        self.change(dentry, |member| {
            let saved = member.saved.take_if(|saved| saved.txn == txn);
            if saved.is_some() {
                member.writing.push(txn);
            }
            saved.map_or(0, |saved| saved.bytes)
        })
    }

    /// A member is saved: it waits to be published. `bytes` of the journal are kept for it. Gives what it takes the place of, and
    /// what was kept for that.
    pub fn save(
        &mut self,
        dentry: &Dentry,
        txn: TxnId,
        bytes: u64,
        now: Instant,
    ) -> Option<(TxnId, u64)> {
        self.active = now;
        let place = self
            .order
            .last_key_value()
            .map_or(0, |(place, _)| place + 1);
        let before = self.change(dentry, |member| {
            member.writing.retain(|t| *t != txn);
            member.refused = None;
            member.saved.replace(SavedMember { txn, bytes, place })
        });
        let before = before.filter(|before| before.txn != txn);
        before.map(|before| (before.txn, before.bytes))
    }

    /// A save of a member is refused.
    pub fn refuse(&mut self, dentry: &Dentry, txn: TxnId, why: String, now: Instant) {
        self.active = now;
        self.change(dentry, |member| {
            member.writing.retain(|t| *t != txn);
            member.refused = Some(why);
        });
    }

    /// Its members by name.
    pub fn members(&self) -> impl Iterator<Item = (&Dentry, &RoundMember)> {
        self.members.iter()
    }

    /// What waits to be published, in the order in which it was saved.
    pub fn saved(&self) -> impl Iterator<Item = TxnId> {
        self.order.values().copied()
    }

    /// Bytes of the journal that are kept for it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether all that takes part has ended.
    pub fn is_left(&self) -> bool {
        self.savers.iter().all(|s| s.ended.is_some())
    }

    /// Some of it was closed by a process that was ending.
    pub fn await_end(&mut self, pid: u32) {
        for saver in self.savers.iter_mut().filter(|s| s.pid == pid) {
            saver.is_ending = true;
        }
    }

    /// Whether it is still to be seen how somebody has ended who has closed some of it.
    fn is_awaiting_end(&self) -> bool {
        // Who has started them, and others of the same job, may go on.
        self.savers.iter().any(|s| s.is_ending && s.ended.is_none())
    }

    /// Whether what its group names is there.
    pub fn has_named(&self) -> bool {
        let is_closed = |pattern: usize| {
            let there = self.there.get(pattern);
            there.is_some_and(|(closed, _)| *closed > 0)
        };
        let is_final = self.directory.as_ref().is_some_and(|d| d.is_final);
        is_final || self.group.completing().all(is_closed)
    }

    /// Whether more of a directory is to be expected from others, as something is missing: ranks of a job begin and end at their
    /// own times.
    pub fn waits_for_others(&self) -> bool {
        let Some(directory) = &self.directory else {
            return false;
        };
        match directory.failed {
            Some(_) => self.is_bare(),
            None => {
                let lacks = !self.is_bare() && !self.has_named();
                lacks && !directory.is_restored && self.failure().is_none()
            }
        }
    }

    /// How much later than it would be now it is decided, if who saves it has ended.
    pub fn rest(&self) -> Duration {
        match self.is_left() {
            true => self.group.grace(),
            false => Duration::ZERO,
        }
    }

    /// Whether it is one of a directory without files.
    pub fn is_bare(&self) -> bool {
        self.directory.is_some() && self.members.is_empty()
    }

    /// All that was saved of it was rejected. Others of its savers may go on.
    pub fn fail(&mut self, why: &str, at: proc::Moment) {
        if let Some(directory) = &mut self.directory {
            directory.fail(why, at, self.members.keys().cloned());
        }
        self.members.clear();
        self.order.clear();
        self.there.fill((0, 0));
        (self.writing, self.refused, self.bytes, self.decided) = (0, 0, 0, None);
    }

    /// It is being decided: nothing joins it any more, and how its savers end from now on doesn't count.
    pub fn decide(&mut self, verdict: Verdict) {
        self.decided.get_or_insert(verdict);
    }

    /// Whether some of it is being written.
    pub fn is_written(&self) -> bool {
        self.writing > 0
    }

    /// Whether it is.
    pub fn is_deciding(&self) -> bool {
        self.decided.is_some()
    }

    /// Whether it was complete, and is being published.
    pub fn was_complete(&self) -> bool {
        self.decided == Some(Verdict::Publish { incomplete: None })
    }

    /// The patterns that are to be there and aren't, with what their names stand for.
    pub fn missing(&self) -> Vec<String> {
        let needed = (0..self.group.needed).chain(self.group.complete.iter().copied());
        let has = |pattern: &usize| {
            self.there
                .get(*pattern)
                .is_some_and(|(_, saved)| *saved > 0)
        };
        let mut missing: Vec<usize> = needed.filter(|pattern| !has(pattern)).collect();
        missing.sort_unstable();
        missing.dedup();
        let filled = |pattern: usize| self.group.patterns[pattern].filled(&self.binding);
        missing.into_iter().map(filled).collect()
    }

    /// What is to become of it, if that can be said.
    pub fn verdict(&self, now: Instant) -> Option<Verdict> {
        self.decided.clone().or_else(|| self.judge(now))
    }

    /// What is to become of it by what is known now, if that can be said.
    pub fn judge(&self, now: Instant) -> Option<Verdict> {
        if self.writing > 0 {
            return None;
        }
        if let Some(lock) = &self.lock {
            return self.verdict_of_lock(lock, now);
        }
        let quiet = now.saturating_duration_since(self.active);
        let is_late = quiet >= self.group.timeout;
        if let Some(directory) = &self.directory {
            let failed = directory
                .failed
                .as_ref()
                .map(|f| Verdict::Reject(f.why.clone()));
            if self.members.is_empty() {
                let killed = self.failure().filter(|_| failed.is_none());
                if let Some(why) =
                    killed.filter(|_| self.group.on_incomplete == OnIncomplete::Reject)
                {
                    // Others may be about to save in what it has made.
                    return Some(Verdict::Reject(why));
                }
                // Nothing is there; what has failed stays so as long as somebody may go on with it.
                let is_over = match &failed {
                    Some(_) => self.is_left() && quiet >= self.group.grace(),
                    None => self.is_left() || is_late,
                };
                return is_over.then(|| failed.unwrap_or(Verdict::Publish { incomplete: None }));
            }
            if failed.is_some() {
                return failed;
            }
        }
        let is_final = self.directory.as_ref().is_some_and(|d| d.is_final);
        let is_settled = quiet >= self.group.settles() || self.is_left() || is_final;
        let is_open = self.is_brought_back() && !self.is_left();
        let is_complete = self.has_named() && !is_open && !self.is_awaiting_end() && is_settled;
        let is_over = self.is_left() && (!self.waits_for_others() || quiet >= self.group.grace());
        if !is_complete && !is_over && !is_late {
            return None;
        }
        if let Some(why) = self.failure() {
            return Some(self.failed(why));
        }
        if is_complete {
            return Some(Verdict::Publish { incomplete: None });
        }
        let missing = self.missing();
        let without = missing.join(", ");
        Some(match self.is_left() {
            true => Verdict::Publish {
                incomplete: Some((missing, format!("its saver has ended without {without}"))),
            },
            false => self.failed(format!(
                "for {:?} nothing of it was saved, and there is no {without}",
                self.group.timeout
            )),
        })
    }

    /// Whether it would be complete, and published, if this transaction saved that member.
    pub fn is_complete_with(&self, dentry: &Dentry, txn: TxnId) -> bool {
        let Some(member) = self.members.get(dentry).filter(|m| m.writing == [txn]) else {
            return false;
        };
        let is_closed = |pattern: usize| {
            let closed = self
                .there
                .get(pattern)
                .is_some_and(|(closed, _)| *closed > 0);
            closed || pattern == member.pattern
        };
        let is_refused = self.refused > usize::from(member.refused.is_some());
        let failed = self
            .savers
            .iter()
            .any(|s| matches!(s.ended, Some(End::Badly(_))));
        let failed = failed || self.directory.as_ref().is_some_and(|d| d.failed.is_some());
        let waits = !self.group.settles().is_zero()
            || self.is_under_lock()
            || self.is_brought_back()
            || self.directory.is_some() && self.is_awaiting_end();
        self.writing == 1
            && !is_refused
            && !failed
            && !waits
            && self.group.completing().all(is_closed)
    }

    /// What stands against publishing it.
    fn failure(&self) -> Option<String> {
        let killed = self.savers.iter().find_map(|s| match &s.ended {
            Some(End::Badly(how)) => Some(format!("its saver {} ({}) {how}", s.pid, s.command)),
            _ => None,
        });
        let refused = || {
            let mut members = self.members.values();
            members.find_map(|m| m.refused.clone())
        };
        killed.or_else(|| (self.refused > 0).then(refused).flatten())
    }

    fn failed(&self, why: String) -> Verdict {
        let publishes = self.group.on_incomplete == OnIncomplete::Commit && !self.order.is_empty();
        match publishes {
            true => Verdict::Publish {
                incomplete: Some((self.missing(), why)),
            },
            false => Verdict::Reject(why),
        }
    }
}

const NOTHING: &str = "nothing";

impl RoundMember {
    /// `writing`, `saved`, `refused` or `nothing`.
    pub fn state(&self) -> &'static str {
        match (self.writing.is_empty(), self.saved, &self.refused) {
            (false, ..) => "writing",
            (true, Some(_), _) => "saved",
            (true, None, Some(_)) => "refused",
            (true, None, None) => NOTHING,
        }
    }
}
