//! Opening: readers get a version, writers a transaction with a node of its own.
//!
//! A writer must not share the readers' node: its O_TRUNC and its pages would show through to
//! them. So an open for writing that arrives at a version's node is refused with ESTALE, the VFS
//! looks the path up once more, and the lookup of that thread answers the private node (see
//! `docs/design.md`, "The second lookup"). Programs never see the ESTALE.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use rustix::io::Errno;

use self::beginning::Beginning;
use super::checkpoint::tell_begun;
use super::handle::{StagedFile, VersionReader};
use super::opening::{Goal, OpenRequest, OpenStep, Opened, Pass, PendingOpen, Way, writes};
use super::retries::Arrival;
use super::shared::{is_database, is_edit, is_outsider};
use super::{Engine, State, resolve, retries, rounds, virtualdir};
use crate::file::Opening;
use crate::namespace::{Node, NodeKind, Shown};
use crate::rules::{Creation, Mode as RuleMode, Stream};
use crate::sys::{at, failpoint, proc};
use crate::txn::{Begun, Content};
use crate::types::{Caller, Dentry, HandleId, NodeId, OpResult, TxnId};

mod beginning;
mod creating;
mod direct;
mod passing;

pub use creating::{CreateRequest, Created};
pub use passing::give_up;
pub(super) use passing::look_at_passed;
use passing::of_direct;

/// Files up to this size are read uncached, where the kernel allows that together with mmap.
const UNCACHED: u64 = 64 << 10;

impl Engine {
    /// Opens a node that a lookup has found.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        request: OpenRequest,
        done: impl FnOnce(OpResult<Opened>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(self.virtual_open(node, request.flags));
        }
        if self.is_watch_helper(caller) {
            return done(Ok(self.watch_helper_open()));
        }
        if failpoint::number("COMMITFS_OPEN_DELAY_MS", 0) == 0 {
            return retries::open_at_last(self, caller, node, request, done);
        }
        let engine = self.clone();
        self.pool.run(move || {
            failpoint::delay("COMMITFS_OPEN_DELAY_MS");
            retries::open_at_last(&engine, caller, node, request, move |opened| {
                if matches!(opened, Err(Errno::STALE)) {
                    // It is on its second lookup so much later.
                    failpoint::delay("COMMITFS_OPEN_DELAY_MS");
                }
                done(opened);
            });
        });
    }

    pub(super) fn open_looked_up(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        request: OpenRequest,
        done: impl FnOnce(OpResult<Opened>) + Send + 'static,
    ) {
        match retries::arrive(self, caller, node, Goal::Open(request.flags)) {
            Arrival::Opened(opened) => done(Ok(opened)),
            _ => self.open_arrived(caller, node, request, done),
        }
    }

    pub(super) fn open_arrived(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        request: OpenRequest,
        done: impl FnOnce(OpResult<Opened>) + Send + 'static,
    ) {
        self.meet(caller, request.flags);
        if self.is_dirty(node) {
            let engine = self.clone();
            return self.pool.run(move || match engine.materialize(node) {
                Ok(()) => engine.open_looked_up(caller, node, request, done),
                Err(errno) => done(Err(errno)),
            });
        }
        let adds = request.flags.contains(OFlags::APPEND) && !request.flags.contains(OFlags::TRUNC);
        if adds && self.has_json_lines_to_learn(node) {
            let engine = self.clone();
            return self.pool.run(move || {
                // What can't be read is opened as a document.
                engine.learn_json_lines(node).ok();
                engine.open_materialized(caller, node, request, done);
            });
        }
        if self.has_to_come_out(caller, node, request.flags) {
            let engine = self.clone();
            return self.pool.run(move || {
                // Should the disk fail, the version that is there is opened as any other.
                engine.checkpoint_all().ok();
                engine.open_materialized(caller, node, request, done);
            });
        }
        self.open_materialized(caller, node, request, done);
    }

    fn open_materialized(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        request: OpenRequest,
        done: impl FnOnce(OpResult<Opened>) + Send + 'static,
    ) {
        match self.open_now(caller, node, request.flags) {
            Ok(OpenStep::Done(opened)) if self.dirty_editor(opened.handle).is_some() => {
                let engine = self.clone();
                self.pool
                    .run(move || done(engine.materialize_editor(opened)));
            }
            Ok(OpenStep::Done(opened)) => match self.grown_in_place(opened.handle) {
                Some(file) => {
                    let engine = self.clone();
                    self.pool
                        .run(move || done(engine.end_growing(file).map(|()| opened)));
                }
                None => done(Ok(opened)),
            },
            Ok(OpenStep::Wait(dentry)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    let opened = engine.open_waiting(caller, node, &dentry, request.flags);
                    done(opened.and_then(|opened| engine.materialize_editor(opened)));
                });
            }
            Ok(OpenStep::Undecided(txn)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    engine.await_decision(txn);
                    engine.open_looked_up(caller, node, request, done);
                });
            }
            Ok(OpenStep::InUse(txn)) => {
                let engine = self.clone();
                self.pool.run(
                    move || match engine.join_emptied(caller, txn, request.flags) {
                        Err(Errno::STALE) => engine.open_looked_up(caller, node, request, done),
                        opened => done(opened),
                    },
                );
            }
            Err(e) => done(Err(e)),
        }
    }

    /// Whether what was committed under a direct name is still to be brought into the backing
    /// directory: it was renamed to it, say. Only there it is shared.
    fn has_to_come_out(&self, caller: Caller, id: NodeId, flags: OFlags) -> bool {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(node) = state.nodes.get(id).filter(|n| n.kind == NodeKind::File) else {
            return false;
        };
        let looked_up = resolve::looked_up(state, caller.tid, id);
        let Some(dentry) = looked_up.or(node.at.as_ref()) else {
            return false;
        };
        let is_pending = state.pending.get(dentry.dir, &dentry.name).is_some();
        if !is_pending || node.direct > 0 || failpoint::mutant("C14") {
            return false;
        }
        let dentry = dentry.clone();
        self.policy(state, &dentry, Creation::default()).mode == RuleMode::Direct
            || self.is_companion(state, &dentry, flags)
            || is_edit(flags)
                && is_database(state, id) == Ok(true)
                && !failpoint::mutant("C14-in-place")
    }

    /// See [`Engine::materialize_base`].
    fn materialize_editor(self: &Arc<Self>, opened: Opened) -> OpResult<Opened> {
        let Some(txn) = self.dirty_editor(opened.handle) else {
            return Ok(opened);
        };
        let settled = self.materialize_base(txn);
        settled.map(|()| opened).inspect_err(|_| {
            // The kernel closes nothing that it was not given.
            let node = self.lock().txns.get(&txn).map(|t| t.node);
            if let Some(node) = node {
                self.release(node, opened.handle, None);
            }
        })
    }

    fn open_now(&self, caller: Caller, id: NodeId, flags: OFlags) -> OpResult<OpenStep> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(txn) = state.deciding_at(id) {
            return Ok(OpenStep::Undecided(txn));
        }
        // An open through a path is looked up right before; one through a magic link is not.
        let looked_up = resolve::looked_up(state, caller.tid, id).cloned();
        state.lookups.remove(&caller.tid);
        let note = self.take_pending_open(state, caller.tid, Goal::Open(flags));
        if let Some(note) = note.as_ref().filter(|n| n.old == id && !n.looked_up) {
            return self.open_unwalked(state, caller, note, flags);
        }
        let node = state.nodes.get(id).ok_or(Errno::STALE)?;
        if let NodeKind::Private(txn) = node.kind
            && state.txns.contains_key(&txn)
        {
            let walked = looked_up;
            let opened = self.open_private(state, caller, txn, (flags, note), walked.as_ref());
            // It may have another name by now than the one that its opener looks up once more.
            if let Some(note) = state.pending_opens.get_mut(&caller.tid)
                && let Some(walked) = walked
            {
                note.dentry = walked;
            }
            return opened;
        }
        if let Some(prepared) = note.and_then(|n| n.own()) {
            self.drop_unopened(state, prepared);
        }
        let node = state.nodes.get(id).ok_or(Errno::STALE)?;
        if node.dead {
            let dentry = looked_up.or_else(|| node.at.clone());
            return self.open_gone(state, caller, id, dentry, flags);
        }
        match node.kind {
            NodeKind::Dir => return Err(Errno::ISDIR),
            NodeKind::Special => return Err(Errno::NXIO),
            NodeKind::Private(_) | NodeKind::File => {}
        }
        let dentry = looked_up.or_else(|| node.at.clone());
        if self.opens_direct(state, id, dentry.as_ref(), flags)? {
            return self
                .open_direct(state, caller, id, flags)
                .map(OpenStep::Done);
        }
        if !writes(flags) {
            return self
                .open_version(state, caller, id, dentry.as_ref(), flags)
                .map(OpenStep::Done);
        }
        let dentry = dentry.ok_or(Errno::STALE)?;
        if flags.contains(OFlags::APPEND) && !flags.contains(OFlags::TRUNC) {
            let policy = self.policy(state, &dentry, Creation::default());
            let adds = self
                .adds_lines(state, id, &policy)
                .filter(|_| !state.unmount.is_forced());
            if let Some(stream) = adds {
                return self
                    .open_appender(state, caller, id, dentry, (flags, stream))
                    .map(OpenStep::Done);
            }
        }
        self.open_for_writing(state, caller, id, dentry, flags, false)
    }

    /// At the node of a transaction that has committed nothing and ended since it was looked up. The
    /// kernel looks it up once more only: whoever it is has to be served then.
    fn open_gone(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        dentry: Option<Dentry>,
        flags: OFlags,
    ) -> OpResult<OpenStep> {
        let dentry = dentry.ok_or(Errno::STALE)?;
        let policy = self.policy(state, &dentry, Creation::default());
        let adds = flags.contains(OFlags::APPEND) && super::lines::by_lines(&policy);
        if !writes(flags) || policy.mode == RuleMode::Direct || adds {
            return Err(self.retry_anew(state, caller.tid, (dentry, id), Goal::Open(flags)));
        }
        self.open_for_writing(state, caller, id, dentry, flags, false)
    }

    /// A reader of a version.
    pub(super) fn open_version(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        dentry: Option<&Dentry>,
        flags: OFlags,
    ) -> OpResult<Opened> {
        let read = Shown::open(&state.nodes, id, self.reading(flags))?;
        if let Some(dentry) = dentry {
            self.note_read(state, caller, dentry, Some((id, &read.file)));
        }
        let node = state.nodes.get(id).ok_or(Errno::STALE)?;
        let len = read.file.metadata().map_or(u64::MAX, |m| m.len());
        let locked = state.files.was_locked(state.file_of(id));
        let direct_io = (len <= UNCACHED && self.uncached())
            || locked
            || (self.strangers.may_empty(node.at.as_ref()) && self.uncached())
            || self.may_grow(state, node, &read.file, len);
        let mut pass = Pass::Beside;
        if let (Some(dentry), true) = (dentry, !direct_io && !self.config.noatime) {
            let policy = self.policy(state, dentry, Creation::default());
            pass = passing::of_version(&read, &policy, || is_database(state, id))?;
        }
        let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
        node.readers += 1;
        node.cached |= !direct_io;
        let (node, passes) = (id, AtomicBool::default());
        let handle = state.add_handle(Arc::new(VersionReader { node, read, passes }));
        Ok(Opened {
            handle,
            keep_cache: true,
            // A lock may move this very description forward to a newer version: what the node's
            // pages hold would be in the way (C12). And some empty this very node.
            direct_io,
            no_flush: !locked,
            pass,
        })
    }

    /// The backing file of a description, for the kernel, which reads that by itself from then on. BADF if it can't be.
    pub fn pass(&self, handle: HandleId) -> OpResult<Arc<File>> {
        let mut state = self.lock();
        let file = state.handles.get(handle).ok_or(Errno::BADF)?.pass();
        state.metrics.passed += u64::from(file.is_some());
        file.ok_or(Errno::BADF)
    }

    /// Whether records may be appended while it is read: the kernel's page with the old end would
    /// show zeros in their place (C10).
    fn may_grow(&self, state: &State, node: &Node, file: &File, len: u64) -> bool {
        if node.grows() {
            return true;
        }
        // Without mmap a reader is better off with a version that stays as it is: see `hold_end`.
        let Some(dentry) = node.at.as_ref().filter(|_| self.uncached()) else {
            return false;
        };
        let mut last = [0];
        let read = file.read_at(&mut last, len.saturating_sub(1));
        let ends_a_line = read.is_ok() && matches!(last, [b'\n' | b'\r']);
        ends_a_line && super::lines::by_lines(&self.policy(state, dentry, Creation::default()))
    }

    /// A truncate(2) at a version's node: like an open for writing, it is sent round.
    pub(super) fn begin_truncate(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        dentry: Dentry,
    ) -> OpResult<TxnId> {
        // Not the node the caller came by: another version may have been committed since.
        let base = self.current_if_any(state, &dentry)?.ok_or(Errno::NOENT)?;
        let txn = self.begin_on(state, dentry.clone(), Begun::Edit(base))?;
        if let Some(txn) = state.txns.get_mut(&txn) {
            txn.participants.expect_thread(caller.tid);
        }
        self.note_begin(state, caller.tid, txn);
        if caller.tid == 0 {
            return Ok(txn);
        }
        let way = Way::Own { txn, empties: None };
        let note = PendingOpen::new(dentry, id, Goal::Truncate, way);
        state.pending_opens.insert(caller.tid, note);
        Err(Errno::STALE)
    }

    /// An open that arrives at a transaction's private node.
    fn open_private(
        &self,
        state: &mut State,
        caller: Caller,
        id: TxnId,
        (flags, note): (OFlags, Option<PendingOpen>),
        walked: Option<&Dentry>,
    ) -> OpResult<OpenStep> {
        let prepared = note.as_ref().and_then(PendingOpen::own);
        let fresh = prepared == Some(id);
        match note.map(|n| n.way) {
            Some(Way::Own { empties, .. }) if fresh => {
                resolve::has_walked(state, id, walked);
                if let Some(emptied) = empties.and_then(|own| state.txns.get_mut(&own)) {
                    emptied.note_emptied(id);
                }
            }
            _ => prepared
                .into_iter()
                .for_each(|prepared| self.drop_unopened(state, prepared)),
        }
        let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
        if let Some(dentry) = walked.cloned()
            && !fresh
            && is_outsider(state, txn, caller)
        {
            // It was everybody's when it was looked up: the next lookup finds what is.
            let node = txn.node;
            if writes(flags) {
                return self.open_for_writing(state, caller, node, dentry, flags, false);
            }
            return Err(self.retry_anew(state, caller.tid, (dentry, node), Goal::Open(flags)));
        }
        let staging = txn.staging.clone();
        let dentry = txn.dentry().clone();
        let node = txn.node;
        let (common, shown) = (txn.visibility.is_common(), txn.purpose.shown());
        // What others write into the file beside an editor becomes part of what it has.
        let keep_cache = !txn.purpose.edits();
        if !writes(flags) {
            self.note_staged_read(state, caller, id);
            let opener = proc::tgid(caller.tid).unwrap_or(caller.tid);
            let handle = state.add_handle(Arc::new(StagedFile {
                txn: id,
                shown,
                staging,
                writes: false,
                opening: Opening::with(flags & proc::HOW, (opener, caller.tid)),
            }));
            return Ok(OpenStep::Done(Opened {
                handle,
                keep_cache,
                // What its writers write goes by the kernel's pages.
                direct_io: self.uncached(),
                // It may become a database's, whose locks go with any close.
                no_flush: !common,
                pass: Pass::Beside,
            }));
        }
        // Emptying a name through its path is a transaction of its own; through /proc/self/fd it
        // is the same file description's.
        if !fresh && flags.contains(OFlags::TRUNC) && walked.is_some() {
            return self.open_for_writing(state, caller, node, dentry, flags, false);
        }
        if !fresh && flags.contains(OFlags::TRUNC) {
            return self.empty_and_join(state, caller, id, flags);
        }
        self.join(state, caller, id, flags).map(OpenStep::Done)
    }

    /// O_TRUNC through a descriptor of the transaction itself: what it has staged is emptied, as soon
    /// as nobody is at it.
    pub(super) fn empty_and_join(
        &self,
        state: &mut State,
        caller: Caller,
        id: TxnId,
        flags: OFlags,
    ) -> OpResult<OpenStep> {
        let staging = state.txns.get(&id).ok_or(Errno::STALE)?.staging.clone();
        let Some(mut content) = staging.try_lock() else {
            return Ok(OpenStep::InUse(id));
        };
        self.empty_staged(state, id, &mut content)?;
        self.join(state, caller, id, flags).map(OpenStep::Done)
    }

    /// Joins the transaction of an emptied file once whoever was at it is done. Waits, holding nothing.
    fn join_emptied(&self, caller: Caller, id: TxnId, flags: OFlags) -> OpResult<Opened> {
        let staging = self.lock().txns.get(&id).map(|txn| txn.staging.clone());
        let staging = staging.ok_or(Errno::STALE)?;
        let mut content = staging.lock();
        let mut state = self.lock();
        self.empty_staged(&mut state, id, &mut content)?;
        self.join(&mut state, caller, id, flags)
    }

    fn empty_staged(&self, state: &mut State, id: TxnId, content: &mut Content) -> OpResult<()> {
        self.unprepare(state, id);
        let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
        txn.purpose.note_change();
        content.truncate(0)
    }

    /// One more open description on a transaction.
    pub(super) fn join(
        &self,
        state: &mut State,
        caller: Caller,
        id: TxnId,
        flags: OFlags,
    ) -> OpResult<Opened> {
        let pid = proc::tgid(caller.tid).unwrap_or(caller.tid);
        let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
        if txn.phase.is_closing() && !failpoint::mutant("C9-deciding") {
            return Err(Errno::STALE);
        }
        if !txn.phase.is_open() {
            txn.participants.open(pid, caller.tid);
            rounds::enter(self, state, id);
            let txn = &state.txns[&id];
            tell_begun(self, state, txn)?;
            failpoint::crash_point("begin-journalled");
        }
        let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
        let first = !txn.phase.is_open();
        let base = txn.purpose.base();
        // A new text becomes visible by its first line as long as who joins appends.
        let adds = flags.contains(OFlags::APPEND) && !flags.contains(OFlags::TRUNC);
        let adds = adds && !failpoint::mutant("C10-joined");
        let goes_on = adds || (txn.purpose.appends() && flags.contains(OFlags::APPEND));
        if !first && !goes_on {
            txn.purpose.end_stream();
        }
        let streams = txn.purpose.stream().is_some();
        txn.phase.open();
        txn.slot.note_open(first);
        txn.preparation.note_open();
        let maps = flags.contains(OFlags::RDWR);
        txn.participants.join(pid, caller.tid, maps);
        let pass = passing::of_writer(&self.store, state, (id, first), (caller.tid, flags));
        let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
        let staging = txn.staging.clone();
        let shown = txn.purpose.shown();
        if let Some(base) = base {
            // It may have come without a walk.
            state.nodes.drop_name(base);
        }
        let handle = state.add_handle(Arc::new(StagedFile {
            txn: id,
            shown,
            staging,
            writes: true,
            opening: Opening::with(flags, (pid, caller.tid)),
        }));
        Ok(Opened {
            handle,
            keep_cache: true,
            // As for small readers: a lock may give who writes another base, also after emptying
            // the file. And before it writes to pages, the kernel asks for capabilities.
            direct_io: streams || self.uncached(),
            no_flush: false,
            pass,
        })
    }

    /// A writer at a node that isn't its own: sends it round to a private one. `waited`: it has
    /// waited for the writer slot, or given up doing so.
    pub(super) fn open_for_writing(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        dentry: Dentry,
        flags: OFlags,
        waited: bool,
    ) -> OpResult<OpenStep> {
        if state.unmount.is_forced() {
            return Err(Errno::ROFS);
        }
        // Not the node the caller came by: another version may have been committed since.
        let base = self.current_if_any(state, &dentry)?;
        let edits = base.is_some() && !flags.intersects(OFlags::TRUNC | OFlags::APPEND);
        let takes_slot = edits && !self.is_empty_file(state, base);
        let beside = takes_slot && self.slot_holders(state, &dentry).next().is_some();
        if takes_slot && !waited && self.must_wait(state, caller, &dentry) {
            if flags.contains(OFlags::NONBLOCK) {
                return Err(Errno::AGAIN);
            }
            return Ok(OpenStep::Wait(dentry));
        }
        let own = match state.nodes.get(id).map(|n| n.kind) {
            Some(NodeKind::Private(own)) => state.txns.get(&own),
            _ => None,
        };
        let own = own.filter(|txn| !is_outsider(state, txn, caller));
        let own = own.map(|txn| txn.id);
        if base.is_none() && own.is_none() && caller.tid != 0 {
            // It is gone. Whether it is to be made anew, the kernel knows.
            return Err(self.retry_anew(state, caller.tid, (dentry, id), Goal::Open(flags)));
        }
        let policy = self.policy(state, &dentry, Creation::default());
        let shares = edits && !takes_slot && caller.tid != 0 && self.shares(&policy, flags);
        if let Some(common) = self.common_at(state, &dentry, base).filter(|_| shares) {
            return Err(self.retry_to_common(state, caller, (dentry, id), common, flags)?);
        }
        let txn = self.begin(
            state,
            Beginning {
                reading: self.reading(flags),
                dentry: dentry.clone(),
                begun: Begun::by_open(base, false, flags.contains(OFlags::TRUNC)),
                policy,
                fresh: None,
                // Nothing is committed yet: it is the file that the caller has just created.
                like: base.is_none().then_some(id),
            },
        )?;
        if let Some(t) = state.txns.get_mut(&txn) {
            if takes_slot {
                t.slot.take(waited && beside);
            }
            t.participants.expect(proc::tgid(caller.tid).unwrap_or(0));
            let how = (flags.contains(OFlags::TRUNC), flags.contains(OFlags::RDWR));
            let streams = super::lines::is_stream_by_rule(&t.policy, how);
            let stream = streams.then_some(Stream::Lines);
            t.purpose.note_lines(false, stream);
            if shares {
                t.visibility.make_common();
            }
        }
        self.note_begin(state, caller.tid, txn);
        if flags.contains(OFlags::TRUNC) {
            self.drop_set_id(state, caller, txn)?;
        }
        if caller.tid == 0 {
            return self
                .open_shared(state, caller, txn, flags)
                .map(OpenStep::Done);
        }
        if shares {
            return Err(self.retry_to_common(state, caller, (dentry, id), txn, flags)?);
        }
        let way = Way::Own { txn, empties: own };
        let note = PendingOpen::new(dentry, id, Goal::Open(flags), way);
        state.pending_opens.insert(caller.tid, note);
        Err(Errno::STALE)
    }

    /// Whoever need not wait for the holder waits for no others who do: the holder may be waiting
    /// for its child.
    fn must_wait(&self, state: &State, caller: Caller, dentry: &Dentry) -> bool {
        let queued = state.names.has_queue(dentry);
        let held = self.slot_holders(state, dentry).next().is_some();
        self.slot_holder(state, caller, dentry, None).is_some() || (queued && !held)
    }

    fn is_empty_file(&self, state: &State, node: Option<NodeId>) -> bool {
        node.and_then(|n| state.nodes.fd(n).ok())
            .and_then(|fd| at::stat(&*fd).ok())
            .is_none_or(|s| s.st_size == 0)
            && node
                .and_then(|n| state.nodes.get(n))
                .is_none_or(|n| n.unwritten.is_none())
    }

    /// A change of the content by a process without CAP_FSETID clears the set-id bits; the daemon,
    /// who makes the change on its behalf, has the capability.
    pub(super) fn drop_set_id(&self, state: &State, caller: Caller, id: TxnId) -> OpResult<()> {
        let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
        let fd = state.nodes.fd(txn.node)?;
        super::setid::drop_set_id(&*fd, caller, Some(&txn.staging))
    }
}
