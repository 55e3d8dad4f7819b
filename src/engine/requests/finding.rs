//! Lookups that wait for nobody but a close that is about to be completed, and what the kernel may keep of their answers.

use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::engine::admin::virtualdir;
use crate::engine::base::lines;
use crate::engine::base::state::sleep_until;
use crate::engine::descriptions::retries;
use crate::engine::meaning::resolve;
use crate::engine::meaning::resolve::{Resolved, attr_counted};
use crate::engine::{Engine, STABLE, State};
use crate::namespace::NodeKind;
use crate::rules::{Creation, Mode};
use crate::runtime::Awaited;
use crate::sys::failpoint;
use crate::types::{Attr, Caller, Dentry, NodeId, OpResult, now_ns};

pub fn lookup_waiting(engine: &Arc<Engine>, caller: Caller, dentry: &Dentry) -> OpResult<Attr> {
    loop {
        let mut state = engine.lock();
        match resolve::resolve(engine, &mut state, caller, dentry, true)? {
            Resolved::Node(id) => {
                count_lookup(&mut state, caller, dentry, id);
                match attr_counted(engine, state, id) {
                    // Not once more to what has ended.
                    Err(Errno::STALE) => retries::leave_retry_at(engine, caller.tid, id),
                    other => return other,
                }
            }
            Resolved::Wait(deadline) => {
                sleep_until(&mut state, &[Awaited::Name(dentry.clone())], deadline);
            }
        }
    }
}

pub fn try_lookup(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    dentry: &Dentry,
) -> OpResult<Option<NodeId>> {
    match resolve::resolve(engine, state, caller, dentry, true)? {
        Resolved::Node(id) => {
            count_lookup(state, caller, dentry, id);
            Ok(Some(id))
        }
        Resolved::Wait(_) => Ok(None),
    }
}

pub fn count_lookup(state: &mut State, caller: Caller, dentry: &Dentry, id: NodeId) {
    if let Some(node) = state.nodes.get_mut(id) {
        node.lookups += 1;
    }
    if state.walks.lookups.len() > 8192 {
        state.walks.lookups.clear();
    }
    state.walks.lookups.insert(caller.tid, (dentry.clone(), id));
}

impl Engine {
    /// The kernel gives back lookups.
    pub fn forget(&self, id: NodeId, count: u64) {
        if virtualdir::is_virtual(id) {
            return;
        }
        let mut state = self.lock();
        let fd = state.nodes.forget(id, count);
        drop(state);
        self.defer_close(fd);
    }
}

/// A lookup is about to be answered at once, by the thread that takes requests: the kernel may keep the name of a file that nobody
/// writes. (An answer that comes late might replace a newer one.)
pub fn keep_file(engine: &Engine, dentry: &Dentry, attr: &mut Attr) {
    let is_file = FileType::from_raw_mode(attr.stat.st_mode) == FileType::RegularFile;
    // Of an empty one nobody knows yet what it will be, and several names of one file go different ways.
    let is_one = attr.stat.st_nlink == 1 && attr.stat.st_size > 0;
    // What changes all the time would have to be dropped all the time.
    let changed =
        i128::from(attr.stat.st_ctime) * 1000 + i128::from(attr.stat.st_ctime_nsec / 1_000_000);
    let rests = i128::from(failpoint::number("COMMITFS_KEEP_AFTER_MS", 100));
    let is_one = is_one && changed + rests <= i128::from(now_ns() / 1_000_000);
    if !is_file || !is_one || attr.ttl != STABLE || failpoint::feature_off("kept_files") {
        return;
    }
    let mut state = engine.lock();
    if state.nodes.kept_names.can_drop() && is_at_rest(engine, &state, dentry, attr.ino) {
        state.nodes.kept_names.keep(attr.ino);
        attr.name_ttl = STABLE;
    }
}

/// Whether a name means this very version to everybody, and whoever changes that does so by a walk or is noticed.
pub fn is_at_rest(engine: &Engine, state: &State, dentry: &Dentry, id: NodeId) -> bool {
    let Some(node) = state.nodes.get(id) else {
        return false;
    };
    let is_version = node.kind == NodeKind::File
        && node.at.as_ref() == Some(dentry)
        && !(node.superseded || node.unlinked || node.nameless || node.dead)
        && node.covered == 0
        && node.forwarded.is_none()
        && node.shown_as.is_none();
    let is_still = node.direct == 0
        && !node.written_in_place
        && !node.added_to
        && !node.grows()
        && node.unwritten.is_none();
    let is_nobodys = state.txns.all_at(dentry).next().is_none()
        && state.names.leaders(dentry).is_empty()
        && state.names.appenders(dentry).is_empty()
        && !state.names.is_claimed(dentry)
        && !state.files.was_locked(state.file_of(id));
    let is_nobodys = is_nobodys || failpoint::mutant("C1-kept-open");
    let is_paused = state.nodes.kept_names.is_paused(id);
    if !is_version || !is_still || !is_nobodys || is_paused || state.unmount.is_under_way() {
        return false;
    }
    let policy = engine.policy(state, dentry, Creation::default());
    // Under such a rule it depends on who asks.
    let is_pinned = policy.pinned().is_some() && !failpoint::mutant("C23-pin-kept");
    policy.mode == Mode::Atomic && !lines::watches(&policy) && !is_pinned
}
