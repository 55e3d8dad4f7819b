//! Whole records are added: the journal is told first, and what fails adds nothing.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use parking_lot::MutexGuard;

use crate::commit::Changeset;
use crate::engine::base::watchers;
use crate::engine::descriptions::io;
use crate::engine::versions::appends::places::AppendTarget;
use crate::engine::versions::appends::targets;
use crate::engine::versions::{durability, room};
use crate::engine::{Engine, State};
use crate::file::{Appender, Unfinished};
use crate::journal::{Edit, FileKey};
use crate::rules::Stream;
use crate::sys::failpoint;
use crate::txn::Transaction;
use crate::types::{Dentry, OpResult, Seq, TxnId, errno_of};

/// Adds `bytes` to the current version, in one piece.
pub fn append_records(
    engine: &Engine,
    appender: &Appender,
    inner: &mut Unfinished,
    bytes: &[u8],
) -> OpResult<()> {
    room::making_room(engine, || append_once(engine, appender, inner, bytes))
}

/// Adds `bytes` in one piece, or nothing. Holds no lock when it has failed, so that room can be made.
fn append_once(
    engine: &Engine,
    appender: &Appender,
    inner: &mut Unfinished,
    bytes: &[u8],
) -> OpResult<()> {
    loop {
        let lock = engine.appends.lock();
        let mut guard = engine.lock();
        match targets::target(engine, &mut guard, appender)? {
            Ok(target) => {
                let (node, dentry) = (target.node, target.dentry.clone());
                let shown = target.ends.show(target.file.clone());
                add(engine, guard, appender, target, bytes)?;
                if node != appender.node {
                    inner.read = shown;
                }
                if let Some(dentry) = dentry {
                    watchers::grown(engine, &dentry);
                }
                return Ok(());
            }
            Err(hold) => {
                drop(guard);
                drop(lock);
                targets::wait_out(engine, hold)?;
            }
        }
    }
}

/// Adds bytes where `targets::target` has said, under the same locks.
fn add(
    engine: &Engine,
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
        unpromise_editors(engine, state, dentry);
    }
    if let Some((key, path)) = target.told {
        let seq = engine.sequencer.try_commit(Changeset::from(Edit::Append {
            path,
            file: Some(key),
            from,
            len: bytes.len() as u64,
            crc: crc32c::crc32c(bytes),
        }))?;
        state.tally.metrics.note_commit(seq, Instant::now());
        state.backlog.growing.append(key, seq, end);
        appender.note_commit(seq);
        journalled = Some((seq, key));
    }
    if journalled.is_some() || target.dentry.is_some() {
        let seq = engine.sequencer.last();
        state
            .backlog
            .unsynced
            .note_append(target.node, seq, file.clone());
        if let Some(node) = state.nodes.get_mut(target.node) {
            node.added_to = true;
            let goes_on = appender.stream == Stream::Json && bytes.ends_with(b"\n");
            node.json_lines = if goes_on { end } else { 0 };
        }
        state.tally.counters.appends += 1;
        durability::wake_checkpoint(engine, state);
    }
    let adding = engine.appends.begin(&file);
    drop(guard);
    failpoint::crash_point("append-journalled");
    failpoint::delay("COMMITFS_APPEND_DELAY_MS");
    let written = failpoint::fail_point("append")
        .and_then(|()| file.write_all_at(bytes, from).map_err(|e| errno_of(&e)));
    if let Err(e) = written {
        file.set_len(from).ok();
        if let Some((seq, key)) = journalled {
            withdraw(engine, seq, key, from)?;
        }
        return Err(e);
    }
    target.ends.advance(end);
    drop(adding);
    Ok(())
}

/// A commit that was journalled and couldn't be written.
fn withdraw(engine: &Engine, seq: Seq, file: FileKey, end: u64) -> OpResult<()> {
    let mut state = engine.lock();
    state.backlog.growing.withdraw(file, end);
    engine.sequencer.withdraw(seq)
}

/// What an editor's close has promised while others still hold it is older than a line that is
/// added now.
fn unpromise_editors(engine: &Engine, state: &mut State, dentry: &Dentry) {
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
        io::unprepare(engine, state, id);
    }
}
