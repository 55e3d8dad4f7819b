//! JSON documents that are edited where they stand: patches, merges, and a text that stays as its
//! author wrote it. Pure: no I/O, no clock, no locks.
//!
//! [`Document`] is a parsed text together with its style. What an edit doesn't touch is written back
//! as it was read: numbers and strings keep their source text, members their order, containers their
//! line breaks, the file its indentation and its end.
//!
//! An edit ([`Patch`], [`MergePatch`]) costs what the edit holds, not what the document holds: it
//! happens in place and leaves an [`Undo`] that takes it back. An edit that fails has taken itself
//! back already. [`merge`] builds a new value out of three.
//!
//! Nesting is bounded by [`MAX_DEPTH`] everywhere a value can come from, so recursion over values
//! needs no further care.

mod any_patch;
mod array;
mod document;
mod edit;
mod error;
mod going_back;
mod layout;
mod merge_patch;
mod number;
mod object;
mod operations;
mod parse;
mod patch;
mod pointer;
mod sequence;
mod style;
mod text;
mod three_way;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use any_patch::AnyPatch;
pub use array::Array;
pub use document::{Document, Limits};
pub use edit::{Applied, Undo};
pub use error::{JsonError, PatchError, PatchErrorKind, Place};
pub use going_back::goes_back;
pub use merge_patch::MergePatch;
pub use number::{Number, NumberError};
pub use object::{Member, Object};
pub use patch::Patch;
pub use pointer::{Missing, Pointer, PointerError};
pub use text::Text;
pub use three_way::{Conflict, ConflictKind, Merged, Policy, merge};
pub use value::Value;

/// How many arrays and objects may be open inside each other.
pub const MAX_DEPTH: usize = 512;
