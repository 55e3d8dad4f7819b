//! Room on a full disk (C5): what is on its way out is waited for, what was replaced is given back,
//! and rejected content makes way, before a write fails for want of space.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::engine::base::errors;
use crate::engine::meaning::pins;
use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::namespace::Pending;
use crate::store::{FULL_DISK, Owner, Rejected, Worth, id_name};
use crate::sys::{at, failpoint};
use crate::txn::Staging;
use crate::types::{OpResult, TxnId};

/// Room is looked for so long.
pub const ROOM_LIMIT: Duration = Duration::from_secs(3);
/// What was replaced is given back so often for one request.
const GIVE_BACK: u32 = 3;
/// As much as one request may need.
const PIECE: u64 = 1 << 20;

/// Whether it is the disk that is full, or a quota.
pub fn is_full(result: &OpResult<()>) -> bool {
    matches!(result, Err(Errno::NOSPC | Errno::DQUOT))
}

/// Does what may find the disk full, as often as room can be made. `what` must be such that it
/// can be done again after it has failed.
pub fn making_room<T>(engine: &Engine, what: impl FnMut() -> OpResult<T>) -> OpResult<T> {
    making_room_for(engine, 0, what)
}

/// Does what writes to a staging file, as often as room can be made: its owner's quota may be what is used up.
pub fn making_room_in<T>(
    engine: &Engine,
    staging: &Staging,
    bytes: u64,
    what: impl FnMut() -> OpResult<T>,
) -> OpResult<T> {
    making_room_of(engine, || Owner::of(&*staging.lock().file), bytes, what)
}

/// Does what needs so many bytes at once, as often as room can be made: nothing is dropped where that would not do.
pub fn making_room_for<T>(
    engine: &Engine,
    bytes: u64,
    what: impl FnMut() -> OpResult<T>,
) -> OpResult<T> {
    making_room_of(engine, || None, bytes, what)
}

fn making_room_of<T>(
    engine: &Engine,
    owner: impl Fn() -> Option<Owner>,
    bytes: u64,
    mut what: impl FnMut() -> OpResult<T>,
) -> OpResult<T> {
    let begun = Instant::now();
    let (mut given_back, mut exhausted) = (0, false);
    loop {
        let gone = engine.reaper.closes().ended();
        let result = what();
        let full = match &result {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT)) if !exhausted => *errno,
            _ => return result,
        };
        // Others may go on replacing and removing without end.
        let mut found = begun.elapsed() < ROOM_LIMIT && wait_for_deferred_closes(engine, gone);
        if !found && given_back < GIVE_BACK {
            given_back += 1;
            found = give_back_replaced(engine);
        }
        found = found || pins::make_room(engine);
        exhausted = !found && !drop_rejected_for(engine, bytes, whose(engine, full, &owner));
        engine.store.reuse_freed();
    }
}

/// Copies what an editor goes on from, unless its writes have failed. What fails once there is no
/// room fails again for whoever needs the copy.
pub fn copy_base(engine: &Engine, staging: &Staging) -> OpResult<()> {
    making_room_in(engine, staging, 0, || {
        let mut content = staging.lock();
        match content.failed {
            None => content.copy_base(),
            Some(_) => Ok(()),
        }
    })
}

/// As much as could be free at most, with nothing left of what may go.
fn most_room(engine: &Engine) -> u64 {
    let free = rustix::fs::fstatvfs(&engine.store.root)
        .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    free.saturating_add(engine.store.bytes_kept())
}

/// The disk was full when `gone` files had left. Gives whether something of ours has made room
/// since, so that it is worth trying again; waits for the disk.
///
/// What is gone for programs comes first, and what somebody might still want last.
pub fn find_room(
    engine: &Engine,
    gone: u64,
    full: Errno,
    owner: impl Fn() -> Option<Owner>,
) -> bool {
    let found = wait_for_deferred_closes(engine, gone)
        || give_back_replaced(engine)
        || (pins::make_room(engine) && wait_for_deferred_closes(engine, gone))
        || drop_rejected_for(engine, 0, whose(engine, full, &owner));
    if found {
        engine.store.reuse_freed();
    }
    found
}

fn drop_rejected_for(engine: &Engine, bytes: u64, whose: Option<Owner>) -> bool {
    bytes <= most_room(engine) && make_room(engine, &mut engine.lock(), whose)
}

/// Whose content makes way for what has failed so; `None`: everybody's. A file that nobody owns yet
/// is the daemon's.
pub fn whose(engine: &Engine, full: Errno, owner: &impl Fn() -> Option<Owner>) -> Option<Owner> {
    if full != Errno::DQUOT || !engine.store.has_quotas_of_owners() {
        return None;
    }
    let own = || Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    Some(owner().unwrap_or_else(own))
}

/// Removes a staging file that nobody needs any more.
pub fn remove_staging(engine: &Engine, id: TxnId) {
    engine.reaper.closes().begin();
    engine.store.remove_staging(id).ok();
    engine.reaper.closes().end();
}

/// Waits for what is on its way out, but not for ever. Gives whether anything has left since
/// `gone` files had.
fn wait_for_deferred_closes(engine: &Engine, gone: u64) -> bool {
    let closing = || {
        let failed = |t: &crate::txn::Transaction| {
            t.phase.is_closing() && t.staging.try_lock().is_some_and(|c| c.failed.is_some())
        };
        engine.lock().txns.values().any(failed)
    };
    let leaving = engine.reaper.closes().begun();
    engine.reaper.hurry();
    for _ in 0..100 {
        if engine.reaper.closes().ended() >= leaving && !closing() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if engine.reaper.closes().ended() != gone {
        return true;
    }
    std::thread::sleep(Duration::from_millis(20));
    engine.reaper.closes().is_recent()
}

/// Versions that were replaced or removed take space until the checkpoint has come by: those that
/// never were put in place, and those that lie under names whose new versions are not in place.
/// Gives whether there may be any; waits for the checkpoint then.
fn give_back_replaced(engine: &Engine) -> bool {
    let state = engine.lock();
    let nothing = !state.backlog.unsynced.has_deletes() && state.pending.is_empty();
    if nothing || failpoint::mutant("C5-room") {
        return false;
    }
    drop(state);
    let checkpointed = durability::checkpoint_all(engine);
    // The reaper may have got them only now.
    let leaving = engine.reaper.closes().begun();
    engine.reaper.hurry();
    for _ in 0..100 {
        if engine.reaper.closes().ended() >= leaving {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    checkpointed.is_ok()
}

/// Drops rejected content that is worth least. Gives whether any went.
pub fn make_room(engine: &Engine, state: &mut State, whose: Option<Owner>) -> bool {
    drop_up_to(engine, Worth::OnlyCopy, whose, state)
}

fn drop_up_to(engine: &Engine, worth: Worth, whose: Option<Owner>, state: &mut State) -> bool {
    let versions = versions(engine, state);
    let dropped = engine.store.give_up_rejected(PIECE, worth, whose, versions);
    let dropped = dropped.unwrap_or_default();
    let why = match whose {
        None => FULL_DISK,
        Some(_) => "to make room where a quota was used up",
    };
    errors::report_dropped(state, &dropped, why);
    !dropped.is_empty()
}

/// Keeps aborted contents in rejected. Without its meta file nobody could tell what one is, and it
/// would count as an only copy: there is room for that as long as something is worth less.
pub fn keep_rejected(engine: &Engine, metas: &[Rejected]) {
    let room = || {
        !failpoint::mutant("C5-meta-room")
            && drop_up_to(engine, Worth::Earlier, None, &mut engine.lock())
    };
    if let Err(e) = engine.store.reject(metas, room) {
        let names: Vec<String> = metas.iter().map(|meta| id_name(meta.id)).collect();
        log::error!("rejected/{}: {e}", names.join(", "));
    }
}

/// Keeps rejected content within its bound, where its name has a version.
pub fn bound_rejected(engine: &Engine) {
    let has_version = versions(engine, &engine.lock());
    let dropped = engine
        .store
        .bound_rejected(engine.rejected_bound, has_version);
    let why = format!(
        "as more than {} bytes were kept of files that have versions",
        engine.rejected_bound.bytes
    );
    errors::report_dropped(&mut engine.lock(), &dropped.unwrap_or_default(), &why);
}

/// Tells whether a path has a version, as of now. One that is empty is none: whoever has emptied
/// a file and was killed has left nothing else.
fn versions<'a>(engine: &'a Engine, state: &State) -> impl Fn(&Path) -> bool + use<'a> {
    let is_filled =
        |p: &Pending| p.unwritten.is_some() || at::stat(&*p.file).is_ok_and(|s| s.st_size > 0);
    let filled = state.pending.iter().filter(|(_, p)| is_filled(p));
    let pending: HashSet<PathBuf> = filled
        .map(|(dentry, _)| engine.path_of(state, &dentry))
        .collect();
    move |path| pending.contains(path) || at::is_filled_file_below(&engine.store.root, path)
}
