//! Updates that others overwrote without having seen them, where no rule keeps them (C17): noted as versions are replaced,
//! and looked at by the watch.

use std::time::Duration;

use crate::conflict::{Loss, Overwritten, Seen, Why};
use crate::engine::base::advice;
use crate::engine::{Engine, State};
use crate::rules::{Creation, OnConflict};
use crate::sys::at;
use crate::txn::Transaction;
use crate::types::{Dentry, NodeId, TxnId};

/// Adds the commands that put the proposed rules in force.
pub fn with_commands(engine: &Engine, mut all: Vec<Overwritten>) -> Vec<Overwritten> {
    for one in all.iter_mut().filter(|one| !one.rule.is_empty()) {
        let on_conflict = match one.rule.contains("on_conflict = \"merge\"") {
            true => "merge",
            false => "fail",
        };
        let mut settings = vec![("on_conflict", on_conflict)];
        if on_conflict == "merge" {
            settings.extend(one.counters.iter().map(|c| ("counters", c.as_str())));
        }
        one.command_to_add = advice::command_to_add(engine, &one.path, &settings);
    }
    all
}

/// A save has replaced a version that it did not build on.
pub fn note_overwritten(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    (pid, command): (u32, &str),
    loss: Loss,
) {
    if state.is_empty(loss.lost) {
        return;
    }
    state.tally.counters.overwritten += 1;
    let path = engine.show(state, dentry);
    log::info!("{path}: {pid} ({command}) replaced a version that it had not seen");
    let policy = engine.policy(state, dentry, Creation::default());
    if policy.on_conflict == OnConflict::Fail {
        return;
    }
    let merges = policy.on_conflict == OnConflict::Merge;
    state
        .conflicts
        .overwrites
        .count(&path, (pid, command), &loss, merges);
    if loss.why.is_none() {
        state.compare(path, (loss.lost, loss.by), loss.has_read);
    }
}

/// A thread removes a version.
pub fn note_removed(state: &mut State, tid: u32, dentry: &Dentry, version: Option<NodeId>) {
    let Some(version) = version.filter(|version| !state.is_empty(*version)) else {
        return;
    };
    let sum = state.nodes.sum(version);
    let removed = (version, sum);
    state
        .conflicts
        .overwrites
        .note_removed(tid, dentry.clone(), removed);
}

/// A save has become the version of a name that had none: whether what its thread removed before
/// was an update that it had not seen.
pub fn note_put_back(engine: &Engine, state: &mut State, txn: &Transaction, by: NodeId) {
    let overwrites = &state.conflicts.overwrites;
    let Some(removed) = overwrites.replaced_by(txn.id) else {
        return;
    };
    let Some(seen) = overwrites.last_seen_by_kin(txn.participants.opener_tid(), txn.dentry())
    else {
        return;
    };
    if seen.is(removed.version, removed.sum) {
        return;
    }
    let policy = engine.policy(state, txn.dentry(), Creation::default());
    let loss = Loss {
        lost: removed.version,
        by,
        has_read: seen.has_read,
        why: (policy.on_conflict == OnConflict::Merge).then_some(Why::Uncertain),
        is_own: false,
    };
    let who = txn.participants.who();
    note_overwritten(engine, state, txn.dentry(), who, loss);
}

/// A save has replaced the version that it builds on. Two that overwrote each other may have
/// counted alike: what those that follow change tells what they count by.
pub fn note_followed(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    versions: (NodeId, NodeId),
    has_read: bool,
) {
    if state.conflicts.overwrites.has_any() {
        let path = engine.show(state, dentry);
        state.compare(path, versions, has_read);
    }
}

/// Numbers that differ between versions that replace each other, where some were overwritten,
/// are what programs count by.
pub fn guess_counters(engine: &Engine) {
    // Whoever asks waits for what the watch is comparing.
    let _turn = engine.turns.comparison.lock();
    compare_own_saves(engine);
    loop {
        let next = engine.lock().conflicts.overwrites.next_to_compare();
        let Some(pair) = next else {
            return;
        };
        if let Some((found, can_be_merged)) = pair.compare() {
            let overwrites = &mut engine.lock().conflicts.overwrites;
            overwrites.note_compared(&pair.path, found, can_be_merged);
        }
    }
}

/// Counts saves that take back what their own program has saved.
pub fn compare_own_saves(engine: &Engine) {
    loop {
        let next = engine.lock().conflicts.overwrites.next_doubtful();
        let Some(save) = next else {
            return;
        };
        if !save.goes_back() {
            continue;
        }
        let loss = Loss {
            lost: save.versions.0,
            by: save.versions.1,
            has_read: true,
            why: None,
            is_own: true,
        };
        let who = (save.who.0, save.who.1.as_str());
        note_overwritten(engine, &mut engine.lock(), &save.dentry, who, loss);
    }
}

impl State {
    /// Whether who saw a version last has seen what stands in another: rewritten with the same
    /// bytes it is no other.
    pub(in crate::engine) fn is_as_seen(&self, seen: &Seen, version: NodeId) -> bool {
        seen.is(version, self.nodes.sum(version))
    }

    /// A transaction has come to its end: what it builds on and replaces matters no more.
    pub(in crate::engine) fn forget_save(&mut self, id: TxnId) {
        self.conflicts.registry.forget(id);
        self.conflicts.overwrites.forget(id);
    }

    /// A thread has written a version, and closed it or renamed it there so long ago: what it has
    /// started since may be here before that is known.
    pub(in crate::engine) fn note_saved(
        &mut self,
        tid: u32,
        dentry: &Dentry,
        version: NodeId,
        ago: Duration,
    ) {
        let sum = self.nodes.sum(version);
        self.conflicts
            .overwrites
            .note_saved(tid, dentry, (version, sum), ago);
    }

    /// Files that serve as locks only are opened for writing all the time.
    fn is_empty(&self, version: NodeId) -> bool {
        let is_written = self
            .nodes
            .get(version)
            .is_some_and(|n| n.unwritten.is_none());
        let stat = || at::stat(&*self.nodes.fd(version)?);
        is_written && stat().is_ok_and(|stat| stat.st_size == 0)
    }

    /// Has two versions of a path compared, if some of its were overwritten, but not for ever.
    fn compare(&mut self, path: String, (lost, by): (NodeId, NodeId), has_read: bool) {
        let nodes = &self.nodes;
        let files = || nodes.fd(lost).ok().zip(nodes.fd(by).ok());
        self.conflicts.overwrites.compare(path, has_read, files);
    }
}
