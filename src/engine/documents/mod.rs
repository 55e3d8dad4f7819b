//! JSON documents that are edited through attributes (C15, C16).
//!
//! Setting `commitfs.json.patch` or `…merge` on a file applies the value to the file's current
//! version and commits the result, under the document's lock: one edit after the other, and none
//! builds on a version that is not current any more. The parsed document stays in memory, so that
//! an edit parses, journals and changes nothing but itself: see `texts` for when its text is
//! written.

pub mod attributes;
pub mod commit;
pub mod edits;
pub mod kept;
pub mod pieces;
pub mod request;
pub mod texts;

pub use crate::engine::documents::kept::{Documents, Parsed};
