//! RELEASE: the last reference of a description is gone.

use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::base::handle::Unlock;
use crate::engine::base::state;
use crate::engine::meaning::pins;
use crate::types::{HandleId, NodeId};

impl Engine {
    /// The last reference of a description is gone. `owner` is that of its flock locks.
    pub fn release(self: &Arc<Self>, node: NodeId, handle: HandleId, owner: Option<u64>) {
        let half = self.lock().handles.get(handle).cloned();
        if let Some(file) = half.filter(|file| file.may_hold_half()) {
            return self.on_worker(move |engine| {
                file.leave_half(engine, handle);
                drop(file);
                engine.release(node, handle, owner);
            });
        }
        let mut state = self.lock();
        let unlock = Unlock {
            file: state.file_of(node),
            handle,
            owner,
        };
        pins::note_closed(&mut state, handle);
        match state.handles.remove(handle) {
            Some(file) => file.release(self, state, unlock),
            None => state::give_back(self, &mut state, &unlock),
        }
    }
}
