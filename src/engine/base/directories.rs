//! Directories of groups (C23): which files of one are of a round, who sees what waits in it, and which directories are left out of
//! listings until that is decided.

use std::ffi::OsString;
use std::time::Instant;

use parking_lot::MutexGuard;

use crate::engine::base::current;
use crate::engine::base::savers::{
    add_saver, has_ended, note_end as note_end_of, saver, wake_watch,
};
use crate::engine::base::state::sleep;
use crate::engine::{Engine, State};
use crate::group::{GroupRound, Husk, Membership, Place, Removal, RoundDirectory, Saver};
use crate::journal::Record;
use crate::runtime::Awaited;
use crate::sys::{at, failpoint, proc};
use crate::txn::Transaction;
use crate::types::{Caller, Dentry, NodeId, TxnId, now_ns};

/// The directory of a group that a name lies in, `None` if what is saved there is of no round: it has been there before.
pub fn place(
    engine: &Engine,
    state: &State,
    dentry: &Dentry,
    membership: &Membership,
) -> Option<Place> {
    let rule = membership.group.directory.as_ref()?;
    let top = top_of(state, dentry, membership)?;
    if let Some(round) = state.txns.rounds.of_directory(top)
        && !failpoint::mutant("C23-joined")
    {
        let is_new = round.directory.as_ref().is_some_and(|d| d.is_new);
        return Some(Place { top, is_new });
    }
    // What is being decided of it is there in a moment.
    let is_decided = state.txns.rounds.all_of_directory(top).next().is_none();
    let is_new = is_decided && is_empty(engine, state, top);
    (is_new || rule.existing).then_some(Place { top, is_new })
}

/// The node of the group's directory on the way to a name.
fn top_of(state: &State, dentry: &Dentry, membership: &Membership) -> Option<NodeId> {
    let depth = |path: &std::path::Path| path.components().count();
    let below = depth(&state.nodes.path(dentry)?);
    let top = depth(&membership.directory()?);
    let mut dir = dentry.dir;
    for _ in top + 1..below {
        dir = state.nodes.get(dir)?.at.as_ref()?.dir;
    }
    (below > top).then_some(dir)
}

/// Whether nothing is in a directory, to those who have no part in what is being saved.
fn is_empty(engine: &Engine, state: &State, dir: NodeId) -> bool {
    let listed = || {
        let fd = engine.dir_fd(state, dir).ok()?;
        rustix::fs::Dir::new(at::open_listing(&*fd, true).ok()?).ok()
    };
    let is_name = |entry: rustix::fs::DirEntry| {
        let name = entry.file_name().to_bytes();
        name != b"." && name != b".."
    };
    state.pending.in_dir(dir).next().is_none()
        && listed().is_some_and(|mut all| !all.any(|entry| entry.is_ok_and(is_name)))
}

/// Whether a process was started since some of what is in a directory was rejected.
pub fn is_young(state: &State, top: NodeId, pid: u32) -> bool {
    let directory = state
        .txns
        .rounds
        .of_directory(top)
        .and_then(|r| r.directory.as_ref());
    let failed = directory.and_then(|directory| directory.failed.as_ref());
    let start = failed.and_then(|_| proc::Start::of_caller(pid));
    failed
        .zip(start)
        .is_some_and(|(failed, start)| start.is_after(&failed.at))
}

/// A directory was made: if it is one of a group, a round of it begins, and whoever has no part in that finds it by its name only.
/// One in such a directory goes with that.
pub fn note_made(engine: &Engine, state: &mut State, caller: Caller, made: &Dentry) {
    let rules = engine.rules.read().rules.clone();
    let Some(path) = state.nodes.path(made).filter(|_| rules.groups() > 0) else {
        return;
    };
    let Some(membership) = rules.group_of_directory(&path) else {
        return;
    };
    let Some(pid) = proc::tgid(caller.tid).filter(|pid| *pid != 0) else {
        return;
    };
    let Ok(id) = current::current(engine, state, made) else {
        return;
    };
    let place = match membership.directory().as_deref() == Some(&*path) {
        true => Some(Place {
            top: id,
            is_new: true,
        }),
        false => self::place(engine, state, made, &membership),
    };
    let Some(place) = place else {
        return;
    };
    let mut rounds = std::mem::take(&mut state.txns.rounds);
    let number = || state.txns.new_id();
    let round = rounds.enter_directory(&membership, place, number, Instant::now());
    let directory = round.directory.as_mut();
    let is_first = directory.is_some_and(|directory| directory.note_made(id));
    let round = round.id;
    add_saver(&mut rounds, round, pid);
    state.txns.rounds = rounds;
    if is_first {
        for record in begun(state, round, id) {
            engine.sequencer.append(&record).ok();
        }
    }
    wake_watch(state);
}

/// Whether a directory is left out of listings, for those who have no part in what is saved there.
pub fn is_hidden(state: &State, id: NodeId) -> bool {
    let rounds = &state.txns.rounds;
    let rounds_of_directories = rounds.of_directories();
    let mut all = rounds_of_directories.filter_map(|round| round.directory.as_ref());
    all.any(|directory| directory.hidden.contains(&id)) || rounds.husks.iter().any(|h| h.dir == id)
}

fn is_of(round: &GroupRound, tgid: Option<u32>) -> bool {
    tgid.is_some_and(|tgid| round.is_of(tgid, proc::is_self_or_descendant))
}

/// Names of directories in `dir` that a process doesn't find listed.
pub fn hidden_in(state: &State, dir: NodeId, tgid: Option<u32>) -> Vec<OsString> {
    let name = |id: &NodeId| {
        let at = state.nodes.get(*id)?.at.as_ref()?;
        (at.dir == dir).then(|| at.name.clone())
    };
    let rounds = &state.txns.rounds;
    let husks = rounds.husks.iter().filter_map(|husk| name(&husk.dir));
    let mut names: Vec<OsString> = husks.collect();
    let is_by = |by: u32| tgid.is_some_and(|tgid| proc::is_self_or_descendant(tgid, by));
    let removals = rounds
        .removals
        .iter()
        .filter(|_| !failpoint::mutant("C23-removal"));
    for removal in removals {
        names.extend(name(&removal.top).filter(|_| !is_by(removal.by.pid)));
    }
    for round in rounds.of_directories() {
        let Some(directory) = &round.directory else {
            continue;
        };
        let here: Vec<OsString> = directory.hidden.iter().filter_map(name).collect();
        if !here.is_empty() && !is_of(round, tgid) {
            names.extend(here);
        }
    }
    match failpoint::mutant("C23-hidden") {
        true => Vec::new(),
        false => names,
    }
}

/// Whether what waits in a directory is seen by a process that has not saved it: the others who save it see it, and where it has
/// no former generation all do who come by its name, once what the group names is there.
pub fn is_shared(state: &State, txn: &Transaction, tgid: u32) -> bool {
    if !txn.phase.is_held() || failpoint::mutant("C23-shared") {
        return false;
    }
    let round = txn.round().and_then(|round| state.txns.rounds.get(round));
    round.is_some_and(|round| {
        let is_open = |directory: &RoundDirectory| directory.is_new && round.has_named();
        let directory = round.directory.as_ref();
        directory.is_some_and(|d| is_open(d) || is_of(round, Some(tgid)))
    })
}

/// Whether it is about to be decided what becomes of a round: all who have a part in it have ended. Of a directory in which something
/// is missing it isn't, as others may come.
pub fn is_due(round: &GroupRound) -> bool {
    let has_left = |s: &Saver| s.ended.is_some() || has_ended(s);
    let is_known = round.savers.iter().all(|s| s.ended.is_some());
    !round.is_written()
        && round.savers.iter().all(has_left)
        && !(is_known && round.waits_for_others())
}

/// Waits until it is decided of directories that are left out here though nothing more is to come: what has been closed is there.
pub fn await_due(state: &mut MutexGuard<'_, State>, dir: NodeId) {
    let is_here = |state: &State, id: &NodeId| {
        let at = state.nodes.get(*id).and_then(|node| node.at.as_ref());
        at.is_some_and(|at| at.dir == dir)
    };
    let waiting = |state: &State| -> Vec<TxnId> {
        let here = state.txns.rounds.of_directories().filter(|round| {
            let mut hidden = round.directory.iter().flat_map(|d| &d.hidden);
            hidden.any(|id| is_here(state, id)) && (round.is_deciding() || is_due(round))
        });
        here.map(|round| round.id).collect()
    };
    end_removals(state);
    loop {
        for id in waiting(state) {
            if let Some(round) = state.txns.rounds.get_mut(id) {
                round.savers.iter_mut().for_each(note_end_of);
            }
        }
        if waiting(state).is_empty() {
            return;
        }
        wake_watch(state);
        sleep(state, &[Awaited::Creation(dir)]);
    }
}

/// A round of a directory has ended: what was left out of listings isn't any more, but for what goes, as nothing of the round
/// is published. Who waits for it looks.
pub fn note_end(engine: &Engine, state: &mut State, round: &GroupRound, has_failed: bool) {
    let Some(directory) = &round.directory else {
        return;
    };
    let husk = |dir: &NodeId| Husk {
        dir: *dir,
        round: round.id,
    };
    match has_failed {
        true => {
            let made = directory.made.iter().map(husk);
            state.txns.rounds.husks.extend(made);
        }
        false if directory.made.is_empty() => {}
        false => drop(engine.sequencer.append(&Record::Abort { id: round.id })),
    }
    let parent = |id: &NodeId| Some(state.nodes.get(*id)?.at.as_ref()?.dir);
    let parents: Vec<NodeId> = directory.hidden.iter().filter_map(parent).collect();
    for dir in parents {
        state.wake(Awaited::Creation(dir));
    }
}

/// What the journal is told of the round of a directory that is made for it: it has begun, though none of its files has. Recovery
/// takes the directory away as long as it is empty.
fn begun(state: &State, round: TxnId, dir: NodeId) -> Vec<Record> {
    let at = state.nodes.get(dir).and_then(|node| node.at.as_ref());
    let path = at.and_then(|at| state.nodes.path(at));
    let Some(path) = path.filter(|_| !failpoint::mutant("C23-begun")) else {
        return Vec::new();
    };
    let begin = Record::Begin {
        id: round,
        path,
        claim: false,
        pid: 0,
        started_ns: now_ns(),
    };
    vec![begin, Record::Grouped { id: round, round }]
}

/// What a new journal is told of directories that were made for rounds, and of those that go.
pub fn all_begun(state: &State) -> Vec<Record> {
    let rounds = &state.txns.rounds;
    let made = rounds.of_directories().filter_map(|round| {
        let directory = round.directory.as_ref()?;
        Some((round.id, *directory.made.first()?))
    });
    let mut husks: Vec<(TxnId, NodeId)> = rounds.husks.iter().map(|h| (h.round, h.dir)).collect();
    // The outer ones come first.
    husks.dedup_by_key(|(round, _)| *round);
    let all = made.chain(husks);
    all.flat_map(|(round, dir)| begun(state, round, dir))
        .collect()
}

/// A process removes something in a directory of a group that is of no round: as a rule, all of it. Until that is done, or over,
/// the directory is left out of listings.
pub fn note_removal(engine: &Engine, caller: Caller, removed: &Dentry) {
    let rules = engine.rules.read().rules.clone();
    if rules.groups() == 0 {
        return;
    }
    let mut guard = engine.lock();
    let state = &mut *guard;
    let path = state.nodes.path(removed);
    let Some(membership) = path.and_then(|path| rules.group_of_directory(&path)) else {
        return;
    };
    let rule = membership.group.directory.as_ref();
    let pid = proc::tgid(caller.tid).filter(|pid| *pid != 0);
    let is_new_only = rule.is_some_and(|rule| !rule.existing);
    let Some((top, pid)) = top_of(state, removed, &membership).zip(pid) else {
        return;
    };
    let is_of_round = state.txns.rounds.of_directory(top).is_some();
    let is_committed = matches!(current::current_if_any(engine, state, removed), Ok(Some(_)));
    if !is_new_only || is_of_round || !is_committed {
        return;
    }
    let last = Instant::now();
    let by = saver(&mut state.txns.rounds.processes, pid);
    let removals = &mut state.txns.rounds.removals;
    match removals
        .iter_mut()
        .find(|r| r.top == top && r.by.pid == pid)
    {
        Some(removal) => removal.last = last,
        None => removals.push(Removal {
            top,
            by,
            group: membership.group.clone(),
            last,
        }),
    }
    wake_watch(state);
}

/// A directory was renamed. If its group doesn't have the new name, that says that it is complete.
pub fn note_moved(engine: &Engine, state: &mut State, dir: NodeId) {
    let Some(id) = state.txns.rounds.of_directory(dir).map(|round| round.id) else {
        return;
    };
    let at = state.nodes.get(dir).and_then(|node| node.at.as_ref());
    let Some(path) = at.and_then(|at| state.nodes.path(at)) else {
        return;
    };
    let membership = engine.rules.read().rules.group_of_directory(&path);
    if let Some(round) = state.txns.rounds.get_mut(id)
        && membership.is_none_or(|m| m.group != round.group)
        && let Some(directory) = &mut round.directory
        && !failpoint::mutant("C23-moved")
    {
        directory.is_final = true;
        wake_watch(state);
    }
}

/// What is left of a directory is listed again once who has removed the rest of it has ended, or goes on with something else. One
/// that was killed leaves half of it: that shows later.
pub fn end_removals(state: &mut State) {
    if state.txns.rounds.removals.is_empty() {
        return;
    }
    let mut removals = std::mem::take(&mut state.txns.rounds.removals);
    let mut over = Vec::new();
    removals.retain_mut(|removal| {
        note_end_of(&mut removal.by);
        let node = state.nodes.get(removal.top);
        let is_gone = node.is_none_or(|node| node.unlinked);
        let stays = !is_gone && removal.goes_on(Instant::now());
        if !stays && let Some(at) = node.and_then(|node| node.at.as_ref()) {
            over.push(at.dir);
        }
        stays
    });
    state.txns.rounds.removals = removals;
    for dir in over {
        state.wake(Awaited::Creation(dir));
    }
}
