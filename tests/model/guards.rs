//! Guards (C21): under the name of a JSON document only a whole one takes the place of another.
//! And the error that stays on the name of what was refused (C22).

use serde_json::{Deserializer, Value};

use super::{Content, Slot, Told, World};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Empty,
    /// It breaks off.
    Half,
    /// It doesn't begin like JSON.
    Foreign,
    /// It begins like JSON, or with a hole, and goes on as something else: half a document, or
    /// somebody's will. Whether it passes depends on who writes it.
    Odd,
}

fn kind(content: &[u8]) -> Kind {
    let text = content.trim_ascii_start();
    let Some(first) = text.first() else {
        return Kind::Empty;
    };
    if *first == 0 {
        return Kind::Odd;
    }
    if !b"{[\"-0123456789".contains(first) {
        return Kind::Foreign;
    }
    let mut values = Deserializer::from_slice(text).into_iter::<Value>();
    match values.find_map(Result::err) {
        None => Kind::Whole,
        Some(error) if error.is_eof() => Kind::Half,
        Some(_) => Kind::Odd,
    }
}

pub(super) fn is_guarded(slot: &Slot) -> bool {
    slot.1.ends_with(".json")
}

pub(super) fn is_no_document(content: &[u8]) -> bool {
    matches!(kind(content), Kind::Half | Kind::Foreign)
}

impl World {
    /// Whether the guard of a name refuses content; `None` where that is not said.
    pub(super) fn refuses(&self, slot: &Slot, content: &[u8]) -> Option<bool> {
        if !is_guarded(slot) {
            return Some(false);
        }
        let current = self.files.get(slot).map(|file| kind(&file.content));
        let over_whole = current == Some(Kind::Whole);
        match kind(content) {
            Kind::Whole => Some(false),
            Kind::Half => Some(true),
            Kind::Empty | Kind::Foreign => Some(over_whole),
            Kind::Odd => None,
        }
    }

    /// What may be found under a name at the end of a transaction, with its guard's consent.
    pub(super) fn permitted(
        &self,
        slot: &Slot,
        ends: Vec<Option<Content>>,
    ) -> Vec<Option<Content>> {
        let mut left = Vec::new();
        let mut is_sure = true;
        for end in ends {
            let refused = end.as_ref().map_or(Some(false), |c| self.refuses(slot, c));
            is_sure &= refused.is_some();
            if refused != Some(true) {
                left.push(end);
            }
        }
        if left.is_empty() || !is_sure {
            left.push(None);
        }
        left
    }

    /// A name's guard has refused something, and says so there until the next version comes.
    pub(super) fn refuse(&mut self, slot: &Slot) -> Told {
        self.errors.insert(slot.clone(), true);
        Err("EBADMSG")
    }

    /// Whether an error stands on a name that everybody sees; `None` where that is not said.
    pub fn has_error(&self, path: &str) -> Option<bool> {
        let slot = self.slot(super::STRANGER, path).ok()?;
        let number = self.files.get(&slot)?.number;
        let names = self.files.values().filter(|f| f.number == number).count();
        let error = self.errors.get(&slot).copied();
        error.filter(|_| names == 1 && self.claim(&slot).is_none())
    }
}
