//! What recovery has decided is brought to its place.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::journal::{ContentInfo, Edit, Record};
use crate::store::Store;
use crate::sys::{at, failpoint};
use crate::txn::forward::take_added;
use crate::txn::growth::{self};
use crate::txn::leftover::Leftover;
use crate::txn::part;
use crate::txn::places::{open_target, parent_of};
use crate::txn::plan::Plan;
use crate::txn::touched::Touched;
use crate::txn::whole::len;
use crate::types::{TxnId, Version, mtime_ns, now_ns};

/// The data of what will be applied must be on the medium before any name changes, and that of what is left before a new journal is begun.
///
/// There may be more commits than this process may have files open: tens of thousands of lines
/// that were appended to one file, say.
pub(super) fn sync_accepted(store: &Store, plan: &Plan) -> Result<(), Errno> {
    const AT_ONCE: usize = 64;
    let (mut ids, mut grown) = (BTreeSet::new(), BTreeSet::new());
    for edit in plan.accepted.iter().flat_map(|(_, edits)| edits) {
        match edit {
            Edit::Put { id, .. } => drop(ids.insert(*id)),
            Edit::Append { path, .. } => drop(grown.insert(path.as_path())),
            Edit::Drop { .. } | Edit::Patch { .. } => {}
        }
    }
    // What goes to rejected may be there by what the old journal has alone.
    ids.extend(plan.leftovers.iter().map(|left| left.id));
    let staged = ids.into_iter().map(|id| store.open_staging(id));
    let grown = grown.into_iter().map(|path| open_target(store, path));
    let mut files = staged.chain(grown).filter_map(Result::transpose);
    loop {
        let some: Vec<File> = files.by_ref().take(AT_ONCE).collect::<Result<_, _>>()?;
        if some.is_empty() {
            break;
        }
        let some: Vec<&File> = some.iter().collect();
        failpoint::sync("C19-sync-recovered", || at::sync_files(&some))?;
    }
    failpoint::sync("C19-sync-recovered-staging", || store.sync_staging_dir())
}

/// Shortens files by the appends that don't count.
pub(super) fn cut(store: &Store, plan: &mut Plan) -> Result<(), Errno> {
    for (path, from) in &plan.cuts {
        let Some((dir, name)) = parent_of(store, path)? else {
            continue;
        };
        let fd = match at::open_path(&dir, &name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        let file = at::reopen(&fd, rustix::fs::OFlags::RDWR)?;
        if len(&file)? > *from {
            if plan.keeps_cuts {
                plan.last_id = plan.last_id.next();
                // Without that nothing is cut: recovery begins again with what was held in
                // reserve, or when there is room.
                growth::keep_cut(store, plan.last_id, path, &file, *from)?;
            }
            log::warn!(
                "{}: cut back to {from} bytes: what was added behind them was not complete, or came to the disk before its record",
                path.display()
            );
            rustix::fs::ftruncate(&file, *from)?;
        }
        rustix::fs::fdatasync(&file)?;
    }
    Ok(())
}

/// Records a second recovery needs if this one is interrupted.
pub(super) fn carried(plan: &Plan) -> Vec<Record> {
    let mut records = Vec::new();
    for left in &plan.leftovers {
        records.extend(left.path.clone().map(|path| Record::Begin {
            id: left.id,
            path,
            claim: false,
            pid: left.pid,
            started_ns: now_ns(),
        }));
        records.extend(left.discarded.then_some(Record::Retarget {
            id: left.id,
            path: None,
        }));
        records.extend(
            left.round
                .map(|round| Record::Grouped { id: left.id, round }),
        );
    }
    records.extend(plan.accepted.iter().map(|(seq, edits)| Record::Commit {
        seq: *seq,
        edits: edits.clone(),
    }));
    records
}

/// Moves the final state of the accepted commits into place. A staging file that isn't there has
/// been moved before. Gives how many were moved, and those whose directory is gone.
pub(super) fn apply(store: &Store, plan: &Plan) -> Result<(usize, Vec<Leftover>), Errno> {
    let mut last: HashMap<&Path, Option<(TxnId, Version, &ContentInfo)>> = HashMap::new();
    let mut every: BTreeSet<TxnId> = BTreeSet::new();
    for (_, edits) in &plan.accepted {
        for edit in edits {
            match edit {
                Edit::Put {
                    path,
                    id,
                    version,
                    content,
                    ..
                } => {
                    every.insert(*id);
                    last.insert(path, Some((*id, *version, content)));
                }
                Edit::Drop { path } => {
                    last.insert(path, None);
                }
                // In place already; replayed already.
                Edit::Append { .. } | Edit::Patch { .. } => {}
            }
        }
    }
    let (mut applied, mut unplaced) = (0, Vec::new());
    let mut touched = Touched::default();
    for (path, put) in last {
        let Some((id, version, content)) = put else {
            continue;
        };
        every.remove(&id);
        let Some(file) = store.open_staging(id)? else {
            continue;
        };
        if store.is_moved_away(&file)? {
            // It may have grown there since.
            store.remove_staging(id)?;
            continue;
        }
        match place(store, path, id, version, content, &file)? {
            Some(dir) => {
                touched.add(path, dir)?;
                applied += 1;
            }
            None => unplaced.push(Leftover {
                id,
                path: Some(path.to_owned()),
                pid: 0,
                discarded: false,
                round: None,
            }),
        }
    }
    touched.sync()?;
    // Superseded by a later commit, or dropped.
    for id in every.into_iter().chain(plan.superfluous.iter().copied()) {
        store.remove_staging(id)?;
    }
    store.sync_moved_away()?;
    Ok((applied, unplaced))
}

/// Gives the directory that it was moved into, if that is there.
pub(super) fn place(
    store: &Store,
    path: &Path,
    id: TxnId,
    version: Version,
    content: &ContentInfo,
    file: &File,
) -> Result<Option<OwnedFd>, Errno> {
    let Some((dir, name)) = parent_of(store, path)? else {
        return Ok(None);
    };
    if let Some(stat) = at::stat_at(&dir, &name)?
        && rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    {
        return Ok(None);
    }
    if len(file)? > content.len {
        // Written after the fsync that is rolled forward.
        rustix::fs::ftruncate(file, content.len)?;
        rustix::fs::fdatasync(file)?;
    }
    let added_ns = take_added(store, path, content, file)?;
    let stat = at::stat(file)?;
    if content.mtime_ns != 0 && mtime_ns(&stat) != content.mtime_ns.max(added_ns) {
        at::set_mtime(file, content.mtime_ns.max(added_ns))?;
    }
    part::mark_number(file, version, (&dir, &name));
    store.apply(id, &dir, &name)?;
    failpoint::crash_point("recovery-placed");
    Ok(Some(dir))
}
