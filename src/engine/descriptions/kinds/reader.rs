//! A description that reads one version.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::MutexGuard;
use rustix::io::Errno;

use crate::engine::base::handle::{
    Asked, OpenFile, Progress, Source, Unlock, later, leave_node, seek_in,
};
use crate::engine::base::{current, state};
use crate::engine::descriptions::locking;
use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::namespace::Shown;
use crate::sys::failpoint;
use crate::types::{NodeId, OpResult};

/// See the module. What it reads never changes: who is to read another version gets another in its place.
#[derive(Debug)]
pub struct VersionReader {
    /// The version's node.
    pub node: NodeId,
    /// What it sees.
    pub read: Shown,
    /// The kernel reads that by itself, or finds it in its pages: this description can't move to another version.
    pub stays: AtomicBool,
}

impl OpenFile for VersionReader {
    fn source(&self, offset: u64, len: u64) -> OpResult<Source> {
        let within = self.read.within(offset, len);
        Ok(Source::File(self.read.file.clone(), within))
    }

    fn seek(&self, offset: u64, hole: bool) -> OpResult<u64> {
        seek_in(&self.read.file, offset, hole)
    }

    fn copy_source(&self, offset: u64, len: u64) -> OpResult<(Arc<File>, u64)> {
        Ok((self.read.file.clone(), self.read.within(offset, len)))
    }

    /// A version that was read and fsync'd through the reader's descriptor: make what is committed so far durable.
    fn fsync(self: Arc<Self>, _engine: &Arc<Engine>) -> Progress {
        later(|engine| Some(durability::checkpoint_all(engine)))
    }

    fn release(
        self: Arc<Self>,
        engine: &Arc<Engine>,
        mut guard: MutexGuard<'_, State>,
        unlock: Unlock,
    ) {
        let state = &mut *guard;
        leave_node(engine, state, self.node, |n| n.readers -= 1);
        state::give_back(engine, state, &unlock);
    }

    fn granted(self: Arc<Self>, engine: &Arc<Engine>, by: Asked, _node: NodeId) -> Progress {
        let node = self.node;
        if self.stays.load(Ordering::Relaxed) && !failpoint::mutant("C12-passed") {
            // What the kernel reads without asking can't become another version. Better no lock than an old version under it.
            let stays = is_current(engine, &mut engine.lock(), node);
            return Progress::Done(stays.then_some(()).ok_or(Errno::STALE));
        }
        let moved = move |engine: &Engine| {
            locking::move_reader(engine, by.caller, by.handle, node)
                .inspect_err(|e| log::warn!("a locked reader stays at its version: {e}"))
                .ok();
        };
        let waits = !engine.kernel.uncached() || engine.lock().pending.unwritten().next().is_some();
        if !waits {
            moved(engine);
            return Progress::Done(Ok(()));
        }
        // The version it moves to may have to be written out first, or the kernel told.
        later(move |engine| {
            moved(engine);
            Some(Ok(()))
        })
    }

    fn reads(&self) -> Option<NodeId> {
        Some(self.node)
    }

    fn pass(&self) -> Option<Arc<File>> {
        self.stays.store(true, Ordering::Relaxed);
        Some(self.read.file.clone())
    }
}

/// Whether nothing has come in the place of a version.
fn is_current(engine: &Engine, state: &mut State, node: NodeId) -> bool {
    let dentry = state.nodes.get(node).and_then(|n| n.at.clone());
    let current = dentry.and_then(|dentry| {
        current::current_if_any(engine, state, &dentry)
            .ok()
            .flatten()
    });
    current.is_none_or(|current| current == node || state.file_of(current) != state.file_of(node))
}
