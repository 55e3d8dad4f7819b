//! Reads and writes on open descriptions.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::engine::base::current;
use crate::engine::base::ended::told_of_ended;
use crate::engine::base::handle::{Asked, OpenFile, Progress, Source, WriteRequest};
use crate::engine::base::lines;
use crate::engine::base::lines::Next;
use crate::engine::base::setid::{Gone, clear_set_id};
use crate::engine::versions::durability::keep;
use crate::engine::versions::shared::begins_swmr;
use crate::engine::versions::{durability, overlaid, publish, room, shared, withholding};
use crate::engine::{Engine, State};
use crate::journal::Record;
use crate::rules::Stream;
use crate::sys::{at, failpoint};
use crate::txn::{Content, Staging};
use crate::types::{Caller, HandleId, OpResult, TxnId, errno_of};

pub mod ranges;

/// An O_EXCL creation larger than this is hidden like any new file (C6).
const CLAIM_LIMIT: u64 = 4096;

/// A description that is used.
pub fn opened(engine: &Engine, handle: HandleId) -> OpResult<Arc<dyn OpenFile>> {
    opened_and_common(engine, handle).map(|(file, _)| file)
}

/// A description that is used, and whether its transaction is everybody's until its first write.
fn opened_and_common(engine: &Engine, handle: HandleId) -> OpResult<(Arc<dyn OpenFile>, bool)> {
    let mut state = engine.lock();
    let file = state.handles.get(handle).cloned().ok_or(Errno::BADF)?;
    let mut common = false;
    let txn = file.transaction();
    if let Some(txn) = txn.and_then(|txn| state.txns.get_mut(&txn)) {
        txn.slot.note_use();
        common = txn.visibility.is_common();
    }
    Ok((file, common))
}

/// A description that is written to, and whether this write is one which decides how the file is treated from
/// then on (C14).
pub fn opened_to_write(
    engine: &Engine,
    handle: HandleId,
    offset: u64,
    data: &[u8],
) -> (OpResult<Arc<dyn OpenFile>>, bool) {
    match opened_and_common(engine, handle) {
        Ok((file, common)) => {
            let decides = common || file.transaction().is_some() && begins_swmr(offset, data);
            (Ok(file), decides)
        }
        Err(e) => (Err(e), false),
    }
}

/// Whether a description has a transaction. If it has none any more, another thread has given a new
/// log its first version just now, or a database has begun: what was to be done begins again.
pub fn is_staged(engine: &Engine, handle: HandleId) -> bool {
    opened(engine, handle).is_ok_and(|file| file.transaction().is_some())
}

/// Answers an operation, after a worker has done what is left of it; `again` begins it again.
pub fn go_on<D>(
    engine: &Arc<Engine>,
    progress: Progress,
    done: D,
    again: impl FnOnce(&Arc<Engine>, D) + Send + 'static,
) where
    D: FnOnce(OpResult<()>) + Send + 'static,
{
    match progress {
        Progress::Done(result) => done(result),
        Progress::Again => again(engine, done),
        Progress::Rest(work) => {
            engine.on_worker(move |engine| match work(engine) {
                Some(result) => done(result),
                None => again(engine, done),
            });
        }
    }
}

impl Engine {
    /// Reads up to `size` bytes.
    pub fn read(
        self: &Arc<Self>,
        handle: HandleId,
        offset: u64,
        size: u32,
        done: impl FnOnce(OpResult<Vec<u8>>) + Send + 'static,
    ) {
        let opened = opened(self, handle);
        let source = opened.and_then(|file| Ok((file.source(offset, size.into())?, file)));
        match source {
            Ok((Source::File(file, within), _)) => {
                let size = within as u32;
                match at::read_cached(&file, offset, size as usize) {
                    Some(data) => done(Ok(data)),
                    None => self.pool.run(move || done(read_at(&file, offset, size))),
                }
            }
            Ok((Source::Text(text), _)) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let to = from.saturating_add(size as usize).min(text.len());
                done(Ok(text[from..to].to_vec()));
            }
            Ok((Source::Waits, file)) => {
                self.on_worker(move |engine| done(file.read_waiting(engine, offset, size)));
            }
            Err(e) => done(Err(e)),
        }
    }
}

impl Engine {
    /// Writes `data`.
    pub fn write(
        self: &Arc<Self>,
        caller: Caller,
        handle: HandleId,
        request: WriteRequest,
        data: &[u8],
        done: impl FnOnce(OpResult<u32>) + Send + 'static,
    ) {
        let by = Asked { caller, handle };
        let (opened, decides) = opened_to_write(self, handle, request.offset, data);
        if !decides {
            return write_decided(self, by, opened, request, data, done);
        }
        let data = data.to_vec();
        self.on_worker(move |engine| {
            match shared::decide_by(engine, caller, handle, request.offset, &data) {
                Ok(()) => {
                    let opened = self::opened(engine, handle);
                    write_decided(engine, by, opened, request, &data, done);
                }
                Err(errno) => done(Err(errno)),
            }
        });
    }
}

/// Writes once it is decided how the file is treated: a write that begins to let others follow
/// an HDF5 file, whose name is gone, changes nothing in that.
fn write_decided(
    engine: &Arc<Engine>,
    by: Asked,
    opened: OpResult<Arc<dyn OpenFile>>,
    request: WriteRequest,
    data: &[u8],
    done: impl FnOnce(OpResult<u32>) + Send + 'static,
) {
    let size = data.len() as u32;
    let file = match opened {
        Ok(file) => file,
        Err(e) => return done(Err(e)),
    };
    match file.write(engine, by, request, data) {
        Progress::Done(result) => done(result.map(|()| size)),
        Progress::Again => engine.write(by.caller, by.handle, request, data, done),
        Progress::Rest(rest) => {
            let data = data.to_vec();
            engine.on_worker(move |engine| {
                match file.write_rest(engine, by, request, &data, rest) {
                    Some(result) => done(result.map(|()| size)),
                    None => engine.write(by.caller, by.handle, request, &data, done),
                }
            });
        }
    }
}

/// Whether a new file, which is to be still written from front to back (by appenders, and at most
/// one other description), has lines to show with this write.
pub fn shows_lines(
    engine: &Engine,
    id: TxnId,
    staging: &Staging,
    (offset, appends): (u64, bool),
    data: &[u8],
) -> bool {
    let (stream, at_end) = {
        let state = engine.lock();
        let Some(txn) = state.txns.get(&id) else {
            return false;
        };
        let alone = txn.purpose.appends() || state.handles.others_than_appenders(id) <= 1;
        // A link gets its copy when the file is whole.
        let followed = state.names.is_followed(id);
        let goes_on = alone && !txn.is_unlinked() && !txn.visibility.is_claim() && !followed;
        (
            txn.purpose.stream().filter(|_| goes_on),
            appends || txn.purpose.appends(),
        )
    };
    let content = staging.try_lock();
    let at_end = at_end || content.as_ref().is_some_and(|c| c.size() == Ok(offset));
    let next = match (stream.filter(|_| at_end), content) {
        (Some(stream), Some(content)) => lines::next(stream, &content, data),
        // Somebody else is writing it.
        (Some(Stream::Lines | Stream::Table), None) if data.contains(&b'\n') => Next::Shows,
        (Some(_), None) => Next::Waits,
        (None, _) => Next::Document,
    };
    if next == Next::Document
        && let Some(txn) = engine.lock().txns.get_mut(&id)
    {
        txn.purpose.end_stream();
    }
    next == Next::Shows
}

/// Changes staged content, again as often as room can be made. A transaction that has failed
/// before stays failed: what this would add would stand behind a hole.
pub fn change_staged(
    engine: &Engine,
    staging: &Staging,
    what: &'static str,
    mut change: impl FnMut(&mut Content) -> OpResult<()>,
) -> OpResult<()> {
    let mut failed_before = false;
    let mut full = None;
    let result = room::making_room_in(engine, staging, 0, || {
        let mut content = staging.lock();
        failed_before = content.failed.is_some();
        let result = unless_full(&mut content, &mut change);
        full = room::is_full(&result).then_some(result);
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
pub fn note_write(engine: &Engine, id: TxnId, caller: Caller, end: u64) -> OpResult<bool> {
    let mut guard = engine.lock();
    let state = &mut *guard;
    let txn = state.txns.get_mut(&id).ok_or(Errno::IO)?;
    txn.participants.write(caller.tid);
    txn.purpose.note_write();
    let stream = txn.purpose.stream().is_some();
    let outgrown = txn.visibility.is_claim() && end > CLAIM_LIMIT;
    unprepare(engine, state, id);
    if outgrown {
        publish::end_claim(engine, state, id);
    }
    Ok(stream)
}

/// The content changes after a FLUSH: what the journal says of it isn't true any more.
pub fn unprepare(engine: &Engine, state: &mut State, id: TxnId) {
    if let Some(txn) = state.txns.get_mut(&id) {
        // Whichever FLUSH has said so: others may have joined and closed since.
        if let Some(ready) = txn.preparation.withdraw() {
            engine
                .sequencer
                .append(&Record::Unprepared { id: ready.id })
                .ok();
            // No RELEASE is about to come that a lookup would have to wait for.
            let dentry = txn.dentry().clone();
            state.wake_for(id, &dentry);
        }
    }
}

/// What the program has written so far is never rolled back once this has returned (C7).
pub fn fsync_txn(engine: &Engine, id: TxnId, staging: &Staging) -> OpResult<()> {
    let synced = promise_written(engine, id, staging);
    synced.inspect_err(|_| withholding::tell_failed(engine, id, staging))
}

fn promise_written(engine: &Engine, id: TxnId, staging: &Staging) -> OpResult<()> {
    if failpoint::mutant("C7") {
        return Ok(());
    }
    // What is rolled forward after a power cut stands behind all that was committed before.
    durability::sync_pending(engine)?;
    let mut content = staging.lock();
    if content.must_copy() && !content.changed {
        // It is the committed version still, and nothing of it lies in staging.
        drop(content);
        return durability::checkpoint_all(engine);
    }
    overlaid::take_parts(engine, id, &mut content, true)?;
    let kept = keep(engine, &mut content);
    failpoint::delay("COMMITFS_FSYNC_DELAY_MS");
    // The content is held until it is promised: another thread that gives a lock back, or renames the
    // file, would publish it in between, and the promise be one of half of the next text.
    let promise = || {
        let mut kept = kept?;
        let mut state = engine.lock();
        if !state.txns.contains_key(&id) && !failpoint::mutant("C20-fsync") {
            told_of_ended(&state, id)?;
        }
        // What others have put there is the file now, and must not be replaced by nothing. And what
        // is no transaction any more has become a version by its first line.
        let is_no_op = current::is_no_op(engine, &mut state, id);
        let txn = state.txns.get(&id).filter(|_| !is_no_op);
        let Some(dentry) = txn.map(|t| t.dentry().clone()) else {
            return Ok(None);
        };
        // Under the same lock as the record: a new journal must carry it.
        let current = current::current_if_any(engine, &mut state, &dentry)
            .ok()
            .flatten();
        publish::tell_parts(engine, &mut state, id, &mut kept.content);
        let failed = content.failed.is_some();
        let mut records = kept.records(content.id);
        records.extend(failed.then(|| withholding::record(content.id, false)));
        let appends = engine.sequencer.append_all(&records)?;
        kept.is_told(appends);
        if let Some(txn) = state.txns.get_mut(&id) {
            txn.promise.note_fsync(current, kept);
            if failed {
                withholding::note(txn, false, appends);
            }
        }
        Ok(Some(appends))
    };
    let promised = promise();
    drop(content);
    promised
        .and_then(|appends| match appends {
            None => durability::checkpoint_all(engine),
            Some(appends) => durability::sync_journal_to(engine, appends),
        })
        .inspect_err(|errno| staging.lock().fail(*errno, "fsync"))
}

impl Engine {
    /// fsync or fdatasync of an open description (C7).
    pub fn fsync(
        self: &Arc<Self>,
        handle: HandleId,
        done: impl FnOnce(OpResult<()>) + Send + 'static,
    ) {
        let file = match opened(self, handle) {
            Ok(file) => file,
            Err(e) => return done(Err(e)),
        };
        let progress = file.fsync(self);
        let again = move |engine: &Arc<Engine>, done| engine.fsync(handle, done);
        go_on(self, progress, done, again);
    }
}

/// Sets the length of an open description's file.
pub fn truncate_handle(
    engine: &Arc<Engine>,
    caller: Caller,
    handle: HandleId,
    size: u64,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    let file = match opened(engine, handle) {
        Ok(file) => file,
        Err(e) => return done(Err(e)),
    };
    let progress = file.truncate(engine, Asked { caller, handle }, size);
    let again =
        move |engine: &Arc<Engine>, done| truncate_handle(engine, caller, handle, size, done);
    go_on(engine, progress, done, again);
}

/// Changes the content. If only the want of space keeps it from happening, the transaction hasn't
/// failed yet: `change_staged` decides.
pub fn unless_full(
    content: &mut Content,
    change: impl FnOnce(&mut Content) -> OpResult<()>,
) -> OpResult<()> {
    let failed_before = content.failed.is_some();
    let result = change(content);
    if room::is_full(&result) && !failed_before {
        content.failed = None;
    }
    result
}

pub fn write_staged(content: &mut Content, data: &[u8], offset: u64, kill: Gone) -> OpResult<()> {
    content.write(data, offset)?;
    if kill != 0 {
        clear_set_id(&content.file, kill)?;
    }
    Ok(())
}

pub fn read_at(file: &File, offset: u64, size: u32) -> OpResult<Vec<u8>> {
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

/// Who holds a transaction's content is about to change it. `false`: what was staged may be a version
/// by now, since it has been closed meanwhile, or a new log has got its first one.
pub fn changes_now(engine: &Engine, id: TxnId) -> bool {
    let mut state = engine.lock();
    let is_open = state.txns.get(&id).is_some_and(|t| !t.phase.is_closing());
    if is_open {
        unprepare(engine, &mut state, id);
        if let Some(txn) = state.txns.get_mut(&id) {
            // Though its program has emptied the name: this comes after that.
            txn.purpose.note_write();
        }
    }
    is_open || failpoint::mutant("C10-cut")
}
