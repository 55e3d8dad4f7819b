//! Lock files that were left behind: what becomes of a claim when the process that has created it has ended.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::claims::is_open;
use super::{Engine, State};
use crate::file::Claimant;
use crate::rules::Stale;
use crate::sys::{at, failpoint, proc};
use crate::types::{Dentry, NodeId};

/// Whether a lock file says that a living process holds it: its content begins with that one's number.
/// In bash's idiom, `( set -o noclobber; echo $$ > f )`, who created it is a subshell that ends at once.
pub(super) fn names_a_living_process(file: Option<&File>) -> bool {
    let text = file
        .and_then(|fd| at::reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK).ok())
        .and_then(|file| {
            let mut text = [0; 64];
            let len = file.read_at(&mut text, 0).ok()?;
            Some(String::from_utf8_lossy(&text[..len]).into_owned())
        });
    let pid = text.and_then(|text| text.split_whitespace().next()?.parse().ok());
    pid.is_some_and(|pid| !proc::is_ending(pid) && !failpoint::mutant("C6-living"))
}

impl Engine {
    /// Whether the name still means the file that was created, as far as can be told.
    pub(super) fn still_claims(&self, state: &mut State, dentry: &Dentry, node: NodeId) -> bool {
        state.txns.at(dentry).any(|t| t.node == node)
            || match self.current_if_any(state, dentry) {
                Ok(current) => current == Some(node),
                // Its directory is gone; anything else passes.
                Err(errno) => errno != Errno::STALE,
            }
    }

    /// Forgets claims that were given up, and deals with those whose holders have ended.
    pub(super) fn look_after_claims(self: &Arc<Self>) {
        let mut left = self.ended_claims();
        left.retain(|(_, _, file)| !names_a_living_process(file.as_deref()));
        for (dentry, node) in self.report_stale(left) {
            let engine = self.clone();
            let path = dentry.clone();
            self.unlink_file(dentry, node, move |result| match result {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    let state = engine.lock();
                    log::error!("{}: can't be removed: {e}", engine.show(&state, &path));
                }
            });
        }
    }

    /// Claims that nobody has open and whose creators have ended, with their files.
    pub(super) fn ended_claims(&self) -> Vec<(Dentry, NodeId, Option<Arc<File>>)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let claims = state.names.claims();
        let claims: Vec<(Dentry, NodeId, Instant)> = claims
            .map(|(dentry, c)| (dentry.clone(), c.node, c.since))
            .collect();
        for (dentry, node, since) in claims {
            if !self.still_claims(state, &dentry, node) {
                let (path, held) = (self.show(state, &dentry), since.elapsed());
                state.lock_stats.note(&path, |t| t.holds.observe(held));
                state.names.end_claim(&dentry);
            }
        }
        let ended = |(dentry, c): (&Dentry, &Claimant)| {
            // Whoever inherited its descriptor may be the holder now.
            let left = !c.reported && c.has_ended() && !is_open(state, dentry, c.node);
            left.then(|| (dentry.clone(), c.node, state.nodes.fd(c.node).ok()))
        };
        state.names.claims().filter_map(ended).collect()
    }

    /// Tells of claims that were left behind. Gives those that the rules want removed.
    pub(super) fn report_stale(
        &self,
        left: Vec<(Dentry, NodeId, Option<Arc<File>>)>,
    ) -> Vec<(Dentry, NodeId)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut removed = Vec::new();
        for (dentry, node, _) in left {
            let path = self.show(state, &dentry);
            let Some(c) = state.names.claimant_mut(&dentry).filter(|c| c.node == node) else {
                continue;
            };
            c.reported = true;
            let who = format!("created with O_EXCL by {} ({})", c.pid, c.command);
            match c.stale {
                Stale::Warn => log::warn!("{path}: {who}, which has ended"),
                Stale::Remove => {
                    log::warn!("{path}: {who}, which has ended: removed by rule");
                    removed.push((dentry, node));
                }
            }
            state.counters.stale_claims += 1;
        }
        removed
    }
}
