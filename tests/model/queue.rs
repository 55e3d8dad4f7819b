//! In-place editors take turns (C9): who has the writer slot of a name, and who waits for it.

use super::{Content, Found, Mode, Slot, Told, Txn, World};

/// A process that waits in open().
#[derive(Debug)]
pub struct Waiter {
    pub who: u32,
    pub slot: Slot,
    name: String,
    cloexec: bool,
}

impl World {
    fn holders<'a>(&'a self, slot: &'a Slot) -> impl Iterator<Item = (u32, &'a Txn)> {
        self.at(slot)
            .map(|id| (id, &self.txns[&id]))
            .filter(|(_, txn)| txn.holds_slot)
    }

    fn is_related(&self, one: u32, other: u32) -> bool {
        let (one, other) = (self.process_of(one), self.process_of(other));
        self.living_line(one).any(|p| p == other) || self.living_line(other).any(|p| p == one)
    }

    /// Whether somebody unrelated has the slot, and has not locked the file.
    fn is_blocked(&self, who: u32, slot: &Slot) -> bool {
        let mut holders = self.holders(slot);
        holders.any(|(id, t)| !self.is_related(who, t.first) && !self.has_locked(id))
    }

    /// Whether an open in place of a path would have to wait.
    pub fn must_wait(&self, who: u32, path: &str) -> bool {
        let Ok(slot) = self.slot(who, path) else {
            return false;
        };
        let sees_own = self.own(who, &slot).or_else(|| self.claim(&slot)).is_some();
        let is_empty = match self.current(&slot) {
            Found::File(content) => content.is_empty(),
            _ => true,
        };
        let queued = self.waiters.iter().any(|w| w.slot == slot);
        let held = self.holders(&slot).next().is_some();
        let kept_out = self.is_blocked(who, &slot) || (queued && !held);
        !sees_own && !is_empty && kept_out
    }

    /// Whether others wait for a process: to wait itself might close a cycle, which is another
    /// test's.
    pub fn is_waited_for(&self, who: u32) -> bool {
        let keeps_out = |w: &Waiter| {
            self.holders(&w.slot).any(|(_, t)| {
                self.is_related(who, t.first) || t.openers.contains(&self.process_of(who))
            })
        };
        self.waiters.iter().any(keeps_out)
    }

    pub(super) fn is_waited_for_by_name(&self, slot: &Slot) -> bool {
        self.waiters.iter().any(|w| w.slot == *slot)
    }

    pub fn waits(&self, who: u32) -> bool {
        self.waiters.iter().any(|w| w.who == who)
    }

    pub fn waiting(&self) -> Vec<u32> {
        self.waiters.iter().map(|w| w.who).collect()
    }

    /// A process comes to wait.
    pub fn queue(&mut self, who: u32, path: &str, name: &str, cloexec: bool) {
        let slot = self.slot(who, path).expect("it must wait");
        self.waiters.push(Waiter {
            who,
            slot,
            name: name.to_owned(),
            cloexec,
        });
    }

    /// The next who gets in, if one does, and what its open() says: it starts from what is there
    /// then.
    pub fn admit(&mut self) -> Option<(u32, Told)> {
        let next = self.waiters.iter().position(|w| {
            let before = self.waiters.iter().find(|o| o.slot == w.slot);
            let is_first = before.is_some_and(|o| o.who == w.who);
            is_first && !self.is_blocked(w.who, &w.slot)
        })?;
        let waiter = self.waiters.remove(next);
        let Found::File(content) = self.current(&waiter.slot) else {
            return Some((waiter.who, Err("ENOENT")));
        };
        let Waiter {
            who,
            slot,
            name,
            cloexec,
        } = waiter;
        let told = self.open_editor(who, slot, content, Mode::Edit, &name, cloexec);
        told.map(|told| (who, told))
    }

    pub(super) fn open_editor(
        &mut self,
        who: u32,
        slot: Slot,
        content: Content,
        mode: Mode,
        name: &str,
        cloexec: bool,
    ) -> Option<Told> {
        let lockable = self.files.get(&slot).map(|f| f.file);
        let mut file = None;
        let what = if let Some(txn) = self.own(who, &slot).or_else(|| self.claim(&slot)) {
            // A new log is one as long as all who write it append.
            if self.txns[&txn].stream {
                return None;
            }
            self.join(who, txn, mode)
        } else if self.is_edited_by_heirs(&slot, mode.how()) {
            return None;
        } else {
            file = lockable;
            let holds_slot = !content.is_empty();
            let txn = self.begin(who, slot, mode, content);
            self.txns.get_mut(&txn).expect("just made").holds_slot = holds_slot;
            super::What::Staged {
                txn,
                reads: true,
                writes: true,
            }
        };
        let description = self.describe(who, what, mode, name, cloexec);
        self.descriptions.get_mut(&description)?.file = file;
        Some(Ok(()))
    }
}
