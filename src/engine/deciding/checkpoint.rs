//! When a round of the checkpoint is made, what it finds, and who waits for it. What one does: [`Round`].

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::commit::{Broken, CheckpointItem, Round, Todo};
use crate::engine::base::directories;
use crate::engine::deciding::rounds;
use crate::engine::documents::texts;
use crate::engine::meaning::stat;
use crate::engine::versions::{durability, publish, room};
use crate::engine::{Engine, State};
use crate::journal::{Edit, JournalError, Record};
use crate::runtime::Awaited;
use crate::sys::{at, failpoint, spare};
use crate::txn::Transaction;
use crate::types::{NodeId, OpResult, TxnId, mtime_ns};

/// The journal is started anew above this size; tests lower it.
const ROTATE: u64 = 4 << 20;
/// A round that could not be finished is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether a new journal is to take the old one's place, and may: it says nothing of what was removed, moved or made
/// in the backing directory, which has to be on the medium then.
pub fn should_rotate(engine: &Engine, state: &State) -> bool {
    let limit = failpoint::number("COMMITFS_JOURNAL_LIMIT", ROTATE);
    engine.sequencer.is_outgrown(limit)
        && !state.backlog.checkpoint.busy
        && !state.backlog.unsynced.has_dirs()
        && !engine.sequencer.is_barred()
}

pub fn start_checkpoint(engine: &Arc<Engine>) -> OpResult<()> {
    let engine = engine.clone();
    std::thread::Builder::new()
        .name("checkpoint".into())
        .spawn(move || checkpoint_loop(&engine))
        .map(drop)
        .map_err(|e| crate::types::errno_of(&e))
}

fn checkpoint_loop(engine: &Engine) {
    let mut state = engine.lock();
    while !state.backlog.checkpoint.abandoned {
        let work = !state.pending.is_empty()
            || !engine.sequencer.are_durable()
            || !state.backlog.unsynced.is_empty();
        match state.backlog.checkpoint.next(work, Instant::now()) {
            Todo::Leave => {
                state.backlog.checkpoint.rounds += 1;
                state.wake(Awaited::Round);
                return;
            }
            Todo::Refuse => {
                state = give_answers(engine, state, usize::MAX);
                engine.checkpoint_wanted.wait(&mut state);
            }
            Todo::Round => {
                let waiting = state.backlog.checkpoint.waiting();
                state = round(engine, state);
                state.backlog.checkpoint.usual = state.backlog.checkpoint.waiting();
                state = give_answers(engine, state, waiting);
                if state.backlog.checkpoint.stop && state.backlog.checkpoint.failed.is_some() {
                    return;
                }
            }
            Todo::Gather(until) | Todo::Until(until) => {
                engine.checkpoint_wanted.wait_until(&mut state, until);
            }
            Todo::Idle => engine.checkpoint_wanted.wait(&mut state),
        }
    }
}

/// Gives the answers that waited for what is durable now; and, where the last round failed,
/// the first `asked`, for which it was.
fn give_answers<'a>(
    engine: &'a Engine,
    mut state: parking_lot::MutexGuard<'a, State>,
    asked: usize,
) -> parking_lot::MutexGuard<'a, State> {
    let durable = engine.sequencer.durable();
    let answers = state.backlog.checkpoint.answers(durable, asked);
    if answers.is_empty() {
        return state;
    }
    drop(state);
    for (parked, result) in answers {
        (parked.answer)(result);
    }
    engine.lock()
}

fn round<'a>(
    engine: &'a Engine,
    mut state: parking_lot::MutexGuard<'a, State>,
) -> parking_lot::MutexGuard<'a, State> {
    state.backlog.checkpoint.busy = true;
    state.backlog.checkpoint.due = None;
    let all =
        std::mem::take(&mut state.backlog.checkpoint.write_out) || state.backlog.checkpoint.stop;
    drop(state);
    let written = write_out_texts(engine, all);
    let round = take_along(engine);
    let result = round.run(&engine.store, &engine.sequencer, |item| apply(engine, item));
    let result = result.map(|stuck| stuck.or(written.err()));
    let mut state = engine.lock();
    state.backlog.checkpoint.busy = false;
    state.backlog.checkpoint.takes_unsynced = false;
    state.backlog.checkpoint.rounds += 1;
    engine.sequencer.end_round(round.start, result.is_ok());
    match result {
        Ok(stuck) => {
            state.backlog.checkpoint.stuck = stuck;
            after_round(engine, &mut state, &round);
            if stuck.is_none() {
                engine.store.keep_reserve().ok();
            }
        }
        Err(why) => note_broken(&mut state, round, why),
    }
    spare::fill();
    state.wake(Awaited::Round);
    state
}

/// Moves one version to its name, unless it was moved or dropped since.
fn apply(engine: &Engine, item: &CheckpointItem) -> OpResult<()> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let Some(pending) = state.pending.get(item.dentry.dir, &item.dentry.name) else {
        return Ok(());
    };
    let newest = pending.id == item.id && pending.unwritten.is_none();
    if !newest && pending.superseded.iter().all(|s| s.id != item.id) {
        return Ok(());
    }
    let (node, version) = (pending.node, pending.version);
    let dir = spare::open(|| engine.dir_fd(state, item.dentry.dir))?;
    let told = state
        .nodes
        .get(node)
        .and_then(|n| stat::attr_of(state, n).ok());
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
    let dir_told = parent.and_then(|n| stat::attr_of(state, n).ok());
    let applied = engine.store.apply(item.id, &*dir, &item.dentry.name);
    let mut outdated: Vec<TxnId> = Vec::new();
    if applied.is_ok() {
        if let Some(old) = old_stat.filter(|s| s.st_nlink == 1) {
            state.nodes.unlinked((old.st_dev, old.st_ino));
        }
        if let Some(pending) = state.pending.get_mut(item.dentry.dir, &item.dentry.name) {
            outdated = pending.outdated_by(item.id);
        }
        uncover(engine, state, old_stat);
        if let Some(told) = dir_told {
            keep_dir_times(state, item.dentry.dir, &told.stat);
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
            publish::unpin(engine, state, node, false);
        }
        Ok(()) => {}
        Err(e) => log::error!(
            "{}: can't be put in place: {e}; kept in .commitfs/staging",
            engine.show(state, &item.dentry)
        ),
    }
    drop(guard);
    engine.defer_close(old.map(|fd| Arc::new(fd.into())));
    for id in outdated {
        room::remove_staging(engine, id);
    }
    applied
}

/// What stood under the name has one link less in the backing directory, too.
fn uncover(engine: &Engine, state: &mut State, old: Option<rustix::fs::Stat>) {
    let key = old.map(|s| (s.st_dev, s.st_ino));
    let Some(id) = key.and_then(|key| state.nodes.known(key)) else {
        return;
    };
    if let Some(node) = state.nodes.get_mut(id) {
        node.covered = node.covered.saturating_sub(1);
        let fd = state.nodes.reap(id);
        engine.defer_close(fd);
    }
}

/// Programs saw the name appear when it was committed; its directory doesn't change now.
fn keep_dir_times(state: &mut State, dir: NodeId, told: &rustix::fs::Stat) {
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

fn after_round(engine: &Engine, state: &mut State, round: &Round) {
    let upto = round.start.upto;
    let last = engine.sequencer.last();
    state.tally.metrics.note_durable(upto, last, Instant::now());
    for (node, seq, _) in &round.appended {
        if state.backlog.unsynced.end_append(*node, *seq) {
            if let Some(n) = state.nodes.get_mut(*node) {
                n.added_to = false;
            }
            let fd = state.nodes.reap(*node);
            engine.defer_close(fd);
        }
    }
    for id in state.backlog.unsynced.take_deletes(upto) {
        room::remove_staging(engine, id);
    }
    let mut staged: Vec<TxnId> = Vec::new();
    for (_, p) in state.pending.iter() {
        staged.push(p.id);
        staged.extend(p.superseded.iter().map(|s| s.id));
    }
    // A power cut may take the commit that drops them.
    if !failpoint::mutant("C19-dropped") {
        staged.extend(state.backlog.unsynced.deletes());
    }
    let is_staged = |edit: &Edit| matches!(edit, Edit::Put { id, .. } | Edit::Patch { id, .. } if staged.contains(id));
    engine.sequencer.note_durable(
        upto,
        |record| matches!(record, Record::Commit { edits, .. } if edits.iter().any(is_staged)),
    );
    if !state.pending.is_empty() || state.backlog.unsynced.has_appended() {
        durability::wake_checkpoint(engine, state);
    }
    if should_rotate(engine, state) {
        rotate(engine, state);
    }
}

/// Starts a new journal with what is still open.
pub fn rotate(engine: &Engine, state: &mut State) {
    // What was promised before a commit that a power cut may take stands before it. Then the
    // commits: what else is carried of a transaction is newer than its name's last version.
    let open = state.txns.values().filter(|t| !t.phase.is_reserved());
    let before = |t: &&Transaction| {
        t.promise
            .overtaken()
            .is_some_and(|by| by > engine.sequencer.durable())
    };
    let (older, newer): (Vec<_>, Vec<_>) = open.partition(before);
    let records = |txns: Vec<&Transaction>| {
        let records = txns.into_iter().flat_map(|t| records_of(engine, state, t));
        records.collect::<Vec<Record>>()
    };
    let (older, mut newer) = (records(older), records(newer));
    newer.extend(directories::all_begun(state));
    let complete = rounds::carried(state);
    let (next_id, growing) = (state.txns.last_id().next(), &mut state.backlog.growing);
    let aborting = state.txns.aborting();
    let carry = |unapplied: &[&Record], durable| {
        let mut carried = growing.carry(unapplied, durable);
        carried.extend(older);
        carried.extend(unapplied.iter().copied().cloned());
        carried.extend(newer);
        carried.extend(complete);
        carried.extend(aborting.cloned());
        carried
    };
    let begun = engine
        .sequencer
        .start_anew(engine.store.state.as_fd(), next_id, carry);
    match begun {
        Ok(()) => state.backlog.growing.carried(),
        Err(e @ JournalError::NameInDoubt { .. }) => {
            log::error!("{e}; new commits are refused");
            state.fail_checkpoint(Errno::IO);
        }
        Err(e) => log::error!("journal can't be started anew: {e}; the old one goes on"),
    }
    failpoint::crash_point("journal-rotated");
}

/// What a new journal must say of an open transaction.
pub fn records_of(engine: &Engine, state: &State, txn: &Transaction) -> Vec<Record> {
    let id = txn.staging_id;
    if txn.is_unlinked() {
        return vec![Record::Retarget { id, path: None }];
    }
    let mut records = vec![durability::begin_record(state, txn, txn.is_there())];
    records.extend(rounds::grouped(txn));
    let is_newer = |by| by <= engine.sequencer.durable() || failpoint::mutant("C7-carried");
    if txn.promise.overtaken().is_some_and(is_newer) {
        return records;
    }
    let is_told = |record: &Record| match record {
        Record::Inlined { .. } => !failpoint::mutant("C7-inlined-carried"),
        Record::Withheld { .. } => !failpoint::mutant("C5-carried"),
        _ => true,
    };
    records.extend(txn.promise.records(id).into_iter().filter(is_told));
    if let Some(ready) = txn.preparation.ready().filter(|_| txn.is_acknowledged()) {
        if ready.synced && ready.merged.is_some() {
            let (id, content) = (ready.id, ready.content.clone());
            records.push(Record::Fsynced { id, content });
        }
        let path = state.nodes.path(txn.dentry()).unwrap_or_default();
        records.extend(rounds::promised(state, txn.id, ready, path));
    }
    records
}

fn write_out_texts(engine: &Engine, all: bool) -> OpResult<()> {
    let delay = match all {
        true => Duration::ZERO,
        false => texts::text_delay(engine),
    };
    let mut written = Ok(());
    for dentry in &engine.documents.unwritten_for(delay) {
        written = written.and(texts::write_out(engine, dentry));
    }
    written
}

fn take_along(engine: &Engine) -> Round {
    // What is being appended right now is either journalled and written, or neither.
    let _appends = engine.appends.lock();
    let mut guard = engine.lock();
    let state = &mut *guard;
    state.backlog.checkpoint.takes_unsynced = !durability::all_synced(engine, state);
    let committed = (&state.nodes, &state.pending);
    Round::of(
        engine.sequencer.begin_round(),
        committed,
        &mut state.backlog.unsynced,
    )
}

fn note_broken(state: &mut State, round: Round, why: Broken) {
    match why {
        Broken::Later(errno) => {
            log::error!("commits wait to be brought into place: {errno}; it is tried again");
            state.backlog.checkpoint.stuck = Some(errno);
            state.backlog.checkpoint.due = Some(Instant::now() + AGAIN);
        }
        Broken::Lost(errno) => {
            log::error!(
                "commits can't be made durable: {errno}; they are kept in .commitfs/staging, and new ones are refused"
            );
            state.backlog.checkpoint.failed = Some(errno);
        }
    }
    round.give_back(why, &mut state.backlog.unsynced);
}

/// Tells the journal of a transaction that has begun, or goes on.
pub fn tell_begun(engine: &Engine, state: &State, txn: &Transaction) -> OpResult<()> {
    let begin = durability::begin_record(state, txn, txn.is_there());
    engine.sequencer.append(&begin)?;
    if let Some(grouped) = rounds::grouped(txn) {
        engine.sequencer.append(&grouped)?;
    }
    if txn.is_unlinked() {
        let (id, path) = (txn.staging_id, None);
        engine.sequencer.append(&Record::Retarget { id, path })?;
    }
    Ok(())
}
