//! RELEASE: the last reference of a description is gone.

use std::sync::Arc;

use super::handle::Unlock;
use super::{Engine, State};
use crate::types::{HandleId, NodeId};

impl Engine {
    /// The last reference of a description is gone. `owner` is that of its flock locks.
    pub fn release(self: &Arc<Self>, node: NodeId, handle: HandleId, owner: Option<u64>) {
        let half = self.lock().handles.get(handle).cloned();
        if let Some(file) = half.filter(|file| file.may_hold_half()) {
            let engine = self.clone();
            return self.pool.run(move || {
                file.leave_half(&engine, handle);
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
        match state.handles.remove(handle) {
            Some(file) => file.release(self, state, unlock),
            None => self.give_back(&mut state, &unlock),
        }
    }

    /// Locks that end with a description.
    pub(super) fn give_back(&self, state: &mut State, unlock: &Unlock) {
        state.locks.forget_handle(unlock.handle);
        let mut released = state.locks.release_handle(unlock.file, unlock.handle);
        if let Some(owner) = unlock.owner {
            released |= state.locks.release_flock(unlock.file, owner);
            state.locks.forget_flock(owner);
        }
        if released {
            self.note_ended(state, unlock.file);
        }
    }
}
