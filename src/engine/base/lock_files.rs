//! What a lock file says of who holds it, and whether it is there still.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::{Engine, State};
use crate::sys::{at, failpoint, proc};
use crate::types::{Dentry, NodeId};

/// Whether a lock file says that a living process holds it: its content begins with that one's number.
/// In bash's idiom, `( set -o noclobber; echo $$ > f )`, who created it is a subshell that ends at once.
pub fn names_a_living_process(file: Option<&File>) -> bool {
    let pid = named_process(file);
    pid.is_some_and(|pid| !proc::is_ending(pid) && !failpoint::mutant("C6-living"))
}

/// The process whose number a lock file begins with.
pub fn named_process(file: Option<&File>) -> Option<u32> {
    let text = file
        .and_then(|fd| at::reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK).ok())
        .and_then(|file| {
            let mut text = [0; 64];
            let len = file.read_at(&mut text, 0).ok()?;
            Some(String::from_utf8_lossy(&text[..len]).into_owned())
        });
    text?.split_whitespace().next()?.parse().ok()
}

/// Whether the name still means the file that was created, as far as can be told.
pub fn still_claims(engine: &Engine, state: &mut State, dentry: &Dentry, node: NodeId) -> bool {
    state.txns.at(dentry).any(|t| t.node == node)
        || match current::current_if_any(engine, state, dentry) {
            Ok(current) => current == Some(node),
            // Its directory is gone; anything else passes.
            Err(errno) => errno != Errno::STALE,
        }
}
