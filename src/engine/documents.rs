//! JSON documents that are edited through attributes (C15, C16).
//!
//! Setting `user.commitfs.json.patch` or `…merge` on a file applies the value to the file's current
//! version and commits the result, under the document's lock: one edit after the other, and none
//! builds on a version that is not current any more. The parsed document stays in memory, so that
//! an edit parses nothing but itself.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde_json::json;

use super::Engine;
use crate::json::{
    Applied, Document, JsonError, Limits, MergePatch, Patch, PatchError, PatchErrorKind, Pointer,
};
use crate::namespace::Kind;
use crate::sys::{at, failpoint, proc};
use crate::txn::Begun;
use crate::types::{Caller, NodeId, OpResult, Slot, TxnId, errno_of};

/// All of a document's attributes begin so.
const JSON: &[u8] = b"user.commitfs.json";
/// Parsed documents are kept up to this many bytes of text.
const KEPT_BYTES: usize = 64 << 20;
/// Threads whose last result is remembered.
const KEPT_OUTCOMES: usize = 4096;
/// A value larger than this is left out of a result: the kernel's limit for attributes is 64 KiB.
const SHOWN: usize = 60 << 10;

/// What is set, or read, by an attribute of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attribute {
    Patch(Option<u64>),
    Merge(Option<u64>),
    Value(String),
    Result,
    Error,
}

impl Attribute {
    /// `None`: not one of ours.
    fn parse(name: &OsStr) -> Option<Attribute> {
        let rest = std::str::from_utf8(name.as_bytes().strip_prefix(JSON)?).ok()?;
        if rest.is_empty() {
            return Some(Attribute::Value(String::new()));
        }
        if let Some(pointer) = rest.strip_prefix(':') {
            return Some(Attribute::Value(pointer.to_owned()));
        }
        let (what, version) = match rest.split_once('@') {
            Some((what, version)) => (what, Some(version.parse().ok()?)),
            None => (rest, None),
        };
        match (what, version) {
            (".patch", version) => Some(Attribute::Patch(version)),
            (".merge", version) => Some(Attribute::Merge(version)),
            (".result", None) => Some(Attribute::Result),
            (".error", None) => Some(Attribute::Error),
            _ => None,
        }
    }
}

/// Why an edit or a read was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    reason: String,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal {
            errno,
            reason: std::io::Error::from(errno).to_string(),
        }
    }
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Refusal {
        let errno = match error {
            JsonError::TooLarge { .. } => Errno::TOOBIG,
            _ => Errno::BADMSG,
        };
        Refusal {
            errno,
            reason: format!("the file is not a JSON document that can be edited: {error}"),
        }
    }
}

impl From<PatchError> for Refusal {
    fn from(error: PatchError) -> Refusal {
        let errno = match error.kind {
            PatchErrorKind::Malformed | PatchErrorKind::WrongType => Errno::INVAL,
            PatchErrorKind::MissingPath => Errno::NOENT,
            PatchErrorKind::TestFailed => Errno::CANCELED,
            PatchErrorKind::OutOfRange => Errno::RANGE,
            PatchErrorKind::TooLarge => Errno::TOOBIG,
        };
        Refusal {
            errno,
            reason: error.to_string(),
        }
    }
}

/// What a thread's last edit came to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Done(Vec<u8>),
    Refused(String),
}

/// A parsed document, and the version that it is the text of.
#[derive(Debug)]
struct Parsed {
    node: NodeId,
    document: Document,
}

#[derive(Debug)]
struct Kept {
    /// Held while an edit is under way.
    parsed: Arc<Mutex<Option<Parsed>>>,
    bytes: usize,
    used: Instant,
}

/// The engine's side of documents.
#[derive(Debug, Default)]
pub(super) struct Documents {
    kept: Mutex<HashMap<Slot, Kept>>,
    outcomes: Mutex<(HashMap<u32, Outcome>, VecDeque<u32>)>,
}

impl Documents {
    fn of(&self, slot: &Slot) -> Arc<Mutex<Option<Parsed>>> {
        let mut kept = self.kept.lock();
        let entry = kept.entry(slot.clone()).or_insert_with(|| Kept {
            parsed: Arc::default(),
            bytes: 0,
            used: Instant::now(),
        });
        entry.used = Instant::now();
        entry.parsed.clone()
    }

    /// Notes a document's size, and forgets those that were used least recently beyond the limit.
    fn account(&self, slot: &Slot, bytes: usize) {
        let mut kept = self.kept.lock();
        if let Some(entry) = kept.get_mut(slot) {
            entry.bytes = bytes;
        }
        let mut total: usize = kept.values().map(|k| k.bytes + 256).sum();
        while total > KEPT_BYTES {
            // One that is in use is locked, or about to be.
            let idle = kept
                .iter()
                .filter(|(s, k)| *s != slot && Arc::strong_count(&k.parsed) == 1);
            let Some(oldest) = idle.min_by_key(|(_, k)| k.used).map(|(s, _)| s.clone()) else {
                return;
            };
            total -= kept.remove(&oldest).map_or(0, |k| k.bytes + 256);
        }
    }

    /// Gives what was remembered of the thread before.
    fn remember(&self, tid: u32, outcome: Outcome) -> Option<Outcome> {
        let (by_thread, order) = &mut *self.outcomes.lock();
        let before = by_thread.insert(tid, outcome);
        if before.is_none() {
            order.push_back(tid);
        }
        while order.len() > KEPT_OUTCOMES {
            if let Some(oldest) = order.pop_front() {
                by_thread.remove(&oldest);
            }
        }
        before
    }

    fn outcome(&self, tid: u32) -> Option<Outcome> {
        self.outcomes.lock().0.get(&tid).cloned()
    }
}

/// An edit, read.
enum Edit {
    Patch(Patch),
    Merge(MergePatch),
}

impl Edit {
    fn apply(&self, document: &mut Document) -> Result<Applied, PatchError> {
        match self {
            Edit::Patch(patch) => document.apply(patch, &Limits::default()),
            Edit::Merge(patch) => document.apply_merge(patch, &Limits::default()),
        }
    }
}

/// The version that an edit starts from.
struct Base {
    slot: Slot,
    node: NodeId,
    version: u64,
}

impl Engine {
    /// Sets an attribute of a document. `false`: it is none that can be set.
    pub(super) fn set_document(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        value: &[u8],
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let (is_patch, expected) = match Attribute::parse(name) {
            Some(Attribute::Patch(version)) => (true, version),
            Some(Attribute::Merge(version)) => (false, version),
            _ => return done(Err(Errno::OPNOTSUPP)),
        };
        let (engine, value) = (self.clone(), value.to_vec());
        self.pool.run(move || {
            let edited = engine.edit(caller, node, is_patch, &value, expected);
            let outcome = match &edited {
                Ok(result) => Outcome::Done(result.clone()),
                Err(refusal) => Outcome::Refused(refusal.reason.clone()),
            };
            let before = engine.documents.remember(caller.tid, outcome.clone());
            match &edited {
                Ok(_) => engine.lock().counters.patches += 1,
                // The kernel tries once more after an ESTALE.
                Err(refusal) if refusal.errno == Errno::STALE && before != Some(outcome) => {
                    engine.lock().counters.stale_patches += 1;
                }
                Err(_) => {}
            }
            done(edited.map(drop).map_err(|refusal| refusal.errno));
        });
    }

    /// Gives the result for `user.commitfs.json.result`.
    fn edit(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        is_patch: bool,
        value: &[u8],
        expected: Option<u64>,
    ) -> Result<Vec<u8>, Refusal> {
        let limits = Limits::default();
        let edit = if is_patch {
            Edit::Patch(Patch::parse(value, &limits)?)
        } else {
            Edit::Merge(MergePatch::parse(value, &limits)?)
        };
        loop {
            let slot = self.slot_of_document(node)?;
            let kept = self.documents.of(&slot);
            let mut parsed = kept.lock();
            let base = self.base_of_edit(&slot)?;
            if expected.is_some_and(|e| e != base.version) {
                return Err(Refusal {
                    errno: Errno::STALE,
                    reason: format!("the current version is {}", base.version),
                });
            }
            let document = self.current_document(&base, &mut parsed)?;
            let applied = edit.apply(document)?;
            let (node, version) = if applied.changed {
                match self.commit_text(caller, &base, text_of(document).as_bytes()) {
                    Ok(Some(committed)) => committed,
                    // Somebody has committed meanwhile: once more, on that.
                    Ok(None) => {
                        *parsed = None;
                        continue;
                    }
                    Err(errno) => {
                        *parsed = None;
                        return Err(errno.into());
                    }
                }
            } else {
                (base.node, base.version)
            };
            let result = result_text(version, document, applied.target.as_ref());
            let bytes = document.size_bound();
            if let Some(parsed) = parsed.as_mut() {
                parsed.node = node;
            }
            drop(parsed);
            self.documents.account(&slot, bytes);
            return Ok(result);
        }
    }

    /// The name whose document an attribute of a node speaks of.
    fn slot_of_document(&self, node: NodeId) -> Result<Slot, Refusal> {
        let state = self.lock();
        let node = state.nodes.get(node).ok_or(Errno::STALE)?;
        match (&node.kind, &node.at) {
            (Kind::Private(txn), _) if state.txns.contains_key(txn) => {
                Ok(state.txns[txn].slot.clone())
            }
            (Kind::File | Kind::Private(_), Some(slot)) if !node.unlinked || node.superseded => {
                Ok(slot.clone())
            }
            (Kind::File | Kind::Private(_), _) => Err(Errno::NOENT.into()),
            _ => Err(Errno::OPNOTSUPP.into()),
        }
    }

    fn base_of_edit(&self, slot: &Slot) -> Result<Base, Refusal> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.closing {
            return Err(Errno::ROFS.into());
        }
        let node = self.current(state, slot)?;
        if state.nodes.get(node).is_none_or(|n| n.kind != Kind::File) {
            return Err(Errno::OPNOTSUPP.into());
        }
        if self.is_direct(state, node, Some(slot))? {
            return Err(Refusal {
                errno: Errno::OPNOTSUPP,
                reason: "files in direct mode can't be patched; see the rule for its name".into(),
            });
        }
        Ok(Base {
            slot: slot.clone(),
            node,
            version: self.version_of(state, node),
        })
    }

    /// The parsed text of a version: as it was kept, or read.
    fn current_document<'a>(
        &self,
        base: &Base,
        parsed: &'a mut Option<Parsed>,
    ) -> Result<&'a mut Document, Refusal> {
        let fits = |p: &Parsed| p.node == base.node || failpoint::mutant("C15");
        if !parsed.as_ref().is_some_and(fits) {
            *parsed = None;
            *parsed = Some(Parsed {
                node: base.node,
                document: self.read_document(base.node)?,
            });
        }
        match parsed {
            Some(parsed) => Ok(&mut parsed.document),
            None => Err(Errno::IO.into()),
        }
    }

    pub(super) fn read_document(&self, node: NodeId) -> Result<Document, Refusal> {
        let limits = Limits::default();
        let fd = self.lock().nodes.fd(node)?;
        let file = at::reopen(&*fd, OFlags::RDONLY)?;
        let size = file.metadata().map_err(|e| errno_of(&e))?.len();
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > limits.bytes {
            let limit = limits.bytes;
            return Err(JsonError::TooLarge { size, limit }.into());
        }
        let mut text = Vec::with_capacity(size);
        std::io::Read::read_to_end(&mut &file, &mut text).map_err(|e| errno_of(&e))?;
        Ok(Document::parse_within(&text, &limits)?)
    }

    /// Commits a text as the next version of what it was made of. `None`: that is not current any
    /// more.
    fn commit_text(
        self: &Arc<Self>,
        caller: Caller,
        base: &Base,
        text: &[u8],
    ) -> OpResult<Option<(NodeId, u64)>> {
        let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
        let (id, staging) = {
            let mut guard = self.lock();
            let state = &mut *guard;
            if self.current(state, &base.slot)? != base.node {
                return Ok(None);
            }
            let id = self.begin_on(state, base.slot.clone(), base.node, Begun::Rewrite)?;
            let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
            txn.opener = pid;
            txn.command = proc::command(pid);
            (txn.changed, txn.closing) = (true, true);
            (id, txn.staging.clone())
        };
        let written = staging.lock().write(text, 0).map(drop);
        let prepared = written.and_then(|()| self.prepare(id, &staging, pid));
        let committed = self.end_edit(base, id, prepared);
        self.happened.notify_all();
        if committed.is_ok() && self.config.durability == super::Durability::Sync {
            self.drain_all()?;
        }
        committed
    }

    fn end_edit(
        self: &Arc<Self>,
        base: &Base,
        id: TxnId,
        prepared: OpResult<()>,
    ) -> OpResult<Option<(NodeId, u64)>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let node = state.txns.get(&id).ok_or(Errno::STALE)?.node;
        let current = self.current_if_any(state, &base.slot) == Ok(Some(base.node));
        if (prepared.is_err() || !current)
            && let Some(txn) = state.txns.get_mut(&id)
        {
            // It ends as if it had never been written.
            txn.begun = Begun::Edit;
            txn.changed = false;
        }
        let fallen = self.finish(state, id);
        let version = self.version_of(state, node);
        drop(guard);
        let is_fallen = fallen.is_some();
        if let Some(fallen) = fallen {
            self.bury_aborted(fallen);
        }
        prepared?;
        match (current, is_fallen) {
            (false, _) => Ok(None),
            (true, false) => Ok(Some((node, version))),
            (true, true) => Err(Errno::IO),
        }
    }

    /// Reads an attribute of a document.
    pub(super) fn get_document(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Vec<u8>>) + Send + 'static,
    ) {
        let outcome = self.documents.outcome(caller.tid);
        match (Attribute::parse(name), outcome) {
            (Some(Attribute::Result), Some(Outcome::Done(result))) => done(Ok(result)),
            (Some(Attribute::Error), Some(Outcome::Refused(reason))) => {
                done(Ok(reason.into_bytes()));
            }
            (Some(Attribute::Value(pointer)), _) => {
                let engine = self.clone();
                self.pool.run(move || {
                    let value = engine.value_at(node, &pointer);
                    if let Err(refusal) = &value {
                        let reason = Outcome::Refused(refusal.reason.clone());
                        engine.documents.remember(caller.tid, reason);
                    }
                    done(value.map_err(|refusal| refusal.errno));
                });
            }
            _ => done(Err(Errno::NODATA)),
        }
    }

    fn value_at(&self, node: NodeId, pointer: &str) -> Result<Vec<u8>, Refusal> {
        let pointer = Pointer::parse(pointer).map_err(|e| Refusal {
            errno: Errno::INVAL,
            reason: e.to_string(),
        })?;
        let slot = self.slot_of_document(node)?;
        let kept = self.documents.of(&slot);
        let mut parsed = kept.lock();
        let base = self.base_of_edit(&slot)?;
        let document = self.current_document(&base, &mut parsed)?;
        let value = pointer.resolve(document.value()).map_err(|e| Refusal {
            errno: Errno::NODATA,
            reason: e.to_string(),
        });
        let text = value.map(|v| v.to_string().into_bytes());
        let bytes = document.size_bound();
        drop(parsed);
        self.documents.account(&slot, bytes);
        text
    }
}

fn text_of(document: &Document) -> String {
    if failpoint::mutant("C16") {
        return document.value().to_string();
    }
    document.to_text()
}

/// `{"version": N, "value": V}`; without the value where there is none, or it is too large.
fn result_text(version: u64, document: &Document, target: Option<&Pointer>) -> Vec<u8> {
    let value = target
        .and_then(|t| t.resolve(document.value()).ok())
        .map(ToString::to_string)
        .filter(|text| text.len() <= SHOWN);
    match value {
        Some(value) => format!("{{\"version\": {version}, \"value\": {value}}}").into_bytes(),
        None => json!({ "version": version }).to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Option<Attribute> {
        Attribute::parse(OsStr::new(name))
    }

    #[test]
    fn names_say_what_is_meant_and_on_which_version() {
        let cases = [
            ("user.commitfs.json.patch", Some(Attribute::Patch(None))),
            (
                "user.commitfs.json.patch@7",
                Some(Attribute::Patch(Some(7))),
            ),
            (
                "user.commitfs.json.merge@0",
                Some(Attribute::Merge(Some(0))),
            ),
            (
                "user.commitfs.json:/a@b",
                Some(Attribute::Value("/a@b".into())),
            ),
            ("user.commitfs.json:", Some(Attribute::Value(String::new()))),
            ("user.commitfs.json.result", Some(Attribute::Result)),
            ("user.commitfs.json.error", Some(Attribute::Error)),
            ("user.commitfs.json.patch@", None),
            ("user.commitfs.json.patch@x", None),
            ("user.commitfs.json.result@1", None),
            ("user.commitfs.jsonx", None),
            ("user.commitfs.version", None),
        ];
        for (name, attribute) in cases {
            assert_eq!(parsed(name), attribute, "{name}");
        }
    }
}
