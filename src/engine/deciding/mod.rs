//! What becomes of a transaction: prepared, judged, merged, published or aborted.

pub mod checkpoint;
pub mod copies;
pub mod finishing;
pub mod judging;
pub mod merging;
pub mod names;
pub mod prepare;
pub mod publishing;
pub mod resting;
pub mod rounds;
pub mod settling;
