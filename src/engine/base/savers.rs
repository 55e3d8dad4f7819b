//! Who saves a round, whether he has ended, and how.

use std::sync::Arc;

use crate::engine::State;
use crate::group::{End, GroupRound, Saver};
use crate::sys::{failpoint, pidfd, proc};

/// A process, to be asked how it has ended.
pub fn saver(pid: u32) -> Saver {
    Saver {
        pid,
        command: proc::comm(pid).unwrap_or_default(),
        process: pidfd::pidfd(pid).map(Arc::new),
        ended: None,
        is_ending: false,
    }
}

/// A process takes part in a round.
pub fn add_saver(round: &mut GroupRound, pid: u32) {
    if round.has_saver(pid) {
        return;
    }
    round.savers.push(saver(pid));
}

/// Whether a process that takes part in a round has ended.
pub fn has_ended(saver: &Saver) -> bool {
    match &saver.process {
        Some(process) => pidfd::has_ended(process),
        None => !proc::lives(saver.pid),
    }
}

/// The thread that looks after rounds has something to do.
pub fn wake_watch(state: &State) {
    if let Some(watch) = &state.txns.rounds.watch {
        watch.unpark();
    }
}

/// Notes how a saver has ended, if it has.
pub fn note_end(saver: &mut Saver) {
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
