//! Reads and writes on open descriptions.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::lines::{self, Next};
use super::setid::{Gone, clear_set_id, drop_set_id, gone_of};
use super::shared::begins_swmr;
use super::state::Handle;
use super::{Engine, State};
use crate::journal::Record;
use crate::rules::Stream;
use crate::sys::{interrupt, proc};
use crate::txn::{Content, Staging};
use crate::types::{Caller, HandleId, OpResult, TxnId, errno_of};

mod ranges;

/// Up to this size a write to the page cache is done by the dispatcher itself: handing it to a
/// worker costs more.
const INLINE_WRITE: usize = 64 << 10;
/// An O_EXCL creation larger than this is hidden like any new file (C6).
const CLAIM_LIMIT: u64 = 4096;

/// What write(2) asks for.
#[derive(Clone, Copy, Debug)]
pub struct WriteRequest {
    /// Where the kernel takes the place to be.
    pub offset: u64,
    /// Through a description with O_APPEND: it goes to the end, wherever that is.
    pub appends: bool,
    /// Set-id bits are to go.
    pub kill: bool,
    /// Pages of a mapping, written back by whoever happened to do it.
    pub writeback: bool,
}

impl Engine {
    fn handle(&self, handle: HandleId) -> OpResult<Handle> {
        self.handle_and_common(handle).map(|(handle, _)| handle)
    }

    /// A description that is used, and whether its transaction is everybody's until its first write.
    fn handle_and_common(&self, handle: HandleId) -> OpResult<(Handle, bool)> {
        let mut state = self.lock();
        let handle = state.handles.get(handle).cloned().ok_or(Errno::BADF)?;
        let mut common = false;
        if let Handle::Staged { txn, .. } = &handle
            && let Some(txn) = state.txns.get_mut(txn)
        {
            txn.heard = Instant::now();
            common = txn.common;
        }
        Ok((handle, common))
    }

    /// A description that is written to, and whether this write is one which decides how the file is treated from
    /// then on (C14).
    fn handle_to_write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
    ) -> (OpResult<Handle>, bool) {
        match self.handle_and_common(handle) {
            Ok((found, common)) => {
                let is_staged = matches!(found, Handle::Staged { .. });
                (Ok(found), common || is_staged && begins_swmr(offset, data))
            }
            Err(e) => (Err(e), false),
        }
    }

    /// Reads up to `size` bytes.
    pub fn read(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        size: u32,
        done: impl FnOnce(OpResult<Vec<u8>>) + Send + 'static,
    ) {
        let mut size = size;
        let file = match self.handle(handle) {
            Ok(Handle::Reader { read, .. }) => {
                size = read.within(offset, size.into()) as u32;
                read.file
            }
            Ok(Handle::Direct { file, .. }) => file,
            Ok(Handle::Staged { staging, .. }) => {
                let free = staging.try_lock().map(|content| content.readable());
                let Some(read) = free else {
                    return self.pool.run(move || {
                        let read = staging.lock().readable();
                        let size = read.within(offset, size.into()) as u32;
                        done(read_at(&read.file, offset, size));
                    });
                };
                size = read.within(offset, size.into()) as u32;
                read.file
            }
            Ok(Handle::Text(text) | Handle::Control(text)) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let to = from.saturating_add(size as usize).min(text.len());
                return done(Ok(text[from..to].to_vec()));
            }
            Ok(Handle::Append(appender)) => {
                let engine = self.clone();
                return self
                    .pool
                    .run(move || done(engine.read_appender(&appender, offset, size)));
            }
            Ok(Handle::Dir { .. }) => return done(Err(Errno::ISDIR)),
            Ok(Handle::WatchHelper) => return done(Err(Errno::BADF)),
            Err(e) => return done(Err(e)),
        };
        match read_cached(&file, offset, size) {
            Some(data) => done(data),
            None => self.pool.run(move || done(read_at(&file, offset, size))),
        }
    }

    /// Writes `data`.
    pub fn write(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        request: WriteRequest,
        data: &[u8],
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        let (described, decides) = self.handle_to_write(handle, request.offset, data);
        if !decides {
            return self.write_decided(caller, (handle, described), request, data, done);
        }
        let (engine, data) = (self.clone(), data.to_vec());
        self.pool.run(
            move || match engine.decide_by(caller, handle, request.offset, &data) {
                Ok(()) => {
                    let described = (handle, engine.handle(handle));
                    engine.write_decided(caller, described, request, &data, done);
                }
                Err(errno) => done(Err(errno)),
            },
        );
    }

    /// Writes once it is decided how the file is treated: a write that begins to let others follow
    /// an HDF5 file, whose name is gone, changes nothing in that.
    fn write_decided(
        self: &Arc<Self>,
        caller: Caller,
        (handle, described): (HandleId, OpResult<Handle>),
        request: WriteRequest,
        data: &[u8],
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        let size = data.len() as u32;
        let WriteRequest {
            offset,
            appends,
            kill,
            writeback,
        } = request;
        match described {
            Ok(Handle::Staged { txn, staging, .. }) if self.is_emptied(txn) => {
                let (engine, data) = (self.clone(), data.to_vec());
                self.pool.run(
                    move || match engine.take_over_emptied(txn, &staging, true) {
                        Ok(()) => engine.write(caller, handle, request, &data, done),
                        Err(e) => done(Err(e)),
                    },
                );
            }
            Ok(Handle::Staged {
                txn, staging, sync, ..
            }) => {
                let stream = match self.note_write(txn, caller, offset + u64::from(size)) {
                    Ok(stream) => stream,
                    Err(_) if !is_staged(self, handle) => {
                        return self.write(caller, handle, request, data, done);
                    }
                    Err(e) => return done(Err(e)),
                };
                if stream && self.shows_lines(txn, &staging, offset, data) {
                    let (engine, data) = (self.clone(), data.to_vec());
                    let by = proc::tgid(caller.tid).unwrap_or(caller.tid);
                    return self.pool.run(move || {
                        match engine.publish_first(txn, handle, by, &data) {
                            // Somebody else has brought it into being (a rename, say): this adds to it.
                            Ok(None) => engine.write(caller, handle, request, &data, done),
                            born => done(born.map(|_| size)),
                        }
                    });
                }
                let kill = match kill {
                    true => self.note_kill(txn, &staging, caller),
                    false => 0,
                };
                if writeback {
                    let (engine, data) = (self.clone(), data.to_vec());
                    return self.pool.run(move || {
                        let written = engine.write_pages(&staging, &data, offset, kill);
                        done(written.map(|()| size));
                    });
                }
                let at_once = !sync && !appends && !stream && data.len() <= INLINE_WRITE;
                if at_once && let Some(result) = write_at_once(&staging, data, offset, kill) {
                    return self.written(result, &staging, size, data, offset, kill, done);
                }
                let (engine, data) = (self.clone(), data.to_vec());
                self.pool.run(move || {
                    let (offset, result) = {
                        let mut content = staging.lock();
                        if stream && !engine.lock().txns.contains_key(&txn) {
                            // What is staged is a version by now.
                            drop(content);
                            return engine.write(caller, handle, request, &data, done);
                        }
                        let offset = match appends {
                            // Whatever the kernel takes for the end: the node it knows may be
                            // another one.
                            true => content.size().unwrap_or(offset),
                            false => offset,
                        };
                        let write = || first_try(&mut content, &data, offset, kill);
                        (offset, interrupt::on_behalf_of(caller.tid, write))
                    };
                    let result = match result {
                        Err(Errno::NOSPC | Errno::DQUOT) => {
                            engine.retry_write(&staging, &data, offset, kill)
                        }
                        other => other,
                    };
                    let result = match result {
                        Ok(()) if sync => engine.fsync_txn(txn, &staging),
                        other => other,
                    };
                    done(result.map(|()| size));
                });
            }
            Ok(Handle::Direct { file, writes, .. }) => {
                if !writes {
                    return done(Err(Errno::BADF));
                }
                let kill = if kill { gone_of(&*file, caller) } else { 0 };
                if data.len() <= INLINE_WRITE {
                    let result = write_direct(&file, data, offset, kill);
                    if !is_full(&result) {
                        return done(result.map(|()| size));
                    }
                }
                let (engine, data) = (self.clone(), data.to_vec());
                self.pool.run(move || {
                    let result = engine.making_room(|| write_direct(&file, &data, offset, kill));
                    done(result.map(|()| size));
                });
            }
            Ok(Handle::Append(appender)) => {
                self.append_lines(caller, handle, appender, request, data, move |r| {
                    done(r.map(|()| size));
                });
            }
            Ok(Handle::Control(_)) => self.control(handle, data, done),
            Ok(_) => done(Err(Errno::BADF)),
            Err(e) => done(Err(e)),
        }
    }

    /// Whether a new file, which is to be still written from front to back (by appenders, or by its
    /// one description), has lines to show with this write.
    fn shows_lines(&self, id: TxnId, staging: &Staging, offset: u64, data: &[u8]) -> bool {
        let (stream, appends) = {
            let state = self.lock();
            let Some(txn) = state.txns.get(&id) else {
                return false;
            };
            let alone = txn.appends || txn.handles == 1;
            // A link gets its copy when the file is whole.
            let followed = state.followers.follow(id);
            let goes_on = alone && !txn.discarded && !txn.claim && !followed;
            (txn.stream.filter(|_| goes_on), txn.appends)
        };
        let content = staging.try_lock();
        let at_end = appends || content.as_ref().is_some_and(|c| c.size() == Ok(offset));
        let next = match (stream.filter(|_| at_end), content) {
            (Some(stream), Some(content)) => lines::next(stream, &content, data),
            // Somebody else is writing it.
            (Some(Stream::Lines | Stream::Table), None) if data.contains(&b'\n') => Next::Shows,
            (Some(_), None) => Next::Waits,
            (None, _) => Next::Document,
        };
        if next == Next::Document
            && let Some(txn) = self.lock().txns.get_mut(&id)
        {
            txn.stream = None;
        }
        next == Next::Shows
    }

    #[allow(clippy::too_many_arguments)]
    fn written(
        self: &Arc<Self>,
        result: OpResult<()>,
        staging: &Arc<Staging>,
        size: u32,
        data: &[u8],
        offset: u64,
        kill: Gone,
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        match result {
            Err(Errno::NOSPC | Errno::DQUOT) => {
                // Rejected content makes room before a write fails for want of space (C5).
                let (engine, staging, data) = (self.clone(), staging.clone(), data.to_vec());
                self.pool.run(move || {
                    let result = engine.retry_write(&staging, &data, offset, kill);
                    done(result.map(|()| size));
                });
            }
            other => done(other.map(|()| size)),
        }
    }

    /// Writes again as often as room can be made.
    fn retry_write(&self, staging: &Staging, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
        self.change_staged(staging, "write", |content| {
            write_staged(content, data, offset, kill)
        })
    }

    /// Changes staged content, again as often as room can be made. A transaction that has failed
    /// before stays failed: what this would add would stand behind a hole.
    pub(super) fn change_staged(
        &self,
        staging: &Staging,
        what: &'static str,
        mut change: impl FnMut(&mut Content) -> OpResult<()>,
    ) -> OpResult<()> {
        let mut failed_before = false;
        let mut full = None;
        let result = self.making_room_in(staging, 0, || {
            let mut content = staging.lock();
            failed_before = content.failed.is_some();
            let result = unless_full(&mut content, &mut change);
            full = is_full(&result).then_some(result);
            match full {
                // There is no use in making room for it.
                Some(_) if failed_before => Ok(()),
                _ => result,
            }
        });
        if let Some(full) = full {
            if !failed_before {
                staging.lock().fail(Errno::NOSPC, what);
            }
            return full;
        }
        result
    }

    /// Remembers who wrote, and that the content isn't as prepared any more. Gives whether the
    /// write may complete the first line of a new file; EIO once the transaction has ended (by a
    /// forced unmount), since its file may be a version by now.
    pub(super) fn note_write(&self, id: TxnId, caller: Caller, end: u64) -> OpResult<bool> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let txn = state.txns.get_mut(&id).ok_or(Errno::IO)?;
        txn.participants.write(caller.tid);
        txn.changed = true;
        txn.emptied_by = None;
        let stream = txn.stream.is_some();
        let outgrown = txn.claim && end > CLAIM_LIMIT;
        self.unprepare(state, id);
        if outgrown {
            self.end_claim(state, id);
        }
        Ok(stream)
    }

    /// The content changes after a FLUSH: what the journal says of it isn't true any more.
    pub(super) fn unprepare(&self, state: &mut State, id: TxnId) {
        if let Some(txn) = state.txns.get_mut(&id) {
            // Whichever FLUSH has said so: others may have joined and closed since.
            if let Some(ready) = txn.content.take() {
                self.append(&Record::Unprepared { id: ready.id }).ok();
            }
            txn.unprepared = true;
            txn.verdict = None;
        }
    }

    /// fsync or fdatasync of an open description (C7).
    pub fn fsync(
        self: &Arc<Self>,
        handle: HandleId,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        match self.handle(handle) {
            Ok(Handle::Staged {
                txn,
                staging,
                writes,
                ..
            }) => {
                let engine = self.clone();
                self.pool.run(move || {
                    done(if writes {
                        engine.fsync_txn(txn, &staging)
                    } else {
                        Ok(())
                    });
                });
            }
            Ok(Handle::Direct { file, .. }) => self
                .pool
                .run(move || done(file.sync_all().map_err(|e| errno_of(&e)))),
            Ok(Handle::Append(appender)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    done(
                        engine
                            .finish_appender(&appender, None)
                            .and_then(|()| engine.checkpoint_all()),
                    );
                });
            }
            // A version that was read and fsync'd through the reader's descriptor: make what is
            // committed so far durable.
            Ok(Handle::Reader { .. }) => {
                let engine = self.clone();
                self.pool.run(move || done(engine.checkpoint_all()));
            }
            Ok(_) => done(Ok(())),
            Err(e) => done(Err(e)),
        }
    }

    /// Sets the length of an open description's file.
    pub(super) fn truncate_handle(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        size: u64,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        match self.handle(handle) {
            Ok(Handle::Staged { txn, staging, .. }) if self.is_emptied(txn) => {
                let engine = self.clone();
                self.pool.run(
                    move || match engine.take_over_emptied(txn, &staging, false) {
                        Ok(()) => engine.truncate_handle(caller, handle, size, done),
                        Err(e) => done(Err(e)),
                    },
                );
            }
            Ok(Handle::Staged {
                txn,
                staging,
                writes: true,
                ..
            }) => {
                match self.note_write(txn, caller, size) {
                    Err(_) if !is_staged(self, handle) => {
                        return self.truncate_handle(caller, handle, size, done);
                    }
                    Err(e) => return done(Err(e)),
                    Ok(_) => {}
                }
                let engine = self.clone();
                self.pool.run(move || {
                    if size > 0 {
                        let copy = || engine.copy_base(&staging);
                        interrupt::on_behalf_of(caller.tid, copy).ok();
                    }
                    // What is done next may lock the content again.
                    let result = {
                        let mut content = staging.lock();
                        if !engine.changes_now(txn) {
                            drop(content);
                            return engine.truncate_handle(caller, handle, size, done);
                        }
                        let cut = content.truncate(size);
                        cut.and_then(|()| drop_set_id(&*content.file, caller, Some(&staging)))
                    };
                    done(result);
                });
            }
            Ok(Handle::Append(appender)) => {
                let engine = self.clone();
                self.pool.run(move || {
                    match engine.leave_stream(caller, handle, &appender, false) {
                        Ok(_) => engine.truncate_handle(caller, handle, size, done),
                        Err(e) => done(Err(e)),
                    }
                });
            }
            Ok(Handle::Direct {
                file, writes: true, ..
            }) => {
                done(
                    rustix::fs::ftruncate(&*file, size)
                        .and_then(|()| drop_set_id(&*file, caller, None)),
                );
            }
            Ok(_) => done(Err(Errno::INVAL)),
            Err(e) => done(Err(e)),
        }
    }
}

/// Whether a description has a transaction. If it has none any more, another thread has given a new
/// log its first version just now, or a database has begun: what was to be done begins again.
fn is_staged(engine: &Engine, handle: HandleId) -> bool {
    matches!(engine.handle(handle), Ok(Handle::Staged { .. }))
}

pub(super) fn is_full(result: &OpResult<()>) -> bool {
    matches!(result, Err(Errno::NOSPC | Errno::DQUOT))
}

/// Changes the content. If only the want of space keeps it from happening, the transaction hasn't
/// failed yet: `change_staged` decides.
fn unless_full(
    content: &mut Content,
    change: impl FnOnce(&mut Content) -> OpResult<()>,
) -> OpResult<()> {
    let failed_before = content.failed.is_some();
    let result = change(content);
    if is_full(&result) && !failed_before {
        content.failed = None;
    }
    result
}

fn first_try(content: &mut Content, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    unless_full(content, |content| write_staged(content, data, offset, kill))
}

pub(super) fn write_staged(
    content: &mut Content,
    data: &[u8],
    offset: u64,
    kill: Gone,
) -> OpResult<()> {
    content.write(data, offset)?;
    if kill != 0 {
        clear_set_id(&content.file, kill)?;
    }
    Ok(())
}

/// Writes if nobody else uses the content and nothing must be copied first.
fn write_at_once(staging: &Staging, data: &[u8], offset: u64, kill: Gone) -> Option<OpResult<()>> {
    let mut content = staging.try_lock()?;
    (!content.must_copy()).then(|| first_try(&mut content, data, offset, kill))
}

fn write_direct(file: &File, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    file.write_all_at(data, offset).map_err(|e| errno_of(&e))?;
    if kill != 0 {
        clear_set_id(file, kill)?;
    }
    Ok(())
}

pub(super) fn read_at(file: &File, offset: u64, size: u32) -> OpResult<Vec<u8>> {
    let mut data = vec![0u8; size as usize];
    let mut filled = 0;
    while filled < data.len() {
        match file.read_at(&mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(errno_of(&e)),
        }
    }
    data.truncate(filled);
    Ok(data)
}

/// Reads what is in the page cache; `None` when the disk would have to be waited for.
fn read_cached(file: &File, offset: u64, size: u32) -> Option<OpResult<Vec<u8>>> {
    let mut data = vec![0u8; size as usize];
    let read = {
        let mut slices = [rustix::io::IoSliceMut::new(&mut data)];
        rustix::io::preadv2(
            file,
            &mut slices,
            offset,
            rustix::io::ReadWriteFlags::NOWAIT,
        )
    };
    match read {
        Ok(n) if n == data.len() => Some(Ok(data)),
        // Short may mean the end, or the end of what is cached.
        Ok(n) => {
            let end = file.metadata().ok()?.len();
            if offset + n as u64 >= end {
                data.truncate(n);
                Some(Ok(data))
            } else {
                None
            }
        }
        Err(_) => None,
    }
}
