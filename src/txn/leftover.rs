//! What recovery finds staged and doesn't commit: it goes to rejected.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Abort;
use crate::store::{Rejected, Store, Worth, id_name};
use crate::sys::{at, failpoint};
use crate::types::{TxnId, errno_of, now_ns, path_hex};

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

/// Gives whether there was anything worth keeping.
pub(super) fn reject(store: &Store, leftover: &Leftover, only_daemon: bool) -> Result<bool, Errno> {
    let Some(file) = store.open_staging(leftover.id)? else {
        return Ok(false);
    };
    let len = file.metadata().map_err(|e| errno_of(&e))?.len();
    let nothing = !has_data(&file, only_daemon) && !failpoint::mutant("C18-rejected-nothing");
    if leftover.discarded || len == 0 || nothing || failpoint::mutant("C18-rejected") {
        store.remove_staging(leftover.id)?;
        return Ok(false);
    }
    let path = leftover.path.as_deref().unwrap_or(Path::new("?"));
    let meta = Rejected {
        id: leftover.id,
        path: path.to_string_lossy().into_owned(),
        path_hex: path_hex(path),
        reason: Abort::Crashed.to_string(),
        time_ns: now_ns(),
        pid: leftover.pid,
        command: String::new(),
        len,
        round: leftover.round.map(id_name),
    };
    store.reject(&meta, || super::room::make(store, Worth::Earlier))?;
    log::info!(
        "{}: not committed: {}; content kept as rejected/{}",
        path.display(),
        Abort::Crashed,
        id_name(leftover.id)
    );
    Ok(true)
}
