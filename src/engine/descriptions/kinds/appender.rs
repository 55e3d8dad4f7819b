//! A description that adds whole records: see `append`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use crate::engine::base::handle::{
    Allocation, Asked, Closing, FlushRest, OpenFile, Progress, Source, Unlock, Worked,
    WriteRequest, WriteRest, later, leave_node,
};
use crate::engine::base::state;
use crate::engine::descriptions::append::{reading, streams, tails, writing};
use crate::engine::descriptions::{close, commit_points, locking};
use crate::engine::versions::durability;
use crate::engine::{Engine, State};
use crate::file::Appender;
use crate::file::Opening;
use crate::types::{HandleId, NodeId, OpResult};

impl OpenFile for Appender {
    fn source(&self, _offset: u64, _len: u64) -> OpResult<Source> {
        Ok(Source::Waits)
    }

    fn read_waiting(&self, engine: &Engine, offset: u64, size: u32) -> OpResult<Vec<u8>> {
        reading::read_appender(engine, self, offset, size)
    }

    fn write(
        &self,
        _engine: &Arc<Engine>,
        _by: Asked,
        _request: WriteRequest,
        _data: &[u8],
    ) -> Progress<WriteRest> {
        Progress::Rest(WriteRest::Bytes {
            stream: true,
            kill: 0,
        })
    }

    fn write_rest(
        &self,
        engine: &Arc<Engine>,
        by: Asked,
        request: WriteRequest,
        data: &[u8],
        _rest: WriteRest,
    ) -> Worked {
        Some(writing::append_now(engine, by, self, request, data))
    }

    fn truncate(self: Arc<Self>, _engine: &Arc<Engine>, by: Asked, _size: u64) -> Progress {
        goes_on_staged(self, by)
    }

    fn allocate(self: Arc<Self>, _engine: &Arc<Engine>, by: Asked, _range: Allocation) -> Progress {
        goes_on_staged(self, by)
    }

    fn seek(&self, offset: u64, hole: bool) -> OpResult<u64> {
        self.seek_with_tail(offset, hole)
    }

    fn fsync(self: Arc<Self>, _engine: &Arc<Engine>) -> Progress {
        later(move |engine| {
            let added = tails::finish_appender(engine, &self, None);
            Some(added.and_then(|()| durability::checkpoint_all(engine)))
        })
    }

    fn flush(
        &self,
        _engine: &Engine,
        state: MutexGuard<'_, State>,
        close: &Closing,
    ) -> Progress<FlushRest> {
        drop(state);
        let killed = streams::killed_flusher(close.by.caller);
        Progress::Rest(FlushRest::Tail { killed })
    }

    fn flush_rest(&self, engine: &Engine, close: &Closing, rest: FlushRest) -> Worked {
        let FlushRest::Tail { killed } = rest else {
            return Some(Ok(()));
        };
        if killed.is_none() && streams::leave_half_line(engine, close.by, self) {
            return None;
        }
        commit_points::commit_written(engine, close.by.caller, close.locked_file(), None);
        let settled = tails::finish_appender(engine, self, killed);
        locking::release_posix(engine, close.file, close.owner);
        Some(settled.and_then(|()| match killed {
            Some(_) => Ok(()),
            None => close::acknowledge(engine, self.last()),
        }))
    }

    fn release(
        self: Arc<Self>,
        engine: &Arc<Engine>,
        mut guard: MutexGuard<'_, State>,
        unlock: Unlock,
    ) {
        let state = &mut *guard;
        // A mapping can't have kept it: whatever was left was told by FLUSH.
        state.names.delist(&self);
        leave_node(engine, state, self.node, |n| n.readers -= 1);
        if self.may_be_left() {
            let appender = self.clone();
            engine.on_worker(move |engine| appender.report_left(engine));
        }
        state::give_back(engine, state, &unlock);
    }

    fn granted(self: Arc<Self>, _engine: &Arc<Engine>, _by: Asked, _node: NodeId) -> Progress {
        later(move |engine| {
            reading::move_appender(engine, &self)
                .inspect_err(|e| log::warn!("a locked appender reads on in its version: {e}"))
                .ok();
            Some(Ok(()))
        })
    }

    fn shown(&self) -> Option<NodeId> {
        Some(self.node)
    }

    fn opening(&self) -> Opening {
        self.opening
    }

    fn length_with_tail(&self) -> Option<u64> {
        self.length_told()
    }

    fn adds_lines(&self) -> bool {
        true
    }

    fn flush_old_tail(&self, engine: &Engine, patience: Duration) {
        self.flush_tail_after(engine, patience);
    }

    fn flush_last_tail(&self, engine: &Engine) {
        self.flush_tail_for_good(engine);
    }

    fn may_hold_half(&self) -> bool {
        self.may_be_half()
    }

    fn leave_half(&self, engine: &Engine, handle: HandleId) -> bool {
        self.leave_half_at_end(engine, handle)
    }
}

/// What adds no lines goes on on a copy, with what was asked for.
fn goes_on_staged(appender: Arc<Appender>, by: Asked) -> Progress {
    later(move |engine| {
        let left = streams::leave_stream(engine, by.caller, by.handle, &appender, false);
        left.err().map(Err)
    })
}
