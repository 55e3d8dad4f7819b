//! Patches of JSON documents (C15, C16).

use super::{Content, Slot, Told, World, guards};

/// The document in which a counter is one higher and all else as it was. `None`: this is not one
/// of those that programs write here.
fn incremented(text: &[u8]) -> Option<Content> {
    let text = std::str::from_utf8(text).ok()?;
    serde_json::from_str::<serde_json::Value>(text).ok()?;
    let (number, rest) = text.strip_prefix("{\"n\": ")?.split_once(',')?;
    let number: u64 = number.parse().ok()?;
    Some(format!("{{\"n\": {},{rest}", number + 1).into_bytes())
}

impl World {
    /// The slot of a path, if its counter can be patched, and what it would be then.
    fn patchable(&self, who: u32, path: &str) -> Option<(Slot, Result<Content, &'static str>)> {
        let slot = self.slot(who, path).ok()?;
        let file = self.files.get(&slot)?;
        let names = self.files.values().filter(|f| f.number == file.number);
        if names.count() > 1 || self.is_direct(&slot) || self.is_linked_to_open(&slot) {
            return None;
        }
        let patched = match incremented(&file.content) {
            Some(text) => Ok(text),
            None if guards::is_no_document(&file.content) => Err("EBADMSG"),
            None => return None,
        };
        Some((slot, patched))
    }

    /// Whether it would be patched.
    pub fn can_patch(&self, who: u32, path: &str) -> bool {
        matches!(self.patchable(who, path), Some((_, Ok(_))))
    }

    /// Adds 1 to a document's counter: in what is current, whoever is writing it. `None`: not to be
    /// tried.
    pub fn patch(&mut self, who: u32, path: &str) -> Option<Told> {
        let (slot, patched) = self.patchable(who, path)?;
        Some(patched.map(|text| self.commit(&slot, text)))
    }
}
