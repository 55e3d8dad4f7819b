//! The commit point: one append to the journal, one entry in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::ledger::Saved;
use super::merging::{MergeOutcome, Save, Why};
use super::names::Left;
use super::overwrites::Loss;
use super::rest::check_due;
use super::{Durability, Engine, State};
use crate::guard::Replaces;
use crate::journal::{ContentInfo, Edit, Record};
use crate::namespace::{NodeKind, Pending};
use crate::sys::{at, failpoint, spare};
use crate::txn::{Ready, Transaction};
use crate::types::{Dentry, NodeId, OpResult, Seq, TxnId, Version, errno_of};

/// More versions of one name than this don't wait for the checkpoint to be due.
const MANY_SUPERSEDED: usize = 16;

/// How what was written so far of an open file is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Publication {
    /// Under another name, where its transaction follows; only the flag NOREPLACE says anything.
    Rename(RenameFlags),
    /// Under another name as well, and its transaction stays.
    Link,
    /// Under its own name: a lock is given back (C12).
    Stay,
    /// Under its own name, if it is a whole document and at rest.
    Rest,
}

/// What an open file has become by a rename, a link or an unlock.
pub(super) struct Published {
    pub version: NodeId,
    /// What its old name means still.
    pub left: Option<Left>,
}

impl Engine {
    /// Space in the journal for a commit, so that the commit itself can't fail.
    pub(super) fn reserve_commit(&self) -> OpResult<()> {
        // What is acknowledged must find its place (see `store::reserve`).
        self.making_room(|| self.store.keep_reserve())
            .map_err(|e| {
                log::warn!("the disk is full, nothing more is committed: {e}");
                Errno::NOSPC
            })?;
        self.making_room(|| self.reserve_journal())?;
        failpoint::delay("COMMITFS_COMMIT_DELAY_MS");
        Ok(())
    }

    fn reserve_journal(&self) -> OpResult<()> {
        failpoint::fail_point("journal-reserve")?;
        self.journal.lock().reserve(64 << 10).map_err(|e| {
            log::warn!("journal: {e}");
            Errno::NOSPC
        })
    }

    /// Whether the journal has room for a commit now: none can be made while the state is locked.
    pub(super) fn can_reserve_commit(&self) -> bool {
        self.store.keep_reserve().is_ok() && self.reserve_journal().is_ok()
    }

    /// Makes everything journalled so far durable.
    pub(super) fn sync_journal(&self) -> OpResult<()> {
        let handle = self.journal.lock().sync_handle();
        let synced = failpoint::sync("C19-sync-journal", || {
            spare::told_once(|| rustix::fs::fdatasync(&*handle))
        });
        synced.inspect_err(|errno| self.journal_is_lost(&mut self.lock(), *errno))
    }

    /// Makes everything journalled so far durable for who holds the state.
    pub(super) fn sync_journal_now(&self, state: &mut State) -> OpResult<()> {
        let handle = self.journal.lock().sync_handle();
        let synced = spare::told_once(|| rustix::fs::fdatasync(&*handle));
        synced.inspect_err(|errno| self.journal_is_lost(state, *errno))
    }

    /// A second try would be told that all is well, which proves nothing.
    fn journal_is_lost(&self, state: &mut State, errno: Errno) {
        log::error!("the journal can't be made durable: {errno}; new commits are refused");
        state.fail_checkpoint(errno);
        self.checkpoint_wanted.notify_one();
    }

    /// Number of the next version of a name.
    pub(super) fn next_version(&self, state: &mut State, dentry: &Dentry) -> Version {
        match self.current_if_any(state, dentry) {
            Ok(Some(id)) => self.version_of(state, id).next(),
            _ => Version(1),
        }
    }

    /// Version number of a node.
    pub(super) fn version_of(&self, state: &mut State, id: NodeId) -> Version {
        let Some(node) = state.nodes.get(id) else {
            return Version::default();
        };
        if let Some(version) = node.version {
            return version;
        }
        let marked = state.nodes.fd(id).ok().and_then(crate::txn::marked_version);
        let version = marked.unwrap_or(Version(1));
        if let Some(node) = state.nodes.get_mut(id) {
            node.version = Some(version);
        }
        version
    }

    /// Commits a prepared transaction whose last reference is gone.
    pub(super) fn commit(&self, state: &mut State, txn: Transaction, save: Option<&Save>) {
        let Some(mut ready) = txn.preparation.ready().cloned() else {
            log::error!(
                "{}: transaction {} closed unprepared",
                self.show(state, txn.dentry()),
                txn.id
            );
            return;
        };
        let is_malformed = txn.staging.try_lock().is_some_and(|c| c.is_malformed());
        state.counters.malformed += u64::from(is_malformed);
        let current = self.current_if_any(state, txn.dentry()).ok().flatten();
        self.renew_attributes(state, current, (&ready.file, &txn.staging), ready.like);
        if let Some(current) = current.filter(|current| ready.onto != Some(*current)) {
            // Somebody has committed since it was prepared: before this one.
            if txn.staging.try_lock().is_some_and(|c| !c.times_set) {
                self.outgrow(state, current, &ready.file, &mut ready.content)
                    .ok();
            }
        }
        let author = txn.participants.opener_tid();
        let seen = match txn.purpose.rewrites() {
            true => state.overwrites.last_seen_by_kin(author, txn.dentry()),
            false => state.overwrites.last_seen(author, txn.dentry()),
        };
        let has_read = seen.is_some_and(|s| s.has_read);
        let base = txn.purpose.base();
        let has_seen = match (save.and_then(|s| s.base.as_ref()), current) {
            (_, None) => true,
            (Some(_), _) if current == ready.onto => save.is_some_and(|s| s.overwrites.is_none()),
            (Some(base), _) => !Engine::is_stale(base, current),
            (None, Some(current)) => match seen.filter(|_| txn.purpose.rewrites()) {
                Some(seen) => state.is_as_seen(seen, current),
                None => base.is_some_and(|b| state.nodes.is_same(b, current)),
            },
        };
        let lost = current.filter(|_| !has_seen && ready.merged.is_none());
        let is_ruled = Engine::watches(&txn.policy);
        let after = state.registry.writer(txn.id).and_then(|w| w.after);
        let is_own = |lost: &NodeId| {
            after == Some(*lost) || Engine::is_own_save(state, txn.participants.opener(), *lost)
        };
        let own = lost.filter(|lost| !is_ruled && is_own(lost));
        let lost = lost.filter(|_| own.is_none());
        let (dentry, written) = (txn.dentry(), ready.merged.clone());
        let version = match &written {
            // The kernel may hold pages of what was written: the merged text has a node of its own.
            Some(w) => state
                .nodes
                .create(NodeKind::File, w.path.clone(), w.key, dentry.clone()),
            None => txn.node,
        };
        if let Some(node) = state.nodes.get_mut(txn.node) {
            node.kind = NodeKind::File;
            node.at = Some(dentry.clone());
        }
        let as_written = written.as_ref().map_or(&ready.file, |w| &w.file).clone();
        match (lost, current) {
            (Some(lost), _) => {
                let loss = Loss {
                    lost,
                    by: version,
                    has_read,
                    why: save.and_then(|s| s.overwrites),
                    is_own: false,
                };
                let who = txn.participants.who();
                self.note_overwritten(state, dentry, who, loss);
            }
            (None, Some(old)) => self.note_followed(state, dentry, (old, version), has_read),
            (None, None) => self.note_put_back(state, &txn, version),
        }
        if !is_ruled && lost.is_none() {
            let who = (author, txn.participants.who());
            let versions = (current, version);
            Engine::note_text_saved(state, who, dentry, versions, own.is_some(), &as_written);
        }
        let synced = ready.synced;
        self.publish(state, dentry, ready, version);
        let overlaid = txn.staging.try_lock().map(|mut c| c.take_overlaid());
        let by = txn.participants.to_who();
        Engine::note_overlaid(state, dentry, by, overlaid.unwrap_or_default());
        if let Some(began) = txn.preparation.began() {
            state.metrics.commits.observe(began.elapsed());
        }
        // What others have committed since its close promised it is on the medium soon, too; so is
        // what a close that wasn't known to be the last has left.
        let behind = state.commits.durable().next() < state.commits.last();
        if synced && behind || !synced && self.config.durability == Durability::Sync {
            self.want_round(state);
        }
        let ago = txn.preparation.flush();
        let ago = ago.map_or(Duration::ZERO, |f| f.at.elapsed());
        state.note_saved(author, dentry, version, ago);
        Engine::note_author(state, version, txn.id);
        if let Some((actor, begun)) = save.and_then(|s| s.by) {
            let saved = Saved {
                begun,
                version,
                is_merged: written.is_some(),
                is_uncertain: save.is_some_and(|s| s.overwrites == Some(Why::Uncertain)),
            };
            let closed = save.and_then(|s| s.closed);
            self.note_saved(state, dentry, actor, saved, as_written, closed);
        }
        if written.is_some() {
            state.same_file(txn.node, version);
            self.leave_written(state, txn.staging_id, txn.node);
        }
    }

    /// What was written is not needed any more, as a merge of it is committed.
    pub(super) fn leave_written(&self, state: &mut State, staging: TxnId, node: NodeId) {
        if let Some(node) = state.nodes.get_mut(node) {
            (node.superseded, node.unlinked) = (true, true);
        }
        self.store.remove_staging(staging).ok();
        self.append(&Record::Abort { id: staging }).ok();
        let fd = state.nodes.reap(node);
        self.defer_close(fd);
    }

    /// Publishes a version under a name.
    pub(super) fn publish(&self, state: &mut State, dentry: &Dentry, ready: Ready, node: NodeId) {
        let version = self.next_version(state, dentry);
        let Some(path) = state.nodes.path(dentry) else {
            log::error!("{:?}: its directory is gone", dentry.name);
            return;
        };
        if let Some(n) = state.nodes.get_mut(node) {
            n.sum = ready.content.crc.map(|crc| (ready.content.len, crc));
        }
        // A rename may give it another name than that of what it edits.
        let current = self.current_if_any(state, dentry).ok().flatten();
        let in_place = ready.edits.is_some_and(|edited| {
            current.is_some_and(|c| state.files.body(c) == state.files.body(edited))
        });
        if let Some(edited) = ready.edits {
            state.files.edit(node, edited);
        }
        let edit = Edit::Put {
            path,
            id: ready.id,
            version,
            content: ContentInfo {
                // It has all that was added, and all that others have written.
                grown: None,
                parts: None,
                ..ready.content
            },
            in_place,
        };
        let seq = self.journal_commit(state, vec![edit]);
        self.put_pending(
            state,
            dentry,
            Pending {
                id: ready.id,
                file: ready.file,
                node,
                seq,
                version,
                superseded: Vec::new(),
                synced: ready.synced,
                unwritten: None,
            },
        );
    }

    /// Lets a name mean a version that the journal knows of.
    pub(super) fn put_pending(&self, state: &mut State, dentry: &Dentry, pending: Pending) {
        let (node, version) = (pending.node, pending.version);
        let replaced = match state.pending.get(dentry.dir, &dentry.name) {
            Some(p) => Some(p.node),
            None => self.cover(state, dentry),
        };
        if replaced.is_none() {
            self.touch_dir(state, dentry.dir);
        }
        let superseded = state.pending.put(dentry, pending);
        if let Some(n) = state.nodes.get_mut(node) {
            n.version = Some(version);
            n.pending = true;
        }
        if let Some(old) = superseded {
            self.unpin(state, old, true);
            let waiting = state
                .pending
                .get(dentry.dir, &dentry.name)
                .map_or(0, |p| p.superseded.len());
            if waiting >= MANY_SUPERSEDED {
                // They take space: the checkpoint needn't wait until it is due.
                state.checkpoint.due = Some(std::time::Instant::now());
                self.checkpoint_wanted.notify_one();
            }
        }
        self.replace(state, dentry, replaced, node);
    }

    /// A name means another version than before.
    pub(super) fn replace(
        &self,
        state: &mut State,
        dentry: &Dentry,
        old: Option<NodeId>,
        node: NodeId,
    ) {
        if let Some(old) = old {
            state.same_file(node, old);
            if let Some(old) = state.nodes.get_mut(old) {
                old.superseded = true;
            }
        }
        self.supersede(state, dentry, old);
        let body = state.files.body(node);
        self.overtake_but(state, dentry, state.commits.last(), Some(body));
    }

    /// A version has taken the name: whoever had claimed it goes on staging as for any other (C6),
    /// so that everybody sees what was committed last; what was promised of an open transaction
    /// before is older than that; and an error of the name is the last one no more.
    pub(super) fn overtake(&self, state: &mut State, dentry: &Dentry, by: Seq) {
        self.overtake_but(state, dentry, by, None);
    }

    /// [`Engine::overtake`], but what was promised as an edit of this body goes into that version.
    fn overtake_but(&self, state: &mut State, dentry: &Dentry, by: Seq, body: Option<NodeId>) {
        let open: Vec<TxnId> = state.txns.at(dentry).map(|t| t.id).collect();
        for id in open {
            if let Some(txn) = state.txns.get_mut(&id)
                && !(body.is_some() && txn.purpose.body() == body && txn.promises_parts())
            {
                txn.promise.overtake(by);
            }
        }
        self.end_claims(state, dentry);
    }

    /// Whether what is told of a transaction now is an edit of what its name has now: else the journal
    /// must not be told which parts of it are.
    pub(super) fn tell_parts(&self, state: &mut State, id: TxnId, told: &mut ContentInfo) {
        if told.parts.is_some() && self.edited(state, id).is_none() {
            told.parts = None;
        }
    }

    /// Ends claims of a name that has got another file with the writers of that: what these have
    /// promised is as new as their file.
    pub(super) fn end_claims(&self, state: &mut State, dentry: &Dentry) {
        state.errors.forget(dentry);
        let claims: Vec<TxnId> = state.txns.seen_by_all_at(dentry).map(|t| t.id).collect();
        for id in claims {
            self.end_claim(state, id);
        }
    }

    /// What an O_EXCL creation holds is hidden from now on.
    pub(super) fn end_claim(&self, state: &mut State, id: TxnId) {
        if let Some(txn) = state.txns.get_mut(&id) {
            txn.visibility.end();
        }
        if let Some(txn) = state.txns.get(&id) {
            let record = Engine::begin_record(state, txn, false);
            self.append(&record).ok();
        }
    }

    /// A version is about to stand before what the backing directory has under a name: to programs
    /// that is one link less. Gives its node.
    pub(super) fn cover(&self, state: &mut State, dentry: &Dentry) -> Option<NodeId> {
        let id = self.current_if_any(state, dentry).ok().flatten()?;
        if let Some(node) = state.nodes.get_mut(id)
            && !failpoint::mutant("C8-links")
        {
            node.covered += 1;
        }
        Some(id)
    }

    /// Appends a commit to the journal and to the list of those to be applied.
    pub(super) fn journal_commit(&self, state: &mut State, edits: Vec<Edit>) -> Seq {
        let seq = state.commits.next();
        let record = Record::Commit { seq, edits };
        if !failpoint::mutant("C18-commit") && self.append(&record).is_err() {
            // Space was reserved, so this is the disk failing. What is committed stays visible;
            // the checkpoint tries to bring it out at once and latches the failure.
            state.checkpoint.wanted = state.checkpoint.rounds + 1;
        }
        failpoint::crash_point("commit-journalled");
        state.counters.commits += 1;
        self.note_journalled(state, seq, record);
        seq
    }

    /// A commit stands in the journal; it is to be applied.
    pub(super) fn note_journalled(&self, state: &mut State, seq: Seq, record: Record) {
        state.metrics.note_commit(seq, Instant::now());
        state.commits.add(seq, record);
        self.wake_checkpoint(state);
    }

    /// A node's name is no longer pending. `gone`: its last link went with it.
    pub(super) fn unpin(&self, state: &mut State, id: NodeId, gone: bool) {
        if let Some(node) = state.nodes.get_mut(id) {
            node.pending = false;
            node.unlinked |= gone;
        }
        let fd = state.nodes.reap(id);
        self.defer_close(fd);
    }

    /// C11: a rename or link of a file that is still being written commits what is written so far under the new name, as thread `tid` asks for.
    pub(super) fn publish_open(
        &self,
        tid: u32,
        id: TxnId,
        to: &Dentry,
        how: Publication,
    ) -> OpResult<Published> {
        failpoint::delay("COMMITFS_CHOSEN_DELAY_MS");
        let txn = self.lock().txns.get(&id).map(|txn| txn.dentry().clone());
        let Some(from) = txn.filter(|_| how != Publication::Link) else {
            return self.publish_now(tid, id, to, how);
        };
        // Others add nothing to what is replaced.
        self.take_turn(&from, id);
        let published = self.publish_now(tid, id, to, how);
        self.end_turn(&mut self.lock(), &from, id);
        let published = published?;
        let renewed = self.renew_followers(id, published.version);
        renewed
            .inspect_err(|e| log::warn!("links stay behind: {e}"))
            .ok();
        Ok(published)
    }

    fn publish_now(
        &self,
        tid: u32,
        id: TxnId,
        to: &Dentry,
        how: Publication,
    ) -> OpResult<Published> {
        let (staging, policy) = {
            let state = self.lock();
            let txn = state.txns.get(&id).ok_or(Errno::NOENT)?;
            (
                txn.staging.clone(),
                self.policy(&state, to, crate::rules::Creation::default()),
            )
        };
        self.copy_base(&staging).ok();
        let mut content = staging.lock();
        Engine::may_be_published(&mut content, how)?;
        content.copy_base()?;
        let mut edits = None;
        if how != Publication::Link {
            edits = self.take_parts(id, &mut content, true)?;
            self.take_added(&mut content)?;
        }
        let replaces = match how {
            Publication::Stay | Publication::Rest => self.replaces(id, &content),
            Publication::Rename(_) | Publication::Link => Replaces::Whole,
        };
        self.check_guard(&mut content, to, &policy, replaces)
            .map_err(|abort| self.refuse(to, abort, tid))?;
        let stays = matches!(how, Publication::Stay | Publication::Rest);
        if stays && !content.changed {
            return Err(Errno::NODATA);
        }
        let like = self.apply_attributes(id, &mut content, to, !stays)?;
        let mut described = content.describe()?;
        let fresh_id = self.lock().txns.new_id();
        let copied = how == Publication::Link;
        // What was fsync'd under this name stays promised.
        let is_promised = copied
            && self
                .lock()
                .txns
                .get(&id)
                .is_some_and(|t| t.promise.has_fsynced());
        let file = self.making_room(|| self.store.create_staging(fresh_id))?;
        let old = at::reopen(&*content.file, rustix::fs::OFlags::PATH);
        let prepared = old.and_then(|old| {
            if copied {
                // Under this name it stays a content of its own, to be fsync'd, and seen after a
                // crash if it is a claim; what others append to the new name is none of it.
                let len = content.file.metadata().map_err(|e| errno_of(&e))?.len();
                at::copy_contents(&content.file, &file, len).map_err(|e| errno_of(&e))?;
            }
            self.apply_metadata(&file, Some(&old), None)?;
            if is_promised {
                rustix::fs::fdatasync(&file)?;
                self.store.sync_staging_dir()?;
            }
            let fd = at::open_path(
                &self.store.staging,
                crate::store::id_name(fresh_id).as_ref(),
            )?;
            Ok((old, at::stat(&fd)?, fd))
        });
        let unused = |_: &Errno| {
            self.store.remove_staging(fresh_id).ok();
        };
        let (old, stat, fd) = prepared.inspect_err(unused)?;
        self.reserve_commit().inspect_err(unused)?;
        failpoint::delay("COMMITFS_MOVE_DELAY_MS");
        let (by, mut guard, merged) = loop {
            let (by, base) = match how {
                Publication::Link => (None, None),
                _ => self.base_of_open(id, to, &policy, how),
            };
            let reconciled = self.reconcile(to, &policy, base.as_ref(), &content.file);
            let (onto, outcome) = reconciled.map_err(|abort| {
                self.store.remove_staging(fresh_id).ok();
                Engine::note_refused(&mut self.lock(), to, by.map(|(actor, _)| actor));
                self.refuse(to, abort, tid)
            })?;
            let mut state = self.lock();
            let current = self.current_if_any(&mut state, to).ok().flatten();
            let grown = content.grown().filter(|_| how != Publication::Link);
            let by_parts = how != Publication::Link && content.is_by_parts();
            let edited = by_parts.then(|| self.edited(&mut state, id)).flatten();
            let has_all = self.has_all_added(grown) && (edited.is_none() || edited == edits);
            if has_all && (base.is_none() || current == onto) {
                let is_newer = current != like.map(|(version, _)| version);
                if let Some(since) = current.filter(|_| is_newer && !content.times_set) {
                    self.outgrow(&state, since, &content.file, &mut described)
                        .inspect_err(unused)?;
                }
                if stays {
                    let file = match &outcome {
                        MergeOutcome::Merged(merged) => &merged.file,
                        _ => &content.file,
                    };
                    self.renew_attributes(&state, current, (file, &staging), like);
                }
                break (by, state, outcome);
            }
            drop(state);
            if let MergeOutcome::Merged(merged) = outcome {
                self.store.remove_staging(merged.id).ok();
            }
            if !has_all {
                edits = self
                    .take_parts(id, &mut content, true)
                    .inspect_err(unused)?;
                self.take_added(&mut content).inspect_err(unused)?;
                let permitted = self.check_guard(&mut content, to, &policy, replaces);
                permitted
                    .map_err(|abort| self.refuse(to, abort, tid))
                    .inspect_err(unused)?;
                described = content.describe().inspect_err(unused)?;
            }
        };
        let state = &mut *guard;
        if let Err(e) = check_due(self, state, id, how, to) {
            if let MergeOutcome::Merged(merged) = merged {
                self.store.remove_staging(merged.id).ok();
            }
            unused(&e);
            return Err(e);
        }
        let (node, from) = (state.txns[&id].node, state.txns[&id].dentry().clone());
        let key = state.nodes.get(node).ok_or(Errno::STALE)?.key;
        let edits = edits.filter(|_| content.is_by_parts());
        let overlaid = match how {
            Publication::Link => Vec::new(),
            _ => content.take_overlaid(),
        };
        let published_id = content.id;
        let published = content.continue_in(fresh_id, file, copied);
        let promised = is_promised.then(|| described.clone());
        if let Some(promised) = &promised {
            content.keep_promise(promised.clone());
        }
        state
            .nodes
            .move_to(node, Arc::new(fd.into()), (stat.st_dev, stat.st_ino));
        let version = state
            .nodes
            .create(NodeKind::File, Arc::new(old), key, to.clone());
        if let Some(node) = state.nodes.get(version) {
            content.base_ends_at(node.whole().clone());
        }
        drop(content);
        if let Some(txn) = state.txns.get(&id) {
            let by = txn.participants.to_who();
            Engine::note_overlaid(state, to, by, overlaid);
        }
        let is_merged = matches!(merged, MergeOutcome::Merged(_));
        let why = merged.overwrites();
        let (version, ready) = match merged {
            MergeOutcome::Merged(merged) => {
                self.leave_written(state, published_id, version);
                let node =
                    state
                        .nodes
                        .create(NodeKind::File, merged.path.clone(), merged.key, to.clone());
                (node, merged.ready(published.clone(), None))
            }
            MergeOutcome::AsWritten | MergeOutcome::Overwrites(_) => (
                version,
                Ready {
                    by_parts: edits.is_some(),
                    edits,
                    ..Ready::new(published_id, published.clone(), described)
                },
            ),
        };
        if how != Publication::Link {
            // A new file's first version; one that replaces another shares that one's locks.
            state.same_file(version, node);
        }
        let lost = match how {
            // Another file takes the name.
            Publication::Rename(_) => {
                let replaced = self.current_if_any(state, to)?;
                state.added_to(to, replaced)
            }
            Publication::Link | Publication::Stay | Publication::Rest => None,
        };
        let author = state
            .txns
            .get(&id)
            .map_or(0, |t| t.participants.opener_tid());
        let replaced = self.current_if_any(state, to)?;
        if let (Some(_), Some(lost)) = (why, replaced) {
            self.note_unmerged(state, author, to, (lost, version), why);
        } else if matches!(how, Publication::Rename(_) | Publication::Rest)
            && !Engine::watches(&policy)
        {
            self.note_replaced(state, author, Some(author), to, (replaced, version));
        }
        self.publish(state, to, ready, version);
        if let Some(linked) = state
            .nodes
            .get_mut(version)
            .filter(|_| how == Publication::Link)
        {
            // The kernel gets to know it by the answer.
            linked.lookups += 1;
        }
        if how == Publication::Link {
            self.follow_writers(state, &from, to, version);
        }
        let left = match how {
            Publication::Rename(_) => self.left_at(state, &from).ok().flatten(),
            Publication::Link | Publication::Stay | Publication::Rest => None,
        };
        if how != Publication::Link {
            let saved = Saved {
                begun: by.map_or(0, |(_, begun)| begun),
                version,
                is_merged,
                is_uncertain: why == Some(Why::Uncertain),
            };
            let by = by.map(|(actor, _)| actor);
            self.note_published(state, id, to, by, saved, published);
        }
        if matches!(how, Publication::Rename(_)) {
            state.unname(to, lost);
            state.rename_appenders(&from, to);
            self.retarget(state, id, to);
        }
        let (body, seq) = (state.files.body(version), state.commits.last());
        let txn = state.txns.get_mut(&id).expect("held above");
        self.owe(txn, how, seq);
        txn.staging_id = fresh_id;
        txn.promise.go_on(promised.clone());
        txn.preparation.start_anew(how != Publication::Link);
        if how != Publication::Link {
            txn.purpose.start_anew_from(version, body);
            txn.visibility.end();
        }
        state.wake_for(id, to);
        let txn = &state.txns[&id];
        self.append(&Engine::begin_record(state, txn, txn.is_there()))?;
        if let Some(content) = promised {
            self.append(&Record::Fsynced {
                id: fresh_id,
                content,
            })?;
        }
        Ok(Published { version, left })
    }
}
