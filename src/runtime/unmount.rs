//! How a mount ends.

/// Whether an unmount is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// None is.
    No,
    /// One is being tried: nothing of our own may keep the mount busy.
    Tried,
    /// One by force is: there are no new transactions, either.
    Forced,
}

impl Unmount {
    /// Whether one is.
    pub fn is_under_way(self) -> bool {
        self != Unmount::No
    }

    /// Whether one by force is.
    pub fn is_forced(self) -> bool {
        self == Unmount::Forced
    }
}
