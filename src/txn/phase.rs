//! How far a transaction has come between its first open and its last close.

use std::num::NonZeroU32;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made for an open or a truncate that is still on its way.
    Reserved,
    /// So many descriptions write it.
    Open(NonZeroU32),
    /// Nothing can be added to it any more: it is being decided what becomes of it.
    Closing,
    /// Closed and prepared, it waits for the others of its round (C23).
    Held,
}

impl Phase {
    /// Whether nobody has opened it yet.
    pub fn is_reserved(self) -> bool {
        self == Phase::Reserved
    }

    /// Whether somebody has it open.
    pub fn is_open(self) -> bool {
        matches!(self, Phase::Open(_))
    }

    /// Whether it is being decided what becomes of it.
    pub fn is_closing(self) -> bool {
        self == Phase::Closing
    }

    /// Whether it waits for the others of its round.
    pub fn is_held(self) -> bool {
        self == Phase::Held
    }

    /// How many descriptions write it.
    pub fn descriptions(self) -> u32 {
        match self {
            Phase::Open(count) => count.get(),
            Phase::Reserved | Phase::Closing | Phase::Held => 0,
        }
    }

    /// One more description is opened.
    pub fn open(&mut self) {
        *self = Phase::Open(NonZeroU32::MIN.saturating_add(self.descriptions()));
    }

    /// A description is gone. Gives whether that was the last.
    pub fn release(&mut self) -> bool {
        *self = match NonZeroU32::new(self.descriptions().saturating_sub(1)) {
            Some(left) => Phase::Open(left),
            None => Phase::Closing,
        };
        self.is_closing()
    }

    /// It waits for the others of its round.
    pub fn hold(&mut self) {
        *self = Phase::Held;
    }

    /// Nobody opens it any more, and no RELEASE will follow.
    pub fn close(&mut self) {
        *self = Phase::Closing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_release_closes() {
        let mut phase = Phase::Reserved;
        phase.open();
        phase.open();
        assert_eq!(phase.descriptions(), 2);
        assert!(!phase.release() && phase.is_open());
        assert!(phase.release() && phase.is_closing());
        assert_eq!(phase.descriptions(), 0);
    }
}
