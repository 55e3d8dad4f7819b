//! Threads, processes and their families: who sees what is staged under a name (C1).
//!
//! The thread that opened it; for a new name without a guard, its process; whoever holds a
//! descriptor of it; and processes started after the open by these, or by a helper (a fork server)
//! that one of these started. Kinship alone gives no view. What the contract doesn't say, or what
//! can't be known any more (as the parent has ended), is [`View::Unsure`]: nothing is tried there.

use std::collections::BTreeMap;

use super::{Process, Slot, Txn, World};

/// Whether one sees what is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Yes,
    No,
    Unsure,
}

/// Who has opened something for writing.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// Threads, and processes with the time of their first open.
    threads: Vec<u32>,
    processes: BTreeMap<u32, u32>,
}

impl Opened {
    pub fn note(&mut self, thread: u32, process: u32, now: u32) {
        self.threads.push(thread);
        self.processes.entry(process).or_insert(now);
    }

    /// Whether it was opened after this.
    pub fn is_after(&self, time: u32) -> bool {
        self.processes.values().all(|opened| *opened > time)
    }
}

impl World {
    /// A process, forked by a thread of its parent or started by nobody who takes part.
    pub fn spawn(&mut self, by: Option<u32>) -> u32 {
        let id = self.number();
        let parent = by.map(|by| self.process_of(by));
        let inherited = parent.and_then(|p| self.processes.get(&p)).cloned();
        let mut process = inherited.unwrap_or_default();
        if let (Some(by), Some(parent)) = (by, parent) {
            process.line.insert(0, (parent, by, process.born));
        }
        (process.parent, process.born) = (parent, id);
        self.processes.insert(id, process);
        self.threads.insert(id, id);
        id
    }

    /// Another thread of a process.
    pub fn thread(&mut self, who: u32) -> u32 {
        let (id, process) = (self.number(), self.process_of(who));
        self.threads.insert(id, process);
        id
    }

    /// The process of a thread, which has the number of its first one.
    pub fn process_of(&self, who: u32) -> u32 {
        self.threads.get(&who).copied().unwrap_or(who)
    }

    pub fn process(&self, who: u32) -> &Process {
        &self.processes[&self.process_of(who)]
    }

    pub(super) fn process_mut(&mut self, who: u32) -> &mut Process {
        let process = self.process_of(who);
        self.processes.get_mut(&process).expect("it lives")
    }

    pub fn threads_of(&self, process: u32) -> Vec<u32> {
        let all = self.threads.iter().filter(|(_, p)| **p == process);
        all.map(|(thread, _)| *thread).collect()
    }

    pub fn has_threads(&self, who: u32) -> bool {
        self.threads_of(self.process_of(who)).len() > 1
    }

    /// The process and its ancestors, as far as they live.
    pub(super) fn living_line(&self, who: u32) -> impl Iterator<Item = u32> {
        let first = self.process_of(who);
        std::iter::successors(Some(first), |p| self.processes.get(p)?.parent)
    }

    fn formerly_took_part(&self, id: u32, process: u32) -> bool {
        let txn = &self.txns[&id];
        txn.closed.contains(&process) || txn.wrote.contains(&process)
    }

    fn is_another_thread(&self, id: u32, who: u32) -> bool {
        let opened = &self.txns[&id].opened;
        opened.processes.contains_key(&self.process_of(who)) && !opened.threads.contains(&who)
    }

    /// Whether one sees what a transaction has staged.
    pub(super) fn view(&self, id: u32, who: u32) -> View {
        if !self.processes.contains_key(&self.process_of(who)) {
            return View::No;
        }
        let (txn, process) = (&self.txns[&id], self.process_of(who));
        if txn.opened.threads.contains(&who) {
            return View::Yes;
        }
        if self.is_another_thread(id, who) {
            return self.view_of_another_thread(txn, process);
        }
        if self.holds(process, id) {
            return View::Yes;
        }
        let by_line = self.view_by_descent(txn, process);
        match by_line {
            View::No if self.formerly_took_part(id, process) => View::Unsure,
            view => view,
        }
    }

    fn view_of_another_thread(&self, txn: &Txn, process: u32) -> View {
        let is_named = self.files.contains_key(&txn.slot);
        match txn.is_new && !txn.guarded {
            // Whether all its threads have joined is not said; nor whether it is a new name still.
            _ if process != txn.first => View::Unsure,
            true if is_named => View::Unsure,
            true => View::Yes,
            false => View::No,
        }
    }

    /// Of one who has opened nothing and holds nothing.
    fn view_by_descent(&self, txn: &Txn, process: u32) -> View {
        let own = &self.processes[&process];
        let mut older = 0;
        let mut ended = false;
        for (parent, by, born) in &own.line {
            let took_part = txn.wrote.contains(parent) || txn.closed.contains(parent);
            ended |= !self.processes.contains_key(parent);
            if let Some(opened) = txn.opened.processes.get(parent) {
                let is_its_process_s = txn.is_new && !txn.guarded;
                let by_opener = is_its_process_s || txn.opened.threads.contains(by);
                return match own.born > *opened {
                    true if !by_opener => View::No,
                    true if ended || older > 1 => View::Unsure,
                    true => View::Yes,
                    false => View::No,
                };
            }
            if took_part {
                return View::Unsure;
            }
            older += u32::from(txn.opened.processes.values().any(|at| born < at));
        }
        View::No
    }

    /// Whether it isn't said what a process finds under a name.
    pub fn is_unsure(&self, who: u32, slot: &Slot) -> bool {
        let is_open = |id| match self.view(id, who) {
            View::Yes => self.may_have_taken_added(id),
            View::No => false,
            View::Unsure => true,
        };
        self.may_see_through_link(who, slot) || self.at(slot).any(is_open)
    }

    /// Whether an editor may see by now what others have added: a close that wasn't the last may
    /// have put it behind what was staged.
    pub(super) fn may_have_taken_added(&self, id: u32) -> bool {
        let txn = &self.txns[&id];
        txn.at_close.is_some() && !txn.added.is_empty()
    }

    /// The same for a path, or for the names in a directory.
    pub fn is_unsure_at(&self, who: u32, path: &str) -> bool {
        let bare = path.trim_end_matches('/');
        if bare != path {
            if self.is_unsure(who, &(super::ROOT, bare.to_owned())) {
                return true;
            }
            let dir = match self.slot(who, bare) {
                _ if bare.is_empty() => super::ROOT,
                Ok(slot) => self.dirs.get(&slot.1).copied().unwrap_or(u32::MAX),
                Err(_) => return false,
            };
            let open = self.txns.iter().filter(|(_, t)| t.slot.0 == dir && !t.done);
            return open
                .filter(|(_, t)| !t.discarded)
                .any(|(id, _)| self.view(*id, who) == View::Unsure);
        }
        let parent = path.split_once('/').map(|(dir, _)| dir);
        let above = parent.is_some_and(|dir| self.is_unsure(who, &(super::ROOT, dir.to_owned())));
        above
            || self
                .slot(who, path)
                .is_ok_and(|slot| self.is_unsure(who, &slot))
    }
}
