//! The numbers of commits: which is the last, which are on the medium, and which are not in place yet.

use std::collections::VecDeque;

use crate::journal::Record;
use crate::sys::failpoint;
use crate::types::Seq;

/// See the module.
#[derive(Debug)]
pub struct Commits {
    last: Seq,
    durable: Seq,
    /// Those not yet applied, as journalled: a new journal starts with them.
    unapplied: VecDeque<Unapplied>,
}

#[derive(Debug)]
struct Unapplied {
    seq: Seq,
    record: Record,
    /// What stands before it, until the round that takes it along has ended.
    promised: Vec<Record>,
}

impl Commits {
    /// All up to this one are on the medium and in place.
    pub fn new(last: Seq) -> Commits {
        Commits {
            last,
            durable: last,
            unapplied: VecDeque::new(),
        }
    }

    /// The last commit.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Number of the next.
    pub fn next(&self) -> Seq {
        self.last.next()
    }

    /// This number is given to a commit.
    pub fn give(&mut self, seq: Seq) {
        self.last = seq;
    }

    /// A commit stands in the journal, to be applied.
    pub fn add(&mut self, seq: Seq, record: Record, promised: Vec<Record>) {
        self.give(seq);
        self.unapplied.push_back(Unapplied {
            seq,
            record,
            promised,
        });
    }

    /// A commit is taken back.
    pub fn withdraw(&mut self, seq: Seq) {
        self.unapplied.retain(|commit| commit.seq != seq);
    }

    /// Every commit up to here is on the medium.
    pub fn durable(&self) -> Seq {
        self.durable
    }

    /// Whether there are some that aren't.
    pub fn are_durable(&self) -> bool {
        self.durable >= self.last
    }

    /// How many aren't.
    pub fn backlog(&self) -> u64 {
        self.last.0.saturating_sub(self.durable.0)
    }

    /// All up to this one are on the medium; those of them that are in place `stays` doesn't keep.
    pub fn note_durable(&mut self, upto: Seq, stays: impl Fn(&Record) -> bool) {
        self.durable = upto;
        self.unapplied
            .retain(|commit| commit.seq > upto || stays(&commit.record));
        for commit in self.unapplied.iter_mut().filter(|c| c.seq <= upto) {
            commit.promised = Vec::new();
        }
    }

    /// What a new journal starts with.
    pub fn unapplied(&self) -> impl DoubleEndedIterator<Item = &Record> + Clone {
        self.unapplied
            .iter()
            .flat_map(|commit| commit.promised.iter().chain([&commit.record]))
            .filter(|record| {
                !matches!(record, Record::Inlined { .. })
                    || !failpoint::mutant("C7-inlined-committed")
            })
    }

    /// That, to be told otherwise.
    pub fn unapplied_mut(&mut self) -> impl Iterator<Item = &mut Record> {
        self.unapplied.iter_mut().map(|commit| &mut commit.record)
    }
}
