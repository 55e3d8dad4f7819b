//! Appends by whole records (C10).
//!
//! A file opened with O_APPEND, or a new text stream, is not copied: complete lines go to the end
//! of the current version, in place, each write's lines in one piece. A version that grows by
//! whole records stays the same version, so open readers see the growth. The unfinished rest of a
//! line waits in memory for its newline, an fsync, a close, or one second.
//!
//! Crash argument: the journal says what will be appended, where, and its checksum, before the
//! bytes are written. Recovery takes back what is not all there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::open::Opened;
use super::state::{Handle, Shown};
use super::{Engine, State};
use crate::guard::Guard;
use crate::journal::{Edit, Record};
use crate::namespace::Kind;
use crate::rules::{Policy, Record as RecordRule};
use crate::sys::{at, failpoint, proc};
use crate::txn::{Begun, Ready, Staging};
use crate::types::{Caller, HandleId, NodeId, OpResult, Slot, TxnId, errno_of};

/// An unfinished line becomes visible after this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// An unfinished line longer than this doesn't wait.
const LONGEST: usize = 1 << 20;

/// An open description that appends.
#[derive(Debug)]
pub struct Appender {
    /// Node it was opened on; the kernel's inode of the description.
    pub node: NodeId,
    /// Description opened with O_APPEND: writes go to the end, whatever their offset says.
    pub always: bool,
    /// O_SYNC or O_DSYNC.
    pub sync: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Name of the file; follows renames of the node.
    slot: Slot,
    /// What reads through the description see, apart from the tail.
    read: Shown,
    /// The unfinished line.
    tail: Vec<u8>,
    since: Option<Instant>,
}

impl Appender {
    fn new(node: NodeId, always: bool, sync: bool, slot: Slot, read: Shown) -> Arc<Appender> {
        Arc::new(Appender {
            node,
            always,
            sync,
            inner: Mutex::new(Inner {
                slot,
                read,
                tail: Vec::new(),
                since: None,
            }),
        })
    }
}

impl Inner {
    /// Keeps the unfinished rest of what was written.
    fn hold(&mut self, rest: &[u8]) {
        self.tail = rest.to_vec();
        self.since = (!rest.is_empty()).then(Instant::now);
    }
}

/// Whether a file's appends are by lines: not where a guard looks at whole documents.
pub(super) fn by_lines(policy: &Policy) -> bool {
    policy.guard == Guard::None
        && policy.record != Some(RecordRule::Close)
        && !failpoint::mutant("C10")
}

impl Engine {
    /// An appender of a committed version.
    pub(super) fn open_appender(
        &self,
        state: &mut State,
        id: NodeId,
        slot: Slot,
        flags: OFlags,
    ) -> OpResult<Opened> {
        let read = Shown::of(&state.nodes, id)?;
        let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
        node.readers += 1;
        let sync = flags.intersects(OFlags::DSYNC | OFlags::SYNC);
        let appender = Appender::new(id, true, sync, slot, read);
        let handle = state.add_handle(Handle::Append(appender));
        Ok(Opened {
            handle,
            keep_cache: true,
            direct_io: true,
            no_flush: false,
        })
    }

    /// A write through an appending description.
    pub(super) fn append_lines(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        appender: Arc<Appender>,
        offset: u64,
        data: &[u8],
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let (engine, data) = (self.clone(), data.to_vec());
        self.pool.run(move || {
            done(engine.append_now(caller, handle, &appender, offset, &data));
        });
    }

    fn append_now(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        appender: &Appender,
        offset: u64,
        data: &[u8],
    ) -> OpResult<()> {
        let mut inner = appender.inner.lock();
        if !appender.always {
            let end = inner.read.len()? + inner.tail.len() as u64;
            if offset != end {
                // A stream that goes back is one no longer.
                drop(inner);
                let (txn, staging) = self.leave_stream(caller, handle, appender)?;
                self.note_write(txn, caller, offset + data.len() as u64);
                return staging.lock().write(data, offset).map(drop);
            }
        }
        if failpoint::mutant("C10-lines") {
            return self.append_records(appender, &mut inner, data);
        }
        let newline = data.iter().rposition(|b| *b == b'\n');
        let Some(newline) = newline else {
            inner.tail.extend_from_slice(data);
            inner.since.get_or_insert_with(Instant::now);
            return if inner.tail.len() > LONGEST || appender.sync {
                self.flush_tail(appender, &mut inner)
            } else {
                Ok(())
            };
        };
        let (lines, rest) = data.split_at(newline + 1);
        let whole: Vec<u8>;
        let records = if inner.tail.is_empty() {
            lines
        } else {
            whole = [inner.tail.as_slice(), lines].concat();
            &whole
        };
        self.append_records(appender, &mut inner, records)?;
        inner.hold(rest);
        if appender.sync {
            self.flush_tail(appender, &mut inner)?;
            drop(inner);
            self.drain_all()?;
        }
        Ok(())
    }

    /// Makes the unfinished line visible.
    fn flush_tail(&self, appender: &Appender, inner: &mut Inner) -> OpResult<()> {
        if inner.tail.is_empty() {
            return Ok(());
        }
        let tail = std::mem::take(&mut inner.tail);
        inner.since = None;
        self.append_records(appender, inner, &tail)?;
        if let Some(notify) = self.notify.get() {
            notify.attributes_changed(appender.node);
        }
        Ok(())
    }

    /// Adds `bytes` to the current version, in one piece.
    fn append_records(&self, appender: &Appender, inner: &mut Inner, bytes: &[u8]) -> OpResult<()> {
        loop {
            let lock = self.append_lock.lock();
            let mut guard = self.lock();
            let state = &mut *guard;
            if let Some(slot) = state.nodes.get(appender.node).and_then(|n| n.at.clone()) {
                inner.slot = slot;
            }
            let gone = state
                .nodes
                .get(appender.node)
                .is_none_or(|n| n.unlinked && !n.superseded);
            if gone {
                // As on the plain directory: into a file without a name.
                let shown = state.nodes.get(appender.node).filter(|n| n.grows());
                let shown = shown.map(|n| n.end.clone());
                drop(guard);
                let file = self.writable(appender.node)?;
                let end = file.metadata().map_err(|e| errno_of(&e))?.len();
                let written = file.write_all_at(bytes, end).map_err(|e| errno_of(&e));
                if let (Ok(()), Some(shown)) = (written, shown) {
                    shown.store(end + bytes.len() as u64, Ordering::Release);
                }
                return written;
            }
            if state
                .pending
                .get(inner.slot.dir, &inner.slot.name)
                .is_some()
            {
                drop(guard);
                drop(lock);
                self.drain_all()?;
                continue;
            }
            let current = self.current(state, &inner.slot)?;
            let fd = state.nodes.fd(current)?;
            let file = at::reopen(&*fd, OFlags::RDWR)?;
            let from = file.metadata().map_err(|e| errno_of(&e))?.len();
            let (current, end) = self.hold_end(state, current, &inner.slot, from)?;
            let path = state.nodes.path(&inner.slot).ok_or(Errno::NOENT)?;
            state.seq += 1;
            let seq = state.seq;
            let record = Record::Commit {
                seq,
                edits: vec![Edit::Append {
                    path,
                    from,
                    len: bytes.len() as u64,
                    crc: crc32c::crc32c(bytes),
                }],
            };
            let file = Arc::new(file);
            let skip = failpoint::mutant("C10-journal");
            let journalled = if skip { Ok(()) } else { self.append(&record) };
            if journalled.is_ok() {
                state.unapplied.push_back((seq, record));
                state.appended.insert(current, (seq, file.clone()));
                state.counters.appends += 1;
                self.wake_drain(state);
            }
            drop(guard);
            journalled?;
            failpoint::crash_point("append-journalled");
            let written = failpoint::fail_point("append")
                .and_then(|()| file.write_all_at(bytes, from).map_err(|e| errno_of(&e)));
            if let Err(e) = written {
                file.set_len(from).ok();
                self.withdraw(seq)?;
                return Err(e);
            }
            end.store(from + bytes.len() as u64, Ordering::Release);
            if current != appender.node {
                inner.read = Shown { file, end };
            }
            self.grown(&inner.slot);
            return Ok(());
        }
    }

    /// What is shown of a file ends at `from` until an append to it is complete. Where the kernel
    /// may have cached the page with the old end, that stays a version of its own, and the file
    /// grows under another node. Gives the node that grows, and its end.
    fn hold_end(
        &self,
        state: &mut State,
        current: NodeId,
        slot: &Slot,
        from: u64,
    ) -> OpResult<(NodeId, Arc<AtomicU64>)> {
        let node = state.nodes.get_mut(current).ok_or(Errno::STALE)?;
        let grew = node.grows();
        node.end.store(from, Ordering::Release);
        if grew || !node.cached {
            if !grew && let Some(notify) = self.notify.get() {
                notify.attributes_changed(current);
            }
            return Ok((current, node.end.clone()));
        }
        node.superseded = true;
        let (key, version) = (node.key, node.version);
        let fd = state.nodes.fd(current)?;
        let grown = state.nodes.create(Kind::File, fd, key, slot.clone());
        state.same_file(grown, current);
        self.supersede(state, slot, Some(current));
        let node = state.nodes.get_mut(grown).ok_or(Errno::STALE)?;
        node.version = version;
        node.end.store(from, Ordering::Release);
        Ok((grown, node.end.clone()))
    }

    /// A commit that was journalled and couldn't be written.
    fn withdraw(&self, seq: u64) -> OpResult<()> {
        let mut state = self.lock();
        state.unapplied.retain(|(s, _)| *s != seq);
        self.append(&Record::Withdrawn { seq })
    }

    fn writable(&self, node: NodeId) -> OpResult<File> {
        let fd = self.lock().nodes.fd(node)?;
        at::reopen(&*fd, OFlags::RDWR)
    }

    /// A read through an appending description: its own unfinished line included. Who reads from
    /// the beginning reads what is there now, as on the plain directory: it may have waited for a
    /// lock through another description, or another file. The rest comes from the same version.
    pub(super) fn read_appender(
        &self,
        appender: &Appender,
        offset: u64,
        size: u32,
    ) -> OpResult<Vec<u8>> {
        if offset == 0 && !failpoint::mutant("C12-barrier") {
            self.move_appender(appender)?;
        }
        let inner = appender.inner.lock();
        let end = inner.read.len()?;
        let within = inner.read.within(offset, size.into()) as u32;
        let mut data = super::io::read_at(&inner.read.file, offset, within)?;
        if data.len() < size as usize && offset + data.len() as u64 >= end {
            let skip = usize::try_from(offset.saturating_sub(end)).unwrap_or(usize::MAX);
            let room = size as usize - data.len();
            data.extend(inner.tail.iter().skip(skip).take(room));
        }
        Ok(data)
    }

    /// A close, an fsync: the unfinished line waits no longer. After a kill it is dropped.
    pub(super) fn settle_appender(&self, appender: &Appender, killed: bool) -> OpResult<()> {
        let mut inner = appender.inner.lock();
        if killed {
            if !inner.tail.is_empty() {
                log::info!(
                    "an unfinished line of {} bytes is dropped: its writer was ended by a signal",
                    inner.tail.len()
                );
            }
            inner.tail.clear();
            inner.since = None;
            return Ok(());
        }
        self.flush_tail(appender, &mut inner)
    }

    /// Unfinished lines that have waited long enough.
    pub(super) fn flush_old_tails(&self) {
        let appenders: Vec<Arc<Appender>> = self
            .lock()
            .handles
            .values()
            .filter_map(|h| match h {
                Handle::Append(a) => Some(a.clone()),
                _ => None,
            })
            .collect();
        for appender in appenders {
            if let Some(mut inner) = appender.inner.try_lock()
                && inner.since.is_some_and(|s| s.elapsed() >= PATIENCE)
                && let Err(e) = self.flush_tail(&appender, &mut inner)
            {
                log::warn!("an unfinished line can't be appended: {e}");
            }
        }
    }

    /// Reads go to the file's current version from now on: a lock was granted (C12), say.
    pub(super) fn move_appender(&self, appender: &Appender) -> OpResult<()> {
        let mut inner = appender.inner.lock();
        let mut guard = self.lock();
        let state = &mut *guard;
        let slot = inner.slot.clone();
        let Some(current) = self.current_if_any(state, &slot)? else {
            return Ok(());
        };
        let node = state.nodes.get(current).ok_or(Errno::STALE)?;
        if node.kind == Kind::File && state.file_of(current) == state.file_of(appender.node) {
            inner.read = Shown::of(&state.nodes, current)?;
        }
        Ok(())
    }

    /// A new file's stream has its first complete line, or an appender closes its new file: that
    /// is its first version, and the description goes on as an appender.
    pub(super) fn birth(&self, id: TxnId, handle: HandleId, data: &[u8]) -> OpResult<()> {
        let staging = self
            .lock()
            .txns
            .get(&id)
            .ok_or(Errno::STALE)?
            .staging
            .clone();
        let mut content = staging.lock();
        let newline = data.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
        let (lines, rest) = data.split_at(newline);
        let end = content.size()?;
        content.write(lines, end)?;
        self.reserve_commit()?;
        let ready = Ready {
            id: content.id,
            file: content.file.clone(),
            content: content.describe()?,
            version: 0,
            synced: false,
            onto: None,
            merged: None,
        };
        drop(content);
        let mut guard = self.lock();
        let state = &mut *guard;
        let txn = state.txns.get(&id).ok_or(Errno::STALE)?;
        super::close::check_target(self, state, &txn.slot)?;
        let (slot, node, always) = (txn.slot.clone(), txn.node, txn.appends);
        // Another process that was creating the file, too, may have come first: its version grows.
        let first = match self.current_if_any(state, &slot)? {
            Some(current) if always => {
                let shown = Shown::of(&state.nodes, current)?;
                Some((current, shown))
            }
            _ => None,
        };
        state.txns.remove(&id);
        state.unlist(&slot, id);
        if let Some(n) = state.nodes.get_mut(node) {
            n.kind = Kind::File;
            n.at = Some(slot.clone());
            n.readers += 1;
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
                end: state.nodes.get(node).ok_or(Errno::STALE)?.end.clone(),
            },
        };
        let appender = Appender::new(node, always, false, slot.clone(), read);
        state
            .handles
            .insert(handle, Handle::Append(appender.clone()));
        if first.is_none() {
            self.publish(state, &slot, ready, node);
            drop(guard);
            appender.inner.lock().hold(rest);
            return Ok(());
        }
        drop(guard);
        let mut whole = vec![0; usize::try_from(end).map_err(|_| Errno::FBIG)?];
        ready
            .file
            .read_exact_at(&mut whole, 0)
            .map_err(|e| errno_of(&e))?;
        whole.extend_from_slice(lines);
        self.store.remove_staging(ready.id).ok();
        self.append(&Record::Abort { id: ready.id }).ok();
        let mut inner = appender.inner.lock();
        self.append_records(&appender, &mut inner, &whole)?;
        inner.hold(rest);
        Ok(())
    }

    /// A description that stops appending (it truncates, or writes elsewhere) goes on as a
    /// transaction on a copy.
    pub(super) fn leave_stream(
        &self,
        caller: Caller,
        handle: HandleId,
        appender: &Appender,
    ) -> OpResult<(TxnId, Arc<Staging>)> {
        let mut inner = appender.inner.lock();
        self.flush_tail(appender, &mut inner)?;
        let slot = inner.slot.clone();
        drop(inner);
        let mut guard = self.lock();
        let state = &mut *guard;
        let base = self.current(state, &slot)?;
        let id = self.begin_on(state, slot, base, Begun::Edit)?;
        let opened = self.join(state, caller, id, OFlags::RDWR)?;
        let Some(Handle::Staged {
            txn,
            staging,
            writes,
            sync,
        }) = state.handles.remove(&opened.handle)
        else {
            return Err(Errno::BADF);
        };
        let staged = Handle::Staged {
            txn,
            staging: staging.clone(),
            writes,
            sync,
        };
        state.handles.insert(handle, staged);
        if let Some(txn) = state.txns.get_mut(&id) {
            // The kernel knows the description by another node.
            txn.shared = true;
            txn.appends = appender.always;
            txn.begun = Begun::Edit;
        }
        if let Some(n) = state.nodes.get_mut(appender.node) {
            n.readers -= 1;
        }
        Ok((id, staging))
    }

    /// How the process that closes an appending description is doing.
    pub(super) fn flusher_was_killed(caller: Caller) -> bool {
        let Some(pid) = proc::tgid(caller.tid) else {
            return false;
        };
        proc::death_of_flusher(caller.tid, pid)
            .fatal_signal()
            .is_some()
    }
}
