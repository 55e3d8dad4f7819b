//! Names and nodes: which file a number means, and which names are committed but not yet in the
//! backing directory.
//!
//! Pure bookkeeping: nothing here decides, and nothing here waits.

mod kept;
mod nodes;
mod pending;
mod shown;

pub use kept::{DropNames, DroppedName};
pub use nodes::{CachedAttributes, Node, NodeKind, Nodes, Sum, WHOLE};
pub use pending::{Pending, PendingSet, Superseded, Unwritten};
pub use shown::{Ends, Shown};
