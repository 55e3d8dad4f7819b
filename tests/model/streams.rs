//! New text streams (C10): created by O_TRUNC, not to be read, under a name that nothing has, and
//! shown by whole lines as they are written.

use super::{Mode, Slot, What, World};

/// A write of so much that ends inside a line is a block of a table.
const BLOCK: usize = 4096;

fn is_table(slot: &Slot) -> bool {
    slot.1.ends_with(".csv")
}

/// Whether a name is a text stream's.
fn is_text(slot: &Slot) -> bool {
    [".txt", ".jsonl"].iter().any(|end| slot.1.ends_with(end)) || is_table(slot)
}

impl World {
    /// Whether what an open creates is a stream.
    pub(super) fn begins_stream(&self, slot: &Slot, mode: Mode) -> bool {
        mode == Mode::Rewrite
            && is_text(slot)
            && !self.files.contains_key(slot)
            && self.at(slot).next().is_none()
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
        if !self.is_streamer(description) {
            return true;
        }
        // Not from front to back.
        if at.is_some() {
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

    /// Whether a stream can be cut, or mapped, as far as that is said.
    pub(super) fn can_leave_stream(&self, description: u32) -> bool {
        !self.is_streamer(description)
    }
}
