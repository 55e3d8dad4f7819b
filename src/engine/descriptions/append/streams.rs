//! Descriptions that begin or stop adding lines: a new stream gets its first version, and who writes elsewhere goes on on a copy.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::handle::{Asked, WriteRequest};
use crate::engine::base::{current, lines, setid, target};
use crate::engine::deciding::finishing;
use crate::engine::descriptions::append::tails::is_half;
use crate::engine::descriptions::append::{records, tails};
use crate::engine::descriptions::io;
use crate::engine::descriptions::kinds::StagedFile;
use crate::engine::descriptions::open::joining;
use crate::engine::documents::texts;
use crate::engine::meaning::ledger;
use crate::engine::versions::beginning;
use crate::engine::versions::publish;
use crate::engine::{Engine, State};
use crate::file::{AppendPlace, Appender, Opening, Unfinished};
use crate::journal::{ContentInfo, Record};
use crate::namespace::{NodeKind, Shown};
use crate::rules::Stream;
use crate::sys::{failpoint, proc};
use crate::txn::{Begun, Content, Ready, Staging, Transaction};
use crate::types::{Caller, Dentry, HandleId, NodeId, OpResult, Seq, TxnId, errno_of};

/// Whether a description's close, or its end, leaves half a JSON value: it goes on on a copy then,
/// for the guard to judge. An earlier close by another process is none.
pub fn leave_half_line(
    engine: &Engine,
    Asked { caller, handle }: Asked,
    appender: &Appender,
) -> bool {
    let closes = proc::tgid(caller.tid) == Some(appender.opening.opener);
    let half = closes && is_half(appender, &appender.inner.lock());
    half && leave_stream(engine, caller, handle, appender, false).is_ok()
}

/// The state, and the name that an appender is at. A document that was patched may have its text in memory alone.
fn lock_materialized_at<'a>(
    engine: &'a Engine,
    appender: &Appender,
) -> OpResult<(MutexGuard<'a, State>, Dentry)> {
    loop {
        let AppendPlace::At(dentry) = appender.place.lock().clone() else {
            return Err(Errno::NOENT);
        };
        let guard = texts::lock_materialized(engine, &dentry)?;
        if matches!(&*appender.place.lock(), AppendPlace::At(now) if *now == dentry) {
            return Ok((guard, dentry));
        }
    }
}

/// A description that stops appending (it truncates, or writes elsewhere) goes on as a
/// transaction on a copy. Several may find that out at once.
pub fn leave_stream(
    engine: &Engine,
    caller: Caller,
    handle: HandleId,
    appender: &Appender,
    writeback: bool,
) -> OpResult<(TxnId, Arc<Staging>)> {
    // Held until it has left: what others write meanwhile goes to the copy.
    let mut inner = appender.inner.lock();
    if inner.left {
        let state = engine.lock();
        let staged = state.handles.get(handle);
        let staged = staged.and_then(|file| Some((file.transaction()?, file.content()?.clone())));
        return staged.ok_or(Errno::BADF);
    }
    match tails::flush_tail(engine, appender, &mut inner) {
        // Somebody has made it a document: it goes to the copy, for the guard to judge.
        Err(Errno::BADMSG) if appender.stream == Stream::Json => {}
        other => other?,
    }
    let (mut guard, dentry) = lock_materialized_at(engine, appender)?;
    let state = &mut *guard;
    let base = current::current(engine, state, &dentry)?;
    let id = beginning::begin_on(engine, state, dentry, Begun::Edit(base))?;
    let leaver = match writeback {
        true => Caller {
            tid: appender.opening.opener,
            ..caller
        },
        false => caller,
    };
    let opened = joining::join(engine, state, leaver, id, OFlags::RDWR)?;
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
        io::note_write(engine, id, leaver, end + half.len() as u64)?;
        content.write(&half, end)?;
    }
    drop(content);
    Ok((id, staging))
}

/// A new file's stream has its first complete line, or an appender closes or renames its new
/// file: that is its first version, and its descriptions go on as appenders. `by` wrote `data`.
/// Gives the number of that commit, 0 if it wasn't one; nothing if another thread has done it meanwhile, so that
/// `data` is still to be added.
pub fn publish_first(
    engine: &Engine,
    id: TxnId,
    handle: HandleId,
    by: u32,
    data: &[u8],
) -> OpResult<Option<Seq>> {
    let staging = engine.lock().txns.get(&id).map(|txn| txn.staging.clone());
    let Some(staging) = staging else {
        return Ok(None);
    };
    // Until its descriptions are those of appenders nobody writes into what is described here.
    let mut content = staging.lock();
    failpoint::delay("COMMITFS_FIRST_VERSION_DELAY_MS");
    let stream = engine.lock().txns.get(&id).map(|txn| txn.purpose.stream());
    if stream.is_none() && !failpoint::mutant("C10-born") {
        return Ok(None);
    }
    let stream = stream.flatten().unwrap_or(Stream::Lines);
    let (lines, rest) = data.split_at(lines::whole(data, stream));
    let end = content.size()?;
    let (mut guard, described) = add_first(engine, id, &mut content, lines)?;
    let state = &mut *guard;
    let ready = Ready::new(content.id, content.file.clone(), described);
    let txn = state.txns.get(&id).ok_or(Errno::IO)?;
    if txn.is_unlinked() {
        // Nobody will ever see it, but for who writes it.
        drop(guard);
        let end = end + lines.len() as u64;
        return content.write(rest, end).map(|_| Some(Seq::default()));
    }
    let (dentry, node, always) = (txn.dentry().clone(), txn.node, txn.purpose.appends());
    // Another process that was creating the file, too, may have come first: its version grows.
    let first = match current::current_if_any(engine, state, &dentry)? {
        Some(current) if always => {
            let shown = Shown::of(&state.nodes, current)?;
            Some((current, shown))
        }
        _ => None,
    };
    let writers: Vec<(HandleId, Opening)> = state.handles.writers(id).collect();
    // Who has asked for it through a description that is closed by now adds nothing.
    let asked = writers.iter().find(|(writer, ..)| *writer == handle);
    let (handle, ..) = *asked.or(writers.first()).ok_or(Errno::NOENT)?;
    let before = first.as_ref().map(|(current, _)| *current);
    become_version(state, (id, node), &dentry, writers.len(), before);
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
        publish::publish(engine, state, &dentry, ready, node);
        let seq = engine.sequencer.last();
        for appender in state.names.appenders(&dentry) {
            appender.note_commit(seq);
        }
        drop(guard);
        failpoint::delay("COMMITFS_FIRST_LINE_DELAY_MS");
        inner.hold(rest, by);
        return Ok(Some(seq));
    }
    drop(guard);
    let added = add_staged(engine, appender, &mut inner, (&ready, end, lines), by);
    added?;
    inner.hold(rest, by);
    Ok(Some(appender.last()))
}

/// A new file's descriptions write it no longer: `writers` add lines to what it has become. `first`: to the version that
/// has come before it.
fn become_version(
    state: &mut State,
    (id, node): (TxnId, NodeId),
    dentry: &Dentry,
    writers: usize,
    first: Option<NodeId>,
) {
    state.remove_transaction(id);
    ledger::note_author(state, node, id);
    state.forget_save(id);
    if let Some(n) = state.nodes.get_mut(node) {
        n.kind = NodeKind::File;
        n.at = Some(dentry.clone());
        n.readers += writers as u32;
        if first.is_some() {
            (n.superseded, n.unlinked) = (true, true);
        }
    }
    if let Some(current) = first {
        state.same_file(node, current);
    }
}

/// Adds what was staged, and these lines, to the version that has come first.
fn add_staged(
    engine: &Engine,
    appender: &Appender,
    inner: &mut Unfinished,
    (ready, end, lines): (&Ready, u64, &[u8]),
    by: u32,
) -> OpResult<()> {
    let mut whole = vec![0; usize::try_from(end).map_err(|_| Errno::FBIG)?];
    let read = ready.file.read_exact_at(&mut whole, 0);
    read.map_err(|e| errno_of(&e))?;
    whole.extend_from_slice(lines);
    let added = records::append_records(engine, appender, inner, &whole);
    engine.store.remove_staging(ready.id).ok();
    let id = ready.id;
    engine.sequencer.append(&Record::Abort { id }).ok();
    if added.is_err() {
        // This write fails; what it has acknowledged before is tried again by the close.
        whole.truncate(whole.len() - lines.len());
        inner.hold(&whole, by);
    }
    added
}

/// Adds a stream's first lines, and looks whether they can be published. Gives what that holds to the end; if they can't, they
/// are not there: their program writes them again.
fn add_first<'a>(
    engine: &'a Engine,
    id: TxnId,
    content: &mut Content,
    lines: &[u8],
) -> OpResult<(MutexGuard<'a, State>, ContentInfo)> {
    let end = content.size()?;
    content.write(lines, end)?;
    let added = describe_first(engine, id, content);
    if added.is_err() && !failpoint::mutant("C10-first-line") {
        content.truncate(end)?;
    }
    added
}

fn describe_first<'a>(
    engine: &'a Engine,
    id: TxnId,
    content: &mut Content,
) -> OpResult<(MutexGuard<'a, State>, ContentInfo)> {
    publish::reserve_commit(engine)?;
    let described = content.describe()?;
    let dentry = engine.lock().txns.get(&id).map(|txn| txn.dentry().clone());
    let guard = texts::lock_materialized(engine, &dentry.ok_or(Errno::IO)?)?;
    let txn = guard.txns.get(&id).ok_or(Errno::IO)?;
    if !txn.is_unlinked() {
        target::check_target(engine, &guard, txn.dentry())?;
    }
    Ok((guard, described))
}

/// A description of a file that still has to get its first version, by its first line.
pub fn unpublished_stream(engine: &Engine, id: TxnId) -> Option<HandleId> {
    let state = engine.lock();
    let txn = state.txns.get(&id)?;
    // JSON that has less than two lines is a document.
    let stream = txn.purpose.is_log();
    let unpublished = stream && !txn.is_unlinked() && txn.writers_death().is_none();
    unpublished.then(|| state.handles.writers(id).next().map(|(handle, _)| handle))?
}

/// The process that closes an appending description, if it was killed.
pub fn killed_flusher(caller: Caller) -> Option<u32> {
    let pid = proc::tgid(caller.tid)?;
    let death = proc::death_of_flusher(caller.tid, pid);
    death.fatal_signal().map(|_| pid)
}

/// A write through a description that adds lines no more: it goes on on a copy.
pub fn write_left(
    engine: &Engine,
    Asked { caller, handle }: Asked,
    appender: &Appender,
    request: WriteRequest,
    data: &[u8],
) -> OpResult<()> {
    let WriteRequest {
        offset, writeback, ..
    } = request;
    let (txn, staging) = leave_stream(engine, caller, handle, appender, writeback)?;
    io::note_write(engine, txn, caller, offset + data.len() as u64)?;
    let mut content = staging.lock();
    let at_end = appender.always && !writeback;
    let offset = if at_end { content.size()? } else { offset };
    content.write(data, offset)?;
    if request.kill {
        setid::drop_set_id(&*content.file, caller, Some(&staging))?;
    }
    Ok(())
}

/// The connection has ended, and with it every description, without a close: by force, say.
pub fn flush_all_tails(engine: &Engine) {
    if failpoint::mutant("C10-shutdown") {
        return;
    }
    for (handle, file) in tails::adding_lines(engine) {
        if file.leave_half(engine, handle) {
            abort_left(engine, handle);
        } else {
            file.flush_last_tail(engine);
        }
    }
}

/// Descriptions with half a JSON value go on as transactions.
pub fn leave_halves(engine: &Engine) {
    for (handle, file) in tails::adding_lines(engine) {
        file.leave_half(engine, handle);
    }
}

/// A description that has left its stream without a close.
pub fn abort_left(engine: &Engine, handle: HandleId) {
    let state = engine.lock();
    if let Some(id) = state.handles.get(handle).and_then(|f| f.transaction()) {
        finishing::abort_by_force(engine, state, &[id]);
    }
}

impl Appender {
    /// The description goes on in a transaction.
    pub(in crate::engine) fn hand_over(&self, txn: &mut Transaction) {
        // The kernel knows the description by this node.
        txn.purpose.show_as(self.node);
        let Opening { opener, thread, .. } = self.opening;
        txn.participants.take_over((opener, thread));
    }

    /// The last reference of a description is gone, and nothing is lost that can be rejected: half a JSON
    /// value, if it has one, goes on as a transaction. Gives whether it has one.
    pub(in crate::engine) fn leave_half_at_end(&self, engine: &Engine, handle: HandleId) -> bool {
        let caller = Caller {
            tid: self.opening.opener,
            uid: 0,
            gid: 0,
        };
        let half = is_half(self, &self.inner.lock());
        if half && let Err(e) = leave_stream(engine, caller, handle, self, false) {
            self.inner.lock().failed = Some(e);
            self.report_left(engine);
        }
        half
    }
}
