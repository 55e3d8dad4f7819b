//! What recovery finds staged and doesn't commit: it goes to rejected.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Abort;
use super::places::parent_of;
use crate::rules::Rules;
use crate::store::{Rejected, Store, Worth, id_name};
use crate::sys::{at, failpoint};
use crate::types::{TxnId, errno_of, now_ns, path_hex};

/// Directories in directories are looked into so deep.
const DEEPEST: u32 = 64;

/// A staging file that belongs to no accepted commit.
#[derive(Clone, Debug)]
pub struct Leftover {
    /// Its number.
    pub id: TxnId,
    /// The path it was meant for, if the journal says.
    pub path: Option<PathBuf>,
    /// Process that opened it.
    pub pid: u32,
    /// Unlinked before: dropped without a trace.
    pub discarded: bool,
    /// The round that it is listed with.
    pub round: Option<TxnId>,
}

/// Whether anything was ever written to a file. After a power cut many a staging file has its length
/// and nothing else: space that was set aside for a text, or that the file system had only reserved. Where
/// that is little, ext4 writes zeros there before anything else; what only the daemon's end has left has no zeros but
/// a program's own.
fn has_data(file: &File, only_daemon: bool) -> bool {
    let data = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0));
    !matches!(data, Err(Errno::NXIO)) && (only_daemon || !at::is_all_zeros(file).unwrap_or(false))
}

/// Directories of groups in which nothing is but what goes to rejected go, too: they would be listed as if something had been
/// saved there. Before that goes, so that a recovery which is cut here begins anew. What can't be removed stays.
pub(super) fn remove_emptied(store: &Store, rules: &Rules, leftovers: &[Leftover]) {
    let rounds = leftovers.iter().filter(|leftover| leftover.round.is_some());
    let paths = rounds.filter_map(|leftover| leftover.path.as_deref());
    let tops = paths.filter_map(|path| rules.group_of_directory(path)?.directory());
    let tops: BTreeSet<PathBuf> = tops.collect();
    for top in tops.iter().filter(|_| !failpoint::mutant("C23-emptied")) {
        if let Ok(Some((parent, name))) = parent_of(store, top)
            && remove_empty(&parent, &name, 0)
        {
            at::sync_dir(parent.as_fd()).ok();
        }
    }
}

/// Removes a directory that has nothing in it but directories of which the same is true.
fn remove_empty(parent: &OwnedFd, name: &OsStr, depth: u32) -> bool {
    let remove = || rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok();
    if remove() {
        return true;
    }
    let Ok(dir) = at::open_dir(parent, name) else {
        return false;
    };
    let Ok(listing) = rustix::fs::Dir::read_from(&dir) else {
        return false;
    };
    let names = listing.flatten().map(|e| e.file_name().to_bytes().to_vec());
    for name in names.filter(|name| name != b"." && name != b"..") {
        if depth >= DEEPEST || !remove_empty(&dir, OsStr::from_bytes(&name), depth + 1) {
            return false;
        }
    }
    remove()
}

/// Keeps in rejected what is worth it. Gives how many.
pub(super) fn reject<'a>(
    store: &Store,
    leftovers: impl Iterator<Item = &'a Leftover>,
    only_daemon: bool,
) -> Result<usize, Errno> {
    let mut metas = Vec::new();
    for leftover in leftovers {
        metas.extend(meta_of(store, leftover, only_daemon)?);
    }
    store.reject(&metas, || super::room::make(store, Worth::Earlier))?;
    for meta in &metas {
        log::info!(
            "{}: not committed: {}; content kept as rejected/{}",
            meta.path,
            meta.reason,
            id_name(meta.id)
        );
    }
    Ok(metas.len())
}

/// What rejected is told of one that is worth keeping. Others are removed.
fn meta_of(
    store: &Store,
    leftover: &Leftover,
    only_daemon: bool,
) -> Result<Option<Rejected>, Errno> {
    let Some(file) = store.open_staging(leftover.id)? else {
        return Ok(None);
    };
    let len = file.metadata().map_err(|e| errno_of(&e))?.len();
    let nothing = !has_data(&file, only_daemon) && !failpoint::mutant("C18-rejected-nothing");
    if leftover.discarded || len == 0 || nothing || failpoint::mutant("C18-rejected") {
        store.remove_staging(leftover.id)?;
        return Ok(None);
    }
    let path = leftover.path.as_deref().unwrap_or(Path::new("?"));
    Ok(Some(Rejected {
        id: leftover.id,
        path: path.to_string_lossy().into_owned(),
        path_hex: path_hex(path),
        reason: Abort::Crashed.to_string(),
        time_ns: now_ns(),
        pid: leftover.pid,
        command: String::new(),
        len,
        round: leftover.round.map(id_name),
    }))
}
