//! Texts of documents that are in memory and in the journal alone: they are written before somebody looks at the file.

use std::fs::File;
use std::time::Duration;

use rustix::io::Errno;

use crate::commit::Changeset;
use crate::engine::documents::kept::Parsed;
use crate::engine::documents::request;
use crate::engine::meaning::metadata;
use crate::engine::versions::publish;
use crate::engine::{Engine, State};
use crate::journal::{ContentInfo, Edit};
use crate::namespace::Pending;
use crate::sys::{at, failpoint};
use crate::txn::{AsOf, Content, write_text};
use crate::types::{Dentry, HandleId, NodeId, OpResult, TxnId, seconds_of};

/// Writes the text of a name's version, if that is still to be done.
pub fn write_out(engine: &Engine, dentry: &Dentry) -> OpResult<()> {
    let kept = engine.documents.of(dentry);
    let mut parsed = kept.lock();
    match parsed.as_mut() {
        Some(parsed) => write_text_of(engine, dentry, parsed),
        None => Ok(()),
    }
}

/// Writes the text of a name's version, for who holds the document.
pub fn write_text_of(engine: &Engine, dentry: &Dentry, parsed: &mut Parsed) -> OpResult<()> {
    let Some(unwritten) = &parsed.unwritten else {
        return Ok(());
    };
    let (id, mtime_ns) = (unwritten.id, unwritten.mtime_ns);
    let text = request::text_of(&parsed.document);
    failpoint::fail_point("text")?;
    let content = write_text(&unwritten.file, text.as_bytes(), mtime_ns)?;
    failpoint::crash_point("text-written");
    let base = (content.len, content.crc.unwrap_or_default());
    note_written(engine, dentry, id, content, &unwritten.file)?;
    parsed.base = base;
    parsed.unwritten = None;
    engine.documents.note_unwritten(dentry, None);
    Ok(())
}

/// A staging file has its text. Unless somebody has replaced it meanwhile, the journal has no
/// more need of the edits that led to it.
pub fn note_written(
    engine: &Engine,
    dentry: &Dentry,
    id: TxnId,
    content: ContentInfo,
    file: &File,
) -> OpResult<()> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let path = state.nodes.path(dentry);
    let head = state.pending.get_mut(dentry.dir, &dentry.name);
    let Some((head, path)) = head.filter(|p| p.id == id).zip(path) else {
        return Ok(());
    };
    let mtime_ns = content.mtime_ns;
    let seq = engine.sequencer.try_commit(Changeset::from(Edit::Put {
        path,
        id,
        version: head.version,
        content,
        in_place: false,
    }))?;
    (head.seq, head.unwritten) = (seq, None);
    if let Some(node) = state.nodes.get_mut(head.node) {
        let written = at::stat(file)?;
        let applied = (written.st_ctime, written.st_ctime_nsec);
        node.ctime_shift = Some(Box::new((applied, seconds_of(mtime_ns))));
        node.unwritten = None;
    }
    publish::note_journalled(engine, state, seq);
    Ok(())
}

/// Whether a version's text is still to be written: see [`materialize`].
pub fn is_dirty(engine: &Engine, node: NodeId) -> bool {
    let state = engine.lock();
    state.nodes.get(node).is_some_and(|n| n.unwritten.is_some())
}

/// Has a version's text written before somebody looks at it; that of the last one, if edits
/// have followed that share its file.
pub fn materialize(engine: &Engine, node: NodeId) -> OpResult<()> {
    let dentry = {
        let state = engine.lock();
        match state.nodes.get(node) {
            Some(n) if n.unwritten.is_some() => n.at.clone(),
            _ => return Ok(()),
        }
    };
    if failpoint::mutant("C15-settle") {
        return Ok(());
    }
    write_out(engine, &dentry.ok_or(Errno::STALE)?)?;
    loop {
        let mut state = engine.lock();
        match state.unwritten_name(node) {
            // It is known by another name, too.
            Some(name) => {
                drop(state);
                write_out(engine, &name)?;
            }
            None => {
                if let Some(node) = state.nodes.get_mut(node) {
                    node.unwritten = None;
                }
                return Ok(());
            }
        }
    }
}

/// An in-place editor reads what it is based on: that has to be written by then. It may be
/// a later version in the same file, which is its base then.
pub fn materialize_base(engine: &Engine, id: TxnId) -> OpResult<()> {
    let (dentry, staging) = {
        let state = engine.lock();
        let Some(txn) = state.txns.get(&id).filter(|t| t.purpose.edits()) else {
            return Ok(());
        };
        (txn.dentry().clone(), txn.staging.clone())
    };
    if !engine.documents.is_unwritten(&dentry) {
        return Ok(());
    }
    write_out(engine, &dentry)?;
    let base = match staging.lock() {
        content if content.must_copy() => at::stat(&*content.readable().file)?,
        _ => return Ok(()),
    };
    let mut guard = engine.lock();
    let state = &mut *guard;
    let known = state.nodes.known((base.st_dev, base.st_ino));
    if let (Some(known), Some(txn)) = (known, state.txns.get_mut(&id)) {
        txn.purpose.follow_base(known);
    }
    Ok(())
}

/// The transaction that a description has begun on a document that may not be written out.
pub fn dirty_editor(engine: &Engine, handle: HandleId) -> Option<TxnId> {
    let state = engine.lock();
    let txn = state.handles.get(handle)?.transaction()?;
    let edited = state.txns.get(&txn).filter(|t| t.purpose.edits())?;
    engine
        .documents
        .is_unwritten(edited.dentry())
        .then_some(txn)
}

/// Writes the text of a name's current version, if that is still to be done. Gives the state, in which it is written.
pub fn lock_materialized<'a>(
    engine: &'a Engine,
    dentry: &Dentry,
) -> OpResult<parking_lot::MutexGuard<'a, State>> {
    loop {
        let state = engine.lock();
        if !state.is_unwritten_at(dentry) {
            return Ok(state);
        }
        drop(state);
        let kept = engine.documents.of(dentry);
        let mut parsed = kept.lock();
        if let Some(parsed) = parsed.as_mut() {
            write_text_of(engine, dentry, parsed)?;
        }
        // While the document is held no edit can come in between.
        let state = engine.lock();
        if !state.is_unwritten_at(dentry) {
            return Ok(state);
        }
    }
}

/// How long a document's text may stay in memory and in the journal alone.
pub fn text_delay(engine: &Engine) -> Duration {
    TEXT_DELAY.min(engine.config.bound / 2)
}

/// Owner, mode and the like of the version as it is now, and a modification time later than
/// its (C8). Gives the version. A rename keeps the file's own but for the time (`keeps_own`).
pub fn apply_attributes(
    engine: &Engine,
    id: TxnId,
    content: &mut Content,
    dentry: &Dentry,
    keeps_own: bool,
) -> OpResult<Option<AsOf>> {
    let state = lock_materialized(engine, dentry)?;
    metadata::attributes_of_current(engine, state, id, content, dentry, keeps_own)
}

impl State {
    /// Whether the text of a name's current version is still to be written.
    pub(in crate::engine) fn is_unwritten_at(&self, dentry: &Dentry) -> bool {
        let head = self.pending.get(dentry.dir, &dentry.name);
        head.is_some_and(|p| p.unwritten.is_some())
    }

    /// The name whose version shares a node's file, if its text is still to be written.
    pub(in crate::engine) fn unwritten_name(&self, node: NodeId) -> Option<Dentry> {
        let key = self.nodes.get(node)?.key;
        let shares = |p: &Pending| self.nodes.get(p.node).is_some_and(|n| n.key == key);
        let mut all = self.pending.iter();
        all.find(|(_, p)| p.unwritten.is_some() && shares(p))
            .map(|(dentry, _)| dentry)
    }
}

/// A document's text is written to its file after this, if nobody has asked for it before.
pub const TEXT_DELAY: Duration = Duration::from_millis(500);
