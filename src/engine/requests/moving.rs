//! A file takes another name, in the backing directory or ahead of it: one step, which is judged anew if it has to wait.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags, Stat};
use rustix::io::Errno;

use crate::commit::Changeset;
use crate::engine::base::{current, directories, target, watchers};
use crate::engine::deciding::names::{Left, Renamed, followers, open_at};
use crate::engine::deciding::{judging, names};
use crate::engine::documents::texts;
use crate::engine::meaning::deciding::is_promised;
use crate::engine::meaning::{deciding, pins};
use crate::engine::requests::exchange;
use crate::engine::versions::barrier::{Barrier, Step};
use crate::engine::versions::replaced;
use crate::engine::versions::{barrier, durability, growing, publish};
use crate::engine::{Engine, State};
use crate::guard::Guard;
use crate::journal::{Edit, Record};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode};
use crate::sys::{at, failpoint};
use crate::types::{Caller, Dentry, NodeId, OpResult, Seq, Version};

/// Gives the two versions that the names had; `None` if these are not those that were judged.
pub fn rename_step(
    engine: &Engine,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
    is_judged: impl Fn(NodeId, Option<NodeId>) -> bool,
    barrier: &mut Barrier,
) -> OpResult<Step<Option<Renamed>>> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let source = current::current(engine, state, from)?;
    let kind = state.nodes.get(source).ok_or(Errno::STALE)?.kind;
    if flags.contains(RenameFlags::NOREPLACE) && deciding::exists(engine, state, to)? {
        return Err(Errno::EXIST);
    }
    let target = current::current_if_any(engine, state, to)?;
    if target == Some(source) && !flags.contains(RenameFlags::EXCHANGE) {
        return Ok(Step::Done(Some((source, None))));
    }
    if !is_judged(source, target) {
        return Ok(Step::Done(None));
    }
    pins::note_renamed(engine, state, (from, source), (to, target));
    if kind == NodeKind::File && flags.is_empty() && rename_pending(engine, state, from, to)? {
        return Ok(Step::Done(Some((source, target))));
    }
    if state.pending.get(from.dir, &from.name).is_some()
        || state.pending.get(to.dir, &to.name).is_some()
        || barrier::must_checkpoint(engine, state, barrier)
    {
        return Ok(Step::CheckpointFirst);
    }
    rename_backing(engine, state, (from, to), flags, source, target)?;
    directories::note_moved(engine, state, source);
    pins::note_moved(state, (from, source), (to, target));
    Ok(Step::Done(Some((source, target))))
}

/// Renames a pending name that the backing directory doesn't have. Gives whether it could.
fn rename_pending(
    engine: &Engine,
    state: &mut State,
    from: &Dentry,
    to: &Dentry,
) -> OpResult<bool> {
    let dir = engine.dir_fd(state, from.dir)?;
    match state.pending.get(from.dir, &from.name) {
        Some(p) if p.superseded.is_empty() => {}
        _ => return Ok(false),
    }
    if at::stat_at(&*dir, &from.name)?.is_some() {
        return Ok(false);
    }
    target::check_target(engine, state, to)?;
    if !publish::can_reserve_commit(engine) {
        // A full disk: once it is in place, renaming it needs no room.
        return Ok(false);
    }
    let version = publish::next_version(engine, state, to);
    let path = state.nodes.path(to).ok_or(Errno::NOENT)?;
    let old_path = state.nodes.path(from).ok_or(Errno::NOENT)?;
    let mut pending = state
        .pending
        .remove(from.dir, &from.name)
        .expect("looked up above");
    let content = engine.sequencer.content_of(pending.id).unwrap_or_default();
    let put = Edit::Put {
        path,
        id: pending.id,
        version,
        content,
        in_place: false,
    };
    let moved = Changeset::from_iter([Edit::Drop { path: old_path }, put]);
    let seq = publish::journal_commit(engine, state, moved);
    (pending.seq, pending.version) = (seq, version);
    let moved = pending.node;
    move_names(state, (from, to), (moved, None));
    if let Some(node) = state.nodes.get_mut(pending.node) {
        node.version = Some(version);
    }
    let replaced = match state.pending.get(to.dir, &to.name) {
        Some(p) => Some(p.node),
        None => publish::cover(engine, state, to),
    };
    let lost = state.added_to(to, replaced);
    state.names.unname(to, lost);
    state.names.rename(from, to);
    // A rename changes the file's ctime.
    at::change(&*pending.file).ok();
    engine.touch_dir(state, from.dir);
    engine.touch_dir(state, to.dir);
    if let Some(old) = state.pending.put(to, pending) {
        if let Some(node) = state.nodes.get_mut(old) {
            node.nameless = true;
        }
        publish::unpin(engine, state, old, true);
    }
    watchers::supersede(engine, state, to, replaced);
    publish::overtake(engine, state, to, engine.sequencer.last());
    follow(engine, state, from, to, moved);
    Ok(true)
}

/// What recovery has to know before a name moves in the backing directory. Gives the old and the new path where all names below move along.
fn journal_move(
    engine: &Engine,
    state: &mut State,
    (from, to): (&Dentry, &Dentry),
    source: NodeId,
    (exchange, moves_dir): (bool, bool),
) -> OpResult<Option<(PathBuf, PathBuf)>> {
    let Some((old, new)) = state.nodes.path(from).zip(state.nodes.path(to)) else {
        return Ok(None);
    };
    let inode = |state: &State| Ok(state.nodes.get(source).ok_or(Errno::STALE)?.key.1);
    if !moves_dir {
        let inode = inode(state)?;
        let (going, coming) = match exchange {
            true => (open_at(state, from), open_at(state, to)),
            false => (followers(state, from, source), Vec::new()),
        };
        let along = [going, coming].map(|ids| names::with_promises(engine, state, &ids));
        let replaces = is_promised(state, to) || exchange && is_promised(state, from);
        if replaces || along.iter().any(|ids| !ids.is_empty()) {
            replaced::announce_moved(engine, state, (&old, &new), inode, exchange, along)?;
        }
        return Ok(None);
    }
    if failpoint::mutant("C18-moved") {
        return Ok(None);
    }
    engine.sequencer.append(&Record::Moved {
        from: old.clone(),
        to: new.clone(),
        inode: inode(state)?,
        exchange,
        going: Vec::new(),
        coming: Vec::new(),
    })?;
    // The move may come to the medium by itself; what is below it has to be found then.
    durability::sync_journal_now(engine, state)?;
    Ok(Some((old, new)))
}

/// What is told of names in the journal moves along with a directory: a new journal starts with that, and without the record of the move.
fn retell_moved(engine: &Engine, (from, to): &(PathBuf, PathBuf), exchange: bool) {
    engine.sequencer.retell(|record| {
        crate::txn::each_path(record, |path| {
            if let Some(moved) = crate::txn::after_move(path, from, to, exchange) {
                *path = moved;
            }
        });
    });
}

/// The file or directory that a rename has replaced is gone.
fn note_gone(
    engine: &Engine,
    state: &mut State,
    stat: &Stat,
    target: Option<NodeId>,
    is_dir: bool,
) {
    let was_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if stat.st_nlink != 1 && !was_dir {
        return;
    }
    state.nodes.unlinked((stat.st_dev, stat.st_ino));
    match target {
        Some(gone) if is_dir => names::orphan_transactions(engine, state, gone),
        Some(gone) => {
            let fd = state.nodes.reap(gone);
            engine.defer_close(fd);
        }
        None => {}
    }
}

fn rename_backing(
    engine: &Engine,
    state: &mut State,
    (from, to): (&Dentry, &Dentry),
    flags: RenameFlags,
    source: NodeId,
    target: Option<NodeId>,
) -> OpResult<()> {
    let (from_dir, to_dir) = (
        engine.dir_fd(state, from.dir)?,
        engine.dir_fd(state, to.dir)?,
    );
    let is_directory = |state: &State, id| {
        let node = state.nodes.get(id);
        node.is_some_and(|n| n.kind == NodeKind::Dir)
    };
    let is_dir = is_directory(state, source);
    if is_dir && target.is_some_and(|t| names::holds_claims(state, t)) {
        return Err(Errno::NOTEMPTY);
    }
    let version = match is_dir {
        true => Version::default(),
        false => publish::next_version(engine, state, to),
    };
    let replaced = at::stat_at(&*to_dir, &to.name)?;
    let hold = at::open_path(&*to_dir, &to.name).ok();
    let lost = state.added_to(to, target);
    engine.sequencer.barrier()?;
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    let moves_dir = is_dir || exchange && target.is_some_and(|t| is_directory(state, t));
    let below = journal_move(engine, state, (from, to), source, (exchange, moves_dir))?;
    rustix::fs::renameat_with(&*from_dir, &from.name, &*to_dir, &to.name, flags)?;
    if let Some(paths) = below {
        retell_moved(engine, &paths, exchange);
    }
    growing::note_grown_moved(engine, state, (from, to), (source, target), flags);
    if exchange {
        state.names.exchange(from, to);
        exchange::exchange_writers(engine, state, from, to);
    } else {
        state.names.unname(to, lost);
        state.names.rename(from, to);
    }
    if let Some(stat) = replaced.filter(|_| !exchange) {
        note_gone(engine, state, &stat, target, is_dir);
    }
    move_names(state, (from, to), (source, target.filter(|_| exchange)));
    if let Some(node) = state.nodes.get_mut(source).filter(|_| !is_dir) {
        node.version = Some(version);
    }
    durability::mark_dirty(engine, state, from.dir);
    durability::mark_dirty(engine, state, to.dir);
    engine.defer_close(hold.map(|fd| Arc::new(fd.into())));
    if is_dir {
        names::retarget_below(engine, state);
        return Ok(());
    }
    state.tally.counters.commits += 1;
    store_version(state, source, version);
    if exchange {
        publish::end_claims(engine, state, to);
        publish::end_claims(engine, state, from);
    } else {
        publish::overtake(engine, state, to, Seq::default());
        follow(engine, state, from, to, source);
    }
    Ok(())
}

/// A rename is a commit of the name it goes to: its guard, and durability where the file was
/// in direct mode. Gives the version that it has to be, if any guard judges.
pub fn check_moved(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
) -> OpResult<Option<NodeId>> {
    let (id, fd, policy, direct, pending) = {
        let mut state = texts::lock_materialized(engine, from)?;
        let id = current::current(engine, &mut state, from)?;
        let node = state.nodes.get(id).ok_or(Errno::STALE)?;
        if node.kind != NodeKind::File {
            return Ok(None);
        }
        let fd = state.nodes.fd(id)?;
        let policy = engine.policy(&state, to, Creation::default());
        let direct = engine.policy(&state, from, Creation::default()).mode == RuleMode::Direct;
        let pending = state.pending.get(from.dir, &from.name).is_some();
        (id, fd, policy, direct, pending)
    };
    let file = at::reopen_quietly(&*fd)?;
    if policy.mode == RuleMode::Atomic {
        judging::check_named(engine, caller.tid, &file, (to, &policy), true)?;
    }
    if direct || !pending {
        // Whatever lies in the backing directory unsynced was written in direct mode or while
        // nobody had it mounted.
        failpoint::sync("C14-sync-rename", || rustix::fs::fdatasync(&file))?;
    }
    let is_judged = policy.mode == RuleMode::Atomic && policy.guard != Guard::None;
    Ok((is_judged && !failpoint::mutant("C21-judged")).then_some(id))
}

/// What has got another name by its content loses the old one, unless somebody has committed
/// under that since.
pub fn unlink_moved(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    moved: Option<Left>,
) -> OpResult<()> {
    let mut discarded = true;
    let unlinked = barrier::checkpoint_until(engine, |engine, barrier| {
        names::unlink_step(engine, caller, from, moved, &mut discarded, barrier)
    });
    unlinked.or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })
}

fn store_version(state: &State, node: NodeId, version: Version) {
    if let Ok(fd) = state.nodes.fd(node) {
        crate::txn::mark_version(&*fd, version);
    }
}

/// Writers of the moved file follow it to its new name; those that are creating a file of
/// their own under the old name keep it (C11).
fn follow(engine: &Engine, state: &mut State, from: &Dentry, to: &Dentry, moved: NodeId) {
    for id in followers(state, from, moved) {
        names::retarget(engine, state, id, to);
        names::journal_moved(engine, state, id);
    }
}

/// Whoever has looked up a file that has another name now finds it there.
pub fn move_names(state: &mut State, names: (&Dentry, &Dentry), nodes: (NodeId, Option<NodeId>)) {
    let ((from, to), (source, target)) = (names, nodes);
    for (dentry, found) in state.walks.lookups.values_mut() {
        if *found == source && dentry == from {
            dentry.clone_from(to);
        } else if Some(*found) == target && dentry == to {
            dentry.clone_from(from);
        }
    }
    state.nodes.move_name(from, to, nodes);
}
