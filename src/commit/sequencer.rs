//! The order of commits: their numbers, the journal in which they stand in this order, which of them are on the medium, and
//! which are not in place yet.
//!
//! Its lock is the last of all: who holds it waits for nothing but one append, or for a new journal.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::{Changeset, Commits};
use crate::journal::{ContentInfo, Edit, FileKey, Header, Journal, JournalError, Record};
use crate::sys::{failpoint, spare};
use crate::types::{OpResult, Seq, TxnId};

/// See the module.
#[derive(Debug)]
pub struct Sequencer {
    order: Mutex<Order>,
    flush: Mutex<Flushing>,
}

/// Waits for the disk: one at a time, and each serves all who came before it began.
#[derive(Debug, Default)]
struct Flushing {
    is_running: bool,
    /// How many appends are on the medium.
    done: u64,
    /// A second try would be told that all is well, which proves nothing.
    failed: Option<Errno>,
    /// Who waits until so many are.
    waiting: Vec<(u64, Arc<Condvar>)>,
}

impl Flushing {
    /// One has ended: wakes those whom it has served, and the one who begins the next.
    fn end(&mut self, upto: u64, result: OpResult<()>) {
        self.is_running = false;
        match result {
            Ok(()) => self.done = self.done.max(upto),
            Err(errno) => self.failed = Some(errno),
        }
        self.wake(true);
    }

    /// So many are on the medium without a wait: whoever was to begin the next one may have nothing to wait for any more, and wakes nobody.
    fn note_done(&mut self, upto: u64) {
        self.done = self.done.max(upto);
        self.wake(false);
    }

    /// Wakes who has nothing to wait for, and `next` one besides.
    fn wake(&mut self, mut next: bool) {
        let (done, failed) = (self.done, self.failed.is_some());
        self.waiting.retain(|(appends, waiter)| {
            let wakes = failed || *appends <= done || std::mem::take(&mut next);
            if wakes {
                waiter.notify_one();
            }
            !wakes
        });
    }
}

#[derive(Debug)]
struct Order {
    journal: Journal,
    /// How long that was at first, in bytes.
    began: u64,
    /// Appends so far, to this journal and those before it.
    appends: u64,
    commits: Commits,
    /// The last commit that the round which is under way takes along.
    round: Option<Seq>,
    /// Bytes that are kept for commits which are decided later: what else is reserved comes on top of them.
    kept: u64,
    /// A *Barrier* stands in the journal that no *Durable* covers: until one does, commits behind it may
    /// not count after a power cut.
    barred: bool,
}

/// What a round of the checkpoint begins with.
#[derive(Clone, Copy, Debug)]
pub struct RoundStart {
    /// It takes all commits up to this one along.
    pub upto: Seq,
    /// Some of them are not known to be on the medium.
    pub commits: bool,
    /// It covers a *Barrier*, if it comes to an end.
    pub barred: bool,
}

impl Sequencer {
    /// Goes on with a recovered journal, in which all up to this commit is in place.
    pub fn new(journal: Journal, last: Seq) -> Sequencer {
        Sequencer {
            order: Mutex::new(Order {
                began: journal.len(),
                journal,
                appends: 0,
                commits: Commits::new(last),
                round: None,
                kept: 0,
                barred: false,
            }),
            flush: Mutex::default(),
        }
    }

    /// Makes sure that records of so many bytes find their place.
    ///
    /// # Errors
    /// ENOSPC.
    pub fn reserve(&self, bytes: u64) -> OpResult<()> {
        let mut order = self.order.lock();
        let bytes = bytes.saturating_add(order.kept);
        order.journal.reserve(bytes).map_err(|e| {
            log::warn!("journal: {e}");
            Errno::NOSPC
        })
    }

    /// Whether records of so many bytes find their place as it is. Where somebody makes room just now it isn't there yet.
    pub fn has_room(&self, bytes: u64) -> bool {
        let order = self.order.try_lock();
        order.is_some_and(|order| order.journal.has_room(bytes.saturating_add(order.kept)))
    }

    /// So many bytes of what is reserved are kept from now on for a commit that is decided later. Nothing is set aside: the
    /// next who reserves does that.
    pub fn keep(&self, bytes: u64) {
        self.order.lock().kept += bytes;
    }

    /// They are kept no more.
    pub fn use_kept(&self, bytes: u64) {
        let mut order = self.order.lock();
        order.kept = order.kept.saturating_sub(bytes);
    }

    /// Journals what is no commit, without waiting for the disk.
    ///
    /// # Errors
    /// ENOSPC if there is no room for it, and nothing of it is there; EIO.
    pub fn append(&self, record: &Record) -> OpResult<()> {
        self.order.lock().append(record)
    }

    /// Journals records that belong together, in one write. Gives up to where [`Sequencer::sync_to`] has to come for them.
    ///
    /// # Errors
    /// As [`Sequencer::append`].
    pub fn append_all(&self, records: &[Record]) -> OpResult<u64> {
        let mut order = self.order.lock();
        order.append_all(records)?;
        Ok(order.appends)
    }

    /// Commits all that, which can't be taken back any more: space was reserved before. An error says that the disk has failed,
    /// and its number is given all the same.
    pub fn commit(&self, changes: Changeset) -> (Seq, OpResult<()>) {
        let mut order = self.order.lock();
        let (seq, is_lost) = (order.commits.next(), failpoint::mutant(changes.mutant()));
        let (record, promised) = changes.into_records(seq);
        let written = match is_lost {
            true => Ok(()),
            false => order.append(&record),
        };
        order.commits.add(seq, record, promised);
        (seq, written)
    }

    /// Commits all that, or nothing.
    ///
    /// # Errors
    /// As [`Sequencer::append`].
    pub fn try_commit(&self, changes: Changeset) -> OpResult<Seq> {
        let mut order = self.order.lock();
        let (seq, is_lost) = (order.commits.next(), failpoint::mutant(changes.mutant()));
        let (record, promised) = changes.into_records(seq);
        if !is_lost {
            order.append(&record)?;
        }
        order.commits.add(seq, record, promised);
        Ok(seq)
    }

    /// A commit was journalled and couldn't be carried out.
    ///
    /// # Errors
    /// As [`Sequencer::append`].
    pub fn withdraw(&self, seq: Seq) -> OpResult<()> {
        let mut order = self.order.lock();
        order.commits.withdraw(seq);
        order.append(&Record::Withdrawn { seq })
    }

    /// Journals that a name is about to be removed, moved or made in the backing directory.
    ///
    /// A round that is under way has taken the directories that it syncs, and its *Durable* comes
    /// behind this. So that nobody takes that to cover the removal, it stands behind a commit that
    /// the round does not have; where there is none, behind one of nothing.
    ///
    /// # Errors
    /// As [`Sequencer::append`].
    pub fn barrier(&self) -> OpResult<()> {
        let mut order = self.order.lock();
        if order.round == Some(order.commits.last()) && !failpoint::mutant("C19-round") {
            let seq = order.commits.next();
            order.append(&Changeset::default().into_records(seq).0)?;
            order.commits.give(seq);
        }
        order.barred = true;
        order.append(&Record::Barrier)
    }

    /// Whether a *Barrier* stands in the journal that no *Durable* covers.
    pub fn is_barred(&self) -> bool {
        self.order.lock().barred
    }

    /// Makes everything that is journalled by now durable.
    ///
    /// # Errors
    /// What the disk says, for good: a second try would be told that all is well, which proves nothing.
    pub fn sync(&self) -> OpResult<()> {
        let appends = self.order.lock().appends;
        self.sync_to(appends)
    }

    /// Makes the first appends durable, so many: at once, if others have waited for them. Those who come while the disk is
    /// busy with others wait for the next one together.
    ///
    /// # Errors
    /// As [`Sequencer::sync`].
    pub fn sync_to(&self, appends: u64) -> OpResult<()> {
        let mut flush = self.flush.lock();
        while flush.done < appends {
            if let Some(errno) = flush.failed {
                return Err(errno);
            }
            if flush.is_running {
                let waiter = Arc::new(Condvar::new());
                flush.waiting.push((appends, waiter.clone()));
                waiter.wait(&mut flush);
                continue;
            }
            flush.is_running = true;
            drop(flush);
            let (upto, handle) = {
                let order = self.order.lock();
                (order.appends, order.journal.sync_handle())
            };
            failpoint::delay("COMMITFS_JOURNAL_DELAY_MS");
            let synced = failpoint::sync("C19-sync-journal", || {
                spare::told_once(|| rustix::fs::fdatasync(&*handle))
            });
            flush = self.flush.lock();
            flush.end(upto, synced);
        }
        Ok(())
    }

    /// The last commit.
    pub fn last(&self) -> Seq {
        self.order.lock().commits.last()
    }

    /// Every commit up to here is on the medium.
    pub fn durable(&self) -> Seq {
        self.order.lock().commits.durable()
    }

    /// Whether there are some that aren't.
    pub fn are_durable(&self) -> bool {
        self.order.lock().commits.are_durable()
    }

    /// How many aren't.
    pub fn backlog(&self) -> u64 {
        self.order.lock().commits.backlog()
    }

    /// Whether the journal is longer than this, in bytes, and than twice what it began with: a new one would be as long again.
    /// (With a limit of 1 tests have a new one after each round.)
    pub fn is_outgrown(&self, limit: u64) -> bool {
        let order = self.order.lock();
        let least = order.began * limit.min(2);
        order.journal.len() > limit.max(least)
    }

    /// A round begins, for who has all that it is to bring to the medium.
    pub fn begin_round(&self) -> RoundStart {
        let mut order = self.order.lock();
        order.round = Some(order.commits.last());
        RoundStart {
            upto: order.commits.last(),
            commits: !order.commits.are_durable(),
            barred: std::mem::take(&mut order.barred),
        }
    }

    /// It has ended, well or not.
    pub fn end_round(&self, round: RoundStart, is_done: bool) {
        let mut order = self.order.lock();
        order.round = None;
        order.barred |= round.barred && !is_done;
    }

    /// All up to this one are on the medium; those of them that are in place `stays` doesn't keep.
    pub fn note_durable(&self, upto: Seq, stays: impl Fn(&Record) -> bool) {
        self.order.lock().commits.note_durable(upto, stays);
    }

    /// How long each file was before the first append to it that is not in place for good.
    pub fn first_appends(&self) -> HashMap<FileKey, u64> {
        first_appends(self.order.lock().commits.unapplied())
    }

    /// What was committed under this number, if it is not in place for good.
    pub fn content_of(&self, staged: TxnId) -> Option<ContentInfo> {
        let order = self.order.lock();
        let mut edits = order.commits.unapplied().rev().flat_map(edits_of);
        edits.find_map(|edit| match edit {
            Edit::Put { id, content, .. } if *id == staged => Some(content.clone()),
            _ => None,
        })
    }

    /// A file is written in place by others from here on: a new journal tells no more of what they may overwrite.
    ///
    /// # Errors
    /// As [`Sequencer::append`].
    pub fn settle(&self, file: FileKey) -> OpResult<()> {
        let mut order = self.order.lock();
        order.append(&Record::Settled { file })?;
        for record in order.commits.unapplied_mut() {
            if let Record::Commit { edits, .. } = record {
                edits.retain(
                    |edit| !matches!(edit, Edit::Append { file: Some(f), .. } if *f == file),
                );
            }
        }
        Ok(())
    }

    /// What a new journal tells of each commit that is not in place for good.
    pub fn retell(&self, correct: impl FnMut(&mut Record)) {
        self.order.lock().commits.unapplied_mut().for_each(correct);
    }

    /// Starts a new journal in the place of the old one, with what `carry` makes of the commits that are not in place for
    /// good, and of the last one that is on the medium.
    ///
    /// # Errors
    /// [`JournalError::NameInDoubt`]: what went into the old one would be found by nobody, so it takes nothing more. Any
    /// other: the old one goes on.
    pub fn start_anew(
        &self,
        dir: BorrowedFd<'_>,
        next_id: TxnId,
        carry: impl FnOnce(&[&Record], Seq) -> Vec<Record>,
    ) -> Result<(), JournalError> {
        let mut order = self.order.lock();
        let durable = order.commits.durable();
        let header = Header {
            journal_id: crate::journal::fresh_id(),
            next_id,
            next_seq: order.commits.next(),
            durable_seq: durable,
            ..order.journal.header().clone()
        };
        let unapplied: Vec<&Record> = order.commits.unapplied().collect();
        let carried = carry(&unapplied, durable);
        let created = Journal::create(dir, header, &carried);
        match created {
            Ok(fresh) => {
                order.journal = fresh;
                // It is on the medium, with all that is still of value.
                self.flush.lock().note_done(order.appends);
                order.began = order.journal.len();
                Ok(())
            }
            Err(e) => {
                if matches!(e, JournalError::NameInDoubt { .. }) {
                    order.journal.give_up();
                }
                Err(e)
            }
        }
    }
}

impl Order {
    fn append(&mut self, record: &Record) -> OpResult<()> {
        self.append_all(std::slice::from_ref(record))
    }

    fn append_all(&mut self, records: &[Record]) -> OpResult<()> {
        self.appends += 1;
        self.journal.append_all(records).map_err(|e| {
            log::error!("journal: {e}");
            match e {
                // Nothing of it is there, and there may be room for it later.
                JournalError::Io { source, .. } if is_full(&source) => Errno::NOSPC,
                _ => Errno::IO,
            }
        })
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(crate::types::errno_of(error), Errno::NOSPC | Errno::DQUOT)
}

fn edits_of(record: &Record) -> &[Edit] {
    match record {
        Record::Commit { edits, .. } => edits,
        _ => &[],
    }
}

/// How long each file was before the first of these appends to it.
pub fn first_appends<'a>(records: impl Iterator<Item = &'a Record>) -> HashMap<FileKey, u64> {
    let mut froms = HashMap::new();
    for edit in records.flat_map(edits_of) {
        if let Edit::Append {
            file: Some(file),
            from,
            ..
        } = edit
        {
            froms.entry(*file).or_insert(*from);
        }
    }
    froms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(all: &[u64]) -> Flushing {
        Flushing {
            waiting: all.iter().map(|n| (*n, Arc::default())).collect(),
            ..Flushing::default()
        }
    }

    fn left(flush: &Flushing) -> Vec<u64> {
        flush.waiting.iter().map(|(appends, _)| *appends).collect()
    }

    #[test]
    fn a_flush_wakes_whom_it_has_served_and_one_more_to_begin_the_next() {
        let mut flush = waiting(&[3, 1, 2, 4]);
        flush.end(2, Ok(()));
        assert_eq!(left(&flush), [4]);
        flush.end(2, Err(Errno::IO));
        assert_eq!(left(&flush), [0; 0]);
    }

    #[test]
    fn a_new_journal_wakes_all_that_it_serves() {
        // The one who was woken to begin the next flush has left by then, and begins none.
        let mut flush = waiting(&[2, 3, 9]);
        flush.note_done(3);
        assert_eq!(left(&flush), [9]);
    }
}
