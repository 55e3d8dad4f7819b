//! What becomes of rounds whose savers have ended, or that can't be published as they are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::engine::base::savers::note_known_end;
use crate::engine::base::{current, directories};
use crate::engine::deciding::rounds;
use crate::engine::deciding::rounds::{TRIES, carried, close, fits, has_no_place, use_freed};
use crate::engine::deciding::{copies, finishing, names, prepare};
use crate::engine::meaning::group_locks;
use crate::engine::versions::aborting::Aborted;
use crate::engine::versions::publish;
use crate::engine::versions::{aborting, barrier};
use crate::engine::{Engine, State};
use crate::group::{FailedPart, Verdict};
use crate::journal::Record;
use crate::runtime::Awaited;
use crate::sys::process::AskedProcess;
use crate::sys::{failpoint, proc};
use crate::txn::Abort;
use crate::types::TxnId;

/// So many rounds are looked at while others wait for the state.
const PORTION: usize = 128;

/// Decides of what can be decided. Gives the savers that live; `None` if there are no rounds.
pub fn look_after(engine: &Engine) -> (Option<Vec<Arc<AskedProcess>>>, Vec<Aborted>) {
    let mut aborted = Vec::new();
    let mut savers = {
        let mut guard = engine.lock();
        let state = &mut *guard;
        use_freed(engine, state);
        directories::end_removals(state);
        for id in std::mem::take(&mut state.txns.rounds.dropped) {
            aborted.extend(finishing::finish(engine, state, id));
        }
        state.txns.rounds.processes.all()
    };
    savers.retain(|saver| saver.ask().is_none());
    let mut last = TxnId(0);
    while let Some((id, due)) = look_at_portion(engine, last) {
        for id in due {
            aborted.extend(decide(engine, id, false));
        }
        last = id;
    }
    ((last != TxnId(0)).then_some(savers), aborted)
}

/// Looks at the rounds that come after that one, but at so many only as others don't wait for. Gives the last of them, and those
/// that can be decided; `None` if there are none.
fn look_at_portion(engine: &Engine, after: TxnId) -> Option<(TxnId, Vec<TxnId>)> {
    let (mut last, mut due) = (None, Vec::new());
    let now = Instant::now();
    for round in engine.lock().txns.rounds.after(after, PORTION) {
        round.savers.iter_mut().for_each(note_known_end);
        round.forget_ended();
        due.extend(round.verdict(now).map(|_| round.id));
        last = Some(round.id);
    }
    last.map(|last| (last, due))
}

/// All that was saved of a round goes to rejected.
pub fn reject(engine: &Engine, state: &mut State, id: TxnId, why: &str) -> Vec<Aborted> {
    let Some(mut round) = state.txns.rounds.end(id) else {
        return Vec::new();
    };
    engine.sequencer.use_kept(round.bytes());
    let failed = round.directory.as_ref().and_then(|d| d.failed.as_ref());
    let is_first = failed.is_none_or(FailedPart::is_empty) && !round.is_bare();
    let is_over = failed.is_some() && round.is_bare() || failpoint::mutant("C23-failed");
    state.txns.rounds.counts.rejected += u64::from(is_first || round.directory.is_none());
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
        aborted.extend(finishing::finish(engine, state, id));
    }
    group_locks::decided(state, &round, Some(why));
    match &round.directory {
        Some(_) if is_over => directories::note_end(engine, state, &round, true),
        Some(_) => {
            // What others still save in it belongs to it.
            round.fail(why, proc::Moment::now());
            state.txns.rounds.go_on(round);
        }
        None => {}
    }
    aborted
}

/// Publishes a round, and the copies for the links that follow some of it. Gives false if something has come between.
fn publish_with_links(
    engine: &Engine,
    (round, incomplete): (TxnId, Option<(Vec<String>, String)>),
    followed: &[TxnId],
) -> bool {
    let copies = |id: &TxnId| (*id, copies::copies_of_prepared(engine, *id));
    let copies: Vec<_> = followed.iter().map(copies).collect();
    let mut guard = engine.lock();
    let state = &mut *guard;
    let ids: Vec<TxnId> = match state.txns.rounds.get(round) {
        Some(round) => round.saved().collect(),
        None => Vec::new(),
    };
    let is_whole = ids.iter().all(|id| fits(engine, state, *id))
        && copies.iter().all(|(id, copies)| copies.fit(state, *id))
        && engine.sequencer.reserve(0).is_ok();
    if is_whole {
        rounds::publish(engine, state, round, incomplete);
    }
    for (_, copies) in copies {
        match is_whole {
            true => copies::publish_copies(engine, state, copies),
            false => copies.remove(&engine.store),
        }
    }
    is_whole
}

/// Prepares once more what others have overtaken, and makes room for the commit. Gives what stands against it.
pub fn make_fit(engine: &Engine, unfit: &[TxnId]) -> Option<String> {
    for id in unfit {
        let staging = engine.lock().txns.get(id).map(|txn| txn.staging.clone());
        if let Some(staging) = staging {
            prepare::prepare(engine, *id, &staging, 0).ok();
        }
        let state = engine.lock();
        if let Some(txn) = state.txns.get(id)
            && let Some(abort) = txn.preparation.refusal()
        {
            return Some(format!("{}: {abort}", engine.show(&state, txn.dentry())));
        }
    }
    if !unfit.is_empty() {
        let state = engine.lock();
        for record in carried(&state) {
            engine.sequencer.append(&record).ok();
        }
    }
    publish::reserve_commit(engine)
        .err()
        .map(|errno| errno.to_string())
}

/// What isn't committed goes to rejected on a worker: other rounds don't wait for the disk meanwhile.
pub fn finish_later(engine: &Arc<Engine>, aborted: Vec<Aborted>) {
    if !aborted.is_empty() || !engine.lock().txns.rounds.husks.is_empty() {
        engine.on_worker(move |engine| finish_now(engine, aborted));
    }
}

pub fn finish_now(engine: &Engine, aborted: Vec<Aborted>) {
    aborting::finish_aborted(engine, aborted);
    remove_husks(engine);
}

/// Directories that were made for rounds that have failed go, the inner ones first, unless something else is in them.
fn remove_husks(engine: &Engine) {
    while let Some((husk, dentry)) = {
        let state = engine.lock();
        let last = state.txns.rounds.husks.last().copied();
        last.map(|husk| {
            (
                husk,
                state.nodes.get(husk.dir).and_then(|node| node.at.clone()),
            )
        })
    } {
        let removed = dentry.as_ref().map(|dentry| {
            barrier::checkpoint_until(engine, |engine, barrier| {
                let mut state = engine.lock();
                let is_it = current::current(engine, &mut state, dentry) == Ok(husk.dir);
                if !is_it || state.txns.creates_in(husk.dir) {
                    return Err(Errno::NOENT);
                }
                drop(state);
                names::rmdir_step(engine, dentry, barrier)
            })
        });
        let mut state = engine.lock();
        if let (Some(Err(errno)), Some(dentry)) = (removed, &dentry)
            && errno != Errno::NOENT
        {
            let path = engine.show(&state, dentry);
            log::info!("{path}: stays, though nothing that was saved in it is published: {errno}");
        }
        let husks = &mut state.txns.rounds.husks;
        husks.retain(|other| other.dir != husk.dir);
        if !husks.iter().any(|other| other.round == husk.round) {
            engine
                .sequencer
                .append(&Record::Abort { id: husk.round })
                .ok();
        }
        if let Some(dentry) = dentry {
            state.wake(Awaited::Creation(dentry.dir));
        }
    }
}

/// Decides of a round, where it may wait. `last`: no requests come any more. Gives what is to go to rejected.
pub fn decide(engine: &Engine, id: TxnId, last: bool) -> Vec<Aborted> {
    for tries in 0.. {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let Some(round) = state.txns.rounds.get(id) else {
            break;
        };
        let rest = match last {
            true => round.rest(),
            false => Duration::ZERO,
        };
        let now = Instant::now() + rest;
        let verdict = match failpoint::mutant("C23-decided") {
            true => round.judge(now),
            false => round.verdict(now),
        };
        let ids: Vec<TxnId> = round.saved().collect();
        let verdict = match verdict {
            Some(Verdict::Publish { incomplete }) => match has_no_place(engine, state, &ids) {
                Some(why) => Verdict::Reject(why),
                None => Verdict::Publish { incomplete },
            },
            Some(Verdict::Reject(why)) => Verdict::Reject(why),
            None if last && round.is_bare() => Verdict::Publish { incomplete: None },
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
        let followed = |id: &&TxnId| state.names.is_followed(**id);
        let followed: Vec<TxnId> = ids.iter().filter(followed).copied().collect();
        if unfit.is_empty() && followed.is_empty() && engine.sequencer.reserve(0).is_ok() {
            rounds::publish(engine, state, id, incomplete);
            break;
        }
        let publishing = Verdict::Publish {
            incomplete: incomplete.clone(),
        };
        close(state, id, publishing, &ids);
        drop(guard);
        if unfit.is_empty()
            && !followed.is_empty()
            && publish_with_links(engine, (id, incomplete), &followed)
        {
            break;
        }
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

/// After the last request: no round is left.
pub fn end_all(engine: &Engine) {
    let (_, mut aborted) = look_after(engine);
    let ids: Vec<TxnId> = (engine.lock().txns.rounds.all())
        .map(|round| round.id)
        .collect();
    for id in ids {
        aborted.extend(decide(engine, id, true));
    }
    let mut guard = engine.lock();
    let left: Vec<TxnId> = guard.txns.rounds.all().map(|round| round.id).collect();
    for id in left {
        if let Some(round) = guard.txns.rounds.end(id) {
            directories::note_end(engine, &mut guard, &round, true);
        }
    }
    drop(guard);
    finish_now(engine, aborted);
}
