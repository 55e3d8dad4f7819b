//! Files that grow in place, as the journal knows of them (C10, C19).
//!
//! Their bytes may come to the medium before the records of the appends do. So before the first
//! append to a file a record says from what length on it grows, and that record is on the medium
//! before the bytes go into the file: recovery cuts off what the journal doesn't account for. One
//! wait for the disk serves all appends to the file until it is forgotten here, be they by many
//! (`echo line >> log` opens it anew each time); a new journal carries it over.
//!
//! A file may be forgotten, by a new journal or for want of space here, when all of its appends are
//! on the medium: its next append tells of it again, with the length that it has by then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Engine, State};
use rustix::fs::RenameFlags;

use crate::journal::{FileKey, Record};
use crate::sys::failpoint;
use crate::txn::key_of;
use crate::types::{Dentry, HandleId, NodeId, OpResult, Seq};

/// More files than this are not remembered at a time.
const MOST: usize = 1024;

/// What is known of one file.
#[derive(Debug)]
struct GrowingFile {
    path: PathBuf,
    /// Where its last append ends.
    end: u64,
    /// The commit of its last append.
    last: Seq,
    /// Which record of the file that was.
    ticket: u64,
    /// That is on the medium.
    told: bool,
    /// It was appended to since the journal was begun.
    used: bool,
}

/// The files that the journal tells of.
#[derive(Debug, Default)]
pub struct Growing {
    files: HashMap<FileKey, GrowingFile>,
    /// Records so far.
    tickets: u64,
}

impl Growing {
    /// Whether bytes may be added to a file.
    pub fn is_told(&self, file: FileKey) -> bool {
        self.files.get(&file).is_some_and(|g| g.told)
    }

    /// Whether the journal tells of a file, be it not on the medium yet.
    pub fn knows(&self, file: FileKey) -> bool {
        self.files.contains_key(&file)
    }

    /// The commit `seq` adds bytes up to `end`.
    pub fn append(&mut self, file: FileKey, seq: Seq, end: u64) {
        if let Some(grown) = self.files.get_mut(&file) {
            (grown.last, grown.end, grown.used) = (seq, end, true);
        }
    }

    /// It didn't come about.
    pub fn withdraw(&mut self, file: FileKey, end: u64) {
        if let Some(grown) = self.files.get_mut(&file) {
            grown.end = end;
        }
    }

    /// Makes room for one more, as far as there is one that may be forgotten.
    fn make_room(&mut self, durable: Seq) {
        if self.files.len() < MOST {
            return;
        }
        let idle = self
            .files
            .iter()
            .filter(|(_, g)| g.told && g.last <= durable);
        if let Some(file) = idle.min_by_key(|(_, g)| g.last).map(|(file, _)| *file) {
            self.files.remove(&file);
        }
    }

    /// What a new journal begins with; what wasn't used during the old one is forgotten. Appends
    /// that are not on the medium are carried over themselves.
    pub fn carry(&mut self, unapplied: &[&Record], durable: Seq) -> Vec<Record> {
        let froms = crate::commit::first_appends(unapplied.iter().copied());
        self.files
            .retain(|_, g| g.used || !g.told || g.last > durable);
        if failpoint::mutant("C19-growing-carried") {
            return Vec::new();
        }
        let record = |(file, grown): (&FileKey, &GrowingFile)| Record::Growing {
            file: *file,
            path: grown.path.clone(),
            len: froms.get(file).copied().unwrap_or(grown.end),
        };
        self.files.iter().map(record).collect()
    }

    /// A new journal stands, and is on the medium.
    pub fn carried(&mut self) {
        for grown in self.files.values_mut() {
            (grown.told, grown.used) = (true, false);
        }
    }
}

impl Engine {
    /// Lets the journal tell that a file grows from this length on. The record is not on the medium
    /// yet: [`Engine::await_told`].
    pub(super) fn tell_growing(
        &self,
        state: &mut State,
        file: FileKey,
        path: &Path,
        len: u64,
    ) -> OpResult<()> {
        if state.growing.knows(file) {
            return Ok(());
        }
        let durable = self.sequencer.durable();
        state.growing.make_room(durable);
        self.sequencer.append(&Record::Growing {
            file,
            path: path.to_owned(),
            len,
        })?;
        state.growing.tickets += 1;
        let grown = GrowingFile {
            ticket: state.growing.tickets,
            path: path.to_owned(),
            end: len,
            last: Seq::default(),
            told: false,
            used: true,
        };
        state.growing.files.insert(file, grown);
        Ok(())
    }

    /// Waits until what the journal tells of a file is on the medium. Holding nothing.
    pub(super) fn await_told(&self, file: FileKey) -> OpResult<()> {
        let ticket = |state: &State| state.growing.files.get(&file).map(|g| g.ticket);
        let before = ticket(&self.lock());
        if !failpoint::mutant("C19-growing-told") {
            self.sync_journal()?;
        }
        failpoint::crash_point("growing-told");
        let mut state = self.lock();
        // Meanwhile it may have been declared settled, and told of once more.
        let same = before.is_some() && ticket(&state) == before;
        if let Some(grown) = state.growing.files.get_mut(&file).filter(|_| same) {
            grown.told = true;
        }
        Ok(())
    }

    /// Files were renamed in the backing directory: those that grow are found sooner by recovery.
    pub(super) fn note_grown_moved(
        &self,
        state: &mut State,
        (from, to): (&Dentry, &Dentry),
        (source, target): (NodeId, Option<NodeId>),
        flags: RenameFlags,
    ) {
        let exchanged = target.filter(|_| flags.contains(RenameFlags::EXCHANGE));
        for (node, dentry) in [(Some(source), to), (exchanged, from)] {
            let fd = node.and_then(|node| state.nodes.fd(node).ok());
            let path = state.nodes.path(dentry);
            if let (Some(fd), Some(path)) = (fd, path)
                && let Ok(file) = key_of(&*fd)
            {
                self.growing_moved(state, file, &path);
            }
        }
    }

    fn growing_moved(&self, state: &mut State, file: FileKey, path: &Path) {
        let from = self.sequencer.first_appends().get(&file).copied();
        let Some(grown) = state.growing.files.get_mut(&file) else {
            return;
        };
        path.clone_into(&mut grown.path);
        let record = Record::Growing {
            file,
            path: path.to_owned(),
            len: from.unwrap_or(grown.end),
        };
        self.sequencer.append(&record).ok();
    }

    /// The file of a description in direct mode, if recovery would cut it off.
    pub(super) fn grown_in_place(&self, handle: HandleId) -> Option<FileKey> {
        let state = self.lock();
        if state.growing.files.is_empty() {
            return None;
        }
        let file = key_of(state.handles.get(handle)?.in_place()?).ok()?;
        state.growing.knows(file).then_some(file)
    }

    /// Others write a file in place from here on (C14), and recovery must leave it as it is. Waits
    /// for the disk, holding nothing.
    pub(super) fn end_growing(&self, file: FileKey) -> OpResult<()> {
        {
            let mut state = self.lock();
            if state.growing.files.remove(&file).is_none() {
                return Ok(());
            }
            if failpoint::mutant("C14-settled") {
                return Ok(());
            }
            self.sequencer.settle(file)?;
        }
        self.sync_journal()
    }
}
