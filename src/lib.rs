//! commitfs: a file system that makes every close an atomic commit.
//!
//! The modules, in the direction of the data: [`fuse`] translates requests, [`engine`] decides what
//! they mean, [`txn`] stages and prepares, [`journal`] records, [`store`] lays out the disk.
//! `docs/design.md` has the invariants and the crash argument.

pub mod cli;
pub mod commit;
pub mod conflict;
pub mod engine;
pub mod file;
pub mod fuse;
pub mod group;
pub mod guard;
pub mod journal;
pub mod json;
pub mod locks;
pub mod namespace;
pub mod rules;
pub mod runtime;
pub mod store;
pub mod sys;
pub mod txn;
pub mod types;
