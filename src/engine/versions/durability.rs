//! What is asked of the checkpoint and of the journal, and who waits for them. Rounds are made by `checkpoint`.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::commit::Parked;
use crate::engine::base::state::{sleep, sleep_until};
use crate::engine::{Engine, State};
use crate::journal::Record;
use crate::runtime::Awaited;
use crate::sys::failpoint;
use crate::txn::{Content, KeptContent, Transaction};
use crate::types::{NodeId, OpResult, Seq, now_ns};

/// More commits than this don't wait for the disk at a time.
pub const BACKLOG: u64 = 4096;

/// A close that waits for the disk goes on after this.
pub const BACKLOG_WAIT: Duration = Duration::from_secs(30);

/// Who commits waits so long for a durable close that it would overtake again.
pub const GIVE_WAY: Duration = Duration::from_millis(200);

/// A durable close that others have overtaken: see [`give_way`].
pub struct Overtaken<'a>(&'a Engine);

impl Drop for Overtaken<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.backlog.checkpoint.overtaken -= 1;
        if state.backlog.checkpoint.overtaken == 0 {
            state.wake(Awaited::Overtaken);
        }
    }
}

/// There is something to checkpoint.
pub fn wake_checkpoint(engine: &Engine, state: &mut State) {
    if state.backlog.checkpoint.due.is_none() {
        state.backlog.checkpoint.due = Some(Instant::now() + engine.config.bound.mul_f32(0.2));
        engine.checkpoint_wanted.notify_one();
    }
}

/// Waits until all that is committed so far lies in the backing directory, durably.
pub fn checkpoint_all(engine: &Engine) -> OpResult<()> {
    let mut state = engine.lock();
    let target = state.backlog.checkpoint.next_whole();
    state.backlog.checkpoint.wanted = state.backlog.checkpoint.wanted.max(target);
    state.backlog.checkpoint.write_out = true;
    engine.checkpoint_wanted.notify_one();
    while state.backlog.checkpoint.rounds < target {
        if let Some(failed) = state.backlog.checkpoint.failed {
            return Err(failed);
        }
        sleep(&mut state, &[Awaited::Round]);
    }
    state.backlog.checkpoint.trouble().map_or(Ok(()), Err)
}

/// Waits until a commit survives a power cut, in the backing directory or in the journal.
pub fn await_durable(engine: &Engine, seq: Seq) -> OpResult<()> {
    let mut state = engine.lock();
    state.backlog.checkpoint.awaiting += 1;
    let mut failed = state.backlog.checkpoint.failed;
    let own = state.backlog.checkpoint.next_whole();
    while engine.sequencer.durable() < seq && failed.is_none() {
        if !state.backlog.checkpoint.busy {
            want_round(engine, &mut state);
        }
        sleep(&mut state, &[Awaited::Round]);
        let stuck = state
            .backlog
            .checkpoint
            .stuck
            .filter(|_| state.backlog.checkpoint.rounds >= own);
        failed = state.backlog.checkpoint.failed.or(stuck);
    }
    state.backlog.checkpoint.awaiting -= 1;
    let is_durable = engine.sequencer.durable() >= seq;
    failed.filter(|_| !is_durable).map_or(Ok(()), Err)
}

/// Answers once a commit survives a power cut, waiting for nothing itself.
pub fn when_durable(engine: &Engine, seq: Seq, answer: impl FnOnce(OpResult<()>) + Send + 'static) {
    let mut state = engine.lock();
    if engine.sequencer.durable() >= seq {
        drop(state);
        return answer(Ok(()));
    }
    if let Some(failed) = state.backlog.checkpoint.failed {
        drop(state);
        return answer(Err(failed));
    }
    state.backlog.checkpoint.parked.push(Parked {
        seq,
        answer: Box::new(answer),
    });
    want_round(engine, &mut state);
}

/// Asks for a round, and wakes the checkpoint if it does not know of that, or enough have come.
pub fn want_round(engine: &Engine, state: &mut State) {
    let first = state.backlog.checkpoint.wanted <= state.backlog.checkpoint.rounds;
    let target = state.backlog.checkpoint.next_whole();
    state.backlog.checkpoint.wanted = state.backlog.checkpoint.wanted.max(target);
    if first || state.backlog.checkpoint.is_worth_a_round() {
        engine.checkpoint_wanted.notify_one();
    }
}

/// A close waits while too many commits wait for the disk: each holds descriptors and space.
/// Not for ever, and not for a disk that is full.
pub fn await_backlog(engine: &Engine, state: &mut parking_lot::MutexGuard<'_, State>) {
    let begun = Instant::now();
    while has_backlog(engine, state) && begun.elapsed() < BACKLOG_WAIT {
        state.backlog.checkpoint.due = Some(Instant::now());
        engine.checkpoint_wanted.notify_one();
        sleep_until(state, &[Awaited::Round], begun + BACKLOG_WAIT);
    }
}

/// A durable close needs a moment in which all that was committed is on the medium: whoever would
/// commit lets it have one.
pub fn give_way(state: &mut parking_lot::MutexGuard<'_, State>) {
    let until = Instant::now() + GIVE_WAY;
    if failpoint::mutant("C7-way") {
        return;
    }
    while state.backlog.checkpoint.overtaken > 0 && state.backlog.checkpoint.trouble().is_none() {
        if !sleep_until(state, &[Awaited::Overtaken, Awaited::Round], until) {
            return;
        }
    }
}

/// Whether so many commits wait for the disk that the next should wait, too.
pub fn has_backlog(engine: &Engine, state: &State) -> bool {
    let most = BACKLOG.min(engine.config.descriptors / 8);
    let most = failpoint::number("COMMITFS_BACKLOG", most);
    engine.sequencer.backlog() > most && state.backlog.checkpoint.trouble().is_none()
}

/// Whether the data of every commit so far is on the medium once the journal is.
pub fn all_synced(engine: &Engine, state: &State) -> bool {
    !state.backlog.unsynced.has_dirs()
        && !state.backlog.unsynced.has_appended()
        && !state.backlog.checkpoint.takes_unsynced
        && !engine.sequencer.is_barred()
        && state
            .pending
            .iter()
            .all(|(_, p)| (p.synced || p.journalled) && p.unwritten.is_none())
}

/// Every earlier commit's data is on the medium when this returns; their records may still
/// have to be synced with the journal.
pub fn sync_pending(engine: &Engine) -> OpResult<()> {
    let clean = all_synced(engine, &engine.lock());
    if clean || failpoint::mutant("C19-prefix") {
        return Ok(());
    }
    checkpoint_all(engine)
}

/// Marks a directory as changed in place: the next checkpoint makes it durable first, so that the
/// order of commits holds across both ways.
pub(crate) fn mark_dirty(engine: &Engine, state: &mut State, dir: NodeId) {
    if let Ok(fd) = state.nodes.fd(dir) {
        state.backlog.unsynced.note_dir(dir, fd);
    }
    wake_checkpoint(engine, state);
}

/// Makes everything journalled so far durable.
pub fn sync_journal(engine: &Engine) -> OpResult<()> {
    let synced = engine.sequencer.sync();
    synced.inspect_err(|errno| journal_is_lost(engine, &mut engine.lock(), *errno))
}

/// Makes the first appends to the journal durable: see [`Sequencer::sync_to`](crate::commit::Sequencer::sync_to).
pub fn sync_journal_to(engine: &Engine, appends: u64) -> OpResult<()> {
    if failpoint::mutant("C7-inlined-flush") {
        return Ok(());
    }
    let synced = engine.sequencer.sync_to(appends);
    synced.inspect_err(|errno| journal_is_lost(engine, &mut engine.lock(), *errno))
}

/// Makes everything journalled so far durable for who holds the state.
pub fn sync_journal_now(engine: &Engine, state: &mut State) -> OpResult<()> {
    let synced = engine.sequencer.sync();
    synced.inspect_err(|errno| journal_is_lost(engine, state, *errno))
}

/// A second try would be told that all is well, which proves nothing.
pub fn journal_is_lost(engine: &Engine, state: &mut State, errno: Errno) {
    log::error!("the journal can't be made durable: {errno}; new commits are refused");
    state.fail_checkpoint(errno);
    engine.checkpoint_wanted.notify_one();
}

/// That a transaction has begun, as the journal is told.
pub fn begin_record(state: &State, txn: &Transaction, claim: bool) -> Record {
    Record::Begin {
        id: txn.staging_id,
        path: state.nodes.path(txn.dentry()).unwrap_or_default(),
        claim,
        pid: txn.participants.opener(),
        started_ns: now_ns(),
    }
}

impl<'a> Overtaken<'a> {
    pub(in crate::engine) fn new(engine: &'a Engine, state: &mut State) -> Overtaken<'a> {
        state.backlog.checkpoint.overtaken += 1;
        Overtaken(engine)
    }
}

/// Has the content on the medium, once the journal is: a small one in the journal itself.
pub fn keep(engine: &Engine, content: &mut Content) -> OpResult<KeptContent> {
    if !failpoint::feature_off("inline_content")
        && let Some((content, whole)) = content.inline()?
        && engine
            .sequencer
            .reserve(whole.bytes.len() as u64 + AHEAD)
            .is_ok()
    {
        return Ok(KeptContent::in_journal(content, whole));
    }
    let described = content.fsync()?;
    failpoint::sync("C7-sync-staging", || engine.store.sync_staging_dir())?;
    Ok(KeptContent::on_medium(described))
}

/// Room in the journal for what is told with a content.
pub const AHEAD: u64 = 16 << 10;
