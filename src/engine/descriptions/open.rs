//! Opening: readers get a version, writers a transaction with a node of its own.
//!
//! A writer must not share the readers' node: its O_TRUNC and its pages would show through to
//! them. So an open for writing that arrives at a version's node is refused with ESTALE, the VFS
//! looks the path up once more, and the lookup of that thread answers the private node (see
//! `docs/design.md`, "The second lookup"). Programs never see the ESTALE.

pub mod arriving;
pub mod joining;
pub mod writers;
