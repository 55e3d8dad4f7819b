//! What is known of reads and saves, to tell what a save builds on and what it overwrites (C17): who has read and written
//! what ([`ledger`]), who these are ([`registry`]), what was lost ([`overwrites`]). Decides nothing, waits for nothing, and knows
//! nothing of requests and transactions but their numbers.

mod document;
pub mod ledger;
pub mod overwrites;
pub mod registry;
mod texts;

pub use document::{goes_back, read_document_in};
pub use ledger::{Actor, Base, Doubts, Ledger, ProcessId, Saved, Text};
pub use overwrites::{Loss, Overwrites, Overwritten, Pair, Removed, Seen};
pub use registry::{Author, Registry, Save};
pub use texts::{Doubtful, Texts, is_small};

/// Why a stale save could not be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// One of the three texts is no JSON document.
    NoDocument,
    /// It is not certain what it builds on.
    Uncertain,
}
