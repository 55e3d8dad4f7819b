//! Brings committed versions into the backing directory, once their data is durable.
//!
//! One round, for all commits up to some number N:
//! 1. directories changed in place before: fsync
//! 2. the data of every pending version: fdatasync
//! 3. the journal: `Durable{N}`, fdatasync
//! 4. every pending version: rename from staging to its name
//! 5. the directories: fsync; where a rename may come to the medium by halves, staging, too
//! 6. the journal is started anew when it has grown
//!
//! A crash before 3 leaves the backing directory as it was, and recovery goes by checksums. A crash
//! after 3 is repaired by doing 4 again: a staging file that is gone has been renamed already.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::state::{sleep, sleep_until};
use super::wakeups::Awaited;
use super::{Engine, Parked, State};
use crate::journal::{Edit, JournalError, Record};
use crate::namespace::Pending;
use crate::sys::{at, failpoint, spare};
use crate::txn::Transaction;
use crate::types::{Dentry, NodeId, OpResult, Seq, TxnId, mtime_ns, now_ns};

/// The journal is started anew above this size.
const ROTATE: u64 = 4 << 20;

/// See [`ROTATE`]; tests lower it.
pub(super) fn rotate_at() -> u64 {
    failpoint::number("COMMITFS_JOURNAL_LIMIT", ROTATE)
}

/// More commits than this don't wait for the disk at a time.
const BACKLOG: u64 = 4096;
/// A close that waits for the disk goes on after this.
const BACKLOG_WAIT: Duration = Duration::from_secs(30);
/// Who commits waits so long for a durable close that it would overtake again.
const GIVE_WAY: Duration = Duration::from_millis(200);
/// A round that is asked for waits so long for others who are likely to ask for one, too.
const GATHER: Duration = Duration::from_micros(300);
/// A round that could not be finished is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// A document's text is written to its file after this, if nobody has asked for it before.
const TEXT_DELAY: Duration = Duration::from_millis(500);

/// A version to be applied.
struct CheckpointItem {
    dentry: Dentry,
    id: TxnId,
    file: Arc<File>,
    synced: bool,
}

impl CheckpointItem {
    /// What can be applied of a name: a document that is not written out builds on what it has
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
enum Broken {
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

/// Directories that pending versions will be moved into. One that is gone has no need of a sync.
fn directories_of(state: &State) -> OpResult<HashMap<NodeId, Arc<File>>> {
    let mut dirs = HashMap::new();
    for (dentry, _) in state.pending.iter() {
        match spare::open(|| state.nodes.fd(dentry.dir)) {
            Ok(fd) => drop(dirs.insert(dentry.dir, fd)),
            Err(e) if spare::is_passing(e) => return Err(e),
            Err(_) => {}
        }
    }
    Ok(dirs)
}

struct Round {
    upto: Seq,
    /// There are commits that are not known to be on the medium.
    commits: bool,
    /// See [`CheckpointRequest::barred`](super::state::CheckpointRequest::barred).
    barred: bool,
    items: Vec<CheckpointItem>,
    dirs: HashMap<NodeId, Arc<File>>,
    /// Directories that the items come into.
    into: OpResult<HashMap<NodeId, Arc<File>>>,
    appended: Vec<(NodeId, Seq, Arc<File>)>,
}

/// Whether a new journal may take the old one's place: it says nothing of what was removed, moved or made
/// in the backing directory, which has to be on the medium then.
pub(super) fn may_rotate(state: &State) -> bool {
    !state.checkpoint.busy && !state.unsynced.has_dirs() && !state.checkpoint.barred
}

impl Engine {
    pub(super) fn start_checkpoint(self: &Arc<Self>) -> OpResult<()> {
        let engine = self.clone();
        std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || engine.checkpoint_loop())
            .map(drop)
            .map_err(|e| crate::types::errno_of(&e))
    }

    /// There is something to checkpoint.
    pub(super) fn wake_checkpoint(&self, state: &mut State) {
        if state.checkpoint.due.is_none() {
            state.checkpoint.due = Some(Instant::now() + self.config.bound.mul_f32(0.2));
            self.checkpoint_wanted.notify_one();
        }
    }

    fn checkpoint_loop(&self) {
        let mut state = self.lock();
        let mut gathering: Option<Instant> = None;
        loop {
            let work = !state.pending.is_empty()
                || !state.commits.are_durable()
                || !state.unsynced.is_empty();
            let wanted = state.checkpoint.wanted > state.checkpoint.rounds;
            let due = state
                .checkpoint
                .due
                .is_some_and(|due| due <= Instant::now());
            if state.checkpoint.stop && !work {
                state.checkpoint.rounds += 1;
                state.wake(Awaited::Round);
                return;
            }
            if state.checkpoint.failed.is_some() && !state.checkpoint.stop {
                state = self.give_answers(state, usize::MAX);
                self.checkpoint_wanted.wait(&mut state);
            } else if wanted
                && !state.checkpoint.is_worth_a_round()
                && gathering.is_none_or(|since| since.elapsed() < GATHER)
            {
                // Others are about to come, and one wait for the disk serves all.
                let since = *gathering.get_or_insert_with(Instant::now);
                self.checkpoint_wanted
                    .wait_until(&mut state, since + GATHER);
            } else if wanted
                || (work && (due || state.checkpoint.stop || state.checkpoint.due.is_none()))
            {
                gathering = None;
                let waiting = state.checkpoint.waiting();
                state = self.round(state);
                state.checkpoint.usual = state.checkpoint.waiting();
                state = self.give_answers(state, waiting);
                if state.checkpoint.stop && state.checkpoint.failed.is_some() {
                    return;
                }
            } else if let Some(due) = state.checkpoint.due.filter(|_| work) {
                self.checkpoint_wanted.wait_until(&mut state, due);
            } else {
                // What became due during a round may have been done by that.
                state.checkpoint.due = None;
                self.checkpoint_wanted.wait(&mut state);
            }
        }
    }

    /// Gives the answers that waited for what is durable now; and, where the last round failed,
    /// the first `asked`, for which it was.
    fn give_answers<'a>(
        &'a self,
        mut state: parking_lot::MutexGuard<'a, State>,
        asked: usize,
    ) -> parking_lot::MutexGuard<'a, State> {
        let durable = state.commits.durable();
        let answers = state.checkpoint.answers(durable, asked);
        if answers.is_empty() {
            return state;
        }
        drop(state);
        for (parked, result) in answers {
            (parked.answer)(result);
        }
        self.lock()
    }

    fn round<'a>(
        &'a self,
        mut state: parking_lot::MutexGuard<'a, State>,
    ) -> parking_lot::MutexGuard<'a, State> {
        state.checkpoint.busy = true;
        state.checkpoint.due = None;
        let all = std::mem::take(&mut state.checkpoint.write_out) || state.checkpoint.stop;
        drop(state);
        let delay = match all {
            true => Duration::ZERO,
            false => self.text_delay(),
        };
        let texts = self.documents.unwritten_for(delay);
        let mut written = Ok(());
        for dentry in &texts {
            written = written.and(self.write_out(dentry));
        }
        // What is being appended right now is either journalled and written, or neither.
        let appends = self.appends.lock();
        let mut state = self.lock();
        state.checkpoint.taken = state.commits.last();
        let round = Round {
            upto: state.commits.last(),
            items: state
                .pending
                .iter()
                .filter_map(CheckpointItem::of)
                .collect(),
            into: directories_of(&state),
            commits: !state.commits.are_durable(),
            barred: std::mem::take(&mut state.checkpoint.barred),
            dirs: state.unsynced.take_dirs(),
            appended: state.unsynced.appended(),
        };
        drop(state);
        drop(appends);
        let result = self.run_round(&round);
        let result = result.map(|stuck| stuck.or(written.err()));
        let mut state = self.lock();
        state.checkpoint.busy = false;
        state.checkpoint.rounds += 1;
        state.checkpoint.barred |= round.barred && result.is_err();
        match result {
            Ok(stuck) => {
                state.checkpoint.stuck = stuck;
                self.after_round(&mut state, &round);
                if stuck.is_none() {
                    self.store.keep_reserve().ok();
                }
            }
            Err(Broken::Later(errno)) => {
                log::error!("commits wait to be brought into place: {errno}; it is tried again");
                state.checkpoint.stuck = Some(errno);
                state.checkpoint.due = Some(Instant::now() + AGAIN);
                state.unsynced.put_back_dirs(round.dirs);
                // What is in place already is no item of the next round.
                state
                    .unsynced
                    .put_back_dirs(round.into.into_iter().flatten());
            }
            Err(Broken::Lost(errno)) => {
                log::error!(
                    "commits can't be made durable: {errno}; they are kept in .commitfs/staging, and new ones are refused"
                );
                state.checkpoint.failed = Some(errno);
                state.unsynced.put_back_dirs(round.dirs);
            }
        }
        spare::fill();
        state.wake(Awaited::Round);
        state
    }

    fn run_round(&self, round: &Round) -> Result<Option<Errno>, Broken> {
        let mut stuck = None;
        failpoint::crash_point("checkpoint-begun");
        failpoint::delay("COMMITFS_ROUND_DELAY_MS");
        let into = round.into.as_ref().map_err(|e| Broken::of_open(*e))?;
        failpoint::sync("C19-sync-dirs-before", || {
            self.sync_dirs(round.dirs.values())
        })
        .map_err(Broken::of_open)?;
        let covers = round.barred && !failpoint::mutant("C19-covered");
        if round.commits || covers || !round.items.is_empty() || !round.appended.is_empty() {
            let appended: Vec<_> = round.appended.iter().map(|(_, _, f)| &**f).collect();
            failpoint::sync("C19-sync-appends", || at::sync_files(&appended))
                .map_err(Broken::of_open)?;
            if !round.items.is_empty() {
                self.sync_items(&round.items).map_err(Broken::of_open)?;
            }
            failpoint::crash_point("data-synced");
            self.append(&Record::Durable { seq: round.upto })
                .map_err(Broken::of_append)?;
            self.sync_journal().map_err(Broken::of_open)?;
            failpoint::crash_point("durable-journalled");
            for item in &round.items {
                stuck = self.apply(item).err().or(stuck);
                failpoint::crash_point("applied-one");
            }
        }
        failpoint::crash_point("applied-all");
        failpoint::sync("C19-sync-dirs-after", || self.sync_dirs(into.values()))
            .map_err(Broken::of_open)?;
        if !round.items.is_empty() {
            failpoint::sync("C19-sync-staging-after", || self.store.sync_moved_away())
                .map_err(Broken::of_open)?;
        }
        failpoint::crash_point("dirs-synced");
        Ok(stuck)
    }

    fn sync_items(&self, items: &[CheckpointItem]) -> OpResult<()> {
        let files: Vec<_> = items
            .iter()
            .filter(|i| !i.synced)
            .map(|i| &*i.file)
            .collect();
        failpoint::sync("C19-sync-data", || at::sync_files(&files))?;
        failpoint::sync("C19-sync-staging", || self.store.sync_staging_dir())
    }

    fn sync_dirs<'a>(&self, dirs: impl Iterator<Item = &'a Arc<File>>) -> OpResult<()> {
        use std::os::fd::AsFd;
        // Opening one may fail for the moment.
        let sync = |dir: &Arc<File>| {
            spare::open(|| failpoint::fail_point("C19-open-dir"))?;
            at::sync_dir(dir.as_fd())
        };
        dirs.map(sync).fold(Ok(()), spare::graver)
    }

    /// Moves one version to its name, unless it was moved or dropped since.
    fn apply(&self, item: &CheckpointItem) -> OpResult<()> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(pending) = state.pending.get(item.dentry.dir, &item.dentry.name) else {
            return Ok(());
        };
        let newest = pending.id == item.id && pending.unwritten.is_none();
        if !newest && pending.superseded.iter().all(|s| s.id != item.id) {
            return Ok(());
        }
        let (node, version) = (pending.node, pending.version);
        let dir = spare::open(|| self.dir_fd(state, item.dentry.dir))?;
        let told = state
            .nodes
            .get(node)
            .and_then(|n| self.attr_of(state, n).ok());
        let told = told.filter(|_| newest).map(|attr| attr.stat);
        match &told {
            Some(told) => crate::txn::mark_applied(&*item.file, version, told),
            None if newest => crate::txn::mark_version(&*item.file, version),
            None => {}
        }
        // Freeing the old file's blocks takes long when it is large: not under the lock.
        let old = at::open_path(&*dir, &item.dentry.name).ok();
        let old_stat = old.as_ref().and_then(|fd| at::stat(fd).ok());
        let parent = state.nodes.get(item.dentry.dir);
        let dir_told = parent.and_then(|n| self.attr_of(state, n).ok());
        let applied = self.store.apply(item.id, &*dir, &item.dentry.name);
        let mut outdated: Vec<TxnId> = Vec::new();
        if applied.is_ok() {
            if let Some(old) = old_stat.filter(|s| s.st_nlink == 1) {
                state.nodes.unlinked((old.st_dev, old.st_ino));
            }
            if let Some(pending) = state.pending.get_mut(item.dentry.dir, &item.dentry.name) {
                outdated = pending.outdated_by(item.id);
            }
            self.uncover(state, old_stat);
            if let Some(told) = dir_told {
                self.keep_dir_times(state, item.dentry.dir, &told.stat);
            }
        }
        match &applied {
            Ok(()) if newest => {
                state.pending.remove(item.dentry.dir, &item.dentry.name);
                if let (Some(node), Some(told), Ok(now)) =
                    (state.nodes.get_mut(node), told, at::stat(&*item.file))
                {
                    node.ctime_shift = Some(Box::new((
                        (now.st_ctime, now.st_ctime_nsec),
                        (told.st_ctime, told.st_ctime_nsec),
                    )));
                }
                state
                    .nodes
                    .go_by(node, at::open_path(&*dir, &item.dentry.name));
                self.unpin(state, node, false);
            }
            Ok(()) => {}
            Err(e) => log::error!(
                "{}: can't be put in place: {e}; kept in .commitfs/staging",
                self.show(state, &item.dentry)
            ),
        }
        drop(guard);
        self.defer_close(old.map(|fd| Arc::new(fd.into())));
        for id in outdated {
            self.remove_staging(id);
        }
        applied
    }

    /// What stood under the name has one link less in the backing directory, too.
    fn uncover(&self, state: &mut State, old: Option<rustix::fs::Stat>) {
        let key = old.map(|s| (s.st_dev, s.st_ino));
        let Some(id) = key.and_then(|key| state.nodes.known(key)) else {
            return;
        };
        if let Some(node) = state.nodes.get_mut(id) {
            node.covered = node.covered.saturating_sub(1);
            let fd = state.nodes.reap(id);
            self.defer_close(fd);
        }
    }

    /// Programs saw the name appear when it was committed; its directory doesn't change now.
    fn keep_dir_times(&self, state: &mut State, dir: NodeId, told: &rustix::fs::Stat) {
        if failpoint::mutant("C8-dir-times") {
            return;
        }
        let Ok(fd) = state.nodes.fd(dir) else {
            return;
        };
        // Best effort: only the owner may.
        at::set_mtime(&*fd, mtime_ns(told)).ok();
        if let (Ok(now), Some(node)) = (at::stat(&*fd), state.nodes.get_mut(dir)) {
            node.ctime_shift = Some(Box::new((
                (now.st_ctime, now.st_ctime_nsec),
                (told.st_ctime, told.st_ctime_nsec),
            )));
        }
    }

    fn after_round(&self, state: &mut State, round: &Round) {
        let upto = round.upto;
        let last = state.commits.last();
        state.metrics.note_durable(upto, last, Instant::now());
        for (node, seq, _) in &round.appended {
            if state.unsynced.end_append(*node, *seq) {
                if let Some(n) = state.nodes.get_mut(*node) {
                    n.added_to = false;
                }
                let fd = state.nodes.reap(*node);
                self.defer_close(fd);
            }
        }
        for id in state.unsynced.take_deletes(upto) {
            self.remove_staging(id);
        }
        let mut staged: Vec<TxnId> = Vec::new();
        for (_, p) in state.pending.iter() {
            staged.push(p.id);
            staged.extend(p.superseded.iter().map(|s| s.id));
        }
        let is_staged = |edit: &Edit| matches!(edit, Edit::Put { id, .. } | Edit::Patch { id, .. } if staged.contains(id));
        state.commits.note_durable(
            upto,
            |record| matches!(record, Record::Commit { edits, .. } if edits.iter().any(is_staged)),
        );
        if !state.pending.is_empty() || state.unsynced.has_appended() {
            self.wake_checkpoint(state);
        }
        if self.journal.lock().len() > rotate_at() && may_rotate(state) {
            self.rotate(state);
        }
    }

    /// Starts a new journal with what is still open.
    pub(super) fn rotate(&self, state: &mut State) {
        // What was promised before a commit that a power cut may take stands before it. Then the
        // commits: what else is carried of a transaction is newer than its name's last version.
        let open = state.txns.values().filter(|t| !t.phase.is_reserved());
        let before = |t: &&Transaction| {
            t.promise
                .overtaken()
                .is_some_and(|by| by > state.commits.durable())
        };
        let (older, newer): (Vec<_>, Vec<_>) = open.partition(before);
        let records = |txns: Vec<&Transaction>| {
            let records = txns.into_iter().flat_map(|t| self.records_of(state, t));
            records.collect::<Vec<Record>>()
        };
        let (older, newer) = (records(older), records(newer));
        let (unapplied, durable) = (state.commits.unapplied(), state.commits.durable());
        let mut carried = state.growing.carry(unapplied.clone(), durable);
        carried.extend(older);
        carried.extend(unapplied.cloned());
        carried.extend(newer);
        carried.extend(state.txns.aborting().cloned());
        let mut journal = self.journal.lock();
        let mut header = journal.header().clone();
        header.journal_id = crate::journal::fresh_id();
        header.next_id = state.txns.last_id().next();
        header.next_seq = state.commits.next();
        header.durable_seq = state.commits.durable();
        match crate::journal::Journal::create(
            std::os::fd::AsFd::as_fd(&self.store.state),
            header,
            &carried,
        ) {
            Ok(fresh) => {
                *journal = fresh;
                state.growing.carried();
            }
            Err(e @ JournalError::NameInDoubt { .. }) => {
                // What went into the old one would be found by nobody.
                log::error!("{e}; new commits are refused");
                journal.give_up();
                state.fail_checkpoint(Errno::IO);
            }
            Err(e) => log::error!("journal can't be started anew: {e}; the old one goes on"),
        }
        failpoint::crash_point("journal-rotated");
    }

    /// Waits until all that is committed so far lies in the backing directory, durably.
    pub(super) fn checkpoint_all(&self) -> OpResult<()> {
        let mut state = self.lock();
        let target = state.checkpoint.rounds + if state.checkpoint.busy { 2 } else { 1 };
        state.checkpoint.wanted = state.checkpoint.wanted.max(target);
        state.checkpoint.write_out = true;
        self.checkpoint_wanted.notify_one();
        while state.checkpoint.rounds < target {
            if let Some(failed) = state.checkpoint.failed {
                return Err(failed);
            }
            sleep(&mut state, &[Awaited::Round]);
        }
        state
            .checkpoint
            .failed
            .or(state.checkpoint.stuck)
            .map_or(Ok(()), Err)
    }

    /// Waits until a commit survives a power cut, in the backing directory or in the journal.
    pub(super) fn await_durable(&self, seq: Seq) -> OpResult<()> {
        let mut state = self.lock();
        state.checkpoint.awaiting += 1;
        let mut failed = None;
        let own = state.checkpoint.rounds + if state.checkpoint.busy { 2 } else { 1 };
        while state.commits.durable() < seq && failed.is_none() {
            if !state.checkpoint.busy {
                self.want_round(&mut state);
            }
            sleep(&mut state, &[Awaited::Round]);
            let stuck = state
                .checkpoint
                .stuck
                .filter(|_| state.checkpoint.rounds >= own);
            failed = state.checkpoint.failed.or(stuck);
        }
        state.checkpoint.awaiting -= 1;
        failed.map_or(Ok(()), Err)
    }

    /// Answers once a commit survives a power cut, waiting for nothing itself.
    pub(super) fn when_durable(
        &self,
        seq: Seq,
        answer: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let mut state = self.lock();
        if state.commits.durable() >= seq {
            drop(state);
            return answer(Ok(()));
        }
        if let Some(failed) = state.checkpoint.failed {
            drop(state);
            return answer(Err(failed));
        }
        state.checkpoint.parked.push(Parked {
            seq,
            answer: Box::new(answer),
        });
        self.want_round(&mut state);
    }

    /// Asks for a round, and wakes the checkpoint if it does not know of that, or enough have come.
    pub(super) fn want_round(&self, state: &mut State) {
        let first = state.checkpoint.wanted <= state.checkpoint.rounds;
        let target = state.checkpoint.rounds + if state.checkpoint.busy { 2 } else { 1 };
        state.checkpoint.wanted = state.checkpoint.wanted.max(target);
        if first || state.checkpoint.is_worth_a_round() {
            self.checkpoint_wanted.notify_one();
        }
    }

    /// How long a document's text may stay in memory and in the journal alone.
    pub(super) fn text_delay(&self) -> Duration {
        TEXT_DELAY.min(self.config.bound / 2)
    }

    /// A close waits while too many commits wait for the disk: each holds descriptors and space.
    /// Not for ever, and not for a disk that is full.
    pub(super) fn await_backlog(&self, state: &mut parking_lot::MutexGuard<'_, State>) {
        let begun = Instant::now();
        while self.has_backlog(state) && begun.elapsed() < BACKLOG_WAIT {
            state.checkpoint.due = Some(Instant::now());
            self.checkpoint_wanted.notify_one();
            sleep_until(state, &[Awaited::Round], begun + BACKLOG_WAIT);
        }
    }

    /// A durable close needs a moment in which all that was committed is on the medium: whoever would
    /// commit lets it have one.
    pub(super) fn give_way(&self, state: &mut parking_lot::MutexGuard<'_, State>) {
        let until = Instant::now() + GIVE_WAY;
        if failpoint::mutant("C7-way") {
            return;
        }
        while state.checkpoint.overtaken > 0
            && state.checkpoint.failed.or(state.checkpoint.stuck).is_none()
        {
            if !sleep_until(state, &[Awaited::Overtaken, Awaited::Round], until) {
                return;
            }
        }
    }

    /// Whether so many commits wait for the disk that the next should wait, too.
    pub(super) fn has_backlog(&self, state: &State) -> bool {
        let most = BACKLOG.min(self.config.descriptors / 8);
        let most = failpoint::number("COMMITFS_BACKLOG", most);
        state.commits.backlog() > most
            && state.checkpoint.failed.or(state.checkpoint.stuck).is_none()
    }

    /// Whether the data of every commit so far is on the medium.
    pub(super) fn all_synced(&self, state: &State) -> bool {
        !state.unsynced.has_dirs()
            && !state.unsynced.has_appended()
            && !state.checkpoint.busy
            && !state.checkpoint.barred
            && state
                .pending
                .iter()
                .all(|(_, p)| p.synced && p.unwritten.is_none())
    }

    /// Every earlier commit's data is on the medium when this returns; their records may still
    /// have to be synced with the journal.
    pub(super) fn sync_pending(&self) -> OpResult<()> {
        let clean = self.all_synced(&self.lock());
        if clean || failpoint::mutant("C19-prefix") {
            return Ok(());
        }
        self.checkpoint_all()
    }
}

impl Engine {
    /// That a transaction has begun, as the journal is told.
    pub(super) fn begin_record(state: &State, txn: &Transaction, claim: bool) -> Record {
        Record::Begin {
            id: txn.staging_id,
            path: state.nodes.path(txn.dentry()).unwrap_or_default(),
            claim,
            pid: txn.participants.opener(),
            started_ns: now_ns(),
        }
    }

    /// What a new journal must say of an open transaction.
    pub(super) fn records_of(&self, state: &State, txn: &Transaction) -> Vec<Record> {
        let id = txn.staging_id;
        if txn.is_unlinked() {
            return vec![Record::Retarget { id, path: None }];
        }
        let mut records = vec![Engine::begin_record(state, txn, txn.is_there())];
        let is_newer = |by| by <= state.commits.durable() || failpoint::mutant("C7-carried");
        if txn.promise.overtaken().is_some_and(is_newer) {
            return records;
        }
        if let Some(content) = txn.promise.told() {
            records.push(Record::Fsynced {
                id,
                content: content.clone(),
            });
        }
        if let Some(ready) = txn.preparation.ready().filter(|_| txn.is_acknowledged()) {
            if ready.synced && ready.merged.is_some() {
                let (id, content) = (ready.id, ready.content.clone());
                records.push(Record::Fsynced { id, content });
            }
            records.push(Record::Prepared {
                id: ready.id,
                sure: true,
                content: ready.content.clone(),
                path: state.nodes.path(txn.dentry()).unwrap_or_default(),
                version: ready.version,
            });
        }
        records
    }
}
