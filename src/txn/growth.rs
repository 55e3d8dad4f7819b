//! Files to which records are added in place (C10), after a crash: which they are, where they are
//! now, and how much of them counts.
//!
//! Their bytes may come to the medium before the journal does: somebody syncs another file of the
//! disk, or the kernel writes on its own. So the journal says, before the first of them, which file
//! grows and from what length on ([`Record::Growing`], on the medium by then). After a power cut
//! what a file has beyond that, and beyond the appends that count, is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::places::open_target;
use crate::journal::{Edit, FileKey, Record};
use crate::store::{Rejected, STATE_DIR, Store, Unseen, Worth, id_name};
use crate::sys::{at, failpoint};
use crate::types::{Seq, TxnId, errno_of, now_ns, path_hex};

/// More than this of what is cut off is not kept.
const KEPT: u64 = 64 << 20;

/// What tells a file from all others.
pub fn key_of(file: impl AsFd) -> Result<FileKey, Errno> {
    let (inode, btime_ns) = at::birth_time(file)?;
    Ok(FileKey { inode, btime_ns })
}

/// The files that grow, by what tells them from others.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Where each is now; those that are gone are missing.
    found: BTreeMap<FileKey, PathBuf>,
    /// The length that was on the medium when it began to grow.
    from: BTreeMap<FileKey, u64>,
}

impl Growth {
    /// Finds the files, and lets every append say where its file is now. One whose file is gone
    /// means nothing any more.
    pub(super) fn find(store: &Store, records: &mut [Record]) -> Result<Growth, Errno> {
        let mut growth = Growth::default();
        let mut hints: BTreeMap<FileKey, Vec<PathBuf>> = BTreeMap::new();
        let mut hint = |file: FileKey, path: &Path| {
            let paths = hints.entry(file).or_default();
            if !path.as_os_str().is_empty() && paths.last().is_none_or(|last| last != path) {
                paths.push(path.to_owned());
            }
        };
        for record in records.iter() {
            match record {
                Record::Growing { file, path, len } => {
                    hint(*file, path);
                    growth.from.insert(*file, *len);
                }
                Record::Settled { file } => drop(growth.from.remove(file)),
                Record::Commit { edits, .. } => {
                    for edit in edits {
                        if let Edit::Append {
                            path,
                            file: Some(file),
                            ..
                        } = edit
                        {
                            hint(*file, path);
                        }
                    }
                }
                _ => {}
            }
        }
        growth.locate(store, &hints)?;
        let settled = last_settled(records);
        for (place, record) in records.iter_mut().enumerate() {
            if let Record::Commit { edits, .. } = record {
                edits.retain_mut(|edit| match edit {
                    Edit::Append {
                        path,
                        file: Some(file),
                        from,
                        len,
                        crc,
                    } => match growth.found.get(file) {
                        Some(now) => {
                            path.clone_from(now);
                            if settled.get(file).is_some_and(|at| *at > place) {
                                // Nothing of it is to be compared, or cut off.
                                (*from, *len, *crc) = (0, 0, 0);
                            }
                            true
                        }
                        None => false,
                    },
                    _ => true,
                });
            }
        }
        Ok(growth)
    }

    fn locate(
        &mut self,
        store: &Store,
        hints: &BTreeMap<FileKey, Vec<PathBuf>>,
    ) -> Result<(), Errno> {
        let mut missing = BTreeSet::new();
        for (file, paths) in hints {
            let mut found = None;
            for path in paths.iter().rev() {
                if let Some(there) = open_target(store, path)?
                    && key_of(&there)? == *file
                {
                    found = Some(path.clone());
                    break;
                }
            }
            match found {
                Some(path) => drop(self.found.insert(*file, path)),
                // Its number alone may be another's by now.
                None if file.btime_ns == 0 => {}
                None => drop(missing.insert(*file)),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        // Renamed, or reached by another link, or gone.
        let root = store.root.try_clone().map_err(|e| errno_of(&e))?;
        self.search(store, &root, Path::new(""), &mut missing)
    }

    fn search(
        &mut self,
        store: &Store,
        dir: &OwnedFd,
        path: &Path,
        missing: &mut BTreeSet<FileKey>,
    ) -> Result<(), Errno> {
        for entry in rustix::fs::Dir::read_from(dir.as_fd())? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_ours = path.as_os_str().is_empty() && name == STATE_DIR;
            if missing.is_empty() || name == "." || name == ".." || is_ours {
                continue;
            }
            match entry.file_type() {
                FileType::Directory => match at::open_dir(dir, name) {
                    Ok(below) => self.search(store, &below, &path.join(name), missing)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
                    Err(e) => return Err(e),
                },
                FileType::RegularFile if missing.iter().any(|f| f.inode == entry.ino()) => {
                    let path = path.join(name);
                    if let Some(file) = open_target(store, &path)? {
                        let key = key_of(&file)?;
                        if missing.remove(&key) {
                            self.found.insert(key, path);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Where files end, of which the medium has more than counts.
    pub(super) fn cuts(
        &self,
        store: &Store,
        accepted: &[(Seq, Vec<Edit>)],
    ) -> Result<BTreeMap<PathBuf, u64>, Errno> {
        let mut ends = self.from.clone();
        for edit in accepted.iter().flat_map(|(_, edits)| edits) {
            if let Edit::Append {
                file: Some(file),
                from,
                len,
                ..
            } = edit
                && let Some(end) = ends.get_mut(file)
            {
                *end = (*end).max(from + len);
            }
        }
        let mut cuts = BTreeMap::new();
        if failpoint::mutant("C19-growing") {
            return Ok(cuts);
        }
        for (file, end) in ends {
            let Some(path) = self.found.get(&file) else {
                continue;
            };
            let len = match open_target(store, path)? {
                Some(there) => there.metadata().map_err(|e| errno_of(&e))?.len(),
                None => continue,
            };
            if len > end {
                cuts.insert(path.clone(), end);
            }
        }
        Ok(cuts)
    }
}

/// Where in the journal each file was declared settled last: what was added before may have been overwritten by
/// those who write it in place.
fn last_settled(records: &[Record]) -> BTreeMap<FileKey, usize> {
    let settled = |(place, record): (usize, &Record)| match record {
        Record::Settled { file } => Some((*file, place)),
        _ => None,
    };
    let records = records.iter().enumerate();
    match failpoint::mutant("C14-settled") {
        true => BTreeMap::new(),
        false => records.filter_map(settled).collect(),
    }
}

/// Keeps what is about to be cut off a file, if there is anything but zeros: it may have come from
/// elsewhere than through the mount. What is too much to be kept is told.
pub(super) fn keep_cut(
    store: &Store,
    id: TxnId,
    path: &Path,
    file: &File,
    from: u64,
) -> Result<(), Errno> {
    let io = |e: std::io::Error| errno_of(&e);
    let whole = file.metadata().map_err(io)?.len();
    let most = failpoint::number("COMMITFS_KEPT_CUT", KEPT);
    let len = whole.saturating_sub(from).min(most);
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::FBIG)?];
    file.read_exact_at(&mut bytes, from).map_err(io)?;
    let zeros = bytes.iter().rev().take_while(|b| **b == 0).count();
    bytes.truncate(bytes.len() - zeros);
    let kept = (!bytes.is_empty()).then_some(id);
    if kept.is_some() {
        let staged = store.create_staging(id)?;
        if let Err(e) = staged.write_all_at(&bytes, 0) {
            // Recovery begins again, or is left for later.
            store.remove_staging(id).ok();
            return Err(io(e));
        }
        let meta = Rejected {
            id,
            path: path.to_string_lossy().into_owned(),
            path_hex: path_hex(path),
            reason: format!(
                "added behind {from} bytes, by an append that didn't survive the crash"
            ),
            time_ns: now_ns(),
            pid: 0,
            command: String::new(),
            len: bytes.len() as u64,
            round: None,
        };
        store.reject(&[meta], || super::room::make(store, Worth::Earlier))?;
    }
    let lost = whole - from - len;
    if lost > 0 && !failpoint::mutant("C22-cut") {
        tell_lost(store, kept, path, lost)?;
    }
    Ok(())
}

/// So many bytes that are cut off were too much to be kept: the next mount says so until somebody has
/// read it.
fn tell_lost(store: &Store, kept: Option<TxnId>, path: &Path, lost: u64) -> Result<(), Errno> {
    let reason = format!(
        "of what was added to it and didn't survive the crash, {lost} bytes were too much to be kept"
    );
    log::error!("{}: {reason}", path.display());
    let mut unseen = Unseen::of(path, reason, 0);
    (unseen.rejected, unseen.dropped_bytes) = (kept.map(id_name), Some(lost));
    super::room::tell(store, [unseen])
}
