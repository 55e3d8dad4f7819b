//! Room for recovery on a full disk: rejected content makes way, the only copy of a name last. Without
//! a mount nothing could be saved at all, and what was committed would not be found under its name.

use rustix::io::Errno;

use crate::store::{FULL_DISK, Store, Unseen, Worth};
use crate::sys::{at, failpoint};

/// As much as recovery may need at once: a journal.
const PIECE: u64 = 1 << 20;

/// Drops rejected content that is worth least, `most` at most, and keeps for the next status that it is
/// gone. Gives whether there was any.
pub(super) fn make(store: &Store, most: Worth) -> bool {
    if failpoint::mutant("C5-recovery-room") {
        return false;
    }
    let has_version = |path: &std::path::Path| at::is_filled_file_below(&store.root, path);
    let dropped = store.give_up_rejected(PIECE, most, None, has_version);
    let dropped = dropped.unwrap_or_default();
    if dropped.is_empty() {
        return false;
    }
    store.reuse_freed();
    let errors = dropped.iter().map(|one| Unseen::of_dropped(one, FULL_DISK));
    if let Err(e) = tell(store, errors) {
        log::error!("errors can't be kept for the next status: {e}");
    }
    true
}

/// Adds to the errors that a mount shows until somebody has read them.
///
/// # Errors
/// Those of writing the list; EIO for one that can't be understood, which isn't taken away.
pub(super) fn tell(store: &Store, errors: impl IntoIterator<Item = Unseen>) -> Result<(), Errno> {
    let mut list = store.kept_unread()?;
    list.extend(errors);
    store.keep_unread(&list)
}
