//! `.commitfs/errors`: what a mount had to say that nobody has read, for the next one.

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{Store, read_small};

const NAME: &str = "errors";

impl Store {
    /// Keeps a list of errors, as JSON; `[]` is none.
    ///
    /// # Errors
    /// What the system says; the former list is kept then.
    pub fn keep_unread(&self, list: &[u8]) -> Result<(), Errno> {
        if list == b"[]" {
            return match rustix::fs::unlinkat(&self.state, NAME, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(e),
            };
        }
        self.with_reserve(|| super::write_durably(self.state_fd(), NAME, list))
    }

    /// The list as it was kept, empty if there is none.
    pub fn kept_unread(&self) -> Vec<u8> {
        read_small(self.state_fd(), NAME).unwrap_or_default()
    }

    /// How many errors it holds.
    pub fn count_unread(&self) -> usize {
        let list: Result<Vec<serde_json::Value>, _> = serde_json::from_slice(&self.kept_unread());
        list.map_or(0, |list| list.len())
    }

    fn state_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.state)
    }
}
