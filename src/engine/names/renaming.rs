//! rename(2): of what is open, of what is pending, and in the backing directory; over a name with a rule for conflicts it is a
//! save, which may be merged.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;

use super::super::barrier::{Barrier, JUDGEMENTS, Step};
use super::super::deciding::is_promised;
use super::super::exchange::{rename_into_group, rename_staged, stays_staged};
use super::super::merging::MergeOutcome;
use super::super::publication::Publication;
use super::super::{Durability, Engine, State, pins};
use super::{Left, Renamed, followers, open_at, refuse_state_dir};
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
    let source = engine.current(state, from).ok();
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
            let merges =
                || Some(policy()).is_some_and(|p| Engine::watches(&p) || p.group.is_some());
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
        let target = engine.current_if_any(&mut state, to).ok().flatten();
        target.filter(|id| !exchange && state.nodes.kept_names.has_dropped(*id))
    };
    let result = engine.rename_now(caller, from, to, flags);
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
        let engine = self.clone();
        self.pool
            .run(move || done(rename_looked_up(&engine, caller, (&from, &to), flags)));
    }

    fn rename_now(
        &self,
        caller: Caller,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
    ) -> OpResult<()> {
        self.await_decisions(&[from, to]);
        if flags.contains(RenameFlags::EXCHANGE) {
            return self.exchange_now(caller, from, to);
        }
        let open = {
            let mut state = self.lock();
            if flags.contains(RenameFlags::NOREPLACE) && self.exists(&mut state, to)? {
                return Err(Errno::EXIST);
            }
            self.own_transaction(&mut state, caller, from)
                .or_else(|| state.txns.seen_by_all_at(from).next().map(|t| t.id))
        };
        if let Some(id) = open.filter(|id| stays_staged(self, *id, to)) {
            return rename_staged(self, caller, id, (from, to));
        }
        match open.map(|id| (id, self.unpublished_stream(id))) {
            // Its first version takes the new name like any other.
            Some((id, Some(handle))) => drop(self.publish_first(id, handle, 0, b"")?),
            Some((id, None)) if !failpoint::mutant("C11") => {
                return match self.rename_open(caller, id, from, to, flags) {
                    Err(Errno::NOENT) if self.lock().has_ended(id) => {
                        self.rename_now(caller, from, to, flags)
                    }
                    result => result,
                };
            }
            _ => {}
        }
        if !rename_into_group(self, caller, from, to)?
            && !self.rename_merged(caller, from, to, flags)?
        {
            let (source, lost) = self.rename_in_place(caller, from, to, flags)?;
            if flags.is_empty() {
                let mut state = self.lock();
                let author = state.registry.author(source).map(|a| a.tid);
                self.note_replaced(&mut state, caller.tid, author, to, (lost, source));
            }
        }
        if self.config.durability == Durability::Sync {
            self.checkpoint_all()?;
        }
        Ok(())
    }

    /// Renames once nothing that either name means is pending.
    fn rename_in_place(
        &self,
        caller: Caller,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
    ) -> OpResult<Renamed> {
        self.checkpoint_judged(
            || self.check_moved(caller, from, to),
            |judged, barrier| {
                let is_judged = |source, _| judged.is_none_or(|judged| source == judged);
                self.rename_step(from, to, flags, is_judged, barrier)
            },
        )
    }

    /// Renames a file whose transaction is open (C11).
    fn rename_open(
        &self,
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
        let left = self
            .publish_open(caller.tid, id, to, Publication::Rename(flags))?
            .left;
        if left.is_some() {
            self.unlink_moved(caller, from, left)?;
        }
        if self.config.durability == Durability::Sync {
            self.checkpoint_all()?;
        }
        Ok(())
    }

    /// What has got another name by its content loses the old one, unless somebody has committed
    /// under that since.
    pub(in crate::engine) fn unlink_moved(
        &self,
        caller: Caller,
        from: &Dentry,
        moved: Option<Left>,
    ) -> OpResult<()> {
        let mut discarded = true;
        let unlinked = self.checkpoint_until(|engine, barrier| {
            engine.unlink_step(caller, from, moved, &mut discarded, barrier)
        });
        unlinked.or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })
    }

    /// A rename is a commit of the name it goes to: its guard, and durability where the file was
    /// in direct mode. Gives the version that it has to be, if any guard judges.
    pub(in crate::engine) fn check_moved(
        &self,
        caller: Caller,
        from: &Dentry,
        to: &Dentry,
    ) -> OpResult<Option<NodeId>> {
        let (id, fd, policy, direct, pending) = {
            let mut state = self.lock_materialized(from)?;
            let id = self.current(&mut state, from)?;
            let node = state.nodes.get(id).ok_or(Errno::STALE)?;
            if node.kind != NodeKind::File {
                return Ok(None);
            }
            let fd = state.nodes.fd(id)?;
            let policy = self.policy(&state, to, Creation::default());
            let direct = self.policy(&state, from, Creation::default()).mode == RuleMode::Direct;
            let pending = state.pending.get(from.dir, &from.name).is_some();
            (id, fd, policy, direct, pending)
        };
        let file = at::reopen_quietly(&*fd)?;
        if policy.mode == RuleMode::Atomic {
            self.check_named(caller.tid, &file, (to, &policy), true)?;
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
        &self,
        caller: Caller,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
    ) -> OpResult<bool> {
        let policy = self.policy(&self.lock(), to, Creation::default());
        if policy.mode != RuleMode::Atomic || !Engine::watches(&policy) || from == to {
            return Ok(false);
        }
        let turn = self.lock().txns.new_id();
        self.take_turn(to, turn);
        let result = self.rename_merging(caller, from, to, flags, &policy);
        self.end_turn(&mut self.lock(), to, turn);
        result
    }

    fn rename_merging(
        &self,
        caller: Caller,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
        policy: &crate::rules::Policy,
    ) -> OpResult<bool> {
        for _ in 0..JUDGEMENTS {
            let (source, file, begun, actor, base) = {
                let mut guard = self.lock_materialized(from)?;
                let state = &mut *guard;
                let source = self.current(state, from)?;
                if state
                    .nodes
                    .get(source)
                    .is_none_or(|n| n.kind != NodeKind::File)
                {
                    return Ok(false);
                }
                let file = at::reopen_quietly(&*state.nodes.fd(source)?)?;
                let begun = state.ledger.now();
                let known = self.base_of_rename(state, caller.tid, source, to, policy);
                let Some((actor, base)) = known else {
                    return Ok(false);
                };
                (source, Arc::new(file), begun, actor, base)
            };
            if (self.check_moved(caller, from, to)?).is_some_and(|judged| judged != source) {
                continue;
            }
            let reconciled = self.reconcile(to, policy, base.as_ref(), &file);
            let (onto, outcome) = reconciled.map_err(|abort| {
                // The kernel asks once more after an ESTALE.
                let asked = (caller.tid, source);
                let before = self.lock().registry.refused.take();
                if matches!(abort, Abort::Conflict) && before == Some(asked) {
                    return abort.errno();
                }
                {
                    let mut state = self.lock();
                    state.registry.refused = Some(asked);
                    Engine::note_refused(&mut state, to, Some(actor));
                }
                self.refuse(to, abort, caller.tid)
            })?;
            let why = outcome.overwrites();
            match outcome {
                MergeOutcome::AsWritten | MergeOutcome::Overwrites(_) => {
                    let renamed = self.checkpoint_until(|engine, barrier| {
                        let is_judged = |from, to| from == source && (base.is_none() || to == onto);
                        engine.rename_step(from, to, flags, is_judged, barrier)
                    })?;
                    if renamed.is_none() {
                        continue;
                    }
                }
                MergeOutcome::Merged(merged) => {
                    let id = merged.id;
                    let by = ((actor, begun), file);
                    let published =
                        self.publish_merged((from, to, flags), source, onto, *merged, by);
                    if !matches!(published, Ok(Some(_))) {
                        self.store.remove_staging(id).ok();
                    }
                    let Some((version, left)) = published? else {
                        continue;
                    };
                    self.unlink_moved(caller, from, left)?;
                    self.lock()
                        .note_saved(caller.tid, to, version, Duration::ZERO);
                    return Ok(true);
                }
            }
            let mut state = self.lock();
            if let (Some(_), Some(lost)) = (why, onto) {
                self.note_unmerged(&mut state, caller.tid, to, (lost, source), why);
            }
            let saved = Saved {
                begun,
                version: source,
                is_merged: false,
                is_uncertain: why == Some(Why::Uncertain),
            };
            self.note_saved(&mut state, to, actor, saved, file, None);
            return Ok(true);
        }
        Err(Errno::BUSY)
    }

    /// `None`: somebody else has committed meanwhile. Else the version, and what is left under the
    /// old name.
    fn publish_merged(
        &self,
        (from, to, flags): (&Dentry, &Dentry, RenameFlags),
        source: NodeId,
        onto: Option<NodeId>,
        merged: crate::engine::merging::MergedFile,
        ((actor, begun), file): ((crate::conflict::Actor, u64), Arc<std::fs::File>),
    ) -> OpResult<Option<(NodeId, Option<Left>)>> {
        self.reserve_commit()?;
        let mut guard = self.lock();
        let state = &mut *guard;
        if flags.contains(RenameFlags::NOREPLACE) && self.exists(state, to)? {
            return Err(Errno::EXIST);
        }
        if self.current_if_any(state, to)? != onto || self.current(state, from)? != source {
            return Ok(None);
        }
        let left = self.left_at(state, from)?;
        let (path, key) = (merged.path.clone(), merged.key);
        let version = state.nodes.create(NodeKind::File, path, key, to.clone());
        let written = merged.file.clone();
        self.publish(state, to, merged.ready(written, onto), version);
        // At once: whatever the rest comes to, and if it is asked for again, this is saved.
        let saved = Saved {
            begun,
            version,
            is_merged: true,
            is_uncertain: false,
        };
        self.note_saved(state, to, actor, saved, file, None);
        Ok(Some((version, left)))
    }

    /// Gives the two versions that the names had; `None` if these are not those that were judged.
    pub(in crate::engine) fn rename_step(
        &self,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
        is_judged: impl Fn(NodeId, Option<NodeId>) -> bool,
        barrier: &mut Barrier,
    ) -> OpResult<Step<Option<Renamed>>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let source = self.current(state, from)?;
        let kind = state.nodes.get(source).ok_or(Errno::STALE)?.kind;
        if flags.contains(RenameFlags::NOREPLACE) && self.exists(state, to)? {
            return Err(Errno::EXIST);
        }
        let target = self.current_if_any(state, to)?;
        if target == Some(source) && !flags.contains(RenameFlags::EXCHANGE) {
            return Ok(Step::Done(Some((source, None))));
        }
        if !is_judged(source, target) {
            return Ok(Step::Done(None));
        }
        pins::note_renamed(self, state, (from, source), (to, target));
        if kind == NodeKind::File && flags.is_empty() && self.rename_pending(state, from, to)? {
            return Ok(Step::Done(Some((source, target))));
        }
        if state.pending.get(from.dir, &from.name).is_some()
            || state.pending.get(to.dir, &to.name).is_some()
            || self.must_checkpoint(state, barrier)
        {
            return Ok(Step::CheckpointFirst);
        }
        self.rename_backing(state, from, to, flags, source, target)?;
        pins::note_moved(state, (from, source), (to, target));
        Ok(Step::Done(Some((source, target))))
    }

    /// Renames a pending name that the backing directory doesn't have. Gives whether it could.
    fn rename_pending(&self, state: &mut State, from: &Dentry, to: &Dentry) -> OpResult<bool> {
        let dir = self.dir_fd(state, from.dir)?;
        match state.pending.get(from.dir, &from.name) {
            Some(p) if p.superseded.is_empty() => {}
            _ => return Ok(false),
        }
        if at::stat_at(&*dir, &from.name)?.is_some() {
            return Ok(false);
        }
        crate::engine::target::check_target(self, state, to)?;
        if !self.can_reserve_commit() {
            // A full disk: once it is in place, renaming it needs no room.
            return Ok(false);
        }
        let version = self.next_version(state, to);
        let path = state.nodes.path(to).ok_or(Errno::NOENT)?;
        let old_path = state.nodes.path(from).ok_or(Errno::NOENT)?;
        let mut pending = state
            .pending
            .remove(from.dir, &from.name)
            .expect("looked up above");
        let content = self.sequencer.content_of(pending.id).unwrap_or_default();
        let put = Edit::Put {
            path,
            id: pending.id,
            version,
            content,
            in_place: false,
        };
        let moved = Changeset::from_iter([Edit::Drop { path: old_path }, put]);
        let seq = self.journal_commit(state, moved);
        (pending.seq, pending.version) = (seq, version);
        let moved = pending.node;
        move_names(state, (from, to), (moved, None));
        if let Some(node) = state.nodes.get_mut(pending.node) {
            node.version = Some(version);
        }
        let replaced = match state.pending.get(to.dir, &to.name) {
            Some(p) => Some(p.node),
            None => self.cover(state, to),
        };
        let lost = state.added_to(to, replaced);
        state.names.unname(to, lost);
        state.names.rename(from, to);
        // A rename changes the file's ctime.
        at::change(&*pending.file).ok();
        self.touch_dir(state, from.dir);
        self.touch_dir(state, to.dir);
        if let Some(old) = state.pending.put(to, pending) {
            if let Some(node) = state.nodes.get_mut(old) {
                node.nameless = true;
            }
            self.unpin(state, old, true);
        }
        self.supersede(state, to, replaced);
        self.overtake(state, to, self.sequencer.last());
        self.follow(state, from, to, moved);
        Ok(true)
    }

    fn rename_backing(
        &self,
        state: &mut State,
        from: &Dentry,
        to: &Dentry,
        flags: RenameFlags,
        source: NodeId,
        target: Option<NodeId>,
    ) -> OpResult<()> {
        let (from_dir, to_dir) = (self.dir_fd(state, from.dir)?, self.dir_fd(state, to.dir)?);
        let is_dir = state
            .nodes
            .get(source)
            .is_some_and(|n| n.kind == NodeKind::Dir);
        if is_dir && target.is_some_and(|t| self.holds_claims(state, t)) {
            return Err(Errno::NOTEMPTY);
        }
        let version = if is_dir {
            Version::default()
        } else {
            self.next_version(state, to)
        };
        let replaced = at::stat_at(&*to_dir, &to.name)?;
        let hold = at::open_path(&*to_dir, &to.name).ok();
        let lost = state.added_to(to, target);
        self.sequencer.barrier()?;
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let moves_dir = is_dir
            || exchange
                && target
                    .is_some_and(|t| state.nodes.get(t).is_some_and(|n| n.kind == NodeKind::Dir));
        let paths = state.nodes.path(from).zip(state.nodes.path(to));
        if let Some((old, new)) = &paths
            && !moves_dir
        {
            let inode = state.nodes.get(source).ok_or(Errno::STALE)?.key.1;
            let (going, coming) = match exchange {
                true => (open_at(state, from), open_at(state, to)),
                false => (followers(state, from, source), Vec::new()),
            };
            let along = [going, coming].map(|ids| self.with_promises(state, &ids));
            let replaces = is_promised(state, to) || exchange && is_promised(state, from);
            if replaces || along.iter().any(|ids| !ids.is_empty()) {
                self.announce_moved(state, (old, new), inode, exchange, along)?;
            }
        }
        let paths = paths.filter(|_| moves_dir && !failpoint::mutant("C18-moved"));
        if let Some((from, to)) = &paths {
            let node = state.nodes.get(source).ok_or(Errno::STALE)?;
            self.sequencer.append(&Record::Moved {
                from: from.clone(),
                to: to.clone(),
                inode: node.key.1,
                exchange,
                going: Vec::new(),
                coming: Vec::new(),
            })?;
            // The move may come to the medium by itself; what is below it has to be found then.
            self.sync_journal_now(state)?;
        }
        rustix::fs::renameat_with(&*from_dir, &from.name, &*to_dir, &to.name, flags)?;
        if let Some((from, to)) = paths {
            // A new journal starts with these, and without the record of the move.
            self.sequencer.retell(|record| {
                crate::txn::each_path(record, |path| {
                    if let Some(moved) = crate::txn::after_move(path, &from, &to, exchange) {
                        *path = moved;
                    }
                });
            });
        }
        self.note_grown_moved(state, (from, to), (source, target), flags);
        if exchange {
            state.names.exchange(from, to);
            self.exchange_writers(state, from, to);
        } else {
            state.names.unname(to, lost);
            state.names.rename(from, to);
        }
        if let Some(stat) = replaced.filter(|_| !exchange)
            && (stat.st_nlink == 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        {
            state.nodes.unlinked((stat.st_dev, stat.st_ino));
            match target {
                Some(gone) if is_dir => self.orphan_transactions(state, gone),
                Some(gone) => {
                    let fd = state.nodes.reap(gone);
                    self.defer_close(fd);
                }
                None => {}
            }
        }
        move_names(state, (from, to), (source, target.filter(|_| exchange)));
        if let Some(node) = state.nodes.get_mut(source).filter(|_| !is_dir) {
            node.version = Some(version);
        }
        self.mark_dirty(state, from.dir);
        self.mark_dirty(state, to.dir);
        self.defer_close(hold.map(|fd| Arc::new(fd.into())));
        if is_dir {
            self.retarget_below(state);
        } else {
            state.counters.commits += 1;
            self.store_version(state, source, version);
            if exchange {
                self.end_claims(state, to);
                self.end_claims(state, from);
            } else {
                self.overtake(state, to, Seq::default());
                self.follow(state, from, to, source);
            }
        }
        Ok(())
    }

    /// A file is about to take a name, or two to exchange theirs, that somebody has promised to give
    /// a content: if it comes about, that is newer. And so are the promises of those who go `along`,
    /// each way.
    pub(in crate::engine) fn announce_moved(
        &self,
        state: &mut State,
        (from, to): (&Path, &Path),
        inode: u64,
        exchange: bool,
        along: [Vec<TxnId>; 2],
    ) -> OpResult<()> {
        if failpoint::mutant("C18-replaced") {
            return Ok(());
        }
        let [going, coming] = along;
        self.sequencer.append(&Record::Moved {
            from: from.to_owned(),
            to: to.to_owned(),
            inode,
            exchange,
            going,
            coming,
        })?;
        // It may come to the medium by itself.
        self.sync_journal_now(state)
    }

    fn store_version(&self, state: &State, node: NodeId, version: Version) {
        if let Ok(fd) = state.nodes.fd(node) {
            crate::txn::mark_version(&*fd, version);
        }
    }

    /// Writers of the moved file follow it to its new name; those that are creating a file of
    /// their own under the old name keep it (C11).
    fn follow(&self, state: &mut State, from: &Dentry, to: &Dentry, moved: NodeId) {
        for id in followers(state, from, moved) {
            self.retarget(state, id, to);
            self.journal_moved(state, id);
        }
    }
}
