//! Advisory locks (C12): flock, on readers, editors and appenders of a file that keeps its name.

use super::{Slot, Told, What, World};

#[derive(Debug)]
pub struct Lock {
    file: u32,
    alone: bool,
    /// Who has asked for it.
    by: u32,
}

impl World {
    pub(super) fn is_locked(&self, slot: &Slot) -> bool {
        let file = self.files.get(slot).map(|f| f.file);
        self.locks.values().any(|lock| Some(lock.file) == file)
    }

    /// Whether one who takes part in a transaction has locked the file, or anybody through its
    /// description: then the lock serialises.
    pub(super) fn has_locked(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        let Some(file) = self.files.get(&txn.slot).map(|f| f.file) else {
            return false;
        };
        let takes_part = |lock: &Lock| txn.participants().any(|p| *p == lock.by);
        let through = |description: &u32| self.staged_by(*description) == Some(id);
        self.locks.iter().any(|(description, lock)| {
            lock.file == file && (takes_part(lock) || through(description))
        })
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

    /// The file that a descriptor's locks belong to, and its only name.
    fn lockable(&self, who: u32, slot: &str) -> Option<(u32, u32, Slot)> {
        let (description, _) = self.processes[&who].slots[slot];
        let file = self.descriptions[&description].file?;
        let mut names = self.files.iter().filter(|(_, f)| f.file == file);
        let (name, _) = names.next()?;
        if names.next().is_some() || self.descriptions[&description].elsewhere {
            return None;
        }
        Some((description, file, name.clone()))
    }

    /// A lock without waiting; `None`: not to be tried. What is read through the description from
    /// now on is the current version, and an editor that has written nothing starts from it.
    pub fn lock(&mut self, who: u32, slot: &str, alone: bool) -> Option<Told> {
        let (description, file, name) = self.lockable(who, slot)?;
        if self.locks_beside_an_inherited_editor(who, description, &name) {
            return None;
        }
        let stands_against = |(other, lock): (&u32, &Lock)| {
            *other != description && lock.file == file && (alone || lock.alone)
        };
        if self.locks.iter().any(stands_against) {
            return Some(Err("EAGAIN"));
        }
        // Known: the kernel keeps what its process has read by name of a base of the same length.
        let current = &self.files[&name];
        if let Some(id) = self.staged_by(description) {
            let txn = &self.txns[&id];
            let moves = !txn.changed && txn.base != Some(current.number);
            if moves && txn.content.len() == current.content.len() {
                return None;
            }
        }
        let by = who;
        self.locks.insert(description, Lock { file, alone, by });
        let current = self.files[&name].clone();
        match &mut self.descriptions.get_mut(&description)?.what {
            What::Version(number, content) => {
                (*number, *content) = (current.number, current.content);
            }
            What::Staged { txn, .. } => {
                let txn = self.txns.get_mut(txn)?;
                if !txn.changed {
                    (txn.base, txn.content) = (Some(current.number), current.content);
                }
            }
            _ => {}
        }
        Some(Ok(()))
    }

    /// What the process has written to the file is committed, and goes on from there. `None`: not
    /// to be tried.
    pub fn unlock(&mut self, who: u32, slot: &str) -> Option<Told> {
        let (description, _, name) = self.lockable(who, slot)?;
        if !self.locks.contains_key(&description) {
            return Some(Ok(()));
        }
        let through = self.staged_by(description);
        let open: Vec<u32> = self.at(&name).collect();
        let takes_part = |id: &u32| {
            let txn = &self.txns[id];
            Some(*id) == through || txn.participants().any(|p| *p == who)
        };
        let written = |id: &u32| self.txns[id].changed && takes_part(id);
        let written: Vec<u32> = open.into_iter().filter(written).collect();
        // Several are committed in an order that is not said, and what a mapping holds may not be
        // known yet.
        if written.len() > 1 || written.iter().any(|id| self.txns[id].unwritten) {
            return None;
        }
        for id in written {
            let txn = self.txns.get_mut(&id)?;
            if txn.failed {
                continue;
            }
            (txn.edit, txn.changed, txn.claim, txn.synced) = (true, false, false, None);
            let content = txn.content.clone();
            self.commit(&name, content);
            let number = self.files[&name].number;
            self.txns.get_mut(&id)?.base = Some(number);
        }
        self.locks.remove(&description);
        Some(Ok(()))
    }
}
