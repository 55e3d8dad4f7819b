//! Transactions: what one open-for-write does, from open to the end of its last reference.
//!
//! ```text
//! open ──▶ Staging ──FLUSH──▶ prepared ──RELEASE──▶ committed (pending) ──checkpoint──▶ applied
//!             │                   │
//!             └──── killed, failed, guard, discarded ──▶ rejected or dropped
//! ```
//! All that can fail happens up to *prepared*; the commit itself is an append to the journal whose
//! space was reserved before, and an entry in memory.

mod abort;
mod apply;
mod attributes;
mod forward;
mod gaps;
mod growth;
mod kin;
mod leftover;
mod moves;
mod pages;
mod part;
mod participants;
mod parts;
mod passed;
mod phase;
mod places;
mod plan;
mod planning;
mod preparation;
mod promise;
mod purpose;
pub mod recovery;
mod replay;
mod restore;
mod room;
mod slot;
mod staging;
mod target;
mod told;
mod touched;
mod transaction;
mod transactions;
mod visibility;
mod whole;

pub use abort::Abort;
pub use attributes::{
    OURS, VERSION, copy_attributes, copy_xattrs, mark_applied, mark_version, marked_version,
    told_ctime,
};
pub use growth::key_of;
pub use kin::{Kin, Standing};
pub use moves::{after_move, each_path};
pub use participants::{Participants, View};
pub use parts::by_place;
pub use phase::Phase;
pub use preparation::{AsOf, Flush, Last, Preparation, Ready, Written};
pub use promise::{KeptContent, Promise, Rescue, Withheld};
pub use purpose::{Begun, Purpose};
pub use replay::write_text;
pub use slot::WriterSlot;
pub use staging::{Content, Fsynced, GrownBase, Own, Staging, WriteFailure};
pub use transaction::Transaction;
pub use transactions::Transactions;
pub use visibility::Visibility;
