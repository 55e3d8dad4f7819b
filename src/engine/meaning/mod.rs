//! What a name means, to whom, and what is known of its users.

pub mod claims;
pub mod deciding;
pub mod group_locks;
pub mod ledger;
pub mod live_rules;
pub mod metadata;
pub mod overwrites;
pub mod pending_opens;
pub mod pins;
pub mod probe;
pub mod release;
pub mod resolve;
pub mod seeing;
pub mod stat;
pub mod turns;
