//! Is this FLUSH the last one? (C3, C7, C18, C21)
//!
//! Only RELEASE knows for certain, but close() can be told an error, and a daemon that dies
//! between the two can roll forward, only where FLUSH was surely the last. So: look at who could
//! hold another descriptor. Those who took part, and every process created since the open. One
//! hole stays: a descriptor passed over a socket to an older process; RELEASE then comes later,
//! and what was journalled as sure is taken back at the next write.

use rustix::fs::OFlags;

use super::state::Handle;
use super::{Engine, State};
use crate::sys::proc::{self, Holding};
use crate::sys::{failpoint, pidfd};
use crate::txn::Transaction;
use crate::types::{NodeId, TxnId};

/// What to look at, gathered under the lock; looking happens without it.
pub(super) struct Probe {
    looks: Looks,
    processes: Vec<u32>,
    last_pid: Option<u32>,
    hopeless: bool,
}

/// What the descriptors of a transaction look like in /proc. The kernel shows the inode number that
/// it was told last: an in-place editor's is its base's, as that of others who have the same version
/// open to write. How each is open tells many of them apart.
pub(super) struct Looks {
    own: NodeId,
    base: Option<NodeId>,
    ours: Vec<OFlags>,
    others: Vec<OFlags>,
}

impl Looks {
    pub(super) fn of(state: &State, txn: &Transaction) -> Looks {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        for handle in state.handles.values().filter(|_| txn.shown_base.is_some()) {
            match handle {
                Handle::Staged { txn: id, how, .. } if *id == txn.id => ours.push(*how),
                Handle::Staged { txn: id, how, .. } => {
                    let shown = state.txns.get(id).and_then(|t| t.shown_base);
                    if shown == txn.shown_base {
                        others.push(*how);
                    }
                }
                Handle::Append(appender) if Some(appender.node) == txn.shown_base => {
                    others.push(appender.how);
                }
                _ => {}
            }
        }
        Looks {
            own: txn.node,
            base: txn.shown_base,
            ours,
            others,
        }
    }

    /// Surely one of them.
    pub(super) fn are(&self, ino: u64, how: OFlags) -> bool {
        let alone = || self.ours.contains(&how) && !self.others.contains(&how);
        ino == self.own || (Some(ino) == self.base && alone())
    }

    /// Perhaps one of them: it isn't known to be somebody else's.
    pub(super) fn may_be(&self, ino: u64, how: OFlags) -> bool {
        let unknown = || self.ours.contains(&how) || !self.others.contains(&how);
        ino == self.own || (Some(ino) == self.base && unknown())
    }
}

impl Engine {
    pub(super) fn probe(&self, state: &State, txn: &Transaction, closer: u32) -> Probe {
        let mut processes: Vec<u32> = txn.processes.keys().copied().collect();
        if !processes.contains(&closer) {
            processes.push(closer);
        }
        Probe {
            looks: Looks::of(state, txn),
            processes,
            last_pid: txn.last_pid,
            hopeless: closer == 0 || txn.handles > 1 || txn.shared,
        }
    }

    /// Whoever has closed and has no mapping of it has no part in what becomes of it any more, however
    /// it ends. On the worker that answers the FLUSH `tid` waits for, the `closes`-th of its process.
    pub(super) fn look_for_mapping(&self, id: TxnId, tid: u32, (pid, closes): (u32, u32)) {
        let looks = {
            let state = self.lock();
            let matters = |t: &&Transaction| {
                let takes_part = t.processes.get(&pid).is_some_and(|p| p.opener || p.wrote);
                takes_part && t.watched.iter().any(|(watched, _)| *watched == pid)
            };
            let txn = state.txns.get(&id).filter(matters);
            txn.map(|txn| Looks::of(&state, txn))
        };
        let Some(looks) = looks else {
            return;
        };
        let wanted = |ino| ino == looks.own || Some(ino) == looks.base;
        if proc::has_mapped(tid, &wanted) != Some(false) || failpoint::mutant("C4-closed") {
            return;
        }
        if let Some(txn) = self.lock().txns.get_mut(&id)
            && txn.processes.get(&pid).is_some_and(|p| p.closes == closes)
        {
            txn.watched.retain(|(watched, _)| *watched != pid);
        }
    }

    /// Notes a writer that left only a mapping and has been ended by a signal since: no FLUSH told.
    pub(super) fn note_dead_mapping(&self, txn: &mut Transaction) {
        if !txn.mappable {
            return;
        }
        let dead = txn.watched.iter().find_map(|(pid, process)| {
            // Its memory goes before it is a zombie, and the mapping with the memory.
            let signal = match proc::death_of_flusher(*pid, *pid) {
                proc::Death::Signalled(signal) if !pidfd::has_ended(process) => signal,
                _ => pidfd::killed_by(*pid, process)?,
            };
            (signal != libc::SIGPIPE).then_some((*pid, signal))
        });
        if let Some((pid, signal)) = dead {
            txn.processes.entry(pid).or_default().killed_by = Some(signal);
        }
    }
}

impl Probe {
    /// Nobody can hold another descriptor of the transaction.
    pub(super) fn is_surely_last(&self) -> bool {
        if self.hopeless || failpoint::mutant("sure") {
            return false;
        }
        let ours = |ino, how| self.looks.may_be(ino, how);
        let free = |pid: u32| match proc::holds(pid, &ours) {
            Holding::Count(n) => n == 0,
            Holding::Gone => true,
            Holding::Unknown => false,
        };
        if !self.processes.iter().all(|pid| free(*pid)) {
            return false;
        }
        let Some(now) = proc::last_pid() else {
            return false;
        };
        let since = match self.last_pid {
            Some(then) if then == now => return true,
            then => then.and_then(|then| proc::pids_between(then, now)),
        };
        let suspects = since.unwrap_or_else(proc::all_pids);
        suspects
            .into_iter()
            .all(|pid| match proc::holds(pid, &ours) {
                Holding::Count(n) => n == 0,
                Holding::Gone => true,
                // Another user's process: it can only have inherited the descriptor.
                Holding::Unknown => !self
                    .processes
                    .iter()
                    .any(|ancestor| proc::is_self_or_descendant(pid, *ancestor)),
            })
    }
}
