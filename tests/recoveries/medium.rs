//! What of a disk's operations a medium keeps that loses its power, by what docs/design.md (9) assumes of it, and no more:
//!
//! - What was synced is there. fdatasync brings the data of a file, fsync its attributes, too, and that of a directory its names.
//! - Of everything else any part may be there, in any order; of a write any of its sectors, or its length and no data.
//! - A file that is moved to another directory has its new name before it loses the old one; may have both, and never none. Within one
//!   directory it has one, and so have directories, and files that are exchanged. What is removed with a directory has been removed before.
//! - What programs do to names is there in its order, whatever of it is synced: of their removals and moves without a commit between
//!   them the daemon makes no order, and on the plain directory they have that one. What the daemon puts in place has none.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;
use crate::tree::{Ino, Name, Operation, Tree};

const SECTOR: usize = 512;

/// Something that isn't on the medium for certain.
#[derive(Clone, Debug)]
enum Pending {
    Name(NewName),
    Data(Ino, Operation),
    Attribute(Ino, Operation),
}

#[derive(Clone, Debug)]
struct NewName {
    dir: Ino,
    name: Name,
    leads_to: Option<Ino>,
    /// Numbers of others that are there if this is.
    needs: Vec<u64>,
    /// A directory that is gone if this is there.
    removes: Option<Ino>,
    /// Not the daemon puts something there.
    by_program: bool,
}

pub struct Medium {
    /// As programs see it.
    pub now: Tree,
    /// What is there for certain.
    synced: Tree,
    /// By their order.
    pending: BTreeMap<u64, Pending>,
    last: u64,
    /// Those among them that change names, by directory.
    names: BTreeMap<Ino, BTreeSet<u64>>,
    /// Directories of the daemon's own.
    own: BTreeSet<Ino>,
}

impl Medium {
    pub fn new() -> Medium {
        Medium {
            now: Tree::new(),
            synced: Tree::new(),
            pending: BTreeMap::new(),
            last: 0,
            names: BTreeMap::new(),
            own: BTreeSet::new(),
        }
    }

    /// How many operations may be lost.
    pub fn unsynced(&self) -> usize {
        self.pending.len()
    }

    pub fn act(&mut self, operation: &Operation) {
        match operation {
            Operation::Make { .. } => self.synced.apply(operation),
            Operation::Enter { dir, name, ino } => {
                if name == b".commitfs" || self.own.contains(dir) {
                    self.own.insert(*ino);
                }
                self.add_name((*dir, name), Some(*ino), None);
            }
            Operation::Leave { dir, name } => {
                let old = self.now.find(*dir, name);
                self.add_name(
                    (*dir, name),
                    None,
                    old.filter(|old| self.now.is_directory(*old)),
                );
            }
            Operation::Move { from, to, exchange } => self.add_move(from, to, *exchange),
            Operation::Write { ino, .. }
            | Operation::Zero { ino, .. }
            | Operation::Resize { ino, .. } => {
                self.add(Pending::Data(*ino, operation.clone()));
            }
            Operation::Mode { ino, .. }
            | Operation::Owner { ino, .. }
            | Operation::Modified { ino, .. }
            | Operation::Attribute { ino, .. } => {
                self.add(Pending::Attribute(*ino, operation.clone()));
            }
            Operation::SyncData { ino } => {
                self.settle(|pending| matches!(pending, Pending::Data(of, _) if of == ino));
            }
            Operation::Sync { ino } => self.settle(|pending| match pending {
                Pending::Data(of, _) | Pending::Attribute(of, _) => of == ino,
                Pending::Name(new) => new.dir == *ino,
            }),
            Operation::SyncAll => self.settle(|_| true),
        }
        self.now.apply(operation);
    }

    fn add(&mut self, pending: Pending) -> u64 {
        self.last += 1;
        if let Pending::Name(name) = &pending {
            self.names.entry(name.dir).or_default().insert(self.last);
        }
        self.pending.insert(self.last, pending);
        self.last
    }

    fn add_name(&mut self, (dir, name): (Ino, &Name), leads_to: Option<Ino>, removes: Option<Ino>) {
        self.add(Pending::Name(NewName {
            dir,
            name: name.clone(),
            leads_to,
            needs: Vec::new(),
            removes,
            by_program: !self.own.contains(&dir),
        }));
    }

    fn add_move(&mut self, from: &(Ino, Name), to: &(Ino, Name), exchange: bool) {
        let moved = self.now.find(from.0, &from.1);
        let replaced = self.now.find(to.0, &to.1);
        let is_directory = |ino: Option<Ino>| ino.is_some_and(|ino| self.now.is_directory(ino));
        let (directory, removes) = (
            is_directory(moved),
            replaced.filter(|_| is_directory(replaced)),
        );
        let arrival = self.last + 1;
        let departure = self.last + 2;
        let by_program = ![from.0, to.0].iter().any(|dir| self.own.contains(dir));
        let at_once = exchange || directory || from.0 == to.0;
        self.add(Pending::Name(NewName {
            dir: to.0,
            name: to.1.clone(),
            leads_to: moved,
            needs: if at_once { vec![departure] } else { Vec::new() },
            removes: removes.filter(|_| !exchange),
            by_program,
        }));
        self.add(Pending::Name(NewName {
            dir: from.0,
            name: from.1.clone(),
            leads_to: replaced.filter(|_| exchange),
            needs: vec![arrival],
            removes: None,
            by_program,
        }));
    }

    /// What was to happen to the names of a directory before that.
    fn names_in(&self, dir: Ino, before: u64) -> impl Iterator<Item = (u64, &NewName)> {
        let numbers = self.names.get(&dir).into_iter();
        let numbers = numbers.flat_map(move |numbers| numbers.range(..before));
        numbers.filter_map(|number| match self.pending.get(number) {
            Some(Pending::Name(name)) => Some((*number, name)),
            _ => None,
        })
    }

    /// All that is there if these are; of names also what was there before.
    fn with_needs(&self, mut chosen: BTreeSet<u64>, before: bool) -> BTreeSet<u64> {
        let mut new: Vec<u64> = chosen.iter().copied().collect();
        while let Some(number) = new.pop() {
            let Some(Pending::Name(name)) = self.pending.get(&number) else {
                continue;
            };
            let mut needs: Vec<u64> = name.needs.clone();
            let same = self.names_in(name.dir, number);
            let same = same.filter(|(_, other)| before && other.name == name.name);
            needs.extend(same.map(|(number, _)| number));
            if name.by_program {
                let all = self.pending.range(..number);
                let others = all
                    .filter(|(_, other)| matches!(other, Pending::Name(other) if other.by_program));
                needs.extend(others.map(|(number, _)| *number));
            }
            if let Some(gone) = name.removes {
                needs.extend(self.names_in(gone, number).map(|(number, _)| number));
            }
            new.extend(
                needs
                    .into_iter()
                    .filter(|number| self.pending.contains_key(number) && chosen.insert(*number)),
            );
        }
        chosen
    }

    fn settle(&mut self, which: impl Fn(&Pending) -> bool) {
        let chosen = self.pending.iter().filter(|(_, pending)| which(pending));
        let chosen = self.with_needs(chosen.map(|(number, _)| *number).collect(), true);
        for number in chosen {
            match self.pending.remove(&number) {
                Some(Pending::Name(new)) => {
                    self.names.entry(new.dir).or_default().remove(&number);
                    self.synced.set(new.dir, &new.name, new.leads_to);
                }
                Some(Pending::Data(_, operation) | Pending::Attribute(_, operation)) => {
                    self.synced.apply(&operation);
                }
                None => {}
            }
        }
    }

    /// What a cut leaves, of so many in a hundred of what wasn't synced.
    pub fn cut(&self, percent: u64, random: &mut Random) -> Tree {
        let chosen = self
            .pending
            .keys()
            .copied()
            .filter(|_| random.below(100) < percent);
        let chosen = self.with_needs(chosen.collect(), false);
        let mut tree = self.synced.clone();
        for (number, pending) in &self.pending {
            match pending {
                Pending::Data(_, operation) if percent > 0 => {
                    arrive(
                        &mut tree,
                        operation,
                        chosen.contains(number),
                        percent,
                        random,
                    );
                }
                _ if !chosen.contains(number) => {}
                Pending::Name(new) => tree.set(new.dir, &new.name, new.leads_to),
                Pending::Data(_, operation) | Pending::Attribute(_, operation) => {
                    tree.apply(operation);
                }
            }
        }
        tree
    }
}

/// Whole, not at all, in part, or as a length.
fn arrive(tree: &mut Tree, operation: &Operation, whole: bool, percent: u64, random: &mut Random) {
    match operation {
        Operation::Write { ino, offset, data } if percent < 100 && random.one_in(5) => {
            let end = offset + data.len() as u64;
            if random.one_in(2) && tree.len(*ino) < end {
                tree.apply(&Operation::Resize {
                    ino: *ino,
                    len: end,
                });
            }
            let mut at = 0;
            while at < data.len() {
                let place = *offset as usize + at;
                let len = (SECTOR - place % SECTOR).min(data.len() - at);
                if random.below(100) < percent {
                    tree.write(*ino, place as u64, &data[at..at + len]);
                }
                at += len;
            }
        }
        _ if whole => tree.apply(operation),
        _ => {}
    }
}
