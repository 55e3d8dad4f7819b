//! What people and commands are told.

pub mod control;
pub mod locklist;
pub mod status;
pub mod virtualdir;
