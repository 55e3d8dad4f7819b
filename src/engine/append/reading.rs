//! What is read through a description that adds lines.

use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::Engine;
use crate::file::{AppendPlace, Appender, Unnamed};
use crate::namespace::{NodeKind, Shown};
use crate::sys::{at, failpoint};
use crate::types::OpResult;

impl Engine {
    /// A read through an appending description: its own unfinished line included. Who reads from
    /// the beginning reads what is there now, as on the plain directory: it may have waited for a
    /// lock through another description, or another file. The rest comes from the same version.
    pub(in crate::engine) fn read_appender(
        &self,
        appender: &Appender,
        offset: u64,
        size: u32,
    ) -> OpResult<Vec<u8>> {
        if offset == 0 && !failpoint::mutant("C12-barrier") {
            self.move_appender(appender)?;
        }
        let inner = appender.inner.lock();
        let end = inner.read.length()?;
        let within = inner.read.within(offset, size.into()) as u32;
        let mut data = crate::engine::io::read_at(&inner.read.file, offset, within)?;
        if data.len() < size as usize && offset + data.len() as u64 >= end {
            let skip = usize::try_from(offset.saturating_sub(end)).unwrap_or(usize::MAX);
            let room = size as usize - data.len();
            data.extend(inner.tail.iter().skip(skip).take(room));
        }
        Ok(data)
    }

    /// Reads go to the file's current version from now on: a lock was granted (C12), say.
    pub(in crate::engine) fn move_appender(&self, appender: &Appender) -> OpResult<()> {
        let mut inner = appender.inner.lock();
        let place = appender.place.lock().clone();
        let mut guard = match &place {
            AppendPlace::At(dentry) => self.lock_materialized(dentry)?,
            AppendPlace::Nameless(_) => self.lock(),
        };
        let state = &mut *guard;
        match place {
            AppendPlace::At(dentry) => {
                let Some(current) = self.current_if_any(state, &dentry)? else {
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
}
