//! Rounds: what one saver saves of a group, from its first open to its end. Each member is being written, saved or refused; a
//! round is complete once those are there that its group says, and nothing of it is being written.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{Binding, Group, Membership, OnIncomplete, Pins};
use crate::types::{Dentry, TxnId};

/// How a process has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With status 0.
    Well,
    /// Otherwise: how, for people.
    Badly(String),
}

/// A process that takes part in a round.
#[derive(Debug)]
pub struct Saver {
    /// Its number.
    pub pid: u32,
    /// Its command, for people.
    pub command: String,
    /// The process, to be asked how it has ended.
    pub process: Option<Arc<OwnedFd>>,
    /// How it has ended.
    pub ended: Option<End>,
}

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
    /// Bytes of the journal that are kept for all.
    bytes: u64,
    /// What is becoming of it: nothing joins it.
    decided: Option<Verdict>,
    /// Some of it was closed by a process that was ending: how, is seen when it has ended.
    awaits_end: bool,
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
    /// What became of the others.
    pub counts: GroupCounts,
    /// Bytes of the journal that were kept for transactions which have left.
    pub freed: u64,
    /// Transactions whose names were unlinked, or that others of their round have replaced: to be ended.
    pub dropped: Vec<TxnId>,
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

    /// It ends: what it has saved is no longer its own.
    pub fn end(&mut self, id: TxnId) -> Option<GroupRound> {
        self.open.remove(&id)
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
            !round.is_deciding()
                && round.group == membership.group
                && round.binding == membership.binding
                && (round.has_saver(pid) || round.has_ancestor_of(pid, &descends))
        };
        let id = self.open.values().find(is_its).map(|round| round.id);
        let id = id.unwrap_or_else(number);
        let round = self
            .open
            .entry(id)
            .or_insert_with(|| GroupRound::new(id, membership, entering.now));
        round.active = entering.now;
        round.change(entering.dentry, |member| {
            member.pattern = membership.pattern;
            if !member.writing.contains(&entering.txn) {
                member.writing.push(entering.txn);
            }
        });
        id
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
        if round.members.is_empty() {
            self.open.remove(&id);
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
            bytes: 0,
            decided: None,
            awaits_end: false,
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

    fn has_ancestor_of(&self, pid: u32, descends: impl Fn(u32, u32) -> bool) -> bool {
        let mut living = self.savers.iter().filter(|s| s.ended.is_none());
        living.any(|s| descends(pid, s.pid))
    }

    /// A process has closed a member, and was to go on: how it has ended since doesn't count for what was complete by that.
    pub fn note_closed(&mut self, pid: u32) {
        for saver in self.savers.iter_mut().filter(|s| s.pid == pid) {
            saver.ended = None;
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
    pub fn await_end(&mut self) {
        self.awaits_end = true;
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
        let is_closed = |pattern: usize| {
            self.there
                .get(pattern)
                .is_some_and(|(closed, _)| *closed > 0)
        };
        let is_complete =
            self.group.completing().all(is_closed) && (!self.awaits_end || self.is_left());
        let is_late = now.saturating_duration_since(self.active) >= self.group.timeout;
        if !is_complete && !self.is_left() && !is_late {
            return None;
        }
        if let Some(why) = self.failure() {
            return Some(self.fail(why));
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
            false => self.fail(format!(
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
        let is_refused = self
            .members
            .iter()
            .any(|(d, m)| d != dentry && m.refused.is_some());
        let failed = self
            .savers
            .iter()
            .any(|s| matches!(s.ended, Some(End::Badly(_))));
        self.writing == 1 && !is_refused && !failed && self.group.completing().all(is_closed)
    }

    /// What stands against publishing it.
    fn failure(&self) -> Option<String> {
        let killed = self.savers.iter().find_map(|s| match &s.ended {
            Some(End::Badly(how)) => Some(format!("its saver {} ({}) {how}", s.pid, s.command)),
            _ => None,
        });
        killed.or_else(|| self.members.values().find_map(|m| m.refused.clone()))
    }

    fn fail(&self, why: String) -> Verdict {
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
