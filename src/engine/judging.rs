//! What guards say where content gets a name (C21): a close, a rename, a link, an fsync of a writer
//! that was killed.

use std::fs::File;

use super::Engine;
use crate::guard::{Guard, Replaces, Verdict, examine, judge};
use crate::namespace::NodeKind;
use crate::rules::Policy;
use crate::sys::{at, failpoint};
use crate::txn::{Abort, Content, Staging};
use crate::types::{Dentry, OpResult, TxnId, errno_of};

/// Whether a close reports what stands against the commit. A guard's refusal and a conflict only the
/// last may tell: an earlier one of a shell group must not. By rule (`close_error = false`) no close
/// tells of a guard's, for programs whose own handlers an error of close() would mask (`except
/// TypeError` around `json.dump`).
pub(super) fn is_told(abort: &Abort, is_last: bool, policy: &Policy) -> bool {
    match abort {
        Abort::Guard(_) => is_last && (policy.close_error || failpoint::mutant("C21-close-error")),
        Abort::Conflict => is_last,
        _ => true,
    }
}

impl Engine {
    /// Whether a transaction's content may be published under a name.
    pub(super) fn check_guard(
        &self,
        content: &mut Content,
        dentry: &Dentry,
        policy: &Policy,
        how: Replaces,
    ) -> Result<(), Abort> {
        if policy.guard == Guard::None || failpoint::mutant("C21") {
            return Ok(());
        }
        let failed = |errno| Abort::FailedWrite {
            what: "guard",
            errno,
        };
        let verdict = content.examine(policy.guard).map_err(failed)?;
        judge(policy.guard, &verdict, how, policy.allow_empty)
            .decide(|| self.verdict_on_current(dentry, policy.guard))
            .map_err(failed)?
            .map_err(|violation| Abort::Guard(violation.to_string()))
    }

    /// How a transaction's content takes the place of what is there: who edits a file (`r+`,
    /// truncate) has not chosen all of it, unless it has emptied the file first.
    pub(super) fn replaces(&self, id: TxnId, content: &Content) -> Replaces {
        let edits =
            !content.is_anew() && self.lock().txns.get(&id).is_some_and(|t| t.purpose.edits());
        match edits && !failpoint::mutant("C21-edits") {
            true => Replaces::InPlace,
            false => Replaces::Whole,
        }
    }

    /// Whether a file may get another name, by a rename or link (`over`: what has the name now is
    /// replaced), for the thread `by`. A refusal is told, counted and remembered.
    pub(super) fn check_named(
        &self,
        by: u32,
        file: &File,
        (to, policy): (&Dentry, &Policy),
        over: bool,
    ) -> OpResult<()> {
        if policy.guard == Guard::None || failpoint::mutant("C21") {
            return Ok(());
        }
        let len = file.metadata().map_err(|e| errno_of(&e))?.len();
        let verdict = examine(policy.guard, file, len).map_err(|e| errno_of(&e))?;
        judge(policy.guard, &verdict, Replaces::Whole, policy.allow_empty)
            .decide(|| match over {
                true => self.verdict_on_current(to, policy.guard),
                false => Ok(None),
            })?
            .map_err(|v| self.refuse(to, Abort::Guard(v.to_string()), by))?;
        self.count_malformed(matches!(verdict, Verdict::Malformed(_)));
        Ok(())
    }

    /// Content was published that its guard finds odd.
    pub(super) fn count_malformed(&self, is_malformed: bool) {
        self.lock().counters.malformed += u64::from(is_malformed);
    }

    /// Whether the guard lets a name have what was fsync'd. If not, all that was staged is kept for
    /// rejected.
    pub(super) fn permits_fsynced(
        &self,
        id: TxnId,
        staging: &Staging,
        dentry: &Dentry,
        policy: &Policy,
    ) -> bool {
        if policy.guard == Guard::None {
            return true;
        }
        let (verdict, how) = {
            let content = staging.lock();
            let len = content.fsynced_len();
            let file = &*content.readable().file;
            let verdict = len.and_then(|len| examine(policy.guard, file, len).ok());
            (verdict, self.replaces(id, &content))
        };
        verdict.is_some_and(|new| {
            judge(policy.guard, &new, how, policy.allow_empty)
                .decide(|| self.verdict_on_current(dentry, policy.guard))
                .is_ok_and(|permitted| permitted.is_ok())
        })
    }

    /// A killed writer, or one that left half a document, had called fsync: what it made durable,
    /// or more if the guard permits, becomes the version (C7).
    pub(super) fn rescue(&self, id: TxnId, staging: &Staging) {
        let (dentry, policy, then) = {
            let state = self.lock();
            let Some(txn) = state.txns.get(&id) else {
                return;
            };
            if txn.death().is_none() && txn.preparation.refusal().is_none() {
                return;
            }
            let then = txn.promise.current_at_fsync();
            (txn.dentry().clone(), txn.policy.clone(), then)
        };
        // Somebody has committed the name since the fsync: that is newer.
        let current = self.current_if_any(&mut self.lock(), &dentry);
        let by_parts = staging.lock().is_by_parts();
        let edited = self.edited(&mut self.lock(), id);
        if current != Ok(then) && edited.filter(|_| by_parts).is_none() {
            return;
        }
        let prepare = || self.prepare_content(id, staging, &dentry, &policy, (false, true));
        let mut ready = prepare();
        if ready.is_err()
            && self.permits_fsynced(id, staging, &dentry, &policy)
            && staging.lock().cut_back_to_fsynced()
        {
            ready = prepare();
        }
        let mut state = self.lock();
        if let (Ok(ready), Some(txn)) = (ready, state.txns.get_mut(&id)) {
            txn.preparation.finish(ready, false);
            txn.participants.forgive_deaths();
            let path = self.show(&state, &dentry);
            log::info!("{path}: its writer was ended, but what it had fsync'd is kept");
        }
    }

    /// What the guard says of the version that would be replaced.
    fn verdict_on_current(&self, dentry: &Dentry, guard: Guard) -> OpResult<Option<Verdict>> {
        let fd = {
            let mut state = self.lock_materialized(dentry)?;
            let Some(id) = self.current_if_any(&mut state, dentry)? else {
                return Ok(None);
            };
            match state.nodes.get(id) {
                Some(node) if node.kind == NodeKind::File => state.nodes.fd(id)?,
                _ => return Ok(None),
            }
        };
        let file = at::reopen_quietly(&*fd)?;
        let len = file.metadata().map_err(|e| errno_of(&e))?.len();
        examine(guard, &file, len)
            .map(Some)
            .map_err(|e| errno_of(&e))
    }
}
