//! unlink(2): what has to be decided before a name goes.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::base::directories;
use crate::engine::deciding::names::{refuse_state_dir, unlink_open_name};
use crate::engine::descriptions::letting_go;
use crate::engine::meaning::{deciding, pins};
use crate::types::{Caller, Dentry, NodeId, OpResult};

/// unlink(2).
pub fn unlink(
    engine: &Arc<Engine>,
    caller: Caller,
    dir: NodeId,
    name: &OsStr,
    done: impl FnOnce(OpResult<()>) + Send + 'static,
) {
    if let Err(e) = refuse_state_dir(dir, name) {
        return done(Err(e));
    }
    let dentry = Dentry {
        dir,
        name: name.to_owned(),
    };
    pins::leave_names(engine, caller.tid, &[&dentry]);
    directories::note_removal(engine, caller, &dentry);
    let saved = letting_go::let_go_of_name(engine, &dentry);
    if !saved.is_empty() || engine.lock().deciding_under(&dentry).is_some() {
        return engine.on_worker(move |engine| {
            letting_go::end_lock_file(engine, &saved);
            deciding::await_decisions(engine, &[&dentry]);
            unlink_open_name(engine, caller, dentry, done);
        });
    }
    unlink_open_name(engine, caller, dentry, done);
}
