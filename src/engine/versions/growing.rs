//! Files that grow in place, as the journal knows of them (C10, C19).
//!
//! Their bytes may come to the medium before the records of the appends do. So before the first
//! append to a file a record says from what length on it grows, and that record is on the medium
//! before the bytes go into the file: recovery cuts off what the journal doesn't account for. One
//! wait for the disk serves all appends to the file until it is forgotten here, be they by many
//! (`echo line >> log` opens it anew each time); a new journal carries it over.
//!
//! A file may be forgotten, by a new journal or for want of space here, when all of its appends are
//! on the medium: its next append tells of it again, with the length that it has by then.

use std::path::Path;

use rustix::fs::RenameFlags;

use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::journal::{FileKey, Record};
use crate::sys::failpoint;
use crate::txn::{GrownBase, key_of};
use crate::types::{Dentry, HandleId, NodeId, OpResult};

/// Lets the journal tell that a file grows from this length on. The record is not on the medium
/// yet: [`await_told`].
pub fn tell_growing(
    engine: &Engine,
    state: &mut State,
    file: FileKey,
    path: &Path,
    len: u64,
) -> OpResult<()> {
    if state.backlog.growing.knows(file) {
        return Ok(());
    }
    let durable = engine.sequencer.durable();
    state.backlog.growing.make_room(durable);
    engine.sequencer.append(&Record::Growing {
        file,
        path: path.to_owned(),
        len,
    })?;
    state.backlog.growing.tell(file, path, len);
    Ok(())
}

/// Waits until what the journal tells of a file is on the medium. Holding nothing.
pub fn await_told(engine: &Engine, file: FileKey) -> OpResult<()> {
    let ticket = engine.lock().backlog.growing.ticket(file);
    if !failpoint::mutant("C19-growing-told") {
        durability::sync_journal(engine)?;
    }
    failpoint::crash_point("growing-told");
    engine.lock().backlog.growing.note_told(file, ticket);
    Ok(())
}

/// Files were renamed in the backing directory: those that grow are found sooner by recovery.
pub fn note_grown_moved(
    engine: &Engine,
    state: &mut State,
    (from, to): (&Dentry, &Dentry),
    (source, target): (NodeId, Option<NodeId>),
    flags: RenameFlags,
) {
    let exchanged = target.filter(|_| flags.contains(RenameFlags::EXCHANGE));
    for (node, dentry) in [(Some(source), to), (exchanged, from)] {
        let fd = node.and_then(|node| state.nodes.fd(node).ok());
        let path = state.nodes.path(dentry);
        if let (Some(fd), Some(path)) = (fd, path)
            && let Ok(file) = key_of(&*fd)
        {
            growing_moved(engine, state, file, &path);
        }
    }
}

fn growing_moved(engine: &Engine, state: &mut State, file: FileKey, path: &Path) {
    let from = engine.sequencer.first_appends().get(&file).copied();
    let Some(end) = state.backlog.growing.move_to(file, path) else {
        return;
    };
    let record = Record::Growing {
        file,
        path: path.to_owned(),
        len: from.unwrap_or(end),
    };
    engine.sequencer.append(&record).ok();
}

/// The file of a description in direct mode, if recovery would cut it off.
pub fn grown_in_place(engine: &Engine, handle: HandleId) -> Option<FileKey> {
    let state = engine.lock();
    if state.backlog.growing.is_empty() {
        return None;
    }
    let file = key_of(state.handles.get(handle)?.in_place()?).ok()?;
    state.backlog.growing.knows(file).then_some(file)
}

/// Others write a file in place from here on (C14), and recovery must leave it as it is. Waits
/// for the disk, holding nothing.
pub fn end_growing(engine: &Engine, file: FileKey) -> OpResult<()> {
    {
        let mut state = engine.lock();
        if !state.backlog.growing.forget(file) {
            return Ok(());
        }
        if failpoint::mutant("C14-settled") {
            return Ok(());
        }
        engine.sequencer.settle(file)?;
    }
    durability::sync_journal(engine)
}

/// See [`Appends::are_all_in`](crate::engine::versions::appends::adding::Appends::are_all_in).
pub fn has_all_added(engine: &Engine, grown: Option<GrownBase>) -> bool {
    grown.is_none_or(|g| engine.appends.are_all_in(&g))
}
