//! Operations on names: unlink, rmdir, and how what is done to a name waits for the checkpoint; `renaming`, `making`,
//! `replaced`.
//!
//! Names that are only pending are edited in memory and in the journal. Everything else that takes
//! a name away or moves it happens in the backing directory, and first waits until nothing is
//! pending: so the order of commits and removals is the same on the medium as it was for programs,
//! and an old checkpoint is never gone before the new one is safe.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::current;
use crate::engine::deciding::checkpoint;
use crate::engine::deciding::rounds;
use crate::engine::meaning::deciding::is_as_good_as_there;
use crate::engine::meaning::{overwrites, pins, resolve, stat, turns};
use crate::engine::versions::barrier::{Barrier, Step};
use crate::engine::versions::{barrier, durability, publish, shared};
use crate::engine::{Engine, State};
use crate::journal::{Edit, Record};
use crate::rules::{Creation, Mode as RuleMode};
use crate::sys::{at, failpoint};
use crate::txn::Transaction;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId, Version};

/// What stands under a name, to be told from what is committed there, or added, later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Backing device and inode number.
    file: (u64, u64),
    version: Version,
    /// Length in bytes.
    size: i64,
}

/// The version that was renamed, and the one that it replaced.
pub type Renamed = (NodeId, Option<NodeId>);

pub fn refuse_state_dir(dir: NodeId, name: &OsStr) -> OpResult<()> {
    if virtualdir::is_virtual(dir) || Engine::is_state_dir(dir, name) {
        return Err(Errno::PERM);
    }
    Ok(())
}

pub fn unlink_open_name(
    engine: &Arc<Engine>,
    caller: Caller,
    dentry: Dentry,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    let mut discarded = false;
    barrier::with_checkpoint(
        engine,
        move |engine, barrier| unlink_step(engine, caller, &dentry, None, &mut discarded, barrier),
        done,
    );
}

/// Unlinks a name of our own accord, as long as it means a certain file.
pub fn unlink_file(
    engine: &Arc<Engine>,
    dentry: Dentry,
    file: NodeId,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    let nobody = Caller {
        tid: 0,
        uid: 0,
        gid: 0,
    };
    let mut discarded = false;
    barrier::with_checkpoint(
        engine,
        move |engine, barrier| {
            let left = {
                let mut state = engine.lock();
                match current::current_if_any(engine, &mut state, &dentry)? {
                    Some(current) if current == file => {
                        state.nodes.drop_name(file);
                        left_at(engine, &mut state, &dentry)?
                    }
                    _ => return Err(Errno::NOENT),
                }
            };
            unlink_step(engine, nobody, &dentry, left, &mut discarded, barrier)
        },
        done,
    );
}

/// What a name means, as it is now.
pub fn left_at(engine: &Engine, state: &mut State, dentry: &Dentry) -> OpResult<Option<Left>> {
    let Some(id) = current::current_if_any(engine, state, dentry)? else {
        return Ok(None);
    };
    let version = publish::version_of(state, id);
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    let size = stat::attr_of(state, node)?.stat.st_size;
    Ok(Some(Left {
        file: node.key,
        version,
        size,
    }))
}

/// With `only`: ENOENT if the name means something else by now.
pub fn unlink_step(
    engine: &Engine,
    caller: Caller,
    dentry: &Dentry,
    only: Option<Left>,
    discarded: &mut bool,
    barrier: &mut Barrier,
) -> OpResult<Step<()>> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if only.is_some() && left_at(engine, state, dentry)? != only {
        return Err(Errno::NOENT);
    }
    let dir = engine.dir_fd(state, dentry.dir)?;
    let backing = at::stat_at(&*dir, &dentry.name)?;
    if let Some(stat) = &backing
        && FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        && state.pending.get(dentry.dir, &dentry.name).is_none()
    {
        return Err(Errno::ISDIR);
    }
    // What is open under the name is discarded as the name goes, not before a wait for that: should the daemon end
    // meanwhile, what was fsync'd is a version still.
    let discard = |state: &mut State, discarded: &mut bool| {
        let own = resolve::own_transaction(engine, state, caller, dentry).is_some()
            || state.txns.seen_by_all_at(dentry).next().is_some();
        let committed = backing.is_some() || state.pending.get(dentry.dir, &dentry.name).is_some();
        if !*discarded && (own || committed) {
            *discarded |= discard_transactions(engine, state, dentry) && own;
        }
    };
    if failpoint::mutant("C7-unlink-waits") {
        discard(state, discarded);
    }
    if let Some(pending) = state.pending.get(dentry.dir, &dentry.name) {
        if backing.is_some() || !pending.superseded.is_empty() {
            return Ok(Step::CheckpointFirst);
        }
        let removed = pending.node;
        discard(state, discarded);
        pins::note_change(engine, state, dentry, Some(removed));
        overwrites::note_removed(state, caller.tid, dentry, Some(removed));
        drop_pending(engine, state, dentry);
        return Ok(Step::Done(()));
    }
    let Some(stat) = backing else {
        discard(state, discarded);
        return if *discarded {
            Ok(Step::Done(()))
        } else {
            Err(Errno::NOENT)
        };
    };
    let direct = engine.policy(state, dentry, Creation::default()).mode == RuleMode::Direct
        || shared::was_a_companion(state, dentry, (stat.st_dev, stat.st_ino));
    if !direct && barrier::must_checkpoint(engine, state, barrier) {
        return Ok(Step::CheckpointFirst);
    }
    if failpoint::mutant("C11-unlink-fails") {
        discard(state, discarded);
    }
    remove_backing(engine, state, caller, dentry, &dir, &stat)?;
    // What is open there goes on if the file stays.
    discard(state, discarded);
    Ok(Step::Done(()))
}

fn remove_backing(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
    dir: &File,
    stat: &rustix::fs::Stat,
) -> OpResult<()> {
    let hold = at::open_path(dir, &dentry.name).ok();
    let node = current::current_if_any(engine, state, dentry)?;
    let lost = state.added_to(dentry, node);
    engine.sequencer.barrier()?;
    failpoint::fail_point("unlink")?;
    rustix::fs::unlinkat(dir, &dentry.name, AtFlags::empty())?;
    pins::note_change(engine, state, dentry, node);
    overwrites::note_removed(state, caller.tid, dentry, node);
    state.names.unname(dentry, lost);
    if stat.st_nlink == 1 {
        state.nodes.unlinked((stat.st_dev, stat.st_ino));
        let fd = node.and_then(|node| state.nodes.reap(node));
        engine.defer_close(fd);
    }
    state.names.forget_error(dentry);
    durability::mark_dirty(engine, state, dentry.dir);
    engine.defer_close(hold.map(|fd| Arc::new(fd.into())));
    Ok(())
}

/// Marks every transaction of a name as discarded. Gives whether there was one.
fn discard_transactions(engine: &Engine, state: &mut State, dentry: &Dentry) -> bool {
    state.discard_prepared(dentry);
    let ids: Vec<TxnId> = state.txns.at(dentry).map(|t| t.id).collect();
    for id in &ids {
        state.wake_for(*id, dentry);
        let id_of = *id;
        if let Some(txn) = state.txns.get_mut(id) {
            if !failpoint::mutant("C11-unlink") {
                txn.unlink();
            }
            txn.visibility.end();
            let (id, node) = (txn.staging_id, txn.node);
            engine
                .sequencer
                .append(&Record::Retarget { id, path: None })
                .ok();
            rounds::drop_unlinked(state, id_of);
            // It has no link any more.
            if let Some(notify) = engine.kernel.notify() {
                notify.attributes_changed(node);
            }
        }
    }
    !ids.is_empty()
}

/// Takes a pending name away that the backing directory doesn't have.
fn drop_pending(engine: &Engine, state: &mut State, dentry: &Dentry) {
    let path = state.nodes.path(dentry).unwrap_or_default();
    let Some(pending) = state.pending.remove(dentry.dir, &dentry.name) else {
        return;
    };
    let lost = state.added_to(dentry, Some(pending.node));
    state.names.unname(dentry, lost);
    let seq = publish::journal_commit(engine, state, Edit::Drop { path }.into());
    state.tally.counters.commits -= 1;
    state.backlog.unsynced.delete_after(seq, pending.id);
    if let Some(node) = state.nodes.get_mut(pending.node) {
        node.nameless = true;
    }
    publish::unpin(engine, state, pending.node, true);
    engine.touch_dir(state, dentry.dir);
}

/// The staging files of those transactions that have promised something which nobody has replaced.
pub fn with_promises(engine: &Engine, state: &State, ids: &[TxnId]) -> Vec<TxnId> {
    let txns = ids.iter().filter_map(|id| state.txns.get(id));
    // It has begun already.
    let promises = |t: &&Transaction| {
        let records = checkpoint::records_of(engine, state, t);
        let told = records
            .iter()
            .skip(1)
            .filter(|r| !matches!(r, Record::Grouped { .. }));
        t.promise.overtaken().is_none() && told.count() > 0
    };
    txns.filter(promises).map(|t| t.staging_id).collect()
}

/// The journal is told under which name a transaction goes on with its file, and once more what
/// it has promised: that is newer than what was committed under this name before.
pub fn journal_moved(engine: &Engine, state: &State, id: TxnId) {
    journal_target(engine, state, id);
    let promised = state
        .txns
        .get(&id)
        .filter(|t| t.promise.overtaken().is_none());
    if let Some(txn) = promised.filter(|_| !failpoint::mutant("C7-moved")) {
        // It has begun already.
        let records = checkpoint::records_of(engine, state, txn);
        engine.sequencer.append_all(&records[1..]).ok();
    }
}

/// A transaction goes on under another name, and what that name's guard refuses.
pub fn retarget(engine: &Engine, state: &mut State, id: TxnId, to: &Dentry) {
    let policy = engine.policy(state, to, Creation::default());
    if let Some(txn) = state.txns.get_mut(&id) {
        let before = (txn.policy.guard, txn.policy.allow_empty);
        (txn.policy.guard, txn.policy.allow_empty) = (policy.guard, policy.allow_empty);
        // An earlier close has judged by the old name's. Unless it was the last, and is told.
        let told = txn.preparation.was_last();
        if before != (policy.guard, policy.allow_empty)
            && !told
            && let Some(ready) = txn.preparation.withdraw()
        {
            engine
                .sequencer
                .append(&Record::Unprepared { id: ready.id })
                .ok();
        }
    }
    // Nobody waits for it under its old name.
    if let Some(from) = state.txns.get(&id).map(|txn| txn.dentry().clone()) {
        turns::end_turn(state, &from, id);
    }
    state.move_transaction(id, to);
}

pub fn journal_target(engine: &Engine, state: &State, id: TxnId) {
    // One whose directory is gone keeps its last path: without any it would be an unlinked one.
    if let Some(txn) = state.txns.get(&id)
        && let Some(path) = state.nodes.path(txn.dentry())
    {
        engine
            .sequencer
            .append(&Record::Retarget {
                id: txn.staging_id,
                path: Some(path),
            })
            .ok();
    }
}

/// A directory has moved, and open transactions below it with it (C6).
pub fn retarget_below(engine: &Engine, state: &State) {
    for txn in state.txns.values() {
        if !txn.is_unlinked() && (txn.phase.is_open() || txn.phase.is_held()) {
            journal_target(engine, state, txn.id);
        }
    }
}

/// Whether names that are there to everybody lie in a directory only as open transactions.
pub fn holds_claims(state: &State, dir: NodeId) -> bool {
    state
        .txns
        .values()
        .any(|t| t.dentry().dir == dir && is_as_good_as_there(t))
        || state.pending.in_dir(dir).next().is_some()
}

impl Engine {
    /// rmdir(2).
    pub fn rmdir(
        self: &Arc<Self>,
        dir: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        if let Err(e) = refuse_state_dir(dir, name) {
            return done(Err(e));
        }
        let dentry = Dentry {
            dir,
            name: name.to_owned(),
        };
        barrier::with_checkpoint(
            self,
            move |engine, barrier| rmdir_step(engine, &dentry, barrier),
            done,
        );
    }
}

pub fn rmdir_step(engine: &Engine, dentry: &Dentry, barrier: &mut Barrier) -> OpResult<Step<()>> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let id = current::current(engine, state, dentry)?;
    if holds_claims(state, id) {
        return Err(Errno::NOTEMPTY);
    }
    if barrier::must_checkpoint(engine, state, barrier) {
        return Ok(Step::CheckpointFirst);
    }
    let dir = engine.dir_fd(state, dentry.dir)?;
    engine.sequencer.barrier()?;
    rustix::fs::unlinkat(&*dir, &dentry.name, AtFlags::REMOVEDIR)?;
    if let Some(node) = state.nodes.get_mut(id) {
        node.unlinked = true;
    }
    state.backlog.unsynced.forget_dir(id);
    orphan_transactions(engine, state, id);
    durability::mark_dirty(engine, state, dentry.dir);
    Ok(Step::Done(()))
}

/// A directory is gone, and what was to be committed in it has no place any more: not in a
/// later directory of the same path either, should the daemon end before the close.
pub fn orphan_transactions(engine: &Engine, state: &State, dir: NodeId) {
    for txn in state.txns.values().filter(|t| t.dentry().dir == dir) {
        engine
            .sequencer
            .append(&Record::Abort { id: txn.staging_id })
            .ok();
    }
}

impl Engine {
    /// fsync of a directory: all earlier commits, renames and unlinks are durable after it (C7).
    pub fn fsyncdir(
        self: &Arc<Self>,
        dir: NodeId,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(dir) {
            return done(Ok(()));
        }
        self.on_worker(move |engine| {
            let synced = durability::checkpoint_all(engine).and_then(|()| {
                use std::os::fd::AsFd;
                let fd = engine.dir_fd(&engine.lock(), dir)?;
                failpoint::sync("C7-sync-dir", || at::sync_dir(fd.as_fd()))
            });
            done(synced);
        });
    }
}

/// The transactions of a name that are not discarded, in the order in which they are listed: the newest
/// is the one that its process sees.
pub fn open_at(state: &State, dentry: &Dentry) -> Vec<TxnId> {
    let open = state.txns.all_at(dentry).filter(|t| !t.is_unlinked());
    open.map(|t| t.id).collect()
}

/// Those that go along when the file is renamed. Also one prepared for an open that is still on its
/// way: it has what has moved.
pub fn followers(state: &State, from: &Dentry, moved: NodeId) -> Vec<TxnId> {
    let mut ids = open_at(state, from);
    ids.retain(|id| {
        // What is closed goes where its name is.
        let open = state.txns.get(id).filter(|t| !t.phase.is_held());
        let purpose = open.map(|t| &t.purpose);
        purpose.is_some_and(|p| p.edits() || p.base() == Some(moved) || p.holds_nothing())
    });
    ids
}
