//! Groups: files that become versions together (C23). Which paths belong to one is said by rules ([`Group`]); what one saver
//! saves of a group is a round ([`Rounds`]), whose members wait until it is complete. Pure: knows of numbers, names and moments.

mod directory;
mod holdings;
mod index;
mod pattern;
mod pins;
mod rounds;
mod saver;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use directory::{DirectoryRule, FailedPart, Husk, Place, Removal, RoundDirectory};
pub use holdings::{HeldLock, LockHold, LockHolds};
pub use pattern::{Pattern, PatternFault};
pub use pins::{GroupKey, PinTold, PinnedMember, PinnedView, PinningThread, Pins};
pub use rounds::{Entering, GroupCounts, GroupRound, RoundLock, RoundMember, Rounds, Verdict};
pub use saver::{End, Saver};

/// What the names in braces stand for, in the order of the names, and the directory where a pattern is of names alone.
pub type Binding = Vec<(String, OsString)>;

/// What becomes of a round that doesn't get complete, or of which a member is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnIncomplete {
    /// Nothing of it is published.
    Reject,
    /// What there is of it is.
    Commit,
}

/// Which versions who reads several files of a group finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// The newest of each.
    Newest,
    /// Those that belong to the first that it has opened.
    Pin,
}

/// One `[[group]]` of a rules file.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its number in the file, from one.
    pub number: u32,
    /// Its line, from one.
    pub line: u32,
    /// What is saved by who holds this lock is of one round. None: a round is complete by its files.
    pub lock: Option<Pattern>,
    /// Its members: those that have to be there first.
    pub patterns: Vec<Pattern>,
    /// How many of these have to be there, unless `complete` says otherwise.
    pub needed: usize,
    /// Which ones a round is complete by; empty: the needed ones.
    pub complete: Vec<usize>,
    /// How long nobody may save, write or open anything of a round.
    pub timeout: Duration,
    /// What becomes of a round that isn't complete then, or whose saver has failed.
    pub on_incomplete: OnIncomplete,
    /// Which versions readers find.
    pub readers: Readers,
    /// It is all that lies in a directory: the patterns are of paths in that, and the last matches any.
    pub directory: Option<DirectoryRule>,
}

impl Group {
    /// Which member a path is, relative to the mount's root.
    pub fn find(self: &Arc<Group>, path: &Path) -> Option<Membership> {
        if let Some(directory) = &self.directory {
            return self.find_below(directory, path);
        }
        let is_lock = self.lock_of(path).is_some();
        let mut patterns = self.patterns.iter().enumerate().filter(|_| !is_lock);
        patterns.find_map(|(pattern, of)| {
            let binding = of.find(path)?;
            Some(Membership {
                group: self.clone(),
                pattern,
                binding: Arc::new(binding),
            })
        })
    }

    /// What the names stand for where a path is its lock.
    pub fn lock_of(&self, path: &Path) -> Option<Binding> {
        self.lock.as_ref()?.find(path)
    }

    /// The patterns by which a round is complete.
    pub fn completing(&self) -> impl Iterator<Item = usize> {
        let by_need = (0..self.needed).filter(|_| self.complete.is_empty());
        self.complete.iter().copied().chain(by_need)
    }
}

/// That a path belongs to a group, and as what.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// The group.
    pub group: Arc<Group>,
    /// Which of its patterns the path matches.
    pub pattern: usize,
    /// What the names in that stand for.
    pub binding: Arc<Binding>,
}
