//! Small contents whose bytes stand in the journal, and after a power cut perhaps nowhere else: made whole again, before
//! anything is decided. Done twice, it comes to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use super::told::{Recorded, collect};
use crate::journal::{self, Edit, Inlined};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::types::{TxnId, errno_of};

/// Makes staging files whole from what the journal has of them. What a round of the checkpoint has taken along is on the
/// medium, be it in its place, where others may have written to it since: that is left alone.
pub(super) fn restore(store: &Store, told: Option<&journal::Contents>) -> Result<(), Errno> {
    let Some(told) = told else {
        return Ok(());
    };
    let mut transactions: BTreeMap<TxnId, Recorded> = BTreeMap::new();
    let sorted = collect(&told.records, told.header.durable_seq, &mut transactions);
    let durable = sorted.commits.range(..=sorted.durable);
    let in_place: BTreeSet<TxnId> = durable
        .flat_map(|(_, edits)| edits)
        .filter_map(|edit| match edit {
            Edit::Put { id, .. } => Some(*id),
            _ => None,
        })
        .collect();
    let mut restored = false;
    for (id, told) in &transactions {
        let is_in_place = in_place.contains(id) && !failpoint::mutant("C10-restored");
        // What was refused, with what was written to it since, is kept there.
        let is_rejected =
            store.open_rejected(*id).is_ok() && !failpoint::mutant("C7-inlined-rejected");
        let lost = !told.aborted && !told.discarded && !is_in_place && !is_rejected;
        if let Some(whole) = told.inlined.as_deref().filter(|_| lost) {
            restored |= restore_one(store, *id, whole)?;
        }
    }
    match restored {
        true => store.sync_staging_dir(),
        false => Ok(()),
    }
}

/// Gives whether there was anything to be done.
fn restore_one(store: &Store, id: TxnId, whole: &Inlined) -> Result<bool, Errno> {
    let file = match store.open_staging(id)? {
        // Of that a move is under way: nothing is missing.
        Some(file) if store.is_moved_away(&file)? || begins_with(&file, &whole.bytes)? => {
            return Ok(false);
        }
        Some(file) => file,
        None => store.create_staging(id)?,
    };
    rustix::fs::ftruncate(&file, 0)?;
    file.write_all_at(&whole.bytes, 0)
        .map_err(|e| errno_of(&e))?;
    let owner = (Uid::from_raw(whole.uid), Gid::from_raw(whole.gid));
    match rustix::fs::fchown(&file, Some(owner.0), Some(owner.1)) {
        // An ordinary user may give a file to the groups it is in.
        Err(Errno::PERM) => drop(rustix::fs::fchown(&file, None, Some(owner.1))),
        other => other?,
    }
    for (name, value) in &whole.xattrs {
        // Labels that a security module alone may set come by its own rules.
        at::set_xattr(&file, OsStr::from_bytes(name), value, 0).ok();
    }
    // Last: a change of the owner clears set-id bits, an ACL has a part in the mode.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(whole.mode & 0o7777))?;
    rustix::fs::fdatasync(&file)?;
    log::info!(
        "{}: {} bytes were on the medium in the journal alone",
        crate::store::id_name(id),
        whole.bytes.len()
    );
    Ok(true)
}

fn begins_with(file: &File, bytes: &[u8]) -> Result<bool, Errno> {
    let mut found = vec![0; bytes.len()];
    match file.read_exact_at(&mut found, 0) {
        Ok(()) => Ok(found == bytes),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(errno_of(&e)),
    }
}
