//! Two names change places (RENAME_EXCHANGE) while files under them are being written; and renames over the names of groups,
//! which replace nothing before their round is complete (C23).
//!
//! On the plain directory an open file goes with its name: whoever has `a` open writes into what is
//! `b` afterwards. So each side's transactions follow their file, also one prepared for an open that
//! is still on its way: left behind, its close would replace the other file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::base::publication::Publication;
use crate::engine::base::target::check_target;
use crate::engine::deciding::checkpoint::tell_begun;
use crate::engine::deciding::names::open_at;
use crate::engine::deciding::resting::publish_in_place;
use crate::engine::deciding::{finishing, judging, names, prepare, publishing, rounds};
use crate::engine::descriptions::append::streams;
use crate::engine::descriptions::io;
use crate::engine::documents::texts;
use crate::engine::meaning::{group_locks, resolve};
use crate::engine::requests::moving;
use crate::engine::versions::barrier::JUDGEMENTS;
use crate::engine::versions::beginning;
use crate::engine::versions::{aborting, barrier, durability, room};
use crate::engine::{Durability, Engine, State};
use crate::guard::{Guard, Replaces};
use crate::journal::Record;
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode};
use crate::sys::{at, failpoint, proc};
use crate::txn::{Abort, Begun, Content, Own, Staging, copy_attributes};
use crate::types::{Caller, Dentry, OpResult, TxnId, errno_of, mtime_ns};

/// What an exchange takes from a name.
#[derive(Clone, Copy, Debug)]
enum ExchangeSide {
    /// A new file that only the caller sees, or that is a claim.
    Hidden(TxnId),
    /// A version, of which the caller has written another.
    Written(TxnId),
    /// What is committed.
    Version,
}

impl ExchangeSide {
    fn has_ended(self, state: &State) -> bool {
        match self {
            ExchangeSide::Hidden(id) | ExchangeSide::Written(id) => state.has_ended(id),
            ExchangeSide::Version => false,
        }
    }
}

/// A name, the one that it exchanges with, and what it gives.
type Side<'a> = (&'a Dentry, &'a Dentry, ExchangeSide);

pub fn exchange_now(engine: &Engine, caller: Caller, from: &Dentry, to: &Dentry) -> OpResult<()> {
    let mut tries = 0;
    let sides = loop {
        tries += 1;
        let sides = [
            (from, to, side(engine, caller, from)?),
            (to, from, side(engine, caller, to)?),
        ];
        match exchange_sides(engine, caller, sides) {
            Ok(true) => break sides,
            Ok(false) if tries < JUDGEMENTS => {}
            Ok(false) => return Err(Errno::BUSY),
            Err(Errno::NOENT)
                if sides
                    .iter()
                    .any(|(.., side)| side.has_ended(&engine.lock())) => {}
            Err(e) => return Err(e),
        }
    };
    for (.., side) in sides {
        if let ExchangeSide::Written(id) = side {
            publish_written(engine, caller, id);
        }
    }
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// Gives whether they have changed places: not if somebody else has put something under one of the
/// names that has not been judged.
fn exchange_sides(engine: &Engine, caller: Caller, sides: [Side<'_>; 2]) -> OpResult<bool> {
    let mut judged = [None; 2];
    // What may be refused comes before anybody sees anything of it.
    for ((dentry, other, side), judged) in sides.iter().zip(&mut judged) {
        match *side {
            ExchangeSide::Hidden(id) => {
                // It gets its first version under the name that it has.
                check_written(engine, caller, id, dentry)?;
                check_written(engine, caller, id, other)?;
            }
            ExchangeSide::Written(id) => check_written(engine, caller, id, other)?,
            ExchangeSide::Version => *judged = moving::check_moved(engine, caller, dentry, other)?,
        }
    }
    for ((dentry, other, side), judged) in sides.iter().zip(&mut judged) {
        match *side {
            ExchangeSide::Hidden(id) => bring_out(engine, caller, id, dentry)?,
            ExchangeSide::Written(id)
                if matches!(judge_written(engine, id, dentry), Ok(Ok(()))) =>
            {
                publish_written(engine, caller, id);
            }
            ExchangeSide::Written(_) => {}
            ExchangeSide::Version => continue,
        }
        *judged = moving::check_moved(engine, caller, dentry, other)?;
    }
    let [(from, to, _), _] = sides;
    let is_judged = |one, other| {
        let mut both = judged.into_iter().zip([Some(one), other]);
        both.all(|(judged, found)| judged.is_none() || judged == found)
    };
    let exchanged = barrier::checkpoint_until(engine, |engine, barrier| {
        moving::rename_step(engine, from, to, RenameFlags::EXCHANGE, is_judged, barrier)
    })?;
    Ok(exchanged.is_some())
}

fn side(engine: &Engine, caller: Caller, dentry: &Dentry) -> OpResult<ExchangeSide> {
    let mut state = engine.lock();
    let own = resolve::own_transaction(engine, &mut state, caller, dentry);
    if current::current_if_any(engine, &mut state, dentry)?.is_some() {
        let written = own.filter(|id| state.txns.get(id).is_some_and(|t| t.would_commit()));
        return Ok(written.map_or(ExchangeSide::Version, ExchangeSide::Written));
    }
    let claim = || state.txns.seen_by_all_at(dentry).next();
    let hidden = own.or_else(|| claim().map(|t| t.id));
    Ok(hidden.map_or(ExchangeSide::Version, ExchangeSide::Hidden))
}

/// Whether what a transaction holds so far may get a name.
fn check_written(engine: &Engine, caller: Caller, id: TxnId, name: &Dentry) -> OpResult<()> {
    if failpoint::mutant("C11-refused") {
        return Ok(());
    }
    let judged = judge_written(engine, id, name)?;
    judged.map_err(|abort| aborting::refuse(engine, name, abort, caller.tid))
}

/// What the guard of a name says of it.
fn judge_written(engine: &Engine, id: TxnId, name: &Dentry) -> OpResult<Result<(), Abort>> {
    let (staging, policy, stays) = {
        let state = engine.lock();
        let txn = state.txns.get(&id).ok_or(Errno::NOENT)?;
        let policy = engine.policy(&state, name, Creation::default());
        (txn.staging.clone(), policy, txn.dentry() == name)
    };
    let judges = policy.mode == Mode::Atomic && policy.guard != Guard::None;
    if judges {
        room::copy_base(engine, &staging).ok();
    }
    let mut content = staging.lock();
    match &content.failed {
        // It has no first version either.
        Some(failure) if stays => return Err(failure.errno),
        // What is committed goes, as after the close.
        Some(_) => return Ok(Ok(())),
        None => {}
    }
    if !judges {
        return Ok(Ok(()));
    }
    content.copy_base()?;
    let how = match stays {
        true => judging::replaces(engine, id, &content),
        false => Replaces::Whole,
    };
    Ok(judging::check_guard(
        engine,
        &mut content,
        name,
        &policy,
        how,
    ))
}

/// A new file gets its first version under the name that it has: there has to be something to
/// exchange.
fn bring_out(engine: &Engine, caller: Caller, id: TxnId, dentry: &Dentry) -> OpResult<()> {
    match streams::unpublished_stream(engine, id) {
        Some(handle) => streams::publish_first(engine, id, handle, 0, b"").map(drop),
        None => publishing::publish_open(
            engine,
            caller.tid,
            id,
            dentry,
            Publication::Rename(RenameFlags::empty()),
        )
        .map(drop),
    }
}

/// What the caller has written so far is what others find at once under the new name, as after a
/// rename of an open file (C11). What can't be committed yet, half a document say, is judged at
/// the close.
fn publish_written(engine: &Engine, caller: Caller, id: TxnId) {
    let dentry = engine.lock().txns.get(&id).map(|t| t.dentry().clone());
    let Some(dentry) = dentry.filter(|_| streams::unpublished_stream(engine, id).is_none()) else {
        return;
    };
    match publish_in_place(engine, caller.tid, id) {
        Ok(()) | Err(Errno::NODATA) => {}
        Err(e) => log::info!(
            "{}: in an exchange, what is written is not committed yet: {e}",
            engine.show(&engine.lock(), &dentry)
        ),
    }
}

/// The transactions of two names have changed places with what these mean.
pub fn exchange_writers(engine: &Engine, state: &mut State, from: &Dentry, to: &Dentry) {
    if failpoint::mutant("C11-exchange") {
        return;
    }
    let (here, there) = (open_at(state, from), open_at(state, to));
    for (ids, dentry) in [(here, to), (there, from)] {
        for id in ids {
            names::retarget(engine, state, id, dentry);
            names::journal_moved(engine, state, id);
        }
    }
}

/// Whether a rename of what is staged publishes nothing: one of the two names belongs to a group.
pub fn stays_staged(engine: &Engine, id: TxnId, to: &Dentry) -> bool {
    let mut state = engine.lock();
    let Some(txn) = state.txns.get(&id) else {
        return false;
    };
    let (is_member, pid) = (txn.round().is_some(), txn.participants.opener());
    let policy = engine.policy(&state, to, Creation::default());
    is_member || group_locks::membership(engine, &mut state, to, &policy, pid).is_some()
}

/// Renames what is staged. What waits for its round waits for that of its new name, or is published if there is none.
pub fn rename_staged(
    engine: &Engine,
    caller: Caller,
    id: TxnId,
    (from, to): (&Dentry, &Dentry),
) -> OpResult<()> {
    if from == to {
        return Ok(());
    }
    let (left, is_held) = {
        let mut guard = engine.lock();
        let state = &mut *guard;
        check_target(engine, state, to)?;
        let left = names::left_at(engine, state, from).ok().flatten();
        let policy = engine.policy(state, to, Creation::default());
        rounds::leave_before_move(state, id);
        let txn = state.txns.get_mut(&id).ok_or(Errno::NOENT)?;
        let is_held = txn.phase.is_held();
        if is_held {
            txn.phase.close();
        }
        txn.policy.group = policy.group;
        txn.purpose.end_stream();
        names::retarget(engine, state, id, to);
        names::journal_target(engine, state, id);
        rounds::enter(engine, state, id);
        if let Some(txn) = state.txns.get(&id) {
            let (id, round) = (txn.staging_id, txn.round().unwrap_or_default());
            engine.sequencer.append(&Record::Grouped { id, round })?;
        }
        (left, is_held)
    };
    if is_held {
        close_moved(engine, id, Ok(()))?;
    }
    if left.is_some() {
        moving::unlink_moved(engine, caller, from, left)?;
    }
    Ok(())
}

/// What nobody has open is judged by the rules of its name, and waits or is published.
fn close_moved(engine: &Engine, id: TxnId, moved: OpResult<()>) -> OpResult<()> {
    let staging = engine.lock().txns.get(&id).map(|txn| txn.staging.clone());
    let staging = staging.ok_or(Errno::NOENT)?;
    let prepared = moved.and_then(|()| prepare::prepare(engine, id, &staging, 0));
    let mut state = engine.lock();
    let refusal = state
        .txns
        .get(&id)
        .and_then(|txn| txn.preparation.refusal());
    let refusal = refusal.map(|abort| abort.errno());
    let aborted = finishing::finish(engine, &mut state, id);
    drop(state);
    if let Some(aborted) = aborted {
        aborting::finish_aborted(engine, [aborted]);
    }
    prepared.and(refusal.map_or(Ok(()), Err))
}

/// Renames a file over the name of a group's member: what it has waits for its round as if it had been written there. Gives
/// whether it is done; it isn't where no group has the name.
pub fn rename_into_group(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
) -> OpResult<bool> {
    let pid = proc::tgid(caller.tid).unwrap_or(0);
    let (id, file, left) = {
        let mut guard = texts::lock_materialized(engine, from)?;
        let state = &mut *guard;
        let policy = engine.policy(state, to, Creation::default());
        let is_member = group_locks::membership(engine, state, to, &policy, pid).is_some();
        if !is_member || from == to || pid == 0 {
            return Ok(false);
        }
        let is_file = |state: &State, id| {
            state
                .nodes
                .get(id)
                .is_some_and(|n| n.kind == NodeKind::File)
        };
        let source = current::current(engine, state, from)?;
        let base = current::current_if_any(engine, state, to)?;
        let are_files = is_file(state, source) && base.is_none_or(|base| is_file(state, base));
        if !are_files || base == Some(source) {
            return Ok(false);
        }
        let file = at::reopen_quietly(&*state.nodes.fd(source)?)?;
        let left = names::left_at(engine, state, from)?;
        let id = beginning::begin_on(engine, state, to.clone(), Begun::by_open(base, false, true))?;
        if let Some(txn) = state.txns.get_mut(&id) {
            txn.participants.open(pid, caller.tid);
            txn.participants.join(pid, caller.tid, false);
            txn.participants.close(caller);
            txn.purpose.note_write();
            txn.phase.open();
        }
        rounds::enter(engine, state, id);
        tell_begun(engine, state, &state.txns[&id])?;
        (id, file, left)
    };
    let staging = engine.lock().txns.get(&id).map(|txn| txn.staging.clone());
    let copied = staging.ok_or(Errno::NOENT).and_then(|staging| {
        io::change_staged(engine, &staging, "rename", |content| {
            copy_into(content, &staging, &file)
        })
    });
    if let (Err(errno), Some(txn)) = (copied, engine.lock().txns.get_mut(&id)) {
        let what = "rename";
        txn.preparation.refuse(Abort::FailedWrite { what, errno });
        // The file is where it was.
        txn.purpose.restore();
    }
    if let Some(txn) = engine.lock().txns.get_mut(&id) {
        txn.phase.close();
    }
    close_moved(engine, id, copied)?;
    moving::unlink_moved(engine, caller, from, left)?;
    Ok(true)
}

/// A staged content becomes that of a file, with its attributes and time.
fn copy_into(content: &mut Content, staging: &Staging, file: &File) -> OpResult<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    content.truncate(0)?;
    loop {
        let read = file.read_at(&mut buffer, at).map_err(|e| errno_of(&e))?;
        if read == 0 {
            break;
        }
        let mut written = 0;
        while written < read {
            let offset = at + written as u64;
            written += content.write(&buffer[written..read], offset)?;
        }
        at += read as u64;
    }
    copy_attributes(file, &content.file)?;
    at::set_mtime(&content.file, mtime_ns(&at::stat(file)?))?;
    content.times_set = true;
    for own in [Own::Owner, Own::Mode, Own::Xattrs] {
        staging.set_own(own);
    }
    Ok(())
}
