//! Writers that keep their file open and write it anew again and again: a status file that is open for
//! as long as its program runs. On the plain directory others see each text; here nothing would be
//! committed before the close.
//!
//! By rule (`publish = "whole"`) what is staged is published whenever it is a whole document under its
//! guard and nobody has written for [`AT_REST`]: by the watch, which looks four times a second, as
//! unlocking after writing publishes (C12). What is written from then on goes into a fresh staging file.
//! Without the rule, status names such files and the rule.

use std::sync::Arc;
use std::time::Duration;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::prepare::check_target;
use super::probe::Looks;
use super::publishing::Publication;
use super::{Durability, Engine, State};
use crate::file::Held;
use crate::guard::Guard;
use crate::rules::{Creation, Mode, quoted};
use crate::sys::{failpoint, proc};
use crate::txn::{Content, Staging, Transaction};
use crate::types::{Dentry, OpResult, Seq, TxnId, now_ns};

/// So long nobody has written what is at rest.
const AT_REST: Duration = Duration::from_millis(500);
/// So long a file is kept open as it is before it is taken to be kept open for good: editors take a
/// moment between their last write and their close.
const FOR_GOOD: Duration = Duration::from_secs(2);
/// Paths that are remembered, at most, and how many of them status shows.
const PATHS: usize = 200;
const SHOWN: usize = 20;

/// Whether what is written so far may become a version while the file is open. What a guard has refused
/// at a close is judged anew, and its error told under the name.
pub(super) fn may_commit_so_far(txn: &Transaction) -> bool {
    txn.round().is_none()
        && !txn.is_unlinked()
        && txn.preparation.may_be_judged_anew()
        && !txn.has_lost_a_writer()
}

/// Whether what was written of an open file may be published now. It has been copied, merged and judged since that was asked last: somebody
/// may have saved under a name that is not to be replaced, or removed the directory.
pub(super) fn check_due(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    how: Publication,
    to: &Dentry,
) -> OpResult<()> {
    check_target(engine, state, to)?;
    let replaces = match how {
        Publication::Rename(flags) => !flags.contains(RenameFlags::NOREPLACE),
        Publication::Link => false,
        Publication::Stay | Publication::Rest => true,
    };
    if !replaces && engine.exists(state, to)? && !failpoint::mutant("C11-noreplace") {
        return Err(Errno::EXIST);
    }
    let txn = state.txns.get(&id).filter(|t| is_still_due(t, how, to));
    txn.map(drop).ok_or(Errno::NOENT)
}

/// Whether what is published under its own name has that still, and may: it may have been unlinked or
/// renamed while its content was looked at, and is not to come back.
fn is_still_due(txn: &Transaction, how: Publication, to: &Dentry) -> bool {
    let stays =
        matches!(how, Publication::Stay | Publication::Rest) && !failpoint::mutant("C11-meanwhile");
    !stays || (txn.dentry() == to && may_commit_so_far(txn))
}

/// Publishes what is written so far of an open file under the name that it has, also if that becomes another one
/// meanwhile: a lock must not be given back without the commit that it stood for because somebody renames the
/// file. NODATA if there is nothing to publish.
pub(super) fn publish_in_place(engine: &Engine, tid: u32, id: TxnId) -> OpResult<()> {
    let dentry_of = |state: &State| {
        let txn = state.txns.get(&id).filter(|txn| may_commit_so_far(txn));
        txn.map(|txn| txn.dentry().clone())
    };
    // Whoever renames it again and again keeps nobody waiting for ever.
    for _ in 0..16 {
        let dentry = dentry_of(&engine.lock()).ok_or(Errno::NODATA)?;
        let published = engine.publish_open(tid, id, &dentry, Publication::Stay);
        let is_renamed = published.as_ref().is_err_and(|e| *e == Errno::NOENT)
            && dentry_of(&engine.lock()).is_none_or(|now| now != dentry);
        if !is_renamed || failpoint::mutant("C12-renamed") {
            return published.map(drop);
        }
    }
    Err(Errno::NOENT)
}

/// Whether a transaction is one that the watch looks at: somebody has it open and has written.
fn may_rest(txn: &Transaction) -> bool {
    txn.phase.is_open()
        && !txn.preparation.is_promised()
        && txn.policy.guard != Guard::None
        && txn.purpose.stream().is_none()
        && !txn.purpose.is_emptied()
        // What the kernel writes by itself is never known to rest.
        && txn.staging.passed().is_none()
        && txn.staging.has_changes()
        && may_commit_so_far(txn)
}

impl Engine {
    /// The watch: publishes what is whole and at rest, and notes what a rule would publish.
    pub(super) fn look_after_rest(self: &Arc<Self>) {
        let rules = self.rules.read().rules.checksum();
        for (id, staging) in self.writers_at_rest() {
            // Whoever has it is writing, or is being published.
            let Some(mut content) = staging.try_lock() else {
                continue;
            };
            if !content.rests_for(AT_REST) || content.is_judged(rules) {
                continue;
            }
            let publishes = self.is_published_at_rest(id);
            if !publishes && !content.rests_for(FOR_GOOD) {
                continue;
            }
            content.note_judged(rules);
            let is_rewritten = content.is_rewritten();
            drop(content);
            let engine = self.clone();
            match publishes {
                true => self.pool.run(move || engine.publish_at_rest(id)),
                false if is_rewritten => self.pool.run(move || engine.note_kept_open(id, &staging)),
                false => {}
            }
        }
    }

    fn writers_at_rest(&self) -> Vec<(TxnId, Arc<Staging>)> {
        let state = self.lock();
        let open = state.txns.values().filter(|txn| may_rest(txn));
        open.map(|txn| (txn.id, txn.staging.clone())).collect()
    }

    /// By the rules as they are now: a file that is never closed would never come under a new one.
    fn is_published_at_rest(&self, id: TxnId) -> bool {
        let state = self.lock();
        let dentry = state.txns.get(&id).map(|txn| txn.dentry());
        dentry.is_some_and(|dentry| {
            self.policy(&state, dentry, Creation::default())
                .publishes_at_rest()
        })
    }

    fn publish_at_rest(&self, id: TxnId) {
        if self.is_mapped_by_writers(id) {
            return;
        }
        let (dentry, by) = match self.lock().txns.get(&id) {
            Some(txn) if may_rest(txn) => (txn.dentry().clone(), txn.participants.opener_tid()),
            _ => return,
        };
        match self.publish_open(by, id, &dentry, Publication::Rest) {
            // Or it isn't whole, or was written, unlinked or renamed meanwhile.
            Ok(_) | Err(Errno::NODATA | Errno::NOENT) => {}
            Err(e) => {
                let path = self.show(&self.lock(), &dentry);
                log::warn!("{path}: whole and at rest, but not committed: {e}");
            }
        }
    }

    /// Stores into a mapping are not told, so what is mapped is never known to be at rest.
    fn is_mapped_by_writers(&self, id: TxnId) -> bool {
        let (looks, writers) = {
            let state = self.lock();
            let Some(txn) = state
                .txns
                .get(&id)
                .filter(|txn| txn.participants.is_mappable())
            else {
                return false;
            };
            let writers: Vec<u32> = txn.participants.pids().collect();
            (Looks::of(&state, txn), writers)
        };
        let wanted = |ino| looks.may_map(ino);
        let has_mapped = |pid: u32| proc::has_mapped(pid, &wanted) == Some(true);
        writers.into_iter().any(has_mapped)
    }

    /// Whether what is written so far may be published so, for who has the content.
    pub(super) fn may_be_published(content: &mut Content, how: Publication) -> OpResult<()> {
        if let Some(failure) = &content.failed {
            return Err(failure.errno);
        }
        if how == Publication::Rest {
            let rests = content.changed && content.rests_for(AT_REST);
            if !rests || !(failpoint::mutant("C21-rest") || content.is_whole()?) {
                return Err(Errno::NODATA);
            }
        }
        failpoint::delay("COMMITFS_PUBLISH_DELAY_MS");
        Ok(())
    }

    /// What was published of an open file its close acknowledges, as it does what it commits itself: where
    /// closes are durable, and where the program has called fsync before that (C7).
    pub(super) fn owe(&self, txn: &Transaction, how: Publication, seq: Seq) {
        let has_synced = how == Publication::Rest && txn.has_synced();
        let stays = matches!(how, Publication::Stay | Publication::Rest);
        if stays && (has_synced || self.config.durability == Durability::Sync) {
            txn.staging.owe(seq);
        }
    }

    /// A file is kept open that others would like to read: remembered for status, told once.
    fn note_kept_open(&self, id: TxnId, staging: &Staging) {
        let is_whole = {
            let mut content = staging.lock();
            content.rests_for(FOR_GOOD) && content.is_whole() == Ok(true)
        };
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(txn) = state.txns.get(&id).filter(|txn| is_whole && may_rest(txn)) else {
            return;
        };
        let path = self.show(state, txn.dentry());
        let (pid, command) = txn.participants.to_who();
        let paths = &mut state.kept_open.paths;
        if !paths.contains_key(&path) {
            log::info!(
                "{path}: {pid} ({command}) keeps it open and rewrites it; others see that when it closes it, or with a rule \
                 publish = \"whole\""
            );
            let oldest = paths.values().min_by_key(|held| held.time_ns);
            if let (PATHS.., Some(oldest)) = (paths.len(), oldest.map(|held| held.path.clone())) {
                paths.remove(&oldest);
            }
        }
        let held = paths.entry(path.clone()).or_default();
        held.count += 1;
        (held.path, held.pid, held.command, held.time_ns) = (path, pid, command, now_ns());
    }

    /// Those that no rule publishes by now, with the rule that would.
    pub(super) fn kept_open(&self, state: &State) -> Vec<Held> {
        let would_help = |held: &&Held| {
            let rules = &self.rules.read().rules;
            let policy = rules.decide(held.path.as_ref(), Creation::default());
            let is_guarded = policy.guard != Guard::None && policy.mode == Mode::Atomic;
            is_guarded && !policy.publishes_at_rest()
        };
        let mut all: Vec<Held> = state.kept_open.paths.values().cloned().collect();
        all.retain(|held| would_help(&held));
        all.sort_by(|a, b| (b.count, &a.path).cmp(&(a.count, &b.path)));
        all.truncate(SHOWN);
        for held in &mut all {
            held.help = "it is kept open, and nobody else sees what is written before it is closed; a rule that shows each whole \
                         text half a second after it was written, also of what is open"
                .to_owned();
            held.rule = rule_for(&held.path);
            held.command_to_add = self.command_to_add(&held.path, &[("publish", "whole")]);
        }
        all
    }
}

impl State {
    /// A close that has nothing to commit. Gives the commit that it has to see on the medium, as it
    /// acknowledges what was published before; 0 if there is none.
    pub(super) fn close_without_commit(&mut self, id: TxnId) -> Seq {
        let Some(txn) = self.txns.get_mut(&id) else {
            return Seq::default();
        };
        // Whoever has inherited it may write yet.
        txn.participants.miss();
        match failpoint::mutant("C19-owed") {
            true => Seq::default(),
            false => txn.staging.owed(),
        }
    }
}

/// `[[rule]]` for one path.
fn rule_for(path: &str) -> String {
    let glob = crate::rules::escaped_glob(path);
    format!("[[rule]]\nglob = {}\npublish = \"whole\"\n", quoted(&glob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;

    #[test]
    fn a_proposed_rule_is_one_and_matches_its_path() {
        for path in ["s.json", "a/b.json", "a [1]*{x}?.json", "q\"\\.npy"] {
            let rules = Rules::parse(&rule_for(path), "test").unwrap();
            let policy = rules.decide(path.as_ref(), Creation::default());
            assert!(policy.publishes_at_rest(), "{path}");
        }
    }
}
