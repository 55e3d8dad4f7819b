//! Files that may become databases (C14): opened for reading and writing, not to be emptied or added
//! to, under a name that is new or empty. Such a file is there for all at once, and shared, until its
//! first write decides.

use super::gaps::Gap;
use super::kin::Opened;
use super::{Content, Found, Mode, Slot, Told, What, World, guards};

/// What a database of SQLite begins with.
pub const SIGNATURE: &[u8] = b"SQLite format 3\0";

/// What a first write makes of it.
enum Decision {
    Database,
    Text,
    /// It is not said.
    Open,
}

impl World {
    /// Whether an open would share the file until its first write.
    pub(super) fn shares(&self, who: u32, slot: &Slot, mode: Mode) -> bool {
        let may = match self.current(slot) {
            Found::Nothing => mode == Mode::Share,
            Found::File(content) => content.is_empty(),
            Found::Dir(_) => false,
        };
        let is_found = self.own(who, slot).or_else(|| self.claim(slot)).is_some();
        (mode.edits() || mode == Mode::Share) && may && !is_found && !guards::is_guarded(slot)
    }

    /// Whether a name's file is shared still.
    pub(super) fn is_undecided(&self, slot: &Slot) -> bool {
        let number = self.files.get(slot).map(|f| f.number);
        number.is_some_and(|number| !self.sharers(number).is_empty())
    }

    /// Whether anybody's is.
    pub fn has_undecided(&self) -> bool {
        let shared = |d: &super::Description| matches!(d.what, What::Shared { .. });
        self.descriptions.values().any(shared)
    }

    fn sharers(&self, number: u32) -> Vec<u32> {
        let all = self.descriptions.iter();
        all.filter(|(_, d)| matches!(d.what, What::Shared { number: n, .. } if n == number))
            .map(|(description, _)| *description)
            .collect()
    }

    /// An open of what is new or empty, or of what is shared already. `None`: not to be tried.
    pub(super) fn open_shared(
        &mut self,
        who: u32,
        slot: Slot,
        mode: Mode,
        name: &str,
        cloexec: bool,
    ) -> Option<Told> {
        if Gap::SharedOpens.is_open() {
            return None;
        }
        // What is written of an empty file with several names is not under all of them (H25 of docs/design.md).
        let current = self.files.get(&slot).map(|file| file.number);
        if current.is_some_and(|number| self.only_name_of(number).is_none()) {
            return None;
        }
        let writes = match mode {
            Mode::Read => false,
            Mode::Exclusive => return Some(Err("EEXIST")),
            _ if mode.edits() || mode == Mode::Share => true,
            // Of who empties or adds to what others share.
            _ => return None,
        };
        // Nor of those who share it beside one who writes it already.
        if self.at(&slot).next().is_some() {
            return None;
        }
        if !self.files.contains_key(&slot) {
            self.vanished(&slot).ok()?;
            let told = self.errors.get(&slot).copied();
            self.commit(&slot, Content::new());
            // Nothing is saved yet: what was told of before stays.
            if told != Some(false) {
                self.errors.remove(&slot);
            }
            self.created_shared.insert(self.files[&slot].number);
        }
        let number = self.files[&slot].number;
        if writes {
            let opened = (who, self.process_of(who), self.number());
            self.shared_by.entry(number).or_default().push(opened);
        }
        let what = What::Shared { number, writes };
        self.describe(who, what, mode, name, cloexec);
        Some(Ok(()))
    }

    /// What the first write of a shared file makes of it.
    fn decide(&self, who: u32, description: u32, at: Option<usize>, data: &[u8]) -> Decision {
        let What::Shared { number, .. } = self.descriptions[&description].what else {
            return Decision::Open;
        };
        let held_by = |p: &&super::Process| p.slots.values().any(|(d, _)| *d == description);
        // Whether a child that has inherited it counts as another; and what writes pages, and no
        // text, from elsewhere than the beginning.
        let is_inherited = self.processes.values().filter(held_by).count() > 1;
        // Nor what becomes of a heir's text whose opener was killed before it was one.
        let opener = self.descriptions[&description].opener;
        let is_left = !self.processes.contains_key(&opener);
        if at.is_some_and(|at| at > 0) || is_inherited || is_left {
            return Decision::Open;
        }
        let own = [self.descriptions[&description].opener, self.process_of(who)];
        let is_anothers = |d: &u32| !own.contains(&self.descriptions[d].opener);
        if data.starts_with(SIGNATURE) || self.sharers(number).iter().any(is_anothers) {
            return Decision::Database;
        }
        Decision::Text
    }

    /// The first write of a shared file decides. `false`: it is not to be tried.
    pub(super) fn write_shared(
        &mut self,
        who: u32,
        description: u32,
        at: Option<usize>,
        data: &[u8],
    ) -> bool {
        let What::Shared { number, .. } = self.descriptions[&description].what else {
            return true;
        };
        let decision = self.decide(who, description, at, data);
        let sharers = self.sharers(number);
        match decision {
            Decision::Open => return false,
            Decision::Database => {
                self.created_shared.remove(&number);
                self.shared_by.remove(&number);
                for description in sharers {
                    self.become_direct(description, number);
                }
            }
            Decision::Text => {
                let Some(slot) = self.only_name_of(number) else {
                    return false;
                };
                // A new file that is no database is hidden like any other (C6).
                // Others may have added lines since.
                let content = self.content_in_place(number).clone();
                let is_new = self.created_shared.remove(&number);
                if is_new {
                    self.files.remove(&slot);
                }
                let mode = if is_new { Mode::Share } else { Mode::Edit };
                let txn = self.begin(who, slot, mode, content);
                let opener = self.descriptions[&description].opener;
                let opened_by = self.shared_by.remove(&number).unwrap_or_default();
                let first = opened_by[0].1;
                let edit = self.txns.get_mut(&txn).expect("just begun");
                edit.openers.insert(opener);
                // Not who writes it, if that has another thread's description.
                edit.opened = Opened::default();
                for (thread, process, at) in opened_by {
                    edit.opened.note(thread, process, at);
                }
                edit.first = first;
                for description in sharers {
                    let description = self.descriptions.get_mut(&description);
                    let description = description.expect("it is there");
                    if let What::Shared { writes, .. } = description.what {
                        let reads = true;
                        description.what = What::Staged { txn, reads, writes };
                    }
                }
            }
        }
        true
    }

    /// Nobody has it open to write any more: what is there is a version. Whether who reads it still
    /// sees what others make of it is not said.
    pub(super) fn let_sharer_go(&mut self, number: u32) {
        let writes = |d: &u32| {
            let sharer = &self.descriptions[d];
            matches!(sharer.what, What::Shared { writes: true, .. })
        };
        let sharers = self.sharers(number);
        if sharers.iter().any(writes) {
            return;
        }
        self.created_shared.remove(&number);
        self.shared_by.remove(&number);
        for reader in sharers {
            self.descriptions
                .get_mut(&reader)
                .expect("it is there")
                .what = What::Unknown;
        }
    }

    fn become_direct(&mut self, description: u32, number: u32) {
        let description = self
            .descriptions
            .get_mut(&description)
            .expect("it is there");
        if let What::Shared { writes, .. } = description.what {
            let reads = true;
            description.what = What::Direct {
                number,
                reads,
                writes,
            };
        }
        self.once_direct.insert(number);
    }

    fn only_name_of(&self, number: u32) -> Option<Slot> {
        let mut names = self.files.iter().filter(|(_, f)| f.number == number);
        let (name, _) = names.next()?;
        names.next().is_none().then(|| name.clone())
    }

    /// Whether an open in place of a file is direct, as it is a database.
    pub(super) fn holds_database(&self, slot: &Slot, mode: Mode) -> bool {
        let content = self.files.get(slot).map(|f| &f.content);
        let reads_and_writes = matches!(mode, Mode::Share | Mode::AppendAndRead) || mode.edits();
        reads_and_writes && content.is_some_and(|c| c.starts_with(SIGNATURE))
    }
}
