//! How a content becomes a version, and comes to its place.

pub mod aborting;
pub mod appends;
pub mod barrier;
pub mod beginning;
pub mod direct;
pub mod direct_file;
pub mod due;
pub mod durability;
pub mod growing;
pub mod overlaid;
pub mod passing;
pub mod publish;
pub mod replaced;
pub mod room;
pub mod shared;
pub mod withholding;
