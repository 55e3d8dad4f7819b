//! Where what is shown of a growing file ends.

use rustix::io::Errno;

use crate::engine::base::watchers;
use crate::engine::{Engine, State};
use crate::namespace::{Ends, NodeKind};
use crate::types::{Dentry, NodeId, OpResult};

/// What is shown of a file ends at `from` until an append to it is complete. Where the kernel
/// may have cached the page with the old end, that stays a version of its own, and the file
/// grows under another node. Gives the node that grows, and its ends.
pub fn hold_end(
    engine: &Engine,
    state: &mut State,
    current: NodeId,
    dentry: &Dentry,
    from: u64,
) -> OpResult<(NodeId, Ends)> {
    let node = state.nodes.get_mut(current).ok_or(Errno::STALE)?;
    let grew = node.grows();
    node.ends().hold(from);
    if grew || !node.cached {
        if !grew && let Some(notify) = engine.kernel.notify() {
            notify.attributes_changed(current);
        }
        return Ok((current, node.ends()));
    }
    node.superseded = true;
    let (key, version, whole) = (node.key, node.version, node.whole().clone());
    let fd = state.nodes.fd(current)?;
    let grown = state.nodes.create(NodeKind::File, fd, key, dentry.clone());
    state.same_file(grown, current);
    state.files.edit(grown, current);
    watchers::supersede(engine, state, dentry, Some(current));
    let node = state.nodes.get_mut(grown).ok_or(Errno::STALE)?;
    node.version = version;
    node.share_whole(whole);
    node.ends().hold(from);
    Ok((grown, node.ends()))
}
