//! Descriptions of a transaction, and of a version.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::base::lines;
use crate::engine::base::opening::{OpenStep, Opened, Pass};
use crate::engine::deciding::checkpoint::tell_begun;
use crate::engine::deciding::rounds;
use crate::engine::descriptions::io;
use crate::engine::descriptions::kinds::{StagedFile, VersionReader};
use crate::engine::meaning::ledger;
use crate::engine::versions::passing;
use crate::engine::versions::shared::is_database;
use crate::engine::{Engine, State};
use crate::file::Opening;
use crate::namespace::{Node, Shown};
use crate::rules::Creation;
use crate::sys::{failpoint, proc};
use crate::txn::Content;
use crate::types::{Caller, Dentry, NodeId, OpResult, TxnId};

/// One more open description on a transaction.
pub fn join(
    engine: &Engine,
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
        rounds::enter(engine, state, id);
        let txn = &state.txns[&id];
        tell_begun(engine, state, txn)?;
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
    let pass = passing::of_writer(&engine.store, state, (id, first), (caller.tid, flags));
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
        direct_io: streams || engine.kernel.uncached(),
        no_flush: false,
        pass,
    })
}

/// O_TRUNC through a descriptor of the transaction itself: what it has staged is emptied, as soon
/// as nobody is at it.
pub fn empty_and_join(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: TxnId,
    flags: OFlags,
) -> OpResult<OpenStep> {
    let staging = state.txns.get(&id).ok_or(Errno::STALE)?.staging.clone();
    let Some(mut content) = staging.try_lock() else {
        return Ok(OpenStep::InUse(id));
    };
    empty_staged(engine, state, id, &mut content)?;
    join(engine, state, caller, id, flags).map(OpenStep::Done)
}

/// Joins the transaction of an emptied file once whoever was at it is done. Waits, holding nothing.
pub fn join_emptied(engine: &Engine, caller: Caller, id: TxnId, flags: OFlags) -> OpResult<Opened> {
    let staging = engine.lock().txns.get(&id).map(|txn| txn.staging.clone());
    let staging = staging.ok_or(Errno::STALE)?;
    let mut content = staging.lock();
    let mut state = engine.lock();
    empty_staged(engine, &mut state, id, &mut content)?;
    join(engine, &mut state, caller, id, flags)
}

pub fn empty_staged(
    engine: &Engine,
    state: &mut State,
    id: TxnId,
    content: &mut Content,
) -> OpResult<()> {
    io::unprepare(engine, state, id);
    let txn = state.txns.get_mut(&id).ok_or(Errno::STALE)?;
    txn.purpose.note_change();
    content.truncate(0)
}

/// A reader of a version.
pub fn open_version(
    engine: &Engine,
    state: &mut State,
    caller: Caller,
    id: NodeId,
    dentry: Option<&Dentry>,
    flags: OFlags,
) -> OpResult<Opened> {
    let read = Shown::open(&state.nodes, id, engine.reading(flags))?;
    if let Some(dentry) = dentry {
        ledger::note_read(engine, state, caller, dentry, Some((id, &read.file)));
    }
    let node = state.nodes.get(id).ok_or(Errno::STALE)?;
    let len = read.file.metadata().map_or(u64::MAX, |m| m.len());
    let locked = state.files.was_locked(state.file_of(id));
    let direct_io = (len <= UNCACHED && engine.kernel.uncached())
        || locked
        || (engine.strangers.may_empty(node.at.as_ref()) && engine.kernel.uncached())
        || may_grow(engine, state, node, &read.file, len);
    let mut pass = Pass::Beside;
    if let (Some(dentry), true) = (dentry, !direct_io && !engine.config.noatime) {
        let policy = engine.policy(state, dentry, Creation::default());
        pass = passing::of_version(&read, &policy, || is_database(state, id))?;
    }
    let node = state.nodes.get_mut(id).ok_or(Errno::STALE)?;
    node.readers += 1;
    node.cached |= !direct_io;
    // Nothing drops these pages when it is locked, where the kernel doesn't go by the time of modification.
    let in_pages = !direct_io && engine.kernel.uncached() && !failpoint::mutant("C12-pages");
    let (node, stays) = (id, AtomicBool::new(in_pages));
    let handle = state.add_handle(Arc::new(VersionReader { node, read, stays }));
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

/// Whether records may be appended while it is read: the kernel's page with the old end would
/// show zeros in their place (C10).
pub fn may_grow(engine: &Engine, state: &State, node: &Node, file: &File, len: u64) -> bool {
    if node.grows() {
        return true;
    }
    // Without mmap a reader is better off with a version that stays as it is: see `hold_end`.
    let Some(dentry) = node.at.as_ref().filter(|_| engine.kernel.uncached()) else {
        return false;
    };
    let mut last = [0];
    let read = file.read_at(&mut last, len.saturating_sub(1));
    let ends_a_line = read.is_ok() && matches!(last, [b'\n' | b'\r']);
    ends_a_line && lines::by_lines(&engine.policy(state, dentry, Creation::default()))
}

/// Files up to this size are read uncached, where the kernel allows that together with mmap.
pub const UNCACHED: u64 = 64 << 10;
