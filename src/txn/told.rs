//! What the journal tells of each transaction and each commit, sorted out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::journal::{ContentInfo, Edit, Inlined, Record};
use crate::sys::failpoint;
use crate::types::{Seq, TxnId, Version};

/// One transaction as the journal tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub path: Option<PathBuf>,
    pub discarded: bool,
    pub claim: bool,
    pub pid: u32,
    pub fsynced: Option<ContentInfo>,
    /// All bytes of that, unless they are on the medium elsewhere.
    pub inlined: Option<Arc<Inlined>>,
    /// They come before what speaks of them.
    next_inlined: Option<Arc<Inlined>>,
    pub prepared: Option<(ContentInfo, PathBuf, Version)>,
    pub aborted: bool,
    /// It isn't committed for what was promised before; whether it may be for exactly what its last fsync has made durable.
    pub withheld: Option<bool>,
    /// The round that it is committed with.
    pub round: Option<TxnId>,
    /// Place in the journal of the last record that lets it be rolled forward.
    pub told_at: usize,
    /// Place of its own commit.
    pub committed_at: Option<usize>,
}

fn note_fsynced(
    transactions: &mut BTreeMap<TxnId, Recorded>,
    id: TxnId,
    content: &ContentInfo,
    at: usize,
) {
    let told = transactions.entry(id).or_default();
    told.fsynced = Some(content.clone());
    told.inlined = told.next_inlined.take();
    told.withheld = None;
    told.told_at = at;
}

fn note_inlined(transactions: &mut BTreeMap<TxnId, Recorded>, id: TxnId, whole: &Arc<Inlined>) {
    transactions.entry(id).or_default().next_inlined = Some(whole.clone());
}

fn note_prepared(told: &mut Recorded, record: &Record, at: usize) {
    let Record::Prepared {
        sure,
        content,
        path,
        version,
        ..
    } = record
    else {
        return;
    };
    told.prepared = sure.then(|| (content.clone(), path.clone(), *version));
    told.path = Some(path.clone());
    told.told_at = at;
    told.withheld = None;
    // Whole or not at all, from here on.
    told.claim = false;
}

fn note_begun(told: &mut Recorded, record: &Record, at: usize) {
    let Record::Begin {
        path, claim, pid, ..
    } = record
    else {
        return;
    };
    told.path = Some(path.clone());
    (told.claim, told.pid) = (*claim, *pid);
    if *claim {
        told.told_at = at;
    }
}

fn note_withheld(told: &mut Recorded, as_fsynced: bool) {
    if !failpoint::mutant("C5-withheld") {
        told.withheld = Some(as_fsynced);
        told.prepared = None;
    }
}

/// Sorts the records out: commits by number, and what is known of each transaction.
pub(super) fn collect(
    records: &[Record],
    mut durable: Seq,
    transactions: &mut BTreeMap<TxnId, Recorded>,
) -> SortedRecords {
    let mut places = BTreeMap::new();
    let mut last = durable;
    let (mut barriers, mut complete) = (Vec::new(), BTreeMap::new());
    let mut commits: BTreeMap<Seq, Vec<Edit>> = BTreeMap::new();
    for (at, record) in records.iter().enumerate() {
        match record {
            Record::Begin { id, .. } => {
                note_begun(transactions.entry(*id).or_default(), record, at)
            }
            Record::Retarget { id, path } => {
                let told = transactions.entry(*id).or_default();
                told.discarded |= path.is_none();
                if let (Some(path), Some(prepared)) = (path, &mut told.prepared) {
                    prepared.1.clone_from(path);
                }
                told.path = path.clone().or(told.path.take());
            }
            Record::Fsynced { id, content } => note_fsynced(transactions, *id, content, at),
            Record::Inlined { id, whole } => note_inlined(transactions, *id, whole),
            Record::Prepared { id, .. } => {
                note_prepared(transactions.entry(*id).or_default(), record, at)
            }
            Record::Withheld { id, as_fsynced } => {
                note_withheld(transactions.entry(*id).or_default(), *as_fsynced)
            }
            Record::Unprepared { id } => transactions.entry(*id).or_default().prepared = None,
            Record::Abort { id } => transactions.entry(*id).or_default().aborted = true,
            Record::Commit { seq, edits } => {
                last = last.max(*seq);
                places.insert(*seq, at);
                for edit in edits {
                    if let Edit::Put { id, path, .. } = edit {
                        let told = transactions.entry(*id).or_default();
                        told.claim = false;
                        told.committed_at = Some(at);
                        told.path.get_or_insert_with(|| path.clone());
                    }
                }
                commits.insert(*seq, edits.clone());
            }
            Record::Durable { seq } => {
                durable = durable.max(*seq);
                // A round that had begun before knows nothing of it.
                barriers.retain(|behind| behind > seq);
            }
            Record::Barrier => barriers.push(last),
            Record::Withdrawn { seq } => drop(commits.remove(seq)),
            Record::Moved {
                from,
                to,
                going,
                coming,
                ..
            } => {
                // Of those that have come about only.
                for (ids, path) in [(going, to), (coming, from)] {
                    for id in ids {
                        let told = transactions.entry(*id).or_default();
                        if let Some(prepared) = &mut told.prepared {
                            prepared.1.clone_from(path);
                        }
                        (told.path, told.told_at) = (Some(path.clone()), at);
                    }
                }
            }
            // Followed already.
            Record::Growing { .. } | Record::Settled { .. } => {}
            Record::Grouped { id, round } => {
                transactions.entry(*id).or_default().round =
                    Some(*round).filter(|round| *round != TxnId(0))
            }
            Record::Complete { round, members } => drop(complete.insert(*round, members.clone())),
        }
    }
    SortedRecords {
        commits,
        durable,
        barrier: barriers.first().copied(),
        places,
        complete,
    }
}

/// Rounds that were complete, and what was prepared of each then.
pub(super) type CompleteRounds = BTreeMap<TxnId, Vec<TxnId>>;

/// The journal, sorted out.
pub(super) struct SortedRecords {
    pub commits: BTreeMap<Seq, Vec<Edit>>,
    pub durable: Seq,
    /// The last commit before a rename or unlink in the backing directory that was never declared
    /// durable: after a power cut nothing behind it may count.
    pub barrier: Option<Seq>,
    /// Where in the journal each commit stands.
    pub places: BTreeMap<Seq, usize>,
    /// Rounds that were complete.
    pub complete: CompleteRounds,
}
