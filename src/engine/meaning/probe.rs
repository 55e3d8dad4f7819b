//! Is this FLUSH the last one? (C3, C7, C18, C21)
//!
//! Only RELEASE knows for certain, but close() can be told an error, and a daemon that dies
//! between the two can roll forward, only where FLUSH was the last. So: look at who could hold
//! another descriptor, which are those who took part, and what they have started since the open
//! (`txn::Kin`). Two holes stay: a descriptor passed over a socket to an older process, and a child
//! started with CLONE_PARENT; RELEASE then comes later, and what was journalled as sure is taken
//! back at the next write.
//!
//! A close costs what its file costs. So of a process with many descriptors only those are looked
//! at where a duplicate is likely to be, and a last close is *likely* then. That is enough to
//! promise what RELEASE is about to make true. Whoever has more at stake looks at all of them: who
//! has an error to tell, or locks to give back; and the watch does, where RELEASE doesn't come.

use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::engine::{Engine, State};
use crate::journal::Record;
use crate::sys::failpoint;
use crate::sys::proc::{self, Holding};
use crate::txn::{Kin, Last, Standing, Transaction};
use crate::types::{NodeId, TxnId};

/// Of a process with more descriptors only a few are looked at.
const FEW: u64 = 32;
/// A look that others wait for goes through no more ids than these, which were handed out since the open, or the children of
/// no more threads,
const FEW_STARTED: u32 = 16;
const FEW_THREADS: usize = 8;
/// and through no more processes than these, which take part or may have inherited a descriptor.
const FEW_RELATED: usize = 4;
/// All of them.
const ALL: u64 = u64::MAX;
/// A RELEASE that is to come is there by then.
const DOUBT: Duration = Duration::from_millis(20);

/// What to look at, gathered under the lock; looking happens without it.
pub struct CloseProbe {
    looks: Looks,
    /// Those that take part, and whether each has closed a descriptor.
    members: Vec<(u32, bool)>,
    /// Those that have opened it and closed nothing.
    holders: Vec<u32>,
    closer: u32,
    last_pid: Option<u32>,
    hopeless: bool,
    /// The closer's children are known by now.
    noted: bool,
    /// What is known already, and what a look finds out.
    pub(in crate::engine) kin: Kin,
}

/// What the descriptors of a transaction look like in /proc. The kernel shows the inode number that
/// it was told last: an in-place editor's is its base's, as that of others who have the same version
/// open to write. How each is open tells many of them apart.
pub struct Looks {
    own: NodeId,
    base: Option<NodeId>,
    ours: Vec<OFlags>,
    others: Vec<OFlags>,
}

impl Looks {
    pub(in crate::engine) fn of(state: &State, txn: &Transaction) -> Looks {
        let (mut ours, mut others) = (Vec::new(), Vec::new());
        let showing = txn.purpose.shown().map(|base| state.handles.showing(base));
        for open in showing.into_iter().flatten() {
            let all = match open.transaction() == Some(txn.id) {
                true => &mut ours,
                false => &mut others,
            };
            all.push(open.opening().how);
        }
        Looks {
            own: txn.node,
            base: txn.purpose.shown(),
            ours,
            others,
        }
    }

    /// Whether a mapping of this file may be one of the transaction's.
    pub(in crate::engine) fn may_map(&self, ino: u64) -> bool {
        ino == self.own.0 || Some(NodeId(ino)) == self.base
    }

    /// Surely one of them.
    pub(in crate::engine) fn are(&self, ino: u64, how: OFlags) -> bool {
        let alone = || self.ours.contains(&how) && !self.others.contains(&how);
        ino == self.own.0 || (Some(NodeId(ino)) == self.base && alone())
    }

    /// Perhaps one of them: it isn't known to be somebody else's.
    pub(in crate::engine) fn may_be(&self, ino: u64, how: OFlags) -> bool {
        let unknown = || self.ours.contains(&how) || !self.others.contains(&how);
        ino == self.own.0 || (Some(NodeId(ino)) == self.base && unknown())
    }
}

pub fn probe(state: &State, txn: &Transaction, closer: u32) -> CloseProbe {
    let participants = &txn.participants;
    CloseProbe {
        looks: Looks::of(state, txn),
        members: participants.others(closer).collect(),
        holders: participants.sure_holders().collect(),
        closer,
        last_pid: participants.last_pid_at_open(),
        hopeless: closer == 0 || txn.phase.descriptions() > 1 || participants.shares_node(),
        noted: false,
        kin: participants.kin().clone(),
    }
}

/// Whether the last FLUSH, which had few looks to go by, was the last after all.
pub fn is_surely_last(engine: &Engine, id: TxnId) -> bool {
    let probe = {
        let state = engine.lock();
        let txn = state.txns.get(&id);
        let Some((txn, flush)) = txn.and_then(|t| Some((t, t.preparation.flush()?))) else {
            return false;
        };
        match flush.last {
            Last::No => return false,
            Last::Surely => return true,
            Last::Likely if failpoint::mutant("C12-duplicate") => return true,
            Last::Likely => (flush.at, probe(&state, txn, flush.by)),
        }
    };
    resolve_doubt(engine, id, probe)
}

/// Looks at all there is. A FLUSH that was not the last promises nothing.
fn resolve_doubt(engine: &Engine, id: TxnId, (at, mut probe): (Instant, CloseProbe)) -> bool {
    let last = probe.look_at_all() == Last::Surely;
    let mut state = engine.lock();
    let Some(txn) = state.txns.get_mut(&id) else {
        return false;
    };
    txn.participants.learn(probe.kin);
    let Some(last) = txn.preparation.resolve_doubt(at, last) else {
        return false;
    };
    if let Some(ready) = txn.preparation.ready().filter(|_| !last) {
        let id = ready.id;
        engine.sequencer.append(&Record::Unprepared { id }).ok();
    }
    last
}

/// Closes that were likely the last and that no RELEASE has followed. The watch calls it.
pub fn resolve_doubts(engine: &Engine) {
    if failpoint::mutant("C18-doubt") {
        return;
    }
    let doubtful: Vec<(TxnId, (Instant, CloseProbe))> = {
        let state = engine.lock();
        let is_open = |t: &&Transaction| t.phase.is_open() && t.preparation.is_prepared();
        let doubtful = state.txns.values().filter(is_open).filter_map(|t| {
            let flush = t.preparation.flush().filter(|f| f.last == Last::Likely)?;
            let probe = || (flush.at, probe(&state, t, flush.by));
            (flush.at.elapsed() > DOUBT).then(|| (t.id, probe()))
        });
        doubtful.collect()
    };
    for (id, probe) in doubtful {
        resolve_doubt(engine, id, probe);
    }
}

/// Whoever has closed and has no mapping of it has no part in what becomes of it any more, however
/// it ends. On the worker that answers the FLUSH `tid` waits for, the `closes`-th of its process.
pub fn look_for_mapping(engine: &Engine, id: TxnId, tid: u32, (pid, closes): (u32, u32)) {
    let looks = {
        let state = engine.lock();
        let matters = |t: &&Transaction| t.participants.matters_if_mapped(pid);
        let txn = state.txns.get(&id).filter(matters);
        txn.map(|txn| Looks::of(&state, txn))
    };
    let Some(looks) = looks else {
        return;
    };
    let wanted = |ino| looks.may_map(ino);
    if proc::has_mapped(tid, &wanted) != Some(false) || failpoint::mutant("C4-closed") {
        return;
    }
    if let Some(txn) = engine.lock().txns.get_mut(&id) {
        txn.participants.left_no_mapping(pid, closes);
    }
}

impl CloseProbe {
    /// Whether it costs a few looks at most, whoever has started what meanwhile. Who may have inherited one from the closer
    /// is noted then.
    pub(in crate::engine) fn is_short(&mut self) -> bool {
        let now = proc::last_pid();
        let started = self
            .last_pid
            .zip(now)
            .and_then(|(then, now)| now.checked_sub(then));
        let few_threads = || proc::threads(self.closer).is_some_and(|n| n <= FEW_THREADS);
        if !started.is_some_and(|n| n <= FEW_STARTED || few_threads()) {
            return false;
        }
        self.find_surviving_holders(now);
        self.noted = true;
        let related = self.members.len() + self.kin.surviving_holders().count();
        related <= FEW_RELATED && self.kin.is_complete()
    }

    /// Whether somebody surely does, which costs no look at a descriptor: a program that has many files open to write
    /// starts another one, which closes them all. Whoever may have inherited one is noted.
    pub(in crate::engine) fn is_held(&mut self) -> bool {
        let held = self.holders.iter().any(|pid| proc::lives(*pid));
        if held && !self.noted {
            self.find_surviving_holders(proc::last_pid());
        }
        held && !failpoint::mutant("C3-held")
    }

    /// Whether nobody holds another descriptor, by as many looks as a close may cost.
    pub(in crate::engine) fn look(&mut self) -> Last {
        self.look_at(if failpoint::mutant("C2-cost") {
            ALL
        } else {
            FEW
        })
    }

    /// Whether nobody holds another descriptor, by looking at all that there are.
    pub(in crate::engine) fn look_at_all(&mut self) -> Last {
        match failpoint::mutant("C21-many") {
            true => Last::No,
            false => self.look_at(ALL),
        }
    }

    fn look_at(&mut self, most: u64) -> Last {
        let now = proc::last_pid();
        if !std::mem::take(&mut self.noted) {
            self.find_surviving_holders(now);
        }
        if self.hopeless || failpoint::mutant("sure") {
            return Last::No;
        }
        let surviving_holders: Vec<u32> = self.kin.surviving_holders().collect();
        let members = std::mem::take(&mut self.members);
        let closer = std::iter::once((self.closer, true));
        let related = closer.chain(members.iter().copied());
        let related = related.chain(surviving_holders.into_iter().map(|pid| (pid, false)));
        let mut last = Last::Surely;
        for (pid, has_closed) in related {
            last = last.min(self.free(pid, has_closed, most));
            if last == Last::No {
                break;
            }
        }
        self.members = members;
        if last != Last::No && !self.kin.is_complete() {
            last = last.min(self.strangers(now, most));
        }
        last
    }

    /// Notes who can have inherited a descriptor from the closer: of others it is known already.
    fn find_surviving_holders(&mut self, now: Option<u32>) {
        let (Some(then), Some(now)) = (self.last_pid, now) else {
            return self.kin.miss();
        };
        if now == then || failpoint::mutant("C3-holders") {
            return;
        }
        if now < then {
            self.kin.forget_standings();
        }
        match proc::children_since(self.closer, then, now) {
            Some(children) => self.kin.inherit(children),
            None => self.kin.miss(),
        }
    }

    /// Where the surviving holders aren't all known: whether any of those that were started since the open holds one.
    fn strangers(&self, now: Option<u32>, most: u64) -> Last {
        let since = match (self.last_pid, now) {
            (Some(then), Some(now)) if then == now => return Last::Surely,
            (Some(then), Some(now)) => proc::pids_between(then, now),
            _ => None,
        };
        let ours = |ino, how| self.looks.may_be(ino, how);
        let mut last = Last::Surely;
        for pid in since.unwrap_or_else(proc::all_pids) {
            last = last.min(match proc::holds(pid, most, &ours) {
                Holding::No | Holding::Gone => Last::Surely,
                // Most systems have some with many.
                Holding::Unlikely if !failpoint::mutant("C18-strangers") => Last::Likely,
                Holding::Yes | Holding::Unlikely => Last::No,
                // Another user's process: it can only have inherited the descriptor.
                Holding::Unknown if self.descends_from_member(pid) => Last::No,
                Holding::Unknown => Last::Surely,
            });
            if last == Last::No {
                break;
            }
        }
        last
    }

    /// Whether a process holds none. One that has never closed a descriptor has the one that it
    /// was given, unless all that it has was looked at.
    fn free(&mut self, pid: u32, has_closed: bool, most: u64) -> Last {
        match self.kin.standing(pid) {
            Some(Standing::Free) => return Last::Surely,
            Some(Standing::LikelyFree) if most < ALL => return Last::Likely,
            _ => {}
        }
        let ours = |ino, how| self.looks.may_be(ino, how);
        match proc::holds(pid, most, &ours) {
            Holding::No => {
                self.kin.note(pid, Standing::Free);
                Last::Surely
            }
            Holding::Gone => Last::Surely,
            Holding::Unlikely if has_closed => {
                self.kin.note(pid, Standing::LikelyFree);
                Last::Likely
            }
            Holding::Yes | Holding::Unlikely | Holding::Unknown => Last::No,
        }
    }

    fn descends_from_member(&self, pid: u32) -> bool {
        let members = self.members.iter().map(|(member, _)| *member);
        let mut members = members.chain([self.closer]);
        members.any(|ancestor| proc::is_self_or_descendant(pid, ancestor))
    }
}
