//! Renames of whole files to names with a rule for conflicts: what others have saved there is merged into them (C17).

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::conflict::{Actor, Base, Saved, Why};
use crate::engine::Engine;
use crate::engine::base::{current, lines};
use crate::engine::deciding::merging::MergeOutcome;
use crate::engine::deciding::names::Left;
use crate::engine::deciding::{merging, names};
use crate::engine::documents::texts;
use crate::engine::meaning::{deciding, ledger, turns};
use crate::engine::requests::moving::{check_moved, rename_step, unlink_moved};
use crate::engine::versions::barrier::JUDGEMENTS;
use crate::engine::versions::replaced;
use crate::engine::versions::{aborting, barrier, publish};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode, Policy};
use crate::sys::at;
use crate::txn::Abort;
use crate::types::{Caller, Dentry, NodeId, OpResult};

/// Renames a file over a name with a rule for conflicts. Gives whether it is done; it isn't where
/// there is no such rule.
pub fn rename_merged(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<bool> {
    let policy = engine.policy(&engine.lock(), to, Creation::default());
    if policy.mode != RuleMode::Atomic || !lines::watches(&policy) || from == to {
        return Ok(false);
    }
    let turn = engine.lock().txns.new_id();
    turns::take_turn(engine, to, turn);
    let result = rename_merging(engine, caller, from, to, flags, &policy);
    turns::end_turn(&mut engine.lock(), to, turn);
    result
}

fn rename_merging(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
    policy: &crate::rules::Policy,
) -> OpResult<bool> {
    for _ in 0..JUDGEMENTS {
        let Some(moving) = Moving::of(engine, caller.tid, from, to, policy)? else {
            return Ok(false);
        };
        let Moving {
            source,
            file,
            begun,
            actor,
            base,
        } = moving;
        if (check_moved(engine, caller, from, to)?).is_some_and(|judged| judged != source) {
            continue;
        }
        let reconciled = merging::reconcile(engine, to, policy, base.as_ref(), &file);
        let (onto, outcome) = reconciled
            .map_err(|abort| refuse_merge(engine, (caller.tid, source), to, actor, abort))?;
        let why = outcome.overwrites();
        match outcome {
            MergeOutcome::AsWritten | MergeOutcome::Overwrites(_) => {
                let renamed = barrier::checkpoint_until(engine, |engine, barrier| {
                    let is_judged = |from, to| from == source && (base.is_none() || to == onto);
                    rename_step(engine, from, to, flags, is_judged, barrier)
                })?;
                if renamed.is_none() {
                    continue;
                }
            }
            MergeOutcome::Merged(merged) => {
                let id = merged.id;
                let by = ((actor, begun), file);
                let published =
                    publish_merged(engine, (from, to, flags), source, onto, *merged, by);
                if !matches!(published, Ok(Some(_))) {
                    engine.store.remove_staging(id).ok();
                }
                let Some((version, left)) = published? else {
                    continue;
                };
                unlink_moved(engine, caller, from, left)?;
                engine
                    .lock()
                    .note_saved(caller.tid, to, version, Duration::ZERO);
                return Ok(true);
            }
        }
        let mut state = engine.lock();
        if let (Some(_), Some(lost)) = (why, onto) {
            replaced::note_unmerged(engine, &mut state, caller.tid, to, (lost, source), why);
        }
        let saved = Saved {
            begun,
            version: source,
            is_merged: false,
            is_uncertain: why == Some(Why::Uncertain),
        };
        ledger::note_saved(&mut state, to, actor, saved, file, None);
        return Ok(true);
    }
    Err(Errno::BUSY)
}

/// `None`: somebody else has committed meanwhile. Else the version, and what is left under the
/// old name.
fn publish_merged(
    engine: &Engine,
    (from, to, flags): (&Dentry, &Dentry, RenameFlags),
    source: NodeId,
    onto: Option<NodeId>,
    merged: merging::MergedFile,
    ((actor, begun), file): ((crate::conflict::Actor, u64), Arc<std::fs::File>),
) -> OpResult<Option<(NodeId, Option<Left>)>> {
    publish::reserve_commit(engine)?;
    let mut guard = engine.lock();
    let state = &mut *guard;
    if flags.contains(RenameFlags::NOREPLACE) && deciding::exists(engine, state, to)? {
        return Err(Errno::EXIST);
    }
    if current::current_if_any(engine, state, to)? != onto
        || current::current(engine, state, from)? != source
    {
        return Ok(None);
    }
    let left = names::left_at(engine, state, from)?;
    let (path, key) = (merged.path.clone(), merged.key);
    let version = state.nodes.create(NodeKind::File, path, key, to.clone());
    let written = merged.file.clone();
    publish::publish(engine, state, to, merged.ready(written, onto), version);
    // At once: whatever the rest comes to, and if it is asked for again, this is saved.
    let saved = Saved {
        begun,
        version,
        is_merged: true,
        is_uncertain: false,
    };
    ledger::note_saved(state, to, actor, saved, file, None);
    Ok(Some((version, left)))
}

/// A file that a rename is about to put under a name with a rule for conflicts.
struct Moving {
    source: NodeId,
    file: Arc<File>,
    begun: u64,
    actor: Actor,
    /// What it builds on.
    base: Option<Base>,
}

impl Moving {
    /// `None`: nothing is known of it, or it is no file.
    fn of(
        engine: &Engine,
        tid: u32,
        from: &Dentry,
        to: &Dentry,
        policy: &Policy,
    ) -> OpResult<Option<Moving>> {
        let mut guard = texts::lock_materialized(engine, from)?;
        let state = &mut *guard;
        let source = current::current(engine, state, from)?;
        let node = state.nodes.get(source);
        if node.is_none_or(|n| n.kind != NodeKind::File) {
            return Ok(None);
        }
        let file = at::reopen_quietly(&*state.nodes.fd(source)?)?;
        let begun = state.conflicts.ledger.now();
        let known = ledger::base_of_rename(state, tid, source, to, policy);
        Ok(known.map(|(actor, base)| Moving {
            source,
            file: Arc::new(file),
            begun,
            actor,
            base,
        }))
    }
}

/// What can't be merged isn't moved.
fn refuse_merge(
    engine: &Engine,
    asked: (u32, NodeId),
    to: &Dentry,
    actor: Actor,
    abort: Abort,
) -> Errno {
    // The kernel asks once more after an ESTALE.
    let before = engine.lock().conflicts.registry.refused.take();
    if matches!(abort, Abort::Conflict) && before == Some(asked) {
        return abort.errno();
    }
    {
        let mut state = engine.lock();
        state.conflicts.registry.refused = Some(asked);
        ledger::note_refused(&mut state, to, Some(actor));
    }
    aborting::refuse(engine, to, abort, asked.0)
}
