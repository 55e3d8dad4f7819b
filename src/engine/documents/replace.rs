//! A whole text in the place of a document's: the other half of a compare and set.

use std::sync::Arc;

use rustix::io::Errno;
use serde_json::json;

use super::{Parsed, Refusal};
use crate::engine::Engine;
use crate::json::{Document, Limits};
use crate::types::{Caller, NodeId};

impl Engine {
    /// Makes `text` the next version, byte for byte, if it is a document that can be edited. Gives
    /// the result for `user.commitfs.json.result`.
    pub(super) fn replace_text(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        text: &[u8],
        expected: Option<u64>,
    ) -> Result<Vec<u8>, Refusal> {
        let document = checked(text)?;
        loop {
            let slot = self.slot_of_document(node)?;
            let kept = self.documents.of(&slot);
            let mut parsed = kept.lock();
            let base = self.base_of_edit(&slot)?;
            base.expect_version(expected)?;
            if let Some((node, version)) = self.commit_text(caller, &base, text)? {
                let bytes = document.size_bound();
                *parsed = Some(Parsed { node, document });
                drop(parsed);
                self.documents.account(&slot, bytes);
                return Ok(json!({ "version": version }).to_string().into_bytes());
            }
            // Somebody has committed meanwhile: once more, on that.
        }
    }
}

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
