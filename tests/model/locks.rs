//! Advisory locks (C12): flock and fcntl, through whatever is opened on a file that keeps its name.
//!
//! FUSE doesn't say which of the two calls a request comes from. What a lock of the one answers
//! where the other's stands on the same bytes is therefore left out, and so is who takes both
//! through one description.

use super::{Description, Killed, Slot, Told, What, World, guards};

/// What a lock is taken by; fcntl's on some bytes, the first and the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Flock,
    /// F_SETLK: for the process.
    Process(u64, u64),
    /// F_OFD_SETLK: for the open description.
    Open(u64, u64),
}

impl Call {
    fn range(self) -> (u64, u64) {
        match self {
            Call::Flock => (0, u64::MAX),
            Call::Process(first, last) | Call::Open(first, last) => (first, last),
        }
    }

    fn is_flock(self) -> bool {
        self == Call::Flock
    }
}

/// Whom a lock belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A description, by flock.
    Flock(u32),
    Description(u32),
    Process(u32),
}

#[derive(Clone, Debug)]
pub struct Lock {
    file: u32,
    owner: Owner,
    /// The first byte, and the last.
    range: (u64, u64),
    alone: bool,
    /// Who has asked for it, and through which description.
    by: u32,
    through: u32,
}

impl World {
    pub(super) fn is_locked(&self, slot: &Slot) -> bool {
        let file = self.files.get(slot).map(|f| f.file);
        file.is_some_and(|file| self.is_file_locked(file))
    }

    pub(super) fn is_file_locked(&self, file: u32) -> bool {
        self.locks.iter().any(|lock| lock.file == file)
    }

    /// Whether one who takes part in a transaction has locked the file, or anybody through its
    /// description: then the lock serialises.
    pub(super) fn has_locked(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        let Some(file) = self.files.get(&txn.slot).map(|f| f.file) else {
            return false;
        };
        self.locks.iter().any(|lock| {
            let takes_part = txn.participants().any(|p| *p == lock.by);
            lock.file == file && (takes_part || self.is_through(lock, id))
        })
    }

    fn is_through(&self, lock: &Lock, id: u32) -> bool {
        self.descriptions.contains_key(&lock.through) && self.staged_by(lock.through) == Some(id)
    }

    /// Whether a process that has merely inherited an editor's description locks through another
    /// one: that it has the editor's at all is not told before it closes it.
    fn locks_beside_an_inherited_editor(&self, who: u32, description: u32, slot: &Slot) -> bool {
        let inherited = |id: u32| {
            let txn = &self.txns[&id];
            txn.holds_slot && self.holds(who, id) && !txn.participants().any(|p| *p == who)
        };
        let through = self.staged_by(description);
        self.at(slot).any(|id| Some(id) != through && inherited(id))
    }

    /// Whether who has the writer slot of a name has opened a file that another has replaced since:
    /// whether a lock of that one lets others in is not said.
    fn is_held_by_one_of_another_file(&self, name: &Slot) -> bool {
        let file = self.files.get(name).map(|f| f.file);
        self.at(name)
            .filter(|id| self.txns[id].holds_slot)
            .any(|id| {
                let mut all = self.descriptions.iter();
                all.any(|(d, opened)| self.staged_by(*d) == Some(id) && opened.file != file)
            })
    }

    /// The file that a descriptor's locks belong to, and its only name.
    fn lockable(&self, who: u32, slot: &str) -> Option<(u32, u32, Slot)> {
        let (description, _) = self.process(who).slots[slot];
        let file = self.descriptions[&description].file?;
        let name = self.only_name(file)?;
        // It has been renamed, and the file has that name no more.
        let strays = self
            .staged_by(description)
            .is_some_and(|id| self.txns[&id].slot != name);
        if strays || self.descriptions[&description].elsewhere || self.is_linked_to_open(&name) {
            return None;
        }
        Some((description, file, name))
    }

    fn only_name(&self, file: u32) -> Option<Slot> {
        let mut names = self.files.iter().filter(|(_, f)| f.file == file);
        let (name, _) = names.next()?;
        names.next().is_none().then(|| name.clone())
    }

    /// Whether it is sure which closes of a process give its locks of a file back: which file each
    /// of its descriptors is of, and that it is told when it is closed. A mapping holds a close up.
    fn knows_its_closes(&self, who: u32, file: u32, name: &Slot) -> bool {
        let is_known = |d: &Description| match d.of {
            Some(of) if of == file => d.tells_closes.is_some(),
            Some(of) => self.files.values().any(|f| f.file == of),
            None => false,
        };
        let process = self.process(who);
        let mut held = process.slots.values().map(|(d, _)| &self.descriptions[d]);
        let maps = self.processes.values().flat_map(|p| p.maps.values());
        let mut mapped = maps.filter_map(|d| self.staged_by(*d));
        held.all(is_known) && !mapped.any(|id| self.txns[&id].slot == *name)
    }

    /// Whether a process has fcntl locks of the file under a name.
    pub(super) fn has_process_locks(&self, name: &Slot) -> bool {
        let file = self.files.get(name).map(|f| f.file);
        let of_process = |lock: &Lock| matches!(lock.owner, Owner::Process(_));
        self.locks
            .iter()
            .any(|lock| Some(lock.file) == file && of_process(lock))
    }

    /// Whether the call is the other one than that by which something is held through a
    /// description.
    fn mixes_calls(&self, description: u32, call: Call) -> bool {
        self.locks.iter().any(|lock| match lock.owner {
            Owner::Flock(d) => d == description && !call.is_flock(),
            Owner::Description(d) => d == description && call.is_flock(),
            Owner::Process(_) => false,
        })
    }

    /// A lock without waiting; `None`: not to be tried. What is read through the description from
    /// now on is the current version, and an editor that has written nothing starts from it.
    pub fn lock(&mut self, who: u32, slot: &str, call: Call, alone: bool) -> Option<Told> {
        let who = self.process_of(who);
        let (description, file, name) = self.lockable(who, slot)?;
        // It would let in who waits, beside heirs.
        let lets_in = self.is_waited_for_by_name(&name)
            && self.is_edited_by_heirs(&name, super::Mode::Edit.how());
        if self.locks_beside_an_inherited_editor(who, description, &name)
            || self.mixes_calls(description, call)
            || lets_in
            || (self.is_waited_for_by_name(&name) && self.is_held_by_one_of_another_file(&name))
        {
            return None;
        }
        let owner = match call {
            Call::Flock => Owner::Flock(description),
            Call::Open(..) => Owner::Description(description),
            // What a close commits under them and a guard refuses is another test's.
            Call::Process(..) if guards::is_guarded(&name) => return None,
            Call::Process(..) if !self.knows_its_closes(who, file, &name) => return None,
            Call::Process(..) => Owner::Process(who),
        };
        let (reads, writes) = match &self.descriptions[&description].what {
            What::Version(..) => (true, false),
            What::Staged { reads, writes, .. } => (*reads, *writes),
            What::Lines(lines) => (lines.reads(), true),
            What::Direct { .. } | What::Shared { .. } | What::Unknown => return None,
        };
        if !call.is_flock() && !(if alone { writes } else { reads }) {
            return Some(Err("EBADF"));
        }
        let range = call.range();
        let overlaps = |lock: &Lock| lock.range.0 <= range.1 && range.0 <= lock.range.1;
        let held_alone = |lock: &Lock| lock.file == file && lock.owner == owner && lock.alone;
        if !alone && self.locks.iter().any(|l| held_alone(l) && overlaps(l)) {
            // To share what was held alone is to give a part of it back.
            self.commit_at_unlock(who, description, &name)?;
        }
        let against: Vec<&Lock> = self
            .locks
            .iter()
            .filter(|lock| lock.file == file && lock.owner != owner && (alone || lock.alone))
            .filter(|lock| overlaps(lock))
            .collect();
        let same_call = |lock: &&Lock| matches!(lock.owner, Owner::Flock(_)) == call.is_flock();
        if against.iter().any(same_call) {
            return Some(Err("EAGAIN"));
        }
        if !against.is_empty() {
            return None;
        }
        // Known: the kernel keeps what its process has read by name of a base of the same length.
        let current = &self.files[&name];
        if let Some(id) = self.staged_by(description) {
            let txn = &self.txns[&id];
            let moves = txn.edit && !txn.changed && txn.base != Some(current.number);
            if moves && txn.content.len() == current.content.len() {
                return None;
            }
        }
        self.release(file, owner, range);
        self.locks.push(Lock {
            file,
            owner,
            range,
            alone,
            by: who,
            through: description,
        });
        let current = self.files[&name].clone();
        let mut edits = None;
        match &mut self.descriptions.get_mut(&description)?.what {
            What::Version(number, content) => {
                (*number, *content) = (current.number, current.content);
            }
            What::Staged { txn, .. } => {
                let id_of = *txn;
                let txn = self.txns.get_mut(txn)?;
                if txn.edit && !txn.changed {
                    (txn.base, txn.content) = (Some(current.number), current.content);
                    txn.body = current.body;
                } else if txn.edit {
                    edits = Some(id_of);
                }
            }
            _ => {}
        }
        if let Some(id) = edits {
            self.take_parts(id);
        }
        Some(Ok(()))
    }

    /// Takes bytes away from an owner.
    fn release(&mut self, file: u32, owner: Owner, (first, last): (u64, u64)) {
        let mut rest = Vec::new();
        for lock in std::mem::take(&mut self.locks) {
            let (from, to) = lock.range;
            if lock.file != file || lock.owner != owner || to < first || last < from {
                rest.push(lock);
                continue;
            }
            if from < first {
                let range = (from, first - 1);
                rest.push(Lock {
                    range,
                    ..lock.clone()
                });
            }
            if last < to {
                let range = (last + 1, to);
                rest.push(Lock { range, ..lock });
            }
        }
        self.locks = rest;
    }

    /// What the process has written to the file is committed, and goes on from there. `None`: not
    /// to be tried.
    pub fn unlock(&mut self, who: u32, slot: &str, call: Call) -> Option<Told> {
        let who = self.process_of(who);
        let (description, file, name) = self.lockable(who, slot)?;
        if self.mixes_calls(description, call) {
            return None;
        }
        let owner = match call {
            Call::Flock => Owner::Flock(description),
            Call::Open(..) => Owner::Description(description),
            Call::Process(..) => Owner::Process(who),
        };
        let held = |lock: &Lock| lock.file == file && lock.owner == owner;
        if !self.locks.iter().any(held) {
            return Some(Ok(()));
        }
        self.commit_at_unlock(who, description, &name)?;
        self.release(file, owner, call.range());
        Some(Ok(()))
    }

    /// Commits what was written so far; `None`: not to be tried. Several are committed in an order
    /// that is not said, and what a mapping holds may not be known yet.
    fn commit_at_unlock(&mut self, who: u32, description: u32, name: &Slot) -> Option<()> {
        let through = self.staged_by(description);
        let written = self.written_by(who, through, name);
        if written.len() > 1 || written.iter().any(|id| self.txns[id].unwritten) {
            return None;
        }
        for id in written {
            if self.txns[&id].killed == Killed::Yes {
                continue;
            }
            let refused = self.refuses(name, &self.txns[&id].content)?;
            if refused && !self.txns[&id].failed {
                let _ = self.refuse(name);
            } else {
                self.commit_so_far(id, name);
            }
        }
        Some(())
    }

    /// What a process has a part in and is written under a name.
    fn written_by(&self, who: u32, through: Option<u32>, name: &Slot) -> Vec<u32> {
        let takes_part = |id: &u32| {
            let txn = &self.txns[id];
            Some(*id) == through || txn.participants().any(|p| *p == who)
        };
        let mut open: Vec<u32> = self.at(name).collect();
        open.retain(|id| self.txns[id].changed && takes_part(id));
        open.sort_unstable();
        open
    }

    fn commit_so_far(&mut self, id: u32, name: &Slot) {
        let txn = self.txns.get_mut(&id).expect("it is there");
        if txn.failed {
            return;
        }
        self.take_parts(id);
        let txn = self.txns.get_mut(&id).expect("it is there");
        txn.take_added();
        let content = txn.content.clone();
        let body = self.edited_body(id);
        self.commit(name, content);
        let file = self.files.get_mut(name).expect("just made");
        file.body = body.or(file.body);
        let (number, body) = (file.number, file.body);
        let txn = self.txns.get_mut(&id).expect("it is there");
        (txn.edit, txn.changed, txn.claim, txn.synced) = (true, false, false, None);
        (txn.base, txn.body) = (Some(number), body);
    }

    /// A process closes a descriptor: its fcntl locks of that file go, whichever descriptor they
    /// were taken through, and that is an unlock like any other; what is closed comes last. A
    /// killed writer commits nothing.
    pub(super) fn unlock_at_close(&mut self, who: u32, description: u32, killed: bool) {
        let who = self.process_of(who);
        let closed = &self.descriptions[&description];
        let Some(file) = closed.of.filter(|_| closed.tells_closes == Some(true)) else {
            return;
        };
        let owner = Owner::Process(who);
        let held = |lock: &Lock| lock.file == file && lock.owner == owner;
        if !self.locks.iter().any(held) {
            return;
        }
        if let Some(name) = self.only_name(file).filter(|_| !killed) {
            let through = self.staged_by(description);
            let mut written = self.written_by(who, through, &name);
            written.sort_unstable_by_key(|id| (Some(*id) == through, *id));
            for id in written {
                if self.txns[&id].killed != Killed::Yes {
                    self.commit_so_far(id, &name);
                }
            }
        }
        self.release(file, owner, (0, u64::MAX));
    }

    /// Whether a process's end would commit what it has written under fcntl locks in an order that
    /// only the numbers of its descriptors tell.
    pub(super) fn unlocks_in_any_order(&self, who: u32) -> bool {
        let who = self.process_of(who);
        let held = |lock: &&Lock| lock.owner == Owner::Process(who);
        let names = self.locks.iter().filter(held);
        let mut names = names.filter_map(|lock| self.only_name(lock.file));
        names.any(|name| {
            let written = |id: &u32| {
                let takes_part = self.txns[id].participants().any(|p| *p == who);
                self.txns[id].changed && (takes_part || self.holds(who, *id))
            };
            let written: Vec<u32> = self.at(&name).filter(written).collect();
            let inherits = |id: &u32| !self.txns[id].participants().any(|p| *p == who);
            written.len() > 1 || written.iter().any(inherits)
        })
    }

    /// Whether a process that opens a path to read it, and closes it, gives fcntl locks back.
    pub fn loses_locks_by_a_look(&self, who: u32, path: &str) -> bool {
        let slot = self.slot(who, path).ok();
        let file = slot.and_then(|slot| Some(self.files.get(&slot)?.file));
        let process = self.process_of(who);
        let of_it = |lock: &Lock| Some(lock.file) == file && lock.owner == Owner::Process(process);
        self.locks.iter().any(of_it)
    }

    /// The locks that go with a description.
    pub(super) fn unlock_description(&mut self, description: u32) {
        let goes =
            |owner| [Owner::Flock(description), Owner::Description(description)].contains(&owner);
        self.locks.retain(|lock| !goes(lock.owner));
    }
}
