//! Turns: one save of a name at a time is between its merge and its commit.

use std::time::{Duration, Instant};

use crate::engine::base::state::sleep_until;
use crate::engine::{Engine, State};
use crate::runtime::Awaited;
use crate::sys::failpoint;
use crate::types::{Dentry, TxnId};

/// A turn is over by then at the latest; the disk may be slow.
const TURN: Duration = Duration::from_secs(30);
/// A close that seems to be the last, and has been answered, leads to a commit within this time, or doesn't:
/// something else holds the file.
const RELEASE: Duration = Duration::from_millis(200);
/// How long the commit may take after a close while nobody has another descriptor or a mapping: RELEASE comes as soon as the closing task
/// has a processor again. Until then others' closes wait, so that none which has returned stands behind one that
/// has begun later.
const SURE_RELEASE: Duration = Duration::from_secs(2);
impl State {
    /// What is prepared waits for its RELEASE now, which comes at once if nothing else holds the file.
    pub(in crate::engine) fn await_release(&mut self, dentry: &Dentry, id: TxnId, at_once: bool) {
        let at_once = at_once && !failpoint::mutant("C9-release");
        let until = Instant::now() + if at_once { SURE_RELEASE } else { RELEASE };
        if self.names.change_turn(dentry, id, Some(until)) {
            self.wake(Awaited::Turn(dentry.clone()));
        }
    }
}

/// Waits until nobody else is between merge and commit of the name.
pub fn take_turn(engine: &Engine, dentry: &Dentry, id: TxnId) {
    let mut state = engine.lock();
    loop {
        let until = match state.names.turn(dentry) {
            Some((other, until)) if other != id && until > Instant::now() => until,
            _ => break,
        };
        sleep_until(&mut state, &[Awaited::Turn(dentry.clone())], until);
    }
    let until = Instant::now() + TURN;
    state.names.take_turn(dentry, id, until);
}

/// Whether a save is between its merge and its commit.
pub fn is_turn_taken(engine: &Engine, dentry: &Dentry) -> bool {
    engine.lock().names.is_turn_taken(dentry)
}

/// Waits until none is, be it that its turn is over.
pub fn await_turn(engine: &Engine, dentry: &Dentry) {
    let mut state = engine.lock();
    while let Some((_, until)) = state.names.turn(dentry)
        && until > Instant::now()
    {
        sleep_until(&mut state, &[Awaited::Turn(dentry.clone())], until);
    }
}

/// The commit has come, or won't.
pub fn end_turn(state: &mut State, dentry: &Dentry, id: TxnId) {
    if state.names.change_turn(dentry, id, None) {
        state.wake(Awaited::Turn(dentry.clone()));
    }
}
