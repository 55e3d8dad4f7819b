//! Files that grow in place, as far as the journal tells of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::journal::{FileKey, Record};
use crate::sys::failpoint;
use crate::types::Seq;

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
    pub fn make_room(&mut self, durable: Seq) {
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

    /// The journal has been told that a file grows from this length on; that is not on the medium yet.
    pub fn tell(&mut self, file: FileKey, path: &Path, len: u64) {
        self.tickets += 1;
        let grown = GrowingFile {
            ticket: self.tickets,
            path: path.to_owned(),
            end: len,
            last: Seq::default(),
            told: false,
            used: true,
        };
        self.files.insert(file, grown);
    }

    /// Which record tells of a file.
    pub fn ticket(&self, file: FileKey) -> Option<u64> {
        self.files.get(&file).map(|g| g.ticket)
    }

    /// This record of a file is on the medium. Meanwhile it may have been declared settled, and told of once more.
    pub fn note_told(&mut self, file: FileKey, ticket: Option<u64>) {
        let grown = self.files.get_mut(&file);
        if let Some(grown) = grown.filter(|g| Some(g.ticket) == ticket) {
            grown.told = true;
        }
    }

    /// A file has another path. Gives where it ends, if it is known.
    pub fn move_to(&mut self, file: FileKey, path: &Path) -> Option<u64> {
        let grown = self.files.get_mut(&file)?;
        path.clone_into(&mut grown.path);
        Some(grown.end)
    }

    /// A file doesn't grow any more. Gives whether it was known.
    pub fn forget(&mut self, file: FileKey) -> bool {
        self.files.remove(&file).is_some()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What a new journal begins with; what wasn't used during the old one is forgotten. Appends
    /// that are not on the medium are carried over themselves.
    pub fn carry(&mut self, unapplied: &[&Record], durable: Seq) -> Vec<Record> {
        let froms = super::first_appends(unapplied.iter().copied());
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
