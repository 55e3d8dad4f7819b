//! Directories that were moved: the journal's older records know what is below them by old paths.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::places::found_at;
use crate::journal::{Edit, Record};
use crate::store::Store;
use crate::sys::failpoint;

/// One that happened.
struct PathMove<'a> {
    from: &'a Path,
    to: &'a Path,
    exchange: bool,
}

impl PathMove<'_> {
    fn apply(&self, path: &Path) -> Option<PathBuf> {
        let below = |from: &Path, to: &Path| {
            let rest = path.strip_prefix(from).ok()?;
            Some(if rest.as_os_str().is_empty() {
                to.to_owned()
            } else {
                to.join(rest)
            })
        };
        below(self.from, self.to).or_else(|| below(self.to, self.from).filter(|_| self.exchange))
    }
}

/// The records as they are to be read.
pub(super) struct Followed {
    pub records: Vec<Record>,
    /// Names over which another file has been moved, and where in the journal that was announced.
    pub replaced: Vec<(PathBuf, usize)>,
}

/// The records with all paths as they are now. A move is announced before it is made: it has
/// happened if the directory is where it should be, after the moves that came later.
///
/// A file is moved over a name likewise where somebody has fsync'd what is to have that name, or
/// what goes along with the file. Gives these names, too, with the places of the records.
pub(super) fn follow(store: &Store, records: &[Record]) -> Result<Followed, Errno> {
    let mut later: Vec<PathMove> = Vec::new();
    // Of files: no other record's path is another by that.
    let mut later_files: Vec<PathMove> = Vec::new();
    let mut followed = Vec::with_capacity(records.len());
    let mut replaced = Vec::new();
    for (place, record) in records.iter().enumerate().rev() {
        let mut is_made = false;
        if let Record::Moved {
            from,
            to,
            inode,
            exchange,
            ..
        } = record
        {
            let now = moved(to, &later);
            let here = is_dir_at(store, &now, *inode)?;
            let made = PathMove {
                from,
                to,
                exchange: *exchange,
            };
            let exchanges_dir = |found: (u64, bool)| *exchange && found.1;
            match here {
                Some(true) => later.push(made),
                Some(false)
                    if found_at(store, &moved(from, &later))?.is_some_and(exchanges_dir) =>
                {
                    later.push(made);
                }
                Some(false) => {
                    let both = [Some(to), Some(from).filter(|_| *exchange)];
                    let both = both.into_iter().flatten();
                    replaced.extend(both.map(|path| (moved(path, &later), place)));
                    later_files.push(made);
                }
                None => {}
            }
            // It may have gone on from there.
            is_made =
                here.is_some() || is_dir_at(store, &moved(&now, &later_files), *inode)?.is_some();
        }
        let mut record = record.clone();
        if let Record::Moved { going, coming, .. } = &mut record
            && (!is_made || failpoint::mutant("C7-followed"))
        {
            (*going, *coming) = (Vec::new(), Vec::new());
        }
        if !later.is_empty() {
            each_path(&mut record, |path| *path = moved(path, &later));
        }
        followed.push(record);
    }
    followed.reverse();
    Ok(Followed {
        records: followed,
        replaced,
    })
}

/// Whether it is a directory that has this inode number there, if anything has.
fn is_dir_at(store: &Store, path: &Path, inode: u64) -> Result<Option<bool>, Errno> {
    let found = found_at(store, path)?;
    Ok(found.filter(|(found, _)| *found == inode).map(|f| f.1))
}

/// `later` has the last move first.
fn moved(path: &Path, later: &[PathMove]) -> PathBuf {
    let moves = later.iter().rev();
    moves.fold(path.to_owned(), |path, m| m.apply(&path).unwrap_or(path))
}

/// Lets every path that a record speaks of be changed, but for those of a directory's move.
pub fn each_path(record: &mut Record, mut change: impl FnMut(&mut PathBuf)) {
    match record {
        Record::Begin { path, .. }
        | Record::Prepared { path, .. }
        | Record::Growing { path, .. } => change(path),
        Record::Retarget { path, .. } => path.iter_mut().for_each(change),
        Record::Commit { edits, .. } => {
            for edit in edits {
                match edit {
                    Edit::Put { path, .. }
                    | Edit::Drop { path }
                    | Edit::Append { path, .. }
                    | Edit::Patch { path, .. } => change(path),
                }
            }
        }
        Record::Moved {
            from,
            to,
            going,
            coming,
            ..
        } if going.len() + coming.len() > 0 => {
            change(from);
            change(to);
        }
        Record::Moved { .. }
        | Record::Inlined { .. }
        | Record::Fsynced { .. }
        | Record::Unprepared { .. }
        | Record::Abort { .. }
        | Record::Durable { .. }
        | Record::Withdrawn { .. }
        | Record::Settled { .. }
        | Record::Grouped { .. }
        | Record::Complete { .. }
        | Record::Withheld { .. }
        | Record::Barrier => {}
    }
}

/// The path of what lay at or below `from`, now that that is `to`; the other way round, too, if they
/// were exchanged.
pub fn after_move(path: &Path, from: &Path, to: &Path, exchange: bool) -> Option<PathBuf> {
    PathMove { from, to, exchange }.apply(path)
}
