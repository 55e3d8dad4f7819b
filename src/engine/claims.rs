//! Lock files: who created a file with O_EXCL under a name that the rules call a claim, and what
//! becomes of it when that process has ended. A process is known by its descriptor: its number may
//! be another's by then.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::locklist::LockEntry;
use super::{Engine, State};
use crate::rules::{Policy, Stale};
use crate::sys::{pidfd, proc};
use crate::types::{Caller, NodeId, Slot};

/// So many claims are watched; later ones are not.
const MOST: usize = 1000;

/// Who holds a name by having created it.
#[derive(Debug)]
pub struct Claimant {
    /// The file, at its creation.
    node: NodeId,
    pid: u32,
    command: String,
    process: Option<OwnedFd>,
    since: Instant,
    stale: Stale,
    reported: bool,
}

impl Claimant {
    fn has_ended(&self) -> bool {
        self.process.as_ref().is_none_or(pidfd::has_ended)
    }
}

fn is_open(state: &State, slot: &Slot, node: NodeId) -> bool {
    state.transactions_at(slot).any(|t| t.node == node)
        || state.nodes.get(node).is_some_and(|n| n.direct > 0)
}

impl Engine {
    /// A file was created with O_EXCL.
    pub(super) fn note_claim(
        &self,
        state: &mut State,
        caller: Caller,
        slot: &Slot,
        node: NodeId,
        policy: &Policy,
    ) {
        let Some(stale) = policy.stale.filter(|_| state.claimants.len() < MOST) else {
            return;
        };
        let Some(pid) = proc::tgid(caller.tid) else {
            return;
        };
        let claimant = Claimant {
            node,
            pid,
            command: proc::comm(pid).unwrap_or_default(),
            process: pidfd::pidfd(pid),
            since: Instant::now(),
            stale,
            reported: false,
        };
        state.claimants.insert(slot.clone(), claimant);
    }

    /// Whether the name still means the file that was created, as far as can be told.
    fn still_claims(&self, state: &mut State, slot: &Slot, node: NodeId) -> bool {
        state.transactions_at(slot).any(|t| t.node == node)
            || match self.current_if_any(state, slot) {
                Ok(current) => current == Some(node),
                // Its directory is gone; anything else passes.
                Err(errno) => errno != Errno::STALE,
            }
    }

    /// Forgets claims that were given up, and deals with those whose creators have ended.
    pub(super) fn look_after_claims(self: &Arc<Self>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut claimants = std::mem::take(&mut state.claimants);
        claimants.retain(|slot, c| self.still_claims(state, slot, c.node));
        let mut removed = Vec::new();
        for (slot, c) in &mut claimants {
            // Whoever inherited its descriptor may be the holder now.
            if c.reported || !c.has_ended() || is_open(state, slot, c.node) {
                continue;
            }
            c.reported = true;
            let path = self.show(state, slot);
            let who = format!("created with O_EXCL by {} ({})", c.pid, c.command);
            match c.stale {
                Stale::Warn => log::warn!("{path}: {who}, which has ended"),
                Stale::Remove => {
                    log::warn!("{path}: {who}, which has ended: removed by rule");
                    removed.push((slot.clone(), c.node));
                }
            }
            state.counters.stale_claims += 1;
        }
        state.claimants = claimants;
        drop(guard);
        for (slot, node) in removed {
            let engine = self.clone();
            let path = slot.clone();
            self.unlink_file(slot, node, move |result| match result {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    let state = engine.lock();
                    log::error!("{}: can't be removed: {e}", engine.show(&state, &path));
                }
            });
        }
    }

    pub(super) fn claim_entries(&self, state: &State) -> Vec<LockEntry> {
        let claims = state.claimants.iter();
        claims
            .map(|(slot, c)| LockEntry {
                state: "held",
                kind: "claim".into(),
                path: self.show(state, slot),
                pid: c.pid,
                command: c.command.clone(),
                age_ms: u64::try_from(c.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                alive: !c.has_ended(),
                waits_for: Vec::new(),
            })
            .collect()
    }
}
