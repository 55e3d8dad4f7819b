//! Advisory locks of files, held across their versions (C12). Pure: who waits, and how, is the
//! engine's business.
//!
//! fuser doesn't say whether a request is flock's or fcntl's. Owners tell: a process has one owner
//! for all its fcntl locks, which its closes name, too; an owner seen there is fcntl's. A lock of
//! part of a file is fcntl's in any case. Where it can't be told, the lock conflicts with either
//! kind: waiting too long is better than two winners.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use crate::types::{HandleId, NodeId};

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
pub enum Kind {
    /// fcntl(2), lockf(3).
    Posix,
    /// flock(2).
    Flock,
    /// Can't be told.
    Unknown,
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
    /// Process.
    pub pid: u32,
    /// The description it was asked through.
    pub handle: HandleId,
    /// The node it was asked on.
    pub node: NodeId,
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
        if self.kind(wanted) != Kind::Unknown {
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

    /// Whether a request is surely fcntl's.
    pub fn is_posix(&self, wanted: &Lock) -> bool {
        self.kind(wanted) == Kind::Posix
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

    fn kind(&self, lock: &Lock) -> Kind {
        if self.posix_owners.contains(&lock.owner) || lock.start != 0 || lock.end != END {
            Kind::Posix
        } else if self.flock_owners.contains(&lock.owner) {
            Kind::Flock
        } else {
            Kind::Unknown
        }
    }

    /// The locks that stand against a request.
    pub fn against<'a>(
        &'a self,
        file: FileId,
        wanted: &'a Lock,
    ) -> impl Iterator<Item = &'a Lock> + use<'a> {
        let kind = self.kind(wanted);
        self.held
            .get(&file)
            .into_iter()
            .flatten()
            .filter(move |held| {
                let apart = matches!(
                    (kind, self.kind(held)),
                    (Kind::Posix, Kind::Flock) | (Kind::Flock, Kind::Posix)
                );
                held.owner != wanted.owner
                    && held.start <= wanted.end
                    && wanted.start <= held.end
                    && (held.mode == Mode::Exclusive || wanted.mode == Mode::Exclusive)
                    && !apart
            })
    }

    /// Grants a lock, in place of what its owner held of the range.
    pub fn grant(&mut self, file: FileId, lock: Lock) {
        // The same process asking whole-file locks under an owner that isn't its fcntl owner can
        // only be flock's.
        let sibling = self.held.get(&file).into_iter().flatten().any(|held| {
            held.pid == lock.pid
                && held.owner != lock.owner
                && self.posix_owners.contains(&held.owner)
        });
        if sibling && lock.start == 0 && lock.end == END {
            self.flock_owners.insert(lock.owner);
        }
        self.release(file, lock.owner, lock.start, lock.end);
        self.held.entry(file).or_default().push(lock);
    }

    /// Takes a range away from an owner. Gives whether it held any of it.
    pub fn release(&mut self, file: FileId, owner: u64, start: u64, end: u64) -> bool {
        let Some(locks) = self.held.get_mut(&file) else {
            return false;
        };
        let mut rest = Vec::with_capacity(locks.len());
        let mut released = false;
        for lock in locks.drain(..) {
            if lock.owner != owner || lock.end < start || end < lock.start {
                rest.push(lock);
                continue;
            }
            released = true;
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
        *locks = rest;
        if locks.is_empty() {
            self.held.remove(&file);
        }
        released
    }

    /// Takes everything away that was asked through a description.
    pub fn release_handle(&mut self, file: FileId, handle: HandleId) -> bool {
        let Some(locks) = self.held.get_mut(&file) else {
            return false;
        };
        let before = locks.len();
        locks.retain(|l| l.handle != handle);
        let released = locks.len() < before;
        if locks.is_empty() {
            self.held.remove(&file);
        }
        released
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
            held.owner == wanted.owner
                && held.mode == Mode::Exclusive
                && held.start <= wanted.end
                && wanted.start <= held.end
        };
        self.held.get(&file).is_some_and(|l| l.iter().any(alone))
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
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &Lock, Kind)> {
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
            pid: owner as u32,
            handle: owner,
            node: 1,
            since: Instant::now(),
        }
    }

    #[test]
    fn exclusive_locks_of_two_owners_stand_against_each_other() {
        let mut table = LockTable::default();
        table.grant(1, lock(1, 0, END, Mode::Exclusive));
        assert_eq!(table.against(1, &lock(2, 0, END, Mode::Shared)).count(), 1);
        assert_eq!(table.against(1, &lock(1, 0, END, Mode::Shared)).count(), 0);
        assert_eq!(
            table.against(2, &lock(2, 0, END, Mode::Exclusive)).count(),
            0
        );
    }

    #[test]
    fn shared_locks_stand_together_and_ranges_apart() {
        let mut table = LockTable::default();
        table.grant(1, lock(1, 0, 9, Mode::Shared));
        assert_eq!(table.against(1, &lock(2, 5, 20, Mode::Shared)).count(), 0);
        assert_eq!(
            table.against(1, &lock(2, 5, 20, Mode::Exclusive)).count(),
            1
        );
        assert_eq!(
            table.against(1, &lock(2, 10, 20, Mode::Exclusive)).count(),
            0
        );
    }

    #[test]
    fn unlocking_the_middle_leaves_both_ends() {
        let mut table = LockTable::default();
        table.grant(1, lock(1, 0, 99, Mode::Exclusive));
        assert!(table.release(1, 1, 10, 19));
        for (byte, locked) in [(9, 1), (10, 0), (19, 0), (20, 1)] {
            assert_eq!(
                table
                    .against(1, &lock(2, byte, byte, Mode::Exclusive))
                    .count(),
                locked
            );
        }
    }

    #[test]
    fn flock_and_fcntl_do_not_meet_where_they_can_be_told_apart() {
        let mut table = LockTable::default();
        table.learn_posix(1);
        table.grant(1, lock(1, 0, END, Mode::Exclusive));
        let mut flock = lock(7, 0, END, Mode::Exclusive);
        assert_eq!(table.against(1, &flock).count(), 1, "can't be told yet");
        table.flock_owners.insert(7);
        flock.owner = 7;
        assert_eq!(table.against(1, &flock).count(), 0);
    }

    #[test]
    fn an_owner_seen_with_two_descriptions_is_a_process() {
        let mut table = LockTable::default();
        let mut wanted = lock(5, 0, END, Mode::Exclusive);
        table.learn_from(&wanted);
        assert!(!table.is_posix(&wanted));
        wanted.handle = 6;
        table.learn_from(&wanted);
        assert!(table.is_posix(&wanted));
    }

    #[test]
    fn a_cycle_is_found_over_several_steps() {
        let waits = HashMap::from([(2, vec![3]), (3, vec![1])]);
        assert!(closes_cycle(1, &[2], &waits));
        assert!(!closes_cycle(4, &[2], &waits));
    }
}
