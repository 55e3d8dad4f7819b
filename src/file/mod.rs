//! What is known of single files beyond their versions, one object for each that has anything: who adds lines to it, whom it
//! follows, who has claimed it, whose save is between merge and commit, who waits for its writer slot, what went wrong last. Found
//! by its name ([`NameTable`]); one that is at rest has none. Decides nothing, waits for nothing, knows nothing of requests.

mod appender;
mod claimant;
mod kept_open;
mod overlaid;
mod table;

pub use appender::{AppendPlace, Appender, Opening, Unfinished, Unnamed};
pub use claimant::Claimant;
pub use kept_open::{Held, KeptOpen};
pub use overlaid::Overlaid;
pub use table::{Follower, NameEntry, NameTable};
