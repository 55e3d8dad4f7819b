//! What FLUSH does before it answers: all of a commit that can fail, and the promise that it will be
//! kept, should the daemon end before RELEASE comes. And the promise that an fsync is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use crate::engine::base::ended::told_of_ended;
use crate::engine::base::lines;
use crate::engine::base::lines::may_be_added_to;
use crate::engine::base::publication;
use crate::engine::base::target::check_target;
use crate::engine::deciding::judging::{is_told, make_ready};
use crate::engine::deciding::{judging, publishing, rounds};
use crate::engine::meaning::probe::CloseProbe;
use crate::engine::meaning::{ledger, metadata, probe, turns};
use crate::engine::versions::durability::{Overtaken, keep};
use crate::engine::versions::publish::COMMIT_RECORD;
use crate::engine::versions::{durability, publish, withholding};
use crate::engine::{Durability, Engine, State};
use crate::journal::Record;
use crate::rules::Policy;
use crate::sys::{failpoint, proc};
use crate::txn::{Abort, Content, Flush, KeptContent, Kin, Last, Ready, Staging, Transaction};
use crate::types::{Dentry, OpResult, TxnId};

/// Does all that can fail. An error is for close() to report.
pub fn prepare(engine: &Engine, id: TxnId, staging: &Arc<Staging>, pid: u32) -> OpResult<()> {
    // Whoever renames it again and again keeps nobody waiting for ever.
    for _ in 0..16 {
        if let Some(result) = prepare_once(engine, id, staging, pid, false) {
            return result.inspect_err(|_| withholding::tell_failed(engine, id, staging));
        }
        let is_left = |t: &Transaction| t.would_commit() || t.phase.is_closing();
        if engine.lock().txns.get(&id).is_some_and(|t| !is_left(t)) {
            // All of it was published meanwhile.
            return Ok(());
        }
    }
    let result = prepare_once(engine, id, staging, pid, true).unwrap_or(Ok(()));
    result.inspect_err(|_| withholding::tell_failed(engine, id, staging))
}

/// A close whose content is about to be judged.
struct Close {
    probe: CloseProbe,
    /// It was the last: RELEASE has come.
    ends: bool,
    doomed: bool,
    merged_before: Option<TxnId>,
    policy: Policy,
    judged: Judged,
    since: u64,
}

impl Close {
    /// Or what there is to say at once; `None`: it is to begin anew.
    fn begin(
        state: &mut State,
        id: TxnId,
        pid: u32,
        watched: &mut Option<Dentry>,
        anyhow: bool,
    ) -> Result<Close, Option<OpResult<()>>> {
        let is_at = |d: &Dentry| state.txns.get(&id).is_some_and(|t| t.dentry() == d);
        // Whoever renames or ends it ends the turn that it has, but not one that it was still waiting for.
        if let Some(left) = watched.take_if(|d| !is_at(d) && !failpoint::mutant("C10-turn")) {
            turns::end_turn(state, &left, id);
            if !anyhow && state.txns.contains_key(&id) {
                return Err(None);
            }
        }
        let Some(txn) = state.txns.get(&id) else {
            return Err(Some(told_of_ended(state, id)));
        };
        let before = txn.preparation.ready().filter(|c| c.merged.is_some());
        Ok(Close {
            probe: probe::probe(state, txn, pid),
            ends: txn.phase.is_closing(),
            doomed: txn.is_doomed(),
            merged_before: before.map(|c| c.id),
            policy: txn.policy.clone(),
            judged: Judged::of(txn),
            since: txn.preparation.findings(),
        })
    }
}

/// `None` if it has got another name meanwhile, or was published under one: what is left is judged
/// anew, unless it is to be taken `anyhow`.
fn prepare_once(
    engine: &Engine,
    id: TxnId,
    staging: &Arc<Staging>,
    pid: u32,
    anyhow: bool,
) -> Option<OpResult<()>> {
    let mut watched = turn_of(&engine.lock(), id);
    if let Some(dentry) = &watched {
        turns::take_turn(engine, dentry, id);
    }
    let close = match Close::begin(&mut engine.lock(), id, pid, &mut watched, anyhow) {
        Ok(close) => close,
        Err(why) => return why,
    };
    let Close {
        mut probe,
        ends,
        doomed,
        merged_before,
        policy,
        judged,
        since,
    } = close;
    if !ends
        && pid != 0
        && probe.is_held()
        && staging.lock().failed.is_none()
        && leave_to_holder(engine, id, &probe)
    {
        return Some(Ok(()));
    }
    let looked = Instant::now();
    let mut last = probe.look();
    let sure = last != Last::No;
    let takes_added = (sure || ends) && !doomed;
    let result = judging::prepare_content(
        engine,
        id,
        staging,
        &judged.dentry,
        &policy,
        (sure, takes_added),
    )
    .and_then(|ready| promise(engine, id, staging, &judged, ready, sure.then_some(pid)));
    // An error that only the last close may tell: now it is worth to look at all descriptors.
    if last == Last::Likely && matches!(result, Err(Abort::Guard(_) | Abort::Conflict)) {
        last = probe.look_at_all();
    }
    let sure = last != Last::No;
    if !sure {
        failpoint::delay("COMMITFS_UNSURE_DELAY_MS");
    }
    if failpoint::mutant("C3") && !sure {
        publishing::publish_open(
            engine,
            0,
            id,
            &judged.dentry,
            publication::Publication::Stay,
        )
        .ok();
    }
    let content = staging.lock();
    let mut state = engine.lock();
    let is_as_judged = |txn: &Transaction| judged.is(txn) || txn.is_unlinked();
    let is_as_judged = state.txns.get(&id).is_none_or(is_as_judged);
    let is_overtaken = |txn: &Transaction| txn.preparation.has_overtaken(&result, since);
    let is_overtaken = state.txns.get(&id).is_some_and(is_overtaken);
    if !anyhow && (!is_as_judged && !failpoint::mutant("C14-judged") || is_overtaken) {
        if let Some(dentry) = &watched {
            turns::end_turn(&mut state, dentry, id);
        }
        return None;
    }
    if let Some(id) = merged_before {
        // Only now: what close() has promised before holds until something newer does.
        engine.sequencer.append(&Record::Unprepared { id }).ok();
    }
    if let Some(dentry) = watched
        .as_ref()
        .filter(|_| !(sure || ends) || result.is_err())
    {
        turns::end_turn(&mut state, dentry, id);
    }
    if let Some(dentry) = &watched
        && sure
    {
        let mapped = state
            .txns
            .get(&id)
            .is_none_or(|t| t.participants.may_be_mapped());
        let at_once = last == Last::Surely && !mapped;
        state.await_release(dentry, id, at_once);
    }
    let found = Conclusion {
        judged,
        policy,
        kin: probe.kin,
        flush: Flush::of(last, looked, pid),
        is_overtaken,
    };
    Some(conclude(engine, &mut state, id, (found, &content), result))
}

/// Prepares on the dispatcher, if there is nothing to wait for: what is small, and all staged by one who can't have left a
/// mapping; with a guard that is content already, and nobody to take turns with. `None`: it is for a worker.
pub fn prepare_at_once(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    (pid, _): (u32, u32),
) -> Option<OpResult<()>> {
    if engine.config.durability == Durability::Sync
        || !engine.watching.nobody_polls()
        || leaves_it_to_workers()
    {
        return None;
    }
    // Held to the end, so that no worker gets at it in between.
    let mut content = match failpoint::mutant("C2-at-once") {
        true => staging.lock(),
        false => staging.try_lock()?,
    };
    let (mut probe, policy, judged) = {
        let state = engine.lock();
        if has_to_wait(engine, &state) {
            return None;
        }
        let txn = state.txns.get(&id).filter(|t| is_simple(&state, t, pid))?;
        let probe = probe::probe(&state, txn, pid);
        (probe, txn.policy.clone(), Judged::of(txn))
    };
    if !content.is_quickly_prepared(policy.guard) || !probe.is_short() {
        return None;
    }
    if pid != 0 && probe.is_held() && leave_to_holder(engine, id, &probe) {
        return Some(Ok(()));
    }
    failpoint::delay("COMMITFS_FLUSH_DELAY_MS");
    let last = probe.look();
    let sure = last != Last::No;
    let mut waits = false;
    let attributes = |content: &mut Content| {
        let state = engine.lock();
        waits = state.is_unwritten_at(&judged.dentry);
        match waits {
            true => Err(Errno::AGAIN),
            false => {
                metadata::attributes_of_current(engine, state, id, content, &judged.dentry, false)
            }
        }
    };
    let target = (&judged.dentry, &policy);
    let ready = make_ready(engine, id, &mut content, target, (sure, None), attributes);
    if waits {
        return None;
    }
    let by = sure.then_some(pid);
    let result = match ready {
        Ok(ready) => promise_at_once(engine, id, &judged, ready, by)?,
        Err(abort) => Err(abort),
    };
    let mut state = engine.lock();
    if !state.txns.get(&id).is_some_and(|txn| judged.is(txn)) {
        return None;
    }
    let found = Conclusion {
        judged,
        policy,
        kin: probe.kin,
        flush: Flush::now(last, pid),
        is_overtaken: false,
    };
    Some(conclude(engine, &mut state, id, (found, &content), result))
}

/// After this a close may be told that it went well: the journal knows, should the daemon end
/// before RELEASE comes.
fn promise(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    judged: &Judged,
    mut ready: Ready,
    last_by: Option<u32>,
) -> Result<Ready, Abort> {
    let failed = |errno| Abort::FailedWrite {
        what: "journalling",
        errno,
    };
    let (fsynced, dead) = {
        let mut state = engine.lock();
        durability::await_backlog(engine, &mut state);
        let fsynced = state.txns.get(&id).is_some_and(Transaction::has_synced);
        if engine.config.durability == Durability::Async && !fsynced {
            durability::give_way(&mut state);
        }
        if let Some(errno) = state.backlog.checkpoint.failed {
            return Err(failed(errno));
        }
        let Some(noted) = note_preparing(engine, &mut state, id, judged, &mut ready) else {
            return Ok(ready);
        };
        noted
    };
    publish::reserve_commit(engine).map_err(failed)?;
    failpoint::delay("COMMITFS_PROMISE_DELAY_MS");
    let Some(by) = last_by.filter(|_| !dead) else {
        return Ok(ready);
    };
    let durable = engine.config.durability == Durability::Sync || fsynced;
    if durable && !failpoint::mutant("C7-close") {
        ready.synced = make_durable(engine, id, staging, &mut ready, judged, by)?;
    } else {
        journal_prepared(engine, id, judged, &mut ready, by)?;
    }
    failpoint::crash_point("prepared-journalled");
    Ok(ready)
}

/// The order of commits holds on the medium, too: all earlier ones first, then this. Gives whether
/// there was anything to promise.
fn make_durable(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    ready: &mut Ready,
    judged: &Judged,
    by: u32,
) -> Result<bool, Abort> {
    let failed = |errno| Abort::FailedWrite {
        what: "journalling",
        errno,
    };
    let already = match ready.merged {
        Some(_) => None,
        None => {
            // What an fsync alone has promised is judged again after a power cut, and more severely.
            let is_whole = staging.lock().is_whole() == Ok(true);
            promised_already(engine, id, ready, judged, (by, is_whole))?
        }
    };
    if let Some(appends) = already {
        durability::sync_journal_to(engine, appends).map_err(failed)?;
        return Ok(true);
    }
    let is_merged = ready.merged.is_some();
    let (staging_id, mut kept) = if is_merged {
        // Not what was written: if the journal ended there, it would be rolled forward, over
        // what it has been merged with.
        rustix::fs::fdatasync(&*ready.file).map_err(failed)?;
        failpoint::sync("C7-sync-staging", || engine.store.sync_staging_dir()).map_err(failed)?;
        (ready.id, KeptContent::on_medium(ready.content.clone()))
    } else {
        let mut content = staging.lock();
        let kept = keep(engine, &mut content).map_err(failed)?;
        (content.id, kept)
    };
    let mut overtaken = None;
    loop {
        durability::sync_pending(engine).map_err(failed)?;
        let mut state = engine.lock();
        // Others may have committed while the disk was waited for.
        if !durability::all_synced(engine, &state) && !failpoint::mutant("C19-prefix") {
            overtaken.get_or_insert_with(|| Overtaken::new(engine, &mut state));
            continue;
        }
        let Some(path) = judged.path(engine, &state, (id, ready))? else {
            return Ok(false);
        };
        publish::tell_parts(engine, &mut state, id, &mut ready.content);
        publish::tell_parts(engine, &mut state, id, &mut kept.content);
        let mut records = kept.records(staging_id);
        records.extend(rounds::promised(&state, id, ready, path));
        let appends = engine.sequencer.append_all(&records).map_err(failed)?;
        kept.is_told(appends);
        if let Some(txn) = state.txns.get_mut(&id) {
            if is_merged {
                txn.note_durable_merge(ready.id);
            } else {
                txn.promise.note_durable(kept);
            }
            txn.preparation.note_promised(ready, by);
        }
        drop(state);
        drop(overtaken);
        let synced = durability::sync_journal_to(engine, appends);
        return synced.map(|()| true).map_err(failed);
    }
}

/// What a close has come to, and by whose names and rules.
struct Conclusion {
    judged: Judged,
    policy: Policy,
    kin: Kin,
    flush: Flush,
    /// Another close has judged later, and has said what comes of it.
    is_overtaken: bool,
}

/// Notes what a close has found, and gives what it is told.
fn conclude(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    (found, content): (Conclusion, &Content),
    result: Result<Ready, Abort>,
) -> OpResult<()> {
    if let Some(save) = state.conflicts.registry.saves.get_mut(&id) {
        save.closed = Some(proc::Moment::now());
    }
    let Some(txn) = state.txns.get_mut(&id) else {
        return told_of_ended(state, id);
    };
    let sure = found.flush.last != Last::No;
    let told = result
        .as_ref()
        .is_err_and(|abort| is_told(abort, sure, &found.policy));
    txn.participants.learn(found.kin);
    txn.preparation.note_flush(found.flush);
    match result {
        Ok(_) if found.is_overtaken => Ok(()),
        Err(abort) if found.is_overtaken && told => Err(abort.errno()),
        Err(_) if found.is_overtaken => Ok(()),
        Ok(ready) => {
            if found.judged.staging_id == txn.staging_id {
                // A mapping's pages may have been written meanwhile: RELEASE prepares again then.
                txn.preparation.finish(ready, content.dirty);
            } else {
                // Of one that was published meanwhile there is nothing to commit.
                txn.preparation.withdraw();
            }
            Ok(())
        }
        Err(abort) => {
            // What of it an fsync has made durable is looked at once more where a guard has refused it, or its writer was killed.
            let is_final = sure && told && txn.death().is_none();
            if is_final
                && !matches!(
                    abort,
                    Abort::Guard(_) | Abort::Discarded | Abort::Killed { .. }
                )
            {
                withholding::withhold(engine, txn, false);
            }
            refused(engine, state, id, abort, told)
        }
    }
}

/// A FLUSH that is surely not the last has nothing to prepare, and promises nothing, if nothing was promised before. (Of a
/// failed write it tells: C5.)
fn leave_to_holder(engine: &Engine, id: TxnId, probe: &CloseProbe) -> bool {
    let mut state = engine.lock();
    let is_untouched = |t: &&mut Transaction| t.phase.is_open() && t.preparation.is_untouched();
    let Some(txn) = state.txns.get_mut(&id).filter(is_untouched) else {
        return false;
    };
    txn.participants.learn(probe.kin.clone());
    let dentry = txn.dentry().clone();
    turns::end_turn(&mut state, &dentry, id);
    true
}

/// Content is ready to be promised. Gives whether its program is promised that it is on the medium, and whether it is dead;
/// `None` if there is nothing to promise.
fn note_preparing(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    judged: &Judged,
    ready: &mut Ready,
) -> Option<(bool, bool)> {
    ready.version = publish::next_version(engine, state, &judged.dentry);
    let is_newest = |t: &&mut Transaction| judged.is(t) && !t.preparation.is_newer_than(ready);
    let txn = state.txns.get_mut(&id).filter(is_newest)?;
    txn.participants.note_dead_mapping();
    let before = txn.preparation.replace(ready.clone());
    if txn.is_unlinked() {
        return None;
    }
    let dead = txn.death().is_some();
    if let Some(before) = before.filter(|_| dead) {
        engine
            .sequencer
            .append(&Record::Unprepared { id: before.id })
            .ok();
    }
    Some((txn.has_synced(), dead))
}

fn journal_prepared(
    engine: &Engine,
    id: TxnId,
    judged: &Judged,
    ready: &mut Ready,
    by: u32,
) -> Result<(), Abort> {
    if failpoint::mutant("C18-prepared") {
        return Ok(());
    }
    let mut state = engine.lock();
    let Some(path) = judged.path(engine, &state, (id, ready))? else {
        return Ok(());
    };
    publish::tell_parts(engine, &mut state, id, &mut ready.content);
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.promise.note_prepared();
        txn.preparation.note_promised(ready, by);
    }
    let told = rounds::promised(&state, id, ready, path);
    let told = engine.sequencer.append_all(&told);
    told.map(drop).map_err(|errno| Abort::FailedWrite {
        what: "journalling",
        errno,
    })
}

/// Promises what need not be on the medium, where nobody has to be let through or given room first: see [`promise`].
fn promise_at_once(
    engine: &Engine,
    id: TxnId,
    judged: &Judged,
    mut ready: Ready,
    last_by: Option<u32>,
) -> Option<Result<Ready, Abort>> {
    if !engine.store.has_reserve() || !engine.sequencer.has_room(COMMIT_RECORD) {
        return None;
    }
    let noted = {
        let mut state = engine.lock();
        if has_to_wait(engine, &state) {
            return None;
        }
        note_preparing(engine, &mut state, id, judged, &mut ready)
    };
    let promised = match noted.zip(last_by) {
        // Its content is held, so nobody has called fsync since it was looked at.
        Some(((false, false), by)) => journal_prepared(engine, id, judged, &mut ready, by),
        Some(((true, false), _)) => return None,
        _ => Ok(()),
    };
    failpoint::crash_point("prepared-journalled");
    Some(promised.map(|()| ready))
}

/// Whether who commits has to wait for the disk, or for who waits for that.
fn has_to_wait(engine: &Engine, state: &State) -> bool {
    if failpoint::mutant("C19-at-once") {
        return false;
    }
    let checkpoint = &state.backlog.checkpoint;
    checkpoint.overtaken > 0
        || checkpoint.failed.is_some()
        || durability::has_backlog(engine, state)
}

/// Whether a test wants it so: it holds a close up, or takes out what is done on a worker alone.
fn leaves_it_to_workers() -> bool {
    let holds_up = |variable| failpoint::number(variable, 0) > 0;
    failpoint::feature_off("inline_flush")
        || holds_up("COMMITFS_PROMISE_DELAY_MS")
        || holds_up("COMMITFS_COMMIT_DELAY_MS")
        || failpoint::mutant("C3")
}

/// Whether what a close of a transaction does can be done without a wait, as far as that is known of it.
fn is_simple(state: &State, txn: &Transaction, closer: u32) -> bool {
    let save = state.conflicts.registry.saves.get(&txn.id);
    let is_own = !txn.purpose.edits() && !txn.purpose.is_log() && save.is_none();
    let is_quiet = turn_of(state, txn.id).is_none() && !txn.has_synced();
    let is_untouched = txn
        .preparation
        .ready()
        .is_none_or(|ready| ready.merged.is_none());
    // Whether one who may have mapped it has left a mapping, its `maps` tell: reading these may wait for who waits for us.
    let is_unmapped = !txn.participants.matters_if_mapped(closer);
    is_own && is_quiet && is_untouched && is_unmapped && !txn.phase.is_closing()
}

/// Under which name, and in which staging file, a content was judged.
struct Judged {
    dentry: Dentry,
    staging_id: TxnId,
}

impl Judged {
    fn of(txn: &Transaction) -> Judged {
        Judged {
            dentry: txn.dentry().clone(),
            staging_id: txn.staging_id,
        }
    }

    /// Whether that still is what the transaction is to become.
    fn is(&self, txn: &Transaction) -> bool {
        self.dentry == *txn.dentry() && self.staging_id == txn.staging_id
    }

    /// The path that a promise is to be kept under, as it is now: its directory may have moved since the
    /// content was judged, or be gone, or have another one under the name. `None` if nothing is to be promised.
    fn path(
        &self,
        engine: &Engine,
        state: &State,
        (id, ready): (TxnId, &Ready),
    ) -> Result<Option<PathBuf>, Abort> {
        let vanished = |errno| Abort::VanishedTarget { errno };
        let txn = state
            .txns
            .get(&id)
            .filter(|t| self.is(t) && !t.is_unlinked() && !t.preparation.is_newer_than(ready));
        let Some(dentry) = txn.map(|t| t.dentry()) else {
            return Ok(None);
        };
        check_target(engine, state, dentry).map_err(vanished)?;
        let path = state.nodes.path(dentry);
        path.map(Some).ok_or(vanished(Errno::NOENT))
    }
}

/// What is prepared won't be committed as it is. Gives what close() is told.
fn refused(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    abort: Abort,
    is_told: bool,
) -> OpResult<()> {
    let Some(txn) = state.txns.get_mut(&id) else {
        return Ok(());
    };
    let errno = abort.errno();
    // Nobody is to see what has lost its name, whole or not, and whether its directory is there or not.
    let no_op = matches!(abort, Abort::Guard(_) | Abort::VanishedTarget { .. });
    let unseen = txn.is_unlinked() && no_op && !failpoint::mutant("C11-gone");
    let silent = unseen || matches!(abort, Abort::Discarded | Abort::Killed { .. });
    let dentry = matches!(abort, Abort::Conflict).then(|| txn.dentry().clone());
    if let Some(ready) = txn.preparation.refuse(abort) {
        engine
            .sequencer
            .append(&Record::Unprepared { id: ready.id })
            .ok();
    }
    if let Some(dentry) = dentry {
        let by = state.conflicts.registry.saves.get(&id).and_then(|s| s.by);
        ledger::note_refused(state, &dentry, by.map(|(actor, _)| actor));
    }
    if is_told && !silent {
        return Err(errno);
    }
    Ok(())
}

/// The name whose turn is taken: until the commit, others neither merge nor add to what is replaced.
fn turn_of(state: &State, id: TxnId) -> Option<Dentry> {
    let txn = state.txns.get(&id)?;
    let edits = txn.purpose.edits() && may_be_added_to(&txn.policy);
    (lines::watches(&txn.policy) || edits).then(|| txn.dentry().clone())
}

/// A close that adds nothing to what an fsync has promised: the journal is told that it is sure, which nobody waits for if the content is
/// a whole document of its kind, or of none, and is published by itself. Gives up to where the journal has to be on the medium for that promise.
fn promised_already(
    engine: &Engine,
    id: TxnId,
    ready: &mut Ready,
    judged: &Judged,
    (by, is_whole): (u32, bool),
) -> Result<Option<u64>, Abort> {
    let mut state = engine.lock();
    publish::tell_parts(engine, &mut state, id, &mut ready.content);
    let txn = state.txns.get(&id).filter(|t| judged.is(t));
    let promise = txn.map(|t| &t.promise).filter(|p| p.overtaken().is_none());
    let kept = promise
        .and_then(|p| p.kept())
        .filter(|kept| kept.content == ready.content);
    let Some((_, appends)) = kept.and_then(|kept| kept.inlined.clone()) else {
        return Ok(None);
    };
    let Some(path) = judged.path(engine, &state, (id, ready))? else {
        return Ok(None);
    };
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.preparation.note_promised(ready, by);
    }
    let failed = |errno| Abort::FailedWrite {
        what: "journalling",
        errno,
    };
    // What an fsync has promised of a member alone is not published.
    let txn = state.txns.get(&id);
    let is_member = txn.is_some_and(|t| t.round().is_some()) && !failpoint::mutant("C23-synced");
    let told = rounds::promised(&state, id, ready, path);
    let told = engine.sequencer.append_all(&told);
    let told = told.map_err(failed)?;
    Ok(Some(
        match is_whole && !is_member || failpoint::mutant("C7-sure") {
            true => appends,
            false => told,
        },
    ))
}
