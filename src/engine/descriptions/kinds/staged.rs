//! A description that belongs to a transaction: writes are staged, and reads see what is.

use std::fs::File;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::engine::base::handle::{
    Allocation, Asked, Closing, FlushRest, INLINE_WRITE, OpenFile, Progress, Source, Unlock,
    Worked, WriteRequest, WriteRest, close_unwritten, later, seek_in,
};
use crate::engine::base::setid::{Gone, drop_set_id};
use crate::engine::base::{lines, setid, state};
use crate::engine::deciding::prepare;
use crate::engine::descriptions::append::streams;
use crate::engine::descriptions::io::{read_at, unless_full, write_staged};
use crate::engine::descriptions::{close, emptied, io, locking, mapped};
use crate::engine::versions::{room, withholding};
use crate::engine::{Engine, State};
use crate::file::Opening;
use crate::sys::{failpoint, interrupt, proc};
use crate::txn::{Content, Staging};
use crate::types::{Caller, NodeId, OpResult, TxnId};

/// See the module.
#[derive(Debug)]
pub struct StagedFile {
    /// The transaction.
    pub txn: TxnId,
    /// The node that /proc shows of it, if that is not the transaction's own.
    pub shown: Option<NodeId>,
    /// Its content; reads go on after the commit.
    pub staging: Arc<Staging>,
    /// Whether it may write, so counts as a reference.
    pub writes: bool,
    /// How it was opened.
    pub opening: Opening,
}

impl OpenFile for StagedFile {
    fn source(&self, offset: u64, len: u64) -> OpResult<Source> {
        let free = self.staging.try_lock().map(|content| content.readable());
        Ok(free.map_or(Source::Waits, |read| {
            let within = read.within(offset, len);
            Source::File(read.file, within)
        }))
    }

    fn read_waiting(&self, _engine: &Engine, offset: u64, size: u32) -> OpResult<Vec<u8>> {
        let read = self.staging.lock().readable();
        let size = read.within(offset, size.into()) as u32;
        read_at(&read.file, offset, size)
    }

    fn write(
        &self,
        engine: &Arc<Engine>,
        by: Asked,
        request: WriteRequest,
        data: &[u8],
    ) -> Progress<WriteRest> {
        if emptied::is_emptied(engine, self.txn) {
            return Progress::Rest(WriteRest::TakeOver);
        }
        let WriteRequest {
            offset,
            appends,
            kill,
            writeback,
        } = request;
        let caller = by.caller;
        let stream = match io::note_write(engine, self.txn, caller, offset + data.len() as u64) {
            Ok(stream) => stream,
            Err(_) if !io::is_staged(engine, by.handle) => return Progress::Again,
            Err(e) => return Progress::Done(Err(e)),
        };
        // The pages of a mapping have their places.
        let adds = stream && (!writeback || failpoint::mutant("C10-pages"));
        if adds && io::shows_lines(engine, self.txn, &self.staging, (offset, appends), data) {
            let by = proc::tgid(caller.tid).unwrap_or(caller.tid);
            return Progress::Rest(WriteRest::FirstLines { by });
        }
        let kill = match kill {
            true => setid::note_kill(engine, self.txn, &self.staging, caller),
            false => 0,
        };
        if writeback {
            return Progress::Rest(WriteRest::Pages { kill });
        }
        let at_once = !self.opening.sync && !appends && !stream && data.len() <= INLINE_WRITE;
        match at_once.then(|| write_at_once(&self.staging, data, offset, kill)) {
            // Rejected content makes room before a write fails for want of space (C5).
            Some(Some(result)) if room::is_full(&result) => {
                Progress::Rest(WriteRest::MakingRoom { kill })
            }
            Some(Some(Err(errno))) => Progress::Rest(WriteRest::Failed { errno }),
            Some(Some(Ok(()))) => Progress::Done(Ok(())),
            None | Some(None) => Progress::Rest(WriteRest::Bytes { stream, kill }),
        }
    }

    fn write_rest(
        &self,
        engine: &Arc<Engine>,
        by: Asked,
        request: WriteRequest,
        data: &[u8],
        rest: WriteRest,
    ) -> Worked {
        let (txn, staging) = (self.txn, &self.staging);
        let worked = match rest {
            WriteRest::Failed { errno } => Some(Err(errno)),
            WriteRest::TakeOver => {
                begun_anew(emptied::take_over_emptied(engine, txn, staging, true))
            }
            WriteRest::FirstLines { by: pid } => {
                match streams::publish_first(engine, txn, by.handle, pid, data) {
                    // Somebody else has brought it into being (a rename, say): this adds to it.
                    Ok(None) => None,
                    born => Some(born.map(drop)),
                }
            }
            WriteRest::Pages { kill } => Some(mapped::write_pages(
                engine,
                staging,
                data,
                request.offset,
                kill,
            )),
            WriteRest::MakingRoom { kill } => {
                Some(self.retry_write(engine, data, request.offset, kill))
            }
            WriteRest::Bytes { stream, kill } => {
                let stream_and_kill = (stream, kill);
                self.write_bytes(engine, by.caller, request, data, stream_and_kill)
            }
        };
        if let Some(Err(_)) = worked {
            withholding::tell_failed(engine, txn, staging);
        }
        worked
    }

    fn truncate(self: Arc<Self>, engine: &Arc<Engine>, by: Asked, size: u64) -> Progress {
        let txn = self.txn;
        if emptied::is_emptied(engine, txn) {
            return later(move |engine| {
                begun_anew(emptied::take_over_emptied(
                    engine,
                    txn,
                    &self.staging,
                    false,
                ))
            });
        }
        if !self.writes {
            return Progress::Done(Err(Errno::INVAL));
        }
        match io::note_write(engine, txn, by.caller, size) {
            Err(_) if !io::is_staged(engine, by.handle) => return Progress::Again,
            Err(e) => return Progress::Done(Err(e)),
            Ok(_) => {}
        }
        later(move |engine| {
            if size > 0 {
                let copy = || room::copy_base(engine, &self.staging);
                interrupt::on_behalf_of(by.caller.tid, copy).ok();
            }
            let mut content = self.staging.lock();
            if !io::changes_now(engine, txn) {
                return None;
            }
            let cut = content.truncate(size);
            let cut =
                cut.and_then(|()| drop_set_id(&*content.file, by.caller, Some(&self.staging)));
            drop(content);
            Some(cut.inspect_err(|_| withholding::tell_failed(engine, txn, &self.staging)))
        })
    }

    fn allocate(self: Arc<Self>, engine: &Arc<Engine>, by: Asked, range: Allocation) -> Progress {
        if !self.writes {
            return Progress::Done(Err(Errno::BADF));
        }
        let Allocation { mode, offset, len } = range;
        let txn = self.txn;
        match io::note_write(engine, txn, by.caller, offset.saturating_add(len)) {
            Err(_) if !io::is_staged(engine, by.handle) => return Progress::Again,
            Err(e) => return Progress::Done(Err(e)),
            Ok(_) => {}
        }
        later(move |engine| {
            let mut changes = true;
            let allocated = room::making_room_in(engine, &self.staging, len, || {
                let mut content = self.staging.lock();
                changes = io::changes_now(engine, txn);
                if !changes {
                    return Ok(());
                }
                let how = FallocateFlags::from_bits_retain(mode as u32);
                content.allocate(how, offset, len)?;
                drop_set_id(&*content.file, by.caller, Some(&self.staging))
            });
            changes.then_some(allocated)
        })
    }

    fn seek(&self, offset: u64, hole: bool) -> OpResult<u64> {
        let file = self.staging.lock().readable().file;
        seek_in(&file, offset, hole)
    }

    fn copy_source(&self, offset: u64, len: u64) -> OpResult<(Arc<File>, u64)> {
        let read = self.staging.lock().readable();
        let within = read.within(offset, len);
        Ok((read.file, within))
    }

    fn copy_in(&self, engine: &Engine, caller: Caller, data: &[u8], offset: u64) -> OpResult<()> {
        if !self.writes {
            return Err(Errno::BADF);
        }
        io::note_write(engine, self.txn, caller, offset + data.len() as u64)?;
        io::change_staged(engine, &self.staging, "write", |content| {
            if !io::changes_now(engine, self.txn) {
                // It is a log by now. Who is told so reads and writes, as for any other.
                return Err(Errno::BADF);
            }
            content.write(data, offset)?;
            drop_set_id(&*content.file, caller, Some(&self.staging))
        })
        .inspect_err(|_| withholding::tell_failed(engine, self.txn, &self.staging))
    }

    fn fsync(self: Arc<Self>, _engine: &Arc<Engine>) -> Progress {
        later(move |engine| {
            Some(match self.writes {
                true => io::fsync_txn(engine, self.txn, &self.staging),
                false => Ok(()),
            })
        })
    }

    fn flush(
        &self,
        engine: &Engine,
        state: MutexGuard<'_, State>,
        close: &Closing,
    ) -> Progress<FlushRest> {
        match self.writes {
            true => close::flush_writer(engine, state, self.txn, &self.staging, close),
            false => close_unwritten(state, close),
        }
    }

    fn flush_at_once(
        &self,
        engine: &Engine,
        close: &Closing,
        rest: FlushRest,
    ) -> Option<OpResult<()>> {
        let FlushRest::Content { closer } = rest else {
            return None;
        };
        // What was written under locks that this gives back is committed first.
        match close.locked {
            true => None,
            false => prepare::prepare_at_once(engine, self.txn, &self.staging, closer),
        }
    }

    fn flush_rest(&self, engine: &Engine, close: &Closing, rest: FlushRest) -> Worked {
        match rest {
            FlushRest::Content { closer } => {
                close::flush_content(engine, self.txn, &self.staging, close, closer)
            }
            FlushRest::Tail { .. } | FlushRest::Unchanged { .. } => Some(Ok(())),
        }
    }

    fn release(
        self: Arc<Self>,
        engine: &Arc<Engine>,
        mut state: MutexGuard<'_, State>,
        unlock: Unlock,
    ) {
        match self.writes {
            true => close::release_writer(engine, state, self.txn, &self.staging, unlock),
            false => state::give_back(engine, &mut state, &unlock),
        }
    }

    fn granted(self: Arc<Self>, _engine: &Arc<Engine>, _by: Asked, node: NodeId) -> Progress {
        later(move |engine| {
            locking::rebase(engine, self.txn, node)
                .inspect_err(|e| log::warn!("a locked editor stays at its base: {e}"))
                .ok();
            Some(Ok(()))
        })
    }

    fn transaction(&self) -> Option<TxnId> {
        Some(self.txn)
    }

    fn writes_in(&self) -> Option<TxnId> {
        self.writes.then_some(self.txn)
    }

    fn content(&self) -> Option<&Arc<Staging>> {
        Some(&self.staging)
    }

    fn pass(&self) -> Option<Arc<File>> {
        match self.writes {
            true => self.staging.pass(),
            false => self.staging.passed(),
        }
    }

    fn shown(&self) -> Option<NodeId> {
        self.shown
    }

    fn opening(&self) -> Opening {
        self.opening
    }
}

impl StagedFile {
    fn write_bytes(
        &self,
        engine: &Engine,
        caller: Caller,
        request: WriteRequest,
        data: &[u8],
        (stream, kill): (bool, Gone),
    ) -> Worked {
        let (offset, result) = {
            let mut content = self.staging.lock();
            if stream && !engine.lock().txns.contains_key(&self.txn) {
                // What is staged is a version by now.
                return None;
            }
            let offset = match request.appends {
                // Whatever the kernel takes for the end: the node it knows may be another one.
                true => content.size().unwrap_or(request.offset),
                false => request.offset,
            };
            if request.appends && lines::show_at_close(&engine.lock(), self.txn) {
                content.note_appended();
            }
            let write = || first_try(&mut content, data, offset, kill);
            (offset, interrupt::on_behalf_of(caller.tid, write))
        };
        let result = match room::is_full(&result) {
            true => self.retry_write(engine, data, offset, kill),
            false => result,
        };
        Some(match result {
            Ok(()) if self.opening.sync => io::fsync_txn(engine, self.txn, &self.staging),
            other => other,
        })
    }

    /// Writes again as often as room can be made.
    fn retry_write(&self, engine: &Engine, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
        io::change_staged(engine, &self.staging, "write", |content| {
            write_staged(content, data, offset, kill)
        })
    }
}

/// What was asked for begins again once the name's present content is taken over.
fn begun_anew(taken: OpResult<()>) -> Worked {
    taken.err().map(Err)
}

fn first_try(content: &mut Content, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    unless_full(content, |content| write_staged(content, data, offset, kill))
}

/// Writes if nobody else uses the content and nothing must be copied first.
fn write_at_once(staging: &Staging, data: &[u8], offset: u64, kill: Gone) -> Option<OpResult<()>> {
    let mut content = staging.try_lock()?;
    (!content.must_copy()).then(|| first_try(&mut content, data, offset, kill))
}
