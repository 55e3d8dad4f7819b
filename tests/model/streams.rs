//! New text streams (C10): created by O_TRUNC, not to be read, under a name that nothing has, and
//! shown by whole lines as they are written.

use super::kin::View;
use super::{Description, Mode, Slot, What, World, guards, splice};

/// A write of so much that ends inside a line is a block of a table.
const BLOCK: usize = 4096;

fn is_table(slot: &Slot) -> bool {
    slot.1.ends_with(".csv")
}

/// Whether a name is a text stream's.
fn is_text(slot: &Slot) -> bool {
    [".txt", ".jsonl"].iter().any(|end| slot.1.ends_with(end)) || is_table(slot)
}

/// Whether content may be taken for a stream of JSON: lines that are values, two at least.
fn is_json_lines(content: &[u8]) -> bool {
    let lines = content.split(|byte| *byte == b'\n');
    let mut values = lines.filter(|line| !line.is_empty());
    let is_value = |line: &&[u8]| serde_json::from_slice::<serde_json::Value>(line).is_ok();
    values.clone().filter(is_value).count() > 1 && values.next().is_some_and(|line| is_value(&line))
}

impl World {
    /// Whether a document that is new or added to may be a stream of JSON, which is another test's.
    pub(super) fn may_be_json_stream(&self, slot: &Slot, content: &[u8]) -> bool {
        guards::is_guarded(slot) && is_json_lines(content)
    }

    /// The same of what a write would make of what a description has staged.
    fn would_be_json_stream(&self, description: u32, at: Option<usize>, data: &[u8]) -> bool {
        let opened = &self.descriptions[&description];
        let Some(txn) = self.staged_by(description).map(|id| &self.txns[&id]) else {
            return false;
        };
        let end = if opened.appends {
            txn.content.len()
        } else {
            opened.position
        };
        let mut content = txn.content.clone();
        splice(
            &mut content,
            at.filter(|_| !opened.appends).unwrap_or(end),
            data,
        );
        (txn.is_new || opened.appends) && self.may_be_json_stream(&txn.slot, &content)
    }

    /// Whether what an open creates is a stream.
    pub(super) fn begins_stream(&self, who: u32, slot: &Slot, mode: Mode) -> bool {
        mode == Mode::Rewrite
            && is_text(slot)
            && !self.files.contains_key(slot)
            && self.claim(slot).is_none()
            && self.at(slot).all(|id| self.view(id, who) == View::No)
    }

    /// Whether a descriptor writes a stream, and doesn't append.
    fn is_streamer(&self, description: u32) -> bool {
        let writer = &self.descriptions[&description];
        let streams = match &writer.what {
            What::Lines(_) => true,
            What::Staged { txn, .. } => self.txns[txn].stream,
            _ => false,
        };
        streams && !writer.appends
    }

    /// Whether somebody writes a stream under a name that shows already. What becomes of it once
    /// others write there, too, is not said.
    pub(super) fn is_streamed(&self, slot: &Slot) -> bool {
        let appenders = self.appenders_at(slot);
        appenders.iter().any(|d| !self.descriptions[d].appends)
    }

    /// Before a write: whether it is said what becomes of it. Tables that are written in blocks are
    /// documents.
    pub(super) fn can_stream(&mut self, description: u32, at: Option<usize>, data: &[u8]) -> bool {
        if self.would_be_json_stream(description, at, data) {
            return false;
        }
        if !self.is_streamer(description) {
            return true;
        }
        // Not from front to back.
        if at.is_some() || self.is_overtaken_by_appenders(description) {
            return false;
        }
        let is_block = data.len() >= BLOCK && data.last() != Some(&b'\n');
        let Some(id) = self.staged_by(description) else {
            let lines = self.descriptions[&description].what.clone();
            let of_table = matches!(&lines, What::Lines(l) if l.slot().is_some_and(is_table));
            return !(is_block && of_table);
        };
        let txn = self.txns.get_mut(&id).expect("it is there");
        if is_block && is_table(&txn.slot) {
            if txn.changed {
                return false;
            }
            txn.stream = false;
        }
        true
    }

    /// Whether others have opened the same to append, so that it need not be written from front to back.
    fn is_overtaken_by_appenders(&self, description: u32) -> bool {
        let of_same = |d: &Description| match (&d.what, &self.descriptions[&description].what) {
            (What::Lines(one), What::Lines(other)) => one.slot() == other.slot(),
            (What::Staged { txn: one, .. }, What::Staged { txn: other, .. }) => one == other,
            _ => false,
        };
        let all = self.descriptions.values();
        all.into_iter().any(|d| d.appends && of_same(d))
    }

    /// Whether a stream can be cut, or mapped, as far as that is said.
    pub(super) fn can_leave_stream(&self, description: u32) -> bool {
        !self.is_streamer(description)
    }
}
