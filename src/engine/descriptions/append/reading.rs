//! What is read through a description that adds lines.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::base::current;
use crate::engine::descriptions::io;
use crate::engine::documents::texts;
use crate::file::{AppendPlace, Appender, Unnamed};
use crate::namespace::{NodeKind, Shown};
use crate::sys::{at, failpoint};
use crate::types::OpResult;

/// A read through an appending description: its own unfinished line included. Who reads from
/// the beginning reads what is there now, as on the plain directory: it may have waited for a
/// lock through another description, or another file. The rest comes from the same version.
pub fn read_appender(
    engine: &Engine,
    appender: &Appender,
    offset: u64,
    size: u32,
) -> OpResult<Vec<u8>> {
    if offset == 0 && !failpoint::mutant("C12-barrier") {
        move_appender(engine, appender)?;
    }
    let inner = appender.inner.lock();
    let end = inner.read.length()?;
    let within = inner.read.within(offset, size.into()) as u32;
    let mut data = io::read_at(&inner.read.file, offset, within)?;
    if data.len() < size as usize && offset + data.len() as u64 >= end {
        let skip = usize::try_from(offset.saturating_sub(end)).unwrap_or(usize::MAX);
        let room = size as usize - data.len();
        data.extend(inner.tail.iter().skip(skip).take(room));
    }
    Ok(data)
}

/// Reads go to the file's current version from now on: a lock was granted (C12), say.
pub fn move_appender(engine: &Engine, appender: &Appender) -> OpResult<()> {
    let mut inner = appender.inner.lock();
    let place = appender.place.lock().clone();
    let mut guard = match &place {
        AppendPlace::At(dentry) => texts::lock_materialized(engine, dentry)?,
        AppendPlace::Nameless(_) => engine.lock(),
    };
    let state = &mut *guard;
    match place {
        AppendPlace::At(dentry) => {
            let Some(current) = current::current_if_any(engine, state, &dentry)? else {
                return Ok(());
            };
            let node = state.nodes.get(current).ok_or(Errno::STALE)?;
            if node.kind == NodeKind::File {
                inner.read = Shown::of(&state.nodes, current)?;
            }
        }
        AppendPlace::Nameless(Unnamed { fd, ends, .. }) => {
            inner.read = ends.show(Arc::new(at::reopen(&*fd, OFlags::RDONLY)?));
        }
    }
    Ok(())
}
