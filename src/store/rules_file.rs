//! `.commitfs/rules.toml`: the rules that every mount takes, if no other file is named.

use rustix::io::Errno;

use super::{RULES_FILE, Store, read_small};

impl Store {
    /// Its text.
    ///
    /// # Errors
    /// What the system says; ENOENT if there is none.
    pub fn rules_text(&self) -> Result<Vec<u8>, Errno> {
        read_small(std::os::fd::AsFd::as_fd(&self.state), RULES_FILE)
    }

    /// Puts a text in its place, so that after a crash it is one or the other.
    ///
    /// # Errors
    /// What the system says; the former text is kept then.
    pub fn keep_rules(&self, text: &str) -> Result<(), Errno> {
        let state = std::os::fd::AsFd::as_fd(&self.state);
        self.with_reserve(|| super::write_durably(state, RULES_FILE, text.as_bytes()))
    }
}
