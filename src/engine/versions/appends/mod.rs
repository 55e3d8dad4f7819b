//! Files that grow in place: where lines are put, and where the file ends.

pub mod adding;
pub mod ends;
pub mod places;
pub mod sizes;
pub mod targets;
