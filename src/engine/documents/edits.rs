//! The attributes by which documents are edited and read.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;
use serde_json::json;

use crate::engine::base::current;
use crate::engine::documents::kept::EditOutcome;
use crate::engine::documents::request::{Done, EditKind, Refusal, Request};
use crate::engine::documents::{Parsed, commit, texts};
use crate::engine::meaning::{pins, seeing, turns};
use crate::engine::versions::{durability, room};
use crate::engine::{Durability, Engine};
use crate::json::{AnyPatch, Document, JsonError, Limits, PatchError, PatchErrorKind, Pointer};
use crate::namespace;
use crate::store::Owner;
use crate::types::{Caller, Dentry, NodeId, OpResult, Seq, Version};

/// All of a document's attributes begin so.
const JSON: &[u8] = b"user.commitfs.json";
/// A patch of at most this many bytes is applied by the dispatcher itself: handing it to a worker
/// costs more.
const AT_ONCE: usize = 4 << 10;
/// A value larger than this is left out of a result: the kernel's limit for attributes is 64 KiB.
const SHOWN: usize = 60 << 10;

/// What is set, or read, by an attribute of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
enum EditAttribute {
    Patch(Option<u64>),
    Merge(Option<u64>),
    Replace(Option<u64>),
    Value(String),
    Result,
    Error,
}

impl EditAttribute {
    /// `None`: not one of ours.
    fn parse(name: &OsStr) -> Option<EditAttribute> {
        let rest = std::str::from_utf8(name.as_bytes().strip_prefix(JSON)?).ok()?;
        if rest.is_empty() {
            return Some(EditAttribute::Value(String::new()));
        }
        if let Some(pointer) = rest.strip_prefix(':') {
            return Some(EditAttribute::Value(pointer.to_owned()));
        }
        let (what, version) = match rest.split_once('@') {
            Some((what, version)) => (what, Some(version.parse().ok()?)),
            None => (rest, None),
        };
        match (what, version) {
            (".patch", version) => Some(EditAttribute::Patch(version)),
            (".merge", version) => Some(EditAttribute::Merge(version)),
            (".replace", version) => Some(EditAttribute::Replace(version)),
            (".result", None) => Some(EditAttribute::Result),
            (".error", None) => Some(EditAttribute::Error),
            _ => None,
        }
    }
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

/// Sets an attribute of a document.
pub fn set_document(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    name: &OsStr,
    value: &[u8],
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    let (kind, expected) = match EditAttribute::parse(name) {
        Some(EditAttribute::Patch(version)) => (EditKind::Patch, version),
        Some(EditAttribute::Merge(version)) => (EditKind::Merge, version),
        Some(EditAttribute::Replace(version)) => (EditKind::Replace, version),
        _ => return done(Err(Errno::OPNOTSUPP)),
    };
    pins::leave_at(engine, caller.tid, node);
    let request = Request {
        node,
        by: caller.tid,
        kind,
        expected,
        value: value.to_vec(),
    };
    if let Some(edited) = edit_at_once(engine, &request) {
        let seq = edited.as_ref().map_or(Seq::default(), |done| done.seq);
        let outcome = note_outcome(engine, caller, edited.map(|done| done.result));
        return match engine.config.durability {
            Durability::Sync if outcome.is_ok() => durability::when_durable(engine, seq, done),
            _ => done(outcome),
        };
    }
    engine.on_worker(move |engine| done(note_outcome(engine, caller, edit(engine, &request))));
}

fn note_outcome(engine: &Engine, caller: Caller, edited: Result<Vec<u8>, Refusal>) -> OpResult<()> {
    let outcome = match &edited {
        Ok(result) => EditOutcome::Done(result.clone()),
        Err(refusal) => EditOutcome::Refused(refusal.reason.clone()),
    };
    let before = engine.documents.remember(caller.tid, outcome.clone());
    match &edited {
        Ok(_) => engine.lock().tally.counters.patches += 1,
        // The kernel tries once more after an ESTALE.
        Err(refusal) if refusal.errno == Errno::STALE && before != Some(outcome) => {
            engine.lock().tally.counters.stale_patches += 1;
        }
        Err(_) => {}
    }
    edited.map(drop).map_err(|refusal| refusal.errno)
}

/// A small patch of a document that is in memory, and nobody else is editing. `None`: it may
/// have to wait.
fn edit_at_once(engine: &Engine, request: &Request) -> Option<Result<Done, Refusal>> {
    let small = request.value.len() <= AT_ONCE && request.kind != EditKind::Replace;
    if !small {
        return None;
    }
    let dentry = dentry_of_document(engine, request.by, request.node).ok()?;
    let kept = engine.documents.of(&dentry);
    let mut parsed = kept.try_lock()?;
    let patch = request.patch().ok()?;
    let at_hand = |p: &Parsed| commit::is_hot(engine, &dentry, p) && patch.is_local(&p.document);
    let may_wait = {
        let state = engine.lock();
        durability::has_backlog(engine, &state) || state.backlog.checkpoint.overtaken > 0
    };
    if may_wait || pins::keeps(engine, &dentry) || !parsed.as_ref().is_some_and(at_hand) {
        return None;
    }
    if turns::is_turn_taken(engine, &dentry) {
        return None;
    }
    match edit_once(engine, &dentry, &mut parsed, &patch, request, true) {
        Ok(done) => done.map(Ok),
        Err(refusal) if refusal.errno == Errno::NOSPC => None,
        Err(refusal) => Some(Err(refusal)),
    }
}

/// Gives the result for `user.commitfs.json.result`.
fn edit(engine: &Engine, request: &Request) -> Result<Vec<u8>, Refusal> {
    let patch = match request.kind {
        EditKind::Replace => None,
        EditKind::Patch | EditKind::Merge => Some(request.patch()?),
    };
    {
        let mut state = engine.lock();
        durability::await_backlog(engine, &mut state);
        durability::give_way(&mut state);
    }
    let mut found_room = false;
    loop {
        let dentry = dentry_of_document(engine, request.by, request.node)?;
        let kept = engine.documents.of(&dentry);
        let gone = engine.reaper.closes().ended();
        turns::await_turn(engine, &dentry);
        let mut parsed = kept.lock();
        let edited = match &patch {
            Some(patch) => edit_once(engine, &dentry, &mut parsed, patch, request, false),
            None => replace_once(engine, &dentry, &mut parsed, request),
        };
        let bytes = parsed.as_ref().map_or(0, |p| p.document.text_len());
        drop(parsed);
        engine.documents.account(&dentry, bytes);
        match edited {
            Ok(Some(done)) => {
                if engine.config.durability == Durability::Sync {
                    durability::await_durable(engine, done.seq)?;
                }
                return Ok(done.result);
            }
            // Somebody has committed meanwhile: once more, on that.
            Ok(None) => engine.lock().tally.counters.patch_retries += 1,
            Err(refusal) if found_room || !refusal.is_full() => return Err(refusal),
            Err(refusal) => {
                let owner = || Owner::of(&*engine.lock().nodes.fd(request.node).ok()?);
                if !room::find_room(engine, gone, refusal.errno, owner) {
                    return Err(refusal);
                }
                found_room = true;
            }
        }
    }
}

/// `None`: somebody has committed meanwhile.
fn edit_once(
    engine: &Engine,
    dentry: &Dentry,
    parsed: &mut Option<Parsed>,
    patch: &AnyPatch,
    request: &Request,
    at_once: bool,
) -> Result<Option<Done>, Refusal> {
    let base = commit::base_of_edit(engine, dentry)?;
    if at_once && parsed.as_ref().is_none_or(|p| p.node != base.node) {
        return Ok(None);
    }
    commit::check_access(engine, request.node, &base)?;
    base.expect_version(request.expected)?;
    let parsed = commit::current_document(engine, &base, parsed)?;
    if request.value.len() > commit::JOURNALLED || pins::keeps(engine, dentry) {
        // The version before goes another way, and somebody may still open it.
        texts::write_text_of(engine, dentry, parsed)?;
    }
    let applied = patch.apply(&mut parsed.document, &Limits::default())?;
    let (version, seq) = if applied.changed {
        match commit::commit_edit(engine, &base, parsed, request) {
            Ok(Some(edited)) => (edited.version, edited.seq),
            not => {
                parsed.document.revert(applied.undo);
                return not.map(|_| None).map_err(Refusal::from);
            }
        }
    } else {
        // What it found may not be durable yet.
        (base.version, engine.sequencer.last())
    };
    let result = result_text(version, &parsed.document, applied.target.as_ref());
    Ok(Some(Done { result, seq }))
}

/// The name whose document an attribute of a node speaks of.
fn dentry_of_document(engine: &Engine, tid: u32, node: NodeId) -> Result<Dentry, Refusal> {
    let mut state = engine.lock();
    let at = state.nodes.get(node).and_then(|n| n.at.clone());
    let looked_up = seeing::looked_up(&state, tid, node).cloned();
    if let Some(dentry) = looked_up.filter(|dentry| at.as_ref() != Some(dentry))
        && current::current_if_any(engine, &mut state, &dentry) == Ok(Some(node))
    {
        // By another of its names.
        return Ok(dentry);
    }
    let node = state.nodes.get(node).ok_or(Errno::STALE)?;
    match (&node.kind, &node.at) {
        (namespace::NodeKind::Private(txn), _) if state.txns.contains_key(txn) => {
            Ok(state.txns[txn].dentry().clone())
        }
        (namespace::NodeKind::File | namespace::NodeKind::Private(_), Some(dentry))
            if !node.unlinked || node.superseded =>
        {
            Ok(dentry.clone())
        }
        (namespace::NodeKind::File | namespace::NodeKind::Private(_), _) => {
            Err(Errno::NOENT.into())
        }
        _ => Err(Errno::OPNOTSUPP.into()),
    }
}

/// Reads an attribute of a document.
pub fn get_document(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    name: &OsStr,
    done: impl FnOnce(OpResult<Vec<u8>>) + Send + 'static,
) {
    let outcome = engine.documents.outcome(caller.tid);
    match (EditAttribute::parse(name), outcome) {
        (Some(EditAttribute::Result), Some(EditOutcome::Done(result))) => done(Ok(result)),
        (Some(EditAttribute::Error), Some(EditOutcome::Refused(reason))) => {
            done(Ok(reason.into_bytes()));
        }
        (Some(EditAttribute::Value(pointer)), _) => {
            engine.on_worker(move |engine| {
                let value = value_at(engine, caller.tid, node, &pointer);
                if let Err(refusal) = &value {
                    let reason = EditOutcome::Refused(refusal.reason.clone());
                    engine.documents.remember(caller.tid, reason);
                }
                done(value.map_err(|refusal| refusal.errno));
            });
        }
        _ => done(Err(Errno::NODATA)),
    }
}

fn value_at(engine: &Engine, tid: u32, node: NodeId, pointer: &str) -> Result<Vec<u8>, Refusal> {
    let pointer = Pointer::parse(pointer).map_err(|e| Refusal {
        errno: Errno::INVAL,
        reason: e.to_string(),
    })?;
    let dentry = dentry_of_document(engine, tid, node)?;
    let kept = engine.documents.of(&dentry);
    let mut parsed = kept.lock();
    let base = commit::base_of_edit(engine, &dentry)?;
    commit::check_access(engine, node, &base)?;
    let document = &commit::current_document(engine, &base, &mut parsed)?.document;
    let value = pointer.resolve(document.value()).map_err(|e| Refusal {
        errno: Errno::NODATA,
        reason: e.to_string(),
    });
    let text = value.map(|v| v.to_string().into_bytes());
    let bytes = document.text_len();
    drop(parsed);
    engine.documents.account(&dentry, bytes);
    text
}

/// `{"version": N, "value": V}`; without the value where there is none, or it is too large.
fn result_text(version: Version, document: &Document, target: Option<&Pointer>) -> Vec<u8> {
    let value = target
        .and_then(|t| t.resolve(document.value()).ok())
        .map(ToString::to_string)
        .filter(|text| text.len() <= SHOWN);
    match value {
        Some(value) => format!("{{\"version\": {version}, \"value\": {value}}}").into_bytes(),
        None => json!({ "version": version.0 }).to_string().into_bytes(),
    }
}

/// Makes the text the next version, byte for byte. `None`: somebody has committed meanwhile.
fn replace_once(
    engine: &Engine,
    dentry: &Dentry,
    parsed: &mut Option<Parsed>,
    request: &Request,
) -> Result<Option<Done>, Refusal> {
    let text = request.value.as_slice();
    let document = checked(text)?;
    if let Some(replaced) = parsed {
        // Somebody may still open what is replaced here.
        texts::write_text_of(engine, dentry, replaced)?;
    }
    let base = commit::base_of_edit(engine, dentry)?;
    commit::check_access(engine, request.node, &base)?;
    base.expect_version(request.expected)?;
    let Some(edited) = commit::commit_text(engine, &base, text)? else {
        return Ok(None);
    };
    *parsed = Some(Parsed {
        node: edited.node,
        document,
        base: (text.len() as u64, crc32c::crc32c(text)),
        unwritten: None,
    });
    let version = edited.version;
    Ok(Some(Done {
        result: json!({ "version": version.0 }).to_string().into_bytes(),
        seq: edited.seq,
    }))
}

/// A text that can be edited from now on, and nothing else.
fn checked(text: &[u8]) -> Result<Document, Refusal> {
    let invalid = |reason: String| Refusal {
        errno: Errno::INVAL,
        reason,
    };
    if text.trim_ascii().is_empty() {
        return Err(invalid("an empty text replaces no document".to_owned()));
    }
    let limits = Limits::default();
    if text.len() > limits.bytes {
        return Err(Refusal {
            errno: Errno::TOOBIG,
            reason: format!("its {} bytes are more than {}", text.len(), limits.bytes),
        });
    }
    Document::parse_within(text, &limits).map_err(|e| invalid(format!("not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Option<EditAttribute> {
        EditAttribute::parse(OsStr::new(name))
    }

    #[test]
    fn names_say_what_is_meant_and_on_which_version() {
        let cases = [
            ("user.commitfs.json.patch", Some(EditAttribute::Patch(None))),
            (
                "user.commitfs.json.patch@7",
                Some(EditAttribute::Patch(Some(7))),
            ),
            (
                "user.commitfs.json.merge@0",
                Some(EditAttribute::Merge(Some(0))),
            ),
            (
                "user.commitfs.json.replace@1",
                Some(EditAttribute::Replace(Some(1))),
            ),
            (
                "user.commitfs.json:/a@b",
                Some(EditAttribute::Value("/a@b".into())),
            ),
            (
                "user.commitfs.json:",
                Some(EditAttribute::Value(String::new())),
            ),
            ("user.commitfs.json.result", Some(EditAttribute::Result)),
            ("user.commitfs.json.error", Some(EditAttribute::Error)),
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
