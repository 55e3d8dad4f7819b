//! Whether what the journal tells of is there, whole.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::journal::{ContentInfo, Edit};
use crate::store::Store;
use crate::txn::places::open_target;
use crate::txn::replay;
use crate::txn::told::Recorded;
use crate::types::{TxnId, errno_of};

/// Whether the text that the first of some edits builds on is all there.
pub(super) fn base_is_whole(
    store: &Store,
    path: &Path,
    staged: Option<TxnId>,
    (wanted, crc): (u64, u32),
) -> Result<bool, Errno> {
    let Some(file) = replay::last_content(store, path, staged)? else {
        return Ok(false);
    };
    Ok(len(&file)? == wanted && checksum_of(&file, 0, wanted)? == crc)
}

pub(super) fn append_is_whole(
    store: &Store,
    path: &Path,
    from: u64,
    len: u64,
    crc: u32,
) -> Result<bool, Errno> {
    let Some(file) = open_target(store, path)? else {
        return Ok(false);
    };
    if self::len(&file)? < from + len {
        return Ok(false);
    }
    Ok(checksum_of(&file, from, len)? == crc)
}

pub(super) fn content_is_whole(
    store: &Store,
    id: TxnId,
    content: &ContentInfo,
    told: Option<&Recorded>,
) -> Result<bool, Errno> {
    let Some(file) = store.open_staging(id)? else {
        return Ok(false);
    };
    if len(&file)? != content.len {
        return Ok(false);
    }
    // It was on the medium before its record was: nothing to compare.
    if told
        .and_then(|t| t.fsynced.as_ref())
        .is_some_and(|f| f.len == content.len && f.crc == content.crc)
    {
        return Ok(true);
    }
    match content.crc {
        Some(crc) => Ok(checksum_of(&file, 0, content.len)? == crc),
        None => Ok(content.len == 0),
    }
}

pub(super) fn len(file: &File) -> Result<u64, Errno> {
    Ok(file.metadata().map_err(|e| errno_of(&e))?.len())
}

pub(super) fn checksum_of(file: &File, from: u64, len: u64) -> Result<u32, Errno> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0u8; usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20)];
    let (mut at, mut crc) = (from, 0u32);
    while at < from + len {
        let want =
            usize::try_from((from + len - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let read = file
            .read_at(&mut buffer[..want], at)
            .map_err(|e| errno_of(&e))?;
        if read == 0 {
            break;
        }
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
        at += read as u64;
    }
    Ok(crc)
}

/// Whether the content of a commit beyond the last durable one is all there.
pub(super) fn verified(
    store: &Store,
    edits: &[Edit],
    transactions: &BTreeMap<TxnId, Recorded>,
    puts: &HashMap<PathBuf, TxnId>,
) -> Result<bool, Errno> {
    for edit in edits {
        let whole = match edit {
            Edit::Put { id, content, .. } => {
                content_is_whole(store, *id, content, transactions.get(id))?
            }
            Edit::Append {
                path,
                from,
                len,
                crc,
                ..
            } => append_is_whole(store, path, *from, *len, *crc)?,
            Edit::Drop { .. } => true,
            Edit::Patch { path, base, .. } => match base {
                Some(base) => base_is_whole(store, path, puts.get(path).copied(), *base)?,
                None => true,
            },
        };
        if !whole {
            return Ok(false);
        }
    }
    Ok(true)
}
