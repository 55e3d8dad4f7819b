//! A whole text in the place of a document's: the other half of a compare and set.

use rustix::io::Errno;
use serde_json::json;

use super::kept::Parsed;
use super::request::{Done, Refusal, Request};
use crate::engine::Engine;
use crate::json::{Document, Limits};
use crate::types::Dentry;

impl Engine {
    /// Makes the text the next version, byte for byte. `None`: somebody has committed meanwhile.
    pub(super) fn replace_once(
        &self,
        dentry: &Dentry,
        parsed: &mut Option<Parsed>,
        request: &Request,
    ) -> Result<Option<Done>, Refusal> {
        let text = request.value.as_slice();
        let document = checked(text)?;
        if let Some(replaced) = parsed {
            // Somebody may still open what is replaced here.
            self.write_text_of(dentry, replaced)?;
        }
        let base = self.base_of_edit(dentry)?;
        self.check_access(request.node, &base)?;
        base.expect_version(request.expected)?;
        let Some(edited) = self.commit_text(&base, text)? else {
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
