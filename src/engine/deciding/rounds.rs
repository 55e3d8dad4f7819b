//! Rounds of groups (C23): what is saved of a group waits, prepared, until its round is complete. Then all of it is one commit, or
//! all of it goes to rejected, listed as one.
//!
//! What waits holds nothing that others wait for: no writer slot, no turn, no lock. It keeps its node, which its saver sees, its
//! staging file, and the bytes that its record takes in the journal, so that nothing can fail once a round is decided.
//! How savers end is seen by a thread that sleeps while there are no rounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::conflict::Save;
use crate::engine::base::savers::{add_saver, note_end, wake_watch};
use crate::engine::base::{directories, state, target};
use crate::engine::deciding::merging;
use crate::engine::meaning::{group_locks, turns};
use crate::engine::versions::aborting::leave;
use crate::engine::versions::growing;
use crate::engine::versions::publish::commit_all;
use crate::engine::{Engine, State};
use crate::group::{Entering, GroupRound, Saver, Verdict};
use crate::journal::Record;
use crate::rules::Creation;
use crate::runtime::Awaited;
use crate::store::Unseen;
use crate::sys::{failpoint, proc};
use crate::txn::{Abort, Ready, Transaction, WriterSlot};
use crate::types::{Dentry, TxnId};

/// How long the watch sleeps while nothing is told by a saver's end.
pub const TICK: Duration = Duration::from_millis(50);
/// So many members are published by the dispatcher; lookups wait for the worker that publishes more.
const AT_ONCE: usize = 64;
/// What a member's edit takes in the journal besides its path, and what its editor has written by parts.
const EDIT: u64 = 128;
/// Tries to prepare what others keep overtaking.
pub const TRIES: usize = 16;

/// What was kept of the journal for those that have left their rounds is kept no more.
pub fn use_freed(engine: &Engine, state: &mut State) {
    let freed = std::mem::take(&mut state.txns.rounds.freed);
    if freed > 0 {
        engine.sequencer.use_kept(freed);
    }
}

/// A transaction is opened: if its name belongs to a group, it joins the round of its process, or begins one. What waits already
/// is written on.
pub fn enter(engine: &Engine, state: &mut State, id: TxnId) {
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
        if txn.phase.is_held() {
            reopen(state, (round, &dentry), id, pid);
        }
        return;
    }
    let is_member = !txn.visibility.is_claim() && !txn.is_unlinked();
    let (policy, is_restored) = (txn.policy.clone(), txn.purpose.is_restore());
    let found = is_member.then(|| match is_restored {
        true => group_locks::restored(engine, state, &dentry, &policy),
        false => group_locks::membership(engine, state, &dentry, &policy, pid),
    });
    let Some((membership, lock)) = found.flatten() else {
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
    let place = directories::place(engine, state, &dentry, &membership);
    if membership.group.directory.is_some() && place.is_none() {
        return;
    }
    let entering = Entering {
        membership: &membership,
        dentry: &dentry,
        txn: id,
        pid,
        place,
        lock,
        is_young: place.is_some_and(|place| directories::is_young(state, place.top, pid)),
        now: Instant::now(),
    };
    let mut rounds = std::mem::take(&mut state.txns.rounds);
    let descends = |pid, of| proc::is_self_or_descendant(pid, of);
    let round = rounds.enter(&entering, descends, || state.txns.new_id());
    for pid in rounds.holder_of(round).into_iter().chain([pid]) {
        add_saver(&mut rounds, round, pid);
    }
    state.txns.rounds = rounds;
    wake_watch(state);
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.purpose.join_round(Some(round));
    }
}

/// A process opens what waits, to write on.
fn reopen(state: &mut State, (round, dentry): (TxnId, &Dentry), id: TxnId, pid: u32) {
    let rounds = &mut state.txns.rounds;
    if rounds.get(round).is_some_and(|r| r.directory.is_some()) {
        add_saver(rounds, round, pid);
    }
    if let Some(round) = rounds.get_mut(round) {
        let freed = round.reopen(dentry, id, Instant::now());
        rounds.freed += freed;
    }
}

/// What the journal is told of a member besides its begin.
pub fn grouped(txn: &Transaction) -> Option<Record> {
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
pub fn promised(state: &State, id: TxnId, ready: &Ready, path: PathBuf) -> Vec<Record> {
    let Some(txn) = state.txns.get(&id) else {
        return Vec::new();
    };
    let mut records = prepared(txn, ready, path);
    let round = txn.round().and_then(|round| state.txns.rounds.get(round));
    if let Some(round) = round.filter(|round| round.is_complete_with(txn.dentry(), id))
        && !failpoint::mutant("C23-complete")
    {
        records.push(complete_record(
            state,
            round,
            Some((txn.dentry(), ready.id)),
        ));
    }
    records
}

/// What a new journal has to say of rounds that are being published, besides what it says of their members: whose last
/// close was answered by then may have been told so.
pub fn carried(state: &State) -> Vec<Record> {
    let rounds = state.txns.rounds.all();
    let complete = rounds.filter(|r| r.was_complete() && !failpoint::mutant("C23-carried"));
    complete
        .map(|round| complete_record(state, round, None))
        .collect()
}

/// That all of a round is there, be it by a member that is just being closed, in whose place nothing else counts.
fn complete_record(state: &State, round: &GroupRound, closing: Option<(&Dentry, TxnId)>) -> Record {
    let saved = round.saved().filter_map(|id| state.txns.get(&id));
    let others = saved.filter(|t| closing.is_none_or(|(dentry, _)| t.dentry() != dentry));
    let members = others.filter_map(|t| Some(t.preparation.ready()?.id));
    Record::Complete {
        round: round.id,
        members: members.chain(closing.map(|(_, id)| id)).collect(),
    }
}

/// A member that could be committed waits for its round instead. Gives false if it is none.
pub fn hold(engine: &Engine, state: &mut State, id: TxnId) -> bool {
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
    let is_restored = txn.purpose.is_restore();
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
        note_close(round, (closer, at_end), is_restored);
        round.save(&dentry, id, bytes, Instant::now())
    });
    if let Some((replaced, bytes)) = replaced {
        engine.sequencer.use_kept(bytes);
        discard(engine, state, replaced);
    }
    turns::end_turn(state, &dentry, id);
    let file = state.file_of(node);
    if had_slot {
        let (path, held) = (engine.show(state, &dentry), started.elapsed());
        state
            .tally
            .lock_stats
            .note(&path, |t| t.holds.observe(held));
    }
    for owner in releases {
        state.locks.release_posix(file, owner);
    }
    state::note_ended(engine, state, file);
    state.wake(Awaited::Transaction(id));
    state.wake(Awaited::AnyTransaction);
    state.wake_for(id, &dentry);
    decide_at_once(engine, state, round);
    true
}

/// A process closes a member, and waits for the answer. One that is ending takes part, if it has written some of it: whom a saver
/// has started, say. Later nobody could be asked how it has ended.
pub fn note_flush(state: &mut State, id: TxnId) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (round, at_end) = (txn.round(), txn.participants.was_closed_at_end());
    let closer = txn.participants.last_closer();
    let round = round.filter(|_| at_end && !failpoint::mutant("C23-awaited"));
    let round = round.and_then(|round| state.txns.rounds.get(round));
    if let Some(id) = round.filter(|r| r.directory.is_none()).map(|r| r.id) {
        add_saver(&mut state.txns.rounds, id, closer);
    }
}

/// A process has closed a member, perhaps as it was ending.
fn note_close(round: &mut GroupRound, (closer, at_end): (u32, bool), is_restored: bool) {
    match at_end {
        true => round.await_end(closer),
        false => round.note_closed(closer),
    }
    if let Some(directory) = &mut round.directory {
        directory.is_restored |= is_restored;
    }
    // Of another one that was killed a moment ago it need not have been seen yet.
    let is_other = |s: &&mut Saver| s.pid != closer && !failpoint::mutant("C23-noted");
    let others = round.savers.iter_mut().filter(is_other);
    others.for_each(note_end);
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

/// The name of a transaction was unlinked: one that waits has nothing to wait for, and nobody waits for one that is open.
pub fn drop_unlinked(state: &mut State, id: TxnId) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (round, dentry) = (txn.round(), txn.dentry().clone());
    let is_held = txn.phase.is_held();
    if let Some(round) = round {
        let freed = state.txns.rounds.leave(round, &dentry, id);
        state.txns.rounds.freed += freed;
        state.txns.rounds.dropped.extend(is_held.then_some(id));
        wake_watch(state);
    }
}

/// A transaction gets another name: it joins the round of that, if there is one.
pub fn leave_before_move(state: &mut State, id: TxnId) {
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
pub fn refuse(state: &mut State, id: TxnId, why: &Abort) {
    let Some(txn) = state.txns.get(&id) else {
        return;
    };
    let (round, dentry) = (txn.round(), txn.dentry().clone());
    if let Some(round) = round.and_then(|round| state.txns.rounds.get_mut(round)) {
        let why = format!("{}: {why}", dentry.name.to_string_lossy());
        round.refuse(&dentry, id, why, Instant::now());
        let ids: Vec<TxnId> = round.saved().collect();
        // What others save of a directory belongs to what is rejected.
        let is_closed = round.directory.is_none();
        if let Some(verdict) = round.verdict(Instant::now())
            && is_closed
            && !failpoint::mutant("C23-refused")
        {
            let round = round.id;
            close(state, round, verdict, &ids);
        }
        wake_watch(state);
    }
}

/// Whether a member is as it was prepared, and nothing has come between.
pub fn fits(engine: &Engine, state: &mut State, id: TxnId) -> bool {
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
    is_prepared && growing::has_all_added(engine, grown) && merging::still_fits(engine, state, id)
}

/// What of a round has no place any more.
pub fn has_no_place(engine: &Engine, state: &State, ids: &[TxnId]) -> Option<String> {
    ids.iter().find_map(|id| {
        let dentry = state.txns.get(id)?.dentry();
        let errno = target::check_target(engine, state, dentry).err()?;
        Some(format!(
            "{}: its target vanished: {errno}",
            engine.show(state, dentry)
        ))
    })
}

/// What those have left behind that have saved the same files, and have ended, comes before what is published now: it would take the
/// place of some of it later, though that was saved after their end. Gives false if that takes a while.
fn decide_left(engine: &Engine, state: &mut State, others: Vec<TxnId>) -> bool {
    let mut are_decided = true;
    for other in others
        .into_iter()
        .filter(|_| !failpoint::mutant("C23-left"))
    {
        let Some(round) = state.txns.rounds.get_mut(other) else {
            continue;
        };
        round.savers.iter_mut().for_each(note_end);
        let (is_deciding, ids) = (round.is_deciding(), round.saved().collect::<Vec<_>>());
        match round.verdict(Instant::now()) {
            Some(Verdict::Publish { incomplete })
                if !is_deciding && can_publish_at_once(engine, state, &ids) =>
            {
                publish(engine, state, other, incomplete);
            }
            Some(verdict) => {
                are_decided &= matches!(verdict, Verdict::Reject(_));
                close(state, other, verdict, &ids);
                wake_watch(state);
            }
            None => {}
        }
    }
    are_decided
}

/// A generation is pinned: what savers have left behind that have ended is part of it.
pub fn decide_left_of(engine: &Engine, state: &mut State, dentry: &Dentry) {
    if !state.txns.rounds.is_empty() {
        let policy = engine.policy(state, dentry, Creation::default());
        let rounds = &state.txns.rounds;
        let others = policy.pinned().map(|member| rounds.of_names(member));
        decide_left(engine, state, others.unwrap_or_default());
    }
}

/// Whether nothing has to be waited for.
fn can_publish_at_once(engine: &Engine, state: &mut State, ids: &[TxnId]) -> bool {
    failpoint::fail_point("round-at-once").is_ok()
        && ids.len() <= AT_ONCE
        && engine.sequencer.reserve(0).is_ok()
        && has_no_place(engine, state, ids).is_none()
        && ids.iter().all(|id| fits(engine, state, *id))
        && !ids.iter().any(|id| state.names.is_followed(*id))
}

/// A member was saved: if that was the last, all are published, by the dispatcher if there is nothing to wait for. Where a
/// worker does it others may commit first, who have been told so later.
pub fn decide_at_once(engine: &Engine, state: &mut State, id: TxnId) {
    let Some(round) = state.txns.rounds.get_mut(id) else {
        return;
    };
    if round.let_go().is_some() {
        round.savers.iter_mut().for_each(note_end);
    }
    let Some(verdict) = round.verdict(Instant::now()) else {
        return;
    };
    let is_of_directory = round.directory.is_some();
    let ids: Vec<TxnId> = round.saved().collect();
    let others = state.txns.rounds.beside(id).unwrap_or_default();
    if let Verdict::Publish { incomplete: None } = verdict
        && decide_left(engine, state, others)
        && can_publish_at_once(engine, state, &ids)
    {
        return publish(engine, state, id, None);
    }
    // Who asks for them waits, and what is saved next is of another round, but for a directory that fails.
    let fails = is_of_directory && matches!(verdict, Verdict::Reject(_));
    if !fails {
        close(state, id, verdict, &ids);
    }
    wake_watch(state);
}

/// It is being decided of a round: nobody joins its members.
pub fn close(state: &mut State, id: TxnId, verdict: Verdict, ids: &[TxnId]) {
    if let Some(round) = state.txns.rounds.get_mut(id) {
        round.decide(verdict);
    }
    for id in ids {
        if let Some(txn) = state.txns.get_mut(id) {
            txn.phase.close();
        }
    }
}

/// Publishes what was saved of a round, in one commit.
pub fn publish(
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
        let save = state.conflicts.registry.saves.get(&id).cloned();
        if let Some(txn) = state.remove_transaction(id) {
            let committed = txn.preparation.ready().map(|ready| ready.id);
            left.push((id, committed, save.clone(), txn.node));
            all.push((txn, save));
        }
    }
    if all.is_empty() {
        // A directory without files.
        return directories::note_end(engine, state, &round, false);
    }
    note_published(engine, state, &round, &all, incomplete);
    match failpoint::mutant("C23-one-commit") {
        true => all
            .into_iter()
            .for_each(|one| commit_all(engine, state, vec![one])),
        false => commit_all(engine, state, all),
    }
    directories::note_end(engine, state, &round, false);
    for (id, committed, save, node) in left {
        leave(engine, state, (id, committed), save);
        let file = state.file_of(node);
        state::note_ended(engine, state, file);
    }
    group_locks::decided(state, &round, None);
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
        state.tally.errors.add(unseen);
    }
}
