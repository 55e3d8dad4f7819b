//! What all rooms share: the state, the handles, the words of an answer.

#[cfg(feature = "testing")]
pub mod abandon;
pub mod advice;
pub mod current;
pub mod directories;
pub mod ended;
pub mod errors;
pub mod files;
pub mod handle;
pub mod lines;
pub mod lock_files;
pub mod opening;
pub mod orders;
pub mod own_saves;
pub mod passed;
pub mod publication;
pub mod rest;
pub mod savers;
pub mod setid;
pub mod state;
pub mod strangers;
pub mod target;
pub mod watchers;
