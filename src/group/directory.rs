//! Groups that are directories: which they are by rule, and what a round of one knows of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Binding, End, Group, Membership, Pattern, Saver};
use crate::sys::proc;
use crate::types::{Dentry, NodeId, TxnId};

/// How long nothing of a round may have been open or written before it is taken to be complete, where no names say when it is.
const SETTLE: Duration = Duration::from_secs(10);

/// What a `[[group]]` with `directory` says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectoryRule {
    /// Which directories these are.
    pub pattern: Pattern,
    /// Also those that have been there before.
    pub existing: bool,
    /// How long nothing of a round may have been open or written for it to be complete, if that is said.
    pub settle: Option<Duration>,
}

impl DirectoryRule {
    /// The outermost such directory on the way to a path, which may be it.
    fn top_of<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let ways: Vec<&Path> = path.ancestors().collect();
        let mut ways = ways.into_iter().rev().filter(|w| !w.as_os_str().is_empty());
        ways.find(|way| self.pattern.find(way).is_some())
    }
}

/// The directory of a group that a path lies in, as what its names stand for.
fn binding(top: &Path) -> Binding {
    vec![("/".to_owned(), top.as_os_str().to_owned())]
}

impl Group {
    /// Which member of a directory a file is.
    pub(super) fn find_below(
        self: &Arc<Group>,
        rule: &DirectoryRule,
        path: &Path,
    ) -> Option<Membership> {
        let top = rule.top_of(path).filter(|top| *top != path)?;
        let rest = path.strip_prefix(top).ok()?;
        let mut patterns = self.patterns.iter();
        let pattern = patterns.position(|p| p.find(rest).is_some())?;
        Some(Membership {
            group: self.clone(),
            pattern,
            binding: Arc::new(binding(top)),
        })
    }

    /// The membership of a directory that is one of the group, or lies in one.
    pub fn find_directory(self: &Arc<Group>, path: &Path) -> Option<Membership> {
        let top = self.directory.as_ref()?.top_of(path)?;
        Some(Membership {
            group: self.clone(),
            pattern: self.patterns.len().saturating_sub(1),
            binding: Arc::new(binding(top)),
        })
    }

    /// How long others may still come, when all who have saved some of a directory have ended, and something is missing.
    pub(super) fn grace(&self) -> Duration {
        let rule = self.directory.as_ref();
        rule.map_or(Duration::ZERO, |rule| rule.settle.unwrap_or(SETTLE))
    }

    /// How long nothing of a round may have been open or written before it is complete.
    pub fn settles(&self) -> Duration {
        let Some(rule) = &self.directory else {
            return Duration::ZERO;
        };
        let guess = match self.complete.is_empty() {
            true => SETTLE,
            false => Duration::ZERO,
        };
        rule.settle.unwrap_or(guess)
    }
}

impl Membership {
    /// The directory, relative to the mount's root, if the group is one.
    pub fn directory(&self) -> Option<PathBuf> {
        self.group.directory.as_ref()?;
        let (_, top) = self.binding.first()?;
        Some(PathBuf::from(top))
    }
}

/// The directory that a round is of.
#[derive(Debug)]
pub struct RoundDirectory {
    /// Its node.
    pub top: NodeId,
    /// It has no former generation: what is in it is of this round.
    pub is_new: bool,
    /// Directories that are left out of listings until the round ends, the outer ones first.
    pub hidden: Vec<NodeId>,
    /// Those of them that were made for it, and go if it fails.
    pub made: Vec<NodeId>,
    /// What was saved of it was rejected, and some of its savers live on: what they save next goes the same way.
    pub failed: Option<FailedPart>,
    /// Nothing more is to come: it was brought back from rejected, and who has done that has ended.
    pub is_restored: bool,
    /// Nothing more is to come: it has got another name, by which it is none of the group.
    pub is_final: bool,
}

/// What is remembered of the part of a round that was rejected.
#[derive(Debug)]
pub struct FailedPart {
    /// Why.
    pub why: String,
    /// When.
    pub at: proc::Moment,
    /// Its files.
    names: BTreeSet<Dentry>,
    /// Some that it didn't have were saved since.
    goes_on: bool,
}

/// A directory that was made for a round that has failed.
#[derive(Clone, Copy, Debug)]
pub struct Husk {
    /// The directory.
    pub dir: NodeId,
    /// The round.
    pub round: TxnId,
}

/// A directory of which a process removes what is in it.
#[derive(Debug)]
pub struct Removal {
    /// The directory.
    pub top: NodeId,
    /// The process.
    pub by: Saver,
    /// Its group.
    pub group: Arc<Group>,
    /// When something of it was removed last.
    pub last: Instant,
}

impl Removal {
    /// Whether more of it is to be removed, as far as can be said; or what is left is half of it.
    pub fn goes_on(&self, now: Instant) -> bool {
        let rests = now.saturating_duration_since(self.last);
        match &self.by.ended {
            None => rests < self.group.grace(),
            Some(End::Badly(_)) => rests < self.group.timeout,
            Some(End::Well) => false,
        }
    }
}

/// Where a member is opened.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The group's directory.
    pub top: NodeId,
    /// That has no former generation.
    pub is_new: bool,
}

impl FailedPart {
    /// Whether nothing was saved of it.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl RoundDirectory {
    /// Of a directory of which nothing is known yet.
    pub(super) fn new(place: Place) -> RoundDirectory {
        RoundDirectory {
            top: place.top,
            is_new: place.is_new,
            hidden: Vec::from_iter(place.is_new.then_some(place.top)),
            made: Vec::new(),
            failed: None,
            is_restored: false,
            is_final: false,
        }
    }

    /// Some of it was rejected, with these files.
    pub(super) fn fail(
        &mut self,
        why: &str,
        at: proc::Moment,
        names: impl Iterator<Item = Dentry>,
    ) {
        let failed = self.failed.get_or_insert_with(|| FailedPart {
            why: why.to_owned(),
            at,
            names: BTreeSet::new(),
            goes_on: false,
        });
        failed.names.extend(names);
    }

    /// Whether this file begins another round, as what failed is over: a process opens it that was started since, or it was in that
    /// already, and nothing else was saved just before. (Who saves what is missing is a rank that was late.)
    pub(super) fn is_over_for(
        &mut self,
        dentry: &Dentry,
        is_young: bool,
        has_rested: bool,
    ) -> bool {
        let Some(failed) = &mut self.failed else {
            return false;
        };
        let is_repeated = failed.names.contains(dentry);
        failed.goes_on |= !is_repeated;
        is_young || is_repeated && (has_rested || !failed.goes_on)
    }

    /// A directory was made for it. Gives whether it is the first.
    pub fn note_made(&mut self, id: NodeId) -> bool {
        let is_first = self.made.is_empty();
        for list in [&mut self.hidden, &mut self.made] {
            if !list.contains(&id) {
                list.push(id);
            }
        }
        is_first
    }
}
