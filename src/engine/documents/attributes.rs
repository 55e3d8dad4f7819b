//! Setting our own attributes: edits of documents, whole or in [`pieces`](crate::engine::documents::pieces).

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::documents::edits;
use crate::engine::documents::pieces::PieceAttribute;
use crate::types::{Caller, NodeId, OpResult};

/// Sets one of our own attributes, be it in pieces.
pub fn set_own_xattr(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    name: &OsStr,
    value: &[u8],
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    match PieceAttribute::parse(name) {
        None => edits::set_document(engine, caller, node, name, value, done),
        Some(PieceAttribute::Part { token, offset }) => {
            let pieces = &engine.documents.pieces;
            done(pieces.add((caller.uid, token), offset, value));
        }
        Some(PieceAttribute::Whole { token, name }) => {
            let key = (caller.uid, token);
            let text = match number(value).and_then(|len| engine.documents.pieces.take(&key, len)) {
                Ok(text) => text,
                Err(e) => return done(Err(e)),
            };
            let kept = engine.clone();
            let whole = text.clone();
            edits::set_document(engine, caller, node, &name, &whole, move |result| {
                // The kernel tries once more after an ESTALE, with this attribute alone.
                if result == Err(Errno::STALE) {
                    kept.documents.pieces.put_back(key, text);
                }
                done(result);
            });
        }
    }
}

fn number(value: &[u8]) -> OpResult<usize> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|t| t.parse().ok()).ok_or(Errno::INVAL)
}
