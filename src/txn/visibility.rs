//! Who finds a transaction under its name that doesn't take part in it.

/// See the module.
#[derive(Debug, Default)]
pub struct Visibility {
    claim: bool,
    common: bool,
    was_common: bool,
}

impl Visibility {
    /// `claim`: everybody sees it, as an O_EXCL creation of at most 4 KiB (C6).
    pub fn new(claim: bool) -> Visibility {
        Visibility {
            claim,
            ..Visibility::default()
        }
    }

    /// Nothing is written yet, and whoever opens the name gets its node: what is written first decides
    /// whether it is a database, to be shared (C14).
    pub fn make_common(&mut self) {
        (self.common, self.was_common) = (true, true);
    }

    /// Whether it is a claim.
    pub fn is_claim(&self) -> bool {
        self.claim
    }

    /// Whether whoever opens the name gets its node.
    pub fn is_common(&self) -> bool {
        self.common
    }

    /// Whether its node was for everybody once.
    pub fn was_common(&self) -> bool {
        self.was_common
    }

    /// Whether everybody sees it under its name.
    pub fn is_seen_by_all(&self) -> bool {
        self.claim || self.common
    }

    /// Others see it no more.
    pub fn end(&mut self) {
        (self.claim, self.common) = (false, false);
    }

    /// It is no claim any more.
    pub fn end_claim(&mut self) {
        self.claim = false;
    }

    /// It is decided what its node is.
    pub fn end_common(&mut self) {
        self.common = false;
    }
}
