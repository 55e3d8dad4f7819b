//! Which node a name means, and to whom.
//!
//! In this order: the pending open of a writer on its second lookup; a transaction whose staged content the
//! caller sees;
//! an O_EXCL claim; the version committed last; the backing directory.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::deciding::is_due;
use super::probe::Looks;
use super::state::sleep_until;
use super::{Engine, STABLE, State, VOLATILE, virtualdir};
use crate::namespace::{DropNames, NodeKind};
use crate::rules::{Creation, Mode};
use crate::runtime::Awaited;
use crate::sys::{at, failpoint, proc};
use crate::txn::{Last, Transaction, View};
use crate::types::{Attr, Caller, Dentry, HandleId, NodeId, OpResult, TxnId, now_ns};

/// Of how many descriptors at most a lookup looks at each: others wait meanwhile.
const MOST_LOOKS: u64 = 1024;
/// How long a lookup waits for the RELEASE of a close that has surely begun (a watcher woken by
/// IN_CLOSE_WRITE comes before it).
const SURE_WAIT: Duration = Duration::from_millis(50);
/// How long a lookup waits for the RELEASE of a close that may not have been the last.
const UNSURE_WAIT: Duration = Duration::from_millis(5);

/// How long the kernel keeps the attributes of a writer's own node that it has looked up: it looks at
/// permissions before it opens it.
const OPENING: Duration = Duration::from_millis(20);

pub(super) enum Resolved {
    Node(NodeId),
    /// A commit of this name is between FLUSH and RELEASE.
    Wait(Instant),
}

/// As [`Engine::attr_after_lookup`], for who holds the state, which is given back.
fn attr_counted(engine: &Engine, state: MutexGuard<'_, State>, id: NodeId) -> OpResult<Attr> {
    let result = attr_in(engine, state, id);
    if result.is_err() {
        let fd = engine.lock().nodes.forget(id, 1);
        engine.defer_close(fd);
    }
    result
}

/// Attributes of any node, for who holds the state, which is given back.
fn attr_in(engine: &Engine, state: MutexGuard<'_, State>, id: NodeId) -> OpResult<Attr> {
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    let NodeKind::Private(txn) = node.kind else {
        return engine.attr_of(&state, node);
    };
    let Some(txn) = state.txns.get(&txn) else {
        return engine.attr_of(&state, node);
    };
    let staging = txn.staging.clone();
    let fd = state.nodes.fd(id)?;
    let unlinked = txn.is_unlinked();
    // What an editor's node shows otherwise (`shown_number`, lines that are not whole) is asked for.
    let is_plain = txn.purpose.rewrites() && txn.purpose.stream().is_none();
    drop(state);
    // A copy or a guard may hold the content for long; its own attributes are good enough then.
    let mut stat = match staging.try_lock() {
        Some(content) => content.stat()?,
        None => at::stat(&*fd)?,
    };
    if unlinked {
        stat.st_nlink = 0;
    }
    Ok(Attr {
        ino: id,
        stat,
        // A write takes set-id bits away, of which the kernel hears by these alone.
        ttl: match is_plain && stat.st_mode & 0o6000 == 0 {
            true => OPENING,
            false => VOLATILE,
        },
        name_ttl: VOLATILE,
    })
}

impl Engine {
    /// Finds `name` in `dir`; counts as one lookup of the node.
    pub fn lookup(
        self: &Arc<Self>,
        caller: Caller,
        dir: NodeId,
        name: &OsStr,
        done: impl FnOnce(OpResult<Attr>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(dir) || Engine::is_state_dir(dir, name) {
            return done(self.virtual_lookup(caller, dir, name));
        }
        let dentry = Dentry {
            dir,
            name: name.to_owned(),
        };
        let mut state = self.lock();
        if state.may_be_unbound(caller.tid, &dentry) {
            drop(state);
            if let Some(goal) = self.unbound_goal(caller.tid, &dentry) {
                let engine = self.clone();
                return self
                    .pool
                    .run(move || engine.lookup_and_serve(caller, dentry, goal, done));
            }
            state = self.lock();
        }
        match self.try_lookup(&mut state, caller, &dentry) {
            Ok(Some(found)) => {
                let is_claimed = state.names.is_claimed(&dentry);
                match attr_counted(self, state, found) {
                    // Now, as the caller waits.
                    Ok(mut attr) => {
                        if is_claimed {
                            self.note_taken(caller, &dentry);
                        }
                        keep_file(self, &dentry, &mut attr);
                        done(Ok(attr));
                    }
                    // It has committed nothing and ended meanwhile: the name means something else now.
                    Err(Errno::STALE) => {
                        let engine = self.clone();
                        self.pool
                            .run(move || done(engine.lookup_waiting(caller, &dentry)));
                    }
                    Err(e) => done(Err(e)),
                }
            }
            Err(e) => {
                if e == Errno::NOENT {
                    self.note_read(&mut state, caller, &dentry, None);
                }
                drop(state);
                done(Err(e));
            }
            Ok(None) => {
                drop(state);
                let engine = self.clone();
                self.pool
                    .run(move || done(engine.lookup_waiting(caller, &dentry)));
            }
        }
    }

    pub(super) fn lookup_waiting(
        self: &Arc<Self>,
        caller: Caller,
        dentry: &Dentry,
    ) -> OpResult<Attr> {
        loop {
            let mut state = self.lock();
            match self.resolve(&mut state, caller, dentry, true)? {
                Resolved::Node(id) => {
                    self.count_lookup(&mut state, caller, dentry, id);
                    match attr_counted(self, state, id) {
                        // Not once more to what has ended.
                        Err(Errno::STALE) => self.leave_retry_at(caller.tid, id),
                        other => return other,
                    }
                }
                Resolved::Wait(deadline) => {
                    sleep_until(&mut state, &[Awaited::Name(dentry.clone())], deadline);
                }
            }
        }
    }

    fn try_lookup(
        &self,
        state: &mut State,
        caller: Caller,
        dentry: &Dentry,
    ) -> OpResult<Option<NodeId>> {
        match self.resolve(state, caller, dentry, true)? {
            Resolved::Node(id) => {
                self.count_lookup(state, caller, dentry, id);
                Ok(Some(id))
            }
            Resolved::Wait(_) => Ok(None),
        }
    }

    fn count_lookup(&self, state: &mut State, caller: Caller, dentry: &Dentry, id: NodeId) {
        if let Some(node) = state.nodes.get_mut(id) {
            node.lookups += 1;
        }
        if state.lookups.len() > 8192 {
            state.lookups.clear();
        }
        state.lookups.insert(caller.tid, (dentry.clone(), id));
    }

    /// Attributes for a lookup's answer. The node may have been forgotten only after the answer.
    pub(super) fn attr_after_lookup(&self, id: NodeId) -> OpResult<Attr> {
        attr_counted(self, self.lock(), id)
    }

    /// Attributes of any node.
    pub(super) fn attr(&self, id: NodeId) -> OpResult<Attr> {
        attr_in(self, self.lock(), id)
    }

    /// See the module. With `wait`, says when a commit of the name is about to be completed.
    pub(super) fn resolve(
        &self,
        state: &mut State,
        caller: Caller,
        dentry: &Dentry,
        wait: bool,
    ) -> OpResult<Resolved> {
        if let Some(node) = state.end_of_retry(caller.tid, dentry) {
            return Ok(Resolved::Node(node));
        }
        if let Some(node) = self.own_view(state, caller, dentry) {
            return Ok(Resolved::Node(node));
        }
        if let Some(claim) = state.txns.seen_by_all_at(dentry).next() {
            return Ok(Resolved::Node(claim.node));
        }
        if wait
            && !failpoint::mutant("C2-settle")
            && let Some(deadline) = self.about_to_commit(state, dentry)
        {
            return Ok(Resolved::Wait(deadline));
        }
        self.current(state, dentry).map(Resolved::Node)
    }

    /// The current version of a name, or what else stands there.
    pub(super) fn current(&self, state: &mut State, dentry: &Dentry) -> OpResult<NodeId> {
        if let Some(pending) = state.pending.get(dentry.dir, &dentry.name) {
            return Ok(pending.node);
        }
        let dir = self.dir_fd(state, dentry.dir)?;
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
    pub(super) fn current_if_any(
        &self,
        state: &mut State,
        dentry: &Dentry,
    ) -> OpResult<Option<NodeId>> {
        match self.current(state, dentry) {
            Ok(id) => Ok(Some(id)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The staged view of a transaction the caller takes part in.
    fn own_view(&self, state: &mut State, caller: Caller, dentry: &Dentry) -> Option<NodeId> {
        let id = self.own_transaction(state, caller, dentry)?;
        let node = state.txns.get(&id)?.node;
        // Closed, it is waited for like anybody's.
        state.deciding_at(node).is_none().then_some(node)
    }

    /// The newest open transaction of a name that the caller takes part in.
    pub(super) fn own_transaction(
        &self,
        state: &mut State,
        caller: Caller,
        dentry: &Dentry,
    ) -> Option<TxnId> {
        let candidates: Vec<TxnId> = state.txns.at(dentry).map(|t| t.id).collect();
        if candidates.is_empty() || failpoint::mutant("C1-own-view") {
            return None;
        }
        if failpoint::mutant("C1") {
            return candidates.first().copied();
        }
        let tgid = proc::tgid(caller.tid)?;
        candidates.into_iter().find(|id| {
            // What the program sees is what is there, not what it has left behind empty.
            state
                .txns
                .get(id)
                .is_some_and(|txn| sees(state, txn, (tgid, caller.tid)))
                && !self.is_no_op(state, *id)
        })
    }

    /// Until when to wait for a close of this name that is about to be completed.
    fn about_to_commit(&self, state: &State, dentry: &Dentry) -> Option<Instant> {
        let now = Instant::now();
        let followed = state.names.leaders(dentry).iter();
        let followed = followed.filter_map(|id| state.txns.get(id));
        state
            .txns
            .at(dentry)
            .chain(followed)
            .filter_map(|t| {
                if t.phase.is_held() {
                    return is_due(state, t).then_some(now + SURE_WAIT);
                }
                if t.phase.is_closing() {
                    return Some(now + SURE_WAIT);
                }
                let flush = t.preparation.flush()?;
                let life = match flush.last {
                    Last::Surely | Last::Likely => SURE_WAIT,
                    Last::No => UNSURE_WAIT,
                };
                let deadline = flush.at + life;
                (deadline > now && t.preparation.is_prepared()).then_some(deadline)
            })
            .max()
    }

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

    /// Attributes, of an open description where one is given.
    pub fn getattr(&self, caller: Caller, id: NodeId, handle: Option<HandleId>) -> OpResult<Attr> {
        if virtualdir::is_virtual(id) {
            return self.virtual_attr(id);
        }
        let mut attr = match self.attr(id) {
            Err(Errno::STALE) => self.attr_of_gone(id)?,
            found => found?,
        };
        if attr.ttl == OPENING {
            attr.ttl = VOLATILE;
        }
        attr.ino = self.lock().shown_number(id);
        if let Some(length) = self.length_with_tail(caller, id, handle) {
            attr.stat.st_size = i64::try_from(length).unwrap_or(i64::MAX);
            attr.ttl = VOLATILE;
        }
        Ok(attr)
    }

    /// The kernel looks at permissions before it opens what it has looked up. If that has ended
    /// meanwhile without a commit, it is the open that has to send the caller round (see `open_gone`):
    /// it is looked up once more only.
    fn attr_of_gone(&self, id: NodeId) -> OpResult<Attr> {
        let mut state = self.lock();
        let gone = state.nodes.get(id).filter(|n| n.dead);
        let dentry = gone.and_then(|n| n.at.clone());
        let remains = gone.and_then(|n| n.remains.as_deref().copied());
        let dentry = dentry.ok_or(Errno::STALE)?;
        let current = self.current_if_any(&mut state, &dentry)?;
        let current = current.and_then(|id| state.nodes.get(id));
        let ttl = VOLATILE;
        match current.filter(|n| n.kind == NodeKind::File) {
            Some(node) => Ok(Attr {
                ttl,
                ..self.attr_of(&state, node)?
            }),
            // As it was when it went.
            None => Ok(Attr {
                ino: id,
                stat: remains.ok_or(Errno::STALE)?,
                ttl,
                name_ttl: VOLATILE,
            }),
        }
    }

    /// Target of a symlink.
    pub fn readlink(&self, id: NodeId) -> OpResult<Vec<u8>> {
        let fd = self.lock().nodes.fd(id)?;
        Ok(rustix::fs::readlinkat(&*fd, c"", Vec::new())?.into_bytes())
    }
}

/// Whether what a thread of a process finds under the name is the staged content (C1).
pub(super) fn sees(state: &State, txn: &Transaction, (tgid, tid): (u32, u32)) -> bool {
    let open_to_process = txn.is_open_to_its_process();
    match txn.participants.view((tgid, tid), open_to_process) {
        View::Staged => true,
        View::Others => false,
        View::IfInherited => has_inherited(state, txn, tgid),
    }
}

/// Whether a process has a descriptor of the transaction.
fn has_inherited(state: &State, txn: &Transaction, tgid: u32) -> bool {
    let looks = Looks::of(state, txn);
    let ours = |ino, how| looks.are(ino, how);
    proc::holds(tgid, MOST_LOOKS, &ours) == proc::Holding::Yes
}

/// A lookup is about to be answered at once, by the thread that takes requests: the kernel may keep the name of a file that nobody
/// writes. (An answer that comes late might replace a newer one.)
fn keep_file(engine: &Engine, dentry: &Dentry, attr: &mut Attr) {
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
fn is_at_rest(engine: &Engine, state: &State, dentry: &Dentry, id: NodeId) -> bool {
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
    policy.mode == Mode::Atomic && !Engine::watches(&policy)
}

/// The name by which a thread has come to a node, as far as it was looked up: one that the kernel keeps isn't.
pub(super) fn looked_up(state: &State, tid: u32, id: NodeId) -> Option<&Dentry> {
    let (dentry, _) = state.lookups.get(&tid).filter(|(_, found)| *found == id)?;
    let at = state.nodes.get(id).and_then(|n| n.at.as_ref());
    let is_kept = state.nodes.kept_names.is_kept(id) && !failpoint::mutant("C1-kept-lookup");
    (at == Some(dentry) || !is_kept).then_some(dentry)
}

/// A writer has come by on its second lookup, by this name: the kernel has dropped what it found there before. Not if that has been
/// renamed since: then the kernel has moved what it keeps along, and is told as of who has not walked.
pub(super) fn has_walked(state: &mut State, txn: TxnId, walked: Option<&Dentry>) {
    let base = state.txns.get(&txn).and_then(|txn| txn.purpose.base());
    let stays = |id: &NodeId| {
        let at = state.nodes.get(*id).and_then(|node| node.at.as_ref());
        at == walked || failpoint::mutant("C1-kept-walk")
    };
    if let Some(base) = base.filter(stays) {
        state.nodes.kept_names.has_dropped(base);
    }
}

/// The path of a name, relative to the mount point; `None`: its directory is gone.
pub fn path_now(engine: &Engine, dentry: &Dentry) -> Option<std::path::PathBuf> {
    engine.lock().nodes.path(dentry)
}

/// Whether a node is one of a file.
pub fn is_file(engine: &Engine, id: NodeId) -> bool {
    let state = engine.lock();
    let node = state.nodes.get(id);
    node.is_some_and(|node| matches!(node.kind, NodeKind::File | NodeKind::Private(_)))
}

/// Names of files may be kept from now on, as they can be dropped.
pub fn set_dropper(engine: &Engine, dropper: Arc<dyn DropNames>) {
    engine.lock().nodes.kept_names.dropper = Some(dropper);
}
