//! The commit point: one append to the journal, one entry in memory.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::commit::Changeset;
use crate::conflict::{Loss, Save, Saved, Why};
use crate::engine::base::{current, lines, own_saves, watchers};
use crate::engine::meaning::{ledger, metadata, overwrites, pins};
use crate::engine::versions::{durability, overlaid, room};
use crate::engine::{Durability, Engine, State};
use crate::journal::{ContentInfo, Edit, Record};
use crate::namespace::{NodeKind, Pending};
use crate::sys::failpoint;
use crate::txn::{KeptContent, Ready, Transaction, Written};
use crate::types::{Dentry, NodeId, OpResult, Seq, TxnId, Version};

/// More versions of one name than this don't wait for the checkpoint to be due.
const MANY_SUPERSEDED: usize = 16;

/// Room in the journal for the record of a commit, and for what else is told with it.
pub const COMMIT_RECORD: u64 = 64 << 10;

/// What a commit replaces that its program may not have seen.
struct ReplacedUnseen {
    /// Somebody else's update.
    lost: Option<NodeId>,
    /// It is one of its own program's.
    is_own: bool,
    /// The program has read a version of the file.
    has_read: bool,
}

/// A prepared content, and the name that is to mean it.
pub struct NewVersion {
    pub dentry: Dentry,
    pub ready: Ready,
    /// The node that it gets.
    pub node: NodeId,
}

/// Space in the journal for a commit, so that the commit itself can't fail.
pub fn reserve_commit(engine: &Engine) -> OpResult<()> {
    // What is acknowledged must find its place (see `store::reserve`).
    room::making_room(engine, || engine.store.keep_reserve()).map_err(|e| {
        log::warn!("the disk is full, nothing more is committed: {e}");
        Errno::NOSPC
    })?;
    room::making_room(engine, || reserve_journal(engine))?;
    failpoint::delay("COMMITFS_COMMIT_DELAY_MS");
    Ok(())
}

fn reserve_journal(engine: &Engine) -> OpResult<()> {
    failpoint::fail_point("journal-reserve")?;
    engine.sequencer.reserve(COMMIT_RECORD)
}

/// Whether the journal has room for a commit now: none can be made while the state is locked.
pub fn can_reserve_commit(engine: &Engine) -> bool {
    engine.store.keep_reserve().is_ok() && reserve_journal(engine).is_ok()
}

/// Number of the next version of a name.
pub fn next_version(engine: &Engine, state: &mut State, dentry: &Dentry) -> Version {
    match current::current_if_any(engine, state, dentry) {
        Ok(Some(id)) => version_of(state, id).next(),
        _ => Version(1),
    }
}

/// Version number of a node.
pub fn version_of(state: &mut State, id: NodeId) -> Version {
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
pub fn commit(engine: &Engine, state: &mut State, txn: Transaction, save: Option<&Save>) {
    commit_all(engine, state, vec![(txn, save.cloned())]);
}

/// Counts and remembers what a commit replaces.
fn note_replaced_by(
    engine: &Engine,
    state: &mut State,
    txn: &Transaction,
    save: Option<&Save>,
    unseen: &ReplacedUnseen,
    (current, version): (Option<NodeId>, NodeId),
    as_written: &Arc<File>,
) {
    let (dentry, has_read) = (txn.dentry(), unseen.has_read);
    match (unseen.lost, current) {
        (Some(lost), _) => {
            let loss = Loss {
                lost,
                by: version,
                has_read,
                why: save.and_then(|s| s.overwrites),
                is_own: false,
            };
            let who = txn.participants.who();
            overwrites::note_overwritten(engine, state, dentry, who, loss);
        }
        (None, Some(old)) => {
            overwrites::note_followed(engine, state, dentry, (old, version), has_read)
        }
        (None, None) => overwrites::note_put_back(engine, state, txn, version),
    }
    if !lines::watches(&txn.policy) && unseen.lost.is_none() {
        let who = (txn.participants.opener_tid(), txn.participants.who());
        let versions = (current, version);
        own_saves::note_text_saved(state, who, dentry, versions, unseen.is_own, as_written);
    }
}

/// What else is to be known of a commit: how long it took, who has made it; and that a round is wanted for it.
fn note_committed(
    engine: &Engine,
    state: &mut State,
    txn: &Transaction,
    version: NodeId,
    synced: bool,
) {
    let overlaid = txn.staging.try_lock().map(|mut c| c.take_overlaid());
    let by = txn.participants.to_who();
    overlaid::note_overlaid(state, txn.dentry(), by, overlaid.unwrap_or_default());
    if let Some(began) = txn.preparation.began() {
        state.tally.metrics.commits.observe(began.elapsed());
    }
    // What others have committed since its close promised it is on the medium soon, too; so is
    // what a close that wasn't known to be the last has left.
    let behind = engine.sequencer.durable().next() < engine.sequencer.last();
    if synced && behind && !durability::all_synced(engine, state)
        || !synced && engine.config.durability == Durability::Sync
    {
        durability::want_round(engine, state);
    }
    let ago = txn.preparation.flush();
    let ago = ago.map_or(Duration::ZERO, |f| f.at.elapsed());
    state.note_saved(txn.participants.opener_tid(), txn.dentry(), version, ago);
    ledger::note_author(state, version, txn.id);
}

/// What was written is not needed any more, as a merge of it is committed.
pub fn leave_written(engine: &Engine, state: &mut State, staging: TxnId, node: NodeId) {
    if let Some(node) = state.nodes.get_mut(node) {
        (node.superseded, node.unlinked) = (true, true);
    }
    engine.store.remove_staging(staging).ok();
    engine.sequencer.append(&Record::Abort { id: staging }).ok();
    let fd = state.nodes.reap(node);
    engine.defer_close(fd);
}

/// Publishes a version under a name.
pub fn publish(engine: &Engine, state: &mut State, dentry: &Dentry, ready: Ready, node: NodeId) {
    let dentry = dentry.clone();
    publish_all(
        engine,
        state,
        vec![NewVersion {
            dentry,
            ready,
            node,
        }],
    );
}

/// Publishes versions under their names, in one commit: who holds the state sees all of them, and so does recovery.
pub fn publish_all(engine: &Engine, state: &mut State, versions: Vec<NewVersion>) {
    let mut changes = Changeset::default();
    let mut numbered = Vec::new();
    for new in versions {
        let version = next_version(engine, state, &new.dentry);
        match put_of(engine, state, &new, version) {
            Some(edit) => {
                let len = new.ready.content.len;
                state.files.note_length(&new.dentry, len);
                changes.add(edit);
                if let Some(kept) = &new.ready.kept {
                    changes.has_promised(kept.records(new.ready.id));
                }
            }
            None => {
                log::error!("{:?}: its directory is gone", new.dentry.name);
                continue;
            }
        }
        numbered.push((new, version));
    }
    if numbered.is_empty() {
        return;
    }
    let seq = journal_commit(engine, state, changes);
    for (new, version) in numbered {
        let NewVersion {
            dentry,
            ready,
            node,
        } = new;
        // Its file is not on the medium then, whatever it has become meanwhile.
        let inlined = ready.kept.filter(|kept| kept.inlined.is_some());
        let has_all = |kept: KeptContent| is_same_content(&kept.content, &ready.content);
        let pending = Pending {
            id: ready.id,
            file: ready.file,
            node,
            seq,
            version,
            superseded: Vec::new(),
            synced: ready.synced && (inlined.is_none() || failpoint::mutant("C7-inlined-synced")),
            journalled: ready.synced && inlined.is_some_and(has_all),
            unwritten: None,
        };
        put_pending(engine, state, &dentry, pending);
    }
}

/// Lets a name mean a version that the journal knows of.
pub fn put_pending(engine: &Engine, state: &mut State, dentry: &Dentry, pending: Pending) {
    let (node, version) = (pending.node, pending.version);
    if pins::are_there(state) {
        let current = current::current_if_any(engine, state, dentry)
            .ok()
            .flatten();
        pins::note_change(engine, state, dentry, current);
    }
    let replaced = match state.pending.get(dentry.dir, &dentry.name) {
        Some(p) => Some(p.node),
        None => cover(engine, state, dentry),
    };
    if replaced.is_none() {
        engine.touch_dir(state, dentry.dir);
    }
    let superseded = state.pending.put(dentry, pending);
    if let Some(n) = state.nodes.get_mut(node) {
        n.version = Some(version);
        n.pending = true;
    }
    if let Some(old) = superseded {
        unpin(engine, state, old, true);
        let waiting = state
            .pending
            .get(dentry.dir, &dentry.name)
            .map_or(0, |p| p.superseded.len());
        if waiting >= MANY_SUPERSEDED {
            // They take space: the checkpoint needn't wait until it is due.
            state.backlog.checkpoint.due = Some(std::time::Instant::now());
            engine.checkpoint_wanted.notify_one();
        }
    }
    replace(engine, state, dentry, replaced, node);
}

/// A name means another version than before.
pub fn replace(
    engine: &Engine,
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
    watchers::supersede(engine, state, dentry, old);
    state.nodes.kept_names.replace(old, node);
    let body = state.files.body(node);
    overtake_but(engine, state, dentry, engine.sequencer.last(), Some(body));
}

/// A version has taken the name: whoever had claimed it goes on staging as for any other (C6),
/// so that everybody sees what was committed last; what was promised of an open transaction
/// before is older than that; and an error of the name is the last one no more.
pub fn overtake(engine: &Engine, state: &mut State, dentry: &Dentry, by: Seq) {
    overtake_but(engine, state, dentry, by, None);
}

/// [`overtake`], but what was promised as an edit of this body goes into that version.
fn overtake_but(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    by: Seq,
    body: Option<NodeId>,
) {
    let open: Vec<TxnId> = state.txns.at(dentry).map(|t| t.id).collect();
    for id in open {
        if let Some(txn) = state.txns.get_mut(&id)
            && !(body.is_some() && txn.purpose.body() == body && txn.promises_parts())
        {
            txn.promise.overtake(by);
        }
    }
    end_claims(engine, state, dentry);
}

/// Whether what is told of a transaction now is an edit of what its name has now: else the journal
/// must not be told which parts of it are.
pub fn tell_parts(engine: &Engine, state: &mut State, id: TxnId, told: &mut ContentInfo) {
    if told.parts.is_some() && overlaid::edited(engine, state, id).is_none() {
        told.parts = None;
    }
}

/// Ends claims of a name that has got another file with the writers of that: what these have
/// promised is as new as their file.
pub fn end_claims(engine: &Engine, state: &mut State, dentry: &Dentry) {
    state.names.forget_error(dentry);
    let claims: Vec<TxnId> = state.txns.seen_by_all_at(dentry).map(|t| t.id).collect();
    for id in claims {
        end_claim(engine, state, id);
    }
}

/// What an O_EXCL creation holds is hidden from now on.
pub fn end_claim(engine: &Engine, state: &mut State, id: TxnId) {
    if let Some(txn) = state.txns.get_mut(&id) {
        txn.visibility.end();
    }
    if let Some(txn) = state.txns.get(&id) {
        let record = durability::begin_record(state, txn, false);
        engine.sequencer.append(&record).ok();
    }
}

/// A version is about to stand before what the backing directory has under a name: to programs
/// that is one link less. Gives its node.
pub fn cover(engine: &Engine, state: &mut State, dentry: &Dentry) -> Option<NodeId> {
    let id = current::current_if_any(engine, state, dentry)
        .ok()
        .flatten()?;
    if let Some(node) = state.nodes.get_mut(id)
        && !failpoint::mutant("C8-links")
    {
        node.covered += 1;
    }
    Some(id)
}

/// Appends a commit to the journal and to the list of those to be applied.
pub fn journal_commit(engine: &Engine, state: &mut State, changes: Changeset) -> Seq {
    let (seq, written) = engine.sequencer.commit(changes);
    if written.is_err() {
        // Space was reserved, so this is the disk failing. What is committed stays visible;
        // the checkpoint tries to bring it out at once and latches the failure.
        state.backlog.checkpoint.wanted = state.backlog.checkpoint.rounds + 1;
    }
    failpoint::crash_point("commit-journalled");
    state.tally.counters.commits += 1;
    note_journalled(engine, state, seq);
    seq
}

/// A commit stands in the journal; it is to be applied.
pub fn note_journalled(engine: &Engine, state: &mut State, seq: Seq) {
    state.tally.metrics.note_commit(seq, Instant::now());
    durability::wake_checkpoint(engine, state);
}

/// A node's name is no longer pending. `gone`: its last link went with it.
pub fn unpin(engine: &Engine, state: &mut State, id: NodeId, gone: bool) {
    if let Some(node) = state.nodes.get_mut(id) {
        node.pending = false;
        node.unlinked |= gone;
    }
    let fd = state.nodes.reap(id);
    engine.defer_close(fd);
}

/// What a transaction commits, and what is to be noted of it then.
struct CommitDraft {
    txn: Transaction,
    save: Option<Save>,
    version: NodeId,
    /// What was written, if something else is committed for it.
    written: Option<Written>,
    as_written: Arc<File>,
    synced: bool,
}

/// Commits prepared transactions whose last references are gone, all in one step.
pub fn commit_all(engine: &Engine, state: &mut State, all: Vec<(Transaction, Option<Save>)>) {
    pins::note_saved(engine, state, all.iter().map(|(txn, _)| txn));
    let (mut drafts, mut versions) = (Vec::new(), Vec::new());
    for (txn, save) in all {
        if let Some((draft, version)) = draft(engine, state, txn, save) {
            drafts.push(draft);
            versions.push(version);
        }
    }
    publish_all(engine, state, versions);
    for draft in drafts {
        note_draft(engine, state, draft);
    }
}

fn draft(
    engine: &Engine,
    state: &mut State,
    txn: Transaction,
    save: Option<Save>,
) -> Option<(CommitDraft, NewVersion)> {
    let Some(mut ready) = txn.preparation.ready().cloned() else {
        log::error!(
            "{}: transaction {} closed unprepared",
            engine.show(state, txn.dentry()),
            txn.id
        );
        return None;
    };
    let current = current::current_if_any(engine, state, txn.dentry())
        .ok()
        .flatten();
    renew(engine, state, &txn, current, &mut ready);
    let unseen = replaced_unseen(state, &txn, save.as_ref(), (&ready, current));
    let (written, synced) = (ready.merged.clone(), ready.synced);
    let as_written = written.as_ref().map_or(&ready.file, |w| &w.file).clone();
    let version = node_of_version(state, &txn, written.as_ref());
    let nodes = (current, version);
    note_replaced_by(
        engine,
        state,
        &txn,
        save.as_ref(),
        &unseen,
        nodes,
        &as_written,
    );
    if ready.merged.is_none() {
        ready.kept = txn.promise.kept().cloned();
    }
    let new = NewVersion {
        dentry: txn.dentry().clone(),
        ready,
        node: version,
    };
    let draft = CommitDraft {
        txn,
        save,
        version,
        written,
        as_written,
        synced,
    };
    Some((draft, new))
}

fn note_draft(engine: &Engine, state: &mut State, draft: CommitDraft) {
    let CommitDraft {
        txn,
        save,
        version,
        written,
        as_written,
        synced,
    } = draft;
    note_committed(engine, state, &txn, version, synced);
    if let Some((actor, begun)) = save.as_ref().and_then(|s| s.by) {
        let saved = Saved {
            begun,
            version,
            is_merged: written.is_some(),
            is_uncertain: save
                .as_ref()
                .is_some_and(|s| s.overwrites == Some(Why::Uncertain)),
        };
        let closed = save.and_then(|s| s.closed);
        ledger::note_saved(state, txn.dentry(), actor, saved, as_written, closed);
    }
    if written.is_some() {
        state.same_file(txn.node, version);
        leave_written(engine, state, txn.staging_id, txn.node);
    }
}

/// Takes what attributes and times the current version has got since it was prepared.
fn renew(
    engine: &Engine,
    state: &mut State,
    txn: &Transaction,
    current: Option<NodeId>,
    ready: &mut Ready,
) {
    let content = txn.staging.try_lock();
    let is_malformed = content.as_ref().is_some_and(|c| c.is_malformed());
    state.tally.counters.malformed += u64::from(is_malformed);
    let has_own_time = content.is_none_or(|c| c.times_set);
    metadata::renew_attributes(
        engine,
        state,
        current,
        (&ready.file, &txn.staging),
        ready.like,
    );
    // Somebody has committed since it was prepared: before this one.
    let since = current.filter(|current| ready.onto != Some(*current));
    if let Some(since) = since.filter(|_| !has_own_time) {
        metadata::outgrow(state, since, &ready.file, &mut ready.content).ok();
    }
}

/// Whether its program knew what it replaces.
fn replaced_unseen(
    state: &State,
    txn: &Transaction,
    save: Option<&Save>,
    (ready, current): (&Ready, Option<NodeId>),
) -> ReplacedUnseen {
    let author = txn.participants.opener_tid();
    let seen = match txn.purpose.rewrites() {
        true => state
            .conflicts
            .overwrites
            .last_seen_by_kin(author, txn.dentry()),
        false => state.conflicts.overwrites.last_seen(author, txn.dentry()),
    };
    let base = txn.purpose.base();
    let has_seen = match (save.and_then(|s| s.base.as_ref()), current) {
        (_, None) => true,
        (Some(_), _) if current == ready.onto => save.is_some_and(|s| s.overwrites.is_none()),
        (Some(base), _) => !ledger::is_stale(base, current),
        (None, Some(current)) => match seen.filter(|_| txn.purpose.rewrites()) {
            Some(seen) => state.is_as_seen(seen, current),
            None => base.is_some_and(|b| state.nodes.is_same(b, current)),
        },
    };
    let lost = current.filter(|_| !has_seen && ready.merged.is_none());
    let after = state
        .conflicts
        .registry
        .writer(txn.id)
        .and_then(|w| w.after);
    let is_own = |lost: &NodeId| {
        after == Some(*lost) || own_saves::is_own_save(state, txn.participants.opener(), *lost)
    };
    let own = lost.filter(|lost| !lines::watches(&txn.policy) && is_own(lost));
    ReplacedUnseen {
        lost: lost.filter(|_| own.is_none()),
        is_own: own.is_some(),
        has_read: seen.is_some_and(|s| s.has_read),
    }
}

/// The node of what is committed: the transaction's own, as a rule.
fn node_of_version(state: &mut State, txn: &Transaction, merged: Option<&Written>) -> NodeId {
    let dentry = txn.dentry();
    let version = match merged {
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
    version
}

/// What the journal is told of a new version; its node is told as well. `None`: its directory is gone.
fn put_of(engine: &Engine, state: &mut State, new: &NewVersion, version: Version) -> Option<Edit> {
    let (dentry, ready) = (&new.dentry, &new.ready);
    let path = state.nodes.path(dentry)?;
    if let Some(n) = state.nodes.get_mut(new.node) {
        n.sum = ready.content.crc.map(|crc| (ready.content.len, crc));
    }
    // A rename may give it another name than that of what it edits.
    let current = current::current_if_any(engine, state, dentry)
        .ok()
        .flatten();
    let in_place = ready
        .edits
        .filter(|_| ready.by_parts)
        .is_some_and(|edited| {
            current.is_some_and(|c| state.files.body(c) == state.files.body(edited))
        });
    if let Some(edited) = ready.edits {
        state.files.edit(new.node, edited);
    }
    if ready.appended {
        state.files.append_to(new.node);
    }
    Some(Edit::Put {
        path,
        id: ready.id,
        version,
        content: ContentInfo {
            // It has all that was added, and all that others have written.
            grown: None,
            parts: None,
            ..ready.content.clone()
        },
        in_place,
    })
}

/// Whether both have the same bytes.
fn is_same_content(one: &ContentInfo, other: &ContentInfo) -> bool {
    (one.len, one.crc) == (other.len, other.crc)
}
