//! A patch of either kind.

use super::document::{Document, Limits};
use super::edit::Applied;
use super::error::PatchError;
use super::merge_patch::MergePatch;
use super::patch::Patch;

/// A patch as RFC 6902 or as RFC 7396 has it.
#[derive(Clone, Debug)]
pub enum AnyPatch {
    /// Operations, one after the other.
    Patch(Patch),
    /// Members that take the place of others.
    Merge(MergePatch),
}

impl AnyPatch {
    /// Reads a merge patch, or a patch.
    ///
    /// # Errors
    /// As [`Patch::parse`] and [`MergePatch::parse`].
    pub fn parse(merge: bool, bytes: &[u8], limits: &Limits) -> Result<AnyPatch, PatchError> {
        if merge {
            MergePatch::parse(bytes, limits).map(AnyPatch::Merge)
        } else {
            Patch::parse(bytes, limits).map(AnyPatch::Patch)
        }
    }

    /// Whether the edit costs no more than its own length, whatever the document holds: it copies
    /// nothing, drops nothing but scalars, and pushes few items out of the way.
    pub fn is_local(&self, document: &Document) -> bool {
        match self {
            AnyPatch::Patch(patch) => patch.is_local(document.value()),
            AnyPatch::Merge(patch) => patch.is_local(document.value()),
        }
    }

    /// Edits a document in place; all of it or nothing.
    ///
    /// # Errors
    /// As [`Document::apply`] and [`Document::apply_merge`].
    pub fn apply(&self, document: &mut Document, limits: &Limits) -> Result<Applied, PatchError> {
        match self {
            AnyPatch::Patch(patch) => document.apply(patch, limits),
            AnyPatch::Merge(patch) => document.apply_merge(patch, limits),
        }
    }
}
