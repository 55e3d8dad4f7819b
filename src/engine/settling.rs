//! What becomes of rounds whose savers have ended, or that can't be published as they are.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::aborting::Aborted;
use super::deciding::has_ended;
use super::rounds::{TICK, TRIES, carried, close, fits, has_no_place, use_freed};
use super::{Engine, State, aborting, finishing, prepare};
use super::{publish, rounds};
use crate::group::{End, Saver, Verdict};
use crate::journal::Record;
use crate::sys::{failpoint, pidfd};
use crate::txn::Abort;
use crate::types::{OpResult, TxnId};

/// Decides of what can be decided. Gives the savers that live; `None` if there are no rounds.
pub(super) fn look_after(
    engine: &Engine,
) -> (Option<Vec<Arc<std::os::fd::OwnedFd>>>, Vec<Aborted>) {
    let mut aborted = Vec::new();
    let (ids, savers) = {
        let mut guard = engine.lock();
        let state = &mut *guard;
        use_freed(engine, state);
        for id in std::mem::take(&mut state.txns.rounds.dropped) {
            aborted.extend(finishing::finish(engine, state, id));
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

/// All that was saved of a round goes to rejected.
pub(super) fn reject(engine: &Engine, state: &mut State, id: TxnId, why: &str) -> Vec<Aborted> {
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
        aborted.extend(finishing::finish(engine, state, id));
    }
    aborted
}

/// Prepares once more what others have overtaken, and makes room for the commit. Gives what stands against it.
pub(super) fn make_fit(engine: &Engine, unfit: &[TxnId]) -> Option<String> {
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
pub(super) fn finish_later(engine: &Arc<Engine>, aborted: Vec<Aborted>) {
    if !aborted.is_empty() {
        engine.on_worker(move |engine| finish_now(engine, aborted));
    }
}

pub(super) fn finish_now(engine: &Engine, aborted: Vec<Aborted>) {
    for aborted in aborted {
        aborting::finish_aborted(engine, aborted);
    }
}

/// Decides of a round, where it may wait. `last`: no requests come any more. Gives what is to go to rejected.
pub(super) fn decide(engine: &Engine, id: TxnId, last: bool) -> Vec<Aborted> {
    for tries in 0.. {
        let mut guard = engine.lock();
        let state = &mut *guard;
        let Some(round) = state.txns.rounds.get(id) else {
            break;
        };
        let verdict = match failpoint::mutant("C23-decided") {
            true => round.judge(Instant::now()),
            false => round.verdict(Instant::now()),
        };
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
        if unfit.is_empty() && engine.sequencer.reserve(0).is_ok() {
            rounds::publish(engine, state, id, incomplete);
            break;
        }
        close(state, id, Verdict::Publish { incomplete }, &ids);
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

/// Begins to look after rounds, in a thread of its own.
pub(super) fn start_watch(engine: &Arc<Engine>) -> OpResult<()> {
    let weak = Arc::downgrade(engine);
    let look = move || {
        loop {
            let Some(engine) = weak.upgrade() else {
                return;
            };
            failpoint::delay("COMMITFS_ROUNDS_DELAY_MS");
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

/// Waits until one of these has ended, or for a moment.
pub(super) fn await_end(savers: &[Arc<std::os::fd::OwnedFd>]) {
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

/// Notes how a saver has ended, if it has.
pub(super) fn note_end(saver: &mut Saver) {
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
