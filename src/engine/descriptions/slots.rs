//! The writer slot of in-place editors (C9): who has it, and who waits for it.

use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::engine::base::opening::FRESH;
use crate::engine::descriptions::locking;
use crate::engine::{Engine, State};
use crate::locks::{Lock, closes_cycle};
use crate::runtime::{Awaited, Waiting};
use crate::sys::{failpoint, proc};
use crate::txn::Transaction;
use crate::types::{Caller, Dentry, OpResult};

/// Who has sent nothing for so long is not waited for any longer (C9).
fn silence() -> Duration {
    Duration::from_millis(failpoint::number("COMMITFS_SILENCE_MS", 2000))
}

/// Whether one who has waited `since` then goes in together with a holder: that had waited, too, got
/// in beside a silent one, and has sent nothing yet. All who have waited for as long as nobody may
/// be silent go in at once, not each that much later than the one before.
fn is_let_in_with(holder: &Transaction, since: Option<Instant>) -> bool {
    let has_waited = since.is_some_and(|since| since.elapsed() > silence());
    has_waited
        && since.is_some_and(|since| holder.slot.was_just_let_in(since))
        && !failpoint::mutant("C9-together")
}

/// The transactions that have the writer slot of a name: several where one had not to wait.
pub fn slot_holders<'a>(
    state: &'a State,
    dentry: &Dentry,
) -> impl Iterator<Item = &'a Transaction> + use<'a> {
    state
        .txns
        .all_at(dentry)
        .filter(|t| t.slot.is_held() && !t.is_unlinked())
        // Until it is decided what becomes of it, or prepared for an open() that is still on
        // its way.
        .filter(|t| {
            let opening = t.started.elapsed() < FRESH;
            !t.phase.is_reserved() || opening
        })
}

/// Who has the writer slot of a name, if the caller, who has waited for it `since` then, must
/// wait for it (C9).
pub fn slot_holder(
    state: &State,
    caller: Caller,
    dentry: &Dentry,
    since: Option<Instant>,
) -> Option<u32> {
    if failpoint::mutant("C9") {
        return None;
    }
    let tgid = proc::tgid(caller.tid)?;
    slot_holders(state, dentry)
        .find(|t| {
            let file = state.file_of(t.node);
            // By one who takes part, or through the very description, by whoever has it.
            let is_its_own = |l: &Lock| {
                t.participants.contains(l.pid)
                    || state
                        .handles
                        .get(l.handle)
                        .is_some_and(|open| open.writes_in() == Some(t.id))
            };
            let locked = state
                .locks
                .iter()
                .any(|(f, l, _)| f == file && is_its_own(l));
            let family = t.participants.is_family(tgid);
            // One that thinks, or waits at a barrier for those who wait for it here.
            let silent = t.slot.silence() > silence() && !failpoint::mutant("C9-silence");
            !locked && !family && !silent && !is_let_in_with(t, since)
        })
        .map(|t| t.participants.opener())
}

/// Waits until the writer slot is free and the caller's turn has come, or until it need not
/// wait any longer.
pub fn wait_for_slot<'a>(
    engine: &'a Engine,
    caller: Caller,
    dentry: &Dentry,
) -> OpResult<MutexGuard<'a, State>> {
    let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
    let mut state = engine.lock();
    let ticket = state.waits.new_ticket();
    let since = Instant::now();
    let patience = {
        let policy = engine.policy(&state, dentry, crate::rules::Creation::default());
        policy.lock_timeout.unwrap_or(engine.config.lock_timeout)
    };
    state.names.queue(dentry, ticket);
    let mut waited = Ok(());
    let mut gave_up = false;
    loop {
        let first = state.names.is_first(dentry, ticket);
        let Some(holder) = slot_holder(&state, caller, dentry, Some(since)) else {
            if first {
                break;
            }
            let line = [Awaited::Name(dentry.clone())];
            if let Err(e) = locking::poll_signals(&mut state, caller, &line) {
                waited = Err(e);
                break;
            }
            continue;
        };
        let is_late = since.elapsed() > patience;
        if is_late || closes_cycle(pid, &[holder], &state.waits.graph()) {
            state.tally.counters.lock_timeouts += u64::from(is_late);
            gave_up = true;
            log::warn!(
                "{}: {pid} goes on without the writer slot, which {holder} ({}) has held all the time",
                engine.show(&state, dentry),
                proc::comm(holder).unwrap_or_default()
            );
            break;
        }
        let path = engine.show(&state, dentry);
        state.waits.note(
            ticket,
            Waiting {
                pid,
                path,
                what: "writer slot",
                lock: None,
                since,
                blockers: vec![holder],
            },
        );
        let events = ends_of_wait(&state, dentry);
        if let Err(e) = locking::poll_signals(&mut state, caller, &events) {
            waited = Err(e);
            break;
        }
    }
    if let Some(waiting) = state.waits.end(ticket) {
        let in_vain = gave_up || waited.is_err();
        state.note_waited(&waiting.path, since, in_vain);
    }
    state.names.leave_queue(dentry, ticket);
    state.wake(Awaited::Name(dentry.clone()));
    waited.map(|()| state)
}

/// What may end a wait for the writer slot: something becomes of its holder, or that locks the file.
fn ends_of_wait(state: &State, dentry: &Dentry) -> Vec<Awaited> {
    let holders = slot_holders(state, dentry);
    let locked = holders.map(|t| Awaited::Locks(state.file_of(t.node)));
    locked.chain([Awaited::Name(dentry.clone())]).collect()
}
