//! What was written so far of a file that is still open becomes a version (C11, C12): by a rename or link, an unlock, or because it rests.
//!
//! Its staging file is what is published, and the transaction goes on in a fresh one. So no published inode is ever written again.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::{OFlags, Stat};
use rustix::io::Errno;

use crate::conflict::{Actor, Saved, Why};
use crate::engine::base::passed::look_at_passed;
use crate::engine::base::publication::Publication;
use crate::engine::base::{current, lines};
use crate::engine::deciding::merging::MergeOutcome;
use crate::engine::deciding::names::Left;
use crate::engine::deciding::{copies, judging, merging, names, rounds};
use crate::engine::documents::texts;
use crate::engine::meaning::{ledger, metadata, turns};
use crate::engine::versions::due::check_due;
use crate::engine::versions::overlaid::copied;
use crate::engine::versions::replaced;
use crate::engine::versions::{aborting, due, durability, growing, overlaid, publish, room};
use crate::engine::{Engine, State};
use crate::guard::Replaces;
use crate::journal::{ContentInfo, Record};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Policy};
use crate::store::{Store, id_name};
use crate::sys::{at, failpoint};
use crate::txn::{AsOf, Content, Ready, Staging};
use crate::types::{Dentry, NodeId, OpResult, TxnId, errno_of};

/// What an open file has become by a rename, a link or an unlock.
pub struct Published {
    pub version: NodeId,
    /// What its old name means still.
    pub left: Option<Left>,
}

/// What is asked for, by whom, and the rules for the name that it is published under.
struct Publishing<'a> {
    engine: &'a Engine,
    /// Thread that asks for it; 0 is the daemon itself.
    tid: u32,
    id: TxnId,
    to: &'a Dentry,
    how: Publication,
    policy: Policy,
    replaces: Replaces,
}

/// What is to be published, as it was judged.
struct Draft {
    described: ContentInfo,
    /// The version that it was made of, if it is an edit.
    edits: Option<NodeId>,
    /// The version whose attributes it was given.
    like: Option<AsOf>,
}

/// The staging file in which a transaction goes on; removed if it doesn't.
struct Fresh<'a> {
    engine: &'a Engine,
    id: TxnId,
    made: Option<Made>,
    /// It is the one that it was in before.
    is_kept: bool,
}

/// A content that is published. Where the kernel writes its file by itself, that must not become a version: it stands in a copy meanwhile,
/// and the transaction goes on in its file.
struct Aside<'a> {
    engine: &'a Engine,
    content: MutexGuard<'a, Content>,
    /// That file and its number, as long as nothing is published.
    written: Option<(TxnId, Arc<File>)>,
}

impl<'a> Aside<'a> {
    fn of(engine: &'a Engine, mut content: MutexGuard<'a, Content>) -> OpResult<Aside<'a>> {
        let mut written = None;
        if content.passes() && !failpoint::mutant("C11-passed") {
            let (id, copy) = copied(engine, &content.file)?;
            written = Some(content.step_aside(id, copy));
        }
        Ok(Aside {
            engine,
            content,
            written,
        })
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        if let Some((id, file)) = self.written.take() {
            let (copy, _) = self.content.step_aside(id, file);
            self.engine.store.remove_staging(copy).ok();
        }
    }
}

struct Made {
    file: File,
    fd: OwnedFd,
    stat: Stat,
    /// The file that is published.
    old: File,
    /// It has a copy of that, which is promised as it was before.
    is_promised: bool,
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        if self.made.is_some() && !self.is_kept {
            self.engine.store.remove_staging(self.id).ok();
        }
    }
}

/// What it was decided to commit, with the state in which that holds.
struct Decided<'a> {
    state: MutexGuard<'a, State>,
    by: Option<(Actor, u64)>,
    outcome: MergeOutcome,
}

/// What has become of the content that was published.
struct Parted {
    /// The version of what was written.
    version: NodeId,
    ready: Ready,
    /// What was written, in its file.
    file: Arc<File>,
    is_merged: bool,
    why: Option<Why>,
    /// What the transaction goes on with is promised.
    promised: Option<ContentInfo>,
}

/// C11: a rename or link of a file that is still being written commits what is written so far under the new name, as thread `tid` asks for.
pub fn publish_open(
    engine: &Engine,
    tid: u32,
    id: TxnId,
    to: &Dentry,
    how: Publication,
) -> OpResult<Published> {
    failpoint::delay("COMMITFS_CHOSEN_DELAY_MS");
    let txn = engine.lock().txns.get(&id).map(|txn| txn.dentry().clone());
    let Some(from) = txn.filter(|_| !how.links()) else {
        return publish_now(engine, tid, id, to, how);
    };
    // Others add nothing to what is replaced.
    turns::take_turn(engine, &from, id);
    let published = publish_now(engine, tid, id, to, how);
    turns::end_turn(&mut engine.lock(), &from, id);
    let published = published?;
    let renewed = copies::renew_followers(engine, id, published.version);
    renewed
        .inspect_err(|e| log::warn!("links stay behind: {e}"))
        .ok();
    Ok(published)
}

fn publish_now(
    engine: &Engine,
    tid: u32,
    id: TxnId,
    to: &Dentry,
    how: Publication,
) -> OpResult<Published> {
    let (staging, policy) = {
        let state = engine.lock();
        let txn = state.txns.get(&id).ok_or(Errno::NOENT)?;
        let policy = engine.policy(&state, to, Creation::default());
        (txn.staging.clone(), policy)
    };
    room::copy_base(engine, &staging).ok();
    let mut content = staging.lock();
    due::may_be_published(&mut content, how)?;
    content.copy_base()?;
    look_at_passed(&engine.store, &mut content)?;
    let publishing = Publishing {
        replaces: match how.stays() {
            true => judging::replaces(engine, id, &content),
            false => Replaces::Whole,
        },
        engine,
        tid,
        id,
        to,
        how,
        policy,
    };
    let mut aside = Aside::of(engine, content)?;
    let mut draft = publishing.judge(&mut aside.content)?;
    let mut fresh = publishing.fresh(&aside)?;
    publish::reserve_commit(engine)?;
    failpoint::delay("COMMITFS_MOVE_DELAY_MS");
    let decided = publishing.decide(&staging, &mut aside.content, &mut draft)?;
    let (mut guard, by) = (decided.state, decided.by);
    let state = &mut *guard;
    if let Err(e) = check_due(engine, state, id, how, to) {
        discard(&engine.store, decided.outcome);
        return Err(e);
    }
    let parted = publishing.part(state, &mut aside, draft, &mut fresh, decided.outcome)?;
    drop(aside);
    let (version, fresh_id) = (parted.version, fresh.id);
    let promised = parted.promised.clone();
    let left = publishing.put_under_name(state, parted, by)?;
    publishing.go_on(state, version, fresh_id, promised)?;
    Ok(Published { version, left })
}

/// A merge is not committed.
fn discard(store: &Store, outcome: MergeOutcome) {
    if let MergeOutcome::Merged(merged) = outcome {
        store.remove_staging(merged.id).ok();
    }
}

impl<'a> Publishing<'a> {
    /// What can keep it from being published: guard, attributes, checksum.
    fn judge(&self, content: &mut Content) -> OpResult<Draft> {
        let engine = self.engine;
        let edits = self.take_over(content)?;
        self.ask_guard(content)?;
        if self.how.stays() && !content.changed {
            return Err(Errno::NODATA);
        }
        let like = texts::apply_attributes(engine, self.id, content, self.to, !self.how.stays())?;
        Ok(Draft {
            described: content.describe()?,
            edits,
            like,
        })
    }

    fn ask_guard(&self, content: &mut Content) -> OpResult<()> {
        let permitted =
            judging::check_guard(self.engine, content, self.to, &self.policy, self.replaces);
        permitted.map_err(|abort| aborting::refuse(self.engine, self.to, abort, self.tid))
    }

    /// Takes over what others have written and added; of a link, nothing. Gives the version that it is an edit of.
    fn take_over(&self, content: &mut Content) -> OpResult<Option<NodeId>> {
        if self.how.links() {
            return Ok(None);
        }
        let edits = overlaid::take_parts(self.engine, self.id, content, true)?;
        overlaid::take_added(self.engine, content)?;
        Ok(edits)
    }

    /// A staging file for the transaction to go on in.
    fn fresh(&self, aside: &Aside<'_>) -> OpResult<Fresh<'a>> {
        let (engine, content) = (self.engine, &aside.content);
        if let Some((id, file)) = &aside.written {
            let file = file.try_clone().map_err(|e| errno_of(&e))?;
            let made = self.made(*id, file, content)?;
            return Ok(Fresh {
                engine,
                id: *id,
                made: Some(made),
                is_kept: true,
            });
        }
        let id = engine.lock().txns.new_id();
        let file = room::making_room(engine, || engine.store.create_staging(id))?;
        let mut fresh = Fresh {
            engine,
            id,
            made: None,
            is_kept: false,
        };
        let made = self.fill(id, file, content);
        fresh.made = Some(made.inspect_err(|_| {
            engine.store.remove_staging(id).ok();
        })?);
        Ok(fresh)
    }

    fn fill(&self, fresh_id: TxnId, file: File, content: &Content) -> OpResult<Made> {
        let old = at::reopen(&*content.file, OFlags::PATH)?;
        if self.how.links() {
            // Under this name it stays a content of its own, to be fsync'd, and seen after a
            // crash if it is a claim; what others append to the new name is none of it.
            let len = content.file.metadata().map_err(|e| errno_of(&e))?.len();
            at::copy_contents(&content.file, &file, len).map_err(|e| errno_of(&e))?;
        }
        metadata::apply_metadata(self.engine, &file, Some(&old), None)?;
        self.made(fresh_id, file, content)
    }

    /// What a transaction goes on in, which has all that it is to have.
    fn made(&self, fresh_id: TxnId, file: File, content: &Content) -> OpResult<Made> {
        let engine = self.engine;
        let old = at::reopen(&*content.file, OFlags::PATH)?;
        // What was fsync'd under this name stays promised.
        let has_fsynced = |state: &State| {
            let txn = state.txns.get(&self.id);
            txn.is_some_and(|t| t.promise.has_fsynced())
        };
        let is_promised = self.how.links() && has_fsynced(&engine.lock());
        if is_promised {
            rustix::fs::fdatasync(&file)?;
            engine.store.sync_staging_dir()?;
        }
        let fd = at::open_path(&engine.store.staging, id_name(fresh_id).as_ref())?;
        Ok(Made {
            file,
            stat: at::stat(&fd)?,
            fd,
            old,
            is_promised,
        })
    }

    /// Merges, if it is to be, as often as others commit meanwhile.
    fn decide(
        &self,
        staging: &Staging,
        content: &mut Content,
        draft: &mut Draft,
    ) -> OpResult<Decided<'a>> {
        let (engine, id, to) = (self.engine, self.id, self.to);
        loop {
            let (by, base) = match self.how.links() {
                true => (None, None),
                false => ledger::base_of_open(engine, id, to, &self.policy, self.how),
            };
            let reconciled =
                merging::reconcile(engine, to, &self.policy, base.as_ref(), &content.file);
            let (onto, outcome) = reconciled.map_err(|abort| {
                ledger::note_refused(&mut engine.lock(), to, by.map(|(actor, _)| actor));
                aborting::refuse(engine, to, abort, self.tid)
            })?;
            let mut state = engine.lock();
            let current = current::current_if_any(engine, &mut state, to)
                .ok()
                .flatten();
            let grown = content.grown().filter(|_| !self.how.links());
            let by_parts = !self.how.links() && content.is_by_parts();
            let edited = by_parts
                .then(|| overlaid::edited(engine, &mut state, id))
                .flatten();
            let has_all = growing::has_all_added(engine, grown)
                && (edited.is_none() || edited == draft.edits);
            if has_all && (base.is_none() || current == onto) {
                self.renew(&state, current, (staging, content, &outcome), draft)?;
                return Ok(Decided { state, by, outcome });
            }
            drop(state);
            discard(&engine.store, outcome);
            if !has_all {
                draft.edits = self.take_over(content)?;
                self.ask_guard(content)?;
                draft.described = content.describe()?;
            }
        }
    }

    /// Takes what attributes and times the replaced version has got since they were taken over.
    fn renew(
        &self,
        state: &State,
        current: Option<NodeId>,
        (staging, content, outcome): (&Staging, &Content, &MergeOutcome),
        draft: &mut Draft,
    ) -> OpResult<()> {
        let is_newer = current != draft.like.map(|(version, _)| version);
        if let Some(since) = current.filter(|_| is_newer && !content.times_set) {
            metadata::outgrow(state, since, &content.file, &mut draft.described)?;
        }
        if self.how.stays() {
            let file = match outcome {
                MergeOutcome::Merged(merged) => &merged.file,
                _ => &content.file,
            };
            metadata::renew_attributes(self.engine, state, current, (file, staging), draft.like);
        }
        Ok(())
    }

    /// The content goes on in its fresh file, and what was written before gets a node of its own.
    fn part(
        &self,
        state: &mut State,
        aside: &mut Aside<'_>,
        draft: Draft,
        fresh: &mut Fresh<'_>,
        outcome: MergeOutcome,
    ) -> OpResult<Parted> {
        let content = &mut aside.content;
        let node = state.txns[&self.id].node;
        let edits = draft.edits.filter(|_| content.keeps_places());
        let overlaid = match self.how.links() {
            true => Vec::new(),
            false => content.take_overlaid(),
        };
        let (published_id, made) = (content.id, fresh.made.take().ok_or(Errno::STALE)?);
        let key = at::stat(&made.old).map(|old| (old.st_dev, old.st_ino))?;
        let published = match aside.written.take() {
            Some(_) => content.write_on_in(fresh.id, made.file, self.how.links()),
            None => content.continue_in(fresh.id, made.file, self.how.links()),
        };
        let promised = made.is_promised.then(|| draft.described.clone());
        if let Some(promised) = promised.clone() {
            content.keep_promise(promised);
        }
        let key_of_fresh = (made.stat.st_dev, made.stat.st_ino);
        state
            .nodes
            .move_to(node, Arc::new(made.fd.into()), key_of_fresh);
        let (old, to) = (Arc::new(made.old), self.to.clone());
        let version = state.nodes.create(NodeKind::File, old, key, to);
        if let Some(node) = state.nodes.get(version) {
            content.base_ends_at(node.whole().clone());
        }
        if let Some(txn) = state.txns.get(&self.id) {
            let by = txn.participants.to_who();
            overlaid::note_overlaid(state, self.to, by, overlaid);
        }
        let why = outcome.overwrites();
        let is_merged = matches!(outcome, MergeOutcome::Merged(_));
        let (version, ready) = match outcome {
            MergeOutcome::Merged(merged) => {
                publish::leave_written(self.engine, state, published_id, version);
                let (path, key, to) = (merged.path.clone(), merged.key, self.to.clone());
                let node = state.nodes.create(NodeKind::File, path, key, to);
                (node, merged.ready(published.clone(), None))
            }
            MergeOutcome::AsWritten | MergeOutcome::Overwrites(_) => {
                let ready = Ready {
                    by_parts: edits.is_some() && content.is_by_parts(),
                    edits,
                    appended: content.has_appended(),
                    ..Ready::new(published_id, published.clone(), draft.described)
                };
                (version, ready)
            }
        };
        if !self.how.links() {
            // A new file's first version; one that replaces another shares that one's locks.
            state.same_file(version, node);
        }
        Ok(Parted {
            version,
            ready,
            file: published,
            is_merged,
            why,
            promised,
        })
    }

    /// What was written becomes the version of its name. Gives what its old name means still.
    fn put_under_name(
        &self,
        state: &mut State,
        parted: Parted,
        by: Option<(Actor, u64)>,
    ) -> OpResult<Option<Left>> {
        let (engine, id, to) = (self.engine, self.id, self.to);
        let (version, from) = (parted.version, state.txns[&id].dentry().clone());
        let replaced = current::current_if_any(engine, state, to)?;
        let lost = match self.how.renames() {
            // Another file takes the name.
            true => state.added_to(to, replaced),
            false => None,
        };
        self.note_lost(state, parted.why, (replaced, version));
        let mut ready = parted.ready;
        if ready.merged.is_none() && !self.how.links() {
            ready.kept = state.txns[&id].promise.kept().cloned();
        }
        publish::publish(engine, state, to, ready, version);
        if self.how.links() {
            if let Some(linked) = state.nodes.get_mut(version) {
                // The kernel gets to know it by the answer.
                linked.lookups += 1;
            }
            copies::follow_writers(state, &from, to, version);
            return Ok(None);
        }
        let left = match self.how.renames() {
            true => names::left_at(engine, state, &from).ok().flatten(),
            false => None,
        };
        let saved = Saved {
            begun: by.map_or(0, |(_, begun)| begun),
            version,
            is_merged: parted.is_merged,
            is_uncertain: parted.why == Some(Why::Uncertain),
        };
        let by = by.map(|(actor, _)| actor);
        ledger::note_published(state, id, to, by, saved, parted.file);
        if self.how.renames() {
            state.names.unname(to, lost);
            state.names.move_appenders(&from, to);
            names::retarget(engine, state, id, to);
        }
        Ok(left)
    }

    /// Counts what is replaced unseen.
    fn note_lost(
        &self,
        state: &mut State,
        why: Option<Why>,
        (replaced, version): (Option<NodeId>, NodeId),
    ) {
        let (engine, to) = (self.engine, self.to);
        let txn = state.txns.get(&self.id);
        let author = txn.map_or(0, |t| t.participants.opener_tid());
        let counts = self.how.renames() || self.how == Publication::Rest;
        if let (Some(_), Some(lost)) = (why, replaced) {
            replaced::note_unmerged(engine, state, author, to, (lost, version), why);
        } else if counts && !lines::watches(&self.policy) {
            replaced::note_replaced(engine, state, author, Some(author), to, (replaced, version));
        }
    }

    /// The transaction goes on in its fresh staging file, and the journal is told.
    fn go_on(
        &self,
        state: &mut State,
        version: NodeId,
        fresh: TxnId,
        promised: Option<ContentInfo>,
    ) -> OpResult<()> {
        let engine = self.engine;
        let (body, seq) = (state.files.body(version), engine.sequencer.last());
        let txn = state.txns.get_mut(&self.id).ok_or(Errno::STALE)?;
        due::owe(engine, txn, self.how, seq);
        txn.staging_id = fresh;
        txn.promise.go_on(promised.clone());
        txn.preparation.start_anew(!self.how.links());
        if !self.how.links() {
            txn.purpose.start_anew_from(version, body);
            txn.visibility.end();
        }
        state.wake_for(self.id, self.to);
        let txn = &state.txns[&self.id];
        let begin = durability::begin_record(state, txn, txn.is_there());
        engine.sequencer.append(&begin)?;
        if let Some(grouped) = rounds::grouped(txn) {
            engine.sequencer.append(&grouped)?;
        }
        match promised {
            Some(content) => {
                let id = fresh;
                engine.sequencer.append(&Record::Fsynced { id, content })
            }
            None => Ok(()),
        }
    }
}
