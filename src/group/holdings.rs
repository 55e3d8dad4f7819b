//! Holdings: locks of groups that somebody holds. What their holders save is a round each, decided when the lock is given back;
//! until then nobody else gets it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{Binding, Group, Membership, Rounds};
use crate::locks::{FileId, Lock, LockTable, Mode};
use crate::sys::process::AskedProcess;
use crate::types::{Dentry, HandleId, NodeId, TxnId};

/// What is held.
#[derive(Debug)]
pub enum HeldLock {
    /// A flock or fcntl lock of a file.
    Advisory(FileId, Box<Lock>),
    /// A file that was made with O_EXCL, until it is removed.
    File(Dentry, NodeId),
}

/// See the module.
#[derive(Debug)]
pub struct LockHold {
    /// Its number: later ones have larger ones.
    pub id: u64,
    /// The group whose lock it is.
    pub group: Arc<Group>,
    /// What the names in the group's patterns stand for.
    pub binding: Arc<Binding>,
    /// What is held.
    pub held: HeldLock,
    /// The path of that, relative to the root.
    pub path: PathBuf,
    /// The process that holds it.
    pub pid: u32,
    /// That, to be asked how it has ended.
    pub process: Option<Arc<AskedProcess>>,
    /// The process that has started it, which holds what it has taken by an inherited descriptor (`flock 9`) and left.
    pub parent: u32,
    /// What is saved under it.
    pub round: Option<TxnId>,
    /// When it was given back.
    pub let_go: Option<Instant>,
    /// Why nothing more that is saved under it is published.
    pub failed: Option<String>,
    /// Its holder has closed a descriptor of the file, and was to go on.
    pub closed_alive: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct LockHolds {
    all: Vec<LockHold>,
    last: u64,
}

impl LockHold {
    /// The lock that stands in the table between its end and the decision on its round.
    fn kept(&self) -> Option<(FileId, Lock)> {
        let HeldLock::Advisory(file, lock) = &self.held else {
            return None;
        };
        let kept = Lock {
            owner: u64::MAX - self.id,
            handle: HandleId(u64::MAX),
            mode: Mode::Exclusive,
            pid: self.pid,
            since: Instant::now(),
            ..(**lock).clone()
        };
        Some((*file, kept))
    }

    /// How near its lock is to a file: directories that they have in common.
    fn nearness(&self, path: &Path) -> usize {
        let directories = |path: &Path| path.parent().map(Path::to_path_buf).unwrap_or_default();
        let (own, other) = (directories(&self.path), directories(path));
        let both = own.components().zip(other.components());
        both.take_while(|(a, b)| a == b).count()
    }
}

impl LockHolds {
    /// Whether nobody holds any.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one is given back, and not free yet.
    pub fn is_any_let_go(&self) -> bool {
        self.all.iter().any(|h| h.let_go.is_some())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &LockHold> {
        self.all.iter()
    }

    /// All of them, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut LockHold> {
        self.all.iter_mut()
    }

    /// One of them.
    pub fn get(&self, id: u64) -> Option<&LockHold> {
        self.all.iter().find(|h| h.id == id)
    }

    /// One of them, to be changed.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut LockHold> {
        self.all.iter_mut().find(|h| h.id == id)
    }

    /// Somebody holds one, unless that is known. The number is given here.
    pub fn add(&mut self, holding: LockHold) {
        let is_same = |of: &LockHold| match (&of.held, &holding.held) {
            (HeldLock::Advisory(file, lock), HeldLock::Advisory(other, wanted)) => {
                file == other && lock.owner == wanted.owner && lock.kind == wanted.kind
            }
            (HeldLock::File(dentry, node), HeldLock::File(other, new)) => {
                dentry == other && node == new
            }
            _ => false,
        };
        let is_known = |of: &LockHold| {
            of.let_go.is_none() && Arc::ptr_eq(&of.group, &holding.group) && is_same(of)
        };
        if !self.all.iter().any(is_known) {
            self.last += 1;
            let id = self.last;
            self.all.push(LockHold { id, ..holding });
        }
    }

    /// The one under which a process saves a file: its own before those of its ancestors, of these the nearest to the file, of
    /// these the one that was taken last.
    pub fn find(
        &self,
        path: &Path,
        pid: u32,
        descends: impl Fn(u32, u32) -> bool,
    ) -> Option<(u64, Membership)> {
        let found = self.all.iter().filter(|h| h.let_go.is_none());
        let found = found.filter_map(|h| {
            let membership = h.group.find(path)?;
            let is_its = membership.binding == h.binding && descends(pid, h.pid);
            is_its.then(|| ((h.pid == pid, h.nearness(path), h.id), membership))
        });
        let found = found.max_by_key(|(rank, _)| *rank);
        found.map(|((_, _, id), membership)| (id, membership))
    }

    fn remove(&mut self, id: u64) -> Option<LockHold> {
        let place = self.all.iter().position(|h| h.id == id)?;
        Some(self.all.remove(place))
    }
}

impl Rounds {
    /// Locks of a file were given back. Those under which something was saved are kept from others until it is decided.
    /// `is_ending`: whether a process is.
    pub fn note_given_back(
        &mut self,
        file: FileId,
        locks: &mut LockTable,
        is_ending: impl Fn(u32) -> bool,
    ) {
        let ended = self.holdings.iter().filter(|h| match &h.held {
            HeldLock::Advisory(of, lock) => {
                *of == file && h.let_go.is_none() && !locks.still_holds(file, lock)
            }
            HeldLock::File(..) => false,
        });
        for id in ended.map(|h| h.id).collect::<Vec<_>>() {
            self.let_go(id, locks, &is_ending);
        }
    }

    /// A lock is given back. Gives the round that is to be decided.
    pub fn let_go(
        &mut self,
        id: u64,
        locks: &mut LockTable,
        is_ending: impl Fn(u32) -> bool,
    ) -> Option<TxnId> {
        let holding = self.holdings.get_mut(id)?;
        let now = Instant::now();
        let pid = holding.pid;
        let ends = !holding.closed_alive && is_ending(pid);
        let kept = holding.kept();
        holding.let_go = Some(now);
        let round = holding.round.and_then(|round| self.get_mut(round));
        let Some(round) = round else {
            self.holdings.remove(id);
            return None;
        };
        round.note_let_go(now);
        if ends {
            round.await_end(pid);
        }
        let round = round.id;
        if let Some((file, kept)) = kept {
            locks.grant(file, kept);
        }
        Some(round)
    }

    /// What was saved under a lock is decided: `why` nothing of it is published. Gives the file whose lock is free by that.
    pub fn note_decided(
        &mut self,
        id: u64,
        why: Option<&str>,
        locks: &mut LockTable,
    ) -> Option<FileId> {
        let holding = self.holdings.get_mut(id)?;
        holding.round = None;
        if holding.let_go.is_none() {
            holding.failed = why.map(str::to_owned).or(holding.failed.take());
            return None;
        }
        self.free(id, locks)
    }

    fn free(&mut self, id: u64, locks: &mut LockTable) -> Option<FileId> {
        let (file, kept) = self.holdings.remove(id)?.kept()?;
        locks.release(file, &kept);
        Some(file)
    }

    /// Locks that are given back, and of which there is nothing to be decided any more. Gives their files.
    pub fn free_undecided(&mut self, locks: &mut LockTable) -> Vec<FileId> {
        let has_round = |h: &LockHold| h.round.is_some_and(|round| self.get(round).is_some());
        let all = self.holdings.iter();
        let free = all.filter(|h| h.let_go.is_some() && !has_round(h));
        let free: Vec<u64> = free.map(|h| h.id).collect();
        free.into_iter()
            .filter_map(|id| self.free(id, locks))
            .collect()
    }
}
