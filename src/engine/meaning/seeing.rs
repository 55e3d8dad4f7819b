//! Who sees what is being written, and by which name a thread has come to a node.

use crate::engine::State;
use crate::engine::base::directories;
use crate::engine::meaning::probe::Looks;
use crate::sys::{failpoint, proc};
use crate::txn::{Transaction, View};
use crate::types::{Dentry, NodeId, TxnId};

/// Whether what a thread of a process finds under the name is the staged content (C1).
pub fn sees(state: &State, txn: &Transaction, (tgid, tid): (u32, u32)) -> bool {
    if directories::is_shared(state, txn, tgid) {
        return true;
    }
    let open_to_process = txn.is_open_to_its_process();
    match txn.participants.view((tgid, tid), open_to_process) {
        View::Staged => true,
        View::Others => false,
        View::IfInherited => has_inherited(state, txn, tgid),
    }
}

/// Whether a process has a descriptor of the transaction.
pub fn has_inherited(state: &State, txn: &Transaction, tgid: u32) -> bool {
    let looks = Looks::of(state, txn);
    let ours = |ino, how| looks.are(ino, how);
    proc::holds(tgid, MOST_LOOKS, &ours) == proc::Holding::Yes
}

/// The name by which a thread has come to a node, as far as it was looked up: one that the kernel keeps isn't.
pub fn looked_up(state: &State, tid: u32, id: NodeId) -> Option<&Dentry> {
    let (dentry, _) = state
        .walks
        .lookups
        .get(&tid)
        .filter(|(_, found)| *found == id)?;
    let at = state.nodes.get(id).and_then(|n| n.at.as_ref());
    let is_kept = state.nodes.kept_names.is_kept(id) && !failpoint::mutant("C1-kept-lookup");
    (at == Some(dentry) || !is_kept).then_some(dentry)
}

/// Of how many descriptors at most a lookup looks at each: others wait meanwhile.
pub const MOST_LOOKS: u64 = 1024;

/// A writer has come by on its second lookup, by this name: the kernel has dropped what it found there before. Not if that has been
/// renamed since: then the kernel has moved what it keeps along, and is told as of who has not walked.
pub fn has_walked(state: &mut State, txn: TxnId, walked: Option<&Dentry>) {
    let base = state.txns.get(&txn).and_then(|txn| txn.purpose.base());
    let stays = |id: &NodeId| {
        let at = state.nodes.get(*id).and_then(|node| node.at.as_ref());
        at == walked || failpoint::mutant("C1-kept-walk")
    };
    if let Some(base) = base.filter(stays) {
        state.nodes.kept_names.has_dropped(base);
    }
}
