//! Rounds of groups (C23): what is saved of a group waits, prepared, until its round is complete. Then all of it is one commit, or
//! all of it goes to rejected, listed as one.
//!
//! What waits holds nothing that others wait for: no writer slot, no turn, no lock. It keeps its node, which its saver sees, its
//! staging file, and the bytes that its record takes in the journal, so that nothing can fail once a round is decided.
//! How savers end is seen by a thread that sleeps while there are no rounds.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::close::{Aborted, leave};
use super::deciding::{has_ended, wake_watch};
use super::publish::commit_all;
use super::{Engine, State};
use crate::conflict::Save;
use crate::group::{End, Entering, GroupRound, Saver, Verdict};
use crate::journal::Record;
use crate::runtime::Awaited;
use crate::store::Unseen;
use crate::sys::{failpoint, pidfd, proc};
use crate::txn::{Abort, Ready, Transaction, WriterSlot};
use crate::types::{OpResult, TxnId};

/// How long the watch sleeps while nothing is told by a saver's end.
const TICK: Duration = Duration::from_millis(50);
/// So many members are published by the dispatcher; lookups wait for the worker that publishes more.
const AT_ONCE: usize = 64;
/// What a member's edit takes in the journal besides its path, and what its editor has written by parts.
const EDIT: u64 = 128;
/// Tries to prepare what others keep overtaking.
const TRIES: usize = 16;

/// What was kept of the journal for those that have left their rounds is kept no more.
fn use_freed(engine: &Engine, state: &mut State) {
    let freed = std::mem::take(&mut state.txns.rounds.freed);
    if freed > 0 {
        engine.sequencer.use_kept(freed);
    }
}

/// A transaction is opened: if its name belongs to a group, it joins the round of its process, or begins one. What waits already
/// is written on.
pub(super) fn enter(engine: &Engine, state: &mut State, id: TxnId) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (pid, dentry) = (txn.participants.opener(), txn.dentry().clone());
    if let Some(round) = txn.round()
        && state
            .txns
            .rounds
            .get(round)
            .is_some_and(|r| !r.is_deciding())
    {
        if txn.phase.is_held()
            && let Some(round) = state.txns.rounds.get_mut(round)
        {
            let freed = round.reopen(&dentry, id, Instant::now());
            state.txns.rounds.freed += freed;
        }
        return;
    }
    let is_member = !txn.visibility.is_claim() && !txn.is_unlinked();
    let Some(membership) = txn.policy.group.clone().filter(|_| is_member) else {
        return;
    };
    if pid == 0 {
        // Nobody can tell whose it is, nor how that ends.
        state.txns.rounds.counts.alone += 1;
        log::info!(
            "{}: saved alone, though a group has it: its process can't be told",
            engine.show(state, &dentry)
        );
        return;
    }
    let entering = Entering {
        membership: &membership,
        dentry: &dentry,
        txn: id,
        pid,
        now: Instant::now(),
    };
    let mut rounds = std::mem::take(&mut state.txns.rounds);
    let descends = |pid, of| proc::is_self_or_descendant(pid, of);
    let round = rounds.enter(&entering, descends, || state.txns.new_id());
    if let Some(round) = rounds.get_mut(round)
        && !round.has_saver(pid)
    {
        let process = pidfd::pidfd(pid).map(Arc::new);
        round.savers.push(Saver {
            pid,
            command: proc::comm(pid).unwrap_or_default(),
            process,
            ended: None,
        });
    }
    state.txns.rounds = rounds;
    wake_watch(state);
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.purpose.join_round(Some(round));
    }
}

/// What the journal is told of a member besides its begin.
pub(super) fn grouped(txn: &Transaction) -> Option<Record> {
    let (id, round) = (txn.staging_id, txn.round()?);
    (!failpoint::mutant("C23-told")).then_some(Record::Grouped { id, round })
}

/// What the journal is told of what a close has prepared: a merge has a number of its own.
fn prepared(txn: &Transaction, ready: &Ready, path: PathBuf) -> Vec<Record> {
    let (id, of_merge) = (ready.id, txn.round().filter(|_| ready.id != txn.staging_id));
    let grouped = of_merge.map(|round| Record::Grouped { id, round });
    let prepared = Record::Prepared {
        id,
        sure: true,
        content: ready.content.clone(),
        path,
        version: ready.version,
    };
    grouped.into_iter().chain([prepared]).collect()
}

/// [`prepared`], and that its round is complete by it: should the daemon end before RELEASE comes, all of it is committed.
pub(super) fn promised(state: &State, id: TxnId, ready: &Ready, path: PathBuf) -> Vec<Record> {
    let Some(txn) = state.txns.get(&id) else {
        return Vec::new();
    };
    let mut records = prepared(txn, ready, path);
    let round = txn.round().and_then(|round| state.txns.rounds.get(round));
    if let Some(round) = round.filter(|round| round.is_complete_with(txn.dentry(), id))
        && !failpoint::mutant("C23-complete")
    {
        let saved = round.saved().filter_map(|id| state.txns.get(&id));
        let others = saved.filter(|t| t.dentry() != txn.dentry());
        let members = others.filter_map(|t| Some(t.preparation.ready()?.id));
        records.push(Record::Complete {
            round: round.id,
            members: members.chain([ready.id]).collect(),
        });
    }
    records
}

/// A member that could be committed waits for its round instead. Gives false if it is none.
pub(super) fn hold(engine: &Engine, state: &mut State, id: TxnId) -> bool {
    use_freed(engine, state);
    let is_open = |state: &State| {
        let txn = state.txns.get(&id);
        let round = txn.and_then(Transaction::round);
        round.filter(|round| {
            state
                .txns
                .rounds
                .get(*round)
                .is_some_and(|r| !r.is_deciding())
        })
    };
    if state.txns.get(&id).is_none_or(|txn| txn.phase.is_held()) {
        return false;
    }
    if is_open(state).is_none() {
        enter(engine, state, id);
        let told = state.txns.get(&id).and_then(grouped);
        if let Some(told) = told {
            engine.sequencer.append(&told).ok();
        }
    }
    let Some((round, txn)) = is_open(state).zip(state.txns.get_mut(&id)) else {
        return false;
    };
    let dentry = txn.dentry().clone();
    let at_end = txn.participants.was_closed_at_end() && !failpoint::mutant("C23-status");
    let closer = txn.participants.last_closer();
    txn.phase.hold();
    let had_slot = std::mem::replace(&mut txn.slot, WriterSlot::none()).is_held();
    let releases = std::mem::take(&mut txn.releases);
    let (node, started) = (txn.node, txn.started);
    let parts = txn
        .preparation
        .ready()
        .and_then(|ready| ready.content.parts.as_ref());
    let parts = parts.map_or(0, |parts| parts.len() as u64 * 20);
    let path = engine.path_of(state, &dentry);
    let bytes = EDIT + path.as_os_str().len() as u64 + parts;
    engine.sequencer.keep(bytes);
    let replaced = state.txns.rounds.get_mut(round).and_then(|round| {
        match at_end {
            true => round.await_end(),
            false => round.note_closed(closer),
        }
        round.save(&dentry, id, bytes, Instant::now())
    });
    if let Some((replaced, bytes)) = replaced {
        engine.sequencer.use_kept(bytes);
        discard(engine, state, replaced);
    }
    engine.end_turn(state, &dentry, id);
    let file = state.file_of(node);
    if had_slot {
        let (path, held) = (engine.show(state, &dentry), started.elapsed());
        state.lock_stats.note(&path, |t| t.holds.observe(held));
    }
    for owner in releases {
        state.locks.release_posix(file, owner);
    }
    engine.note_ended(state, file);
    state.wake(Awaited::Transaction(id));
    state.wake(Awaited::AnyTransaction);
    state.wake_for(id, &dentry);
    decide_at_once(engine, state, round);
    true
}

/// What waited is replaced by a later save of the same round: it ends as if its name had been unlinked.
fn discard(engine: &Engine, state: &mut State, id: TxnId) {
    let Some(txn) = state.txns.get_mut(&id) else {
        return;
    };
    txn.unlink();
    let staged = txn.staging_id;
    engine
        .sequencer
        .append(&Record::Retarget {
            id: staged,
            path: None,
        })
        .ok();
    state.txns.rounds.dropped.push(id);
    wake_watch(state);
}

/// The name of a transaction was unlinked: one that waits has nothing to wait for.
pub(super) fn drop_unlinked(state: &mut State, id: TxnId) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (round, dentry) = (txn.round(), txn.dentry().clone());
    if let Some(round) = round.filter(|_| txn.phase.is_held()) {
        let freed = state.txns.rounds.leave(round, &dentry, id);
        state.txns.rounds.freed += freed;
        state.txns.rounds.dropped.push(id);
        wake_watch(state);
    }
}

/// A transaction gets another name: it joins the round of that, if there is one.
pub(super) fn leave_before_move(state: &mut State, id: TxnId) {
    let txn = state.txns.get(&id);
    let left = txn.and_then(|txn| Some((txn.round()?, txn.dentry().clone())));
    if let Some((round, dentry)) = left {
        let freed = state.txns.rounds.leave(round, &dentry, id);
        state.txns.rounds.freed += freed;
    }
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.purpose.join_round(None);
    }
}

/// A member is not committed: nothing of its round is, unless it is saved again before the end of that.
pub(super) fn refuse(state: &mut State, id: TxnId, why: &Abort) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (round, dentry) = (txn.round(), txn.dentry().clone());
    if let Some(round) = round.and_then(|round| state.txns.rounds.get_mut(round)) {
        let why = format!("{}: {why}", dentry.name.to_string_lossy());
        round.refuse(&dentry, id, why, Instant::now());
        let ids: Vec<TxnId> = round.saved().collect();
        if round.verdict(Instant::now()).is_some() && !failpoint::mutant("C23-refused") {
            let round = round.id;
            close(state, round, &ids);
        }
        wake_watch(state);
    }
}

/// Whether a member is as it was prepared, and nothing has come between.
fn fits(engine: &Engine, state: &mut State, id: TxnId) -> bool {
    let Some(txn) = state.txns.get(&id) else {
        return true;
    };
    let is_prepared = txn.preparation.is_prepared()
        && !txn.staging.is_written()
        && txn.staging.try_lock().is_some_and(|content| !content.dirty);
    let grown = txn
        .preparation
        .ready()
        .and_then(|ready| ready.grown.clone());
    is_prepared && engine.has_all_added(grown) && engine.still_fits(state, id)
}

/// What of a round has no place any more.
fn has_no_place(engine: &Engine, state: &State, ids: &[TxnId]) -> Option<String> {
    ids.iter().find_map(|id| {
        let dentry = state.txns.get(id)?.dentry();
        let errno = super::prepare::check_target(engine, state, dentry).err()?;
        Some(format!(
            "{}: its target vanished: {errno}",
            engine.show(state, dentry)
        ))
    })
}

/// A member was saved: if that was the last, all are published, by the dispatcher if there is nothing to wait for.
fn decide_at_once(engine: &Engine, state: &mut State, id: TxnId) {
    let Some(round) = state.txns.rounds.get(id) else {
        return;
    };
    let Some(verdict) = round.verdict(Instant::now()) else {
        return;
    };
    let ids: Vec<TxnId> = round.saved().collect();
    if let Verdict::Publish { incomplete: None } = verdict
        && ids.len() <= AT_ONCE
        && engine.sequencer.has_room(0)
        && has_no_place(engine, state, &ids).is_none()
        && ids.iter().all(|id| fits(engine, state, *id))
    {
        return publish(engine, state, id, None);
    }
    // Who asks for them waits, and what is saved next is of another round.
    close(state, id, &ids);
    wake_watch(state);
}

/// It is being decided of a round: nobody joins its members.
fn close(state: &mut State, id: TxnId, ids: &[TxnId]) {
    if let Some(round) = state.txns.rounds.get_mut(id) {
        round.decide();
    }
    for id in ids {
        if let Some(txn) = state.txns.get_mut(id) {
            txn.phase.close();
        }
    }
}

/// Publishes what was saved of a round, in one commit.
fn publish(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    incomplete: Option<(Vec<String>, String)>,
) {
    let Some(round) = state.txns.rounds.end(id) else {
        return;
    };
    engine.sequencer.use_kept(round.bytes());
    let (mut all, mut left) = (Vec::new(), Vec::new());
    for id in round.saved() {
        let save = state.registry.saves.get(&id).cloned();
        if let Some(txn) = state.remove_transaction(id) {
            let committed = txn.preparation.ready().map(|ready| ready.id);
            left.push((id, committed, save.clone(), txn.node));
            all.push((txn, save));
        }
    }
    note_published(engine, state, &round, &all, incomplete);
    match failpoint::mutant("C23-one-commit") {
        true => all
            .into_iter()
            .for_each(|one| commit_all(engine, state, vec![one])),
        false => commit_all(engine, state, all),
    }
    for (id, committed, save, node) in left {
        leave(engine, state, (id, committed), save);
        let file = state.file_of(node);
        engine.note_ended(state, file);
    }
}

/// Counts a round, and tells of one that is not complete.
fn note_published(
    engine: &Engine,
    state: &mut State,
    round: &GroupRound,
    all: &[(Transaction, Option<Save>)],
    incomplete: Option<(Vec<String>, String)>,
) {
    let counts = &mut state.txns.rounds.counts;
    counts.published += 1;
    let Some((missing, why)) = incomplete else {
        return;
    };
    counts.incomplete += 1;
    let paths: Vec<String> = all
        .iter()
        .take(3)
        .map(|(t, _)| engine.show(state, t.dentry()))
        .collect();
    let paths = paths.join(", ");
    if let [(txn, _)] = all {
        // On a plain directory that is how a file is replaced by hand.
        state.txns.rounds.counts.alone += 1;
        let (pid, command) = txn.participants.who();
        log::info!(
            "{paths}: saved alone by {pid} ({command}), though a group has it with {}",
            missing.join(", ")
        );
        return;
    }
    log::warn!("{paths}: published without all of their group: {why}");
    let pid = round.savers.first().map_or(0, |s| s.pid);
    if let Some((txn, _)) = all.first() {
        let path = engine.path_of(state, txn.dentry());
        let reason = format!(
            "published with {} files of its group, and not all: {why}",
            all.len()
        );
        let mut unseen = Unseen::of(&path, reason, pid);
        unseen.published = true;
        state.errors.add(unseen);
    }
}

/// Begins to look after rounds, in a thread of its own.
pub(super) fn start_watch(engine: &Arc<Engine>) -> OpResult<()> {
    let weak = Arc::downgrade(engine);
    let look = move || {
        loop {
            let Some(engine) = weak.upgrade() else {
                return;
            };
            let (savers, aborted) = look_after(&engine);
            finish_later(&engine, aborted);
            drop(engine);
            match savers {
                Some(savers) => await_end(&savers),
                None => std::thread::park_timeout(Duration::from_secs(1)),
            }
        }
    };
    let watch = std::thread::Builder::new()
        .name("rounds".into())
        .spawn(look);
    let watch = watch.map_err(|e| crate::types::errno_of(&e))?;
    engine.lock().txns.rounds.watch = Some(watch.thread().clone());
    Ok(())
}

/// Waits until one of these has ended, or for a moment.
fn await_end(savers: &[Arc<std::os::fd::OwnedFd>]) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds: Vec<PollFd<'_>> = savers
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN))
        .collect();
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK.as_nanos() as i64,
    };
    poll(&mut fds, Some(&tick)).ok();
}

/// Decides of what can be decided. Gives the savers that live; `None` if there are no rounds.
fn look_after(engine: &Engine) -> (Option<Vec<Arc<std::os::fd::OwnedFd>>>, Vec<Aborted>) {
    let mut aborted = Vec::new();
    let (ids, savers) = {
        let mut guard = engine.lock();
        let state = &mut *guard;
        use_freed(engine, state);
        for id in std::mem::take(&mut state.txns.rounds.dropped) {
            aborted.extend(engine.finish(state, id));
        }
        let ids: Vec<TxnId> = state.txns.rounds.all().map(|round| round.id).collect();
        let mut savers = Vec::new();
        for id in &ids {
            if let Some(round) = state.txns.rounds.get_mut(*id) {
                round.savers.iter_mut().for_each(note_end);
                round.forget_ended();
                let living = round.savers.iter().filter(|s| s.ended.is_none());
                savers.extend(living.filter_map(|s| s.process.clone()));
            }
        }
        (ids, savers)
    };
    for id in &ids {
        aborted.extend(decide(engine, *id, false));
    }
    ((!ids.is_empty()).then_some(savers), aborted)
}

/// What isn't committed goes to rejected on a worker: other rounds don't wait for the disk meanwhile.
fn finish_later(engine: &Arc<Engine>, aborted: Vec<Aborted>) {
    if !aborted.is_empty() {
        let worker = engine.clone();
        engine.pool.run(move || finish_now(&worker, aborted));
    }
}

fn finish_now(engine: &Engine, aborted: Vec<Aborted>) {
    for aborted in aborted {
        engine.finish_aborted(aborted);
    }
}

/// Notes how a saver has ended, if it has.
fn note_end(saver: &mut Saver) {
    if saver.ended.is_some() || !has_ended(saver) {
        return;
    }
    let status = saver
        .process
        .as_ref()
        .and_then(|fd| pidfd::status(saver.pid, fd));
    let status = status.filter(|_| !failpoint::mutant("C23-status"));
    saver.ended = Some(match status {
        None | Some(0) => End::Well,
        Some(status) if status & 0x7f != 0 => {
            End::Badly(format!("was ended by signal {}", status & 0x7f))
        }
        Some(status) => End::Badly(format!("has ended with status {}", status >> 8 & 0xff)),
    });
}

/// Decides of a round, where it may wait. `last`: no requests come any more. Gives what is to go to rejected.
fn decide(engine: &Engine, id: TxnId, last: bool) -> Vec<Aborted> {
    for tries in 0.. {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let Some(round) = state.txns.rounds.get(id) else {
            break;
        };
        let verdict = round.verdict(Instant::now());
        let ids: Vec<TxnId> = round.saved().collect();
        let verdict = match verdict {
            Some(Verdict::Publish { incomplete }) => match has_no_place(engine, state, &ids) {
                Some(why) => Verdict::Reject(why),
                None => Verdict::Publish { incomplete },
            },
            Some(Verdict::Reject(why)) => Verdict::Reject(why),
            None if last => Verdict::Reject("the file system was unmounted".to_owned()),
            None => break,
        };
        let incomplete = match verdict {
            Verdict::Reject(why) => return reject(engine, state, id, &why),
            Verdict::Publish { incomplete } => incomplete,
        };
        let unfit: Vec<TxnId> = ids
            .iter()
            .copied()
            .filter(|id| !fits(engine, state, *id))
            .collect();
        if unfit.is_empty() && engine.sequencer.has_room(0) {
            publish(engine, state, id, incomplete);
            break;
        }
        close(state, id, &ids);
        drop(guard);
        let why = match tries < TRIES {
            true => make_fit(engine, &unfit),
            false => Some("others have changed it again and again".to_owned()),
        };
        if let Some(why) = why {
            return reject(engine, &mut engine.lock(), id, &why);
        }
    }
    Vec::new()
}

/// Prepares once more what others have overtaken, and makes room for the commit. Gives what stands against it.
fn make_fit(engine: &Engine, unfit: &[TxnId]) -> Option<String> {
    for id in unfit {
        let staging = engine.lock().txns.get(id).map(|txn| txn.staging.clone());
        if let Some(staging) = staging {
            engine.prepare(*id, &staging, 0).ok();
        }
        let state = engine.lock();
        if let Some(txn) = state.txns.get(id)
            && let Some(abort) = txn.preparation.refusal()
        {
            return Some(format!("{}: {abort}", engine.show(&state, txn.dentry())));
        }
    }
    engine.reserve_commit().err().map(|errno| errno.to_string())
}

/// All that was saved of a round goes to rejected.
fn reject(engine: &Engine, state: &mut State, id: TxnId, why: &str) -> Vec<Aborted> {
    let Some(round) = state.txns.rounds.end(id) else {
        return Vec::new();
    };
    engine.sequencer.use_kept(round.bytes());
    state.txns.rounds.counts.rejected += 1;
    let mut aborted = Vec::new();
    for id in round.saved() {
        if let Some(txn) = state.txns.get_mut(&id)
            && let Some(ready) = txn.preparation.refuse(Abort::Round(why.to_owned()))
        {
            engine
                .sequencer
                .append(&Record::Unprepared { id: ready.id })
                .ok();
        }
        aborted.extend(engine.finish(state, id));
    }
    aborted
}

/// After the last request: no round is left.
pub(super) fn end_all(engine: &Engine) {
    let (_, mut aborted) = look_after(engine);
    let ids: Vec<TxnId> = (engine.lock().txns.rounds.all())
        .map(|round| round.id)
        .collect();
    for id in ids {
        aborted.extend(decide(engine, id, true));
    }
    finish_now(engine, aborted);
}
