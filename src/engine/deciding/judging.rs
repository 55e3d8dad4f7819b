//! What guards say where content gets a name (C21): a close, a rename, a link, an fsync of a writer
//! that was killed.

use std::fs::File;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::current;
use crate::engine::base::passed::look_at_passed;
use crate::engine::base::target::check_target;
use crate::engine::deciding::merging;
use crate::engine::deciding::merging::MergeOutcome;
use crate::engine::documents::texts;
use crate::engine::meaning::metadata;
use crate::engine::versions::{aborting, overlaid, room};
use crate::guard::{Guard, Replaces, Verdict, examine, judge};
use crate::namespace::NodeKind;
use crate::rules::Policy;
use crate::sys::{at, failpoint, proc};
use crate::txn::{Abort, AsOf, Content, Ready, Rescue, Staging};
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of};

/// Whether a close reports what stands against the commit. A guard's refusal and a conflict only the
/// last may tell: an earlier one of a shell group must not. By rule (`close_error = false`) no close
/// tells of a guard's, for programs whose own handlers an error of close() would mask (`except
/// TypeError` around `json.dump`).
pub fn is_told(abort: &Abort, is_last: bool, policy: &Policy) -> bool {
    match abort {
        Abort::Guard(_) => is_last && (policy.close_error || failpoint::mutant("C21-close-error")),
        Abort::Conflict => is_last,
        _ => true,
    }
}

/// Whether a transaction's content may be published under a name.
pub fn check_guard(
    engine: &Engine,
    content: &mut Content,
    dentry: &Dentry,
    policy: &Policy,
    how: Replaces,
) -> Result<(), Abort> {
    if policy.guard == Guard::None || failpoint::mutant("C21") {
        return Ok(());
    }
    let failed = |errno| Abort::FailedWrite {
        what: "guard",
        errno,
    };
    let verdict = content.examine(policy.guard).map_err(failed)?;
    judge(policy.guard, &verdict, how, policy.allow_empty)
        .decide(|| verdict_on_current(engine, dentry, policy.guard))
        .map_err(failed)?
        .map_err(|violation| Abort::Guard(violation.to_string()))
}

/// How a transaction's content takes the place of what is there: who edits a file (`r+`,
/// truncate) has not chosen all of it, unless it has emptied the file first.
pub fn replaces(engine: &Engine, id: TxnId, content: &Content) -> Replaces {
    let edits = !content.is_anew()
        && engine
            .lock()
            .txns
            .get(&id)
            .is_some_and(|t| t.purpose.edits());
    match edits && !failpoint::mutant("C21-edits") {
        true => Replaces::InPlace,
        false => Replaces::Whole,
    }
}

/// Whether a file may get another name, by a rename or link (`over`: what has the name now is
/// replaced), for the thread `by`. A refusal is told, counted and remembered.
pub fn check_named(
    engine: &Engine,
    by: u32,
    file: &File,
    (to, policy): (&Dentry, &Policy),
    over: bool,
) -> OpResult<()> {
    if policy.guard == Guard::None || failpoint::mutant("C21") {
        return Ok(());
    }
    let len = file.metadata().map_err(|e| errno_of(&e))?.len();
    let verdict = examine(policy.guard, file, len).map_err(|e| errno_of(&e))?;
    judge(policy.guard, &verdict, Replaces::Whole, policy.allow_empty)
        .decide(|| match over {
            true => verdict_on_current(engine, to, policy.guard),
            false => Ok(None),
        })?
        .map_err(|v| aborting::refuse(engine, to, Abort::Guard(v.to_string()), by))?;
    count_malformed(engine, matches!(verdict, Verdict::Malformed(_)));
    Ok(())
}

/// Content was published that its guard finds odd.
pub fn count_malformed(engine: &Engine, is_malformed: bool) {
    engine.lock().tally.counters.malformed += u64::from(is_malformed);
}

/// Whether the guard lets a name have what was fsync'd. If not, all that was staged is kept for
/// rejected.
pub fn permits_fsynced(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    dentry: &Dentry,
    policy: &Policy,
) -> bool {
    if policy.guard == Guard::None {
        return true;
    }
    let (verdict, how) = {
        let content = staging.lock();
        let len = content.fsynced_len();
        let file = &*content.readable().file;
        let verdict = len.and_then(|len| examine(policy.guard, file, len).ok());
        (verdict, replaces(engine, id, &content))
    };
    verdict.is_some_and(|new| {
        judge(policy.guard, &new, how, policy.allow_empty)
            .decide(|| verdict_on_current(engine, dentry, policy.guard))
            .is_ok_and(|permitted| permitted.is_ok())
    })
}

/// A killed writer, or one that left half a document, had called fsync: what it made durable,
/// or more if the guard permits, becomes the version (C7).
pub fn rescue(engine: &Engine, id: TxnId, staging: &Staging) {
    let (dentry, policy, then, abort) = {
        let state = engine.lock();
        let Some(txn) = state.txns.get(&id) else {
            return;
        };
        let Some(abort) = txn.death().or(txn.preparation.refusal().cloned()) else {
            return;
        };
        let then = txn.promise.current_at_fsync();
        (txn.dentry().clone(), txn.policy.clone(), then, abort)
    };
    // Somebody has committed the name since the fsync: that is newer.
    let current = current::current_if_any(engine, &mut engine.lock(), &dentry);
    let by_parts = staging.lock().is_by_parts();
    let edited = overlaid::edited(engine, &mut engine.lock(), id);
    if current != Ok(then) && edited.filter(|_| by_parts).is_none() {
        return;
    }
    failpoint::delay("COMMITFS_RESCUE_DELAY_MS");
    let prepare = || prepare_content(engine, id, staging, &dentry, &policy, (false, true));
    let mut ready = prepare();
    if ready.is_err()
        && permits_fsynced(engine, id, staging, &dentry, &policy)
        && staging.lock().cut_back_to_fsynced()
    {
        ready = prepare();
    }
    let mut state = engine.lock();
    if let (Ok(ready), Some(txn)) = (ready, state.txns.get_mut(&id)) {
        txn.preparation.finish(ready, false);
        txn.participants.forgive_deaths();
        txn.promise.note_rescue(Rescue {
            dentry: dentry.clone(),
            over: then,
            abort,
        });
        let path = engine.show(&state, &dentry);
        log::info!("{path}: its writer was ended, but what it had fsync'd is kept");
    }
}

/// What the guard says of the version that would be replaced.
fn verdict_on_current(engine: &Engine, dentry: &Dentry, guard: Guard) -> OpResult<Option<Verdict>> {
    let fd = {
        let mut state = texts::lock_materialized(engine, dentry)?;
        let Some(id) = current::current_if_any(engine, &mut state, dentry)? else {
            return Ok(None);
        };
        match state.nodes.get(id) {
            Some(node) if node.kind == NodeKind::File => state.nodes.fd(id)?,
            _ => return Ok(None),
        }
    };
    let file = at::reopen_quietly(&*fd)?;
    let len = file.metadata().map_err(|e| errno_of(&e))?.len();
    examine(guard, &file, len)
        .map(Some)
        .map_err(|e| errno_of(&e))
}

pub fn prepare_content(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    dentry: &Dentry,
    policy: &Policy,
    (sure, takes_added): (bool, bool),
) -> Result<Ready, Abort> {
    room::copy_base(engine, staging).ok();
    let mut content = staging.lock();
    if let Some(failure) = &content.failed {
        return Err(Abort::FailedWrite {
            what: failure.what,
            errno: failure.errno,
        });
    }
    let failed = |what: &'static str| move |errno: Errno| Abort::FailedWrite { what, errno };
    content.copy_base().map_err(failed("copy"))?;
    look_at_passed(&engine.store, &mut content).map_err(failed("write"))?;
    let edits =
        overlaid::take_parts(engine, id, &mut content, takes_added).map_err(failed("copy"))?;
    if takes_added {
        overlaid::take_added(engine, &mut content).map_err(failed("copy"))?;
    }
    let attributes =
        |content: &mut Content| texts::apply_attributes(engine, id, content, dentry, false);
    let target = (dentry, policy);
    make_ready(engine, id, &mut content, target, (sure, edits), attributes)
}

/// What is all staged by now is judged, described, and given the attributes of what it replaces.
pub fn make_ready(
    engine: &Engine,
    id: TxnId,
    content: &mut Content,
    (dentry, policy): (&Dentry, &Policy),
    (sure, edits): (bool, Option<NodeId>),
    attributes: impl FnOnce(&mut Content) -> OpResult<Option<AsOf>>,
) -> Result<Ready, Abort> {
    let failed = |what: &'static str| move |errno: Errno| Abort::FailedWrite { what, errno };
    let judgement = content.begin_judgement();
    check_target(engine, &engine.lock(), dentry)
        .map_err(|errno| Abort::VanishedTarget { errno })?;
    check_limit(engine, id, content)?;
    let how = replaces(engine, id, content);
    check_guard(engine, content, dentry, policy, how)?;
    if sure {
        failpoint::fail_point("prepare").map_err(failed("prepare"))?;
    }
    let written_meanwhile = content.is_written();
    let like = attributes(content).map_err(failed("setting attributes"))?;
    let mut described = content.describe().map_err(failed("checksum"))?;
    if !written_meanwhile {
        content.note_seen().map_err(failed("checksum"))?;
    }
    content.dirty = false;
    let base = {
        let state = engine.lock();
        let save = state.conflicts.registry.saves.get(&id);
        save.and_then(|s| s.base.clone())
    };
    let (onto, outcome) = merging::reconcile(engine, dentry, policy, base.as_ref(), &content.file)?;
    let is_newer = onto != like.map(|(version, _)| version);
    if let Some(since) = onto.filter(|_| is_newer && !content.times_set) {
        metadata::outgrow(&engine.lock(), since, &content.file, &mut described)
            .map_err(failed("setting attributes"))?;
    }
    failpoint::crash_point("staging-written");
    if let Some(save) = engine.lock().conflicts.registry.saves.get_mut(&id) {
        save.overwrites = outcome.overwrites();
    }
    if let MergeOutcome::Merged(merged) = outcome {
        if let Some(save) = engine.lock().conflicts.registry.saves.get_mut(&id) {
            save.merges.push(merged.id);
        }
        let ready = merged.ready(content.file.clone(), onto);
        return Ok(Ready {
            like,
            judgement,
            ..ready
        });
    }
    Ok(Ready {
        onto: edits.or(onto),
        grown: content.grown(),
        by_parts: content.is_by_parts(),
        edits: edits.filter(|_| content.keeps_places()),
        appended: content.has_appended(),
        like,
        judgement,
        ..Ready::new(content.id, content.file.clone(), described)
    })
}

/// A size equal to the writer's limit is what a write that the limit cut off leaves (C5).
fn check_limit(engine: &Engine, id: TxnId, content: &mut Content) -> Result<(), Abort> {
    let len = content.size().unwrap_or(0);
    let writers: Vec<u32> = {
        let state = engine.lock();
        let Some(txn) = state.txns.get(&id) else {
            return Ok(());
        };
        txn.participants.writers().collect()
    };
    let is_limit = |pid| proc::rlimit_fsize(pid) == Some(len);
    if len > 0 && writers.into_iter().any(is_limit) {
        content.fail(Errno::FBIG, "write");
        return Err(Abort::FailedWrite {
            what: "write",
            errno: Errno::FBIG,
        });
    }
    Ok(())
}
