//! How versions become the current ones, all of a commit at once, and how they come to the medium: knows nothing of requests, transactions or nodes.
//!
//! ```text
//! Changeset ──▶ Sequencer ──▶ journal        one record, one number: all of its edits or none
//!                   │
//!                   └──▶ Round ──▶ Durable    data, record, names: in this order
//! ```

mod changeset;
mod checkpoint;
mod commits;
mod growing;
mod request;
mod sequencer;
mod unsynced;

pub use changeset::Changeset;
pub use checkpoint::{Broken, CheckpointItem, Round};
pub use commits::Commits;
pub use growing::Growing;
pub use request::{CheckpointRequest, Parked, Todo};
pub use sequencer::{RoundStart, Sequencer, first_appends};
pub use unsynced::{Directories, Unsynced};
