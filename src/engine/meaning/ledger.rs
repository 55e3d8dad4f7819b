//! What the ledger is told of who reads, begins and saves what, and what it says a save builds on.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::conflict::{Actor, Author, Base, ProcessId, Save, Saved, Text};
use crate::engine::base::publication::Publication;
use crate::engine::base::{lines, own_saves};
use crate::engine::{Engine, State};
use crate::rules::{Creation, OnConflict, Policy};
use crate::sys::{at, failpoint, pidfd, proc};
use crate::types::{Caller, Dentry, NodeId, TxnId};

/// How far up the processes that a reader descends from are looked at.
pub const GENERATIONS: usize = 4;

/// Who asks, for the ledger.
pub fn actor(state: &mut State, tid: u32) -> Option<Actor> {
    let pid = proc::tgid(tid)?;
    let ledger = &mut state.conflicts.ledger;
    let process =
        state
            .conflicts
            .registry
            .number(pid, GENERATIONS, &mut |process, ancestors| {
                ledger.introduce(process, ancestors);
            })?;
    Some(Actor { process, tid })
}

/// A thread has opened a version for reading, or found that there is none.
pub fn note_read(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
    read: Option<(NodeId, &Arc<File>)>,
) {
    if let Some((version, file)) = read {
        let sum = state.nodes.sum(version);
        state
            .conflicts
            .overwrites
            .note_read(caller.tid, dentry, (version, sum));
        let texts = &mut state.conflicts.overwrites.texts;
        texts.note_read(caller.tid, dentry, version, file);
    }
    if !engine.rules.read().rules.has_conflict_rules() {
        return;
    }
    let policy = engine.policy(state, dentry, Creation::default());
    if lines::watches(&policy)
        && let Some(actor) = actor(state, caller.tid)
    {
        let now = Some(proc::Moment::now());
        state.conflicts.ledger.note_read(dentry, actor, read, now);
    }
}

/// A thread has opened what another has staged under a name. That is no version to build on.
pub fn note_staged_read(state: &mut State, caller: Caller, id: TxnId) {
    let watched = |t: &&crate::txn::Transaction| {
        lines::watches(&t.policy) && t.participants.opener_tid() != caller.tid
    };
    let txn = state.txns.get(&id).filter(watched);
    let Some(dentry) = txn.map(|t| t.dentry().clone()) else {
        return;
    };
    if let Some(actor) = actor(state, caller.tid)
        && !failpoint::mutant("C17-staged")
    {
        let now = Some(proc::Moment::now());
        state.conflicts.ledger.note_staged_read(&dentry, actor, now);
    }
}

/// A thread begins to write: what it builds on is what it knows of the file by now.
pub fn note_begin(engine: &Engine, state: &mut State, tid: u32, id: TxnId) {
    let mut author = author(engine, state, tid);
    if let Some(txn) = state.txns.get(&id) {
        state.conflicts.overwrites.note_begin(tid, txn.dentry(), id);
        author.step_of = state.conflicts.overwrites.step_of(tid, txn.dentry());
        let is_past_step = |base: &NodeId| own_saves::is_past_step(state, author.pid, *base);
        author.after = txn.purpose.base().filter(is_past_step);
    }
    state.conflicts.registry.writers.insert(id, author);
    let Some(txn) = state.txns.get(&id).filter(|t| lines::watches(&t.policy)) else {
        return;
    };
    let (base, edits) = (txn.purpose.base(), txn.purpose.edits());
    let (dentry, creates) = (txn.dentry().clone(), txn.purpose.creates());
    let policy = txn.policy.clone();
    let actor = author.actor;
    let begun = state.conflicts.ledger.now();
    let base = match (base, actor) {
        (Some(base), _) if edits => base_at(state, base),
        (_, Some(actor)) => known_base(state, &dentry, actor)
            .or_else(|| inherited_base(state, &policy, &dentry, actor)),
        _ => None,
    };
    let nothing = Base {
        version: None,
        text: Text::Missing,
        is_certain: true,
        doubts: None,
    };
    let base = base.or(creates.then_some(nothing));
    let save = Save {
        base: base.or_else(|| doubtful_base(state, &policy, &dentry, actor)),
        by: actor.map(|a| (a, begun)),
        merges: Vec::new(),
        overwrites: None,
        closed: None,
    };
    state.conflicts.registry.saves.insert(id, save);
}

/// An editor goes on from another version.
pub fn note_rebased(state: &mut State, id: TxnId, version: NodeId) {
    if state.conflicts.registry.saves.contains_key(&id) {
        let base = base_at(state, version);
        if let Some(save) = state.conflicts.registry.saves.get_mut(&id) {
            save.base = base;
        }
    }
}

/// What an in-place editor builds on: the version it was opened on.
pub fn base_at(state: &State, version: NodeId) -> Option<Base> {
    let fd = state.nodes.fd(version).ok()?;
    let file = at::reopen_quietly(&*fd).ok()?;
    Some(Base {
        version: Some(version),
        text: state.conflicts.ledger.keep(Arc::new(file)),
        is_certain: true,
        doubts: None,
    })
}

/// A save has become the version of its name.
pub fn note_saved(
    state: &mut State,
    dentry: &Dentry,
    actor: Actor,
    saved: Saved,
    written: Arc<File>,
    closed: Option<proc::Moment>,
) {
    let text = state.conflicts.ledger.keep(written);
    // A child may have been forked since the close, before this is known.
    let at = closed.unwrap_or_else(proc::Moment::now);
    let registry = &state.conflicts.registry;
    let has_ended = |process| registry.has_ended(process);
    let text = (text, Some(at));
    state
        .conflicts
        .ledger
        .note_saved(dentry, actor, saved, text, has_ended);
}

/// What a thread, or its process, is known to go on from.
pub fn known_base(state: &mut State, dentry: &Dentry, actor: Actor) -> Option<Base> {
    let registry = &state.conflicts.registry;
    let has_ended = |process| registry.has_ended(process);
    state.conflicts.ledger.base_of(dentry, actor, has_ended)
}

/// What a process that asks now has from its parent: certain if it was forked since that had
/// read, and has not called execve. Where it isn't, a stale save that fails would do so again
/// and again.
pub fn inherited_base(
    state: &State,
    policy: &Policy,
    dentry: &Dentry,
    actor: Actor,
) -> Option<Base> {
    let start = || proc::Start::of_caller(proc::tgid(actor.tid)?);
    let base = state
        .conflicts
        .ledger
        .base_inherited(dentry, actor, start)?;
    let is_meant = base.is_certain || policy.on_conflict == OnConflict::Merge;
    (is_meant && !failpoint::mutant("C17-forked")).then_some(base)
}

/// A save was refused: its thread goes on from nothing that is known.
pub fn note_refused(state: &mut State, dentry: &Dentry, actor: Option<Actor>) {
    if let Some(actor) = actor.filter(|_| !failpoint::mutant("C17-refused")) {
        state.conflicts.ledger.note_refused(dentry, actor);
    }
}

pub fn author(engine: &Engine, state: &mut State, tid: u32) -> Author {
    let has_rules = engine.rules.read().rules.has_conflict_rules();
    let actor = has_rules.then(|| actor(state, tid)).flatten();
    Author {
        tid,
        pid: proc::tgid(tid).unwrap_or(0),
        step_of: None,
        after: None,
        actor,
    }
}

/// Remembers who has written a version: it may be renamed over another name.
pub fn note_author(state: &mut State, version: NodeId, id: TxnId) {
    if let Some(author) = state.conflicts.registry.writers.get(&id).copied() {
        state.conflicts.registry.note_author(version, author);
    }
}

/// Remembers who has written a file in place: it may be renamed over another name.
pub fn note_direct_author(engine: &Engine, state: &mut State, file: NodeId, tid: u32) {
    let author = author(engine, state, tid);
    state.conflicts.registry.note_author(file, author);
}

/// What a rename of a version over a name builds on: what its author knew of that name, or who
/// renames it.
pub fn base_of_rename(
    state: &mut State,
    tid: u32,
    source: NodeId,
    to: &Dentry,
    policy: &Policy,
) -> Option<(Actor, Option<Base>)> {
    let renamer = actor(state, tid)?;
    let author = state
        .conflicts
        .registry
        .author(source)
        .and_then(|a| a.actor);
    let author = author.filter(|a| *a != renamer);
    if let Some(base) = author.and_then(|a| known_base(state, to, a)) {
        return Some((author?, Some(base)));
    }
    let base = known_base(state, to, renamer);
    let base = base.or_else(|| inherited_base(state, policy, to, renamer));
    let mut kin = [author, Some(renamer)].into_iter().flatten();
    let base = base.or_else(|| kin.find_map(|a| doubtful_base(state, policy, to, Some(a))));
    Some((renamer, base))
}

/// What somebody who knows nothing of the file may yet build on: the last close wins, but not
/// silently. Not where a stale save fails: it would fail again and again.
pub fn doubtful_base(
    state: &State,
    policy: &Policy,
    dentry: &Dentry,
    actor: Option<Actor>,
) -> Option<Base> {
    if policy.on_conflict != OnConflict::Merge {
        return None;
    }
    state.conflicts.ledger.base_among_kin(dentry, actor?)
}

/// What is published of an open transaction builds on, and whose it is.
pub fn base_of_open(
    engine: &Engine,
    id: TxnId,
    to: &Dentry,
    policy: &Policy,
    how: Publication,
) -> (Option<(Actor, u64)>, Option<Base>) {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if !lines::watches(policy) {
        return (None, None);
    }
    if matches!(how, Publication::Stay | Publication::Rest) {
        let save = state.conflicts.registry.saves.get(&id);
        return save.map_or((None, None), |s| (s.by, s.base.clone()));
    }
    let begun = state.conflicts.ledger.now();
    let Some(actor) = state
        .conflicts
        .registry
        .writers
        .get(&id)
        .and_then(|w| w.actor)
    else {
        return (None, None);
    };
    (Some((actor, begun)), known_base(state, to, actor))
}

/// An open transaction has been published under a name, and goes on from there.
pub fn note_published(
    state: &mut State,
    id: TxnId,
    to: &Dentry,
    by: Option<Actor>,
    saved: Saved,
    written: Arc<File>,
) {
    note_author(state, saved.version, id);
    let Some(actor) = by else {
        return;
    };
    note_saved(state, to, actor, saved, written.clone(), None);
    let base = Base {
        version: (!saved.is_merged).then_some(saved.version),
        text: state.conflicts.ledger.keep(written),
        is_certain: true,
        doubts: None,
    };
    let save = state.conflicts.registry.saves.entry(id).or_default();
    save.base = Some(base);
    save.by = Some((actor, state.conflicts.ledger.now()));
}

/// Whether a save with this base has been overtaken by others.
pub fn is_stale(base: &Base, current: Option<NodeId>) -> bool {
    current.is_some() && base.version != current
}

/// Forgets processes that are gone, and what they did. The watch calls it.
pub fn look_after_parties(engine: &Engine) {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let registry = &mut state.conflicts.registry;
    if registry.known.is_empty() {
        return;
    }
    let now = Instant::now();
    for known in registry.known.values_mut() {
        if known.gone.is_none() && pidfd::has_ended(&known.descriptor) {
            known.gone = Some(now);
        }
    }
    let known = &registry.known;
    let authors = registry.authors.values().filter_map(|a| a.actor);
    let authors: HashSet<ProcessId> = authors.map(|a| a.process).collect();
    state.conflicts.ledger.forget_ended(
        |process| match known.get(&process) {
            Some(known) => known.gone.map(|at| now - at),
            None => Some(Duration::MAX),
        },
        |process| authors.contains(&process),
    );
    let wanted = state.conflicts.ledger.processes();
    registry.known.retain(|process, known| {
        let serves = |at| wanted.contains(process) && now - at < Duration::from_secs(120);
        known.gone.is_none_or(serves)
    });
    let known = &registry.known;
    registry
        .by_pid
        .retain(|_, process| known.contains_key(process));
    state.names.forget_turns(now);
}
