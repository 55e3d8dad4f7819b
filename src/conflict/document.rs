//! The JSON documents in versions, as conflicts are told by them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::ledger::{Doubts, Text};
use crate::json::{self, Document, Limits};

/// Texts up to this size are compared to find out what a save builds on.
const SMALL: u64 = 1 << 20;

/// Whether what was written takes back what its thread had saved before, because it was made from
/// what had been read before that (see [`json::goes_back`]). `None`: the texts don't tell.
pub fn goes_back(doubts: &Doubts, mine: &File) -> Option<bool> {
    let document = |text: &Text| match text {
        Text::Missing => Document::parse(b"").ok(),
        Text::Kept(kept) => read_small_document(&kept.file),
        Text::Dropped => None,
    };
    let (written, mine) = (document(&doubts.written)?, read_small_document(mine)?);
    let mut is_known = true;
    let found = doubts.earlier.iter().any(|earlier| {
        let Some(earlier) = document(earlier) else {
            is_known = false;
            return false;
        };
        json::goes_back(earlier.value(), written.value(), mine.value())
    });
    (found || is_known).then_some(found)
}

/// The document in a file that is small enough to be read again and again.
fn read_small_document(file: &File) -> Option<Document> {
    match file.metadata().ok()?.len() {
        0..=SMALL => read_document_in(file),
        _ => None,
    }
}

/// The document in a file.
pub fn read_document_in(file: &File) -> Option<Document> {
    let limits = Limits::default();
    let size = usize::try_from(file.metadata().ok()?.len()).ok()?;
    if size > limits.bytes {
        return None;
    }
    let mut text = vec![0; size];
    file.read_exact_at(&mut text, 0).ok()?;
    Document::parse_within(&text, &limits).ok()
}
