//! Who saves a round, whether he has ended, and how.

use crate::engine::State;
use crate::group::{End, Rounds, Saver};
use crate::sys::process::{SharedProcesses, WaitStatus};
use crate::sys::{failpoint, proc};
use crate::types::TxnId;

/// A process, to be asked how it has ended.
pub fn saver(processes: &mut SharedProcesses, pid: u32) -> Saver {
    Saver {
        pid,
        command: proc::comm(pid).unwrap_or_default(),
        process: processes.get(pid),
        ended: None,
        is_ending: false,
        by_status: true,
    }
}

/// A process takes part in a round.
pub fn add_saver(rounds: &mut Rounds, round: TxnId, pid: u32) {
    if rounds.get(round).is_none_or(|round| round.has_saver(pid)) {
        return;
    }
    let mut saver = saver(&mut rounds.processes, pid);
    saver.by_status = rounds.holder_of(round).is_none_or(|holder| holder == pid);
    if let Some(round) = rounds.get_mut(round) {
        round.savers.push(saver);
    }
}

/// Whether who gives a lock back does so by ending: how, is seen later.
pub fn lets_go_by_ending(pid: u32) -> bool {
    proc::is_ending(pid) && !failpoint::mutant("C23-ending")
}

/// Whether a process that takes part in a round has ended.
pub fn has_ended(saver: &Saver) -> bool {
    match &saver.process {
        Some(process) => process.ask().is_some(),
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
    if let Some(process) = saver.process.as_ref().filter(|_| saver.ended.is_none()) {
        process.ask();
    }
    note_known_end(saver);
}

/// Notes how a saver has ended, if that was found out already: who has many rounds open is asked once for all.
pub fn note_known_end(saver: &mut Saver) {
    if saver.ended.is_some() {
        return;
    }
    let ended = match &saver.process {
        Some(process) => process.known(),
        None => (!proc::lives(saver.pid)).then_some(WaitStatus(None)),
    };
    let end = |WaitStatus(status): WaitStatus| match status
        .filter(|_| !failpoint::mutant("C23-status"))
    {
        None | Some(0) => End::Well,
        Some(status) if status & 0x7f != 0 => {
            End::Badly(format!("was ended by signal {}", status & 0x7f))
        }
        Some(_) if !saver.by_status => End::Well,
        Some(status) => End::Badly(format!("has ended with status {}", status >> 8 & 0xff)),
    };
    saver.ended = ended.map(end);
}
