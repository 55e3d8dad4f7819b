//! How an edit becomes a version, and when its text is written.
//!
//! A version that an edit makes is committed by a journal record that holds the edit, and is
//! visible at once: a node with the attributes that its text will have. The text itself is written
//! to the staging file when somebody opens the version, or by the checkpoint soon after; until then one
//! staging file, with space for the text set aside, stands for all versions that edits make one
//! after the other, and each of them has a node of its own.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::documents::kept;
use crate::engine::documents::kept::Parsed;
use crate::engine::documents::request;
use crate::engine::documents::request::{Refusal, Request};
use crate::engine::documents::texts;
use crate::engine::meaning::{metadata, pins, stat};
use crate::engine::versions::{publish, shared};
use crate::engine::{Engine, State};
use crate::journal::{ContentInfo, Edit};
use crate::namespace::{CachedAttributes, Node, NodeKind, Pending, Unwritten};
use crate::sys::{at, failpoint};
use crate::txn::{Ready, write_text};
use crate::types::{Dentry, NodeId, OpResult, Seq, TxnId, Version, mtime_ns, now_ns};

/// Space is set aside in steps of this many bytes, so that a growing document asks for it seldom.
const AHEAD: u64 = 64 << 10;
/// A patch longer than this is not journalled: its result's text is written at once.
pub const JOURNALLED: usize = 256 << 10;

/// The version that an edit starts from.
pub struct DocumentBase {
    pub dentry: Dentry,
    pub node: NodeId,
    pub version: Version,
    /// Its file. Once it is in place its node may be forgotten at any time.
    fd: Arc<File>,
}

impl DocumentBase {
    pub(in crate::engine) fn expect_version(&self, expected: Option<u64>) -> Result<(), Refusal> {
        if expected.is_some_and(|e| Version(e) != self.version) {
            return Err(Refusal {
                errno: Errno::STALE,
                reason: format!("the current version is {}", self.version),
            });
        }
        Ok(())
    }
}

/// The version that an edit has made.
pub struct Edited {
    pub node: NodeId,
    pub version: Version,
    pub seq: Seq,
}

/// The staging file that stands for a version.
struct Staged {
    id: TxnId,
    file: Arc<File>,
    fd: Arc<File>,
    key: (u64, u64),
    /// It stands for no version yet.
    fresh: bool,
    allocated: u64,
}

pub fn base_of_edit(engine: &Engine, dentry: &Dentry) -> Result<DocumentBase, Refusal> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    if state.unmount.is_forced() {
        return Err(Errno::ROFS.into());
    }
    let node = current::current(engine, state, dentry)?;
    if state
        .nodes
        .get(node)
        .is_none_or(|n| n.kind != NodeKind::File)
    {
        return Err(Errno::OPNOTSUPP.into());
    }
    if shared::is_direct(engine, state, node, Some(dentry))? {
        return Err(Refusal {
            errno: Errno::OPNOTSUPP,
            reason: "files in direct mode can't be patched; see the rule for its name".into(),
        });
    }
    let base = DocumentBase {
        dentry: dentry.clone(),
        node,
        version: publish::version_of(state, node),
        fd: state.nodes.fd(node)?,
    };
    drop(guard);
    failpoint::delay("COMMITFS_EDIT_DELAY_MS");
    Ok(base)
}

/// Whether who was let to a node by its owner, mode and ACL may go on to the current version: a
/// descriptor may be older than they are.
pub fn check_access(engine: &Engine, node: NodeId, base: &DocumentBase) -> Result<(), Refusal> {
    let state = engine.lock();
    let key = |id| state.nodes.get(id).map(|n| n.key);
    let is_private = |id| {
        let kind = state.nodes.get(id).map(|n| n.kind);
        matches!(kind, Some(NodeKind::Private(_)))
    };
    if node == base.node || key(node) == key(base.node) || is_private(node) {
        return Ok(());
    }
    let old = state.nodes.fd(node)?;
    drop(state);
    let access = |fd: &File| -> OpResult<_> {
        let stat = at::stat(fd)?;
        let acl = at::get_xattr(fd, "system.posix_acl_access".as_ref())?;
        Ok((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, acl))
    };
    if access(&old)? != access(&base.fd)? {
        return Err(Refusal {
            errno: Errno::STALE,
            reason: "the file has another owner or mode by now: open it again".into(),
        });
    }
    Ok(())
}

/// The parsed text of a version: as it was kept, or read.
pub fn current_document<'a>(
    engine: &Engine,
    base: &DocumentBase,
    parsed: &'a mut Option<Parsed>,
) -> Result<&'a mut Parsed, Refusal> {
    let changes = |n: &Node| n.written_in_place || n.grows();
    let changes = engine.lock().nodes.get(base.node).is_none_or(changes);
    let fits = |p: &Parsed| (p.node == base.node && !changes) || failpoint::mutant("C15");
    if !parsed.as_ref().is_some_and(fits) {
        // Somebody may still open what was replaced before its text was written.
        if let Some(replaced) = parsed.as_mut() {
            texts::write_text_of(engine, &base.dentry, replaced)?;
        }
        *parsed = None;
        *parsed = Some(Parsed::read(base.node, &base.fd)?);
    }
    parsed.as_mut().ok_or(Errno::IO.into())
}

/// Whether a version's text is still to be written, and its staging file has space for it.
pub fn is_hot(engine: &Engine, dentry: &Dentry, parsed: &Parsed) -> bool {
    let state = engine.lock();
    let head = state.pending.get(dentry.dir, &dentry.name);
    head.filter(|p| p.node == parsed.node)
        .and_then(|p| p.unwritten)
        .is_some_and(|u| u.allocated >= parsed.document.text_len() as u64)
}

/// Commits the edited document as the next version of what it was made of. `None`: that is not
/// current any more.
pub fn commit_edit(
    engine: &Engine,
    base: &DocumentBase,
    parsed: &mut Parsed,
    request: &Request,
) -> OpResult<Option<Edited>> {
    let edited = if request.value.len() > JOURNALLED {
        let text = request::text_of(&parsed.document);
        let edited = commit_text(engine, base, text.as_bytes())?;
        if edited.is_some() {
            parsed.base = (text.len() as u64, crc32c::crc32c(text.as_bytes()));
        }
        edited
    } else {
        commit_unwritten(engine, base, parsed, request)?
    };
    if let Some(edited) = &edited {
        parsed.node = edited.node;
    }
    Ok(edited)
}

/// Commits a text as the next version of its base.
pub fn commit_text(engine: &Engine, base: &DocumentBase, text: &[u8]) -> OpResult<Option<Edited>> {
    let staged = with_space(engine, new_staged(engine, base)?, text.len() as u64)?;
    let mtime_ns = next_mtime(&engine.lock(), base);
    let written = write_text(&staged.file, text, mtime_ns);
    let edited = written.and_then(|content| publish_text(engine, base, &staged, content));
    if !matches!(edited, Ok(Some(_))) {
        engine.store.remove_staging(staged.id).ok();
    }
    edited
}

fn publish_text(
    engine: &Engine,
    base: &DocumentBase,
    staged: &Staged,
    content: ContentInfo,
) -> OpResult<Option<Edited>> {
    reserve_records(engine, 0)?;
    let mut guard = engine.lock();
    let state = &mut *guard;
    if !is_current(engine, state, base)? {
        return Ok(None);
    }
    let (fd, dentry) = (staged.fd.clone(), base.dentry.clone());
    let node = state.nodes.create(NodeKind::File, fd, staged.key, dentry);
    let ready = Ready::new(staged.id, staged.file.clone(), content);
    publish::publish(engine, state, &base.dentry, ready, node);
    Ok(Some(Edited {
        node,
        version: base.version.next(),
        seq: engine.sequencer.last(),
    }))
}

/// Sees to it that the commit of an edit finds space in the journal. The caller finds room
/// where there is none: that may need the checkpoint.
fn reserve_records(engine: &Engine, patch: usize) -> OpResult<()> {
    let wanted = AHEAD + patch as u64;
    engine.sequencer.reserve(wanted)
}

fn with_space(engine: &Engine, mut staged: Staged, len: u64) -> OpResult<Staged> {
    if len > staged.allocated {
        let wanted = len + AHEAD;
        let room = rustix::fs::fallocate(&*staged.file, FallocateFlags::KEEP_SIZE, 0, wanted);
        match room {
            Ok(()) => staged.allocated = wanted,
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => staged.allocated = u64::MAX,
            Err(errno) => {
                if staged.fresh {
                    engine.store.remove_staging(staged.id).ok();
                }
                return Err(errno);
            }
        }
    }
    Ok(staged)
}

/// The staging file of the version before, if its text is still to be written.
fn staged_head(engine: &Engine, base: &DocumentBase) -> Option<Staged> {
    let state = engine.lock();
    let head = state.pending.get(base.dentry.dir, &base.dentry.name)?;
    let unwritten = head.unwritten.filter(|_| head.node == base.node)?;
    Some(Staged {
        id: head.id,
        file: head.file.clone(),
        fd: state.nodes.fd(head.node).ok()?,
        key: state.nodes.get(head.node)?.key,
        fresh: false,
        allocated: unwritten.allocated,
    })
}

fn new_staged(engine: &Engine, base: &DocumentBase) -> OpResult<Staged> {
    let id = engine.lock().txns.new_id();
    let file = engine.store.create_staging(id)?;
    let with_metadata =
        metadata::apply_metadata(engine, &file, Some(&base.fd), None).and_then(|stat| {
            let name = crate::store::id_name(id);
            Ok((stat, at::open_path(&engine.store.staging, name.as_ref())?))
        });
    let (stat, fd) = with_metadata.inspect_err(|_| {
        engine.store.remove_staging(id).ok();
    })?;
    Ok(Staged {
        id,
        file: Arc::new(file),
        fd: Arc::new(fd.into()),
        key: (stat.st_dev, stat.st_ino),
        fresh: true,
        allocated: 0,
    })
}

/// Commits an edit by its record, its text to be written later.
fn commit_unwritten(
    engine: &Engine,
    base: &DocumentBase,
    parsed: &mut Parsed,
    request: &Request,
) -> OpResult<Option<Edited>> {
    let staged = match staged_head(engine, base) {
        Some(staged) => staged,
        None => new_staged(engine, base)?,
    };
    let staged = with_space(engine, staged, parsed.document.text_len() as u64)?;
    let edited = publish_unwritten(engine, base, parsed, request, &staged);
    if staged.fresh && !matches!(edited, Ok(Some(_))) {
        engine.store.remove_staging(staged.id).ok();
    }
    edited
}

fn publish_unwritten(
    engine: &Engine,
    base: &DocumentBase,
    parsed: &mut Parsed,
    request: &Request,
    staged: &Staged,
) -> OpResult<Option<Edited>> {
    reserve_records(engine, request.value.len())?;
    let mut guard = engine.lock();
    let state = &mut *guard;
    if !is_current(engine, state, base)? {
        return Ok(None);
    }
    let head = state.pending.get(base.dentry.dir, &base.dentry.name);
    if !staged.fresh && head.is_none_or(|p| p.id != staged.id || p.unwritten.is_none()) {
        // The checkpoint has written it out just now.
        return Ok(None);
    }
    let told = CachedAttributes {
        len: parsed.document.text_len() as u64,
        mtime_ns: next_mtime(state, base),
    };
    let version = base.version.next();
    let edit = Edit::Patch {
        path: state.nodes.path(&base.dentry).ok_or(Errno::NOENT)?,
        id: staged.id,
        version,
        base: staged.fresh.then_some(parsed.base),
        merge: request.kind == request::EditKind::Merge,
        patch: request.value.clone(),
        mtime_ns: told.mtime_ns,
    };
    let seq = engine.sequencer.try_commit(edit.into())?;
    failpoint::crash_point("patch-journalled");
    state.tally.counters.commits += 1;
    publish::note_journalled(engine, state, seq);
    let node = show_unwritten(engine, state, base, staged, (seq, version));
    if let Some(node) = state.nodes.get_mut(node) {
        (node.pending, node.version) = (true, Some(version));
        node.unwritten = Some(Box::new(told));
    }
    parsed.unwritten = Some(kept::UnwrittenEdits {
        id: staged.id,
        file: staged.file.clone(),
        mtime_ns: told.mtime_ns,
    });
    if staged.fresh {
        engine
            .documents
            .note_unwritten(&base.dentry, Some(Instant::now()));
    }
    Ok(Some(Edited { node, version, seq }))
}

/// From now on the name means what was edited, though its text isn't written. Gives its node.
fn show_unwritten(
    engine: &Engine,
    state: &mut State,
    base: &DocumentBase,
    staged: &Staged,
    (seq, version): (Seq, Version),
) -> NodeId {
    let node = state.nodes.create(
        NodeKind::File,
        staged.fd.clone(),
        staged.key,
        base.dentry.clone(),
    );
    let unwritten = Unwritten {
        first_seq: seq,
        allocated: staged.allocated,
    };
    if staged.fresh {
        let pending = staged.pending(node, seq, version, Some(unwritten));
        publish::put_pending(engine, state, &base.dentry, pending);
        let due = Instant::now() + texts::text_delay(engine);
        state.backlog.checkpoint.due = state.backlog.checkpoint.due.map(|earlier| earlier.min(due));
    } else if let Some(head) = state.pending.get_mut(base.dentry.dir, &base.dentry.name) {
        (head.node, head.seq, head.version) = (node, seq, version);
        if let Some(unwritten) = &mut head.unwritten {
            unwritten.allocated = staged.allocated;
        }
        pins::note_change(engine, state, &base.dentry, Some(base.node));
        publish::unpin(engine, state, base.node, false);
        publish::replace(engine, state, &base.dentry, Some(base.node), node);
    }
    node
}

fn is_current(engine: &Engine, state: &mut State, base: &DocumentBase) -> OpResult<bool> {
    if state.unmount.is_forced() {
        return Err(Errno::ROFS);
    }
    Ok(current::current(engine, state, &base.dentry)? == base.node)
}

/// A modification time later than the base's (C8).
fn next_mtime(state: &State, base: &DocumentBase) -> i128 {
    let before = stat::mtime_of(state, base.node);
    let in_place = || at::stat(&base.fd).map_or(0, |stat| mtime_ns(&stat));
    let before = before.unwrap_or_else(in_place);
    i128::from(now_ns()).max(before + 1000)
}

impl Staged {
    fn pending(
        &self,
        node: NodeId,
        seq: Seq,
        version: Version,
        unwritten: Option<Unwritten>,
    ) -> Pending {
        Pending {
            id: self.id,
            file: self.file.clone(),
            node,
            seq,
            version,
            superseded: Vec::new(),
            synced: false,
            journalled: false,
            unwritten,
        }
    }
}
