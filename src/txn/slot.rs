//! A transaction's hold on the writer slot of its file (C9), and whether its writer is silent.

use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub struct WriterSlot {
    held: Occupancy,
    /// When one of its descriptions was last used.
    heard: Instant,
}

#[derive(Debug)]
enum Occupancy {
    No,
    /// It found the slot free, or need not have waited.
    Yes,
    /// It had waited, and was let in then beside a holder that was silent.
    Beside(Instant),
}

impl WriterSlot {
    /// Of a transaction that hasn't got the slot.
    pub fn none() -> WriterSlot {
        WriterSlot {
            held: Occupancy::No,
            heard: Instant::now(),
        }
    }

    /// It gets the slot; `beside`: after having waited, while another has it.
    pub fn take(&mut self, beside: bool) {
        self.held = match beside {
            true => Occupancy::Beside(self.heard),
            false => Occupancy::Yes,
        };
    }

    /// Whether it has the slot.
    pub fn is_held(&self) -> bool {
        !matches!(self.held, Occupancy::No)
    }

    /// One of its descriptions is used.
    pub fn note_use(&mut self) {
        self.heard = Instant::now();
    }

    /// It is opened; `first`: by the open that it was begun for.
    pub fn note_open(&mut self, first: bool) {
        self.note_use();
        if let Occupancy::Beside(let_in) = &mut self.held
            && first
        {
            *let_in = self.heard;
        }
    }

    /// For how long none of its descriptions was used.
    pub fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Whether it was let in beside a silent holder after `since`, and none of its descriptions was used yet.
    pub fn was_just_let_in(&self, since: Instant) -> bool {
        matches!(self.held, Occupancy::Beside(let_in) if let_in > since && self.heard == let_in)
    }
}
