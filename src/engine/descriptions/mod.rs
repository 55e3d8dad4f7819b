//! What one open description does, from its open to its close.

pub mod append;
pub mod close;
pub mod commit_points;
pub mod emptied;
pub mod io;
pub mod kinds;
pub mod letting_go;
pub mod locking;
pub mod mapped;
pub mod open;
pub mod retries;
pub mod slots;
