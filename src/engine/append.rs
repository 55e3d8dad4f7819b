//! Appends by whole records (C10).
//!
//! A file opened with O_APPEND, or a new text stream, is not copied: complete lines go to the end
//! of the current version, in place, each write's lines in one piece. A version that grows by
//! whole records stays the same version, so open readers see the growth. The unfinished rest of a
//! line waits in memory for its newline, an fsync, a close, or one second.
//!
//! Crash argument: the journal says what will be appended, where, and its checksum, before the
//! bytes are written. Recovery takes back what is not all there.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::MutexGuard;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::handle::{Asked, StagedFile, WriteRequest};
use super::opening::{Opened, Pass};
use super::{Engine, State, lines};
use crate::commit::Changeset;
use crate::file::{AppendPlace, Appender, Opening, Unfinished, Unnamed};
use crate::journal::{Edit, FileKey, Record};
use crate::namespace::{Ends, NodeKind, Shown};
use crate::rules::Stream;
use crate::sys::{failpoint, proc};
use crate::txn::{Begun, Ready, Staging, Transaction};
use crate::types::{Caller, Dentry, HandleId, NodeId, OpResult, Seq, TxnId, errno_of};

mod adding;
mod places;
mod reading;
mod sizes;
mod tails;
mod targets;

pub(super) use adding::Appends;
use places::{AppendTarget, Hold};

/// An unfinished line longer than this doesn't wait.
const LONGEST: usize = 1 << 20;
/// A line of JSON, which has to be whole, that is longer than this is none.
const LONGEST_JSON: usize = 16 << 20;

impl Appender {
    /// Whether it ends with half a JSON value, or somebody is at it just now. Does not wait.
    pub(super) fn may_be_half(&self) -> bool {
        self.stream == Stream::Json
            && self
                .inner
                .try_lock()
                .is_none_or(|i| tails::is_half(self, &i))
    }

    /// The description goes on in a transaction.
    fn hand_over(&self, txn: &mut Transaction) {
        // The kernel knows the description by this node.
        txn.purpose.show_as(self.node);
        let Opening { opener, thread, .. } = self.opening;
        txn.participants.take_over((opener, thread));
    }
}

impl Engine {
    /// An appender of a committed version.
    pub(super) fn open_appender(
        &self,
        state: &mut State,
        caller: Caller,
        id: NodeId,
        dentry: Dentry,
        (flags, stream): (OFlags, Stream),
    ) -> OpResult<Opened> {
        let read = Shown::open(&state.nodes, id, self.reading(flags))?;
        state.nodes.drop_name(id);
        let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
        node.readers += 1;
        let opener = proc::tgid(caller.tid).unwrap_or(caller.tid);
        let opening = Opening::with(flags, (opener, caller.tid));
        let appender = Appender::new(id, (true, opening), stream, dentry.clone(), read);
        state.names.enlist(&dentry, &appender);
        let handle = state.add_handle(appender);
        Ok(Opened {
            handle,
            keep_cache: true,
            direct_io: true,
            no_flush: false,
            pass: Pass::Never,
        })
    }

    /// A write through an appending description. On a worker.
    pub(super) fn append_now(
        &self,
        asked: Asked,
        appender: &Appender,
        request: WriteRequest,
        data: &[u8],
    ) -> OpResult<()> {
        let caller = asked.caller;
        let by = proc::tgid(caller.tid).unwrap_or(caller.tid);
        self.give_way(&mut self.lock());
        let mut inner = appender.inner.lock();
        // A stream that goes back is one no longer, and a mapping's pages have their places.
        let WriteRequest {
            offset, writeback, ..
        } = request;
        let goes_on = appender.always || offset == inner.read.length()? + inner.tail.len() as u64;
        let end = lines::whole(data, appender.stream);
        let breaks = match appender.stream {
            Stream::Lines => false,
            Stream::Table => lines::in_blocks(appender.stream, data),
            Stream::Json => {
                let longest = inner.tail.len() + data.len() > LONGEST_JSON;
                longest || !lines::are_json(&inner.tail, &data[..end])
            }
        };
        if inner.left || writeback || !goes_on || breaks {
            drop(inner);
            return self.write_left(asked, appender, request, data);
        }
        if failpoint::mutant("C10-lines") {
            return self.append_records(appender, &mut inner, data);
        }
        if request.kill {
            let gone = super::setid::gone_of(&*inner.read.file, caller);
            super::setid::clear_set_id(&inner.read.file, gone)?;
        }
        if end == 0 {
            let before = inner.tail.len();
            inner.tail.extend_from_slice(data);
            inner.by.insert(by);
            inner.since.get_or_insert_with(Instant::now);
            let long = inner.tail.len() > LONGEST && appender.stream != Stream::Json;
            return if long || appender.opening.sync {
                // A write that fails adds nothing; what others were told of waits on.
                self.flush_tail(appender, &mut inner)
                    .inspect_err(|_| inner.tail.truncate(before))
            } else {
                Ok(())
            };
        }
        let (lines, rest) = data.split_at(end);
        let whole: Vec<u8>;
        let records = if inner.tail.is_empty() {
            lines
        } else {
            whole = [inner.tail.as_slice(), lines].concat();
            &whole
        };
        match self.append_records(appender, &mut inner, records) {
            // Somebody has made it a document.
            Err(Errno::BADMSG) if appender.stream == Stream::Json => {
                drop(inner);
                return self.write_left(asked, appender, request, data);
            }
            other => other?,
        }
        inner.hold(rest, by);
        if appender.opening.sync {
            self.flush_tail(appender, &mut inner)?;
            drop(inner);
            self.checkpoint_all()?;
        }
        Ok(())
    }

    /// A write through a description that adds lines no more: it goes on on a copy.
    fn write_left(
        &self,
        Asked { caller, handle }: Asked,
        appender: &Appender,
        request: WriteRequest,
        data: &[u8],
    ) -> OpResult<()> {
        let WriteRequest {
            offset, writeback, ..
        } = request;
        let (txn, staging) = self.leave_stream(caller, handle, appender, writeback)?;
        self.note_write(txn, caller, offset + data.len() as u64)?;
        let mut content = staging.lock();
        let at_end = appender.always && !writeback;
        let offset = if at_end { content.size()? } else { offset };
        content.write(data, offset)?;
        if request.kill {
            super::setid::drop_set_id(&*content.file, caller, Some(&staging))?;
        }
        Ok(())
    }

    /// Adds `bytes` to the current version, in one piece.
    fn append_records(
        &self,
        appender: &Appender,
        inner: &mut Unfinished,
        bytes: &[u8],
    ) -> OpResult<()> {
        self.making_room(|| self.append_once(appender, inner, bytes))
    }

    /// Adds `bytes` in one piece, or nothing. Holds no lock when it has failed, so that room can be made.
    fn append_once(
        &self,
        appender: &Appender,
        inner: &mut Unfinished,
        bytes: &[u8],
    ) -> OpResult<()> {
        loop {
            let lock = self.appends.lock();
            let mut guard = self.lock();
            match self.target(&mut guard, appender)? {
                Ok(target) => {
                    let (node, dentry) = (target.node, target.dentry.clone());
                    let shown = target.ends.show(target.file.clone());
                    self.add(guard, appender, target, bytes)?;
                    if node != appender.node {
                        inner.read = shown;
                    }
                    if let Some(dentry) = dentry {
                        self.grown(&dentry);
                    }
                    return Ok(());
                }
                Err(hold) => {
                    drop(guard);
                    drop(lock);
                    self.wait_out(hold)?;
                }
            }
        }
    }

    /// Adds bytes where [`Engine::target`] has said, under the same locks.
    fn add(
        &self,
        mut guard: MutexGuard<'_, State>,
        appender: &Appender,
        target: AppendTarget,
        bytes: &[u8],
    ) -> OpResult<()> {
        let state = &mut *guard;
        let AppendTarget { file, from, .. } = target;
        let end = from + bytes.len() as u64;
        let mut journalled = None;
        if let Some(dentry) = &target.dentry {
            self.unpromise_editors(state, dentry);
        }
        if let Some((key, path)) = target.told {
            let seq = self.sequencer.try_commit(Changeset::from(Edit::Append {
                path,
                file: Some(key),
                from,
                len: bytes.len() as u64,
                crc: crc32c::crc32c(bytes),
            }))?;
            state.metrics.note_commit(seq, Instant::now());
            state.growing.append(key, seq, end);
            appender.note_commit(seq);
            journalled = Some((seq, key));
        }
        if journalled.is_some() || target.dentry.is_some() {
            let seq = self.sequencer.last();
            state.unsynced.note_append(target.node, seq, file.clone());
            if let Some(node) = state.nodes.get_mut(target.node) {
                node.added_to = true;
                let goes_on = appender.stream == Stream::Json && bytes.ends_with(b"\n");
                node.json_lines = if goes_on { end } else { 0 };
            }
            state.counters.appends += 1;
            self.wake_checkpoint(state);
        }
        let adding = self.appends.begin(&file);
        drop(guard);
        failpoint::crash_point("append-journalled");
        failpoint::delay("COMMITFS_APPEND_DELAY_MS");
        let written = failpoint::fail_point("append")
            .and_then(|()| file.write_all_at(bytes, from).map_err(|e| errno_of(&e)));
        if let Err(e) = written {
            file.set_len(from).ok();
            if let Some((seq, key)) = journalled {
                self.withdraw(seq, key, from)?;
            }
            return Err(e);
        }
        target.ends.advance(end);
        drop(adding);
        Ok(())
    }

    /// What an editor's close has promised while others still hold it is older than a line that is
    /// added now.
    fn unpromise_editors(&self, state: &mut State, dentry: &Dentry) {
        let promised = |t: &&Transaction| {
            t.purpose.edits() && !t.phase.is_closing() && t.preparation.is_promised()
        };
        let promised: Vec<TxnId> = state
            .txns
            .at(dentry)
            .filter(promised)
            .map(|t| t.id)
            .collect();
        for id in promised {
            self.unprepare(state, id);
        }
    }

    /// What is shown of a file ends at `from` until an append to it is complete. Where the kernel
    /// may have cached the page with the old end, that stays a version of its own, and the file
    /// grows under another node. Gives the node that grows, and its ends.
    fn hold_end(
        &self,
        state: &mut State,
        current: NodeId,
        dentry: &Dentry,
        from: u64,
    ) -> OpResult<(NodeId, Ends)> {
        let node = state.nodes.get_mut(current).ok_or(Errno::STALE)?;
        let grew = node.grows();
        node.ends().hold(from);
        if grew || !node.cached {
            if !grew && let Some(notify) = self.notify.get() {
                notify.attributes_changed(current);
            }
            return Ok((current, node.ends()));
        }
        node.superseded = true;
        let (key, version, whole) = (node.key, node.version, node.whole().clone());
        let fd = state.nodes.fd(current)?;
        let grown = state.nodes.create(NodeKind::File, fd, key, dentry.clone());
        state.same_file(grown, current);
        state.files.edit(grown, current);
        self.supersede(state, dentry, Some(current));
        let node = state.nodes.get_mut(grown).ok_or(Errno::STALE)?;
        node.version = version;
        node.share_whole(whole);
        node.ends().hold(from);
        Ok((grown, node.ends()))
    }

    /// A commit that was journalled and couldn't be written.
    fn withdraw(&self, seq: Seq, file: FileKey, end: u64) -> OpResult<()> {
        let mut state = self.lock();
        state.growing.withdraw(file, end);
        self.sequencer.withdraw(seq)
    }

    /// A description of a file that still has to get its first version, by its first line.
    pub(super) fn unpublished_stream(&self, id: TxnId) -> Option<HandleId> {
        let state = self.lock();
        let txn = state.txns.get(&id)?;
        // JSON that has less than two lines is a document.
        let stream = txn.purpose.is_log();
        let unpublished = stream && !txn.is_unlinked() && txn.writers_death().is_none();
        unpublished.then(|| writers(&state, id).next().map(|(handle, _)| handle))?
    }

    /// A new file's stream has its first complete line, or an appender closes or renames its new
    /// file: that is its first version, and its descriptions go on as appenders. `by` wrote `data`.
    /// Gives the number of that commit, 0 if it wasn't one; nothing if another thread has done it meanwhile, so that
    /// `data` is still to be added.
    pub(super) fn publish_first(
        &self,
        id: TxnId,
        handle: HandleId,
        by: u32,
        data: &[u8],
    ) -> OpResult<Option<Seq>> {
        let staging = self.lock().txns.get(&id).map(|txn| txn.staging.clone());
        let Some(staging) = staging else {
            return Ok(None);
        };
        // Until its descriptions are those of appenders nobody writes into what is described here.
        let mut content = staging.lock();
        failpoint::delay("COMMITFS_FIRST_VERSION_DELAY_MS");
        let stream = self.lock().txns.get(&id).map(|txn| txn.purpose.stream());
        if stream.is_none() && !failpoint::mutant("C10-born") {
            return Ok(None);
        }
        let stream = stream.flatten().unwrap_or(Stream::Lines);
        let (lines, rest) = data.split_at(lines::whole(data, stream));
        let end = content.size()?;
        content.write(lines, end)?;
        self.reserve_commit()?;
        let described = content.describe()?;
        let ready = Ready::new(content.id, content.file.clone(), described);
        let dentry = self.lock().txns.get(&id).map(|txn| txn.dentry().clone());
        let dentry = dentry.ok_or(Errno::IO)?;
        let mut guard = self.lock_materialized(&dentry)?;
        let state = &mut *guard;
        let txn = state.txns.get(&id).ok_or(Errno::IO)?;
        if txn.is_unlinked() {
            // Nobody will ever see it, but for who writes it.
            drop(guard);
            let end = end + lines.len() as u64;
            return content.write(rest, end).map(|_| Some(Seq::default()));
        }
        super::prepare::check_target(self, state, txn.dentry())?;
        let (dentry, node, always) = (txn.dentry().clone(), txn.node, txn.purpose.appends());
        // Another process that was creating the file, too, may have come first: its version grows.
        let first = match self.current_if_any(state, &dentry)? {
            Some(current) if always => {
                let shown = Shown::of(&state.nodes, current)?;
                Some((current, shown))
            }
            _ => None,
        };
        let writers: Vec<(HandleId, Opening)> = writers(state, id).collect();
        // Who has asked for it through a description that is closed by now adds nothing.
        let asked = writers.iter().find(|(writer, ..)| *writer == handle);
        let (handle, ..) = *asked.or(writers.first()).ok_or(Errno::NOENT)?;
        state.remove_transaction(id);
        Engine::note_author(state, node, id);
        state.forget_save(id);
        if let Some(n) = state.nodes.get_mut(node) {
            n.kind = NodeKind::File;
            n.at = Some(dentry.clone());
            n.readers += writers.len() as u32;
            if first.is_some() {
                (n.superseded, n.unlinked) = (true, true);
            }
        }
        if let Some((current, _)) = &first {
            state.same_file(node, *current);
        }
        let read = match &first {
            Some((_, shown)) => shown.clone(),
            None => Shown {
                file: ready.file.clone(),
                end: state.nodes.get(node).ok_or(Errno::STALE)?.end().clone(),
            },
        };
        let new = |&(writer, opening): &(HandleId, Opening)| {
            let how = (always || opening.how.contains(OFlags::APPEND), opening);
            let new = Appender::new(node, how, stream, dentry.clone(), read.clone());
            (writer, new)
        };
        let appenders: BTreeMap<HandleId, Arc<Appender>> = writers.iter().map(new).collect();
        let appender = appenders.get(&handle).ok_or(Errno::BADF)?;
        // From the moment that it is known others may write through it (a FLUSH is behind this, say).
        let mut inner = appender.inner.lock();
        for (writer, new) in &appenders {
            state.names.enlist(&dentry, new);
            state.handles.insert(*writer, new.clone());
        }
        drop(content);
        if first.is_none() {
            self.publish(state, &dentry, ready, node);
            let seq = self.sequencer.last();
            for appender in state.names.appenders(&dentry) {
                appender.note_commit(seq);
            }
            drop(guard);
            failpoint::delay("COMMITFS_FIRST_LINE_DELAY_MS");
            inner.hold(rest, by);
            return Ok(Some(seq));
        }
        drop(guard);
        let mut whole = vec![0; usize::try_from(end).map_err(|_| Errno::FBIG)?];
        let read = ready.file.read_exact_at(&mut whole, 0);
        read.map_err(|e| errno_of(&e))?;
        whole.extend_from_slice(lines);
        let added = self.append_records(appender, &mut inner, &whole);
        self.store.remove_staging(ready.id).ok();
        self.sequencer.append(&Record::Abort { id: ready.id }).ok();
        if let Err(e) = added {
            // This write fails; what it has acknowledged before is tried again by the close.
            whole.truncate(whole.len() - lines.len());
            inner.hold(&whole, by);
            return Err(e);
        }
        inner.hold(rest, by);
        Ok(Some(appender.last()))
    }

    /// A description that stops appending (it truncates, or writes elsewhere) goes on as a
    /// transaction on a copy. Several may find that out at once.
    pub(super) fn leave_stream(
        &self,
        caller: Caller,
        handle: HandleId,
        appender: &Appender,
        writeback: bool,
    ) -> OpResult<(TxnId, Arc<Staging>)> {
        // Held until it has left: what others write meanwhile goes to the copy.
        let mut inner = appender.inner.lock();
        if inner.left {
            let state = self.lock();
            let staged = state.handles.get(handle);
            let staged =
                staged.and_then(|file| Some((file.transaction()?, file.content()?.clone())));
            return staged.ok_or(Errno::BADF);
        }
        match self.flush_tail(appender, &mut inner) {
            // Somebody has made it a document: it goes to the copy, for the guard to judge.
            Err(Errno::BADMSG) if appender.stream == Stream::Json => {}
            other => other?,
        }
        // A document that was patched may have its text in memory alone.
        let (mut guard, dentry) = loop {
            let AppendPlace::At(dentry) = appender.place.lock().clone() else {
                return Err(Errno::NOENT);
            };
            let guard = self.lock_materialized(&dentry)?;
            if matches!(&*appender.place.lock(), AppendPlace::At(now) if *now == dentry) {
                break (guard, dentry);
            }
        };
        let state = &mut *guard;
        let base = self.current(state, &dentry)?;
        let id = self.begin_on(state, dentry, Begun::Edit(base))?;
        let leaver = match writeback {
            true => Caller {
                tid: appender.opening.opener,
                ..caller
            },
            false => caller,
        };
        let opened = self.join(state, leaver, id, OFlags::RDWR)?;
        let joined = state.handles.remove(opened.handle).ok_or(Errno::BADF)?;
        let staging = joined.content().ok_or(Errno::BADF)?.clone();
        let staged = StagedFile {
            txn: id,
            // The kernel knows the description by this node.
            shown: Some(appender.node),
            staging: staging.clone(),
            writes: true,
            opening: appender.opening,
        };
        // It is nobody else's yet. Until the half line stands in it, nobody's next words do.
        let mut content = staging.lock();
        state.handles.insert(handle, Arc::new(staged));
        inner.left = true;
        // Not before: had anything failed, the close would have to try again.
        let half = std::mem::take(&mut inner.tail);
        state.names.delist(appender);
        if let Some(txn) = state.txns.get_mut(&id) {
            appender.hand_over(txn);
        }
        if let Some(n) = state.nodes.get_mut(appender.node) {
            n.readers -= 1;
        }
        drop(guard);
        if !half.is_empty() {
            // It stands behind the lines, for the guard to judge.
            // The transaction is to fail, should this.
            let end = content.size()?;
            failpoint::delay("COMMITFS_FIRST_LINE_DELAY_MS");
            self.note_write(id, leaver, end + half.len() as u64)?;
            content.write(&half, end)?;
        }
        drop(content);
        Ok((id, staging))
    }

    /// Whether a description's close, or its end, leaves half a JSON value: it goes on on a copy then,
    /// for the guard to judge. An earlier close by another process is none.
    pub(super) fn leave_half(&self, Asked { caller, handle }: Asked, appender: &Appender) -> bool {
        let closes = proc::tgid(caller.tid) == Some(appender.opening.opener);
        let half = closes && tails::is_half(appender, &appender.inner.lock());
        half && self.leave_stream(caller, handle, appender, false).is_ok()
    }

    /// The process that closes an appending description, if it was killed.
    pub(super) fn killed_flusher(caller: Caller) -> Option<u32> {
        let pid = proc::tgid(caller.tid)?;
        let death = proc::death_of_flusher(caller.tid, pid);
        death.fatal_signal().map(|_| pid)
    }
}

/// The writing descriptions of a transaction, and how they were opened.
fn writers(state: &State, id: TxnId) -> impl Iterator<Item = (HandleId, Opening)> {
    let all = state.handles.of(id);
    let writing = all.filter(move |(_, file)| file.writes_in() == Some(id));
    writing.map(|(handle, file)| (handle, file.opening()))
}

/// How many descriptions write a transaction where they please.
pub(super) fn others_than_appenders(state: &State, id: TxnId) -> usize {
    let appends = |opening: &Opening| opening.how.contains(OFlags::APPEND);
    writers(state, id)
        .filter(|(_, opening)| !appends(opening))
        .count()
}
