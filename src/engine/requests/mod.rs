//! What is asked for, one function each: names, attributes, opens of what is new.

pub mod attrs;
pub mod creating;
pub mod dirs;
pub mod exchange;
pub mod finding;
pub mod links;
pub mod lookup;
pub mod making;
pub mod merged;
pub mod moving;
pub mod opens;
pub mod removing;
pub mod renaming;
pub mod round_watch;
pub mod serving;
pub mod stale_claims;
pub mod start;
pub mod strays;
pub mod virtual_files;
pub mod watch_requests;
pub mod xattrs;
