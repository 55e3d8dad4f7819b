//! Who is on a second lookup: where it leads, and what ends it.

use crate::engine::State;
use crate::engine::base::opening::{FRESH, Way};
use crate::sys::failpoint;
use crate::types::{Dentry, NodeId, TxnId};

impl State {
    /// Whether what a thread finds under a name on its second lookup isn't certain yet, if it is on one.
    pub(in crate::engine) fn may_be_unbound(&self, tid: u32, dentry: &Dentry) -> bool {
        let note = self.walks.pending_opens.get(&tid);
        note.is_some_and(|note| match note.way {
            Way::Anew { .. } => note.dentry.name == dentry.name,
            Way::Own { .. } => note.dentry.name == dentry.name && note.dentry.dir != dentry.dir,
            Way::Opened { .. } => false,
        })
    }

    /// A name is unlinked: what is still on its way to its node has been opened before that.
    pub(in crate::engine) fn discard_prepared(&mut self, dentry: &Dentry) {
        let reserved = self.txns.all_at(dentry).filter(|t| t.phase.is_reserved());
        let reserved: Vec<TxnId> = reserved.map(|t| t.id).collect();
        for id in reserved {
            if let Some(txn) = self.txns.get_mut(&id)
                && !failpoint::mutant("C11-walk")
            {
                txn.unlink();
            }
            self.wake_for(id, dentry);
        }
    }

    /// The node that the second lookup of a thread finds under a name, if that is certain.
    pub(in crate::engine) fn end_of_retry(&mut self, tid: u32, dentry: &Dentry) -> Option<NodeId> {
        let note = self
            .walks
            .pending_opens
            .get_mut(&tid)
            .filter(|n| n.dentry == *dentry)?;
        if failpoint::mutant("C1-walk-life") && note.at.elapsed() > FRESH || !note.is_of(tid) {
            return None;
        }
        note.looked_up = true;
        match note.way {
            Way::Own { txn, .. } => self.txns.get(&txn).map(|txn| txn.node),
            Way::Opened { node, .. } => self.nodes.get(node).filter(|n| !n.dead).map(|n| n.id),
            Way::Anew { .. } => None,
        }
    }

    /// What a lookup has led to has ended: its thread finds what the name means now. Gives where it led.
    pub(in crate::engine) fn leave_way_to(&mut self, tid: u32, node: NodeId) -> Option<Way> {
        let note = self.walks.pending_opens.get_mut(&tid)?;
        let leads_there = match note.way {
            Way::Own { txn, .. } => self.txns.get(&txn).is_none_or(|txn| txn.node == node),
            Way::Opened { node: at, .. } => at == node,
            Way::Anew { .. } => false,
        };
        leads_there.then(|| std::mem::replace(&mut note.way, Way::Anew { failed: None }))
    }
}
