//! OPEN: who is at the end of its second lookup is not sent round once more.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::engine::Engine;
use crate::engine::admin::virtualdir;
use crate::engine::base::opening::{Goal, OpenRequest, Opened, Way, writes};
use crate::engine::base::{current, watchers};
use crate::engine::descriptions::open::{arriving, joining};
use crate::engine::descriptions::retries;
use crate::engine::descriptions::retries::{Arrival, arrive, as_other, as_shared};
use crate::engine::requests::virtual_files::virtual_open;
use crate::engine::requests::watch_requests;
use crate::namespace::NodeKind;
use crate::sys::failpoint;
use crate::types::{Caller, HandleId, NodeId, OpResult};

impl Engine {
    /// Opens a node that a lookup has found.
    pub fn open(
        self: &Arc<Self>,
        caller: Caller,
        node: NodeId,
        request: OpenRequest,
        done: impl FnOnce(OpResult<Opened>) + Send + 'static,
    ) {
        if virtualdir::is_virtual(node) {
            return done(virtual_open(self, node, request.flags));
        }
        if watchers::is_watch_helper(self, caller) {
            return done(Ok(watch_requests::watch_helper_open(self)));
        }
        if failpoint::number("COMMITFS_OPEN_DELAY_MS", 0) == 0 {
            return open_at_last(self, caller, node, request, done);
        }
        self.on_worker(move |engine| {
            failpoint::delay("COMMITFS_OPEN_DELAY_MS");
            open_at_last(engine, caller, node, request, move |opened| {
                if matches!(opened, Err(Errno::STALE)) {
                    // It is on its second lookup so much later.
                    failpoint::delay("COMMITFS_OPEN_DELAY_MS");
                }
                done(opened);
            });
        });
    }

    /// The backing file of a description, for the kernel, which reads that by itself from then on. BADF if it can't be.
    pub fn pass(&self, handle: HandleId) -> OpResult<Arc<File>> {
        let mut state = self.lock();
        let file = state.handles.get(handle).ok_or(Errno::BADF)?.pass();
        state.tally.metrics.passed += u64::from(file.is_some());
        file.ok_or(Errno::BADF)
    }
}

/// Opens what a lookup has found; whoever is at the end of its second lookup is not sent round once more, wherever that
/// has led it.
pub fn open_at_last(
    engine: &Arc<Engine>,
    caller: Caller,
    node: NodeId,
    request: OpenRequest,
    done: impl FnOnce(OpResult<Opened>) + Send + 'static,
) {
    match arrive(engine, caller, node, Goal::Open(request.flags)) {
        Arrival::Opened(opened) => done(Ok(opened)),
        Arrival::Plain => arriving::open_arrived(engine, caller, node, request, done),
        Arrival::Elsewhere => {
            let at_last = engine.clone();
            arriving::open_arrived(engine, caller, node, request, move |opened| match opened {
                Err(Errno::STALE) => done(open_on_the_spot(&at_last, caller, node, request.flags)),
                opened => done(opened),
            });
        }
    }
}

/// Instead of a third lookup: as where the path can't be walked again (see `open_unwalked`).
pub fn open_on_the_spot(
    engine: &Engine,
    caller: Caller,
    node: NodeId,
    flags: OFlags,
) -> OpResult<Opened> {
    let mut state = engine.lock();
    let note = state.walks.pending_opens.remove(&caller.tid);
    let note = note.filter(|n| n.old == node).ok_or(Errno::STALE)?;
    match note.way {
        Way::Own { txn, .. } => retries::open_shared(engine, &mut state, caller, txn, flags),
        Way::Opened { node, opened } => match state.nodes.get(node).map(|n| n.kind) {
            Some(NodeKind::Private(txn)) => Ok(as_shared(engine, &mut state, txn, opened, flags)),
            _ => Ok(opened),
        },
        Way::Anew { .. } if !writes(flags) && !failpoint::mutant("C1-walk-dead") => {
            // What it was about to read is gone.
            let current = current::current_if_any(engine, &mut state, &note.dentry)?;
            let current = current.ok_or(Errno::NOENT)?;
            let dentry = Some(&note.dentry);
            let opened = joining::open_version(engine, &mut state, caller, current, dentry, flags)?;
            Ok(as_other(opened))
        }
        Way::Anew { .. } => retries::open_unlinked(engine, &mut state, caller, &note, flags),
    }
}
