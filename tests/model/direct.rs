//! Files in direct mode (C14): one content in place, which everybody shares.

use super::{Content, Description, Found, Mode, Slot, Told, What, World};

pub(super) fn is_named_direct(slot: &Slot) -> bool {
    slot.1.ends_with(".log")
}

impl World {
    /// Whether an open of a name is in direct mode: by its name, or because the file has such
    /// descriptions still.
    pub(super) fn is_direct(&self, slot: &Slot) -> bool {
        let number = self.files.get(slot).map(|f| f.number);
        is_named_direct(slot) || number.is_some_and(|n| self.is_open_directly(n))
    }

    /// Whether one of a file's names makes it direct to who opens it by that.
    pub(super) fn has_direct_name(&self, number: u32) -> bool {
        let mut names = self.files.iter().filter(|(_, f)| f.number == number);
        names.any(|(slot, _)| is_named_direct(slot))
    }

    pub(super) fn is_open_directly(&self, number: u32) -> bool {
        let is_of =
            |d: &Description| matches!(d.what, What::Direct { number: n, .. } if n == number);
        self.descriptions.values().any(is_of)
    }

    /// Whether a name is anything but a file that nobody has open otherwise than in direct mode.
    pub(super) fn is_in_use(&self, slot: &Slot) -> bool {
        self.at(slot).next().is_some()
            || self.is_waited_for_by_name(slot)
            || self.is_locked(slot)
            || self.is_added_to(slot)
    }

    pub(super) fn open_direct(
        &mut self,
        who: u32,
        slot: Slot,
        mode: Mode,
        name: &str,
        cloexec: bool,
    ) -> Option<Told> {
        if self.is_in_use(&slot) {
            return None;
        }
        let creates = !(mode == Mode::Read || mode.edits());
        match self.look(who, &slot) {
            Found::Dir(_) if mode == Mode::Read => return None,
            Found::Nothing if !creates => return Some(Err("ENOENT")),
            Found::File(_) if mode == Mode::Exclusive => return Some(Err("EEXIST")),
            Found::Dir(_) => return Some(Err("EISDIR")),
            Found::Nothing => self.commit(&slot, Content::new()),
            Found::File(_) => {}
        }
        let number = self.files[&slot].number;
        if matches!(mode, Mode::Rewrite | Mode::RewriteAndRead) {
            self.change_in_place(number, Content::clear);
        }
        let what = What::Direct {
            number,
            reads: mode.reads(),
            writes: mode != Mode::Read,
        };
        self.describe(who, what, mode, name, cloexec);
        Some(Ok(()))
    }

    pub(super) fn content_in_place(&self, number: u32) -> &Content {
        let named = self.files.values().find(|f| f.number == number);
        named.map_or_else(|| &self.nameless[&number], |f| &f.content)
    }

    pub(super) fn change_in_place(&mut self, number: u32, change: impl FnOnce(&mut Content)) {
        let mut content = self.content_in_place(number).clone();
        change(&mut content);
        for file in self.files.values_mut().filter(|f| f.number == number) {
            file.content.clone_from(&content);
        }
        if let Some(nameless) = self.nameless.get_mut(&number) {
            nameless.clone_from(&content);
        }
        for txn in self.txns.values_mut() {
            if txn.edit && !txn.changed && txn.base == Some(number) {
                txn.content.clone_from(&content);
            }
        }
        // Whoever has opened it as a version.
        for description in self.descriptions.values_mut() {
            if matches!(description.what, What::Version(n, _) if n == number) {
                description.what = What::Unknown;
            }
        }
    }

    /// Writes through a description in direct mode; `false` if it is not.
    pub(super) fn write_direct(
        &mut self,
        description: u32,
        at: Option<usize>,
        data: &[u8],
    ) -> bool {
        let description = self
            .descriptions
            .get_mut(&description)
            .expect("it is there");
        let What::Direct { number, .. } = description.what else {
            return false;
        };
        let from = match (description.appends, at) {
            (true, _) => None,
            (false, Some(at)) => Some(at),
            (false, None) => {
                description.position += data.len();
                Some(description.position - data.len())
            }
        };
        self.change_in_place(number, |content| {
            let from = from.unwrap_or(content.len());
            super::splice(content, from, data);
        });
        true
    }
}
