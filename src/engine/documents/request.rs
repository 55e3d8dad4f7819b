//! What is asked of a document, and what it comes to.

use rustix::io::Errno;

use crate::json::{AnyPatch, Document, Limits, PatchError};
use crate::sys::failpoint;
use crate::types::{NodeId, Seq};

/// What is to be done to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditKind {
    /// By RFC 6902.
    Patch,
    /// By RFC 7396.
    Merge,
    /// A text takes its place.
    Replace,
}

/// An edit that was asked for.
pub struct Request {
    pub node: NodeId,
    /// Thread that asks.
    pub by: u32,
    pub kind: EditKind,
    /// Version that has to be current.
    pub expected: Option<u64>,
    /// The patch, or the text.
    pub value: Vec<u8>,
}

/// What an edit came to.
pub struct Done {
    /// For `user.commitfs.json.result`.
    pub result: Vec<u8>,
    /// The commit that has to be durable for it.
    pub seq: Seq,
}

/// Why an edit or a read was refused.
#[derive(Debug)]
pub struct Refusal {
    pub(in crate::engine) errno: Errno,
    pub reason: String,
}

pub fn text_of(document: &Document) -> String {
    if failpoint::mutant("C16") {
        return document.value().to_string();
    }
    document.to_text()
}

impl Request {
    pub(in crate::engine) fn patch(&self) -> Result<AnyPatch, PatchError> {
        AnyPatch::parse(
            self.kind == EditKind::Merge,
            &self.value,
            &Limits::default(),
        )
    }
}

impl Refusal {
    pub(in crate::engine) fn is_full(&self) -> bool {
        matches!(self.errno, Errno::NOSPC | Errno::DQUOT)
    }
}
