//! What a name means now: the version that is current under it, and whether a save would put nothing of its own in its place.

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::engine::{Engine, State};
use crate::namespace::NodeKind;
use crate::sys::at;
use crate::types::{Dentry, NodeId, OpResult, TxnId};

/// The current version of a name, or what else stands there.
pub fn current(engine: &Engine, state: &mut State, dentry: &Dentry) -> OpResult<NodeId> {
    if let Some(pending) = state.pending.get(dentry.dir, &dentry.name) {
        return Ok(pending.node);
    }
    let dir = engine.dir_fd(state, dentry.dir)?;
    let there = at::stat_at(&*dir, &dentry.name)?.ok_or(Errno::NOENT)?;
    let key = (there.st_dev, there.st_ino);
    if let Some(known) = state.nodes.found_again(key, dentry) {
        return Ok(known);
    }
    let fd = at::open_path(&*dir, &dentry.name)?;
    let stat = at::stat(&fd)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => NodeKind::Dir,
        FileType::RegularFile => NodeKind::File,
        _ => NodeKind::Special,
    };
    let key = (stat.st_dev, stat.st_ino);
    let is_new = state
        .nodes
        .known(key)
        .is_none_or(|id| state.nodes.get(id).is_none());
    let shift = match is_new && kind == NodeKind::File {
        true => crate::txn::told_ctime(&fd, &stat),
        false => None,
    };
    let node = state.nodes.adopt(kind, fd, key, dentry.clone());
    if shift.is_some() {
        node.ctime_shift = shift.map(Box::new);
    }
    Ok(node.id)
}

/// The node of the version that a name has now; `None` when there is nothing.
pub fn current_if_any(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
) -> OpResult<Option<NodeId>> {
    match current(engine, state, dentry) {
        Ok(id) => Ok(Some(id)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a transaction that is still listed would replace what somebody else has committed by nothing of its own.
pub fn is_no_op(engine: &Engine, state: &mut State, id: TxnId) -> bool {
    let nothing = state
        .txns
        .get(&id)
        .filter(|t| t.purpose.holds_nothing())
        .map(|t| (t.dentry().clone(), t.purpose.base()));
    nothing.is_some_and(|(dentry, base)| is_another_file(engine, state, &dentry, base))
}

pub fn is_another_file(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    base: Option<NodeId>,
) -> bool {
    matches!(current_if_any(engine, state, dentry), Ok(Some(current))
            if Some(current) != base
                && state.nodes.get(current).is_some_and(|n| n.kind == NodeKind::File))
}
