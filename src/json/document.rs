//! A document: its value and the style it is written in.

use super::edit::{Applied, Editor, Undo};
use super::error::{JsonError, PatchError};
use super::layout;
use super::merge_patch::MergePatch;
use super::object::Object;
use super::parse::parse;
use super::patch::Patch;
use super::style::Style;
use super::three_way::{Conflict, Policy, Side, merge_restyled};
use super::value::Value;
use super::write;

/// What documents and edits may come to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of a document's text, of a patch's, and of what may come of both, in bytes.
    pub bytes: usize,
    /// Of one patch.
    pub operations: usize,
}

impl Default for Limits {
    /// 64 MiB and 10,000 operations.
    fn default() -> Limits {
        Limits {
            bytes: 64 << 20,
            operations: 10_000,
        }
    }
}

/// A JSON text that can be edited and written back as it was.
///
/// What `json.dump` with any of its options, `JSON.stringify`, jq and serde_json write comes back
/// byte for byte. In a text laid out by hand, line breaks inside of a container become uniform: each
/// container is on one line or has each item on its own, by how it began.
#[derive(Clone, Debug)]
pub struct Document {
    value: Value,
    style: Style,
    /// Length of the text in bytes.
    size: usize,
}

impl Document {
    /// Reads a document within the default limits.
    ///
    /// # Errors
    /// See [`JsonError`].
    pub fn parse(bytes: &[u8]) -> Result<Document, JsonError> {
        Document::parse_within(bytes, &Limits::default())
    }

    /// Reads a document. A file of nothing but space is `{}`.
    ///
    /// # Errors
    /// See [`JsonError`].
    pub fn parse_within(bytes: &[u8], limits: &Limits) -> Result<Document, JsonError> {
        let (size, limit) = (bytes.len(), limits.bytes);
        if size > limit {
            return Err(JsonError::TooLarge { size, limit });
        }
        match parse(bytes) {
            Ok((value, evidence)) => Ok(Document::new(value, evidence.conclude())),
            Err(JsonError::Empty) => Ok(Document::new(
                Value::Object(Object::default()),
                Style::fresh(),
            )),
            Err(error) => Err(error),
        }
    }

    fn new(value: Value, style: Style) -> Document {
        let size = layout::length(&value, &style, 0) + style.before.len() + style.after.len();
        Document { value, style, size }
    }

    /// The document's value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The document's text. What was not edited is as it was read.
    pub fn to_text(&self) -> String {
        write::document_text(&self.value, &self.style, self.size)
    }

    /// Length of the text in bytes; costs nothing.
    pub fn text_len(&self) -> usize {
        self.size
    }

    /// Does all operations of a patch in place, or none.
    ///
    /// # Errors
    /// The first operation that can't be done; the document is as it was.
    pub fn apply(&mut self, patch: &Patch, limits: &Limits) -> Result<Applied, PatchError> {
        patch.apply(self.editor(limits))
    }

    /// Merges a merge patch in place.
    ///
    /// # Errors
    /// The result would be too large or too deep; the document is as it was.
    pub fn apply_merge(
        &mut self,
        patch: &MergePatch,
        limits: &Limits,
    ) -> Result<Applied, PatchError> {
        patch.apply(self.editor(limits))
    }

    fn editor<'a>(&'a mut self, limits: &'a Limits) -> Editor<'a> {
        Editor::new(&mut self.value, &self.style, &mut self.size, limits)
    }

    /// Takes back the last edit that has not been taken back.
    pub fn revert(&mut self, undo: Undo) {
        undo.revert(&mut self.value, &mut self.size, None);
    }

    /// Merges two documents that both came from `base`, by [`merge`](super::merge), in the style of
    /// `mine`.
    pub fn merge(
        base: &Document,
        mine: &Document,
        theirs: &Document,
        policy: &Policy,
    ) -> (Document, Vec<Conflict>) {
        let merged = merge_restyled(
            &base.value,
            &mine.value,
            Side {
                value: &theirs.value,
                is_foreign: theirs.style != mine.style,
            },
            policy,
        );
        let mut value = merged.value;
        layout::lay_out(&mut value, &mine.style, mine.style.usual());
        let document = Document::new(value, mine.style.clone());
        (document, merged.conflicts)
    }
}
