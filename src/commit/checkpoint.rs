//! One round: brings what is committed to the medium, and then to its names.
//!
//! For all commits up to some number N:
//! 1. directories changed in place before: fsync
//! 2. the data of every pending version: fdatasync
//! 3. the journal: `Durable{N}`, fdatasync
//! 4. every pending version: rename from staging to its name
//! 5. the directories: fsync; where a rename may come to the medium by halves, staging, too
//!
//! A crash before 3 leaves the backing directory as it was, and recovery goes by checksums. A crash
//! after 3 is repaired by doing 4 again: a staging file that is gone has been renamed already.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Directories, RoundStart, Sequencer, Unsynced};
use crate::journal::Record;
use crate::namespace::{Nodes, Pending, PendingSet};
use crate::store::Store;
use crate::sys::{at, failpoint, spare};
use crate::types::{Dentry, NodeId, OpResult, Seq, TxnId};

/// A version to be put in place.
#[derive(Debug)]
pub struct CheckpointItem {
    /// Its name.
    pub dentry: Dentry,
    /// Number of its staging file.
    pub id: TxnId,
    /// That.
    pub file: Arc<File>,
    synced: bool,
}

impl CheckpointItem {
    /// What can be put in place of a name: a document that is not written out builds on what it has
    /// replaced, and on the journal.
    fn of((dentry, pending): (Dentry, &Pending)) -> Option<CheckpointItem> {
        let (id, file, synced) = match pending.unwritten {
            None => (pending.id, &pending.file, pending.synced),
            Some(_) => {
                let base = pending.superseded.last()?;
                (base.id, &base.file, false)
            }
        };
        Some(CheckpointItem {
            dentry,
            id,
            file: file.clone(),
            synced,
        })
    }
}

/// Why a round has ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Something was short for the moment: it is tried again.
    Later(Errno),
    /// What fdatasync failed to write is marked clean in the page cache: asking again would be told a
    /// lie. So the first failure stands until a remount, ENOSPC at that point included.
    Lost(Errno),
}

impl Broken {
    /// What a sync itself says is never among what passes.
    fn of_open(errno: Errno) -> Broken {
        match spare::is_passing(errno) {
            true => Broken::Later(errno),
            false => Broken::Lost(errno),
        }
    }

    fn of_append(errno: Errno) -> Broken {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Broken::Later(errno),
            other => Broken::of_open(other),
        }
    }
}

/// What one takes along.
#[derive(Debug)]
pub struct Round {
    /// Which commits.
    pub start: RoundStart,
    items: Vec<CheckpointItem>,
    /// Directories that were changed in place before.
    dirs: Directories,
    /// Directories that the items come into.
    into: OpResult<Directories>,
    /// Files that have grown in place, with their last append.
    pub appended: Vec<(NodeId, Seq, Arc<File>)>,
}

impl Round {
    /// What there is to be taken along right now.
    pub fn of(
        start: RoundStart,
        (nodes, pending): (&Nodes, &PendingSet),
        unsynced: &mut Unsynced,
    ) -> Round {
        Round {
            start,
            items: pending.iter().filter_map(CheckpointItem::of).collect(),
            into: directories_of(nodes, pending),
            dirs: unsynced.take_dirs(),
            appended: unsynced.appended(),
        }
    }

    /// All five steps; `apply` does the fourth of them, for one version. Gives why a version couldn't be put in place,
    /// if one couldn't.
    ///
    /// # Errors
    /// What keeps it from the steps that are left.
    pub fn run(
        &self,
        store: &Store,
        sequencer: &Sequencer,
        apply: impl Fn(&CheckpointItem) -> OpResult<()>,
    ) -> Result<Option<Errno>, Broken> {
        let mut stuck = None;
        failpoint::crash_point("checkpoint-begun");
        failpoint::delay("COMMITFS_ROUND_DELAY_MS");
        let into = self.into.as_ref().map_err(|e| Broken::of_open(*e))?;
        failpoint::sync("C19-sync-dirs-before", || sync_dirs(self.dirs.values()))
            .map_err(Broken::of_open)?;
        if self.has_something_to_declare() {
            self.sync_data(store).map_err(Broken::of_open)?;
            failpoint::crash_point("data-synced");
            let seq = self.start.upto;
            let declared = sequencer.append(&Record::Durable { seq });
            declared.map_err(Broken::of_append)?;
            sequencer.sync().map_err(Broken::of_open)?;
            failpoint::crash_point("durable-journalled");
            for item in &self.items {
                stuck = apply(item).err().or(stuck);
                failpoint::crash_point("applied-one");
            }
        }
        failpoint::crash_point("applied-all");
        failpoint::sync("C19-sync-dirs-after", || sync_dirs(into.values()))
            .map_err(Broken::of_open)?;
        if !self.items.is_empty() {
            failpoint::sync("C19-sync-staging-after", || store.sync_moved_away())
                .map_err(Broken::of_open)?;
        }
        failpoint::crash_point("dirs-synced");
        Ok(stuck)
    }

    fn has_something_to_declare(&self) -> bool {
        let covers = self.start.barred && !failpoint::mutant("C19-covered");
        self.start.commits || covers || !self.items.is_empty() || !self.appended.is_empty()
    }

    fn sync_data(&self, store: &Store) -> OpResult<()> {
        let appended: Vec<_> = self.appended.iter().map(|(_, _, f)| &**f).collect();
        failpoint::sync("C19-sync-appends", || at::sync_files(&appended))?;
        if self.items.is_empty() {
            return Ok(());
        }
        let unsynced = self.items.iter().filter(|item| !item.synced);
        let files: Vec<_> = unsynced.map(|item| &*item.file).collect();
        failpoint::sync("C19-sync-data", || at::sync_files(&files))?;
        failpoint::sync("C19-sync-staging", || store.sync_staging_dir())
    }

    /// It has ended early: what the next one has to sync once more. What is in place already is nothing that it
    /// takes along by itself.
    pub fn give_back(self, why: Broken, unsynced: &mut Unsynced) {
        unsynced.put_back_dirs(self.dirs);
        if matches!(why, Broken::Later(_)) {
            unsynced.put_back_dirs(self.into.into_iter().flatten());
        }
    }
}

/// Directories that pending items will be moved into. One that is gone has no need of a sync.
fn directories_of(nodes: &Nodes, pending: &PendingSet) -> OpResult<Directories> {
    let mut dirs = Directories::new();
    for (dentry, _) in pending.iter() {
        match spare::open(|| nodes.fd(dentry.dir)) {
            Ok(fd) => drop(dirs.insert(dentry.dir, fd)),
            Err(e) if spare::is_passing(e) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(dirs)
}

fn sync_dirs<'a>(dirs: impl Iterator<Item = &'a Arc<File>>) -> OpResult<()> {
    // Opening one may fail for the moment.
    let sync = |dir: &Arc<File>| {
        spare::open(|| failpoint::fail_point("C19-open-dir"))?;
        at::sync_dir(dir.as_fd())
    };
    dirs.map(sync).fold(Ok(()), spare::graver)
}
