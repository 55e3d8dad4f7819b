//! Errors that nobody may have seen (C22): shells ignore what close() says. They are shown by
//! status and by an attribute of the path, and outlive the mount until somebody has read them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::engine::base::advice;
use crate::engine::{Engine, State};
use crate::store::{Rejected, Unseen, id_name};
use crate::sys::failpoint;
use crate::txn::Abort;
use crate::types::{Dentry, TxnId, now_ns};

/// More than this are not kept; the oldest go first.
const MOST: usize = 10_000;
/// Content that isn't in rejected after this time isn't on its way there any more.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub struct ErrorLog {
    /// For status, newest last.
    all: VecDeque<Unseen>,
    /// They are not written down as they are.
    has_changed: bool,
}

impl ErrorLog {
    pub(in crate::engine) fn add(&mut self, unseen: Unseen) {
        self.all.push_back(unseen);
        while self.all.len() > MOST {
            self.all.pop_front();
        }
        self.has_changed = true;
    }

    /// All that were kept, read or not.
    pub(in crate::engine) fn all(&self) -> impl Iterator<Item = &Unseen> {
        self.all.iter()
    }

    /// Those that nobody has read.
    pub(in crate::engine) fn unread(&self) -> impl Iterator<Item = &Unseen> {
        self.all.iter().filter(|u| !u.read)
    }

    /// What was told counts as read.
    fn mark_read(&mut self) {
        for unseen in &mut self.all {
            unseen.read |= unseen.told;
        }
        self.has_changed = true;
    }

    /// Errors are told to somebody, given what rejected holds. Of content that is on its way there nobody can be told yet
    /// how to have it back: that error is told again.
    pub(in crate::engine) fn note_told(&mut self, rejected: &[Rejected]) {
        let now = now_ns();
        for unseen in self.all.iter_mut().filter(|u| !u.told) {
            let is_there = |id: &String| rejected.iter().any(|r| r.is_listed_as(id));
            unseen.told = unseen.rejected.as_ref().is_none_or(is_there)
                || now - unseen.time_ns > ON_ITS_WAY.as_nanos() as i64
                || failpoint::mutant("C22-on-its-way");
        }
    }
}

impl State {
    /// What was rejected just now is all there is of a name (see [`Unseen::resumable`]).
    pub(in crate::engine) fn offer_what_there_is(&mut self, dentry: &Dentry) {
        let told = self.names.error_mut(dentry).into_iter();
        for told in told.chain(self.tally.errors.all.back_mut()) {
            told.resumable = told.rejected.is_some();
        }
    }
}

/// What was to be the version of a name isn't; `rejected` has it, if there was anything.
pub fn remember_error(
    engine: &Engine,
    state: &mut State,
    dentry: &Dentry,
    abort: &Abort,
    (pid, command): (u32, &str),
    rejected: Option<TxnId>,
) {
    if failpoint::mutant("C22") {
        return;
    }
    let path = engine.path_of(state, dentry);
    let mut unseen = Unseen::of(&path, abort.to_string(), pid);
    unseen.command = command.to_owned();
    unseen.rejected = rejected.map(id_name);
    if matches!(abort, Abort::Guard(_)) && rejected.is_none() {
        unseen.remedy = Some(format!(
            "commitfs rules explain {}",
            advice::shell_path(engine, &path)
        ));
    }
    state.names.note_error(dentry, unseen.clone());
    // All of a round is told once.
    let last = state
        .tally
        .errors
        .all
        .back()
        .map(|last| (&last.rejected, &last.reason));
    let is_told = last == Some((&unseen.rejected, &unseen.reason));
    if !(is_told && matches!(abort, Abort::Round(_))) {
        state.tally.errors.add(unseen);
    }
}

/// Content that was kept is gone for good: nobody has asked for that.
pub fn report_dropped(state: &mut State, dropped: &[Rejected], why: &str) {
    for one in dropped {
        let unseen = Unseen::of_dropped(one, why);
        if !failpoint::mutant("C5-drop-told") {
            state.tally.errors.add(unseen);
        }
    }
}

/// Errors that status has shown count as read.
pub fn mark_errors_read(engine: &Engine) {
    let mut state = engine.lock();
    state.tally.errors.mark_read();
    drop(state);
    keep_unread(engine);
}

/// How many nobody has read.
pub fn unread(engine: &Engine) -> usize {
    engine.lock().tally.errors.unread().count()
}

/// Writes down those nobody has read, if that has changed: for the next mount.
pub fn keep_unread(engine: &Engine) {
    // One writer at a time, so that the last list is the one that stays.
    let _turn = engine.turns.unread.lock();
    let mut state = engine.lock();
    if !std::mem::take(&mut state.tally.errors.has_changed) || failpoint::mutant("C22-kept") {
        return;
    }
    let unread: Vec<Unseen> = state.tally.errors.unread().cloned().collect();
    drop(state);
    if let Err(e) = engine.store.keep_unread(&unread) {
        log::error!("errors can't be kept for the next mount: {e}");
        engine.lock().tally.errors.has_changed = true;
    }
}

/// Takes over what nobody has read before the last mount ended.
pub fn take_over_unread(engine: &Engine) {
    let unread = engine.store.kept_unread().unwrap_or_default();
    if !unread.is_empty() {
        log::warn!(
            "{} errors from before this mount, which nobody has read: `commitfs status` shows them",
            unread.len()
        );
    }
    engine.lock().tally.errors.all.extend(unread);
}
