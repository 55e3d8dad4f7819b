//! What stays, and what tells versions apart (C8).

use super::{Found, STRANGER, Slot, Told, World};

/// A file as stat(2) knows it.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    /// The same for hard links, and another one for each version.
    pub number: u32,
    /// The version that it was committed in the place of.
    pub after: Option<u32>,
    pub names: u64,
    /// If somebody has set it.
    pub mode: Option<u32>,
}

impl World {
    /// What everybody is to find of the file under a name.
    pub fn looks(&self, path: &str) -> Option<Looks> {
        let slot = self.slot(STRANGER, path).ok()?;
        let file = self.files.get(&slot)?;
        if self.claim(&slot).is_some()
            || self.is_linked_to_open(&slot)
            || self.dirs.contains_key(&slot.1)
        {
            return None;
        }
        let names = self.files.values().filter(|f| f.number == file.number);
        let names = names.count() as u64;
        // Known: H25 of docs/design.md.
        if names > 1 && self.is_undecided(&slot) {
            return None;
        }
        Some(Looks {
            number: file.number,
            after: file.after,
            names,
            mode: file.mode,
        })
    }

    /// chmod(2) of what nobody writes; `None`: not to be tried.
    pub fn chmod(&mut self, who: u32, path: &str, mode: u32) -> Option<Told> {
        let slot = match self.slot(who, path) {
            Ok(slot) => slot,
            Err(errno) => return Some(Err(errno)),
        };
        let number = match self.look(who, &slot) {
            Found::Nothing => return Some(Err("ENOENT")),
            Found::Dir(_) => return None,
            Found::File(_) => self.files.get(&slot)?.number,
        };
        if self.is_undecided(&slot) {
            return None;
        }
        let of_it: Vec<Slot> = self
            .files
            .iter()
            .filter(|(_, f)| f.number == number)
            .map(|(s, _)| s.clone())
            .collect();
        if of_it
            .iter()
            .any(|slot| self.is_in_use(slot) || self.is_linked_to_open(slot))
        {
            return None;
        }
        for slot in of_it {
            self.files.get_mut(&slot)?.mode = Some(mode);
        }
        Some(Ok(()))
    }
}
