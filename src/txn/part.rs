//! Staging files that somebody may be writing still: the kernel writes large files by itself for the programs that have them open, and
//! goes on doing so when the daemon has ended. What was promised to such programs becomes a version of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{copy_attributes, mark_version, marked_version};
use crate::store::{Store, id_name};
use crate::sys::{at, failpoint};
use crate::types::{TxnId, Version, errno_of, mtime_ns};

/// A copy under way, in the staging directory: no number, so nobody takes it for content.
const COPY: &str = "copy";

/// What is rolled forward of transactions that had not ended becomes a version as a copy, which none of their programs has open. What
/// has been copied already by a run that a crash has ended is copied once more. Where there is no room for a copy the file itself is
/// put in place: it is promised. After a power cut no program is left.
pub(super) fn from_writers(
    store: &Store,
    unended: &[TxnId],
    only_daemon: bool,
) -> Result<(), Errno> {
    if !only_daemon || failpoint::mutant("C18-passed") {
        return Ok(());
    }
    for id in unended {
        let Some(file) = store.open_staging(*id)? else {
            continue;
        };
        if let Err(errno) = copy(store, *id, &file) {
            log::warn!(
                "{}: not copied, and may be written still: {errno}",
                id_name(*id)
            );
            rustix::fs::unlinkat(&store.staging, COPY, AtFlags::empty()).ok();
        }
    }
    Ok(())
}

fn copy(store: &Store, id: TxnId, file: &File) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let copy = rustix::fs::openat(&store.staging, COPY, flags, Mode::from_raw_mode(0o600))?;
    let copy = File::from(copy);
    let stat = at::stat(file)?;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    at::copy_contents(file, &copy, len).map_err(|e| errno_of(&e))?;
    copy_attributes(file, &copy)?;
    at::set_mtime(&copy, mtime_ns(&stat))?;
    rustix::fs::fsync(&copy)?;
    rustix::fs::renameat(&store.staging, COPY, &store.staging, id_name(id))
}

/// Marks what is put in place with its number: what is rolled forward of a transaction that had not ended has none yet, and gets the
/// next after what it replaces.
pub(super) fn mark_number(file: &File, version: Version, (dir, name): (impl AsFd, &OsStr)) {
    if version > Version::default() {
        return mark_version(file, version);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(replaced) = rustix::fs::openat(dir, name, flags, Mode::empty())
        && !failpoint::mutant("C15-number")
    {
        mark_version(file, marked_version(replaced).unwrap_or(Version(1)).next());
    }
}
