//! Advisory locks of files, held across their versions (C12). Pure: who waits, and how, is the
//! engine's business.
//!
//! fuser doesn't say whether a request is flock's or fcntl's, nor whose fcntl's. The engine asks `/proc` for the system call
//! that waits for the answer; where that can't be read, owners tell: a process has one owner
//! for all its fcntl locks, which its closes name, too; an owner seen there is fcntl's. A lock of
//! part of a file is fcntl's in any case. Where it can't be told, the lock conflicts with either
//! kind: waiting too long is better than two winners.
//!
//! Locks of a file stand in the kernel's order: fcntl's by owner, as these came, and those of an owner by their first byte. F_GETLK
//! names the first that stands against what is asked.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::types::{Dentry, HandleId, NodeId};

/// A file through all its versions: the node of the first version known to the lock table.
pub type FileId = NodeId;

/// End of a lock that covers the whole file.
pub const END: u64 = i64::MAX as u64;

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Readers together.
    Shared,
    /// One alone.
    Exclusive,
}

/// Which call it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2), lockf(3): a process's.
    Posix,
    /// F_OFD_SETLK of fcntl(2): an open file description's.
    OpenFile,
    /// One of these two.
    Fcntl,
    /// flock(2).
    Flock,
    /// Can't be told.
    Unknown,
}

impl LockKind {
    fn is_fcntl(self) -> bool {
        matches!(self, LockKind::Posix | LockKind::OpenFile | LockKind::Fcntl)
    }

    /// flock and fcntl don't know of each other.
    fn is_apart(self, other: LockKind) -> bool {
        (self.is_fcntl() && other == LockKind::Flock)
            || (self == LockKind::Flock && other.is_fcntl())
    }

    /// Of these alone the kernel looks for cycles. Where a process's locks can't be told from a description's, an EDEADLK too many is
    /// better than one that never comes.
    fn may_be_posix(self) -> bool {
        matches!(self, LockKind::Posix | LockKind::Fcntl)
    }
}

/// A request or a granted lock.
#[derive(Clone, Debug)]
pub struct Lock {
    /// The kernel's id of the owner: a process for fcntl, an open description for flock.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Shared or exclusive.
    pub mode: Mode,
    /// The call it came by, as far as that was known then.
    pub kind: LockKind,
    /// Process.
    pub pid: u32,
    /// The description it was asked through.
    pub handle: HandleId,
    /// The node it was asked on.
    pub node: NodeId,
    /// The name under which that was found then.
    pub at: Option<Dentry>,
    /// Since when.
    pub since: Instant,
}

/// All locks.
#[derive(Debug, Default)]
pub struct LockTable {
    held: HashMap<FileId, Vec<Lock>>,
    posix_owners: HashSet<u64>,
    /// The description that an owner not yet told apart was first seen with.
    first_seen: HashMap<u64, HandleId>,
    flock_owners: HashSet<u64>,
    ended: Vec<Ended>,
}

/// A lock that was given back.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The node it was asked on.
    pub node: NodeId,
    /// The name under which that was found then.
    pub at: Option<Dentry>,
    /// How long it was held.
    pub held: std::time::Duration,
}

impl LockTable {
    /// A close by a process named this owner: it is an owner of fcntl locks.
    pub fn learn_posix(&mut self, owner: u64) {
        if self.posix_owners.len() > 65536 {
            self.posix_owners.clear();
        }
        self.posix_owners.insert(owner);
    }

    /// A request names its owner: one that comes by a second description is a process, so fcntl's.
    pub fn learn_from(&mut self, wanted: &Lock) {
        match wanted.kind {
            LockKind::Posix => return self.learn_posix(wanted.owner),
            LockKind::Flock | LockKind::OpenFile => {
                self.posix_owners.remove(&wanted.owner);
                return;
            }
            LockKind::Fcntl | LockKind::Unknown => {}
        }
        if self.kind(wanted) == LockKind::Posix {
            return;
        }
        if self.first_seen.len() > 65536 {
            self.first_seen.clear();
        }
        let first = *self.first_seen.entry(wanted.owner).or_insert(wanted.handle);
        if first != wanted.handle {
            self.first_seen.remove(&wanted.owner);
            self.learn_posix(wanted.owner);
        }
    }

    /// The end of a description named this owner: it is an owner of flock locks.
    pub fn forget_flock(&mut self, owner: u64) {
        self.flock_owners.remove(&owner);
        self.posix_owners.remove(&owner);
        self.first_seen.remove(&owner);
    }

    /// A description has ended: the kernel may give its owner's number to another one.
    pub fn forget_handle(&mut self, handle: HandleId) {
        self.first_seen.retain(|_, first| *first != handle);
    }

    /// The call that a lock came by, as far as it is known now.
    pub fn kind(&self, lock: &Lock) -> LockKind {
        if !matches!(lock.kind, LockKind::Unknown | LockKind::Fcntl) {
            lock.kind
        } else if self.posix_owners.contains(&lock.owner) {
            LockKind::Posix
        } else if lock.kind == LockKind::Fcntl || lock.start != 0 || lock.end != END {
            LockKind::Fcntl
        } else if self.flock_owners.contains(&lock.owner) {
            LockKind::Flock
        } else {
            LockKind::Unknown
        }
    }

    /// The locks that stand against a request, in the kernel's order.
    pub fn against<'a>(
        &'a self,
        file: FileId,
        wanted: &'a Lock,
    ) -> impl Iterator<Item = &'a Lock> + use<'a> {
        let kind = self.kind(wanted);
        self.of_file(file).iter().filter(move |held| {
            held.owner != wanted.owner
                && held.start <= wanted.end
                && wanted.start <= held.end
                && (held.mode == Mode::Exclusive || wanted.mode == Mode::Exclusive)
                && !self.kind(held).is_apart(kind)
        })
    }

    fn of_file(&self, file: FileId) -> &[Lock] {
        self.held.get(&file).map_or(&[], Vec::as_slice)
    }

    /// fcntl(F_GETLK): the first lock that stands against a request; of `None`, the owner's own first one of that range. As the kernel
    /// has it: what an owner holds without a gap and in one mode is one lock.
    pub fn first_against(&self, file: FileId, wanted: &Lock, own: bool) -> Option<Lock> {
        let mut found = match own {
            false => self.against(file, wanted).next()?.clone(),
            true => self
                .of_file(file)
                .iter()
                .find(|held| {
                    self.belongs_to(held, wanted)
                        && held.start <= wanted.end
                        && wanted.start <= held.end
                })?
                .clone(),
        };
        let alike = |held: &&Lock| self.belongs_to(held, &found) && held.mode == found.mode;
        let mut pieces: Vec<_> = self.of_file(file).iter().filter(alike).collect();
        pieces.sort_by_key(|piece| piece.start);
        let (mut start, mut end) = (found.start, found.end);
        for piece in &pieces {
            if end < END && piece.start == end + 1 {
                end = piece.end;
            }
        }
        for piece in pieces.iter().rev() {
            if start > 0 && piece.end == start - 1 {
                start = piece.start;
            }
        }
        (found.start, found.end) = (start, end);
        Some(found)
    }

    /// Whether a held lock is one of those that a request of the same owner replaces or gives back: flock and fcntl name one
    /// owner for an open description, and are two locks.
    fn belongs_to(&self, held: &Lock, request: &Lock) -> bool {
        held.owner == request.owner && !self.kind(held).is_apart(self.kind(request))
    }

    /// Grants a lock, in place of what its owner held of the range.
    pub fn grant(&mut self, file: FileId, lock: Lock) {
        // The same process asking whole-file locks under an owner that isn't its fcntl owner can
        // only be flock's.
        let sibling = self.of_file(file).iter().any(|held| {
            held.pid == lock.pid
                && held.owner != lock.owner
                && self.posix_owners.contains(&held.owner)
        });
        if sibling && lock.kind == LockKind::Unknown && lock.start == 0 && lock.end == END {
            self.flock_owners.insert(lock.owner);
        }
        let owners = self.of_file(file).iter();
        let place = owners.take_while(|held| !self.belongs_to(held, &lock));
        let place = place.count();
        self.cut(file, &lock);
        let mut place = place.min(self.of_file(file).len());
        let rest = &self.of_file(file)[place..];
        let before = |held: &&Lock| self.belongs_to(held, &lock) && held.start < lock.start;
        place += rest.iter().take_while(before).count();
        self.held.entry(file).or_default().insert(place, lock);
    }

    /// Takes a range away from an owner. Gives whether it held any of it.
    pub fn release(&mut self, file: FileId, request: &Lock) -> bool {
        let Some(oldest) = self.cut(file, request) else {
            return false;
        };
        self.note_end(file, oldest);
        true
    }

    /// Takes away what a process holds by fcntl.
    pub fn release_posix(&mut self, file: FileId, owner: u64) -> bool {
        self.release_all(file, owner, LockKind::Posix)
    }

    /// Takes away what a description holds by flock.
    pub fn release_flock(&mut self, file: FileId, owner: u64) -> bool {
        self.release_all(file, owner, LockKind::Flock)
    }

    fn release_all(&mut self, file: FileId, owner: u64, kind: LockKind) -> bool {
        let held = self.of_file(file).iter().find(|l| l.owner == owner);
        let Some(all) = held.map(|held| Lock {
            kind,
            start: 0,
            end: END,
            ..held.clone()
        }) else {
            return false;
        };
        self.release(file, &all)
    }

    /// Cuts a range out of what an owner holds. Gives the oldest of it.
    fn cut(&mut self, file: FileId, request: &Lock) -> Option<Lock> {
        let (start, end) = (request.start, request.end);
        let mut rest = Vec::new();
        let mut oldest: Option<Lock> = None;
        for lock in self.held.remove(&file)? {
            let mine = self.belongs_to(&lock, request);
            if !mine || lock.end < start || end < lock.start {
                rest.push(lock);
                continue;
            }
            if oldest.as_ref().is_none_or(|old| lock.since < old.since) {
                oldest = Some(lock.clone());
            }
            if lock.start < start {
                rest.push(Lock {
                    end: start - 1,
                    ..lock.clone()
                });
            }
            if end < lock.end {
                rest.push(Lock {
                    start: end + 1,
                    ..lock
                });
            }
        }
        if !rest.is_empty() {
            self.held.insert(file, rest);
        }
        oldest
    }

    /// Remembers how long a lock was held, if its owner holds nothing more of the file.
    fn note_end(&mut self, file: FileId, oldest: Lock) {
        let rest = self.of_file(file).iter();
        if !rest.into_iter().any(|l| self.belongs_to(l, &oldest)) {
            self.ended.push(Ended {
                node: oldest.node,
                held: oldest.since.elapsed(),
                at: oldest.at,
            });
        }
    }

    /// Takes everything away that was asked through a description.
    pub fn release_handle(&mut self, file: FileId, handle: HandleId) -> bool {
        let through = self.of_file(file).iter().filter(|l| l.handle == handle);
        let Some(oldest) = through.min_by_key(|l| l.since).cloned() else {
            return false;
        };
        if let Some(locks) = self.held.get_mut(&file) {
            locks.retain(|l| l.handle != handle);
            if locks.is_empty() {
                self.held.remove(&file);
            }
        }
        self.note_end(file, oldest);
        true
    }

    /// How long locks were held that have been given back since this was asked last.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Whether a request would wait for itself: of processes' fcntl locks, who waits for whom. `waiting` are those who wait.
    pub fn closes_cycle<'a>(
        &self,
        file: FileId,
        wanted: &Lock,
        waiting: impl Iterator<Item = (FileId, &'a Lock)> + Clone,
    ) -> bool {
        let blockers = |file: FileId, wanted: &Lock| -> Vec<u64> {
            let against = self.against(file, wanted);
            // Threads share an owner: two owners of one process are descriptions.
            let posix =
                against.filter(|held| self.kind(held).may_be_posix() && held.pid != wanted.pid);
            posix.map(|held| held.owner).collect()
        };
        if !self.kind(wanted).may_be_posix() {
            return false;
        }
        let mut seen = HashSet::new();
        let mut next = blockers(file, wanted);
        while let Some(owner) = next.pop() {
            if owner == wanted.owner {
                return true;
            }
            if seen.insert(owner) {
                for (file, other) in waiting.clone().filter(|(_, l)| l.owner == owner) {
                    if self.kind(other).may_be_posix() {
                        next.extend(blockers(file, other));
                    }
                }
            }
        }
        false
    }

    /// What flock(2) does before it looks who stands against it: a lock in another mode is given up. Gives whether it holds what it asks
    /// for, and whether it has given up anything.
    pub fn convert_flock(&mut self, file: FileId, wanted: &Lock) -> (bool, bool) {
        if self.kind(wanted) != LockKind::Flock {
            return (false, false);
        }
        let held = self.of_file(file).iter();
        let held = held.into_iter().find(|held| self.belongs_to(held, wanted));
        match held.map(|held| held.mode == wanted.mode) {
            Some(true) => (true, false),
            Some(false) => (false, self.release(file, wanted)),
            None => (false, false),
        }
    }

    /// Whether an owner holds anything of a file.
    pub fn holds(&self, file: FileId, owner: u64) -> bool {
        self.held
            .get(&file)
            .is_some_and(|l| l.iter().any(|l| l.owner == owner))
    }

    /// Whether the owner of a request holds any of its range alone.
    pub fn holds_alone(&self, file: FileId, wanted: &Lock) -> bool {
        let alone = |held: &Lock| {
            self.belongs_to(held, wanted)
                && held.mode == Mode::Exclusive
                && held.start <= wanted.end
                && wanted.start <= held.end
        };
        self.held.get(&file).is_some_and(|l| l.iter().any(alone))
    }

    /// Whether what was granted is held still, by one alone.
    pub fn still_holds(&self, file: FileId, granted: &Lock) -> bool {
        let held = self.of_file(file).iter();
        held.into_iter()
            .any(|l| self.belongs_to(l, granted) && l.mode == Mode::Exclusive)
    }

    /// Whether anything of a file is held through a description.
    pub fn holds_through(&self, file: FileId, handle: HandleId) -> bool {
        self.held
            .get(&file)
            .is_some_and(|l| l.iter().any(|l| l.handle == handle))
    }

    /// Whether a file is locked at all.
    pub fn is_locked(&self, file: FileId) -> bool {
        self.held.contains_key(&file)
    }

    /// Whether nothing is locked.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Every lock.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &Lock, LockKind)> {
        self.held
            .iter()
            .flat_map(move |(file, locks)| locks.iter().map(move |l| (*file, l, self.kind(l))))
    }
}

/// Whether `from` would wait for itself: follows who waits for whom.
pub fn closes_cycle(from: u32, blockers: &[u32], waits: &HashMap<u32, Vec<u32>>) -> bool {
    let mut seen = HashSet::new();
    let mut next: Vec<u32> = blockers.to_vec();
    while let Some(pid) = next.pop() {
        if pid == from {
            return true;
        }
        if seen.insert(pid) {
            next.extend(waits.get(&pid).into_iter().flatten());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(owner: u64, start: u64, end: u64, mode: Mode) -> Lock {
        Lock {
            owner,
            start,
            end,
            mode,
            kind: LockKind::Unknown,
            pid: owner as u32,
            handle: HandleId(owner),
            node: NodeId(1),
            at: None,
            since: Instant::now(),
        }
    }

    #[test]
    fn exclusive_locks_of_two_owners_stand_against_each_other() {
        let mut table = LockTable::default();
        table.grant(NodeId(1), lock(1, 0, END, Mode::Exclusive));
        assert_eq!(
            table
                .against(NodeId(1), &lock(2, 0, END, Mode::Shared))
                .count(),
            1
        );
        assert_eq!(
            table
                .against(NodeId(1), &lock(1, 0, END, Mode::Shared))
                .count(),
            0
        );
        assert_eq!(
            table
                .against(NodeId(2), &lock(2, 0, END, Mode::Exclusive))
                .count(),
            0
        );
    }

    #[test]
    fn shared_locks_stand_together_and_ranges_apart() {
        let mut table = LockTable::default();
        table.grant(NodeId(1), lock(1, 0, 9, Mode::Shared));
        assert_eq!(
            table
                .against(NodeId(1), &lock(2, 5, 20, Mode::Shared))
                .count(),
            0
        );
        assert_eq!(
            table
                .against(NodeId(1), &lock(2, 5, 20, Mode::Exclusive))
                .count(),
            1
        );
        assert_eq!(
            table
                .against(NodeId(1), &lock(2, 10, 20, Mode::Exclusive))
                .count(),
            0
        );
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let mut table = LockTable::default();
        table.grant(NodeId(1), lock(1, 0, 99, Mode::Exclusive));
        assert!(table.release(NodeId(1), &lock(1, 10, 19, Mode::Exclusive)));
        for (byte, locked) in [(9, 1), (10, 0), (19, 0), (20, 1)] {
            assert_eq!(
                table
                    .against(NodeId(1), &lock(2, byte, byte, Mode::Exclusive))
                    .count(),
                locked
            );
        }
    }

    #[test]
    fn flock_and_fcntl_do_not_meet_where_they_can_be_told_apart() {
        let mut table = LockTable::default();
        table.learn_posix(1);
        table.grant(NodeId(1), lock(1, 0, END, Mode::Exclusive));
        let mut flock = lock(7, 0, END, Mode::Exclusive);
        assert_eq!(
            table.against(NodeId(1), &flock).count(),
            1,
            "can't be told yet"
        );
        table.flock_owners.insert(7);
        flock.owner = 7;
        assert_eq!(table.against(NodeId(1), &flock).count(), 0);
    }

    #[test]
    fn an_owner_seen_with_two_descriptions_is_a_process() {
        let mut table = LockTable::default();
        let mut wanted = lock(5, 0, END, Mode::Exclusive);
        table.learn_from(&wanted);
        assert_ne!(table.kind(&wanted), LockKind::Posix);
        wanted.handle = HandleId(6);
        table.learn_from(&wanted);
        assert_eq!(table.kind(&wanted), LockKind::Posix);
    }

    #[test]
    fn a_cycle_is_found_over_several_steps() {
        let waits = HashMap::from([(2, vec![3]), (3, vec![1])]);
        assert!(closes_cycle(1, &[2], &waits));
        assert!(!closes_cycle(4, &[2], &waits));
    }
}
