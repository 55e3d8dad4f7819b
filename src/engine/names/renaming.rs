//! rename(2): of what is open, of what is pending, and in the backing directory; over a name with a rule for conflicts it is a
//! save, which may be merged.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::super::append::streams;
use super::super::barrier::{Barrier, JUDGEMENTS, Step};
use super::super::deciding::is_promised;
use super::super::documents::texts;
use super::super::exchange::{rename_into_group, rename_staged, stays_staged};
use super::super::merging::MergeOutcome;
use super::super::publication::Publication;
use super::super::{
    Durability, Engine, State, aborting, barrier, current, deciding, durability, exchange, growing,
    judging, ledger, lines, merging, names, pins, publish, publishing, resolve, turns, watchers,
};
use super::{Left, Renamed, followers, open_at, refuse_state_dir, replaced};
use crate::commit::Changeset;
use crate::conflict::{Saved, Why};
use crate::guard::Guard;
use crate::journal::{Edit, Record};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode as RuleMode};
use crate::sys::{at, failpoint};
use crate::txn::Abort;
use crate::types::{Caller, Dentry, NodeId, OpResult, Seq, TxnId, Version};

/// Whether a rename has to look its names up again, as it takes the timeout of the old name along: the kernel would go by that
/// where somebody has a new file open, or where what comes out is another version. It looks them up once more when told so, and
/// by then they have none.
fn takes_kept_name(engine: &Engine, tid: u32, names: (&Dentry, &Dentry), exchange: bool) -> bool {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let (from, to) = names;
    let takes = takes_timeout_along(engine, state, from, to)
        | (exchange && takes_timeout_along(engine, state, to, from));
    let names = &state.nodes.kept_names;
    let is_dropping = names.is_dropping(from) || exchange && names.is_dropping(to);
    if state.nodes.kept_names.was_told(tid, from, to) {
        return false;
    }
    // Who has no number here can't be told just once.
    let takes = takes || is_dropping && tid != 0;
    if takes && tid != 0 {
        state.nodes.kept_names.tell_renamer(tid, from, to);
    }
    takes && !failpoint::mutant("C1-kept-name")
}

fn takes_timeout_along(engine: &Engine, state: &mut State, from: &Dentry, to: &Dentry) -> bool {
    let source = current::current(engine, state, from).ok();
    let source = source.and_then(|id| state.nodes.get(id));
    let Some((id, kind)) = source.map(|node| (node.id, node.kind)) else {
        return false;
    };
    let is_open = state.txns.all_at(to).next().is_some();
    match kind {
        NodeKind::Dir | NodeKind::Special => is_open && state.nodes.kept_names.ask_each_time(id),
        NodeKind::Private(_) => false,
        NodeKind::File => {
            let policy = || engine.policy(state, to, Creation::default());
            let merges = || Some(policy()).is_some_and(|p| lines::watches(&p) || p.group.is_some());
            let takes = state.nodes.kept_names.is_kept(id) && (is_open || merges());
            takes && state.nodes.drop_name(id)
        }
    }
}

/// The kernel drops what it has kept of the target's name itself.
fn rename_looked_up(
    engine: &Engine,
    caller: Caller,
    (from, to): (&Dentry, &Dentry),
    flags: RenameFlags,
) -> OpResult<()> {
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    pins::leave_names(engine, caller.tid, &[from, to]);
    if takes_kept_name(engine, caller.tid, (from, to), exchange) {
        return Err(Errno::STALE);
    }
    let replaced = {
        let mut state = engine.lock();
        let target = current::current_if_any(engine, &mut state, to)
            .ok()
            .flatten();
        target.filter(|id| !exchange && state.nodes.kept_names.has_dropped(*id))
    };
    let result = rename_now(engine, caller, from, to, flags);
    if let (Err(_), Some(id)) = (&result, replaced) {
        // It is still there.
        let mut state = engine.lock();
        state.nodes.kept_names.keep(id);
        state.nodes.drop_name(id);
    }
    result
}

/// Whoever has looked up a file that has another name now finds it there.
fn move_names(state: &mut State, names: (&Dentry, &Dentry), nodes: (NodeId, Option<NodeId>)) {
    let ((from, to), (source, target)) = (names, nodes);
    for (dentry, found) in state.lookups.values_mut() {
        if *found == source && dentry == from {
            dentry.clone_from(to);
        } else if Some(*found) == target && dentry == to {
            dentry.clone_from(from);
        }
    }
    state.nodes.move_name(from, to, nodes);
}

impl Engine {
    /// rename(2), renameat2(2).
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        new_dir: NodeId,
        new_name: &OsStr,
        flags: RenameFlags,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        for (dir, name) in [(dir, name), (new_dir, new_name)] {
            if let Err(e) = refuse_state_dir(dir, name) {
                return done(Err(e));
            }
        }
        if flags.contains(RenameFlags::WHITEOUT) {
            return done(Err(Errno::INVAL));
        }
        let from = Dentry {
            dir,
            name: name.to_owned(),
        };
        let to = Dentry {
            dir: new_dir,
            name: new_name.to_owned(),
        };
        self.on_worker(move |engine| done(rename_looked_up(engine, caller, (&from, &to), flags)));
    }
}

fn rename_now(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<()> {
    deciding::await_decisions(engine, &[from, to]);
    if flags.contains(RenameFlags::EXCHANGE) {
        return exchange::exchange_now(engine, caller, from, to);
    }
    let open = {
        let mut state = engine.lock();
        if flags.contains(RenameFlags::NOREPLACE) && deciding::exists(engine, &mut state, to)? {
            return Err(Errno::EXIST);
        }
        resolve::own_transaction(engine, &mut state, caller, from)
            .or_else(|| state.txns.seen_by_all_at(from).next().map(|t| t.id))
    };
    if let Some(id) = open.filter(|id| stays_staged(engine, *id, to)) {
        return rename_staged(engine, caller, id, (from, to));
    }
    match open.map(|id| (id, streams::unpublished_stream(engine, id))) {
        // Its first version takes the new name like any other.
        Some((id, Some(handle))) => drop(streams::publish_first(engine, id, handle, 0, b"")?),
        Some((id, None)) if !failpoint::mutant("C11") => {
            return match rename_open(engine, caller, id, from, to, flags) {
                Err(Errno::NOENT) if engine.lock().has_ended(id) => {
                    rename_now(engine, caller, from, to, flags)
                }
                result => result,
            };
        }
        _ => {}
    }
    if !rename_into_group(engine, caller, from, to)?
        && !rename_merged(engine, caller, from, to, flags)?
    {
        let (source, lost) = rename_in_place(engine, caller, from, to, flags)?;
        if flags.is_empty() {
            let mut state = engine.lock();
            let author = state.registry.author(source).map(|a| a.tid);
            replaced::note_replaced(engine, &mut state, caller.tid, author, to, (lost, source));
        }
    }
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// Renames once nothing that either name means is pending.
fn rename_in_place(
    engine: &Engine,
    caller: Caller,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<Renamed> {
    barrier::checkpoint_judged(
        engine,
        || check_moved(engine, caller, from, to),
        |judged, barrier| {
            let is_judged = |source, _| judged.is_none_or(|judged| source == judged);
            rename_step(engine, from, to, flags, is_judged, barrier)
        },
    )
}

/// Renames a file whose transaction is open (C11).
fn rename_open(
    engine: &Engine,
    caller: Caller,
    id: TxnId,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
) -> OpResult<()> {
    if from == to {
        return Ok(());
    }
    // A version committed under the old name before goes with it, as it would have been this
    // very file; what is committed or added from here on stays.
    let left =
        publishing::publish_open(engine, caller.tid, id, to, Publication::Rename(flags))?.left;
    if left.is_some() {
        unlink_moved(engine, caller, from, left)?;
    }
    if engine.config.durability == Durability::Sync {
        durability::checkpoint_all(engine)?;
    }
    Ok(())
}

/// What has got another name by its content loses the old one, unless somebody has committed
/// under that since.
pub(in crate::engine) fn unlink_moved(
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

/// A rename is a commit of the name it goes to: its guard, and durability where the file was
/// in direct mode. Gives the version that it has to be, if any guard judges.
pub(in crate::engine) fn check_moved(
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

/// Renames a file over a name with a rule for conflicts. Gives whether it is done; it isn't where
/// there is no such rule.
fn rename_merged(
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
        let (source, file, begun, actor, base) = {
            let mut guard = texts::lock_materialized(engine, from)?;
            let state = &mut *guard;
            let source = current::current(engine, state, from)?;
            if state
                .nodes
                .get(source)
                .is_none_or(|n| n.kind != NodeKind::File)
            {
                return Ok(false);
            }
            let file = at::reopen_quietly(&*state.nodes.fd(source)?)?;
            let begun = state.ledger.now();
            let known = ledger::base_of_rename(state, caller.tid, source, to, policy);
            let Some((actor, base)) = known else {
                return Ok(false);
            };
            (source, Arc::new(file), begun, actor, base)
        };
        if (check_moved(engine, caller, from, to)?).is_some_and(|judged| judged != source) {
            continue;
        }
        let reconciled = merging::reconcile(engine, to, policy, base.as_ref(), &file);
        let (onto, outcome) = reconciled.map_err(|abort| {
            // The kernel asks once more after an ESTALE.
            let asked = (caller.tid, source);
            let before = engine.lock().registry.refused.take();
            if matches!(abort, Abort::Conflict) && before == Some(asked) {
                return abort.errno();
            }
            {
                let mut state = engine.lock();
                state.registry.refused = Some(asked);
                ledger::note_refused(&mut state, to, Some(actor));
            }
            aborting::refuse(engine, to, abort, caller.tid)
        })?;
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
    merged: crate::engine::merging::MergedFile,
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

/// Gives the two versions that the names had; `None` if these are not those that were judged.
pub(in crate::engine) fn rename_step(
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
    rename_backing(engine, state, from, to, flags, source, target)?;
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
    crate::engine::target::check_target(engine, state, to)?;
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

fn rename_backing(
    engine: &Engine,
    state: &mut State,
    from: &Dentry,
    to: &Dentry,
    flags: RenameFlags,
    source: NodeId,
    target: Option<NodeId>,
) -> OpResult<()> {
    let (from_dir, to_dir) = (
        engine.dir_fd(state, from.dir)?,
        engine.dir_fd(state, to.dir)?,
    );
    let is_dir = state
        .nodes
        .get(source)
        .is_some_and(|n| n.kind == NodeKind::Dir);
    if is_dir && target.is_some_and(|t| names::holds_claims(state, t)) {
        return Err(Errno::NOTEMPTY);
    }
    let version = if is_dir {
        Version::default()
    } else {
        publish::next_version(engine, state, to)
    };
    let replaced = at::stat_at(&*to_dir, &to.name)?;
    let hold = at::open_path(&*to_dir, &to.name).ok();
    let lost = state.added_to(to, target);
    engine.sequencer.barrier()?;
    let exchange = flags.contains(RenameFlags::EXCHANGE);
    let moves_dir = is_dir
        || exchange
            && target.is_some_and(|t| state.nodes.get(t).is_some_and(|n| n.kind == NodeKind::Dir));
    let paths = state.nodes.path(from).zip(state.nodes.path(to));
    if let Some((old, new)) = &paths
        && !moves_dir
    {
        let inode = state.nodes.get(source).ok_or(Errno::STALE)?.key.1;
        let (going, coming) = match exchange {
            true => (open_at(state, from), open_at(state, to)),
            false => (followers(state, from, source), Vec::new()),
        };
        let along = [going, coming].map(|ids| names::with_promises(engine, state, &ids));
        let replaces = is_promised(state, to) || exchange && is_promised(state, from);
        if replaces || along.iter().any(|ids| !ids.is_empty()) {
            replaced::announce_moved(engine, state, (old, new), inode, exchange, along)?;
        }
    }
    let paths = paths.filter(|_| moves_dir && !failpoint::mutant("C18-moved"));
    if let Some((from, to)) = &paths {
        let node = state.nodes.get(source).ok_or(Errno::STALE)?;
        engine.sequencer.append(&Record::Moved {
            from: from.clone(),
            to: to.clone(),
            inode: node.key.1,
            exchange,
            going: Vec::new(),
            coming: Vec::new(),
        })?;
        // The move may come to the medium by itself; what is below it has to be found then.
        durability::sync_journal_now(engine, state)?;
    }
    rustix::fs::renameat_with(&*from_dir, &from.name, &*to_dir, &to.name, flags)?;
    if let Some((from, to)) = paths {
        // A new journal starts with these, and without the record of the move.
        engine.sequencer.retell(|record| {
            crate::txn::each_path(record, |path| {
                if let Some(moved) = crate::txn::after_move(path, &from, &to, exchange) {
                    *path = moved;
                }
            });
        });
    }
    growing::note_grown_moved(engine, state, (from, to), (source, target), flags);
    if exchange {
        state.names.exchange(from, to);
        exchange::exchange_writers(engine, state, from, to);
    } else {
        state.names.unname(to, lost);
        state.names.rename(from, to);
    }
    if let Some(stat) = replaced.filter(|_| !exchange)
        && (stat.st_nlink == 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    {
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
    move_names(state, (from, to), (source, target.filter(|_| exchange)));
    if let Some(node) = state.nodes.get_mut(source).filter(|_| !is_dir) {
        node.version = Some(version);
    }
    durability::mark_dirty(engine, state, from.dir);
    durability::mark_dirty(engine, state, to.dir);
    engine.defer_close(hold.map(|fd| Arc::new(fd.into())));
    if is_dir {
        names::retarget_below(engine, state);
    } else {
        state.counters.commits += 1;
        store_version(state, source, version);
        if exchange {
            publish::end_claims(engine, state, to);
            publish::end_claims(engine, state, from);
        } else {
            publish::overtake(engine, state, to, Seq::default());
            follow(engine, state, from, to, source);
        }
    }
    Ok(())
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
