//! What stat(2) tells of a node that isn't a transaction's.

use std::time::Duration;

use crate::engine::base::directories;
use crate::engine::{DIR_TIMES, STABLE, State, VOLATILE};
use crate::namespace::{Node, NodeKind};
use crate::sys::{at, failpoint};
use crate::types::{Attr, NodeId, OpResult, mtime_ns, seconds_of};

/// Attributes of a node that isn't a transaction's.
pub(crate) fn attr_of(state: &State, node: &Node) -> OpResult<Attr> {
    if let Some(current) = &node.forwarded {
        // Readers that were granted a lock have moved on to this version (C12).
        return Ok(Attr {
            ino: node.id,
            stat: at::stat(&**current)?,
            ttl: VOLATILE,
            name_ttl: VOLATILE,
        });
    }
    let mut stat = at::stat(&*state.nodes.fd(node.id)?)?;
    if let Some((applied, told)) = node.ctime_shift.as_deref().copied()
        && (stat.st_ctime, stat.st_ctime_nsec) == applied
    {
        (stat.st_ctime, stat.st_ctime_nsec) = told;
    }
    if let Some(told) = &node.unwritten {
        stat.st_size = i64::try_from(told.len).unwrap_or(i64::MAX);
        (stat.st_mtime, stat.st_mtime_nsec) = seconds_of(told.mtime_ns);
        (stat.st_ctime, stat.st_ctime_nsec) = (stat.st_mtime, stat.st_mtime_nsec);
    }
    stat.st_nlink = stat.st_nlink.saturating_sub(node.covered.into());
    if node.nameless && !failpoint::mutant("C8-nameless") {
        stat.st_nlink = 0;
    } else if node.superseded && stat.st_nlink == 0 {
        // As by a rewrite in place. link(2) by path could meet it in between, and a link
        // count of 0 is ENOENT there.
        stat.st_nlink = 1;
    }
    if node.grows() {
        let end = node.end().load(std::sync::atomic::Ordering::Acquire);
        stat.st_size = stat.st_size.min(i64::try_from(end).unwrap_or(i64::MAX));
    }
    // The kernel doesn't know that a close has changed the directory, or an append the file, or
    // that who opens a document finds a later text than the one it looked up.
    let changes = node.kind == NodeKind::Dir && state.txns.creates_in(node.id)
            || node.grows()
            // Who adds a line to it is told its length with that.
            || state.has_appenders(node)
            || node.shown_as.is_some()
            || node.unwritten.is_some();
    let ttl = match node.kind {
        _ if changes => VOLATILE,
        NodeKind::Dir => DIR_TIMES,
        _ => STABLE,
    };
    Ok(Attr {
        ino: node.id,
        stat,
        ttl,
        name_ttl: name_ttl(state, node),
    })
}

/// Modification time of a version in nanoseconds since the epoch, as programs see it.
pub fn mtime_of(state: &State, id: NodeId) -> Option<i128> {
    let attr = attr_of(state, state.nodes.get(id)?).ok()?;
    Some(mtime_ns(&attr.stat))
}

/// How long the kernel may go by the name of what isn't a file: it changes by requests for this very name, and the kernel, which
/// has sent them, knows.
pub fn name_ttl(state: &State, node: &Node) -> Duration {
    // Who has opened a new file there before the directory was made goes on seeing that.
    let is_nobodys =
        |dentry| state.txns.all_at(dentry).next().is_none() || failpoint::mutant("C1-kept-name");
    let is_kept = match node.kind {
        NodeKind::Dir | NodeKind::Special => {
            let names = &state.nodes.kept_names;
            !names.is_asked_each_time(node.id)
                && node.at.as_ref().is_none_or(is_nobodys)
                // It may go with its round.
                && !directories::is_hidden(state, node.id)
        }
        NodeKind::File | NodeKind::Private(_) => false,
    };
    match is_kept && !failpoint::feature_off("kept_names") {
        true => STABLE,
        false => VOLATILE,
    }
}
