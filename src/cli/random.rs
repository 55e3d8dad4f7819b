//! Numbers that nobody else draws, for names and for waits. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number, seeded by the system.
pub fn number() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A random number below `limit`.
pub fn below(limit: u64) -> u64 {
    number() % limit.max(1)
}
